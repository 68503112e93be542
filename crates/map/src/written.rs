//! Blocks that were written become items of their file: the last step of a writeback.
//!
//! Between the writing and this step the file was not locked. So each block is looked at once more:
//! what was written over or cut off meanwhile is not put in place, and what was set aside may have
//! been given up, or a snapshot may need it as it was.

use std::sync::Arc;

use gabion_base::ids::Txg;

use crate::error::MapError;
use crate::extents::Piece;
use crate::file::FileState;
use crate::file::dirty::Segment;
use crate::format::item::{Extent, FileData, INLINE_LENGTH_MAX, Sharing};
use crate::format::journal::{FreedRun, Run};
use crate::key::FileId;
use crate::subvolumes::Fate;
use crate::transaction::LocalTxn;
use crate::txn::Stop;

/// Blocks of a file: first, past the last.
pub(crate) type Ranges = Vec<(u64, u64)>;

/// Blocks of a file and where they were written.
pub(crate) struct WrittenRun {
    /// First block of the file.
    pub(crate) block: u64,
    /// The blocks on disk.
    pub(crate) run: Run,
    /// Of each block.
    pub(crate) checksums: Vec<u32>,
}

impl WrittenRun {
    /// The block of the file after the last.
    pub(crate) fn end(&self) -> u64 {
        self.block + u64::from(self.run.count)
    }

    /// What of it still is the file's bytes: nobody wrote over them or cut them off.
    fn unchanged(&self, state: &FileState, segments: &[Segment]) -> Ranges {
        let mut ranges = Ranges::new();
        let first = segments.partition_point(|segment| segment.end() <= self.block);
        for segment in segments[first..].iter().take_while(|segment| segment.block < self.end()) {
            for (from, to) in state.dirty.unchanged(segment) {
                let (from, to) = (from.max(self.block), to.min(self.end()));
                match ranges.last_mut() {
                    _ if from >= to => {}
                    Some(last) if last.1 == from => last.1 = to,
                    _ => ranges.push((from, to)),
                }
            }
        }
        ranges
    }

    /// The extent that stands for blocks `from..to` of the file.
    fn extent(&self, from: u64, to: u64, birth: Txg) -> Extent {
        let (start, end) = ((from - self.block) as usize, (to - self.block) as usize);
        let (addr, sharing) = (self.run.addr.plus(start as u64), Sharing::Sole);
        Extent { addr, birth, sharing, checksums: self.checksums[start..end].to_vec() }
    }

    /// Hands those parts of the run that are not in `mapped` (blocks of the file) to `give_back`.
    pub(crate) fn forget(
        &self,
        mapped: &[(u64, u64)],
        give_back: impl Fn(Run) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let end = self.end();
        let mut at = self.block;
        for (from, to) in mapped.iter().copied().chain([(end, end)]) {
            if from > at {
                let addr = self.run.addr.plus(at - self.block);
                give_back(Run { addr, count: (from - at) as u32 })?;
            }
            at = to;
        }
        Ok(())
    }
}

impl LocalTxn<'_> {
    /// Whether a piece's blocks can be written in place: set aside, and nobody else's.
    pub(crate) fn is_set_aside(&self, file: FileId, piece: &Piece) -> bool {
        let FileData::Unwritten(run) = &piece.data else { return false };
        let blocks = Run { addr: run.addr, count: run.count };
        let freed = FreedRun { subvol: file.subvol, run: blocks, birth: run.birth };
        run.sharing == Sharing::Sole && self.map.fate(&freed) == Fate::Free
    }

    /// Puts extents for what of `written` is still the file's bytes; returns those blocks.
    pub(crate) fn map_written(
        &mut self,
        state: &Arc<FileState>,
        segments: &[Segment],
        written: &WrittenRun,
        birth: Txg,
    ) -> Result<Ranges, Stop> {
        let ranges = written.unchanged(state, segments);
        for (from, to) in &ranges {
            let extent = written.extent(*from, *to, birth);
            let run = Run { addr: extent.addr, count: (to - from) as u32 };
            self.unmap(state.file, *from, *to)?;
            let piece = Piece { block: *from, data: FileData::Extent(extent) };
            self.map_piece(state.file, &piece)?;
            self.changes.batch.allocated.push(run);
            self.drop_accepted(state.file, *from, *to);
        }
        Ok(ranges)
    }

    /// Puts extents in place of what was set aside, for what of `written` is still the file's
    /// bytes; returns the blocks of those that are set aside no more.
    pub(crate) fn map_in_place(
        &mut self,
        state: &Arc<FileState>,
        segments: &[Segment],
        written: &WrittenRun,
    ) -> Result<Ranges, Stop> {
        let file = state.file;
        let mut missed = Ranges::new();
        for (from, to) in written.unchanged(state, segments) {
            let mut at = from;
            for piece in self.pieces(file, from, to, usize::MAX)? {
                let (from, to) = (from.max(piece.block), to.min(piece.end()));
                let part = piece.cut(from, to);
                let FileData::Unwritten(run) = &part.data else { continue };
                let extent = written.extent(from, to, run.birth);
                if run.addr == extent.addr && self.is_set_aside(file, &piece) {
                    self.replace_set_aside(file, from, extent)?;
                    self.drop_accepted(file, from, to);
                    missed.extend((at < from).then_some((at, from)));
                    at = to;
                }
            }
            missed.extend((at < to).then_some((at, to)));
        }
        Ok(missed)
    }

    /// Puts a small file's bytes into its item. Whether it is still small.
    pub(crate) fn map_inline(
        &mut self,
        state: &Arc<FileState>,
        segments: &[Segment],
    ) -> Result<bool, Stop> {
        let size = state.size();
        let Some(segment) = segments.first() else { return Ok(true) };
        if state.dirty.unchanged(segment).is_empty() {
            return Ok(true);
        }
        if size > INLINE_LENGTH_MAX as u64 {
            return Ok(false);
        }
        self.unmap(state.file, 0, 1)?;
        let bytes = segment.slice.bytes()[..size as usize].to_vec();
        self.map_piece(state.file, &Piece { block: 0, data: FileData::Inline(bytes) })?;
        self.drop_accepted(state.file, 0, 1);
        Ok(true)
    }
}
