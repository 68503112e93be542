//! What is told of a volume by the one who has it open.

use gabion_base::event::{Event, VolumeEvent};
use gabion_block::coordinator::{Coordinator, CoordinatorError};
use gabion_block::mirror::Trust;
use gabion_coordinator::Reach;
use gabion_volume::volume::{Volume, VolumeError};

use crate::world::{World, assert_block, await_sync, end, trust, write};

/// Waits for an event of the volume.
#[track_caller]
fn await_volume_event(world: &World, wanted: &VolumeEvent) {
    world.await_event(|event| matches!(event, Event::Volume { event, .. } if event == wanted));
}

#[test]
fn a_volume_that_is_opened_without_a_copy_is_told_to_be_degraded() {
    let world = World::new();
    let (_a, b) = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    end(world.open());
    let opened = |epoch| VolumeEvent::Opened { epoch, holder: "a test".to_owned() };
    let closed = |epoch| VolumeEvent::Closed { epoch };
    let degraded = VolumeEvent::Degraded { working: 1, members: 2 };
    let first = world.volume_events();
    let [VolumeEvent::Opened { epoch, .. }, VolumeEvent::Closed { .. }] = first[..] else {
        panic!("nothing is missing: {first:?}")
    };
    drop(b);
    // It was in sync and is found to be away; then the record has it as stale, and it still is.
    for round in 1..=2 {
        let before = world.volume_events().len();
        end(world.open());
        let told = &world.volume_events()[before..];
        assert_eq!(told, [opened(epoch + round), degraded.clone(), closed(epoch + round)]);
    }
    let _b = world.target("b");
    let volume = world.open();
    await_sync(&volume);
    let whole = VolumeEvent::Whole { members: 2 };
    await_volume_event(&world, &whole);
    let told = world.volume_events();
    assert_eq!(told[told.len() - 3..], [opened(epoch + 3), degraded, whole]);
}

#[test]
fn a_claim_that_is_lost_is_told_and_taken_again() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let epoch = volume.record().epoch().0;
    let other = world.coordinator.peer();
    world.coordinator.set_reach(Reach::None);
    world.coordinator.expire_claim("tank");
    let taken = other.claim("tank", "somebody else").unwrap();
    await_volume_event(&world, &VolumeEvent::ClaimLost { epoch });
    world.coordinator.set_reach(Reach::Full);
    write(&volume, 1, 1);
    assert_block(&volume, 1, 1);
    assert_eq!(trust(&volume), [Trust::InSync; 2]);
    let back = VolumeEvent::ClaimBack { epoch };
    assert!(!world.volume_events().contains(&back), "somebody else has it");
    drop(taken);
    await_volume_event(&world, &back);
    assert_eq!(other.holder("tank").unwrap().as_deref(), Some("a test"));
    let refused = Volume::open("tank", world.surroundings()).err().expect("it is open");
    let VolumeError::Register(error) = refused else { panic!("{refused}") };
    let claimed = CoordinatorError::Claimed { volume: "tank".into(), holder: "a test".into() };
    assert_eq!(error, claimed.into());
    let lost = VolumeEvent::ClaimLost { epoch };
    assert_eq!(world.volume_events().iter().filter(|event| **event == lost).count(), 1);
    drop(volume);
    assert_eq!(other.holder("tank"), Ok(None), "a claim that was taken again ends, too");
}
