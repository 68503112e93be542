//! The allocation map as it is on disk: references to pages, and pages that are right.
//!
//! - A reference that was never written stands for what a new filesystem has there: everything is
//!   free but the fixed structures. So formatting writes no page, whatever the size of the device.
//! - A page is right if its checksum is the one that its reference holds, as its count of free
//!   blocks and clusters is. [`copies`] tries what copies of it the disk has.
//! - The fixed structures are in use in every page; no group has more free than it has blocks.
//!
//! Nothing here is kept: whoever loads a page decides how long it stays in memory.

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::Disk;
use gabion_base::ids::{BlockAddr, Uuid};

use crate::alloc::group::Bitmap;
use crate::copies;
use crate::error::MapError;
use crate::format::alloc::{PageCopy, PageRef, decode_table, page_checksum};
use crate::layout::{GROUP_BLOCKS, Layout, TABLE_ENTRIES};

pub(super) fn load_table_level(
    disk: &dyn Disk,
    uuid: Uuid,
    layout: &Layout,
    level: usize,
    pages: &[PageRef],
    children: u64,
) -> Result<Vec<PageRef>, MapError> {
    let mut refs = Vec::new();
    for (index, page_ref) in pages.iter().enumerate() {
        let first = index as u64 * TABLE_ENTRIES;
        let count = TABLE_ENTRIES.min(children - first);
        let place = layout.table_page(level, index as u64);
        let Some(addr) = page_ref.current(place) else {
            refs.extend((first..first + count).map(|child| {
                if level == 0 { initial_ref(layout, child) } else { PageRef::default() }
            }));
            continue;
        };
        let corrupt = |reason| MapError::Corrupt { structure: "allocation table", addr, reason };
        let page = read_page(disk, uuid, addr, page_ref.checksum, corrupt)?;
        let decoded = decode_table(page.bytes(), level as u8 + 1, count as usize)
            .map_err(|_| corrupt("it cannot be decoded"))?;
        debug_assert_eq!(decoded.len() as u64, count);
        let groups = first..first + count;
        if level == 0
            && !groups.zip(&decoded).all(|(group, child)| is_possible(layout, group, child))
        {
            return Err(corrupt("a group has more free blocks than blocks"));
        }
        refs.extend(decoded);
    }
    Ok(refs)
}

pub(super) fn load_bitmap(
    disk: &dyn Disk,
    uuid: Uuid,
    layout: &Layout,
    group: u64,
    page_ref: PageRef,
) -> Result<Bitmap, MapError> {
    let place = layout.bitmap_page(group);
    let Some(addr) = page_ref.current(place) else { return Ok(initial_bitmap(layout, group)) };
    let corrupt = |reason| MapError::Corrupt { structure: "allocation page", addr, reason };
    let page = read_page(disk, uuid, addr, page_ref.checksum, corrupt)?;
    let bitmap = Bitmap::from_page(page.bytes());
    if GROUP_BLOCKS - bitmap.count_set() != u64::from(page_ref.free)
        || bitmap.count_clusters() != u64::from(page_ref.clusters)
    {
        return Err(corrupt("its free blocks are not as many as its parent says"));
    }
    let fixed = initial_bitmap(layout, group);
    if !bitmap.contains(&fixed) {
        return Err(corrupt("fixed structures are marked as free"));
    }
    Ok(bitmap)
}

fn read_page(
    disk: &dyn Disk,
    uuid: Uuid,
    addr: BlockAddr,
    checksum: u64,
    corrupt: impl Fn(&'static str) -> MapError,
) -> Result<BlockSlice, MapError> {
    copies::read_right(disk, addr, 1, |page| match page_checksum(uuid, addr, page.bytes()) {
        found if found == checksum => Ok(page.clone()),
        _ => Err(corrupt("its checksum does not match")),
    })
}

/// Whether a group's bitmap may be as its reference says.
fn is_possible(layout: &Layout, group: u64, found: &PageRef) -> bool {
    let most = initial_ref(layout, group);
    match found.copy {
        PageCopy::Unwritten => found.free == most.free && found.clusters == most.clusters,
        PageCopy::A | PageCopy::B => found.free <= most.free && found.clusters <= most.clusters,
    }
}

/// Free blocks below a table page. Past 16 TiB there are more than the field can say; nothing
/// but the counts of groups is relied on.
pub(super) fn free_below(children: &[PageRef]) -> u32 {
    children.iter().fold(0, |sum, child| sum.saturating_add(child.free))
}

pub(super) fn initial_ref(layout: &Layout, group: u64) -> PageRef {
    // All groups but the first and the last two look the same: count one of them only once.
    if group > 0 && group + 2 < layout.groups {
        let free = GROUP_BLOCKS as u32 - 2;
        return PageRef { free, clusters: (free / 4) as u16, ..PageRef::default() };
    }
    let bitmap = initial_bitmap(layout, group);
    PageRef {
        free: (GROUP_BLOCKS - bitmap.count_set()) as u32,
        clusters: bitmap.count_clusters() as u16,
        ..PageRef::default()
    }
}

pub(super) fn initial_bitmap(layout: &Layout, group: u64) -> Bitmap {
    let mut bitmap = Bitmap::empty();
    let length = layout.group_blocks(group);
    if length < GROUP_BLOCKS {
        bitmap.set(length, GROUP_BLOCKS - length);
    }
    for (start, count) in layout.fixed_runs(group) {
        for block in start..(start + count).min(GROUP_BLOCKS) {
            if !bitmap.is_set(block) {
                bitmap.set(block, 1);
            }
        }
    }
    bitmap
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gabion_base::disk::MemDisk;

    use super::*;
    use crate::alloc::Allocator;
    use crate::layout::LaidOut;

    #[test]
    fn the_largest_devices_have_more_free_blocks_than_a_page_can_say() {
        let blocks = 1 << 33;
        let layout = Layout::new(blocks, LaidOut::with_room(blocks)).expect("large enough");
        let disk = Arc::new(MemDisk::new(1));
        let map = Allocator::format(disk, Uuid([3; 16]), layout);
        assert!(map.free().now > i64::from(u32::MAX));
        let tables = map.tables.lock();
        assert_eq!(tables.last().map(|top| top[0].free), Some(u32::MAX));
    }
}
