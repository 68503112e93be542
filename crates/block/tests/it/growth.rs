//! Mirrors that become longer while they are used.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{DiskRequest, MemDisk};
use gabion_block::geometry::{Geometry, METADATA_BLOCKS};
use gabion_block::mirror::{
    Input, Loaded, Mirror, Notice, Options, Order, Output, RequestId, Sent, TICK, Trust,
    blank_pages,
};
use gabion_block::record::CopyState;

use crate::rig::{A, B, Behaviour, Coordinator, MIRROR, Rig, STALE, read, write};

const BOTH: [CopyState; 2] = [CopyState::InSync; 2];
/// Blocks of data before and afterwards.
const SHORT: u64 = 5000;
const LONG: u64 = 12_000;

/// A mirror whose disks are longer than it, and hold something behind its end.
fn longer() -> Rig {
    let mut rig = Rig::new(SHORT, &BOTH);
    for (number, disk) in rig.disks.iter_mut().enumerate() {
        let mut image = disk.image();
        image.resize((LONG + METADATA_BLOCKS) as usize * BLOCK_SIZE, 7 + number as u8);
        *disk = Arc::new(MemDisk::from_image(image));
    }
    rig
}

fn grow(rig: &mut Rig) {
    rig.order(Order::Grow(LONG + METADATA_BLOCKS));
}

/// The mirror as whoever opens it next finds it.
fn reopened(rig: Rig) -> Rig {
    let length = rig.length.unwrap_or(SHORT + METADATA_BLOCKS);
    let disks = rig.disks.iter().map(|disk| {
        let mut image = disk.image();
        image.truncate(length as usize * BLOCK_SIZE);
        Arc::new(MemDisk::from_image(image))
    });
    Rig::open(&rig.record, disks.collect(), Options::default())
}

#[test]
fn a_mirror_that_grows_is_used_meanwhile_and_zero_behind_its_old_end() {
    let mut rig = longer();
    rig.ask(write(10, 1, 1));
    grow(&mut rig);
    rig.pass(Duration::from_secs(1));
    let written = rig.ask(write(11, 1, 2));
    assert_eq!(rig.ended(written), Some(true));
    assert_eq!((rig.mirror.blocks(), rig.length), (LONG, Some(LONG + METADATA_BLOCKS)));
    assert!(rig.notices.contains(&Notice::Grown { blocks: LONG }));
    for copy in [A, B] {
        assert_eq!((rig.content(copy, SHORT), rig.content(copy, LONG - 1)), (0, 0));
        assert_eq!((rig.content(copy, 10), rig.content(copy, 11)), (1, 2));
    }
    let last = rig.ask(write(LONG - 1, 1, 3));
    assert_eq!(rig.ended(last), Some(true));
    rig.pass(Duration::from_secs(10));
    assert!(rig.mirror.is_settled());
    let rig = reopened(rig);
    assert_eq!((rig.trust(A), rig.trust(B)), (Trust::InSync, Trust::InSync), "they are clean");
    assert_eq!(rig.content(B, LONG - 1), 3);
}

#[test]
fn nobody_may_use_new_blocks_before_the_record_knows_of_them() {
    let mut rig = longer();
    rig.coordinator = Coordinator::Away;
    grow(&mut rig);
    rig.pass(Duration::from_secs(3));
    assert_eq!((rig.mirror.blocks(), rig.length), (SHORT, None));
    let written = rig.ask(write(10, 1, 1));
    assert_eq!(rig.ended(written), Some(true), "that waits for nothing");
    rig.coordinator = Coordinator::Works;
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.mirror.blocks(), LONG);
}

/// Between the bitmaps and the record: what is found are bitmaps of another length.
#[test]
fn a_writer_that_dies_before_the_record_knows_leaves_the_old_length_in_order() {
    let mut rig = longer();
    rig.ask(write(10, 1, 1));
    rig.pass(Duration::from_secs(10));
    rig.coordinator = Coordinator::Silent;
    grow(&mut rig);
    rig.pass(Duration::from_secs(1));
    rig.ask(write(4999, 1, 2));
    let mut rig = reopened(rig);
    assert_eq!(rig.mirror.blocks(), SHORT);
    assert_eq!(rig.trust(A), Trust::InSync);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.trust(B), Trust::InSync);
    assert_eq!((rig.content(B, 10), rig.content(B, 4999)), (1, 2));
}

#[test]
fn a_copy_that_was_away_lacks_the_new_blocks_and_gets_them() {
    let mut rig = longer();
    rig.set(B, Behaviour::Gone);
    rig.ask(write(10, 1, 1));
    grow(&mut rig);
    rig.pass(Duration::from_secs(2));
    assert_eq!((rig.mirror.blocks(), rig.trust(B)), (LONG, Trust::Stale));
    assert!(rig.mirror.copies()[B.at()].missing_blocks >= LONG - SHORT);
    assert_eq!(rig.content(B, SHORT), 8, "nobody has touched it");
    // Whoever comes next knows that, too.
    let mut rig = reopened(rig);
    assert_eq!(rig.record, [CopyState::InSync, STALE]);
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.trust(B), Trust::InSync);
    for addr in [SHORT, 8000, LONG - 1] {
        assert_eq!((rig.content(A, addr), rig.content(B, addr)), (0, 0), "block {addr}");
    }
}

/// It has missed the first pieces, and must not be trusted as if it had them.
#[test]
fn a_copy_that_comes_in_the_middle_is_not_trusted_before_it_has_everything() {
    let mut rig = longer();
    rig.set(B, Behaviour::Gone);
    rig.ask(write(10, 1, 1));
    // As long as there are requests, it takes its time.
    rig.ask(read(0));
    grow(&mut rig);
    rig.ask(read(0));
    rig.set(B, Behaviour::Works);
    while rig.mirror.blocks() == SHORT {
        assert_ne!(rig.trust(B), Trust::InSync);
        rig.ask(read(0));
        rig.pass(Duration::from_millis(100));
        assert!(rig.now < Duration::from_secs(20));
    }
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.trust(B), Trust::InSync);
    assert_eq!((rig.content(A, SHORT), rig.content(B, SHORT)), (0, 0));
}

/// What is zero takes no space on a thin disk, and should not.
#[test]
fn only_what_is_not_zero_is_written_behind_the_end() {
    let mut rig = longer();
    for disk in &mut rig.disks {
        let mut image = disk.image();
        image[(SHORT + METADATA_BLOCKS) as usize * BLOCK_SIZE..].fill(0);
        image[(6000 + METADATA_BLOCKS) as usize * BLOCK_SIZE] = 1;
        image[(6010 + METADATA_BLOCKS) as usize * BLOCK_SIZE + 9] = 1;
        *disk = Arc::new(MemDisk::from_image(image));
    }
    rig.unreadable.insert((B, 11_000));
    grow(&mut rig);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.mirror.blocks(), LONG);
    assert_eq!(rig.written(A), [(6000, 11)]);
    let whole = (SHORT + 5 * 1024, 1024);
    assert_eq!(rig.written(B), [(6000, 11), whole], "one block cannot be read");
    assert_eq!((rig.trust(A), rig.trust(B)), (Trust::InSync, Trust::InSync));
    assert_eq!((rig.content(A, 6010), rig.content(B, 6000)), (0, 0));
}

#[test]
fn a_copy_that_fails_while_the_mirror_grows_is_done_without() {
    let mut rig = longer();
    rig.set(B, Behaviour::Frozen);
    grow(&mut rig);
    rig.pass(Duration::from_secs(12));
    assert_eq!((rig.mirror.blocks(), rig.trust(B)), (LONG, Trust::Stale));
    rig.set(B, Behaviour::Works);
    rig.pass(Duration::from_secs(10));
    assert_eq!((rig.trust(B), rig.content(B, LONG - 1)), (Trust::InSync, 0));
}

/// What one copy keeps in its first blocks; all else is nowhere.
struct Pages {
    mirror: Mirror,
    area: Vec<u8>,
    /// Sends that have not arrived.
    under_way: VecDeque<(Sent, DiskRequest)>,
    length: Option<u64>,
}

impl Pages {
    fn new(blocks: u64, states: &[CopyState]) -> Self {
        let geometry = Geometry::of_copies(blocks + METADATA_BLOCKS).unwrap();
        let mut area = vec![0; METADATA_BLOCKS as usize * BLOCK_SIZE];
        for (addr, block) in blank_pages(geometry, MIRROR) {
            let start = addr.0 as usize * BLOCK_SIZE;
            area[start..start + BLOCK_SIZE].copy_from_slice(block.bytes());
        }
        let mirror = Self::read(&area, blocks, states).1;
        Self { mirror, area, under_way: VecDeque::new(), length: None }
    }

    /// Whether a write may be under way, and the mirror, as whoever opens it with this length
    /// finds it.
    fn read(area: &[u8], blocks: u64, states: &[CopyState]) -> (bool, Mirror) {
        let geometry = Geometry::of_copies(blocks + METADATA_BLOCKS).unwrap();
        let mut loaded = Loaded::empty(geometry);
        loaded.add(MIRROR, area);
        let unclean = loaded.is_unclean();
        let options = Options::default();
        (unclean, Mirror::new("it".into(), MIRROR, geometry, states, loaded, options))
    }

    fn tell(&mut self, now: Duration, input: Input) {
        self.mirror.handle(now, input);
        while let Some(output) = self.mirror.poll_output() {
            match output {
                Output::Send { sent, request, .. } => self.under_way.push_back((sent, request)),
                Output::RecordLength(blocks) => self.length = Some(blocks),
                _ => {}
            }
        }
    }

    /// One request arrives. Says whether there was one.
    fn step(&mut self, now: Duration) -> bool {
        let Some((sent, request)) = self.under_way.pop_front() else { return false };
        if let DiskRequest::Write { addr, parts, .. } = &request
            && addr.0 < METADATA_BLOCKS
        {
            let start = addr.0 as usize * BLOCK_SIZE;
            self.area[start..start + BLOCK_SIZE].copy_from_slice(parts[0].bytes());
        }
        self.tell(now, Input::Done { sent, result: Ok(None) });
        true
    }
}

/// A page holds what 126 GiB need, and when there are 28 of them regions get larger. At every
/// moment somebody may come who only knows the old length: what he reads must not say less.
#[test]
fn bitmaps_that_move_never_say_less_than_is_so() {
    let page = 32_256 * 1024;
    let states = [CopyState::InSync, STALE];
    for (short, long) in [(page - 5, page + 50_000), (28 * page - 5, 28 * page + 50_000)] {
        let mut pages = Pages::new(short, &states);
        let mut now = Duration::ZERO;
        let regions = [3, short / 2048, short / 1024];
        for (number, region) in regions.iter().enumerate() {
            let (id, request) = (RequestId(number as u64), write(region * 1024, 1, 1));
            pages.tell(now, Input::Request { id, request });
            while pages.step(now) {}
        }
        // What the other copy lacks is noted when the regions settle.
        while !pages.mirror.is_settled() {
            now += TICK;
            pages.tell(now, Input::Tick);
            while pages.step(now) {}
        }
        let lacks = |mirror: &Mirror| mirror.copies()[B.at()].missing_blocks;
        let lacked = lacks(&pages.mirror);
        assert!(lacked > 2 * 1024, "{lacked}");
        // One more write, whose answer does not come.
        let request = write(1_000_000, 1, 1);
        pages.tell(now, Input::Request { id: RequestId(9), request });
        while pages.under_way.front().is_some_and(|(_, it)| it.extent().0.0 < METADATA_BLOCKS) {
            pages.step(now);
        }
        let pending = pages.under_way.pop_front().expect("the write");
        pages.tell(now, Input::Order(Order::Grow(long + METADATA_BLOCKS)));
        let mut written = 0;
        while pages.length.is_none() {
            if pages.step(now) {
                // To look at all that there are takes too long.
                if short < 2 * page || written % 29 == 0 {
                    let (unclean, found) = Pages::read(&pages.area, short, &states);
                    assert!(unclean && lacks(&found) >= lacked, "after {written} requests");
                }
                written += 1;
                continue;
            }
            now += TICK;
            pages.tell(now, Input::Tick);
        }
        let (unclean, found) = Pages::read(&pages.area, long, &states);
        assert!(unclean && lacks(&found) >= lacked + (long - short) - 1024);
        pages.tell(now, Input::LengthRecorded);
        assert_eq!(pages.mirror.blocks(), long);
        pages.tell(now, Input::Done { sent: pending.0, result: Ok(None) });
        while !pages.mirror.is_settled() {
            now += TICK;
            pages.tell(now, Input::Tick);
            while pages.step(now) {}
            assert!(now < Duration::from_secs(60), "what was under way is settled");
        }
        let (unclean, found) = Pages::read(&pages.area, long, &states);
        assert!(!unclean && lacks(&found) < lacked + (long - short) + 40 * 2048, "it was exact");
    }
}
