//! Walks through trees: what the kernel may list by itself, and what is fetched before somebody
//! lists it.

use gabion_fs::{Detail, FileType};
use gabion_map::FileId;
use gabion_node::{Filesystem, Kept};

use crate::shared::{Client, Server, await_that, caller};

/// Lists a directory to its end: whether the kernel may keep it.
fn list(client: &Client, dir: FileId) -> bool {
    client.names(dir);
    client.run(|fs| {
        let end = fs.readdir(&caller(), dir, u64::MAX >> 1, 100, Detail::Attributes).unwrap();
        assert!(end.entries.is_empty());
        Filesystem::is_kept(fs, Kept::Listing(dir))
    })
}

fn make_directory(client: &Client, parent: FileId, name: &str) -> FileId {
    client.run(|fs| fs.mkdir(&caller(), parent, name.as_bytes(), 0o755)).unwrap().file
}

fn make_file(client: &Client, parent: FileId, name: &str) -> FileId {
    let made =
        client.run(|fs| fs.mknod(&caller(), parent, name.as_bytes(), FileType::Regular, 0o644, 0));
    made.unwrap().file
}

#[test]
fn a_listing_is_kept_until_somebody_changes_a_name() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    a.create("file");
    assert!(list(&b, b.root));
    assert!(b.kernel.listings.lock().is_empty());
    a.create("another");
    assert!(b.kernel.listings.lock().contains(&b.root), "the kernel was told before");
    await_that(|| list(&b, b.root));
    assert_eq!(b.names(b.root).len(), 2);
}

#[test]
fn what_was_told_before_a_revocation_and_used_after_it_is_not_kept() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    a.create("file");
    b.names(b.root);
    // Somebody was told and has not put it into the kernel's pages yet.
    let slow = b.kernel.listing.lock();
    a.create("another");
    assert!(!list(&b, b.root) && !list(&b, b.root));
    let told = b.kernel.listings.lock().len();
    drop(slow);
    await_that(|| list(&b, b.root));
    assert!(b.kernel.listings.lock().len() > told, "it was dropped once more");
}

#[test]
fn a_listing_is_not_kept_by_who_was_not_told_of_his_own_change() {
    let server = Server::new();
    let client = server.client();
    client.create("file");
    assert!(list(&client, client.root));
    client.run(|fs| Filesystem::unseen(fs, client.root));
    await_that(|| client.kernel.listings.lock().contains(&client.root));
}

#[test]
fn nothing_is_kept_of_directories_after_a_session() {
    let server = Server::new();
    let client = server.client();
    client.create("file");
    assert!(list(&client, client.root));
    client.fs.forget_everything();
    assert!(client.kernel.listings.lock().contains(&client.root));
}

/// Directories in directories, each with some files: how many entries there are.
fn make_tree(client: &Client, top: FileId) -> usize {
    let mut count = 0;
    for branch in 0..8 {
        let dir = make_directory(client, top, &format!("branch-{branch}"));
        for twig in 0..8 {
            let dir = make_directory(client, dir, &format!("twig-{twig}"));
            for leaf in 0..3 {
                make_file(client, dir, &format!("leaf-{leaf}"));
            }
            count += 4;
        }
        count += 1;
    }
    count
}

fn walk(client: &Client, top: FileId) -> usize {
    let mut directories = vec![top];
    let mut count = 0;
    while let Some(dir) = directories.pop() {
        for name in client.names(dir) {
            let found = client.run(|fs| fs.lookup(&caller(), dir, name.as_bytes())).unwrap();
            count += 1;
            if found.mode & libc::S_IFMT == libc::S_IFDIR {
                directories.push(found.file);
            }
        }
    }
    count
}

#[test]
fn a_walk_costs_far_fewer_messages_than_it_lists_directories() {
    let server = Server::new();
    let maker = server.client();
    let count = make_tree(&maker, maker.root);
    maker.run(|fs| fs.syncfs()).unwrap();
    // What its maker has exclusively nobody else gets by a guess.
    server.end(&maker);
    let other = server.client();
    let (walked, calls) = other.calls(|other| walk(other, other.root));
    assert_eq!(walked, count);
    assert!(calls <= 73 / 3, "{calls} calls for 73 directories");
    assert_eq!(other.calls(|other| walk(other, other.root)), (count, 0));
}

/// In what order somebody walks through what is in a directory.
#[derive(Clone, Copy)]
enum Order {
    FirstToLast,
    LastToFirst,
}

#[test]
fn a_walk_through_many_directories_in_one_costs_few_messages_from_either_end() {
    const DIRECTORIES: usize = 600;
    let server = Server::new();
    let maker = server.client();
    for number in 0..DIRECTORIES {
        let dir = make_directory(&maker, maker.root, &format!("branch-{number}"));
        make_file(&maker, dir, "leaf");
    }
    maker.run(|fs| fs.syncfs()).unwrap();
    server.end(&maker);
    for order in [Order::FirstToLast, Order::LastToFirst] {
        let other = server.client();
        let (count, calls) = other.calls(|other| {
            let mut names = other.names(other.root);
            if let Order::LastToFirst = order {
                names.reverse();
            }
            let find = |name: &String| {
                other.run(|fs| fs.lookup(&caller(), other.root, name.as_bytes())).unwrap().file
            };
            names.iter().map(|name| other.names(find(name)).len()).sum::<usize>()
        });
        assert_eq!(count, DIRECTORIES);
        assert!(calls <= DIRECTORIES as u64 / 6, "{calls} calls");
    }
}

#[test]
fn what_others_have_to_themselves_is_not_taken_by_a_guess() {
    let server = Server::new();
    let (maker, other) = (server.client(), server.client());
    make_tree(&maker, maker.root);
    let find = |client: &Client, dir: FileId, name: &str| {
        client.run(|fs| fs.lookup(&caller(), dir, name.as_bytes())).unwrap().file
    };
    other.names(other.root);
    let branch = find(&other, other.root, "branch-0");
    other.names(branch);
    for twig in ["twig-0", "twig-1"] {
        other.names(find(&other, branch, twig));
    }
    // The guess has been answered when what was asked after it is.
    other.names(find(&other, branch, "twig-2"));
    let dir = find(&maker, find(&maker, maker.root, "branch-1"), "twig-0");
    assert_eq!(maker.calls(|maker| make_file(maker, dir, "leaf")).1, 0);
}
