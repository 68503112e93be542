//! Where somebody has written lately, and what of that is settled.
//!
//! A region is *settled* when nobody writes there, a flush that began after the last write has
//! reached all copies in sync, and all others are known to lack it. Then its intent can go.

use std::collections::BTreeMap;
use std::time::Duration;

use gabion_base::ids::BlockAddr;

use super::Mirror;
use super::bitmaps::Bitmaps;
use super::flight::{Stage, Work};
use crate::geometry::{Geometry, Slot};

/// Regions whose intent is set beforehand when somebody writes from one into the next.
const AHEAD: u64 = 16;

#[derive(Debug, Default)]
struct Touched {
    /// Writes under way.
    active: u32,
    /// Flushes that had begun when the last write ended.
    flushes: u64,
    /// When that was.
    last: Duration,
}

#[derive(Debug)]
pub(super) struct Regions {
    touched: BTreeMap<u64, Touched>,
    flushes_begun: u64,
    /// The latest flush that reached all copies in sync.
    flushed: u64,
    /// Nobody is going to write any more.
    soon: bool,
    flushing: bool,
}

impl Regions {
    /// After an opening nothing is settled that is in the intent.
    pub(super) fn new(geometry: Geometry, bitmaps: &Bitmaps) -> Self {
        let intended = |region: &u64| bitmaps.is_set(Slot::Intent, *region);
        let touched = (0..geometry.regions()).filter(intended);
        let touched = touched.map(|region| (region, Touched::default())).collect();
        Self { touched, flushes_begun: 0, flushed: 0, soon: false, flushing: false }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.touched.is_empty()
    }

    pub(super) fn settle_soon(&mut self) {
        self.soon = true;
    }

    pub(super) fn begin(&mut self, region: u64, now: Duration) {
        let touched = self.touched.entry(region).or_default();
        touched.active += 1;
        touched.last = now;
    }

    pub(super) fn end(&mut self, region: u64, now: Duration) {
        let touched = self.touched.get_mut(&region).expect("what ends had begun");
        touched.active -= 1;
        touched.flushes = self.flushes_begun;
        touched.last = now;
    }

    /// A flush is being sent; gives its number.
    pub(super) fn flush_begins(&mut self) -> u64 {
        self.flushes_begun += 1;
        self.flushes_begun
    }

    /// A flush has reached all copies in sync.
    pub(super) fn flush_ended(&mut self, number: u64) {
        self.flushed = self.flushed.max(number);
    }

    /// The mirror has become longer: what was touched by its blocks, with the changes that are
    /// under way now.
    pub(super) fn lengthen(
        &mut self,
        old: Geometry,
        new: Geometry,
        changes: Vec<(BlockAddr, u64)>,
    ) {
        for (region, touched) in std::mem::take(&mut self.touched) {
            let (start, _) = old.extent(region);
            let merged = self.touched.entry(*new.regions_of(start, 1).start()).or_default();
            merged.flushes = merged.flushes.max(touched.flushes);
            merged.last = merged.last.max(touched.last);
        }
        for (addr, count) in changes {
            for region in new.regions_of(addr, count) {
                self.touched.entry(region).or_default().active += 1;
            }
        }
    }

    pub(super) fn own_flush_ended(&mut self) {
        self.flushing = false;
    }
}

impl Mirror {
    /// Notes that there is going to be a write in `region`, and in the next ones if it looks so.
    pub(super) fn intend(&mut self, region: u64) {
        self.regions.begin(region, self.now);
        if !self.bitmaps.is_set(Slot::Intent, region) {
            self.bitmaps.set(Slot::Intent, region);
        }
        let comes_from_before = region > 0 && self.bitmaps.is_set(Slot::Intent, region - 1);
        let next = region + 1;
        let is_new = next < self.geometry.regions() && !self.bitmaps.is_set(Slot::Intent, next);
        if comes_from_before && is_new {
            for ahead in next..(next + AHEAD).min(self.geometry.regions()) {
                self.bitmaps.set(Slot::Intent, ahead);
                self.regions.touched.entry(ahead).or_default().last = self.now;
            }
        }
    }

    /// Lets go of what is settled, and has a flush sent for what could be.
    pub(super) fn settle_regions(&mut self) {
        if self.is_draining() || self.is_renewing() {
            return;
        }
        let left_out = self.roster.left_out();
        let (now, soon, idle) = (self.now, self.regions.soon, self.options.settle);
        let is_idle = |touched: &Touched| {
            touched.active == 0 && (soon || now.saturating_sub(touched.last) >= idle)
        };
        let mut unflushed = false;
        let mut settled = Vec::new();
        for (region, touched) in self.regions.touched.iter().filter(|(_, it)| is_idle(it)) {
            if touched.flushes >= self.regions.flushed {
                unflushed = true;
                continue;
            }
            let mut noted = true;
            for copy in left_out.iter() {
                if !self.bitmaps.is_set(Slot::Missing(copy), *region) {
                    self.bitmaps.set(Slot::Missing(copy), *region);
                }
                noted &= self.bitmaps.is_kept(Slot::Missing(copy), *region);
            }
            if noted {
                settled.push(*region);
            }
        }
        for region in settled {
            self.regions.touched.remove(&region);
            self.bitmaps.clear(Slot::Intent, region);
        }
        if unflushed && !self.regions.flushing {
            self.regions.flushing = true;
            self.start_flush(None);
        }
    }

    /// A change is over, and its regions are one write nearer to being settled.
    pub(super) fn end_change(&mut self, work: &Work) {
        let Work::Change { request, stage, .. } = work else { return };
        if *stage == Stage::Queued {
            return;
        }
        let (addr, count) = request.extent();
        for region in self.geometry.regions_of(addr, count) {
            self.regions.end(region, self.now);
            self.scans.values_mut().for_each(|scan| scan.is_written(region));
        }
    }
}
