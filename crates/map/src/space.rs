//! Who may still use space: promises against free blocks.
//!
//! ```text
//! free blocks (now + after the next commit)
//!   - reserve                      only removal and commits may use it
//!   - blocks promised to accepted bytes that are not written yet, and what items of them need
//!   - blocks held for who is about to be given them
//!   - growth of the trees by items that are not committed yet
//!   = available to whoever makes good a pledge: what somebody else was told there is room for
//!   - blocks that are pledged
//!   = available to whoever wants to add something
//! ```
//!
//! A commit copies every node that it changes before the old one is free. The reserve is what it
//! lives on when all else is full: a commit is forced before its cost could pass half of the
//! reserve, so one can be prepared while another is under way.

use std::sync::atomic::{AtomicI64, Ordering};

use gabion_base::sync::CachePadded;

use crate::alloc::FreeBlocks;
use crate::layout::Layout;

/// Bytes of items that a block of new tree nodes holds at least: nodes are half full at worst.
const ITEM_BYTES_PER_BLOCK: i64 = 2048;
/// For so many blocks of data, one more for the items that point to them.
const BLOCKS_PER_ITEM_BLOCK: i64 = 64;
/// Nodes that any commit writes: root, forest, and paths.
const COMMIT_NODES_BASE: u64 = 16;
/// The part of the reserve that may be used by what is done again after a crash.
const RESERVE_SHARE_AGAIN: i64 = 4;

/// Promises of space.
pub struct Space {
    /// Follows the length of the filesystem.
    reserve: AtomicI64,
    promised: CachePadded<AtomicI64>,
    /// Blocks that were given out for promised bytes which still count as promised: counted twice.
    in_flight: CachePadded<AtomicI64>,
    held: CachePadded<AtomicI64>,
    pledged: CachePadded<AtomicI64>,
    /// Objects that are pledged, of those that quotas leave.
    pledged_objects: AtomicI64,
}

/// For whom there has to be room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Somebody who finds room or not.
    New,
    /// Somebody who was told before that there is room.
    Pledged,
    /// Somebody who had it before a crash, when there was room, and since then everything else may
    /// have come back that was added later. What an operation must find besides what it takes is
    /// in the reserve then.
    Again,
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

/// What is due of the free blocks. It has to be looked at before they are counted: what is given
/// out in between counts twice then. The other way around it would not count at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Due {
    promised: i64,
    /// Of what is promised, what was given out already: as it was before the rest was looked at, so
    /// that what lands in between only seems to be on its way.
    pub in_flight: i64,
    /// Held becomes promised before it is no longer held.
    pub held: i64,
    growth: i64,
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
        let reserve = AtomicI64::new(reserve_blocks(layout));
        let (promised, in_flight, held, pledged, pledged_objects) = Default::default();
        Self { reserve, promised, in_flight, held, pledged, pledged_objects }
    }

    /// The filesystem has this layout now.
    pub fn follow(&self, layout: &Layout) {
        self.reserve.store(reserve_blocks(layout), Ordering::Relaxed);
    }

    fn reserve(&self) -> i64 {
        self.reserve.load(Ordering::Relaxed)
    }

    /// What is due now.
    pub fn due(&self, uncommitted: Uncommitted) -> Due {
        let in_flight = self.in_flight.load(Ordering::Acquire);
        let held = self.held.load(Ordering::Acquire);
        let promised = self.promised.load(Ordering::Acquire);
        Due { promised, in_flight, held, growth: uncommitted.growth() }
    }

    /// Blocks that can still be promised; negative if the reserve has been touched.
    pub fn available(&self, due: Due, free: FreeBlocks, claim: Claim) -> i64 {
        free.after_commit
            - due.promised
            - due.promised / BLOCKS_PER_ITEM_BLOCK
            - due.held
            - due.growth
            - self.kept_from(claim)
    }

    /// Whether `blocks` could not be promised even if all writes under way had ended, a commit had
    /// come, and the trees had not grown at all. Whatever is held counts for nothing: others hold
    /// blocks for a moment, and then they are promised, or given out, or free once more.
    pub fn is_hopeless(&self, due: Due, free: FreeBlocks, blocks: u64, claim: Claim) -> bool {
        let wanted = due.promised - due.in_flight + blocks as i64;
        free.after_commit - self.kept_from(claim) < wanted
    }

    /// What is no room for this claim, of what could be used.
    fn kept_from(&self, claim: Claim) -> i64 {
        match claim {
            Claim::New => self.reserve() + self.pledged(),
            Claim::Pledged => self.reserve(),
            Claim::Again => self.reserve() - self.reserve() / RESERVE_SHARE_AGAIN,
        }
    }

    /// Blocks that are pledged.
    pub fn pledged(&self) -> i64 {
        self.pledged.load(Ordering::Acquire)
    }

    /// Objects that are pledged.
    pub fn pledged_objects(&self) -> i64 {
        self.pledged_objects.load(Ordering::Acquire)
    }

    /// So many blocks and objects more, or less, are pledged.
    pub fn pledge(&self, blocks: i64, objects: i64) {
        let before = self.pledged.fetch_add(blocks, Ordering::AcqRel);
        assert!(before + blocks >= 0, "{blocks} of {before} pledged blocks are none");
        let before = self.pledged_objects.fetch_add(objects, Ordering::AcqRel);
        assert!(before + objects >= 0, "{objects} of {before} pledged objects are none");
    }

    /// Blocks were given out for bytes that are still promised.
    pub fn take_off(&self, blocks: u64) {
        self.in_flight.fetch_add(blocks as i64, Ordering::AcqRel);
    }

    /// Blocks that had been given out for promised bytes hold them, or were given back.
    pub fn land(&self, blocks: u64) {
        let before = self.in_flight.fetch_sub(blocks as i64, Ordering::AcqRel);
        assert!(before >= blocks as i64, "{blocks} of {before} blocks in flight landed");
    }

    /// Blocks that must be free right now for a promise of `blocks` to be kept without a commit.
    pub fn covers(&self, due: Due, free: FreeBlocks, blocks: u64) -> bool {
        free.now - self.reserve() / 2 > due.promised + due.held + blocks as i64
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

    /// Holds blocks for who is about to be given them, until they were, or this is dropped.
    pub fn hold(&self, blocks: u64) -> Held<'_> {
        self.held.fetch_add(blocks as i64, Ordering::AcqRel);
        Held { space: self, blocks }
    }

    /// Blocks that are promised.
    pub fn promised(&self) -> i64 {
        self.promised.load(Ordering::Acquire)
    }

    /// Whether the next commit has become so large that it should start now.
    pub fn wants_commit(&self, uncommitted: Uncommitted) -> bool {
        uncommitted.commit_blocks() as i64 > self.reserve() / 2
    }
}

/// Blocks that somebody is about to be given. Of two who want the same blocks at the same time one
/// sees the other; and if both do, neither is told that there is no room before it has tried again.
pub struct Held<'s> {
    space: &'s Space,
    blocks: u64,
}

impl Held<'_> {
    /// So many of them were given out.
    pub fn given(&mut self, blocks: u64) {
        let blocks = blocks.min(self.blocks);
        self.blocks -= blocks;
        self.space.held.fetch_sub(blocks as i64, Ordering::AcqRel);
    }

    /// They are promised from now on.
    pub fn promise(self) {
        self.space.promise(self.blocks);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.space.held.fetch_sub(self.blocks as i64, Ordering::AcqRel);
    }
}

fn reserve_blocks(layout: &Layout) -> i64 {
    4 * layout.reserve_clusters as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(reserve: i64) -> Space {
        let reserve = AtomicI64::new(reserve);
        let (promised, in_flight, held, pledged, pledged_objects) = Default::default();
        Space { reserve, promised, in_flight, held, pledged, pledged_objects }
    }

    #[test]
    fn blocks_in_flight_are_no_reason_to_give_up() {
        let space = space(10);
        space.promise(60);
        let due = || space.due(Uncommitted::default());
        let free = |blocks| FreeBlocks { now: blocks, after_commit: blocks };
        assert!(!space.is_hopeless(due(), free(100), 30, Claim::New));
        assert!(space.is_hopeless(due(), free(100), 31, Claim::New));
        // The promised bytes get their blocks, and still count as promised.
        space.take_off(60);
        assert!(!space.is_hopeless(due(), free(40), 30, Claim::New));
        assert!(space.available(due(), free(40), Claim::New) < 30);
        space.settle(60);
        space.land(60);
        assert!(!space.is_hopeless(due(), free(40), 30, Claim::New));
        assert!(space.is_hopeless(due(), free(40), 31, Claim::New));
    }

    #[test]
    fn blocks_that_others_hold_are_no_reason_to_give_up() {
        let space = space(10);
        let free = FreeBlocks { now: 100, after_commit: 100 };
        let held = space.hold(80);
        let due = || space.due(Uncommitted::default());
        assert!(space.available(due(), free, Claim::New) < 30);
        assert!(!space.is_hopeless(due(), free, 90, Claim::New));
        held.promise();
        assert!(space.is_hopeless(due(), free, 11, Claim::New));
    }

    #[test]
    fn what_is_pledged_is_room_for_who_was_told_so_alone() {
        let space = space(10);
        let free = FreeBlocks { now: 100, after_commit: 100 };
        space.pledge(60, 0);
        let due = || space.due(Uncommitted::default());
        let available = |claim| space.available(due(), free, claim);
        assert_eq!((available(Claim::New), available(Claim::Pledged)), (30, 90));
        assert!(
            space.is_hopeless(due(), free, 31, Claim::New)
                && !space.is_hopeless(due(), free, 30, Claim::New)
        );
        assert!(!space.is_hopeless(due(), free, 90, Claim::Pledged));
        assert!(!space.is_hopeless(due(), free, 92, Claim::Again));
        assert!(space.is_hopeless(due(), free, 93, Claim::Again));
        space.pledge(-60, 0);
        assert_eq!(available(Claim::New), 90);
    }
}
