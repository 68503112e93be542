//! What makes one file durable: a flush of the journal, after its bytes are in items, or in the
//! journal themselves.
//!
//! 1. A file without accepted bytes needs no more than the flush.
//! 2. Few bytes are put into the journal: one write and one flush in all. They stay accepted, and
//!    their extents are written later.
//! 3. More bytes, or bytes for which the journal has no room, are written back first.
//! 4. If the ring is full, a commit takes the flush's place.
//!
//! What the journal carries is bounded, because a commit must be able to carry it over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::MapError;
use crate::file::FileState;
use crate::file::dirty::InJournal;
use crate::journal::Flushed;
use crate::key::FileId;
use crate::map::LocalMap;
use crate::txn::{LockMode, Stop};
use crate::writeback::world;

/// Bytes of one file that an fsync puts into the journal instead of writing extents: below this,
/// one write of the journal beats a write of data, a flush, and the journal's write.
const JOURNALED_BYTES_MAX: u64 = 64 * 1024;
/// Bytes that fsync puts into the journal stay below this part of the ring, and a commit is made
/// when those of cuts and holes come on top of that: a commit can always carry them over, and a
/// replay never needs much memory.
const JOURNALED_PART_OF_RING: u64 = 8;

impl LocalMap {
    /// Makes a file and all that completed before durable.
    pub fn sync_file(&self, file: FileId) -> Result<(), MapError> {
        self.sync_file_then(file, || Ok(()))
    }

    /// The same, and what `then` changes with it: after a crash that is there only if all bytes of
    /// the file are that were accepted before.
    pub fn sync_file_then(
        &self,
        file: FileId,
        then: impl FnOnce() -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        self.check_writable()?;
        let unsettled = self.files.find(file).filter(|state| !state.is_settled());
        if let Some(state) = unsettled
            && !self.journal_bytes(&state)?
        {
            self.write_back(&[state])?;
        }
        then()?;
        let position = self.journal.position();
        match self.journal.flush(position) {
            Ok(Flushed::Durable) => Ok(()),
            Ok(Flushed::RingFull) => self.commit().map(drop),
            Err(failure) => {
                let failure = MapError::Disk(failure);
                self.stop(&failure);
                Err(failure)
            }
        }
    }

    /// What fsync may put into the journal before the next commit.
    pub(crate) fn journaled_bytes_max(&self) -> u64 {
        self.journal.ring_bytes() / JOURNALED_PART_OF_RING
    }

    /// Puts the accepted bytes of a file into the journal's buffer, if they are few. Whether it
    /// has.
    pub(super) fn journal_bytes(&self, state: &Arc<FileState>) -> Result<bool, MapError> {
        let _one_at_a_time = state.writeback.lock();
        let file = state.file;
        let limit = self.journaled_bytes_max();
        self.attempt(|txn| -> Result<bool, Stop> {
            txn.ensure(file, LockMode::Exclusive)?;
            let mut segments = txn.accepted(file);
            segments.retain(|segment| segment.journaled != InJournal::Yes);
            let bytes: u64 = segments.iter().map(|part| part.slice.bytes().len() as u64).sum();
            let journaled = self.journaled_bytes.load(Ordering::Acquire);
            if bytes > JOURNALED_BYTES_MAX || journaled + bytes > limit {
                return Ok(false);
            }
            let mut extent = txn.extent(file)?;
            if extent.size != state.size() {
                extent.size = state.size();
                txn.put_extent(file, extent);
            }
            let journaled = segments.into_iter().map(|segment| (Arc::clone(state), segment));
            txn.changes.journaled.extend(journaled);
            Ok(true)
        })
        .map_err(world)
    }
}
