//! Buffers of whole blocks, aligned for direct I/O and shared without copying.
//!
//! - [`Blocks`] owns a run of blocks; its memory is aligned to [`BLOCK_SIZE`], so it can be handed
//!   to a device that is open for direct I/O.
//! - [`BlockSlice`] is a part of a shared `Blocks`, in whole blocks. A write to disk, a dirty
//!   range in the cache and a snapshot of it for the commit all share one memory.
//!
//! Invariant: `start + count <= blocks.count()` for every `BlockSlice`, and `count > 0`.

use std::fmt;
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::BLOCK_SIZE;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK_SIZE]);

/// An owned run of blocks, aligned to the block size.
#[derive(Clone)]
pub struct Blocks {
    blocks: Box<[Aligned]>,
}

impl Blocks {
    /// `count` blocks of zeros.
    pub fn zeroed(count: usize) -> Self {
        let blocks = <[Aligned]>::new_box_zeroed_with_elems(count)
            .expect("a block buffer is bounded by its maker, far below the address space");
        Self { blocks }
    }

    /// The bytes, zero-padded to whole blocks.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut blocks = Self::zeroed(bytes.len().div_ceil(BLOCK_SIZE));
        blocks.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        blocks
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        self.blocks.as_bytes()
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.blocks.as_mut_bytes()
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({})", self.count())
    }
}

/// A part of a shared buffer, in whole blocks.
#[derive(Clone)]
pub struct BlockSlice {
    memory: Memory,
    start: usize,
    count: usize,
}

#[derive(Clone)]
enum Memory {
    Own(Arc<Blocks>),
    Adopted(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl BlockSlice {
    /// All of `blocks`, which must not be empty.
    pub fn new(blocks: Blocks) -> Self {
        let count = blocks.count();
        assert!(count > 0, "a slice of an empty buffer");
        Self { memory: Memory::Own(Arc::new(blocks)), start: 0, count }
    }

    /// Takes memory that somebody else allocated, without copying it. Gives it back unless it is
    /// whole blocks, at least one, on a block boundary.
    pub fn adopt<B: AsRef<[u8]> + Send + Sync + 'static>(owner: B) -> Result<Self, B> {
        let bytes = owner.as_ref();
        let length = bytes.len();
        let aligned = bytes.as_ptr().addr().is_multiple_of(BLOCK_SIZE);
        if length == 0 || !length.is_multiple_of(BLOCK_SIZE) || !aligned {
            return Err(owner);
        }
        Ok(Self { memory: Memory::Adopted(Arc::new(owner)), start: 0, count: length / BLOCK_SIZE })
    }

    /// The part from block `start`, `count` blocks long. Panics outside of `self`.
    #[must_use]
    pub fn part(&self, start: usize, count: usize) -> Self {
        assert!(count > 0 && start + count <= self.count, "{start}+{count} of {}", self.count);
        Self { memory: self.memory.clone(), start: self.start + start, count }
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bytes of this part.
    pub fn bytes(&self) -> &[u8] {
        let all = match &self.memory {
            Memory::Own(blocks) => blocks.bytes(),
            Memory::Adopted(owner) => (**owner).as_ref(),
        };
        &all[self.start * BLOCK_SIZE..(self.start + self.count) * BLOCK_SIZE]
    }

    /// Whether both are the same part of the same memory, hence the same bytes.
    pub fn same(&self, other: &Self) -> bool {
        self.is_part_of(other, 0) && self.count == other.count
    }

    /// Whether `self` starts in the same memory at `block` blocks into `other`'s.
    pub fn is_part_of(&self, other: &Self, block: usize) -> bool {
        let same_memory = match (&self.memory, &other.memory) {
            (Memory::Own(ours), Memory::Own(theirs)) => Arc::ptr_eq(ours, theirs),
            (Memory::Adopted(ours), Memory::Adopted(theirs)) => {
                std::ptr::addr_eq(Arc::as_ptr(ours), Arc::as_ptr(theirs))
            }
            _ => false,
        };
        same_memory && self.start == other.start + block
    }
}

impl fmt::Debug for BlockSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockSlice({}+{})", self.start, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_padded() {
        let blocks = Blocks::from_bytes(&[1; BLOCK_SIZE + 1]);
        assert_eq!(blocks.count(), 2);
        assert_eq!(blocks.bytes().as_ptr() as usize % BLOCK_SIZE, 0);
        assert_eq!(&blocks.bytes()[BLOCK_SIZE..BLOCK_SIZE + 2], &[1, 0]);
    }

    #[test]
    fn parts_share_the_memory_they_come_from() {
        let slice = BlockSlice::new(Blocks::zeroed(2));
        let part = slice.part(1, 1);
        assert!(part.is_part_of(&slice, 1) && !part.is_part_of(&slice, 0));
        assert!(!slice.is_part_of(&BlockSlice::new(Blocks::zeroed(2)), 0));
    }

    #[test]
    fn only_whole_aligned_blocks_are_adopted() {
        struct Shifted(Blocks, usize);
        impl AsRef<[u8]> for Shifted {
            fn as_ref(&self) -> &[u8] {
                &self.0.bytes()[self.1..]
            }
        }
        let adopted = BlockSlice::adopt(Shifted(Blocks::from_bytes(&[9; 8192]), 4096));
        let adopted = adopted.unwrap_or_else(|_| panic!("it is whole and aligned"));
        assert_eq!((adopted.count(), adopted.bytes()[0]), (1, 9));
        assert!(adopted.part(0, 1).is_part_of(&adopted, 0));
        assert!(BlockSlice::adopt(Shifted(Blocks::zeroed(2), 1)).is_err());
        assert!(BlockSlice::adopt(Vec::new()).is_err());
    }
}
