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
//! While there are requests of the owner, copying is limited to a number of blocks a second.

use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskRequest, Durability};
use gabion_base::ids::BlockAddr;

use super::{ATTACH_RETRY, Compared, FlightId, Mirror, Notice, Output, Span, TICK, Trust, Work};
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::{METADATA_BLOCKS, Slot};

/// Blocks in a chunk.
const CHUNK_BLOCKS: u64 = 256;
/// Chunks in flight when nobody else wants anything.
const CHUNKS_MAX: usize = 4;
/// Regions that are copied before the copy is flushed.
const REGIONS_MAX: usize = 64;
/// Requests that are this far back do not slow copying down.
const BUSY: Duration = Duration::from_millis(200);

/// A piece that is compared, and copied.
pub(super) struct Chunk {
    /// Where it is copied to; if nowhere, copies are compared.
    target: Option<CopyIndex>,
    source: CopyIndex,
    addr: BlockAddr,
    count: u64,
    read: Vec<(CopyIndex, Blocks)>,
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

    /// Whether copying can do without reading from `copy`.
    pub(super) fn tolerates(&self, copy: CopyIndex) -> bool {
        !self.writing && (self.target == Some(copy) || self.target.is_none())
    }
}

/// How far a copy, or comparing, has come.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Tells it from an earlier one of the same copy, whose chunks may still be under way.
    number: u64,
    /// The next block to look at, and the end of the region that it is in.
    next: u64,
    end: u64,
    in_flight: usize,
    /// Regions that have been sent, of which not all may have arrived.
    copied: Vec<u64>,
    flushing: bool,
    /// The copy was flushed before anything of it was read.
    flushed: bool,
    compared: u64,
    different: u64,
    /// Blocks that may be copied at once; what a chunk takes too much is missing next time.
    budget: i64,
    refilled: Duration,
}

impl Scan {
    pub(super) fn start(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    pub(super) fn compared(&self) -> Compared {
        Compared { done: self.compared, different: self.different }
    }

    /// Whether another chunk may be started.
    fn may_go_on(&mut self, now: Duration, busy_at: Duration, rate: u64) -> bool {
        if now.saturating_sub(busy_at) >= BUSY {
            return self.in_flight < CHUNKS_MAX;
        }
        if now.saturating_sub(self.refilled) >= TICK {
            self.refilled = now;
            let more = (rate * TICK.as_millis() as u64 / 1000).max(1) as i64;
            self.budget = (self.budget + more).min(more);
        }
        self.in_flight < 1 && self.budget > 0
    }

    fn take_chunk(&mut self) -> (BlockAddr, u64) {
        let (addr, count) = (self.next, CHUNK_BLOCKS.min(self.end - self.next));
        self.next += count;
        self.in_flight += 1;
        self.budget -= count as i64;
        (BlockAddr(addr), count)
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
            if scan.next == scan.end {
                if scan.copied.len() >= REGIONS_MAX {
                    break;
                }
                let from = scan.end / self.geometry.region_blocks();
                let from = if scan.end == self.geometry.blocks() { u64::MAX } else { from };
                let Some(region) = self.bitmaps.next_set(slot, from) else { break };
                let (start, count) = self.geometry.extent(region);
                (scan.next, scan.end) = (start.0, start.0 + count);
                scan.copied.push(region);
            }
            let (addr, count) = scan.take_chunk();
            let Some(source) = self.roster.in_sync().iter().next() else { break };
            self.start_chunk(Some(copy), scan.number, source, addr, count);
        }
        let all_sent = scan.next == scan.end;
        if all_sent && scan.in_flight == 0 && !scan.flushing {
            if !scan.copied.is_empty() {
                scan.flushing = true;
                let regions = std::mem::take(&mut scan.copied);
                self.flush_copy(copy, regions);
            } else if self.bitmaps.next_set(slot, 0).is_some() {
                (scan.next, scan.end) = (0, 0);
            } else if self.bitmaps.is_renewed()
                && !self.roster.is_full(copy)
                && self.roster.fullness_is_recorded(copy)
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
        scan.end = self.geometry.blocks();
        while scan.next < scan.end && scan.may_go_on(self.now, self.busy_at, rate) {
            let (addr, count) = scan.take_chunk();
            let Some(source) = self.roster.in_sync().iter().next() else { break };
            self.start_chunk(None, scan.number, source, addr, count);
        }
        if scan.next == scan.end && scan.in_flight == 0 {
            let different = scan.different;
            self.outputs.push_back(Output::Notice(Notice::Compared { different }));
            return;
        }
        self.comparing = Some(scan);
    }

    fn start_chunk(
        &mut self,
        target: Option<CopyIndex>,
        scan: u64,
        source: CopyIndex,
        addr: BlockAddr,
        count: u64,
    ) {
        let span = Span { start: addr.0, end: addr.0 + count };
        let chunk = Chunk { target, source, addr, count, read: Vec::new(), writing: false, scan };
        let id = self.start(Work::Chunk(chunk), Some(span));
        if self.ranges.take(span, id) {
            self.read_chunk(id);
        }
    }

    /// Nobody writes there now: reads from all copies that the chunk is about.
    pub(super) fn read_chunk(&mut self, id: FlightId) {
        let Work::Chunk(chunk) = &mut self.flights.get_mut(&id).expect("it is under way").work
        else {
            return;
        };
        let in_sync = self.roster.in_sync();
        if !in_sync.contains(chunk.source) {
            // It may have been given up while the chunk was waiting.
            let Some(other) = in_sync.iter().next() else { return };
            chunk.source = other;
        }
        let copies = match chunk.target {
            Some(target) => CopySet::only(chunk.source).or(CopySet::only(target)),
            None => in_sync,
        };
        let count = chunk.count as usize;
        let request = DiskRequest::Read { addr: chunk.addr.plus(METADATA_BLOCKS), count };
        // Whoever catches up may have been given up as well; then there is nothing to do for it.
        for copy in copies.and(self.roster.written_to()).iter() {
            self.send(id, copy, request.clone());
        }
    }

    /// All that a chunk was waiting for has happened.
    pub(super) fn settle_chunk(&mut self, id: FlightId) {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let failed = flight.failed;
        let Work::Chunk(chunk) = &mut flight.work else { return };
        let source = chunk.read.iter().position(|(copy, _)| *copy == chunk.source);
        let waits = chunk.read.is_empty() && failed.is_empty() && !chunk.writing;
        let (Some(source), false) = (source, chunk.writing) else {
            if !waits {
                let arrived = chunk.writing && failed.is_empty();
                self.end_chunk(id, arrived);
            }
            return;
        };
        let (_, right) = chunk.read.swap_remove(source);
        let others = std::mem::take(&mut chunk.read);
        let (addr, count, target, number) = (chunk.addr, chunk.count, chunk.target, chunk.scan);
        let Some(target) = target else {
            let differing =
                others.into_iter().map(|(copy, blocks)| (copy, different(&right, &blocks)));
            let differing: Vec<_> = differing.collect();
            let mut found = 0;
            for (copy, (blocks, _)) in differing {
                if blocks > 0 {
                    found += blocks;
                    let notice = Notice::Different { copy, addr, blocks };
                    self.outputs.push_back(Output::Notice(notice));
                }
            }
            if let Some(scan) = self.comparing.as_mut().filter(|scan| scan.number == number) {
                scan.compared += count;
                scan.different += found;
            }
            return self.end_chunk(id, true);
        };
        let part = match others.first() {
            Some((_, blocks)) => different(&right, blocks).1,
            None => Some((0, count as usize)),
        };
        let Some((start, length)) = part else { return self.end_chunk(id, true) };
        chunk.writing = true;
        flight.failed = CopySet::EMPTY;
        if self.roster.trust(target) != Trust::Syncing {
            return self.end_chunk(id, false);
        }
        let parts = vec![BlockSlice::new(right).part(start, length)];
        let addr = addr.plus(METADATA_BLOCKS + start as u64);
        self.send(id, target, DiskRequest::Write { addr, parts, durability: Durability::Cached });
    }

    /// Lets others write there again. A chunk that has not arrived makes its scan begin again.
    fn end_chunk(&mut self, id: FlightId, arrived: bool) {
        let Work::Chunk(chunk) = &self.flights[&id].work else { return };
        let (number, target) = (chunk.scan, chunk.target);
        let scan = match target {
            Some(target) => self.scans.get_mut(&target),
            None => self.comparing.as_mut(),
        };
        let scan = scan.filter(|scan| scan.number == number);
        let is_current = scan.is_some();
        if let Some(scan) = scan {
            scan.in_flight -= 1;
        }
        self.finish(id, Ok(None));
        if let (Some(target), false, true) = (target, arrived, is_current) {
            self.attach_again[target.at()] = self.now + ATTACH_RETRY;
            self.give_up(target, "what it lacks could not be copied");
        }
    }

    pub(super) fn settle_sync_flush(&mut self, id: FlightId) {
        let flight = self.flights.remove(&id).expect("it is under way");
        let Work::SyncFlush { copy, regions } = flight.work else { return };
        let Some(scan) = self.scans.get_mut(&copy) else { return };
        if flight.succeeded.contains(copy) {
            (scan.flushing, scan.flushed) = (false, true);
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
