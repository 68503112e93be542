//! Step 3: a flight ends, and every block that it allocated has an owner or is free again.
//!
//! ```text
//!   written  -- still the file's bytes --> mapped, in one batch of the file
//!     |  |
//!     |  +----- written over, cut off ---> given back; what is over it is written anew
//!     +-------- the round failed --------> given back, and the bytes stay accepted
//! ```
//!
//! Blocks in flight are counted as taken from the free space from their allocation on; they land,
//! mapped or not, when the flight ends. A segment that was to be written in place, where nothing is
//! set aside any more, goes another round: the flight was not whole.

use crate::error::MapError;
use crate::key::FileId;
use crate::locks::{Held, Wanted};
use crate::map::LocalMap;
use crate::txn::{LockMode, Stop};
use crate::writeback::plan::Flight;
use crate::writeback::world;
use crate::written::Ranges;

impl LocalMap {
    /// Step 3 for one file.
    pub(super) fn map_flight(&self, flight: &mut Flight<'_>) -> Result<(), MapError> {
        let state = flight.state;
        let file = state.file;
        let mut is_overwritten = false;
        let mapped = self.attempt(|txn| -> Result<(Vec<Ranges>, Ranges), Stop> {
            txn.ensure(file, LockMode::Exclusive)?;
            txn.pay_already();
            is_overwritten = flight.segments.iter().any(|one| state.dirty.is_overwritten(one));
            let birth = self.view.load().active.txg();
            txn.changes.birth = Some(birth);
            let mut mapped = Vec::with_capacity(flight.runs.len());
            if flight.fits_inline() && !txn.map_inline(state, &flight.segments)? {
                is_overwritten = true;
            }
            for written in &flight.runs {
                mapped.push(txn.map_written(state, &flight.segments, written, birth)?);
            }
            let mut missed = Vec::new();
            for written in &flight.in_place {
                missed.extend(txn.map_in_place(state, &flight.segments, written)?);
            }
            let is_all = flight.whole && missed.is_empty() && !is_overwritten;
            if is_all {
                let size = flight.size.min(state.lowest_size());
                let mut extent = txn.extent(file)?;
                if extent.size < size {
                    extent.size = size;
                    txn.put_extent(file, extent);
                }
            }
            txn.changes.unflushed = !flight.runs.is_empty() || !flight.in_place.is_empty();
            Ok((mapped, missed))
        });
        let (mapped, missed) = mapped.map_err(world)?;
        flight.is_overwritten = is_overwritten;
        flight.whole &= missed.is_empty();
        for (written, mapped) in flight.runs.iter_mut().zip(mapped) {
            written.forget(&mapped, |run| self.alloc.give_back(run))?;
        }
        self.land(flight);
        self.settle_file(file);
        Ok(())
    }

    /// Gives back what was allocated and not mapped.
    pub(super) fn give_back(&self, flight: &mut Flight<'_>) -> Result<(), MapError> {
        let returned = flight.runs.iter().try_for_each(|written| self.alloc.give_back(written.run));
        self.land(flight);
        returned
    }

    fn land(&self, flight: &mut Flight<'_>) {
        let blocks = flight.runs.drain(..).map(|written| u64::from(written.run.count)).sum();
        self.space.land(blocks);
    }

    fn settle_file(&self, file: FileId) {
        let mut wanted = Wanted::default();
        wanted.add(file, LockMode::Exclusive);
        let _held = Held::acquire(&self.locks, &wanted);
        self.files.leave(file);
    }
}
