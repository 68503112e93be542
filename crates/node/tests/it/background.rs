//! The loops that write, commit and reap on threads of their own.

use std::thread;
use std::time::Duration;

use gabion_map::OpenMode;
use gabion_node::Settings;

use crate::shared::{GLANCE, await_that};
use crate::world::{MIB, World};

/// Runs both loops while `body` does, and waits for their ends.
fn with_loops(world: &World, body: impl FnOnce()) {
    thread::scope(|scope| {
        let loops = [
            scope.spawn(|| world.fs.keep_committed(&|error| panic!("{error}"))),
            scope.spawn(|| world.fs.keep_reaped(&|error| panic!("{error}"))),
        ];
        body();
        // A loop that was just about to wait misses a single call.
        while loops.iter().any(|thread| !thread.is_finished()) {
            world.fs.end_background();
            thread::sleep(GLANCE);
        }
    });
}

#[test]
fn what_was_accepted_is_committed_and_what_was_unlinked_is_reaped() {
    let world = World::new(64 * MIB);
    let settings = Settings { commit_interval: Duration::ZERO, ..Settings::default() };
    let world = World::open_with(world.disk, OpenMode::ReadWrite, settings);
    with_loops(&world, || {
        let gone = world.file("gone", &[1; 100_000]);
        world.file("kept", &[2; 100_000]);
        world.unlink("gone");
        world.fs.forget(gone, 1);
        await_that(|| world.fs.stat(gone).is_err());
        await_that(|| {
            let activity = world.fs.map().activity();
            activity.dirty_bytes == 0 && activity.item_bytes == 0
        });
    });
    let after = world.after_crash(OpenMode::ReadOnly);
    assert_eq!(after.names(), ["kept"]);
    assert_eq!(after.read(after.lookup("kept").unwrap().file), [2; 100_000]);
}

#[test]
fn the_loops_of_a_filesystem_opened_to_read_do_nothing_and_end() {
    let world = World::new(64 * MIB);
    let file = world.file("orphan", b"x");
    world.unlink("orphan");
    world.fs.syncfs().unwrap();
    let world = world.after_crash(OpenMode::ReadOnly);
    let before = world.disk.image();
    with_loops(&world, || {});
    assert!(world.disk.image() == before);
    assert!(world.fs.stat(file).is_ok());
}
