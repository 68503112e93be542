//! How far a copy that catches up has come, or comparing: which blocks are next, and when.
//!
//! ```text
//!           regions, in order, in chunks           the end; nothing is left: done
//!   looking ------------------------------------>
//!     ^  |                                         the end; unreadable blocks are left: resting
//!     |  | a chunk that no copy can give: its halves first, down to single blocks
//!     |  v
//!   resting   for longer each time, and not for long after somebody wrote where it is unreadable
//! ```
//!
//! - A region in which a block could not be read stays among those that the copy lacks, and holds
//!   up no other one.
//! - What is spent on unreadable blocks is bounded: in a region, and between two rests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gabion_base::ids::BlockAddr;

use super::{Compared, TICK};

/// Blocks in a chunk.
const CHUNK_BLOCKS: u64 = 256;
/// Chunks in flight when nobody else wants anything.
const CHUNKS_MAX: usize = 4;
/// Requests that are this far back do not slow copying down.
const BUSY: Duration = Duration::from_millis(200);
/// Unreadable blocks that are looked for in a region before the rest of it is left for later.
const REGION_UNREADABLE_MAX: u32 = 8;
/// Unreadable blocks that are found before there is a rest: some disks need seconds for each.
const UNREADABLE_MAX: u32 = 64;
/// Unreadable blocks that are told one by one.
const TOLD_MAX: usize = 64;
/// The first rest; each is twice as long as the one before.
const REST: Duration = Duration::from_secs(2);
/// After so many they get no longer.
const RESTS_MAX: u32 = 5;

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Tells it from an earlier one of the same copy, whose chunks may still be under way.
    pub(super) number: u64,
    /// The next block to look at, and the end of the region that it is in.
    pub(super) next: u64,
    pub(super) end: u64,
    pub(super) in_flight: usize,
    /// Regions that have been sent, of which not all may have arrived.
    pub(super) copied: Vec<u64>,
    pub(super) flushing: bool,
    /// The copy was flushed before anything of it was read.
    pub(super) flushed: bool,
    pub(super) compared: u64,
    pub(super) different: u64,
    /// Blocks that may be copied at once; what a chunk takes too much is missing next time.
    budget: i64,
    refilled: Duration,
    /// What could not be read at once, the next one last.
    pieces: Vec<(u64, u64)>,
    /// Regions with unreadable blocks, and how many were found there since they were begun.
    unreadable: BTreeMap<u64, u32>,
    /// Unreadable blocks since the last rest.
    found: u32,
    /// Unreadable blocks that somebody was told of.
    told: BTreeSet<u64>,
    /// Nothing is left behind the region that was begun last.
    is_through: bool,
    rest: Option<Rest>,
    /// How often it has rested without having got on.
    rests: u32,
}

/// Nothing is looked at.
#[derive(Debug)]
struct Rest {
    since: Duration,
    until: Duration,
}

impl Scan {
    pub(super) fn start(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    pub(super) fn compared(&self) -> Compared {
        Compared { done: self.compared, different: self.different }
    }

    /// Blocks that are known to be unreadable.
    pub(super) fn unreadable_blocks(&self) -> u64 {
        self.unreadable.values().map(|found| u64::from(*found)).sum()
    }

    /// Whether another chunk may be started.
    pub(super) fn may_go_on(&mut self, now: Duration, busy_at: Duration, rate: u64) -> bool {
        self.wake(now);
        if self.found >= UNREADABLE_MAX {
            self.take_rest(now, REST);
        }
        if self.rest.is_some() {
            return false;
        }
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

    /// Whether all of the region that was begun last has been sent.
    pub(super) fn is_region_sent(&self) -> bool {
        self.next == self.end && self.pieces.is_empty()
    }

    /// What is to be looked at next in the region that was begun last.
    pub(super) fn take_chunk(&mut self) -> (BlockAddr, u64) {
        let (addr, count) = self.pieces.pop().unwrap_or_else(|| {
            let count = CHUNK_BLOCKS.min(self.end - self.next);
            self.next += count;
            (self.next - count, count)
        });
        self.in_flight += 1;
        self.budget -= count as i64;
        (BlockAddr(addr), count)
    }

    /// Goes on with the region at `start`; without one all have been gone through.
    pub(super) fn begin_region(&mut self, region: Option<(BlockAddr, u64)>) {
        match region {
            Some((start, count)) => (self.next, self.end) = (start.0, start.0 + count),
            None => self.is_through = true,
        }
    }

    /// No copy has been able to give `count` blocks of a region, whose extent is given, too. Says
    /// whether that is to be told: it is one block by now, and nobody was told of it.
    pub(super) fn is_unreadable(
        &mut self,
        (region, start, blocks): (u64, BlockAddr, u64),
        addr: BlockAddr,
        count: u64,
    ) -> bool {
        let found = self.unreadable.entry(region).or_default();
        self.copied.retain(|copied| *copied != region);
        if *found >= REGION_UNREADABLE_MAX {
            return false;
        }
        if count > 1 {
            let first = count / 2;
            self.pieces.push((addr.0 + first, count - first));
            self.pieces.push((addr.0, first));
            return false;
        }
        *found += 1;
        if *found >= REGION_UNREADABLE_MAX {
            let end = start.0 + blocks;
            self.pieces.retain(|(addr, _)| !(start.0..end).contains(addr));
            if self.end == end {
                self.next = end;
            }
        }
        self.found += 1;
        self.told.len() < TOLD_MAX && self.told.insert(addr.0)
    }

    /// Begins again with what is left, if all has been gone through.
    pub(super) fn begin_again(&mut self, now: Duration) {
        if !std::mem::take(&mut self.is_through) {
            return;
        }
        (self.next, self.end) = (0, 0);
        if !self.unreadable.is_empty() {
            let wait = REST * 2_u32.pow(self.rests);
            self.rests = (self.rests + 1).min(RESTS_MAX);
            self.take_rest(now, wait);
        }
    }

    /// Something that was missing has arrived for good.
    pub(super) fn has_got_on(&mut self) {
        self.rests = 0;
    }

    /// Somebody has written to `region`, which makes what could not be read there good.
    pub(super) fn is_written(&mut self, region: u64) {
        if !self.unreadable.contains_key(&region) {
            return;
        }
        self.rests = 0;
        if let Some(rest) = &mut self.rest {
            rest.until = rest.until.min(rest.since + REST);
        }
    }

    /// Has a chunk looked at again, some time later.
    pub(super) fn try_again(&mut self, addr: BlockAddr, count: u64, now: Duration) {
        self.pieces.push((addr.0, count));
        self.take_rest(now, REST);
    }

    /// Nothing is to be done for some time.
    fn take_rest(&mut self, now: Duration, wait: Duration) {
        self.found = 0;
        self.rest = Some(Rest { since: now, until: now + wait });
    }

    /// Ends a rest whose time is over.
    fn wake(&mut self, now: Duration) {
        if self.rest.take_if(|rest| rest.until <= now).is_some() && self.end == 0 {
            self.unreadable.clear();
        }
    }
}
