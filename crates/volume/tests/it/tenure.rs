//! Whether a volume is still its opener's, with and without the coordinator.

use std::sync::Arc;

use gabion_block::coordinator::Coordinator;
use gabion_coordinator::Reach;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::Volume;

use crate::world::{World, end, until, write};

/// Another machine, which reaches the coordinator whoever else does not.
fn elsewhere(world: &World) -> Surroundings {
    let coordinator = Arc::new(world.coordinator.peer());
    Surroundings { coordinator, holder: "another machine".to_owned(), ..world.surroundings() }
}

/// The coordinator is away, and for so long that the claim has ended.
fn cut_off(world: &World) {
    world.coordinator.set_reach(Reach::None);
    world.coordinator.expire_claim("tank");
}

#[test]
fn who_has_the_claim_or_is_told_so_by_all_members_is_certain() {
    let world = World::new();
    let (_a, b) = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    let volume = world.open();
    let tenure = volume.tenure().unwrap();
    assert!(tenure.is_certain() && tenure.explains_failures());
    cut_off(&world);
    assert!(!tenure.explains_failures());
    until("certainty", || tenure.is_certain());
    // One of them could be all that somebody else has needed to open it.
    drop(b);
    until("doubt", || !tenure.is_certain());
    let _b = world.target("b");
    until("certainty", || tenure.is_certain());
    world.coordinator.set_reach(Reach::Full);
    until("the claim", || tenure.explains_failures());
    assert!(!tenure.is_over());
    end(volume);
}

#[test]
fn what_is_on_this_machine_nobody_else_can_have() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let tenure = volume.tenure().unwrap();
    cut_off(&world);
    until("certainty", || tenure.is_certain());
    world.coordinator.set_reach(Reach::Full);
    end(volume);
}

#[test]
fn who_is_cut_off_learns_from_the_members_that_somebody_else_has_the_volume() {
    let world = World::new();
    let (_a, _b) = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    learns_from_members(&world);
    // The same without a mirror, which would notice when it writes.
    let world = World::new();
    let _a = world.target("a");
    world.create(&world.url("a"));
    learns_from_members(&world);
}

#[track_caller]
fn learns_from_members(world: &World) {
    let volume = world.open();
    let tenure = volume.tenure().unwrap();
    write(&volume, 1, 1);
    cut_off(world);
    let other = Volume::open("tank", elsewhere(world)).unwrap_or_else(|error| panic!("{error}"));
    let reason = tenure.await_end();
    assert!(reason.contains("epoch"), "{reason}");
    assert!(tenure.is_over() && !tenure.is_certain() && !tenure.explains_failures());
    write(&other, 1, 2);
    end(other);
}

#[test]
fn who_reaches_the_coordinator_learns_it_from_the_record() {
    let world = World::new();
    let _a = world.target("a");
    world.create(&world.url("a"));
    let volume = world.open();
    let tenure = volume.tenure().unwrap();
    // The claim is taken again by who has lost it, unless somebody else is first.
    let other = loop {
        world.coordinator.expire_claim("tank");
        if let Ok(other) = Volume::open("tank", elsewhere(&world)) {
            break other;
        }
    };
    let reason = tenure.await_end();
    assert!(reason.contains("epoch"), "{reason}");
    assert!(tenure.is_over() && !tenure.is_certain());
    end(other);
}

#[test]
fn a_volume_that_was_closed_can_be_opened_though_somebody_keeps_it() {
    let world = World::new();
    let file = world.file("a");
    world.create(&file);
    let volume = world.open();
    let tenure = volume.tenure().unwrap();
    volume.close().unwrap();
    assert!(!tenure.explains_failures());
    assert_eq!(world.coordinator.holder("tank"), Ok(None));
    drop(volume);
}
