//! Accepted bytes become extents.
//!
//! 1. **Plan** (`plan`): take the segments as they are now; neighbours within a stripe make one
//!    run.
//! 2. **Write** (`send`): allocate blocks, compute checksums, keep many writes in flight. No object
//!    is locked.
//! 3. **Map** (`finish`): with the file locked, put extents for those blocks that nobody wrote over
//!    or cut off meanwhile; give the others back. One batch for each file.
//!
//! Small files skip 1 and 2: their bytes go into the item. Blocks that were set aside for the file
//! are written in place, with the file locked so that nobody frees them meanwhile; step 3 looks
//! whether they still are set aside.
//!
//! The size in the FILE item advances in step 3 to what the file's size was before step 1, once all
//! bytes below it are written, or to where the file was cut since. So it is always a size that the
//! file had. What a crash leaves behind the end, of a writeback that had not come so far,
//! is cleared when the file grows (`LocalTxn::clear_behind_end`).
//!
//! What is written over while it is written is not mapped. It was accepted, and so were the bytes
//! over it that whoever wants it durable has seen accepted: so that file is written once more, then
//! put into the journal, and if that has no room for so much, written while writers have to wait
//! ([`crate::file::fence`]). Of what is not kept away then the journal has all bytes.
//!
//! Here: which files are written together, and how often around. What fsync puts into the journal
//! instead is in `fsync`.

mod finish;
mod fsync;
mod plan;
mod send;

use std::sync::Arc;

use crate::error::MapError;
use crate::file::FileState;
use crate::key::FileId;
use crate::locks::{Held, Wanted};
use crate::map::LocalMap;
use crate::txn::{LockMode, Stop};
use crate::writeback::plan::Flight;

/// Blocks (16 MiB) that are written before their files are mapped.
const BATCH_BLOCKS: u64 = 4096;
/// Files that are written together.
const BATCH_FILES: usize = 512;
/// How often what is written over meanwhile is written anew before the journal takes it, or writers
/// have to wait.
const ROUNDS_IN_PASSING: usize = 2;

impl LocalMap {
    /// Puts all accepted bytes of a file into its items. They are not durable by that.
    pub fn flush_file(&self, file: FileId) -> Result<(), MapError> {
        let Some(state) = self.files.find(file) else { return Ok(()) };
        self.write_back(&[state])
    }

    /// Makes everything that completed before durable.
    pub fn sync(&self) -> Result<(), MapError> {
        self.check_writable()?;
        self.write_back_all(&|_| true)?;
        self.commit().map(drop)
    }

    /// Writes accepted bytes until half of what is allowed is left.
    pub fn write_back_some(&self) -> Result<(), MapError> {
        let enough = self.limits.dirty / 8;
        self.write_back_all(&|map| map.dirty_bytes() > enough)
    }

    /// Writes accepted bytes of all files as long as `go_on` says so.
    pub(crate) fn write_back_all(&self, go_on: &dyn Fn(&Self) -> bool) -> Result<(), MapError> {
        let files = self.files.unsettled();
        let stays = |state: &Arc<FileState>| self.check_changeable(state.file.subvol).is_ok();
        let (mut files, removed): (Vec<_>, Vec<_>) = files.into_iter().partition(stays);
        removed.iter().for_each(|state| self.discard(state));
        // By number: files made one after the other lie side by side on disk. And one order of
        // the writeback locks for all.
        files.sort_unstable_by_key(|state| state.file);
        let mut first_error = None;
        let mut rest = &files[..];
        while !rest.is_empty() && go_on(self) {
            let mut blocks = 0;
            let count = rest
                .iter()
                .take_while(|state| {
                    let fits = blocks < BATCH_BLOCKS;
                    blocks += state.dirty_blocks();
                    fits
                })
                .take(BATCH_FILES)
                .count();
            let (batch, others) = rest.split_at(count.max(1));
            rest = others;
            match self.write_back(batch) {
                // A subvolume was removed meanwhile: nobody misses its bytes.
                Err(MapError::ReadOnly) if !batch.iter().all(stays) => {}
                Err(error) => drop(first_error.get_or_insert(error)),
                Ok(()) => {}
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Forgets the accepted bytes of a file whose subvolume was removed.
    fn discard(&self, state: &Arc<FileState>) {
        let _one_at_a_time = state.writeback.lock();
        let mut wanted = Wanted::default();
        wanted.add(state.file, LockMode::Exclusive);
        let _held = Held::acquire(&self.locks, &wanted);
        let removed = state.dirty.remove(0, u64::MAX);
        self.settle_dirty(state, removed);
        state.owed.forget(0, u64::MAX);
        state.resize(state.item_size());
        self.files.leave(state.file);
    }

    /// Writes the accepted bytes of `files`, which are in order.
    fn write_back(&self, files: &[Arc<FileState>]) -> Result<(), MapError> {
        let overwritten = self.write_once(files)?;
        overwritten.iter().try_for_each(|state| self.catch_up(state))
    }

    /// Somebody writes over the bytes of a file while they are being written. What was accepted
    /// before is among those that are not written, so these are. Who does that all the time is
    /// caught up with in the journal, which takes them at once, or has to wait.
    fn catch_up(&self, state: &Arc<FileState>) -> Result<(), MapError> {
        for _ in 0..ROUNDS_IN_PASSING {
            if self.write_once(std::slice::from_ref(state))?.is_empty() {
                return Ok(());
            }
        }
        if self.journal_bytes(state)? {
            return Ok(());
        }
        let _fence = state.fence.put_up();
        self.await_writers(state.file);
        while !self.write_once(std::slice::from_ref(state))?.is_empty() {}
        Ok(())
    }

    /// Waits until those have ended who write bytes of the file now.
    fn await_writers(&self, file: FileId) {
        let mut wanted = Wanted::default();
        wanted.add(file, LockMode::Exclusive);
        drop(Held::acquire(&self.locks, &wanted));
    }

    /// Writes the accepted bytes of `files` once. Gives those of which some were written over
    /// meanwhile.
    fn write_once(&self, files: &[Arc<FileState>]) -> Result<Vec<Arc<FileState>>, MapError> {
        let mut overwritten = Vec::new();
        let mut flights = Vec::with_capacity(files.len());
        for state in files {
            let guard = state.writeback.lock();
            flights.push(Flight::plan(state, guard));
        }
        // A file with more than a batch of bytes takes several rounds.
        loop {
            let outcome = self.write_runs(&mut flights);
            let mut ended = Ok(());
            for flight in &mut flights {
                let mapped = if outcome.is_ok() { self.map_flight(flight) } else { Ok(()) };
                flight.in_place.clear();
                let returned = self.give_back(flight);
                // One that fails keeps no other from its end.
                ended = ended.and(mapped.and(returned));
            }
            outcome.and(ended)?;
            for flight in flights.iter().filter(|flight| flight.whole && flight.is_overwritten) {
                overwritten.push(Arc::clone(flight.state));
            }
            flights.retain(|flight| !flight.whole);
            if flights.is_empty() {
                return Ok(overwritten);
            }
            flights.iter_mut().for_each(Flight::take_segments);
        }
    }
}

/// The failure of an operation that the driver ran to its end.
fn world(stop: Stop) -> MapError {
    match stop {
        Stop::Map(error) => error,
        Stop::Need { file, .. } => unreachable!("the driver locks {file:?} itself"),
        Stop::Lease => unreachable!("the map knows no leases"),
    }
}
