//! The items of a node, read where they stand.
//!
//! ```text
//!   | slot 0 | slot 1 | ... | slot n-1 | value 0 | value 1 | ... | value n-1 | zeros |
//!     key, 0's end  ---------------------------->|
//!              key, 1's end ------------------------------->|
//! ```
//!
//! Checked once, before anybody reads them, and relied on afterwards:
//!
//! - keys ascend strictly;
//! - ends never descend, stay within the heap, and make no value longer than it may be;
//! - a child is where a node can be, and not younger than its parent;
//! - nothing but zeros follows the last item.

use gabion_base::ids::Txg;

use crate::format::node::slot::{INTERIOR_SLOT, ItemKey, KEY_SIZE, LEAF_SLOT, NodePtr, slot_size};
use crate::format::node::{HEADER_SIZE, NODE_SIZE};
use crate::txn::VALUE_LENGTH_MAX;

/// What follows the last item. Comparing with it is many times faster than a look at each byte.
static ZEROS: [u8; NODE_SIZE] = [0; NODE_SIZE];

/// The items of a node, to be read in place.
#[derive(Clone, Copy)]
pub struct Items<'a> {
    level: u8,
    slots: &'a [u8],
    heap: &'a [u8],
}

impl<'a> Items<'a> {
    /// How many there are; never 0 in a node that was decoded or built.
    pub fn count(&self) -> usize {
        self.slots.len() / slot_size(self.level)
    }

    /// Bytes of the node that they use.
    pub fn used(&self) -> usize {
        self.slots.len() + if self.level == 0 { self.end(self.count() - 1) } else { 0 }
    }

    /// The key of item `index`. Panics past the end, as all accessors do.
    pub fn key(&self, index: usize) -> ItemKey {
        ItemKey::from_bytes(self.part(index, 0))
    }

    /// The value of a leaf's item `index`.
    pub fn value(&self, index: usize) -> &'a [u8] {
        assert_eq!(self.level, 0, "only leaves hold values");
        let start = if index == 0 { 0 } else { self.end(index - 1) };
        &self.heap[start..self.end(index)]
    }

    /// Child `index` of an interior node.
    pub fn child(&self, index: usize) -> NodePtr {
        assert_ne!(self.level, 0, "leaves have no children");
        NodePtr::from_bytes(self.part(index, KEY_SIZE))
    }

    /// The last item at or before `key`.
    pub fn at_or_before(&self, key: ItemKey) -> Option<usize> {
        if self.level == 0 {
            at_or_before::<LEAF_SLOT>(self.slots, key)
        } else {
            at_or_before::<INTERIOR_SLOT>(self.slots, key)
        }
    }

    /// The item at `key`.
    pub fn find(&self, key: ItemKey) -> Option<usize> {
        self.at_or_before(key).filter(|index| self.key(*index) == key)
    }

    /// Where a leaf's value `index` ends in the heap.
    fn end(&self, index: usize) -> usize {
        usize::from(u16::from_le_bytes(*self.part(index, KEY_SIZE)))
    }

    /// `N` bytes of slot `index` from `at` on.
    fn part<const N: usize>(&self, index: usize, at: usize) -> &'a [u8; N] {
        let slot = &self.slots[index * slot_size(self.level) + at..];
        slot.first_chunk().expect("the slots hold a whole number of slots")
    }

    /// The reason why this cannot be what a node of `birth` holds.
    pub(super) fn check(&self, birth: Txg) -> Result<(), &'static str> {
        let mut end = 0;
        for index in 0..self.count() {
            if index > 0 && self.key(index - 1) >= self.key(index) {
                return Err("keys out of order");
            }
            if self.level == 0 {
                let start = std::mem::replace(&mut end, self.end(index));
                if end < start || end - start > VALUE_LENGTH_MAX || end > self.heap.len() {
                    return Err("a value out of bounds");
                }
            } else {
                let child = self.child(index);
                if !child.is_possible() || child.birth > birth {
                    return Err("an impossible child");
                }
            }
        }
        let rest = &self.heap[end..];
        if rest != &ZEROS[..rest.len()] {
            return Err("bytes after the last item");
        }
        Ok(())
    }
}

/// Binary search over slots of `N` bytes.
fn at_or_before<const N: usize>(slots: &[u8], key: ItemKey) -> Option<usize> {
    let (slots, _) = slots.as_chunks::<N>();
    let key_of = |slot: &[u8; N]| {
        ItemKey::from_bytes(slot.first_chunk().expect("a slot starts with a whole key"))
    };
    slots.partition_point(|slot| key_of(slot) <= key).checked_sub(1)
}

/// The items in a node's bytes, whose number must have been checked.
pub(super) fn items(bytes: &[u8], level: u8, count: usize) -> Items<'_> {
    let (slots, rest) = bytes[HEADER_SIZE..].split_at(count * slot_size(level));
    Items { level, slots, heap: rest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::Draft;
    use crate::format::node::tests::{
        expected, forge, key, reason, sample_interior, sample_leaf, seal,
    };

    #[test]
    fn search_finds_the_neighbour_below() {
        let keys = [key(3), key(6), key(9)];
        let node = seal(Draft::leaf(&keys.map(|key| (key, &b"v"[..]))));
        let items = node.items();
        assert_eq!(items.at_or_before(key(2)), None);
        assert_eq!(items.at_or_before(key(3)), Some(0));
        assert_eq!(items.at_or_before(key(8)), Some(1));
        assert_eq!(items.at_or_before(key(100)), Some(2));
        assert_eq!(items.find(key(8)), None);
    }

    #[test]
    fn impossible_items_are_refused_with_their_reason() {
        let node = sample_leaf();
        let forged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = node.blocks().bytes().to_vec();
            change(&mut bytes);
            let (bytes, expected) = forge(bytes, &expected(&node));
            reason(&bytes, &expected)
        };
        assert_eq!(forged(&|b| b[52..54].fill(0)), "impossible number of items");
        assert_eq!(forged(&|b| b[52..54].fill(0xff)), "impossible number of items");
        assert_eq!(forged(&|b| b[60] = 1), "reserved bytes");
        assert_eq!(forged(&|b| b[7] = 1), "unknown flags");
        assert_eq!(forged(&|b| b[64] = 0xff), "keys out of order");
        assert_eq!(forged(&|b| b[64 + 18] = 0x7f), "a value out of bounds");
        assert_eq!(forged(&|b| b[NODE_SIZE - 1] = 1), "bytes after the last item");
        let node = sample_interior();
        let mut bytes = node.blocks().bytes().to_vec();
        bytes[64 + 17 + 8] = 10;
        let (bytes, expected) = forge(bytes, &expected(&node));
        assert_eq!(reason(&bytes, &expected), "an impossible child");
    }
}
