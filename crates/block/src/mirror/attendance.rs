//! Copies that come and go: given up because they fail, told to leave by administrators, attached
//! again, and what becomes of all of them when somebody else has opened the volume.
//!
//! `roster` says what a copy is from then on; here is what follows from it for what is under way.

use std::sync::Arc;

use gabion_base::disk::DiskError;

use super::foreground::Request;
use super::roster::{Roster, Trust};
use super::scan::Scan;
use super::{Mirror, Notice, Order, Output};
use crate::copies::CopyIndex;
use crate::geometry::Slot;

impl Mirror {
    pub(super) fn handle_recorded(&mut self) {
        let before = self.roster.in_sync();
        self.roster.recorded();
        for copy in self.roster.in_sync().without(before).iter() {
            self.outputs.push_back(Output::Notice(Notice::SyncFinished { copy }));
        }
        // Their writes may be waiting for just that.
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            self.settle(id);
        }
    }

    pub(super) fn handle_order(&mut self, order: Order) {
        // Whoever gives the order has looked before; meanwhile things may have changed.
        if self.fenced.is_some() || !self.roster.fits(order) {
            return;
        }
        match order {
            Order::Suspend(copy) if self.may_leave(copy) => {
                self.leave(copy, "it was suspended", Roster::suspend);
            }
            Order::TakeOut(copy) if self.may_leave(copy) => {
                self.leave(copy, "it was taken out", Roster::take_out);
            }
            Order::Suspend(_) | Order::TakeOut(_) => {}
            Order::Resume(copy) => self.roster.resume(copy),
            Order::PutIn(copy) => {
                self.roster.put_in(copy);
                self.bitmaps.set_all(Slot::Missing(copy));
            }
            Order::Compare => self.comparing = Some(Scan::start(self.next_flight)),
            Order::Grow(blocks) => self.start_growing(blocks),
        }
    }

    /// Whether the mirror can do without `copy`.
    fn may_leave(&self, copy: CopyIndex) -> bool {
        !self.roster.in_sync().contains(copy) || !self.roster.is_last(copy)
    }

    fn leave(&mut self, copy: CopyIndex, reason: &str, how: fn(&mut Roster, CopyIndex)) {
        self.give_up(copy, reason);
        how(&mut self.roster, copy);
        if self.attaching.remove(copy) {
            self.outputs.push_back(Output::Detach(copy));
        }
    }

    /// Nothing more is done: somebody else has the volume.
    pub(super) fn fence(&mut self, reason: Arc<str>) {
        if self.fenced.is_some() {
            return;
        }
        self.outputs.push_back(Output::Notice(Notice::Fenced { reason: Arc::clone(&reason) }));
        self.fenced = Some(reason);
        for (id, mut flight) in std::mem::take(&mut self.flights) {
            let error = self.fenced_error(flight.work.operation());
            self.answer(&mut flight, Err(error));
            self.ranges.forget(id);
        }
        for copy in self.roster.all() {
            self.outputs.push_back(Output::Detach(copy));
        }
        self.scans.clear();
        self.comparing = None;
        self.growth = None;
    }

    pub(super) fn fenced_error(&self, operation: &'static str) -> DiskError {
        let reason = self.fenced.clone().expect("it was fenced");
        DiskError::Fenced { device: Arc::clone(&self.name), operation, reason }
    }

    /// Does without `copy` from now on, if that is possible.
    pub(super) fn give_up(&mut self, copy: CopyIndex, reason: &str) {
        let trust = self.roster.trust(copy);
        if trust == Trust::InSync && self.roster.is_last(copy) {
            return;
        }
        if !self.roster.written_to().contains(copy) {
            return;
        }
        self.bitmaps.add_intent(copy);
        self.roster.give_up(copy);
        self.scans.remove(&copy);
        self.is_given_up(copy);
        self.balance.forget(copy);
        self.outputs.push_back(Output::Detach(copy));
        let notice = Notice::Stale { copy, reason: reason.into() };
        self.outputs.push_back(Output::Notice(notice));
        // Whatever it was asked is not going to be answered.
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            let Some(flight) = self.flights.get_mut(&id) else { continue };
            if flight.waiting.remove(copy) {
                flight.failed.insert(copy);
            }
            self.settle(id);
        }
    }

    pub(super) fn handle_attached(&mut self, copy: CopyIndex, full: bool) {
        if self.roster.trust(copy) != Trust::Stale || self.fenced.is_some() {
            self.outputs.push_back(Output::Detach(copy));
            return;
        }
        self.attaching.remove(copy);
        let slot = Slot::Missing(copy);
        if full {
            self.roster.set_full(copy, true);
        }
        if self.roster.is_full(copy) {
            self.bitmaps.set_all(slot);
        }
        if !self.roster.fullness_is_recorded(copy) {
            self.outputs.push_back(Output::Detach(copy));
            return;
        }
        self.bitmaps.add_intent(copy);
        self.roster.attached(copy);
        self.bitmaps.renew();
        self.scans.insert(copy, Scan::start(self.next_flight));
        let blocks = self.bitmaps.count(slot) * self.geometry.region_blocks();
        let blocks = blocks.min(self.geometry.blocks());
        self.outputs.push_back(Output::Notice(Notice::SyncStarted { copy, blocks }));
    }
}
