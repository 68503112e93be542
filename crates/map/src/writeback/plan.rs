//! Step 1: what one file gives to a round of writeback.
//!
//! A flight is all that is known of a file from its plan to its end:
//!
//! ```text
//!   segments            what was accepted when the flight was planned, at most a batch
//!   size                of the file, looked at before the segments
//!   runs, in_place      filled by step 2: where the segments were written
//!   whole               nothing is left for another round
//! ```
//!
//! It holds the file's writeback lock, so there is one flight of a file at a time. The file itself
//! is not locked: it may be written, cut or removed at any time, and step 3 finds out.

use std::sync::Arc;

use gabion_base::sync::MutexGuard;

use crate::file::FileState;
use crate::file::dirty::Segment;
use crate::format::item::INLINE_LENGTH_MAX;
use crate::writeback::BATCH_BLOCKS;
use crate::written::WrittenRun;

/// A file whose accepted bytes are being written.
pub(super) struct Flight<'a> {
    pub(super) state: &'a Arc<FileState>,
    _one_at_a_time: MutexGuard<'a, ()>,
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
    /// Written to blocks that were allocated for it.
    pub(super) runs: Vec<WrittenRun>,
    /// Written to blocks that were set aside for the file, in order.
    pub(super) in_place: Vec<WrittenRun>,
    /// Whether all segments fit into this flight.
    pub(super) whole: bool,
    /// Whether somebody wrote over some of them before they were mapped, or the file is not small
    /// any more, for which they were kept: what is not mapped then was accepted before, too.
    pub(super) is_overwritten: bool,
}

impl<'a> Flight<'a> {
    pub(super) fn plan(state: &'a Arc<FileState>, guard: MutexGuard<'a, ()>) -> Self {
        let mut flight = Self {
            state,
            _one_at_a_time: guard,
            size: 0,
            segments: Vec::new(),
            runs: Vec::new(),
            in_place: Vec::new(),
            whole: false,
            is_overwritten: false,
        };
        flight.take_segments();
        flight
    }

    /// Looks at the file once more. The size is taken before the segments: all bytes below it are
    /// among them.
    pub(super) fn take_segments(&mut self) {
        self.size = self.state.begin_writeback();
        self.segments = self.state.dirty.all();
        let mut blocks = 0;
        let mut fits = |segment: &Segment| {
            blocks += segment.slice.count() as u64;
            blocks <= BATCH_BLOCKS
        };
        let count = self.segments.iter().map_while(|segment| fits(segment).then_some(())).count();
        self.whole = count == self.segments.len();
        self.segments.truncate(count);
        self.is_overwritten = false;
    }

    /// The segments without what was written in place.
    pub(super) fn elsewhere(&self) -> Vec<Segment> {
        let mut elsewhere = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            let mut at = segment.block;
            let first = self.in_place.partition_point(|written| written.end() <= at);
            for written in
                self.in_place[first..].iter().take_while(|written| written.block < segment.end())
            {
                if at < written.block {
                    elsewhere.push(segment.cut(at, written.block));
                }
                at = written.end();
            }
            if at < segment.end() {
                elsewhere.push(segment.cut(at, segment.end()));
            }
        }
        elsewhere
    }

    pub(super) fn fits_inline(&self) -> bool {
        self.size <= INLINE_LENGTH_MAX as u64 && self.segments.iter().all(|s| s.end() == 1)
    }
}
