//! rename and its flags.

use gabion_fs::{self as fs, Fate, FileType, IfTaken, Leave};

use crate::world::{World, failure, user};

fn world() -> World {
    let mut world = World::new();
    for dir in ["/a", "/a/b", "/a/b/c", "/z"] {
        world.mkdir(dir, 0o755).unwrap();
    }
    world.create("/a/file", 0o644).unwrap();
    world
}

#[test]
fn a_name_moves_within_and_between_directories() {
    let mut world = world();
    let file = world.resolve("/a/file").unwrap();
    let renamed = world.rename("/a/file", "/a/other").unwrap();
    assert_eq!((renamed.moved, renamed.replaced), (file, None));
    assert_eq!(world.names("/a"), ["b", "other"]);
    world.rename("/a/other", "/z/file").unwrap();
    assert_eq!(world.stat("/z/file").unwrap().ctime, world.ctx.now);
    for dir in ["/a", "/z"] {
        let dir = world.stat(dir).unwrap();
        assert_eq!((dir.mtime, dir.ctime, dir.size), (world.ctx.now, world.ctx.now, 1));
    }
    assert_eq!(failure(world.rename("/a/file", "/z/x")), "NotFound");
}

#[test]
fn a_moved_directory_has_another_parent() {
    let mut world = world();
    world.rename("/a/b", "/z/b").unwrap();
    assert_eq!(world.resolve("/z/b/..").unwrap(), world.resolve("/z").unwrap());
    assert_eq!((world.stat("/a").unwrap().nlink, world.stat("/z").unwrap().nlink), (2, 3));
    world.stat("/z/b/c").unwrap();
}

#[test]
fn what_had_the_name_before_loses_it() {
    let mut world = world();
    let old = world.create("/z/file", 0o600).unwrap().file;
    let renamed = world.rename("/a/file", "/z/file").unwrap();
    assert_eq!(renamed.replaced.unwrap().file, old);
    assert_eq!(renamed.replaced.unwrap().fate, Fate::Removed);
    assert_eq!(world.stat("/z/file").unwrap().mode & 0o777, 0o644);
    // It lives on if it is open or has other names.
    let open = world.create("/z/open", 0o600).unwrap().file;
    world.open.insert(open);
    let renamed = world.rename("/z/file", "/z/open").unwrap();
    assert_eq!(renamed.replaced.unwrap().fate, Fate::Orphaned);
    world.check();
    world.close(open);
    world.create("/z/x", 0o600).unwrap();
    world.link("/z/x", "/z/y").unwrap();
    let renamed = world.rename("/z/open", "/z/x").unwrap();
    assert_eq!(renamed.replaced.unwrap().fate, Fate::Named);
    assert_eq!(world.stat("/z/y").unwrap().nlink, 1);
}

#[test]
fn a_directory_replaces_only_an_empty_one() {
    let mut world = world();
    world.create("/z/file", 0o644).unwrap();
    assert_eq!(failure(world.rename("/a/b", "/z")), "NotEmpty");
    assert_eq!(failure(world.rename("/a/b", "/z/file")), "NotDirectory");
    assert_eq!(failure(world.rename("/z/file", "/a/b")), "IsDirectory");
    world.mkdir("/empty", 0o755).unwrap();
    let renamed = world.rename("/a/b", "/empty").unwrap();
    assert_eq!(renamed.replaced.unwrap().fate, Fate::Removed);
    assert_eq!(world.names("/empty"), ["c"]);
    assert_eq!(world.stat("/").unwrap().nlink, 5);
    world.mkdir("/empty2", 0o755).unwrap();
    world.rename("/empty", "/empty2").unwrap();
    assert_eq!(world.stat("/").unwrap().nlink, 5);
}

#[test]
fn no_directory_comes_to_lie_below_itself() {
    let mut world = world();
    assert_eq!(failure(world.rename("/a", "/a/x")), "InvalidArgument");
    assert_eq!(failure(world.rename("/a", "/a/b/c/x")), "InvalidArgument");
    assert_eq!(failure(world.rename("/a/b/c", "/a")), "NotEmpty");
    let exchange = |world: &mut World, from, to| {
        failure(world.rename_with(from, to, IfTaken::Exchange, Leave::Nothing))
    };
    assert_eq!(exchange(&mut world, "/a", "/a/b/c"), "InvalidArgument");
    assert_eq!(exchange(&mut world, "/a/b/c", "/a"), "InvalidArgument");
}

#[test]
fn two_names_of_one_file_both_stay() {
    let mut world = world();
    world.link("/a/file", "/z/file").unwrap();
    let before = world.stat("/a/file").unwrap();
    world.rename("/a/file", "/z/file").unwrap();
    world.rename("/a/file", "/a/file").unwrap();
    assert_eq!(world.stat("/a/file").unwrap(), before);
    assert_eq!(world.stat("/z/file").unwrap(), before);
}

#[test]
fn a_name_that_is_taken_can_be_left_alone() {
    let mut world = world();
    world.create("/z/file", 0o600).unwrap();
    let mut rename = |to| world.rename_with("/a/file", to, IfTaken::Fail, Leave::Nothing);
    assert_eq!(failure(rename("/z/file")), "Exists");
    assert_eq!(failure(rename("/a/file")), "Exists");
    rename("/z/free").unwrap();
}

#[test]
fn an_exchange_swaps_any_two_objects() {
    let mut world = world();
    world.mkdir("/z/dir", 0o755).unwrap();
    let (dir, file) = (world.resolve("/z/dir").unwrap(), world.resolve("/a/file").unwrap());
    let mut exchange = |from, to| world.rename_with(from, to, IfTaken::Exchange, Leave::Nothing);
    let renamed = exchange("/a/file", "/z/dir").unwrap();
    assert_eq!((renamed.moved, renamed.exchanged), (file, Some(dir)));
    exchange("/a/file", "/a/b").unwrap();
    exchange("/a/b", "/z").unwrap();
    assert_eq!(failure(exchange("/a/file", "/absent")), "NotFound");
    assert_eq!(world.resolve("/z").unwrap(), dir);
    assert_eq!(world.resolve("/a/b/dir").unwrap(), file);
    assert_eq!(world.names("/a/file"), ["c"]);
}

#[test]
fn a_whiteout_takes_the_old_place() {
    let mut world = world();
    world.rename_with("/a/file", "/z/file", IfTaken::Replace, Leave::Whiteout).unwrap();
    let whiteout = world.stat("/a/file").unwrap();
    assert_eq!((whiteout.file_type(), whiteout.rdev), (FileType::CharDevice, 0));
    let both = world.rename_with("/a", "/z", IfTaken::Exchange, Leave::Whiteout);
    assert_eq!(failure(both), "InvalidArgument");
}

#[test]
fn the_dots_are_not_renamed() {
    let mut world = world();
    assert_eq!(failure(world.rename("/a/.", "/x")), "Busy");
    assert_eq!(failure(world.rename("/a", "/z/..")), "Busy");
    let mut request = fs::RenameRequest {
        source_parent: crate::world::ROOT,
        source_name: b"a",
        target_parent: crate::world::ROOT,
        target_name: b"x",
        if_taken: IfTaken::Replace,
        leave: Leave::Nothing,
    };
    request.target_parent.subvol.0 += 1;
    let closed = |_| fs::OpenState::Closed;
    let result = world.map.run(|txn| fs::rename(txn, &world.ctx, &request, &closed));
    assert_eq!(failure(result), "CrossSubvolume");
}

/// Programs save a file by writing a new one and renaming it over the old one, without fsync.
#[test]
fn a_renamed_over_file_is_the_old_one_or_the_new_one_never_empty() {
    let mut world = world();
    world.create("/a/new", 0o644).unwrap();
    world.write("/a/new", 0, b"new").unwrap();
    let new = world.resolve("/a/new").unwrap();
    world.rename("/a/new", "/a/moved").unwrap();
    assert_eq!(world.map.flushes, []);
    world.rename("/a/moved", "/a/file").unwrap();
    assert_eq!(world.map.flushes, [new]);
    assert_eq!(world.read("/a/file").unwrap(), b"new");
}

#[test]
fn a_sticky_directory_protects_other_peoples_names() {
    let mut world = world();
    world.mkdir("/tmp", 0o1777).unwrap();
    world.chmod("/tmp", 0o1777).unwrap();
    world.as_caller(user(5, &[]), |world| {
        world.create("/tmp/five", 0o666).unwrap();
        world.mkdir("/tmp/dir", 0o777).unwrap();
    });
    world.as_caller(user(6, &[]), |world| {
        world.create("/tmp/six", 0o666).unwrap();
        assert_eq!(failure(world.rename("/tmp/five", "/tmp/x")), "NotPermitted");
        assert_eq!(failure(world.rename("/tmp/six", "/tmp/five")), "NotPermitted");
        assert_eq!(failure(world.unlink("/tmp/five")), "NotPermitted");
        assert_eq!(failure(world.rmdir("/tmp/dir")), "NotPermitted");
        world.rename("/tmp/six", "/tmp/seven").unwrap();
        world.unlink("/tmp/seven").unwrap();
    });
    world.unlink("/tmp/five").unwrap();
    world.chown("/tmp", 6, 6).unwrap();
    world.as_caller(user(6, &[]), |world| world.rmdir("/tmp/dir")).unwrap();
}

#[test]
fn another_parent_is_a_change_of_a_moved_directory() {
    let mut world = world();
    for dir in ["/a", "/z"] {
        world.chmod(dir, 0o777).unwrap();
    }
    world.as_caller(user(5, &[]), |world| {
        assert_eq!(failure(world.rename("/a/b", "/z/b")), "AccessDenied");
        world.rename("/a/b", "/a/renamed").unwrap();
        world.rename("/a/file", "/z/file").unwrap();
    });
}
