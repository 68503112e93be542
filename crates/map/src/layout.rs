//! Where the fixed structures stand on a device of a given length.
//!
//! ```text
//! block 0        16       24            t           j                         end-8     end
//!       | unused | head   | table pages | bitmap of | journal | data and ...  | tail    |
//!       | (boot) | slots  | A B A B ..  | group 0   | ring    | nodes         | slots   |
//!
//! group g > 0:   | bitmap page A | bitmap page B | data and nodes ...                   |
//! ```
//!
//! A group is 32,768 blocks (128 MiB) and has a bitmap page with one bit a block. Table pages list
//! the bitmap pages of 255 groups each, higher table pages list 255 lower ones; the only page of
//! the highest level is listed in the superblock. Every page has two places, A and B, side by
//! side. All of it follows from the number of blocks, so a superblock only records that number.

use gabion_base::ids::BlockAddr;

use crate::error::MapError;

/// Blocks in an allocation group: as many as a page has bits.
pub const GROUP_BLOCKS: u64 = 32_768;
/// Children that one table page lists.
pub const TABLE_ENTRIES: u64 = 255;
/// Slots of the superblock ring at the head, and as many at the tail.
pub const SLOTS_EACH_END: u64 = 8;
/// First block of the head slots: byte 65,536, past every boot sector and partition table.
pub const HEAD_SLOTS: u64 = 16;
/// The least number of blocks (16 MiB): room for the fixed structures, the reserve and some files.
pub const BLOCKS_MIN: u64 = 4096;
/// The greatest number of blocks (1 PiB): three levels of table pages reach further.
pub const BLOCKS_MAX: u64 = 1 << 38;
/// The journal's length in blocks lies between these (1 MiB and 32 MiB), and is 1/64 of the
/// device between them: replaying 32 MiB takes well under a second.
const JOURNAL_BLOCKS: (u64, u64) = (256, 8192);
/// The reserve that only removal and commits may use, in clusters of 16 KiB: 1/32 of the device
/// between 1 MiB and 256 MiB. A commit is forced before it could need more than half of it.
const RESERVE_CLUSTERS: (u64, u64) = (64, 16_384);

/// The places of all fixed structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the filesystem.
    pub blocks: u64,
    /// Number of allocation groups; the last may be short.
    pub groups: u64,
    /// Pages of each level of tables, lowest first; the last has one page.
    pub tables: Vec<u64>,
    /// First block of the journal ring.
    pub journal: BlockAddr,
    /// Length of the journal ring.
    pub journal_blocks: u64,
    /// Clusters of four blocks kept for removal and commits.
    pub reserve_clusters: u64,
}

impl Layout {
    /// The layout of a filesystem of `blocks` blocks.
    pub fn new(blocks: u64) -> Result<Self, MapError> {
        if blocks < BLOCKS_MIN {
            return Err(MapError::TooSmall { blocks, minimum: BLOCKS_MIN });
        }
        let blocks = blocks.min(BLOCKS_MAX);
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let mut tables = vec![groups.div_ceil(TABLE_ENTRIES)];
        while let Some(below) = tables.last().copied().filter(|pages| *pages > 1) {
            tables.push(below.div_ceil(TABLE_ENTRIES));
        }
        let table_pages: u64 = tables.iter().sum();
        let journal = HEAD_SLOTS + SLOTS_EACH_END + 2 * table_pages + 2;
        let journal_blocks = (blocks / 64).clamp(JOURNAL_BLOCKS.0, JOURNAL_BLOCKS.1);
        let reserve_clusters = (blocks / 128).clamp(RESERVE_CLUSTERS.0, RESERVE_CLUSTERS.1);
        let journal = BlockAddr(journal);
        Ok(Self { blocks, groups, tables, journal, journal_blocks, reserve_clusters })
    }

    /// Where the superblock of slot `slot` stands: even slots at the head, odd ones at the tail.
    pub fn slot(&self, slot: u64) -> BlockAddr {
        let index = slot / 2 % SLOTS_EACH_END;
        if slot.is_multiple_of(2) {
            BlockAddr(HEAD_SLOTS + index)
        } else {
            BlockAddr(self.blocks - SLOTS_EACH_END + index)
        }
    }

    /// Number of slots.
    pub const fn slots() -> u64 {
        2 * SLOTS_EACH_END
    }

    /// Where copy A of page `index` of table level `level` (0 lowest) stands; B is the next block.
    pub fn table_page(&self, level: usize, index: u64) -> BlockAddr {
        let before: u64 = self.tables[..level].iter().sum();
        BlockAddr(HEAD_SLOTS + SLOTS_EACH_END + 2 * (before + index))
    }

    /// Where copy A of the bitmap page of `group` stands; B is the next block.
    pub fn bitmap_page(&self, group: u64) -> BlockAddr {
        if group == 0 { BlockAddr(self.journal.0 - 2) } else { BlockAddr(group * GROUP_BLOCKS) }
    }

    /// Blocks of `group` that exist on the device.
    pub fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }

    /// Runs of blocks (offset in the group, count) of `group` that fixed structures occupy.
    pub fn fixed_runs(&self, group: u64) -> Vec<(u64, u64)> {
        let mut runs = Vec::with_capacity(2);
        if group == 0 {
            runs.push((0, self.journal.0 + self.journal_blocks));
        } else {
            runs.push((0, 2));
        }
        let tail = self.blocks - SLOTS_EACH_END;
        let start = group * GROUP_BLOCKS;
        let from = tail.max(start);
        let to = self.blocks.min(start + GROUP_BLOCKS);
        if from < to {
            runs.push((from - start, to - from));
        }
        runs
    }

    /// Blocks of `group` that can hold nodes and data.
    pub fn usable_blocks(&self, group: u64) -> u64 {
        let length = self.group_blocks(group);
        // In a last group of one or two blocks the fixed runs overlap: nothing is usable then.
        let fixed: u64 = self.fixed_runs(group).iter().map(|run| run.1).sum();
        length.saturating_sub(fixed)
    }

    /// Whether `addr..addr + count` lies on the device.
    pub fn contains(&self, addr: BlockAddr, count: u64) -> bool {
        addr.0.checked_add(count).is_some_and(|end| end <= self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_structures_do_not_overlap() {
        for blocks in [4096, 16_384, 32_769, 32_780, 1 << 24, (1 << 24) + 5, 1 << 35] {
            let layout = Layout::new(blocks).expect("large enough");
            assert!(layout.journal.0 + layout.journal_blocks < GROUP_BLOCKS.min(blocks - 8));
            let top = layout.tables.len() - 1;
            assert_eq!(layout.tables[top], 1);
            assert_eq!(layout.table_page(top, 0).0 + 2, layout.bitmap_page(0).0);
            let slots: std::collections::BTreeSet<_> =
                (0..Layout::slots()).map(|slot| layout.slot(slot)).collect();
            assert_eq!(slots.len() as u64, Layout::slots());
            for group in [0, layout.groups - 1] {
                assert!(layout.usable_blocks(group) < GROUP_BLOCKS);
            }
        }
    }

    #[test]
    fn a_device_that_is_too_small_is_refused() {
        assert!(matches!(Layout::new(4095), Err(MapError::TooSmall { .. })));
    }
}
