//! Who may still use space: promises against free blocks.
//!
//! ```text
//! free blocks (now + after the next commit)
//!   - reserve                      only removal and commits may use it
//!   - blocks promised to accepted bytes that are not written yet
//!   - growth of the trees by items that are not committed yet
//!   = available to whoever wants to add something
//! ```
//!
//! A commit copies every node that it changes before the old one is free. The reserve is what it
//! lives on when all else is full: a commit is forced before its cost could pass half of the
//! reserve, so one can be prepared while another is under way.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::alloc::FreeBlocks;
use crate::layout::Layout;

/// Bytes of items that a block of new tree nodes holds at least: nodes are half full at worst.
const ITEM_BYTES_PER_BLOCK: i64 = 2048;
/// For so many blocks of data, one more for the items that point to them.
const BLOCKS_PER_ITEM_BLOCK: i64 = 64;
/// Nodes that any commit writes: root, forest, and paths.
const COMMIT_NODES_BASE: u64 = 16;

/// Promises of space.
pub struct Space {
    reserve: i64,
    promised: AtomicI64,
}

/// What uncommitted changes will cost, roughly but never too little.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncommitted {
    /// Bytes of items.
    pub bytes: u64,
    /// Objects touched.
    pub objects: u64,
    /// Nodes of all writable trees.
    pub nodes: u64,
}

impl Uncommitted {
    /// Blocks that the trees may grow by.
    fn growth(&self) -> i64 {
        self.bytes as i64 / ITEM_BYTES_PER_BLOCK
    }

    /// Blocks that the commit writes before it frees any.
    pub fn commit_blocks(&self) -> u64 {
        let touched = 2 * self.objects + self.bytes / 8192;
        4 * (touched.min(self.nodes + self.bytes / 8192) + COMMIT_NODES_BASE)
    }
}

impl Space {
    /// No promises yet.
    pub fn new(layout: &Layout) -> Self {
        Self { reserve: 4 * layout.reserve_clusters as i64, promised: AtomicI64::new(0) }
    }

    /// Blocks that can still be promised; negative if the reserve has been touched.
    pub fn available(&self, free: FreeBlocks, uncommitted: Uncommitted) -> i64 {
        let promised = self.promised.load(Ordering::Acquire);
        free.after_commit
            - self.reserve
            - promised
            - promised / BLOCKS_PER_ITEM_BLOCK
            - uncommitted.growth()
    }

    /// Blocks that a commit could make available at best, if the trees did not grow at all.
    pub fn hoped_for(&self, free: FreeBlocks) -> i64 {
        free.after_commit - self.reserve - self.promised.load(Ordering::Acquire)
    }

    /// Blocks that must be free right now for a promise of `blocks` to be kept without a commit.
    pub fn covers(&self, free: FreeBlocks, blocks: u64) -> bool {
        free.now - self.reserve / 2 > self.promised.load(Ordering::Acquire) + blocks as i64
    }

    /// Promises blocks.
    pub fn promise(&self, blocks: u64) {
        self.promised.fetch_add(blocks as i64, Ordering::AcqRel);
    }

    /// The promise was kept, or is no longer needed.
    pub fn settle(&self, blocks: u64) {
        let before = self.promised.fetch_sub(blocks as i64, Ordering::AcqRel);
        assert!(before >= blocks as i64, "{blocks} of {before} promised blocks settled");
    }

    /// Blocks that are promised.
    pub fn promised(&self) -> i64 {
        self.promised.load(Ordering::Acquire)
    }

    /// Whether the next commit has become so large that it should start now.
    pub fn wants_commit(&self, uncommitted: Uncommitted) -> bool {
        uncommitted.commit_blocks() as i64 > self.reserve / 2
    }
}
