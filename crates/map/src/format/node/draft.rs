//! Making nodes.
//!
//! 1. A [`Draft`] takes its items all at once, in order, and is packed from then on: what it will
//!    occupy is known, and it can be read like a node.
//! 2. [`Draft::seal`] gives it a place. Only then is there a checksum, because it covers the place;
//!    and only then can a parent be made, because it holds the checksum.
//!
//! Whoever makes a node has counted the bytes: what does not fit, or is out of order, breaks an
//! invariant.

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::codec::Put;
use gabion_base::ids::{BlockAddr, SubvolId, Txg, Uuid};

use crate::format::node::items::{Items, items};
use crate::format::node::slot::{INTERIOR_SLOT, ItemKey, KEY_SIZE, LEAF_SLOT, NodePtr, slot_size};
use crate::format::node::{
    CHECKSUM_AT, HEADER_SIZE, LEVEL_MAX, MAGIC, NODE_BLOCKS, NODE_CAPACITY, Node, VERSION,
    checksum_of,
};
use crate::txn::VALUE_LENGTH_MAX;

/// Where a finished node goes and who writes it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The filesystem.
    pub uuid: Uuid,
    /// The node's first block.
    pub addr: BlockAddr,
    /// The transaction group.
    pub birth: Txg,
    /// The subvolume.
    pub owner: SubvolId,
}

/// A node that is packed already but has no place yet.
pub struct Draft {
    blocks: Blocks,
    level: u8,
    count: usize,
}

impl Draft {
    /// A leaf of `items`, which must be in order and fit: [`LEAF_SLOT`] bytes each and the value.
    pub fn leaf(items: &[(ItemKey, &[u8])]) -> Self {
        let mut draft = Self::empty(0, items.len());
        let (slots, heap) =
            draft.blocks.bytes_mut()[HEADER_SIZE..].split_at_mut(items.len() * LEAF_SLOT);
        let mut end = 0;
        for (slot, (key, value)) in slots.chunks_exact_mut(LEAF_SLOT).zip(items) {
            assert!(value.len() <= VALUE_LENGTH_MAX, "a value of {} bytes", value.len());
            heap[end..end + value.len()].copy_from_slice(value);
            end += value.len();
            slot[..KEY_SIZE].copy_from_slice(&key.to_bytes());
            slot[KEY_SIZE..].copy_from_slice(&(end as u16).to_le_bytes());
        }
        assert!(items.is_sorted_by(|a, b| a.0 < b.0), "items of a leaf in order");
        draft
    }

    /// An interior node of `children` (with the lowest key of each), in order, which must fit:
    /// [`INTERIOR_SLOT`] bytes each.
    pub fn interior(level: u8, children: &[(ItemKey, NodePtr)]) -> Self {
        assert!((1..=LEVEL_MAX).contains(&level), "an interior node of level {level}");
        let mut draft = Self::empty(level, children.len());
        let slots = &mut draft.blocks.bytes_mut()[HEADER_SIZE..];
        for (slot, (key, ptr)) in slots.chunks_exact_mut(INTERIOR_SLOT).zip(children) {
            slot[..KEY_SIZE].copy_from_slice(&key.to_bytes());
            slot[KEY_SIZE..].copy_from_slice(&ptr.to_bytes());
        }
        assert!(children.is_sorted_by(|a, b| a.0 < b.0), "children of a node in order");
        draft
    }

    fn empty(level: u8, count: usize) -> Self {
        assert!(count > 0, "a node without items");
        assert!(count * slot_size(level) <= NODE_CAPACITY, "{count} items do not fit a node");
        Self { blocks: Blocks::zeroed(NODE_BLOCKS), level, count }
    }

    /// Its level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its items.
    pub fn items(&self) -> Items<'_> {
        items(self.blocks.bytes(), self.level, self.count)
    }

    /// Gives the node its place, which makes it final.
    pub fn seal(mut self, place: &Place) -> Node {
        let mut header = Vec::with_capacity(HEADER_SIZE);
        header.put_u32(MAGIC);
        header.put_u16(VERSION);
        header.put_u8(self.level);
        header.put_u8(0);
        header.extend_from_slice(&place.uuid.0);
        header.put_u64(place.addr.0);
        header.put_u64(place.birth.0);
        header.put_u64(0);
        header.put_u32(place.owner.0);
        header.put_u16(self.count as u16);
        header.put_zeros(10);
        let bytes = self.blocks.bytes_mut();
        bytes[..HEADER_SIZE].copy_from_slice(&header);
        let checksum = checksum_of(bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        let ptr = NodePtr { addr: place.addr, birth: place.birth, checksum };
        assert!(ptr.is_possible(), "no node can be at {ptr:?}");
        Node {
            blocks: BlockSlice::new(self.blocks),
            ptr,
            owner: place.owner,
            level: self.level,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::Ino;

    use super::*;
    use crate::format::node::NODE_SIZE;
    use crate::format::node::tests::seal;
    use crate::key::Kind;

    #[test]
    fn the_layout_is_the_documented_one() {
        let item = ItemKey { ino: Ino(0x0102), kind: Kind(6), at: 0x0304 };
        let node = seal(Draft::leaf(&[(item, b"abc")]));
        let bytes = node.blocks().bytes();
        assert_eq!(&bytes[..8], b"GbnN\x01\0\0\0");
        assert_eq!(&bytes[8..24], &[7; 16]);
        assert_eq!(&bytes[24..40], b"\x28\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        assert_eq!(&bytes[40..48], node.ptr().checksum.to_le_bytes());
        assert_eq!(&bytes[48..64], b"\x05\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&bytes[64..83], b"\x02\x01\0\0\0\0\0\0\x06\x04\x03\0\0\0\0\0\0\x03\0");
        assert_eq!(&bytes[83..87], b"abc\0");
        let sizes = (NODE_SIZE, NODE_CAPACITY, LEAF_SLOT, INTERIOR_SLOT, LEVEL_MAX);
        assert_eq!(sizes, (16_384, 16_320, 19, 41, 12));
    }
}
