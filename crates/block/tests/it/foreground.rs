//! What the owner of a mirror asks for.

use std::time::Duration;

use gabion_base::disk::{DiskRequest, Repair};
use gabion_block::mirror::{Notice, Options, Order, Trust};
use gabion_block::record::CopyState;

use crate::rig::{A, B, Behaviour, Coordinator, Event, FULL, Rig, STALE, read, write};

const BOTH: [CopyState; 2] = [CopyState::InSync; 2];

#[test]
fn a_write_is_sent_once_all_copies_have_its_intent() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.set(B, Behaviour::Frozen);
    let id = rig.ask(write(5, 2, 9));
    assert_eq!(rig.log, [Event::Page(A)], "the other one has no intent yet");
    rig.set(B, Behaviour::Works);
    let write = |copy| Event::Write(copy, 5, 2);
    let rest = [Event::Page(B), write(A), write(B), Event::Answer(id)];
    assert_eq!(rig.log[1..], rest);
    assert_eq!((rig.content(A, 6), rig.content(B, 6)), (9, 9));
}

/// Smallest story of `Mirror::awaits_record`.
#[test]
fn nothing_is_acknowledged_that_a_copy_lacks_before_the_record_knows() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    rig.set(B, Behaviour::Gone);
    rig.coordinator = Coordinator::Silent;
    let during = rig.ask(write(0, 1, 2));
    // These were never sent to the copy that has failed.
    let after = rig.ask(write(1, 1, 3));
    let elsewhere = rig.ask(write(2000, 1, 4));
    let flush = rig.ask(DiskRequest::Flush);
    for id in [during, after, elsewhere, flush] {
        assert_eq!(rig.ended(id), None);
    }
    assert_eq!(rig.content(A, 2000), 0, "its intent is not on all copies that are trusted");
    rig.coordinator = Coordinator::Works;
    rig.pass(Duration::from_millis(100));
    for id in [during, after, elsewhere, flush] {
        assert_eq!(rig.ended(id), Some(true));
    }
    assert_eq!(rig.record, [CopyState::InSync, STALE]);
}

#[test]
fn requests_end_by_their_deadline_while_the_coordinator_is_away() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    rig.set(B, Behaviour::Gone);
    rig.coordinator = Coordinator::Away;
    let requests = [rig.ask(write(0, 1, 2)), rig.ask(write(0, 1, 3)), rig.ask(DiskRequest::Flush)];
    let reading = rig.ask(read(0));
    rig.pass(Options::default().deadline - Duration::from_millis(100));
    assert!(requests.iter().all(|id| rig.ended(*id).is_none()));
    rig.pass(Duration::from_millis(100));
    assert!(requests.iter().all(|id| rig.ended(*id) == Some(false)));
    assert_eq!(rig.ended(reading), Some(true), "reads need no record");
    rig.coordinator = Coordinator::Works;
    rig.pass(Duration::from_millis(300));
    let id = rig.ask(write(0, 1, 4));
    assert_eq!(rig.ended(id), Some(true));
}

#[test]
fn the_last_copy_is_kept_and_tried_again() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.set(A, Behaviour::Gone);
    rig.set(B, Behaviour::Gone);
    let (id, reading) = (rig.ask(write(3, 1, 5)), rig.ask(read(3)));
    rig.pass(Duration::from_secs(5));
    assert_eq!((rig.ended(id), rig.trust(B)), (None, Trust::InSync));
    let fails = |notice: &Notice| matches!(notice, Notice::LastCopyFails { copy: B, .. });
    assert_eq!(rig.notices.iter().filter(|notice| fails(notice)).count(), 1);
    rig.set(B, Behaviour::Works);
    rig.pass(Duration::from_millis(300));
    assert_eq!((rig.ended(id), rig.ended(reading)), (Some(true), Some(true)));
    let reading = rig.ask(read(3));
    assert_eq!(rig.byte(reading), 5);
    rig.order(Order::Suspend(B));
    assert_eq!(rig.trust(B), Trust::InSync, "it is the last one");
}

/// What the mirror writes and flushes of its own accord has no deadline.
#[test]
fn the_last_copy_may_be_away_for_longer_than_any_deadline() {
    let mut rig = Rig::new(3000, &[CopyState::InSync]);
    rig.ask(write(0, 1, 1));
    rig.set(A, Behaviour::Gone);
    let id = rig.ask(write(2000, 1, 2));
    rig.pass(Options::default().deadline * 2);
    assert_eq!(rig.ended(id), Some(false));
    rig.set(A, Behaviour::Works);
    rig.pass(Duration::from_secs(1));
    let id = rig.ask(write(2000, 1, 3));
    assert_eq!(rig.ended(id), Some(true));
    rig.pass(Duration::from_secs(10));
    assert!(rig.mirror.is_settled());
}

#[test]
fn writes_to_one_block_reach_all_copies_in_one_order() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    rig.set(B, Behaviour::Frozen);
    let first = rig.ask(write(10, 4, 2));
    let second = rig.ask(write(12, 4, 3));
    let beside = rig.ask(write(20, 1, 4));
    assert_eq!(rig.written(A), [(0, 1), (10, 4), (20, 1)], "the second waits for the first");
    rig.set(B, Behaviour::Works);
    assert!([first, second, beside].iter().all(|id| rig.ended(*id) == Some(true)));
    for addr in 10..16 {
        let expected = if addr < 12 { 2 } else { 3 };
        assert_eq!((rig.content(A, addr), rig.content(B, addr)), (expected, expected));
    }
}

/// The copy that catches up has the write that the only other one has refused. Ending the write
/// and giving the copy up follow from each other, and must happen once.
#[test]
fn a_write_that_the_last_copy_refuses_fails_and_the_copy_that_has_it_begins_again() {
    let mut rig = Rig::new(3000, &[CopyState::InSync, FULL]);
    rig.set(B, Behaviour::Frozen);
    rig.ask(write(0, 1, 1));
    rig.set(A, Behaviour::Refuses);
    rig.log.clear();
    rig.set(B, Behaviour::Works);
    let id = rig.ask(write(0, 1, 2));
    assert_eq!(rig.ended(id), Some(false));
    assert!(rig.log.contains(&Event::Detach(B)), "{:?}", rig.log);
    rig.set(A, Behaviour::Works);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.trust(B), Trust::InSync);
    assert_eq!(rig.content(A, 0), rig.content(B, 0));
}

#[test]
fn a_frozen_copy_is_given_up_after_some_patience() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    rig.set(A, Behaviour::Frozen);
    let id = rig.ask(write(0, 1, 2));
    rig.pass(Options::default().copy_patience - Duration::from_millis(100));
    assert_eq!(rig.ended(id), None);
    rig.pass(Duration::from_millis(100));
    assert_eq!((rig.ended(id), rig.trust(A)), (Some(true), Trust::Stale));
}

#[test]
fn a_repair_waits_for_a_write_and_then_leaves_it_alone() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 1, 1));
    let id = rig.repair(B, 0, 1, 7);
    assert_eq!((rig.repaired(id), rig.content(B, 0)), (Some(Repair::Repaired), 7));
    rig.set(A, Behaviour::Frozen);
    let writing = rig.ask(write(0, 1, 2));
    let id = rig.repair(B, 0, 7, 1);
    assert_eq!((rig.ended(writing), rig.repaired(id)), (None, None));
    rig.set(A, Behaviour::Works);
    assert_eq!((rig.repaired(id), rig.content(B, 0)), (Some(Repair::Changed), 2));
}
