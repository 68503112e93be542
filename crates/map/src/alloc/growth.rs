//! How the map comes to have more groups, by one commit.
//!
//! 1. The end of the old layout becomes free with the commit: the old tail slots, and what the
//!    last group had no blocks for, as far as the new layout has no use for it. To the groups
//!    they are blocks that the commit retires ([`Allocator::free_end`]).
//! 2. The commit's tables list the new groups as never written ([`Allocator::lengthen`]). So the
//!    commit writes nothing behind the old end, and over no slot of the old tail.
//! 3. Once it is durable, the new groups can be used ([`Allocator::publish`]).
//!
//! A last group without a usable block was never written, and the old tail may lie over its page.
//! It is treated like the new ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_base::ids::{BlockAddr, Txg};

use crate::alloc::Allocator;
use crate::alloc::pages::{free_below, initial_bitmap, initial_ref};
use crate::error::MapError;
use crate::format::alloc::PageRef;
use crate::format::journal::Run;
use crate::layout::{GROUP_BLOCKS, Layout, TABLE_ENTRIES};

impl Allocator {
    /// The commit `txg` and later ones have the layout `grown`: what stood at the end until then
    /// is free afterwards.
    pub fn free_end(&self, grown: &Layout, txg: Txg) -> Result<(), MapError> {
        let layout = self.layout();
        for group in layout.groups.saturating_sub(2)..first_new(&layout) {
            let (before, after) = (initial_bitmap(&layout, group), initial_bitmap(grown, group));
            for (start, count) in before.runs_beyond(&after) {
                let addr = BlockAddr(group * GROUP_BLOCKS + start);
                let run = Run { addr, count: count as u32 };
                self.retire_in(group as usize, start, run, txg)?;
            }
        }
        Ok(())
    }

    /// Adds the references of the layout `grown`. Returns the groups whose table page changed for
    /// that.
    pub(super) fn lengthen(&self, tables: &mut [Vec<PageRef>], grown: &Layout) -> Vec<usize> {
        let layout = self.layout();
        tables[0].truncate(first_new(&layout) as usize);
        let new = first_new(&layout)..grown.groups;
        tables[0].extend(new.map(|group| initial_ref(grown, group)));
        for level in 0..grown.tables.len() {
            let (below, pages) = tables.split_at_mut(level + 1);
            let known = pages[0].len() * TABLE_ENTRIES as usize;
            let children = below[level].get(known..).unwrap_or_default();
            let new = children.chunks(TABLE_ENTRIES as usize);
            pages[0]
                .extend(new.map(|page| PageRef { free: free_below(page), ..PageRef::default() }));
        }
        // Pages that list new groups only are never written, as those are.
        (layout.groups.saturating_sub(2) as usize..layout.groups as usize).collect()
    }

    /// The commit that has the layout `grown` is durable: its blocks can be given out.
    pub fn publish(&self, grown: Layout) {
        let tables = self.tables.lock();
        let first = first_new(&self.layout()) as usize;
        let new = tables[0].iter().enumerate().skip(first);
        let (mut free, mut clusters) = (0, 0);
        for (index, page) in new {
            self.hint(index, page.free, u32::from(page.clusters));
            free += i64::from(page.free);
            clusters += i64::from(page.clusters);
        }
        self.layout.store(Arc::new(grown));
        self.free.fetch_add(free, Ordering::AcqRel);
        self.after_commit.fetch_add(free, Ordering::AcqRel);
        self.clusters.fetch_add(clusters, Ordering::AcqRel);
    }
}

/// The first group that is taken for a new one.
fn first_new(layout: &Layout) -> u64 {
    let last = layout.groups - 1;
    if layout.usable_blocks(last) == 0 { last } else { layout.groups }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gabion_base::disk::{Disk, MemDisk};
    use gabion_base::ids::Uuid;

    use super::*;
    use crate::alloc::Purpose;
    use crate::layout::LaidOut;

    const UUID: Uuid = Uuid([3; 16]);

    fn layout(blocks: u64) -> Layout {
        Layout::new(blocks, LaidOut::with_room(blocks)).expect("large enough")
    }

    /// Every way in which an old and a new end may lie to the ends of groups.
    #[test]
    fn a_grown_map_is_that_of_a_new_filesystem_of_its_length() {
        let ends = [0, 1, 3, 8, 10, 11, 16_384];
        for old in ends {
            for new in ends {
                let old = 2 * GROUP_BLOCKS + old;
                for new in [2, 4].map(|groups| groups * GROUP_BLOCKS + new) {
                    if new > old {
                        grow_and_compare(old, new);
                    }
                }
            }
        }
    }

    fn grow_and_compare(old: u64, new: u64) {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(6 * GROUP_BLOCKS));
        let before = layout(old);
        let grown = before.grown(new).expect("within reach");
        let map = Allocator::format(Arc::clone(&disk), UUID, before);
        let node = map.allocate(Purpose::Node).expect("room");
        map.own(node, Txg(1)).expect("allocated");
        map.capture(Txg(1), None).expect("a working disk");

        map.free_end(&grown, Txg(2)).expect("fixed structures are in use");
        let captured = map.capture(Txg(2), Some(&grown)).expect("a working disk");
        map.publish(grown.clone());
        map.release(Txg(2)).expect("retired");

        let fresh = Allocator::format(Arc::clone(&disk), UUID, grown.clone());
        let opened = Allocator::open(disk, UUID, grown.clone(), captured.top, Txg(2));
        let opened = opened.expect("what was written");
        let what = format!("from {old} to {new}");
        assert_eq!(map.free().now, fresh.free().now - 4, "{what}");
        assert_eq!(map.free().now, map.free().after_commit, "{what}");
        assert_eq!(opened.free(), map.free(), "{what}");
        assert_eq!(captured.free, map.free().now as u64, "{what}");
        let clusters = |map: &Allocator| map.clusters.load(Ordering::Relaxed);
        assert_eq!(clusters(&map), clusters(&fresh) - 1, "{what}");
        assert_eq!(clusters(&opened), clusters(&map), "{what}");
        // Everything that is free can be given out, and read back.
        let mut given = 0;
        while let Ok(run) = map.allocate(Purpose::Data { count: 32_768, hint: 0 }) {
            map.own(run, Txg(3)).expect("allocated");
            given += i64::from(run.count);
        }
        assert_eq!(given, fresh.free().now - 4, "{what}");
        map.capture(Txg(3), None).expect("a working disk");
        for group in 0..grown.groups {
            let bitmap = map.committed_bitmap(group).expect("just written");
            let unused = GROUP_BLOCKS - bitmap.count_set();
            assert_eq!(unused, 0, "{what}, group {group}");
        }
    }
}
