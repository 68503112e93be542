//! create, mkdir, mknod, lookup, unlink.

use gabion_fs::{
    self as fs, Access, Disposition, Fate, FileType, IfExists, OpenRequest, Privileges,
};
use gabion_map::LockMode;

use crate::world::{ROOT, World, failure, user};

#[test]
fn a_new_file_has_the_callers_ids_the_umask_and_one_time() {
    let mut world = World::new();
    let mut caller = user(5, &[]);
    caller.umask = 0o027;
    world.chmod("/", 0o777).unwrap();
    let made = world.as_caller(caller, |world| world.create("/file", 0o4777)).unwrap();
    assert_eq!(made.mode, FileType::Regular.bits() | 0o4750);
    assert_eq!((made.uid, made.gid, made.nlink, made.size), (5, 5, 1, 0));
    assert_eq!([made.atime, made.mtime, made.ctime, made.btime], [world.ctx.now; 4]);
    let root = world.stat("/").unwrap();
    assert_eq!((root.mtime, root.ctime, root.size), (world.ctx.now, world.ctx.now, 1));
    assert_eq!(world.stat("/file").unwrap(), made);
}

#[test]
fn create_opens_what_is_there_unless_it_has_to_be_new() {
    let mut world = World::new();
    world.create("/file", 0o600).unwrap();
    world.write("/file", 0, b"bytes").unwrap();
    world.mkdir("/dir", 0o755).unwrap();
    world.symlink("/link", b"file").unwrap();
    let mut create = |name: &[u8], if_exists, truncate| {
        let request = OpenRequest { access: Access::WRITE, truncate };
        let ctx = &world.ctx;
        world.map.run(|txn| fs::create(txn, ctx, ROOT, name, 0o644, if_exists, &request))
    };
    assert_eq!(failure(create(b"file", IfExists::Fail, None)), "Exists");
    let (attributes, disposition) = create(b"file", IfExists::Open, None).unwrap();
    assert_eq!((attributes.size, disposition), (5, Disposition::Opened));
    let (attributes, _) = create(b"file", IfExists::Open, Some(Privileges::Clear)).unwrap();
    assert_eq!(attributes.size, 0);
    assert_eq!(failure(create(b"dir", IfExists::Open, None)), "IsDirectory");
    assert_eq!(failure(create(b"link", IfExists::Open, None)), "Stale");
    assert_eq!(failure(create(b"..", IfExists::Open, None)), "IsDirectory");
}

#[test]
fn names_are_1_to_255_bytes_without_slash_and_nul() {
    let mut world = World::new();
    let longest = "x".repeat(255);
    world.create(&longest, 0o644).unwrap();
    world.stat(&longest).unwrap();
    assert_eq!(failure(world.create(&"x".repeat(256), 0o644)), "NameTooLong");
    assert_eq!(failure(world.create("", 0o644)), "NotFound");
    assert_eq!(failure(world.create("a\0b", 0o644)), "InvalidArgument");
    assert_eq!(failure(world.mkdir(".", 0o755)), "Exists");
    assert_eq!(failure(world.symlink("..", b"x")), "Exists");
}

#[test]
fn lookup_tells_absent_names_and_files_that_are_no_directories_apart() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    assert_eq!(failure(world.stat("/absent")), "NotFound");
    assert_eq!(failure(world.stat("/file/below")), "NotDirectory");
    assert_eq!(failure(world.create("/file/below", 0o644)), "NotDirectory");
}

#[test]
fn the_dots_name_the_directory_and_its_parent() {
    let mut world = World::new();
    let a = world.mkdir("/a", 0o755).unwrap().file;
    let b = world.mkdir("/a/b", 0o755).unwrap().file;
    assert_eq!(world.resolve("/a/b/.").unwrap(), b);
    assert_eq!(world.resolve("/a/b/..").unwrap(), a);
    assert_eq!(world.resolve("/..").unwrap(), ROOT);
    assert_eq!(world.map.run(|txn| fs::lookup_parent(txn, b)).unwrap().file, a);
}

#[test]
fn mknod_makes_pipes_sockets_and_devices() {
    let mut world = World::new();
    let device = world.mknod("/device", FileType::BlockDevice, 0x0803).unwrap();
    assert_eq!((device.file_type(), device.rdev), (FileType::BlockDevice, 0x0803));
    world.mknod("/pipe", FileType::Fifo, 7).unwrap();
    assert_eq!(world.stat("/pipe").unwrap().rdev, 0);
    world.mknod("/socket", FileType::Socket, 0).unwrap();
    assert_eq!(failure(world.mknod("/dir", FileType::Directory, 0)), "NotPermitted");
    assert_eq!(failure(world.mknod("/link", FileType::Symlink, 0)), "InvalidArgument");
    world.chmod("/", 0o777).unwrap();
    world.as_caller(user(5, &[]), |world| {
        let result = world.mknod("/mine", FileType::CharDevice, 0x0103);
        assert_eq!(failure(result), "NotPermitted");
        world.mknod("/whiteout", FileType::CharDevice, 0).unwrap();
        world.mknod("/my-pipe", FileType::Fifo, 0).unwrap();
    });
}

#[test]
fn the_last_name_takes_the_file_with_it() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    world.write("/file", 0, b"bytes").unwrap();
    let unnamed = world.unlink("/file").unwrap();
    assert_eq!((unnamed.file, unnamed.fate), (file, Fate::Removed));
    assert_eq!(failure(world.stat("/file")), "NotFound");
    assert_eq!(failure(world.map.run(|txn| fs::stat(txn, file))), "Stale");
    assert!(world.map.files.is_empty());
    assert_eq!(failure(world.unlink("/file")), "NotFound");
}

#[test]
fn unlink_leaves_directories_alone() {
    let mut world = World::new();
    world.mkdir("/dir", 0o755).unwrap();
    assert_eq!(failure(world.unlink("/dir")), "IsDirectory");
    assert_eq!(failure(world.unlink("/dir/.")), "IsDirectory");
}

#[test]
fn a_full_filesystem_can_be_emptied() {
    let mut world = World::new();
    world.mkdir("/dir", 0o755).unwrap();
    world.create("/dir/file", 0o644).unwrap();
    world.create("/dir/other", 0o644).unwrap();
    world.map.is_full = true;
    let full = "no space left on the filesystem";
    assert_eq!(failure(world.create("/new", 0o644)), full);
    assert_eq!(failure(world.mkdir("/new", 0o644)), full);
    assert_eq!(failure(world.symlink("/new", b"x")), full);
    assert_eq!(failure(world.link("/dir/file", "/new")), full);
    assert_eq!(failure(world.write("/dir/file", 0, b"x")), full);
    world.truncate("/dir/file", 0).unwrap();
    world.rename("/dir/file", "/dir/other").unwrap();
    world.unlink("/dir/other").unwrap();
    world.rmdir("/dir").unwrap();
}

#[test]
fn a_local_lookup_touches_parent_and_object_only_and_shared() {
    let mut world = World::new();
    let dir = world.mkdir("/dir", 0o755).unwrap().file;
    let file = world.create("/dir/file", 0o644).unwrap().file;
    world.ctx.caller.trust = fs::Trust::CheckedByKernel;
    world.map.run(|txn| fs::lookup(txn, &world.ctx, dir, b"file")).unwrap();
    let locked: Vec<_> = world.map.locked.iter().map(|(file, mode)| (*file, *mode)).collect();
    assert_eq!(locked, [(dir, LockMode::Shared), (file, LockMode::Shared)]);
}
