//! What a commit writes of the allocation map: the pages of the groups that changed.
//!
//! 1. Each group that changed gives its page: blocks in use by the commit's trees, nothing else.
//! 2. Its reference changes, so the table that holds it is written, and so on up to the top one.
//! 3. All writes are waited for, without a flush: the superblock of the commit comes after one.
//! 4. Groups let in what was kept out of their pages, because it belongs to the transaction group
//!    after the commit (see [`crate::alloc::group`]), and wait for the next commit if there was
//!    any.
//!
//! Every page has two places and alternates between them, so a commit that is never finished
//! leaves the pages of the last one as they were.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskRequest, Durability, Ticket};
use gabion_base::ids::{BlockAddr, Txg};

use crate::alloc::Allocator;
use crate::alloc::pages::free_below;
use crate::error::MapError;
use crate::format::alloc::{PageRef, encode_table, page_checksum};
use crate::layout::{GROUP_BLOCKS, Layout, TABLE_ENTRIES};

/// What a commit's superblock says about the allocation map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedMap {
    /// The highest table page.
    pub top: PageRef,
    /// Free blocks as of the commit.
    pub free: u64,
}

impl Allocator {
    /// Writes the pages of commit `txg` (without a flush), by which the filesystem gets the layout
    /// `grown` if there is one. No allocation or retirement for `txg` may come any more.
    pub fn capture(&self, txg: Txg, grown: Option<&Layout>) -> Result<CapturedMap, MapError> {
        assert_eq!(txg, self.captured().next(), "commits come in order");
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let mut tickets = Vec::new();
        let mut tables = self.tables.lock();
        let layout = self.layout.load();
        for index in &dirty {
            let mut slot = self.load_with(*index, &tables)?;
            let group = slot.as_mut().expect("just loaded");
            if !group.dirty {
                continue;
            }
            group.dirty = false;
            let bitmap = group.next();
            let free = (GROUP_BLOCKS - bitmap.count_set()) as u32;
            let clusters = bitmap.count_clusters() as u16;
            let page = bitmap.to_page();
            drop(slot);
            let place = layout.bitmap_page(*index as u64);
            let page_ref = &mut tables[0][*index];
            *page_ref = self.submit_page(*page_ref, place, page, &mut tickets);
            (page_ref.free, page_ref.clusters) = (free, clusters);
        }
        let mut changed = dirty;
        if let Some(grown) = grown {
            changed.extend(self.lengthen(&mut tables, grown));
        }
        for level in 0..layout.tables.len() {
            let pages: BTreeSet<usize> =
                changed.iter().map(|child| child / TABLE_ENTRIES as usize).collect();
            for index in &pages {
                let first = index * TABLE_ENTRIES as usize;
                let last = (first + TABLE_ENTRIES as usize).min(tables[level].len());
                let children = &tables[level][first..last];
                let free = free_below(children);
                let page = encode_table(level as u8 + 1, txg, children);
                let place = layout.table_page(level, *index as u64);
                let page_ref = &mut tables[level + 1][*index];
                *page_ref = self.submit_page(*page_ref, place, page, &mut tickets);
                page_ref.free = free;
            }
            changed = pages;
        }
        for ticket in tickets {
            ticket.wait()?;
        }
        self.captured.store(txg.0, Ordering::Release);
        self.settle_all();
        let free = tables[0].iter().map(|page| u64::from(page.free)).sum();
        Ok(CapturedMap { top: tables[layout.tables.len()][0], free })
    }

    fn submit_page(
        &self,
        old: PageRef,
        place: BlockAddr,
        page: Vec<u8>,
        tickets: &mut Vec<Ticket>,
    ) -> PageRef {
        let (copy, addr) = old.next_copy(place);
        let checksum = page_checksum(self.uuid, addr, &page);
        let parts = vec![BlockSlice::new(Blocks::from_bytes(&page))];
        let durability = Durability::Cached;
        tickets.push(self.disk.submit(DiskRequest::Write { addr, parts, durability }));
        PageRef { copy, checksum, ..old }
    }

    /// After the pages were captured, what waited for that can be written down.
    fn settle_all(&self) {
        for index in 0..self.count() {
            let mut slot = self.place(index).group.lock();
            if slot.as_mut().is_some_and(|group| group.settle(self.captured())) {
                drop(slot);
                self.mark_dirty(index);
            }
        }
    }

    /// The last commit whose pages are written.
    pub(super) fn captured(&self) -> Txg {
        Txg(self.captured.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::Uuid;

    use super::*;
    use crate::alloc::Purpose;
    use crate::alloc::tests::allocator;

    #[test]
    fn a_commit_does_not_write_what_came_after_its_freeze() {
        let (disk, map) = allocator(4096);
        let room = |count| map.allocate(Purpose::Data { count, hint: 0 }).expect("room");
        let (early, late, node) = (room(4), room(8), room(4));
        map.own(early, Txg(1)).expect("allocated");
        map.own(late, Txg(2)).expect("allocated");
        map.retire(early, Txg(2)).expect("in use");
        map.own(node, Txg(1)).expect("allocated");
        let captured = map.capture(Txg(1), None).expect("a working disk");
        let layout = Layout::clone(&map.layout());
        let again = Allocator::open(disk, Uuid([3; 16]), layout, captured.top, Txg(1));
        let again = again.expect("what was written");
        assert!(again.check_in_use(early).is_ok() && again.check_in_use(node).is_ok());
        assert!(again.check_in_use(late).is_err(), "nothing of this commit references it");
        map.capture(Txg(2), None).expect("a working disk");
        let bitmap = map.committed_bitmap(0).expect("just written");
        assert!(bitmap.all(late.addr.0, 8, true) && bitmap.all(early.addr.0, 4, false));
    }
}
