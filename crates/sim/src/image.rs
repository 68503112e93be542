//! The content of a disk at one moment, cheap to fork.
//!
//! ```text
//! root ── inner (32) ── inner (32) ── ... ── leaf (32) ── block, shared with whoever wrote it
//! ```
//!
//! A radix tree over block addresses whose nodes are shared and copied on write:
//!
//! - cloning an image costs one reference count, whatever its size;
//! - changing a block of a clone copies one node of 32 slots per level;
//! - a block is never copied, it stays the part of the buffer that was written.
//!
//! An absent block reads as zeros. Nothing is ever evicted: an image lives as long as a test.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::ids::BlockAddr;

const FANOUT_BITS: u32 = 5;
const FANOUT: usize = 1 << FANOUT_BITS;

#[derive(Clone)]
enum Node {
    Inner(Arc<[Option<Node>; FANOUT]>),
    Leaf(Arc<[Option<BlockSlice>; FANOUT]>),
}

impl Node {
    fn empty(level: u32) -> Self {
        match level {
            0 => Self::Leaf(Arc::new([const { None }; FANOUT])),
            _ => Self::Inner(Arc::new([const { None }; FANOUT])),
        }
    }
}

/// What a disk of a fixed length holds.
#[derive(Clone)]
pub struct Image {
    root: Option<Node>,
    height: u32,
    blocks: u64,
}

impl Image {
    /// `blocks` blocks of zeros.
    pub fn zeroed(blocks: u64) -> Self {
        let mut height = 0;
        while (height + 1) * FANOUT_BITS < u64::BITS && blocks >> ((height + 1) * FANOUT_BITS) > 0 {
            height += 1;
        }
        Self { root: None, height, blocks }
    }

    /// Length in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The block at `addr`, or `None` if it was never written.
    pub fn block(&self, addr: BlockAddr) -> Option<&BlockSlice> {
        assert!(addr.0 < self.blocks, "{addr} of an image of {} blocks", self.blocks);
        let mut node = self.root.as_ref()?;
        let mut level = self.height;
        loop {
            let index = slot_index(addr, level);
            match node {
                Node::Inner(children) => node = children[index].as_ref()?,
                Node::Leaf(blocks) => return blocks[index].as_ref(),
            }
            level -= 1;
        }
    }

    /// The bytes of `count` blocks from `addr` on.
    pub fn read(&self, addr: BlockAddr, count: usize) -> Blocks {
        let mut read = Blocks::zeroed(count);
        for (index, into) in read.bytes_mut().chunks_mut(BLOCK_SIZE).enumerate() {
            if let Some(block) = self.block(addr.plus(index as u64)) {
                into.copy_from_slice(block.bytes());
            }
        }
        read
    }

    /// Puts one block in place.
    pub fn put(&mut self, addr: BlockAddr, block: BlockSlice) {
        assert!(addr.0 < self.blocks, "{addr} of an image of {} blocks", self.blocks);
        assert_eq!(block.count(), 1, "blocks put at {addr}");
        let mut place = &mut self.root;
        let mut level = self.height;
        loop {
            let index = slot_index(addr, level);
            match place.get_or_insert_with(|| Node::empty(level)) {
                Node::Inner(children) => place = &mut Arc::make_mut(children)[index],
                Node::Leaf(blocks) => {
                    Arc::make_mut(blocks)[index] = Some(block);
                    return;
                }
            }
            level -= 1;
        }
    }
}

fn slot_index(addr: BlockAddr, level: u32) -> usize {
    (addr.0 >> (level * FANOUT_BITS)) as usize % FANOUT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> BlockSlice {
        BlockSlice::new(Blocks::from_bytes(&[byte; BLOCK_SIZE]))
    }

    #[test]
    fn a_fork_and_its_origin_do_not_see_each_other() {
        for blocks in [1, 31, 32, 33, 1024, 1025, 1 << 40] {
            let mut origin = Image::zeroed(blocks);
            origin.put(BlockAddr(blocks - 1), block(1));
            let mut fork = origin.clone();
            fork.put(BlockAddr(blocks - 1), block(2));
            origin.put(BlockAddr(0), block(3));
            assert_eq!(fork.read(BlockAddr(blocks - 1), 1).bytes()[0], 2);
            let kept = if blocks == 1 { 3 } else { 1 };
            assert_eq!(origin.read(BlockAddr(blocks - 1), 1).bytes()[0], kept);
            if blocks > 1 {
                assert_eq!(fork.read(BlockAddr(0), 1).bytes()[0], 0);
            }
        }
    }
}
