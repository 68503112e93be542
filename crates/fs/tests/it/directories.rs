//! mkdir, rmdir, and what is special about directories.

use gabion_fs::{self as fs, Fate, FileType};

use crate::world::{ROOT, World, failure, user};

#[test]
fn a_directory_counts_two_links_and_one_for_each_directory_in_it() {
    let mut world = World::new();
    let a = world.mkdir("/a", 0o7755).unwrap();
    assert_eq!((a.nlink, a.mode & 0o7777), (2, 0o1755));
    world.mkdir("/a/b", 0o755).unwrap();
    world.mkdir("/a/c", 0o755).unwrap();
    world.create("/a/file", 0o644).unwrap();
    let a = world.stat("/a").unwrap();
    assert_eq!((a.nlink, a.size), (4, 3));
    world.rmdir("/a/b").unwrap();
    assert_eq!(world.stat("/a").unwrap().nlink, 3);
    assert_eq!(world.stat("/").unwrap().nlink, 3);
}

#[test]
fn only_empty_directories_are_removed() {
    let mut world = World::new();
    world.mkdir("/a", 0o755).unwrap();
    world.create("/a/file", 0o644).unwrap();
    assert_eq!(failure(world.rmdir("/a")), "NotEmpty");
    assert_eq!(failure(world.rmdir("/a/file")), "NotDirectory");
    assert_eq!(failure(world.rmdir("/a/.")), "InvalidArgument");
    assert_eq!(failure(world.rmdir("/a/..")), "NotEmpty");
    world.unlink("/a/file").unwrap();
    assert_eq!(world.rmdir("/a").unwrap().fate, Fate::Removed);
    assert_eq!(failure(world.rmdir("/a")), "NotFound");
}

#[test]
fn nothing_is_made_in_a_directory_that_is_removed_but_open() {
    let mut world = World::new();
    let dir = world.mkdir("/dir", 0o755).unwrap().file;
    let file = world.create("/file", 0o644).unwrap().file;
    world.open.insert(dir);
    assert_eq!(world.rmdir("/dir").unwrap().fate, Fate::Orphaned);
    let ctx = &world.ctx;
    assert_eq!(world.map.run(|txn| fs::stat(txn, dir)).unwrap().nlink, 0);
    assert_eq!(failure(world.map.run(|txn| fs::mkdir(txn, ctx, dir, b"x", 0o755))), "NotFound");
    assert_eq!(failure(world.map.run(|txn| fs::link(txn, ctx, file, dir, b"x"))), "NotFound");
    let request = fs::RenameRequest {
        source_parent: ROOT,
        source_name: b"file",
        target_parent: dir,
        target_name: b"x",
        if_taken: fs::IfTaken::Replace,
        leave: fs::Leave::Nothing,
    };
    let closed = |_| fs::OpenState::Closed;
    let result = world.map.run(|txn| fs::rename(txn, ctx, &request, &closed));
    assert_eq!(failure(result), "NotFound");
    let listing = world.map.run(|txn| fs::readdir(txn, dir, 0, 10, fs::Detail::Names));
    assert_eq!(failure(listing), "NotFound");
    world.close(dir);
    assert_eq!(failure(world.map.run(|txn| fs::stat(txn, dir))), "Stale");
}

#[test]
fn a_set_group_directory_hands_down_its_group() {
    let mut world = World::new();
    world.mkdir("/shared", 0o777).unwrap();
    world.chown("/shared", 0, 50).unwrap();
    world.chmod("/shared", 0o2777).unwrap();
    world.as_caller(user(5, &[]), |world| {
        let file = world.create("/shared/file", 0o644).unwrap();
        assert_eq!((file.uid, file.gid, file.mode & 0o7777), (5, 50, 0o644));
        let dir = world.mkdir("/shared/dir", 0o755).unwrap();
        assert_eq!((dir.gid, dir.mode & 0o7777), (50, 0o2755));
        let program = world.create("/shared/program", 0o2755).unwrap();
        assert_eq!(program.mode & 0o7777, 0o755);
    });
    world.as_caller(user(6, &[50]), |world| {
        let program = world.create("/shared/members", 0o2755).unwrap();
        assert_eq!(program.mode & 0o7777, 0o2755);
    });
    assert_eq!(world.mknod("/shared/pipe", FileType::Fifo, 0).unwrap().gid, 50);
}
