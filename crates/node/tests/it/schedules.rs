//! Snapshots that are made by themselves, by a clock that goes as the test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gabion_base::ids::SubvolId;
use gabion_fs::Error;
use gabion_map::OpenMode;
use gabion_map::format::subvolume::{Hold, Schedule};
use gabion_node::FilesystemWatcher;

use crate::shared::GLANCE;
use crate::world::{MIB, World};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn schedule(world: &World, hourly: u16, daily: u16) {
    let schedule = Schedule { hourly, daily, ..Schedule::default() };
    world.fs.map().set_schedule(world.root().subvol, Some(schedule)).unwrap();
}

/// The names of all snapshots that begin so, oldest first.
fn names(world: &World, prefix: &str) -> Vec<String> {
    let found = world.fs.map().snapshots(world.root().subvol).into_iter();
    let names = found.map(|(_, record)| String::from_utf8(record.extended.name).unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn each_period_has_one_snapshot_and_the_newest_are_kept() {
    let world = World::new(64 * MIB);
    schedule(&world, 5, 2);
    world.fs.map().create_snapshot(world.root().subvol, b"hourly-mine", 7).unwrap();
    let mut seen = Vec::new();
    // 2023-11-14T22:13:20Z, and on, ten minutes at a time.
    for _ in 0..6 * 60 {
        world.fs.make_due_snapshots();
        let newest = names(&world, "hourly-2").pop().unwrap();
        seen.extend((seen.last() != Some(&newest)).then_some(newest));
        world.clock.advance(600);
    }
    assert_eq!(seen.len(), 61);
    assert_eq!((&*seen[0], &*seen[2]), ("hourly-2023-11-14T22:00Z", "hourly-2023-11-15T00:00Z"));
    assert_eq!(names(&world, "hourly-2"), seen[56..]);
    assert_eq!(names(&world, "daily"), ["daily-2023-11-16T00:00Z", "daily-2023-11-17T00:00Z"]);
    assert_eq!(names(&world, "hourly-mine"), ["hourly-mine"]);
    world.fs.map().set_schedule(world.root().subvol, None).unwrap();
    world.clock.advance(DAY);
    world.fs.make_due_snapshots();
    assert_eq!(names(&world, "").len(), 8);
}

#[test]
fn who_was_away_makes_what_is_due_and_not_what_was() {
    let world = World::new(64 * MIB);
    schedule(&world, 24, 7);
    world.fs.make_due_snapshots();
    world.fs.map().sync().unwrap();
    let later = world.after_crash(OpenMode::ReadWrite);
    // Within the same hour there is nothing to do.
    later.fs.make_due_snapshots();
    assert_eq!(names(&later, "").len(), 2);
    later.clock.advance(10 * DAY + 7);
    later.fs.make_due_snapshots();
    assert_eq!(names(&later, "hourly"), ["hourly-2023-11-14T22:00Z", "hourly-2023-11-24T22:00Z"]);
    assert_eq!(names(&later, "daily").len(), 2);
}

#[test]
fn what_is_held_or_has_clones_is_kept_beyond_the_count() {
    let world = World::new(64 * MIB);
    let of = world.root().subvol;
    schedule(&world, 2, 0);
    let mut ids = Vec::new();
    for hour in 0..10 {
        world.fs.make_due_snapshots();
        ids.push(world.fs.map().snapshots(of).pop().unwrap().0);
        match hour {
            1 => world.fs.map().set_hold(ids[1], Hold::Held).unwrap(),
            3 => drop(world.fs.clone_snapshot(ids[3], b"clone").unwrap()),
            _ => {}
        }
        world.clock.advance(HOUR);
    }
    let left = |world: &World| -> Vec<SubvolId> {
        world.fs.map().snapshots(of).into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(left(&world), [ids[1], ids[3], ids[8], ids[9]]);
    // Once it is released it goes with the next.
    world.fs.map().set_hold(ids[1], Hold::Released).unwrap();
    world.fs.make_due_snapshots();
    assert_eq!(left(&world)[..2], [ids[3], ids[9]]);
}

#[test]
fn a_subvolume_has_a_schedule_of_its_own_and_a_snapshot_none() {
    let world = World::new(64 * MIB);
    let home = world.fs.create_subvolume(b"home").unwrap().subvol;
    let weekly = Schedule { weekly: 3, ..Schedule::default() };
    world.fs.map().set_schedule(home, Some(weekly)).unwrap();
    for _ in 0..30 {
        world.fs.make_due_snapshots();
        world.clock.advance(DAY);
    }
    let found = world.fs.map().snapshots(home);
    let names: Vec<_> = found.iter().map(|(_, record)| record.extended.name.clone()).collect();
    let wanted =
        ["weekly-2023-11-27T00:00Z", "weekly-2023-12-04T00:00Z", "weekly-2023-12-11T00:00Z"];
    assert_eq!(names, wanted.map(|name| name.as_bytes().to_vec()));
    assert!(found.iter().all(|(_, record)| record.extended.schedule.is_none()));
    assert!(world.fs.map().snapshots(world.root().subvol).is_empty());
}

#[derive(Default)]
struct Counter(AtomicUsize);

impl FilesystemWatcher for Counter {
    fn changed(&self, _of: SubvolId) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, _of: SubvolId, name: &str, error: &Error) {
        panic!("{name}: {error}");
    }

    fn stopped(&self, reason: &str) {
        panic!("{reason}");
    }

    fn refused(&self, reason: Option<&str>) {
        panic!("{reason:?}");
    }
}

#[test]
fn a_new_schedule_is_followed_at_once_in_the_background() {
    let world = World::new(64 * MIB);
    let counter = Arc::new(Counter::default());
    world.fs.watch(Arc::clone(&counter) as Arc<dyn FilesystemWatcher>);
    std::thread::scope(|scope| {
        let background = scope.spawn(|| world.fs.keep_scheduled(&|error| panic!("{error}")));
        schedule(&world, 1, 1);
        while counter.0.load(Ordering::Relaxed) == 0 {
            world.fs.schedule_changed();
            std::thread::sleep(GLANCE);
        }
        while !background.is_finished() {
            world.fs.end_background();
            std::thread::sleep(GLANCE);
        }
    });
    assert_eq!(counter.0.load(Ordering::Relaxed), 1);
    assert_eq!(names(&world, "").len(), 2);
}
