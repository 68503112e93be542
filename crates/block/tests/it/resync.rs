//! Copies that catch up.

use std::time::Duration;

use gabion_base::ids::BlockAddr;
use gabion_block::copies::CopyIndex;
use gabion_block::mirror::{Notice, Options, Order, Trust};
use gabion_block::record::CopyState;

use crate::rig::{A, B, Behaviour, Event, FULL, Rig, STALE, read, write};

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

/// Each difference is counted once, told with its copy and place, and left as it is.
#[test]
fn comparing_counts_and_tells_what_differs_and_repairs_nothing() {
    let c = CopyIndex(2);
    let mut rig = Rig::new(3000, &[CopyState::InSync; 3]);
    rig.ask(write(0, 3000, 1));
    // Two in one piece, one at the end, and one block that is different on each of the copies.
    for (copy, addr, content) in [(B, 700, 9), (B, 702, 9), (B, 2999, 8), (B, 5, 7), (c, 5, 6)] {
        rig.repair(copy, addr, 1, content);
    }
    rig.log.clear();
    rig.order(Order::Compare);
    rig.order(Order::Compare);
    assert!(rig.mirror.compared().is_some());
    rig.pass(Duration::from_secs(2));
    let different = |copy, addr, blocks| Notice::Different { copy, addr: BlockAddr(addr), blocks };
    let mut told: Vec<_> = rig.notices.clone();
    told.sort_by_key(|notice| format!("{notice:?}"));
    let mut expected = vec![
        different(B, 0, 1),
        different(c, 0, 1),
        different(B, 512, 2),
        different(B, 2816, 1),
        Notice::Compared { different: 5 },
    ];
    expected.sort_by_key(|notice| format!("{notice:?}"));
    assert_eq!(told, expected);
    assert_eq!(rig.mirror.compared(), None);
    for copy in [A, B, c] {
        assert_eq!((rig.written(copy), rig.trust(copy)), (vec![], Trust::InSync));
    }
    // A write makes them equal where it goes.
    rig.ask(write(0, 3000, 2));
    rig.notices.clear();
    rig.order(Order::Compare);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.notices, [Notice::Compared { different: 0 }]);
}

/// A mirror of 5000 blocks with data, whose second copy lacks everything, and whose first one
/// cannot read `blocks`.
fn rig_with_unreadable(blocks: impl IntoIterator<Item = u64>) -> Rig {
    let fresh = Rig::new(5000, &[CopyState::InSync, FULL]);
    let disks = vec![fresh_data(&fresh), fresh.disks[1].clone()];
    let mut rig = Rig::open(&[CopyState::InSync, STALE], disks, Options::default());
    rig.order(Order::Suspend(B));
    rig.foreign = true;
    rig.unreadable.extend(blocks.into_iter().map(|addr| (A, addr)));
    rig.order(Order::Resume(B));
    rig
}

fn told(rig: &Rig) -> Vec<Notice> {
    let is_told = |notice: &&Notice| matches!(notice, Notice::Unreadable { .. });
    rig.notices.iter().filter(is_told).cloned().collect()
}

#[test]
fn an_unreadable_block_holds_up_its_region_and_no_other_one() {
    let mut rig = rig_with_unreadable([1500]);
    rig.pass(Duration::from_secs(600));
    assert_eq!((rig.trust(B), &rig.record), (Trust::Syncing, &ONE.to_vec()));
    let told = told(&rig);
    let unreadable = Notice::Unreadable { copy: A, addr: BlockAddr(1500), wanted_by: Some(B) };
    assert_eq!(told, [unreadable], "once, whatever comes after it");
    for addr in (0..5000).filter(|addr| *addr != 1500) {
        assert_eq!(rig.content(B, addr), 3, "{addr}");
    }
    let status = rig.mirror.copies()[B.at()];
    assert_eq!((status.missing_blocks, status.unreadable_blocks), (1024, 1));
    let attempts = rig.log.iter().filter(|event| **event == Event::Read(A)).count();
    assert!(attempts < 200, "{attempts} reads in ten minutes");
    assert_eq!(rig.log.iter().filter(|event| **event == Event::Detach(B)).count(), 2);
    let asked = [1499, 1500].map(|addr| rig.ask(read(addr)));
    rig.pass(Options::default().deadline);
    assert_eq!(asked.map(|id| rig.ended(id)), [Some(true), Some(false)]);
}

#[test]
fn a_block_that_can_be_read_again_ends_the_resync() {
    let mut rig = rig_with_unreadable([1500, 4999]);
    rig.pass(Duration::from_secs(200));
    rig.unreadable.clear();
    rig.pass(Duration::from_secs(65));
    assert_eq!((rig.trust(B), &rig.record), (Trust::InSync, &BOTH.to_vec()));
    assert_eq!((rig.content(B, 1500), rig.content(B, 4999)), (3, 3));
}

#[test]
fn a_write_makes_an_unreadable_block_good_and_ends_the_resync() {
    let mut rig = rig_with_unreadable([1500]);
    rig.pass(Duration::from_secs(200));
    rig.ask(write(1500, 1, 4));
    rig.pass(Duration::from_secs(5));
    assert_eq!((rig.trust(B), rig.content(B, 1500)), (Trust::InSync, 4));
}

/// Of a disk of which nothing can be read it is not asked for each block without an end.
#[test]
fn many_unreadable_blocks_cost_a_bounded_number_of_attempts() {
    let mut rig = rig_with_unreadable(0..4096);
    rig.pass(Duration::from_secs(60));
    assert!(told(&rig).len() <= 64, "{}", told(&rig).len());
    assert_eq!(rig.content(B, 4500), 3, "what is behind them is copied");
    let failed = rig.log.len();
    assert!(failed < 1000, "{failed}");
}

#[test]
fn a_block_that_one_copy_cannot_read_is_copied_from_the_next_and_written_again() {
    const THREE: [CopyState; 3] = [CopyState::InSync; 3];
    let mut rig = Rig::new(3000, &THREE);
    let c = CopyIndex(2);
    rig.ask(write(0, 3000, 1));
    rig.set(c, Behaviour::Gone);
    rig.ask(write(10, 1, 2));
    rig.unreadable.insert((A, 700));
    rig.set(c, Behaviour::Works);
    rig.pass(Duration::from_secs(10));
    assert_eq!((rig.trust(A), rig.record.as_slice()), (Trust::InSync, &THREE[..]));
    assert!(!rig.log.contains(&Event::Detach(A)));
    assert!(rig.notices.iter().any(|it| matches!(it, Notice::Rewritten { copy: A, .. })));
    assert!(rig.unreadable.is_empty() && told(&rig).is_empty());
}

#[test]
fn comparing_looks_at_what_some_copies_can_read_and_tells_what_none_can() {
    let mut rig = Rig::new(3000, &BOTH);
    rig.ask(write(0, 3000, 1));
    rig.repair(B, 1101, 1, 9);
    rig.unreadable.extend([(A, 40), (A, 1100), (B, 1100)]);
    rig.order(Order::Compare);
    rig.pass(Duration::from_secs(10));
    assert!(rig.notices.contains(&Notice::Compared { different: 1 }), "{:?}", rig.notices);
    let unreadable = Notice::Unreadable { copy: A, addr: BlockAddr(1100), wanted_by: None };
    assert_eq!(told(&rig), [unreadable]);
    assert!(!rig.unreadable.contains(&(A, 40)), "it was written again");
    let id = rig.ask(read(40));
    assert_eq!((rig.byte(id), rig.trust(A), rig.trust(B)), (1, Trust::InSync, Trust::InSync));
}
