//! setattr: chmod, chown, truncate, utimens.

use gabion_base::time::Timestamp;
use gabion_fs::{Access, Changes, FileType, OpenRequest, Privileges, SetTime, Through};

use crate::world::{World, failure, user};

/// A file of user 5 with group 5 in a directory of the superuser.
fn world() -> World {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    world.chown("/file", 5, 5).unwrap();
    world
}

fn permissions(world: &mut World, path: &str) -> u32 {
    world.stat(path).unwrap().mode & 0o7777
}

#[test]
fn chmod_is_the_owners_and_records_the_change() {
    let mut world = world();
    let before = world.stat("/file").unwrap();
    let after = world.as_caller(user(5, &[]), |world| world.chmod("/file", 0o7711)).unwrap();
    assert_eq!(after.mode & 0o7777, 0o7711);
    assert_eq!((after.ctime, after.mtime), (world.ctx.now, before.mtime));
    assert!(after.change > before.change);
    world.as_caller(user(6, &[5]), |world| {
        assert_eq!(failure(world.chmod("/file", 0o777)), "NotPermitted");
    });
    world.symlink("/link", b"file").unwrap();
    assert_eq!(failure(world.chmod("/link", 0o777)), "NotSupported");
}

#[test]
fn chmod_by_a_stranger_to_the_group_clears_set_group() {
    let mut world = world();
    world.chown("/file", 5, 50).unwrap();
    world.as_caller(user(5, &[]), |world| world.chmod("/file", 0o2755)).unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o755);
    world.as_caller(user(5, &[50]), |world| world.chmod("/file", 0o2755)).unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o2755);
}

#[test]
fn only_the_superuser_gives_files_away() {
    let mut world = world();
    world.as_caller(user(5, &[50]), |world| {
        assert_eq!(failure(world.chown("/file", 6, 5)), "NotPermitted");
        assert_eq!(failure(world.chown("/file", 5, 60)), "NotPermitted");
        let changed = world.chown("/file", 5, 50).unwrap();
        assert_eq!((changed.uid, changed.gid), (5, 50));
    });
    world.as_caller(user(6, &[50]), |world| {
        assert_eq!(failure(world.chown("/file", 5, 50)), "NotPermitted");
    });
    assert_eq!(world.chown("/file", 6, 60).unwrap().uid, 6);
}

#[test]
fn a_program_that_changes_hands_loses_its_rights() {
    let mut world = world();
    for (before, after) in [(0o6755, 0o755), (0o6744, 0o2744), (0o1755, 0o1755)] {
        world.chmod("/file", before).unwrap();
        world.chown("/file", 5, 5).unwrap();
        assert_eq!(permissions(&mut world, "/file"), after);
    }
    world.mkdir("/dir", 0o755).unwrap();
    world.chmod("/dir", 0o6755).unwrap();
    world.chown("/dir", 5, 5).unwrap();
    assert_eq!(permissions(&mut world, "/dir"), 0o6755);
}

#[test]
fn truncate_needs_write_permission_or_an_open_handle() {
    let mut world = world();
    world.write("/file", 0, b"0123456789").unwrap();
    world.truncate("/file", 4).unwrap();
    let longer = world.truncate("/file", 6).unwrap();
    assert_eq!((longer.size, longer.mtime, longer.ctime), (6, world.ctx.now, world.ctx.now));
    assert_eq!(world.read("/file").unwrap(), b"0123\0\0");
    world.as_caller(user(6, &[]), |world| {
        assert_eq!(failure(world.truncate("/file", 0)), "AccessDenied");
        let size = Some((0, Privileges::Clear));
        let changes = Changes { size, through: Through::Handle, ..Changes::default() };
        assert_eq!(world.setattr("/file", changes).unwrap().size, 0);
    });
    world.mkdir("/dir", 0o755).unwrap();
    world.mknod("/pipe", FileType::Fifo, 0).unwrap();
    assert_eq!(failure(world.truncate("/dir", 0)), "IsDirectory");
    assert_eq!(failure(world.truncate("/pipe", 0)), "InvalidArgument");
    assert_eq!(failure(world.truncate("/file", 1 << 63)), "TooLarge");
    assert_eq!(world.truncate("/file", (1 << 63) - 1).unwrap().size, i64::MAX as u64);
}

#[test]
fn changing_bytes_clears_what_could_be_abused() {
    let mut world = world();
    world.chmod("/", 0o777).unwrap();
    for (before, after) in [(0o6777, 0o777), (0o6766, 0o2766), (0o777, 0o777)] {
        world.chmod("/file", before).unwrap();
        world.as_caller(user(6, &[]), |world| world.truncate("/file", 0)).unwrap();
        assert_eq!(permissions(&mut world, "/file"), after);
        world.chmod("/file", before).unwrap();
        world.as_caller(user(6, &[]), |world| world.write("/file", 0, b"x")).unwrap();
        assert_eq!(permissions(&mut world, "/file"), after);
        world.chmod("/file", before).unwrap();
        let truncate = Some(Privileges::Clear);
        world.open("/file", OpenRequest { access: Access::WRITE, truncate }).unwrap();
        assert_eq!(permissions(&mut world, "/file"), after);
    }
    world.chmod("/file", 0o6777).unwrap();
    world.write("/file", 0, b"x").unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o6777);
}

#[test]
fn who_may_write_sets_times_to_now_and_the_owner_to_anything() {
    let mut world = world();
    world.chmod("/file", 0o646).unwrap();
    let set = |atime, mtime| Changes { atime, mtime, ..Changes::default() };
    let past = SetTime::At(Timestamp::new(-5, 999_999_999));
    let changed = world
        .as_caller(user(5, &[]), |world| world.setattr("/file", set(Some(past), None)))
        .unwrap();
    assert_eq!(changed.atime, Timestamp::new(-5, 999_999_999));
    assert_eq!(changed.ctime, world.ctx.now);
    world.as_caller(user(6, &[]), |world| {
        let now = Some(SetTime::Now);
        assert_eq!(failure(world.setattr("/file", set(Some(past), now))), "NotPermitted");
        assert_eq!(failure(world.setattr("/file", set(now, None))), "NotPermitted");
        let changed = world.setattr("/file", set(now, now)).unwrap();
        assert_eq!([changed.atime, changed.mtime], [world.ctx.now; 2]);
    });
    world.chmod("/file", 0o644).unwrap();
    world.as_caller(user(6, &[]), |world| {
        let now = Some(SetTime::Now);
        assert_eq!(failure(world.setattr("/file", set(now, now))), "AccessDenied");
    });
}
