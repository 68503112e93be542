//! How a mirror divides the devices under it.
//!
//! ```text
//!  block 0                     256
//!  | bitmaps, slot by slot     | data ...                                    |
//!  | intent | copy 0 | copy 1 ..| region 0 | region 1 | ...                  |
//! ```
//!
//! A *region* is what one bit stands for: at least 4 MiB, and as much more as is needed for the
//! bits of a slot to fit into [`PAGES_MAX`] pages.

use gabion_base::ids::BlockAddr;

use crate::copies::{COPIES_MAX, CopyIndex};
use crate::format::bitmap::PAGE_BITS;

/// Blocks at the head of each copy that are the mirror's own.
pub const METADATA_BLOCKS: u64 = 256;
/// Bitmaps: the intent, and one for each copy.
pub const SLOTS: usize = 1 + COPIES_MAX;
/// Pages of a bitmap, at most.
pub const PAGES_MAX: usize = METADATA_BLOCKS as usize / SLOTS;
/// Blocks in a region, at least: 4 MiB.
const REGION_BLOCKS_MIN: u64 = 1024;

/// Which bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Regions in which writes may be under way or not yet durable.
    Intent,
    /// Regions that a copy lacks.
    Missing(CopyIndex),
}

impl Slot {
    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        let missing = (0..COPIES_MAX as u8).map(|copy| Self::Missing(CopyIndex(copy)));
        std::iter::once(Self::Intent).chain(missing)
    }

    /// Its place among the slots.
    pub fn number(self) -> usize {
        match self {
            Self::Intent => 0,
            Self::Missing(copy) => 1 + copy.at(),
        }
    }
}

/// The sizes of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    blocks: u64,
    region_blocks: u64,
}

impl Geometry {
    /// Of a mirror on copies of which the smallest has `blocks` blocks; none if that is too few.
    pub fn of_copies(blocks: u64) -> Option<Self> {
        let blocks = blocks.checked_sub(METADATA_BLOCKS).filter(|blocks| *blocks > 0)?;
        let mut region_blocks = REGION_BLOCKS_MIN;
        while blocks.div_ceil(region_blocks) > (PAGES_MAX * PAGE_BITS) as u64 {
            region_blocks *= 2;
        }
        Some(Self { blocks, region_blocks })
    }

    /// Blocks of data.
    pub fn blocks(self) -> u64 {
        self.blocks
    }

    /// Blocks in a region; the last one may be shorter.
    pub fn region_blocks(self) -> u64 {
        self.region_blocks
    }

    /// Number of regions.
    pub fn regions(self) -> u64 {
        self.blocks.div_ceil(self.region_blocks)
    }

    /// Pages in use of each slot.
    pub fn pages(self) -> usize {
        (self.regions() as usize).div_ceil(PAGE_BITS)
    }

    /// The regions that `count` blocks from `addr` on lie in.
    pub fn regions_of(self, addr: BlockAddr, count: u64) -> std::ops::RangeInclusive<u64> {
        addr.0 / self.region_blocks..=(addr.0 + count.max(1) - 1) / self.region_blocks
    }

    /// First block and length of a region.
    pub fn extent(self, region: u64) -> (BlockAddr, u64) {
        let start = region * self.region_blocks;
        (BlockAddr(start), self.region_blocks.min(self.blocks - start))
    }

    /// Where page `page` of a slot is on each copy.
    pub fn page_addr(self, slot: Slot, page: usize) -> BlockAddr {
        BlockAddr((slot.number() * self.pages() + page) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_fit_whatever_the_size() {
        for blocks in [257, 1 << 20, 1 << 30, 1 << 40, u64::MAX / 4096] {
            let geometry = Geometry::of_copies(blocks).unwrap();
            assert!((geometry.pages() * SLOTS) as u64 <= METADATA_BLOCKS, "{blocks}");
            let (start, length) = geometry.extent(geometry.regions() - 1);
            assert_eq!(start.0 + length, geometry.blocks());
        }
        assert_eq!(Geometry::of_copies(256), None);
    }
}
