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
//! side.
//!
//! All of it follows from three numbers, which the superblock records: how many blocks there are,
//! how many the tables were laid out for, and how long the journal is. The first one alone
//! changes when the filesystem grows. Then nothing moves but the tail slots: groups come behind
//! the last one, and pages of tables that were laid out come into use. The tables are all that
//! bounds growth, and room for 64 times the blocks costs one block of 130,000.

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
/// The greatest number of blocks (256 TiB): their table pages and the journal fit into group 0.
pub const BLOCKS_MAX: u64 = 1 << 36;
/// Tables are laid out for so many times the blocks that a new filesystem has.
const ROOM_TO_GROW: u64 = 64;
/// The journal's length in blocks lies between these (1 MiB and 32 MiB), and is 1/64 of the new
/// filesystem between them: replaying 32 MiB takes well under a second.
const JOURNAL_BLOCKS: (u64, u64) = (256, 8192);
/// The reserve that only removal and commits may use, in clusters of 16 KiB: 1/32 of the device
/// between 1 MiB and 256 MiB. A commit is forced before it could need more than half of it.
const RESERVE_CLUSTERS: (u64, u64) = (64, 16_384);

/// What was settled for good when the filesystem was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaidOut {
    /// Blocks that the tables were laid out for.
    pub blocks: u64,
    /// Length of the journal ring.
    pub journal_blocks: u64,
}

impl LaidOut {
    /// What a new filesystem of `blocks` blocks gets.
    pub fn with_room(blocks: u64) -> Self {
        let room = blocks.saturating_mul(ROOM_TO_GROW).min(BLOCKS_MAX);
        Self { blocks: room, ..Self::exactly(blocks) }
    }

    /// What a filesystem of `blocks` blocks has whose superblock says nothing of it: no room
    /// beyond what its last table page has.
    pub fn exactly(blocks: u64) -> Self {
        let journal_blocks = (blocks / 64).clamp(JOURNAL_BLOCKS.0, JOURNAL_BLOCKS.1);
        Self { blocks, journal_blocks }
    }
}

/// The places of all fixed structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the filesystem.
    pub blocks: u64,
    /// Blocks that the tables were laid out for.
    pub laid_out: u64,
    /// Number of allocation groups; the last may be short.
    pub groups: u64,
    /// Pages of each level of tables that there are places for, lowest first; the last has one.
    pub tables: Vec<u64>,
    /// First block of the journal ring.
    pub journal: BlockAddr,
    /// Length of the journal ring.
    pub journal_blocks: u64,
    /// Clusters of four blocks kept for removal and commits.
    pub reserve_clusters: u64,
}

impl Layout {
    /// The layout of a filesystem of `blocks` blocks. Fails if there can be none.
    pub fn new(blocks: u64, laid_out: LaidOut) -> Result<Self, MapError> {
        if blocks < BLOCKS_MIN {
            return Err(MapError::TooSmall { blocks, minimum: BLOCKS_MIN });
        }
        let impossible = |reason| MapError::Corrupt {
            structure: "superblock",
            addr: BlockAddr(HEAD_SLOTS),
            reason,
        };
        let LaidOut { blocks: room, journal_blocks } = laid_out;
        if !(BLOCKS_MIN..=BLOCKS_MAX).contains(&room) {
            return Err(impossible("its tables are laid out for an impossible length"));
        }
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let mut tables = vec![room.div_ceil(GROUP_BLOCKS).div_ceil(TABLE_ENTRIES)];
        while let Some(below) = tables.last().copied().filter(|pages| *pages > 1) {
            tables.push(below.div_ceil(TABLE_ENTRIES));
        }
        let table_pages: u64 = tables.iter().sum();
        let journal = HEAD_SLOTS + SLOTS_EACH_END + 2 * table_pages + 2;
        let reserve_clusters = (blocks / 128).clamp(RESERVE_CLUSTERS.0, RESERVE_CLUSTERS.1);
        let journal = BlockAddr(journal);
        let layout = Self {
            blocks,
            laid_out: room,
            groups,
            tables,
            journal,
            journal_blocks,
            reserve_clusters,
        };
        if blocks > layout.reach() {
            return Err(impossible("its tables do not reach its length"));
        }
        let end = GROUP_BLOCKS.min(blocks - SLOTS_EACH_END);
        let room = end.saturating_sub(layout.journal.0);
        if !(JOURNAL_BLOCKS.0..=JOURNAL_BLOCKS.1.min(room)).contains(&journal_blocks) {
            return Err(impossible("its journal has an impossible length"));
        }
        Ok(layout)
    }

    /// The layout of the same filesystem with `blocks` blocks. Fails if they are fewer than it has
    /// or more than its tables reach.
    pub fn grown(&self, blocks: u64) -> Result<Self, MapError> {
        if blocks < self.blocks {
            return Err(MapError::Shrinking { blocks: self.blocks, wanted: blocks });
        }
        if blocks > self.reach() {
            return Err(MapError::TooFar { wanted: blocks, reach: self.reach() });
        }
        Self::new(blocks, self.laid_out())
    }

    /// What of it never changes.
    pub fn laid_out(&self) -> LaidOut {
        LaidOut { blocks: self.laid_out, journal_blocks: self.journal_blocks }
    }

    /// The most blocks that its tables have places for.
    pub fn reach(&self) -> u64 {
        (self.tables[0] * TABLE_ENTRIES * GROUP_BLOCKS).min(BLOCKS_MAX)
    }

    /// Pages of table level `level` (0 lowest) that are in use, the first ones.
    pub fn table_pages(&self, level: usize) -> u64 {
        (0..=level).fold(self.groups, |below, _| below.div_ceil(TABLE_ENTRIES))
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
    use std::collections::BTreeSet;

    use gabion_base::rng::Rng;

    use super::*;

    /// Lengths at and around all ends of groups and of what a table page lists, and some others.
    fn lengths() -> Vec<u64> {
        let mut lengths = vec![BLOCKS_MIN, 16_384, BLOCKS_MAX];
        let page = TABLE_ENTRIES * GROUP_BLOCKS;
        for at in [GROUP_BLOCKS, 2 * GROUP_BLOCKS, page, 2 * page, TABLE_ENTRIES * page, 1 << 35] {
            lengths.extend(at - 11..=at + 11);
        }
        let mut rng = Rng::new(1);
        lengths.extend((0..200).map(|_| {
            let magnitude = 12 + rng.below(24);
            (1 << magnitude) + rng.below(1 << magnitude)
        }));
        lengths
    }

    fn check(layout: &Layout) {
        let top = layout.tables.len() - 1;
        assert_eq!((layout.tables[top], layout.table_pages(top)), (1, 1), "{layout:?}");
        assert_eq!(layout.table_page(top, 0).0 + 2, layout.bitmap_page(0).0);
        assert_eq!(layout.bitmap_page(0).0 + 2, layout.journal.0);
        let end = layout.journal.0 + layout.journal_blocks;
        assert!(end <= GROUP_BLOCKS.min(layout.blocks - SLOTS_EACH_END), "{layout:?}");
        assert!((0..=top).all(|level| layout.table_pages(level) <= layout.tables[level]));
        let slots: BTreeSet<_> = (0..Layout::slots()).map(|slot| layout.slot(slot)).collect();
        assert_eq!(slots.len() as u64, Layout::slots());
        assert!(slots.iter().all(|slot| slot.0 < layout.blocks));
        // Slots lie where nothing can be given out, and on no page that is written.
        for group in layout.groups.saturating_sub(3)..layout.groups {
            let start = group * GROUP_BLOCKS;
            let fixed = layout.fixed_runs(group);
            let inside = |slot: &&BlockAddr| slot.0 >= start && slot.0 - start < GROUP_BLOCKS;
            for slot in slots.iter().filter(inside) {
                let covers = |run: &(u64, u64)| (run.0..run.0 + run.1).contains(&(slot.0 - start));
                assert!(fixed.iter().any(covers), "{slot} of {layout:?}");
                let page = layout.bitmap_page(group);
                let clear = slot.0 < page.0 || slot.0 > page.0 + 1;
                assert!(clear || layout.usable_blocks(group) == 0, "{slot} of {layout:?}");
            }
        }
    }

    #[test]
    fn fixed_structures_never_overlap() {
        for blocks in lengths() {
            for laid_out in [LaidOut::exactly(blocks), LaidOut::with_room(blocks)] {
                check(&Layout::new(blocks, laid_out).expect("large enough"));
            }
        }
    }

    #[test]
    fn growing_moves_nothing_but_the_end() {
        let mut rng = Rng::new(2);
        for blocks in lengths() {
            let with_room = rng.chance(1, 2);
            let laid_out =
                if with_room { LaidOut::with_room(blocks) } else { LaidOut::exactly(blocks) };
            let before = Layout::new(blocks, laid_out).expect("large enough");
            assert!(!with_room || before.reach() >= BLOCKS_MAX.min(ROOM_TO_GROW * blocks));
            for wanted in [
                blocks + rng.below(2 * SLOTS_EACH_END),
                blocks + rng.below(before.reach() - blocks + 1),
                before.reach(),
            ] {
                let wanted = wanted.min(before.reach());
                let after = before.grown(wanted).expect("within reach");
                check(&after);
                assert_eq!(after.laid_out(), before.laid_out());
                assert_eq!(after.journal, before.journal);
                assert_eq!(after.tables, before.tables);
                assert_eq!(after.reach(), before.reach());
                let heads = (0..Layout::slots()).step_by(2);
                assert!(heads.clone().all(|slot| after.slot(slot) == before.slot(slot)));
                // What was fixed stays so, but for the end.
                for group in before.groups.saturating_sub(3)..before.groups {
                    assert_eq!(after.bitmap_page(group), before.bitmap_page(group));
                    assert!(after.usable_blocks(group) >= before.usable_blocks(group));
                }
            }
            assert!(matches!(
                before.grown(before.reach() + 1),
                Err(MapError::TooFar { reach, .. }) if reach == before.reach()
            ));
            assert!(matches!(before.grown(blocks - 1), Err(MapError::Shrinking { .. })));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let exactly = |blocks| Layout::new(blocks, LaidOut::exactly(blocks));
        assert!(matches!(exactly(4095), Err(MapError::TooSmall { .. })));
        assert!(exactly(BLOCKS_MAX + 1).is_err());
        let new = |blocks, laid_out, journal_blocks| {
            Layout::new(blocks, LaidOut { blocks: laid_out, journal_blocks }).is_ok()
        };
        assert!(new(4096, 4096, 256) && new(8192, 4096, 256));
        assert!(!new(4096, 4096, 255) && !new(1 << 20, 1 << 20, 8193));
        assert!(!new(4096, 4096, 4096) && !new(4096, BLOCKS_MAX, 256));
        assert!(!new(256 * GROUP_BLOCKS, GROUP_BLOCKS, 8192), "further than one table page");
        assert!(!new(4096, 0, 256) && !new(4096, u64::MAX, 256));
    }
}
