//! A mirror that becomes longer while it is used.
//!
//! ```text
//!   Filling    behind the end all copies that get writes are read, and zeroed where they are not
//!              zero, piece by piece; then flushed
//!   Draining   no page of the bitmaps is written any more; those under way end
//!   Renewing   the bitmaps for the new length are written to all copies; no change is sent that
//!              was not sent before, and no region is settled
//!   Recording  the record is told. When it knows, the new blocks can be used
//! ```
//!
//! - All copies in sync hold zeros behind the old end, durably, before anybody may read there. Any
//!   other copy lacks the new regions, by its bitmap.
//! - A copy that comes while there is filling has not got all of it, and is not trusted before the
//!   bitmap says so.
//! - Whoever opens the mirror between `Renewing` and the record reads bitmaps of the new length as
//!   those of the old one. What it finds says the same or does not decode, and then stands for
//!   all regions: pages have their places and the length of a region in them. That is why nothing
//!   may happen meanwhile that has to be noted.

use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::disk::DiskRequest;
use gabion_base::ids::BlockAddr;

use super::flight::Work;
use super::scan::Scan;
use super::{FlightId, Mirror, Notice, Output, RETRY, TICK};
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::{Geometry, METADATA_BLOCKS, Slot};

/// Blocks of a piece: 4 MiB. What is zero already is not written, and takes no space on thin disks.
const FILL_BLOCKS: u64 = 1024;

/// How far a mirror is that is to become longer.
pub(super) struct Growth {
    geometry: Geometry,
    stage: Stage,
    /// Copies that are zero from the old end up to `next`.
    filled: CopySet,
    next: u64,
    /// Nothing is done before.
    again: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Filling { in_flight: bool },
    Draining,
    Renewing,
    Recording { told: bool },
}

impl Mirror {
    /// Begins to use so many blocks of each copy, all of which have them.
    pub(super) fn start_growing(&mut self, blocks_of_copies: u64) {
        let Some(geometry) = Geometry::of_copies(blocks_of_copies) else { return };
        if self.growth.is_some() || geometry.blocks() <= self.geometry.blocks() {
            return;
        }
        self.growth = Some(Growth {
            geometry,
            stage: Stage::Filling { in_flight: false },
            filled: self.roster.written_to(),
            next: self.geometry.blocks(),
            again: self.now,
        });
    }

    /// Blocks behind the old end that were not looked at yet, while the mirror grows.
    pub fn growth_left(&self) -> Option<u64> {
        let growth = self.growth.as_ref()?;
        Some(growth.geometry.blocks() - growth.next)
    }

    /// What `copy` was zeroed by may be lost.
    pub(super) fn is_given_up(&mut self, copy: CopyIndex) {
        if let Some(growth) = &mut self.growth {
            growth.filled.remove(copy);
        }
    }

    /// Whether `copy` may be trusted as far as growing is concerned.
    pub(super) fn may_join(&self, copy: CopyIndex) -> bool {
        self.growth.as_ref().is_none_or(|growth| match growth.stage {
            Stage::Filling { .. } | Stage::Draining => growth.filled.contains(copy),
            Stage::Renewing | Stage::Recording { .. } => true,
        })
    }

    /// Whether pages of bitmaps have to wait.
    pub(super) fn is_draining(&self) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.stage == Stage::Draining)
    }

    /// Whether nothing new may be noted in the bitmaps, and so nothing sent that has to be.
    pub(super) fn is_renewing(&self) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.stage == Stage::Renewing)
    }

    pub(super) fn go_on_growing(&mut self) {
        let has_pages = self.flights.values().any(|flight| matches!(flight.work, Work::Page(_)));
        let Some(growth) = &mut self.growth else { return };
        match growth.stage {
            Stage::Filling { in_flight: false } if growth.again <= self.now => self.fill(),
            Stage::Draining if !has_pages => self.lengthen(),
            Stage::Renewing if self.bitmaps.is_renewed() => {
                growth.stage = Stage::Recording { told: false };
                for id in self.flights.keys().copied().collect::<Vec<_>>() {
                    self.send_if_intended(id);
                }
                self.go_on_growing();
            }
            Stage::Recording { told: false } if growth.again <= self.now => {
                growth.stage = Stage::Recording { told: true };
                let blocks = growth.geometry.blocks() + METADATA_BLOCKS;
                self.outputs.push_back(Output::RecordLength(blocks));
            }
            _ => {}
        }
    }

    /// Begins with the next piece; or, behind the last one, has all of them flushed.
    fn fill(&mut self) {
        let Some(growth) = &mut self.growth else { return };
        growth.stage = Stage::Filling { in_flight: true };
        let count = FILL_BLOCKS.min(growth.geometry.blocks() - growth.next);
        let work = Work::Fill { addr: BlockAddr(growth.next), count, zeroed: CopySet::EMPTY };
        let request = work_request(&work);
        let id = self.start(work, None);
        for copy in self.roster.written_to().iter() {
            self.send(id, copy, request.clone());
        }
    }

    /// A copy has given what it has in a piece; nothing that is no zero stays.
    pub(super) fn fill_copy(&mut self, id: FlightId, copy: CopyIndex, blocks: Option<Blocks>) {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let Work::Fill { addr, zeroed, .. } = &mut flight.work else { return };
        let Some(blocks) = blocks else { return };
        let mut blocks = blocks.bytes().chunks(BLOCK_SIZE);
        let is_data = |block: &[u8]| block.iter().any(|byte| *byte != 0);
        let count = blocks.len() as u64;
        let Some(first) = blocks.position(is_data) else { return };
        let after = blocks.rev().take_while(|block| !is_data(block)).count() as u64;
        zeroed.insert(copy);
        let addr = addr.plus(METADATA_BLOCKS + first as u64);
        let count = count - first as u64 - after;
        self.send(id, copy, DiskRequest::WriteZeroes { addr, count });
    }

    /// A copy cannot say what it has in a piece: all of it is zeroed. Says whether that is tried.
    pub(super) fn fill_unread(&mut self, id: FlightId, copy: CopyIndex) -> bool {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let Work::Fill { addr, count, zeroed } = &mut flight.work else { return false };
        if *count == 0 || zeroed.contains(copy) {
            return false;
        }
        zeroed.insert(copy);
        let (addr, count) = (addr.plus(METADATA_BLOCKS), *count);
        self.send(id, copy, DiskRequest::WriteZeroes { addr, count });
        true
    }

    /// A piece is zero on all copies, or they have been given up.
    pub(super) fn settle_fill(&mut self, id: FlightId) {
        let flight = &self.flights[&id];
        let Work::Fill { count, .. } = flight.work else { return };
        if self.lacks_trusted(flight) {
            let gone = flight.error.as_ref().is_none_or(super::flight::is_gone);
            if gone {
                return self.retry_later(id);
            }
            let reason = flight.error.as_ref().map(ToString::to_string).unwrap_or_default();
            self.flights.remove(&id);
            self.growth = None;
            let notice = Notice::NotGrown { reason: reason.into() };
            return self.outputs.push_back(Output::Notice(notice));
        }
        let succeeded = flight.succeeded.without(flight.failed);
        self.flights.remove(&id);
        let (now, is_busy) = (self.now, self.now.saturating_sub(self.busy_at) < TICK * 2);
        let Some(growth) = &mut self.growth else { return };
        growth.filled = growth.filled.and(succeeded);
        growth.next += count;
        growth.again = if is_busy { now + TICK } else { now };
        growth.stage = match count {
            0 => Stage::Draining,
            _ => Stage::Filling { in_flight: false },
        };
    }

    /// No page is under way: from now on the bitmaps are those of the new length.
    fn lengthen(&mut self) {
        let Some(growth) = &mut self.growth else { return };
        let trusted = self.roster.in_sync().or(self.roster.joining());
        assert!(trusted.without(growth.filled).is_empty(), "a copy was trusted without zeros");
        growth.stage = Stage::Renewing;
        let (old, new, filled) = (self.geometry, growth.geometry, growth.filled);
        self.geometry = new;
        self.bitmaps.lengthen(new);
        let others = self.roster.written_to().without(filled).or(self.roster.left_out());
        for copy in others.iter() {
            for region in new.regions_of(BlockAddr(old.blocks()), new.blocks() - old.blocks()) {
                self.bitmaps.set(Slot::Missing(copy), region);
            }
        }
        let changes = self.flights.values().filter_map(|flight| match &flight.work {
            Work::Change { request, stage, .. } if *stage != super::flight::Stage::Queued => {
                Some(request.extent())
            }
            _ => None,
        });
        self.regions.lengthen(old, new, changes.collect());
        // Numbers of regions may have another meaning now. Chunks that are under way belong to the
        // scans of before.
        self.flights.retain(|_, flight| !matches!(flight.work, Work::SyncFlush { .. }));
        let number = self.next_flight;
        self.scans.values_mut().for_each(|scan| *scan = Scan::start(number));
        if let Some(scan) = &mut self.comparing {
            *scan = Scan::start(number);
        }
    }

    /// The record says how long the mirror is.
    pub(super) fn handle_length_recorded(&mut self) {
        if self.growth.take().is_some() {
            self.length = self.geometry.blocks();
            let notice = Notice::Grown { blocks: self.length };
            self.outputs.push_back(Output::Notice(notice));
        }
    }

    /// It is not known whether it does: it is told again.
    pub(super) fn handle_length_not_recorded(&mut self) {
        if let Some(growth) = &mut self.growth {
            growth.stage = Stage::Recording { told: false };
            growth.again = self.now + RETRY;
        }
    }
}

/// What is sent at first for a piece that is to be zero.
pub(super) fn work_request(work: &Work) -> DiskRequest {
    match work {
        Work::Fill { addr, count, .. } if *count > 0 => {
            DiskRequest::Read { addr: addr.plus(METADATA_BLOCKS), count: *count as usize }
        }
        _ => DiskRequest::Flush,
    }
}
