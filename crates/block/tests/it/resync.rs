//! Copies that catch up.

use std::time::Duration;

use gabion_block::mirror::{Notice, Options, Order, Trust};
use gabion_block::record::CopyState;

use crate::rig::{A, B, Behaviour, Event, FULL, Rig, STALE, write};

const BOTH: [CopyState; 2] = [CopyState::InSync; 2];
const ONE: [CopyState; 2] = [CopyState::InSync, STALE];

#[test]
fn a_copy_gets_the_regions_that_it_lacks_and_only_what_differs() {
    let mut rig = Rig::new(5000, &BOTH);
    rig.ask(write(0, 3000, 1));
    rig.set(B, Behaviour::Gone);
    rig.ask(write(10, 1, 2));
    rig.ask(write(20, 1, 2));
    rig.ask(write(2048, 1, 2));
    rig.log.clear();
    rig.set(B, Behaviour::Works);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.trust(B), Trust::InSync);
    assert_eq!(rig.written(B), [(10, 11), (2048, 1)]);
    assert_eq!((rig.content(B, 20), rig.content(B, 2048)), (2, 2));
    assert!(rig.mirror.is_settled());
}

/// What an earlier writer has left in the copy's cache must not be taken for what is on its disk.
#[test]
fn a_copy_is_flushed_before_it_is_looked_at() {
    let mut rig = Rig::new(3000, &[CopyState::InSync, FULL]);
    rig.pass(Duration::from_secs(2));
    let of_copy = |event: &&Event| matches!(event, Event::Read(B) | Event::Flush(B));
    let first = rig.log.iter().find(of_copy);
    assert_eq!((first, rig.trust(B)), (Some(&Event::Flush(B)), Trust::InSync));
}

/// More regions than are copied between two flushes, each of several chunks.
#[test]
fn a_copy_that_lacks_everything_gets_everything() {
    let mut rig = Rig::new(70 * 1024, &[CopyState::InSync, FULL]);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.trust(B), Trust::InSync);
    assert_eq!(rig.written(B), [], "both were zeros");
}

#[test]
fn copying_goes_on_where_it_was_when_the_writer_begins_again() {
    let mut rig = Rig::new(80 * 1024, &[CopyState::InSync, FULL]);
    // As long as there are requests, copying takes its time.
    while rig.now < Duration::from_millis(4800) {
        rig.ask(crate::rig::read(0));
        rig.pass(Duration::from_millis(100));
    }
    let left = rig.mirror.copies()[B.at()].missing_blocks;
    assert_eq!(rig.trust(B), Trust::Syncing);
    assert!(left > 0 && left < 40 * 1024, "{left}");
    assert_eq!(rig.record, ONE, "what is left is in the bitmap");
    let rig = Rig::open(&rig.record, rig.disks, Options::default());
    let again = rig.notices.iter().find_map(|notice| match notice {
        Notice::SyncStarted { blocks, .. } => Some(*blocks),
        _ => None,
    });
    assert_eq!(again, Some(left));
}

#[test]
fn copying_leaves_room_for_requests_however_slow_it_is_told_to_be() {
    for rate in [500, 4000] {
        let fresh = Rig::new(20 * 1024, &[CopyState::InSync, FULL]);
        let options = Options { busy_blocks_per_second: rate, ..Options::default() };
        let mut rig = Rig::open(&[CopyState::InSync, FULL], fresh.disks, options);
        rig.disks[0] = fresh_data(&rig);
        for _ in 0..40 {
            rig.ask(crate::rig::read(0));
            rig.pass(Duration::from_millis(100));
        }
        let copied: u64 = rig.written(B).iter().map(|(_, count)| count).sum();
        assert!(copied > rate * 3 && copied <= rate * 4 + 512, "{copied} at {rate}");
    }
}

/// The first disk of `rig`, with data on it.
fn fresh_data(rig: &Rig) -> std::sync::Arc<gabion_base::disk::MemDisk> {
    let mut image = rig.disks[0].image();
    image[256 * 4096..].fill(3);
    std::sync::Arc::new(gabion_base::disk::MemDisk::from_image(image))
}

#[test]
fn comparing_finds_what_differs() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 3000, 1));
    rig.repair(B, 700, 1, 9);
    rig.order(Order::Compare);
    rig.order(Order::Compare);
    rig.pass(Duration::from_secs(2));
    assert!(rig.notices.contains(&Notice::Compared { different: 1 }), "{:?}", rig.notices);
    let different = |notice: &&Notice| matches!(notice, Notice::Different { copy: B, .. });
    assert!(rig.notices.iter().any(|notice| different(&notice)));
    assert_eq!((rig.content(A, 700), rig.content(B, 700)), (1, 9), "nobody knows who is right");
}
