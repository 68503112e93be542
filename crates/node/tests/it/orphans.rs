//! Objects without a name: how long they live, and that they go.

use gabion_fs::create::Linkable;
use gabion_fs::{Error, OpenRequest};
use gabion_map::OpenMode;

use crate::world::{MIB, World};

#[test]
fn an_unlinked_file_lives_until_everyone_has_closed_and_forgotten_it() {
    let world = World::new(64 * MIB);
    let file = world.file("file", b"still here");
    world.fs.open_file(&world.caller, file, &OpenRequest::READ).unwrap();
    world.unlink("file");
    world.reap();
    assert_eq!(world.read(file), b"still here");
    world.fs.forget(file, 1);
    world.reap();
    assert_eq!(world.read(file), b"still here");
    world.fs.release(file);
    assert_eq!(world.fs.orphans_waiting(), 1);
    assert!(world.reap() > 0);
    assert!(matches!(world.fs.stat(file), Err(Error::Stale)));
    assert_eq!(world.fs.orphans_waiting(), 0);
}

#[test]
fn a_file_that_nobody_refers_to_goes_with_its_name() {
    let world = World::new(64 * MIB);
    let file = world.file("file", b"x");
    world.fs.forget(file, 1);
    world.unlink("file");
    assert!(matches!(world.fs.stat(file), Err(Error::Stale)));
}

#[test]
fn a_removed_directory_is_reaped_when_it_is_forgotten() {
    let world = World::new(64 * MIB);
    let dir = world.fs.mkdir(&world.caller, world.root(), b"dir", 0o755).unwrap().file;
    world.fs.rmdir(&world.caller, world.root(), b"dir").unwrap();
    world.reap();
    assert_eq!(world.fs.stat(dir).unwrap().nlink, 0);
    world.fs.forget(dir, 1);
    world.reap();
    assert!(matches!(world.fs.stat(dir), Err(Error::Stale)));
}

#[test]
fn orphans_of_a_crash_are_reaped_after_the_next_start() {
    let world = World::new(64 * MIB);
    let mut files = Vec::new();
    for index in 0..600 {
        let name = format!("file{index}");
        files.push(world.file(&name, &[1; 5000]));
        world.unlink(&name);
    }
    world.fs.syncfs().unwrap();
    let used = world.fs.space().used;
    let after = world.after_crash(OpenMode::ReadWrite);
    assert!(after.fs.stat(files[0]).is_ok(), "nothing is lost before it is reaped");
    assert!(after.reap() > 600);
    for file in files {
        assert!(matches!(after.fs.stat(file), Err(Error::Stale)));
    }
    after.fs.syncfs().unwrap();
    after.fs.syncfs().unwrap();
    assert!(after.fs.space().used + 1000 < used, "{used} before, {:?}", after.fs.space());
}

#[test]
fn closing_reaps_what_was_open_until_then() {
    let world = World::new(64 * MIB);
    let file = world.file("file", &[1; 100_000]);
    world.unlink("file");
    world.fs.close().unwrap();
    let after = world.after_crash(OpenMode::ReadWrite);
    assert!(matches!(after.fs.stat(file), Err(Error::Stale)));
}

#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    let world = World::new(64 * MIB);
    let make = || world.fs.tmpfile(&world.caller, world.root(), 0o600, Linkable::Yes).unwrap().file;
    let (kept, lost) = (make(), make());
    world.write(kept, 0, b"kept");
    world.fs.link(&world.caller, kept, world.root(), b"name").unwrap();
    for file in [kept, lost] {
        world.fs.forget(file, 2);
        world.fs.release(file);
    }
    world.reap();
    assert!(matches!(world.fs.stat(lost), Err(Error::Stale)));
    let found = world.lookup("name").unwrap();
    assert_eq!((found.file, found.nlink), (kept, 1));
    assert_eq!(world.read(kept), b"kept");
}

#[test]
fn a_large_orphan_is_reaped_in_several_transactions() {
    let world = World::new(256 * MIB);
    let file = world.file("big", b"");
    // Every other block, so that no two of them make one extent.
    for index in 0..3000 {
        world.write(file, index * 8192, &[1; 4096]);
    }
    world.fs.syncfs().unwrap();
    world.unlink("big");
    world.fs.forget(file, 1);
    // One step is the scan that each start begins with.
    assert!(world.reap() > 2);
    assert!(matches!(world.fs.stat(file), Err(Error::Stale)));
}
