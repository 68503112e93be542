//! The data that items point to, on its way from the device to its verification.
//!
//! ```text
//!   items -> gathered, until it is a batch -> in the order of the disk, side by side as one
//!         -> being read, up to a window -> verified
//! ```
//!
//! Items come in the order of their keys, which on the disk may be any. What is read at once is
//! bounded, and so is what is gathered and in flight.

use std::collections::VecDeque;

use gabion_base::disk::Disk;
use gabion_base::ids::BlockAddr;

use super::reads::Reading;
use crate::key::Key;

/// Blocks that are gathered before any of them is read.
const BATCH_BLOCKS: usize = 1024;
/// Blocks of each copy that are being read.
const WINDOW_BLOCKS: usize = 2048;
/// Blocks that are read at once, at most: as many as an item can point to.
const RUN_BLOCKS: usize = crate::format::item::EXTENT_BLOCKS_MAX;

/// Blocks that an item points to.
pub(super) struct Extent {
    pub(super) key: Key,
    pub(super) addr: BlockAddr,
    pub(super) checksums: Vec<u32>,
}

/// Extents side by side, being read as one.
pub(super) struct Run {
    pub(super) extents: Vec<Extent>,
    pub(super) reading: Reading,
    blocks: usize,
}

#[derive(Default)]
pub(super) struct Data {
    gathered: Vec<Extent>,
    gathered_blocks: usize,
    waiting: VecDeque<Vec<Extent>>,
    reading: VecDeque<Run>,
    reading_blocks: usize,
}

fn blocks(extents: &[Extent]) -> usize {
    extents.iter().map(|extent| extent.checksums.len()).sum()
}

impl Data {
    /// Takes another extent. Whoever calls this calls [`Data::next`] until there is nothing.
    pub(super) fn add(&mut self, extent: Extent) {
        self.gathered_blocks += extent.checksums.len();
        self.gathered.push(extent);
        if self.gathered_blocks >= BATCH_BLOCKS {
            self.close_batch();
        }
    }

    /// Nothing more comes for now: what was gathered is to be read.
    pub(super) fn close_batch(&mut self) {
        self.gathered_blocks = 0;
        self.gathered.sort_unstable_by_key(|extent| extent.addr);
        let (mut run, mut end, mut count) = (Vec::new(), BlockAddr(0), 0);
        for extent in self.gathered.drain(..) {
            let length = extent.checksums.len();
            if !run.is_empty() && (extent.addr != end || count + length > RUN_BLOCKS) {
                self.waiting.push_back(std::mem::take(&mut run));
                count = 0;
            }
            end = extent.addr.plus(length as u64);
            count += length;
            run.push(extent);
        }
        if !run.is_empty() {
            self.waiting.push_back(run);
        }
    }

    /// Starts what there is room for, and gives a run to be verified: the oldest, if it holds up
    /// others or if `all` are wanted.
    pub(super) fn next(&mut self, disk: &dyn Disk, all: bool) -> Option<Run> {
        while let Some(extents) = self.waiting.front() {
            let blocks = blocks(extents);
            if self.reading_blocks > 0 && self.reading_blocks + blocks > WINDOW_BLOCKS {
                break;
            }
            let addr = extents[0].addr;
            let extents = self.waiting.pop_front()?;
            let reading = Reading::start(disk, addr, blocks);
            self.reading_blocks += blocks;
            self.reading.push_back(Run { extents, reading, blocks });
        }
        if self.waiting.is_empty() && !all {
            return None;
        }
        let run = self.reading.pop_front()?;
        self.reading_blocks -= run.blocks;
        Some(run)
    }
}
