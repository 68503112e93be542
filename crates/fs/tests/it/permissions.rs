//! Mode bits: who may do what, and who is not asked.

use gabion_fs::{self as fs, Access, OpenRequest, Trust};

use crate::world::{World, failure, user};

fn open(world: &mut World, path: &str, access: Access) -> String {
    match world.open(path, OpenRequest { access, truncate: None }) {
        Ok(_) => "opened".to_string(),
        error => failure(error),
    }
}

#[test]
fn owner_group_and_others_have_their_own_bits() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    world.chown("/file", 5, 50).unwrap();
    world.chmod("/file", 0o426).unwrap();
    let callers = [(user(5, &[50]), 4), (user(6, &[50]), 2), (user(7, &[]), 6)];
    for (caller, bits) in callers {
        for wanted in 1..8 {
            let access = Access::from_bits(wanted).unwrap();
            let expected = if wanted & bits == wanted { "opened" } else { "AccessDenied" };
            let caller = caller.clone();
            world.as_caller(caller, |world| assert_eq!(open(world, "/file", access), expected));
        }
    }
}

#[test]
fn the_superuser_executes_only_what_somebody_may_execute() {
    let mut world = World::new();
    world.create("/file", 0).unwrap();
    world.mkdir("/dir", 0).unwrap();
    assert_eq!(open(&mut world, "/file", Access::READ | Access::WRITE), "opened");
    assert_eq!(open(&mut world, "/file", Access::EXECUTE), "AccessDenied");
    world.chmod("/file", 0o001).unwrap();
    assert_eq!(open(&mut world, "/file", Access::EXECUTE), "opened");
    world.create("/dir/file", 0o644).unwrap();
}

#[test]
fn directories_need_execute_to_search_and_write_to_change() {
    let mut world = World::new();
    world.mkdir("/dir", 0o755).unwrap();
    world.create("/dir/file", 0o666).unwrap();
    world.as_caller(user(5, &[]), |world| {
        assert_eq!(failure(world.create("/dir/new", 0o644)), "AccessDenied");
        assert_eq!(failure(world.create("/dir/file", 0o644)), "Exists");
        assert_eq!(failure(world.mkdir("/dir/new", 0o755)), "AccessDenied");
        assert_eq!(failure(world.unlink("/dir/file")), "AccessDenied");
        assert_eq!(failure(world.link("/dir/file", "/dir/new")), "AccessDenied");
        assert_eq!(failure(world.rename("/dir/file", "/dir/new")), "AccessDenied");
        world.stat("/dir/file").unwrap();
    });
    world.chmod("/dir", 0o766).unwrap();
    world.as_caller(user(5, &[]), |world| {
        assert_eq!(failure(world.stat("/dir/file")), "AccessDenied");
        assert_eq!(failure(world.create("/dir/new", 0o644)), "AccessDenied");
        assert_eq!(open(world, "/dir", Access::READ), "opened");
        assert_eq!(open(world, "/dir", Access::WRITE), "IsDirectory");
    });
}

#[test]
fn what_the_kernel_has_checked_is_not_checked_again() {
    let mut world = World::new();
    world.mkdir("/dir", 0o1700).unwrap();
    world.create("/dir/file", 0o4755).unwrap();
    let mut caller = user(5, &[]);
    caller.trust = Trust::CheckedByKernel;
    world.as_caller(caller, |world| {
        let file = world.create("/dir/new", 0o600).unwrap();
        assert_eq!((file.uid, file.gid), (5, 5));
        world.chmod("/dir/file", 0o4755).unwrap();
        // What the kernel leaves to the filesystem is done all the same.
        assert_eq!(world.chown("/dir/file", 6, 6).unwrap().mode & 0o7777, 0o755);
        world.unlink("/dir/file").unwrap();
    });
}

#[test]
fn access_asks_without_opening() {
    let mut world = World::new();
    let file = world.create("/file", 0o640).unwrap().file;
    world.ctx.caller = user(5, &[]);
    let mut ask = |wanted| world.map.run(|txn| fs::access(txn, &world.ctx, file, wanted));
    ask(Access::EXISTS).unwrap();
    assert_eq!(failure(ask(Access::READ)), "AccessDenied");
    assert_eq!(Access::from_bits(8), None);
}
