//! Copies that catch up, and comparing copies that are in sync.
//!
//! Both go over the blocks in chunks, each with its range taken, so that nobody writes there
//! meanwhile. A chunk is read from a copy in sync and from the other ones at the same time, and
//! only what differs is written: what was never written stays so on thin disks.
//!
//! 1. The copy is flushed: what it has from earlier times would else be found to be right, not be
//!    written, and be lost with its cache.
//! 2. The regions that it lacks are gone through, in order, some chunks at a time.
//! 3. When enough regions have been copied, the copy is flushed, and only then are they taken out
//!    of its bitmap.
//! 4. When none is left, and the bitmaps have reached the copy, it has caught up.
//!
//! A block that the copy in sync cannot read is read from the next one, and written again where it
//! was bad. If it is bad on all of them its region stays missing, and is tried again later; it is
//! right on the copy that catches up as soon as somebody writes it. How all this goes on in time is
//! in `scan`.
//!
//! While there are requests of the owner, copying is limited to a number of blocks a second.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskRequest, Durability};
use gabion_base::ids::BlockAddr;

use super::flight::Work;
use super::ranges::Span;
use super::scan::Scan;
use super::{ATTACH_RETRY, FlightId, Mirror, Notice, Output, Trust};
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::{METADATA_BLOCKS, Slot};

/// Regions that are copied before the copy is flushed.
const REGIONS_MAX: usize = 64;

/// A piece that is compared, and copied.
pub(super) struct Chunk {
    /// Where it is copied to; if nowhere, copies are compared.
    target: Option<CopyIndex>,
    addr: BlockAddr,
    count: u64,
    read: Vec<(CopyIndex, Blocks)>,
    /// Copies in sync that could not read it.
    bad: CopySet,
    /// One of them has answered nothing at all.
    gone: bool,
    writing: bool,
    /// The scan that it belongs to.
    scan: u64,
}

impl Chunk {
    /// What was read, or that it was written.
    pub(super) fn read(&mut self, copy: CopyIndex, blocks: Option<Blocks>) {
        if let Some(blocks) = blocks {
            self.read.push((copy, blocks));
        }
    }

    /// `copy` has failed, as it is not there (`gone`) or cannot do it. Says whether another copy
    /// cannot make up for that.
    pub(super) fn failed(&mut self, copy: CopyIndex, gone: bool) -> bool {
        if !self.writing && self.target != Some(copy) {
            self.bad.insert(copy);
            self.gone |= gone;
        }
        gone || self.writing
    }
}

impl Mirror {
    pub(super) fn go_on_syncing(&mut self) {
        for copy in self.roster.all() {
            if self.roster.trust(copy) == Trust::Syncing {
                self.go_on_with(copy);
            }
        }
    }

    fn go_on_with(&mut self, copy: CopyIndex) {
        let slot = Slot::Missing(copy);
        if self.roster.is_full(copy) && self.bitmaps.all_kept(slot) {
            self.roster.set_full(copy, false);
        }
        let Some(mut scan) = self.scans.remove(&copy) else { return };
        if !scan.flushed {
            if !scan.flushing {
                scan.flushing = true;
                self.flush_copy(copy, Vec::new());
            }
            self.scans.insert(copy, scan);
            return;
        }
        let rate = self.options.busy_blocks_per_second;
        while scan.may_go_on(self.now, self.busy_at, rate) {
            if scan.is_region_sent() {
                if scan.copied.len() >= REGIONS_MAX {
                    break;
                }
                let from = scan.end.div_ceil(self.geometry.region_blocks());
                let region = self.bitmaps.next_set(slot, from);
                scan.begin_region(region.map(|region| self.geometry.extent(region)));
                let Some(region) = region else { break };
                scan.copied.push(region);
            }
            let (addr, count) = scan.take_chunk();
            self.start_chunk(Some(copy), scan.number, addr, count);
        }
        if scan.is_region_sent() && scan.in_flight == 0 && !scan.flushing {
            if !scan.copied.is_empty() {
                scan.flushing = true;
                let regions = std::mem::take(&mut scan.copied);
                self.flush_copy(copy, regions);
            } else if self.bitmaps.next_set(slot, 0).is_some() {
                scan.begin_again(self.now);
            } else if self.bitmaps.is_renewed()
                && !self.roster.is_full(copy)
                && self.roster.fullness_is_recorded(copy)
                && self.may_join(copy)
            {
                self.roster.caught_up(copy);
                if let Some(states) = self.roster.next_record() {
                    self.outputs.push_back(Output::Record(states));
                }
                return;
            }
        }
        self.scans.insert(copy, scan);
    }

    fn flush_copy(&mut self, copy: CopyIndex, regions: Vec<u64>) {
        let id = self.start(Work::SyncFlush { copy, regions }, None);
        self.send(id, copy, DiskRequest::Flush);
    }

    pub(super) fn go_on_comparing(&mut self) {
        let Some(mut scan) = self.comparing.take() else { return };
        let rate = self.options.busy_blocks_per_second;
        while scan.may_go_on(self.now, self.busy_at, rate) {
            if scan.is_region_sent() {
                if scan.end == self.geometry.blocks() {
                    break;
                }
                let region = scan.end / self.geometry.region_blocks();
                scan.begin_region(Some(self.geometry.extent(region)));
            }
            let (addr, count) = scan.take_chunk();
            self.start_chunk(None, scan.number, addr, count);
        }
        if scan.end == self.geometry.blocks() && scan.is_region_sent() && scan.in_flight == 0 {
            let different = scan.different;
            self.outputs.push_back(Output::Notice(Notice::Compared { different }));
            return;
        }
        self.comparing = Some(scan);
    }

    fn start_chunk(&mut self, target: Option<CopyIndex>, scan: u64, addr: BlockAddr, count: u64) {
        let span = Span { start: addr.0, end: addr.0 + count };
        let (read, bad) = (Vec::new(), CopySet::EMPTY);
        let chunk = Chunk { target, addr, count, read, bad, gone: false, writing: false, scan };
        let id = self.start(Work::Chunk(chunk), Some(span));
        if self.ranges.take(span, id) {
            self.read_chunk(id);
        }
    }

    /// Nobody writes there now: reads from all copies that the chunk is about.
    pub(super) fn read_chunk(&mut self, id: FlightId) {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return };
        let in_sync = self.roster.in_sync();
        let copies = match chunk.target {
            Some(target) => {
                let source = in_sync.iter().next().expect("one copy is always in sync");
                CopySet::only(source).or(CopySet::only(target))
            }
            None => in_sync,
        };
        // Whoever catches up may have been given up; then there is nothing to do for it.
        self.read_chunk_from(id, copies.and(self.roster.written_to()));
    }

    fn read_chunk_from(&mut self, id: FlightId, copies: CopySet) {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return };
        let (addr, count) = (chunk.addr.plus(METADATA_BLOCKS), chunk.count as usize);
        for copy in copies.iter() {
            self.send(id, copy, DiskRequest::Read { addr, count });
        }
    }

    /// All that a chunk was waiting for has happened.
    pub(super) fn settle_chunk(&mut self, id: FlightId) {
        let in_sync = self.roster.in_sync();
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let (failed, asked) = (flight.failed, flight.failed.or(flight.succeeded));
        let Work::Chunk(chunk) = &mut flight.work else { return };
        if chunk.writing {
            return self.end_chunk(id, failed.is_empty());
        }
        if asked.is_empty() {
            return;
        }
        let sources = chunk.read.iter().filter(|(copy, _)| chunk.target != Some(*copy));
        let Some(source) = sources.map(|(copy, _)| *copy).min() else {
            return match in_sync.without(asked).iter().next() {
                Some(other) => self.read_chunk_from(id, CopySet::only(other)),
                None if chunk.gone => self.end_chunk(id, false),
                None => self.split_chunk(id),
            };
        };
        let at = chunk.read.iter().position(|(copy, _)| *copy == source);
        let (_, right) = chunk.read.swap_remove(at.expect("it was found"));
        let others = std::mem::take(&mut chunk.read);
        match chunk.target {
            Some(target) => self.copy_chunk(id, target, right, others.first()),
            None => self.compare_chunk(id, &right, &others),
        }
    }

    /// Writes what differs to the copy that catches up.
    fn copy_chunk(
        &mut self,
        id: FlightId,
        target: CopyIndex,
        right: Blocks,
        there: Option<&(CopyIndex, Blocks)>,
    ) {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let Work::Chunk(chunk) = &mut flight.work else { return };
        let part = match there {
            Some((_, blocks)) => different(&right, blocks).1,
            None => Some((0, chunk.count as usize)),
        };
        let Some((start, length)) = part else { return self.end_chunk(id, true) };
        if self.roster.trust(target) != Trust::Syncing {
            return self.end_chunk(id, false);
        }
        chunk.writing = true;
        flight.failed = CopySet::EMPTY;
        let parts = vec![BlockSlice::new(right).part(start, length)];
        let addr = chunk.addr.plus(METADATA_BLOCKS + start as u64);
        self.send(id, target, DiskRequest::Write { addr, parts, durability: Durability::Cached });
    }

    fn compare_chunk(&mut self, id: FlightId, right: &Blocks, others: &[(CopyIndex, Blocks)]) {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return };
        let (addr, count, number) = (chunk.addr, chunk.count, chunk.scan);
        let mut found = 0;
        for (copy, there) in others {
            let (blocks, _) = different(right, there);
            if blocks > 0 {
                found += blocks;
                let notice = Notice::Different { copy: *copy, addr, blocks };
                self.outputs.push_back(Output::Notice(notice));
            }
        }
        if let Some(scan) = self.comparing.as_mut().filter(|scan| scan.number == number) {
            scan.compared += count;
            scan.different += found;
        }
        self.end_chunk(id, true);
    }

    /// Nobody can read it: its halves are next, or a block was found that is lost as it seems.
    fn split_chunk(&mut self, id: FlightId) {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return };
        let (addr, count, bad, target) = (chunk.addr, chunk.count, chunk.bad, chunk.target);
        let region = addr.0 / self.geometry.region_blocks();
        let (start, blocks) = self.geometry.extent(region);
        let is_told = self
            .scan_of(id)
            .is_some_and(|scan| scan.is_unreadable((region, start, blocks), addr, count));
        if let (true, Some(copy)) = (is_told, bad.iter().next()) {
            let notice = Notice::Unreadable { copy, addr, wanted_by: target };
            self.outputs.push_back(Output::Notice(notice));
        }
        self.end_chunk(id, true);
    }

    /// The scan that a chunk belongs to, unless that is over.
    fn scan_of(&mut self, id: FlightId) -> Option<&mut Scan> {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return None };
        let scan = match chunk.target {
            Some(target) => self.scans.get_mut(&target),
            None => self.comparing.as_mut(),
        };
        scan.filter(|scan| scan.number == chunk.scan)
    }

    /// Lets others write there again. A chunk that has not arrived is looked at again later.
    fn end_chunk(&mut self, id: FlightId, arrived: bool) {
        let is_current = self.scan_of(id).map(|scan| scan.in_flight -= 1).is_some();
        let flight = &self.flights[&id];
        let Work::Chunk(chunk) = &flight.work else { return };
        let (target, addr, count) = (chunk.target, chunk.addr, chunk.count as usize);
        let in_sync = self.roster.in_sync();
        let (bad, good) =
            (chunk.bad.and(in_sync), flight.succeeded.and(in_sync).without(chunk.bad));
        self.finish(id, Ok(None));
        if let Some(good) = good.iter().next() {
            bad.iter().for_each(|bad| self.rewrite(bad, good, addr, count));
        }
        if arrived || !is_current {
            return;
        }
        if let Some(target) = target {
            self.attach_again[target.at()] = self.now + ATTACH_RETRY;
            self.give_up(target, "what it lacks could not be copied");
        } else if let Some(scan) = &mut self.comparing {
            scan.try_again(addr, count as u64, self.now);
        }
    }

    pub(super) fn settle_sync_flush(&mut self, id: FlightId) {
        let flight = self.flights.remove(&id).expect("it is under way");
        let Work::SyncFlush { copy, regions } = flight.work else { return };
        let Some(scan) = self.scans.get_mut(&copy) else { return };
        if flight.succeeded.contains(copy) {
            (scan.flushing, scan.flushed) = (false, true);
            if !regions.is_empty() {
                scan.has_got_on();
            }
            for region in regions {
                self.bitmaps.clear(Slot::Missing(copy), region);
            }
        }
    }
}

/// How many blocks differ, and the stretch from the first to the last of them.
fn different(right: &Blocks, other: &Blocks) -> (u64, Option<(usize, usize)>) {
    let pairs = right.bytes().chunks(BLOCK_SIZE).zip(other.bytes().chunks(BLOCK_SIZE));
    let differing = pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(index, _)| index);
    let (mut count, mut stretch) = (0, None);
    for index in differing {
        count += 1;
        let (start, _) = stretch.unwrap_or((index, 0));
        stretch = Some((start, index + 1 - start));
    }
    (count, stretch)
}
