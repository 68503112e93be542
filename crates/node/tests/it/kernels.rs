//! What clients' kernels are told to forget, and what they may keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gabion_fs::{Changes, Privileges, WriteAt};
use gabion_link::message::{ChangeNumber, ToClient};
use gabion_node::{Filesystem, Kept};

use crate::shared::{GLANCE, Server, await_that, caller, rename};

#[test]
fn a_kernel_forgets_by_which_name_it_knew_a_folder_that_others_have_moved() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let mkdir = |name: &str| a.run(|fs| fs.mkdir(&caller(), a.root, name.as_bytes(), 0o755));
    let folder = mkdir("old").unwrap().file;
    assert_eq!(b.lookup("old").unwrap(), folder);
    b.lookup("new").unwrap_err();
    assert_eq!(b.lookup("old").unwrap(), folder);
    a.run(|fs| fs.rename(&caller(), &rename(a.root, "old", "new"))).unwrap();
    assert!(b.kernel.places.lock().is_empty());
    assert_eq!(b.lookup("new").unwrap(), folder);
    let began = std::time::Instant::now();
    while *b.kernel.places.lock() != [(b.root, "old".to_owned())] {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", b.kernel.places.lock());
        thread::sleep(GLANCE);
    }
    // What it has moved itself it knows.
    b.run(|fs| fs.rename(&caller(), &rename(b.root, "new", "newest"))).unwrap();
    assert_eq!(b.lookup("newest").unwrap(), folder);
    assert_eq!(b.kernel.places.lock().len(), 1);
}

#[test]
fn a_kernel_that_cannot_forget_names_keeps_none() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    let (attributes, name) =
        (Kept::Attributes(file), Kept::Name { dir: client.root, name: b"file" });
    let kept = || [attributes, name].map(|kept| client.run(|fs| Filesystem::is_kept(fs, kept)));
    assert_eq!(kept(), [true, true]);
    client.kernel.is_old.store(true, Ordering::Relaxed);
    assert_eq!(kept(), [true, false]);
}

#[test]
fn a_kernel_keeps_no_attributes_of_a_file_that_may_be_mapped() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    let look = || {
        b.run(|fs| fs.stat(file)).unwrap();
        b.run(|fs| Filesystem::is_kept(fs, Kept::Attributes(file)))
    };
    let forgotten = || {
        a.write(file, WriteAt::Offset(0), b"changed");
        std::mem::take(&mut *b.kernel.attributes.lock()).contains(&file)
    };
    b.lookup("file").unwrap();
    assert!(look());
    b.run(|fs| fs.may_be_mapped(file));
    assert!(!look());
    // What it had before goes; from then on there is nothing to forget.
    assert!(forgotten());
    assert!(!look() && !forgotten());
    b.run(|fs| fs.is_not_mapped(file));
    assert!(look() && forgotten());
}

#[test]
fn pages_are_dropped_before_others_bytes_are_accepted() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    a.write(file, WriteAt::Offset(0), &[1; 20_000]);
    // Who has not looked for it might ask before the server knows of it.
    b.lookup("file").unwrap();
    assert_eq!(b.read(file, 0, 20_000), [1; 20_000]);
    assert!(b.kernel.bytes.lock().is_empty());
    a.write(file, WriteAt::Offset(5000), &[2; 10]);
    assert_eq!(*b.kernel.bytes.lock(), [(file, 4096, 8192)]);
    assert_eq!(b.read(file, 4096, 4096)[904..914], [2; 10]);
    // A client's own pages go the same way: others than the writer may have read them.
    a.read(file, 0, 4096);
    a.write(file, WriteAt::Offset(0), &[3]);
    assert_eq!(*a.kernel.bytes.lock(), [(file, 0, 4096)]);
    // To cut and to extend a file are changes of bytes.
    b.read(file, 16_384, 4096);
    let size = Some((17_000, Privileges::Keep));
    let changes = Changes { size, ..Changes::default() };
    a.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
    assert_eq!(b.kernel.bytes.lock().last(), Some(&(file, 16_384, 20_480)));
    assert_eq!(b.size(file), 17_000);
}

#[test]
fn what_the_server_has_said_without_a_lease_is_not_kept_in_kernels() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    let kept = Kept::Attributes(file);
    assert!(client.run(|fs| fs.stat(file).map(|_| Filesystem::is_kept(fs, kept))).unwrap());
    // From now on the server makes the changes.
    let (number, extents) = (ChangeNumber(0), Vec::new());
    client.fs.receive(ToClient::Applied { number, extents, credit: 0 });
    let changes = Changes { permissions: Some(0o600), ..Changes::default() };
    let is_kept = client.run(|fs| {
        fs.setattr(&caller(), file, &changes).unwrap();
        // Another request has got the lease since.
        let fs = Arc::clone(&client.fs);
        thread::scope(|scope| {
            let stat = || (fs.stat(file).map(|_| Filesystem::is_kept(&*fs, kept)), fs.answered()).0;
            assert!(scope.spawn(stat).join().unwrap().unwrap());
        });
        Filesystem::is_kept(&*fs, kept)
    });
    assert!(!is_kept);
}

/// Programs of one client write a file and read it through the kernel's cache, others do so too.
#[test]
fn pages_and_changes_of_the_same_client_hold_nobody_up() {
    const ROUNDS: u64 = 400;
    let server = Server::new();
    let clients = [server.client(), server.client()];
    let file = clients[0].create("file");
    clients[0].write(file, WriteAt::Offset(0), &[0; 16_384]);
    clients[1].lookup("file").unwrap();
    let written: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for (index, client) in clients.iter().enumerate() {
            let (at, written) = (index as u64 * 8192, &written);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    client.write(file, WriteAt::Offset(at), &round.to_le_bytes());
                    written[index].store(round, Ordering::Release);
                }
            });
            scope.spawn(move || {
                let is_over = || written.iter().all(|one| one.load(Ordering::Acquire) == ROUNDS);
                while !is_over() {
                    let least = written[1 - index].load(Ordering::Acquire);
                    let bytes = client.read(file, 8192 - at, 8);
                    assert!(u64::from_le_bytes(bytes.try_into().unwrap()) >= least);
                    client.read(file, 0, 16_384);
                }
            });
        }
    });
    // The last that was asked for is given up after the threads are done.
    await_that(|| server.served.clients().iter().all(|client| client.owed == 0));
}
