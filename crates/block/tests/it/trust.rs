//! Whom the record trusts, and what administrators want.

use std::time::Duration;

use gabion_block::copies::CopyIndex;
use gabion_block::mirror::{Order, Trust};
use gabion_block::record::CopyState;

use crate::rig::{A, B, Behaviour, Coordinator, Event, FULL, Rig, STALE, write};

const BOTH: [CopyState; 2] = [CopyState::InSync; 2];

/// Whoever attaches a copy writes its header. If the record did not know by then that its content
/// is of no use, the next opener would bring only those regions up to date that the old one lacked.
#[test]
fn a_disk_that_is_another_one_is_attached_once_the_record_knows() {
    let mut rig = Rig::new(3000, &[CopyState::InSync, STALE]);
    rig.foreign = true;
    rig.coordinator = Coordinator::Silent;
    rig.order(Order::Suspend(B));
    rig.order(Order::Resume(B));
    rig.log.clear();
    rig.pass(Duration::from_secs(1));
    assert_ne!(rig.trust(B), Trust::Syncing, "{:?}", rig.log);
    rig.coordinator = Coordinator::Works;
    rig.pass(Duration::from_secs(10));
    let known = rig.log.iter().position(|it| *it == Event::Record(vec![CopyState::InSync, FULL]));
    let attached = rig.log.iter().rposition(|event| *event == Event::Attach(B));
    assert!(known.is_some() && known < attached, "{:?}", rig.log);
    assert_eq!(rig.record, BOTH);
}

#[test]
fn orders_that_come_too_late_change_nothing() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.order(Order::PutIn(B));
    rig.order(Order::PutIn(CopyIndex(7)));
    rig.order(Order::TakeOut(CopyIndex(5)));
    rig.order(Order::Resume(CopyIndex(2)));
    assert_eq!(rig.record, BOTH);
    rig.coordinator = Coordinator::Silent;
    rig.order(Order::TakeOut(B));
    rig.order(Order::PutIn(B));
    assert_eq!(rig.trust(B), Trust::Failing, "its place is not free yet");
}

#[test]
fn a_place_that_was_freed_gets_a_new_disk() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    rig.order(Order::TakeOut(A));
    assert_eq!(rig.record, [CopyState::Removed, CopyState::InSync]);
    rig.ask(write(0, 1, 2));
    rig.order(Order::PutIn(A));
    rig.pass(Duration::from_secs(10));
    assert_eq!((rig.record.as_slice(), rig.content(A, 0)), (&BOTH[..], 2));
}

#[test]
fn a_suspended_copy_misses_what_is_written_and_gets_it_when_it_is_resumed() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.order(Order::Suspend(B));
    let id = rig.ask(write(0, 1, 2));
    assert_eq!((rig.ended(id), rig.content(B, 0)), (Some(true), 0));
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.trust(B), Trust::Suspended);
    rig.set(B, Behaviour::Gone);
    rig.order(Order::Resume(B));
    rig.pass(Duration::from_secs(1));
    rig.set(B, Behaviour::Works);
    rig.pass(Duration::from_secs(10));
    assert_eq!((rig.trust(B), rig.content(B, 0)), (Trust::InSync, 2));
}
