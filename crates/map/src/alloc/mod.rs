//! Which blocks are in use: giving them out, taking them back, and writing that down.
//!
//! ```text
//!   top table -> tables -> bitmap pages          on disk, as of the last commit
//!                              | loaded when first needed
//!                              v
//!   hints (for every group)   groups (some)      in memory, as of now
//!        | choose                | give out, own, retire, release
//!        +--------> runs <-------+
//! ```
//!
//! `runs` has the life of a block, `capture` what a commit writes of it, `pages` what is read back,
//! [`group`] the bitmaps of one group, `growth` how there come to be more of them.
//!
//! Invariants: a group's hint says what its bitmap says whenever nobody holds the group's lock; a
//! group that differs from its page is in memory. Lock order: the tables, then a group.
//!
//! Nodes need four aligned blocks, a cluster. So that fragmentation by data can never starve the
//! tree, data breaks no further cluster once only the reserve is left, as long as there are
//! fragments. Counts decide who may allocate at all: see [`crate::space`].

mod capture;
pub mod group;
mod growth;
mod pages;
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use gabion_base::disk::Disk;
use gabion_base::ids::{Txg, Uuid};
use gabion_base::sync::{Mutex, MutexGuard};

use crate::alloc::group::{Bitmap, Delta, Group};
use crate::alloc::pages::{free_below, initial_ref, load_bitmap, load_table_level};
use crate::error::MapError;
use crate::format::alloc::PageRef;
use crate::format::journal::Run;
use crate::layout::{Layout, TABLE_ENTRIES};

pub use self::capture::CapturedMap;
pub use self::runs::Purpose;

/// Bitmaps that stay in memory between commits: 16 MiB for 128 GiB of device.
const RESIDENT_GROUPS_MAX: usize = 1024;
/// Independent streams of data allocation, so that writers do not meet in one group.
const STREAMS: usize = 4;

/// The allocation map.
pub struct Allocator {
    disk: Arc<dyn Disk>,
    uuid: Uuid,
    /// Changes when the filesystem grows, under the lock of the tables.
    layout: ArcSwap<Layout>,
    /// The groups of each table page of the lowest level. There are those of the layout.
    spans: Box<[OnceLock<Span>]>,
    /// References to bitmap pages, then to each level of tables.
    tables: Mutex<Vec<Vec<PageRef>>>,
    dirty: Mutex<BTreeSet<usize>>,
    retired: Mutex<BTreeMap<Txg, Vec<Run>>>,
    cursors: [AtomicUsize; STREAMS + 1],
    captured: AtomicU64,
    resident: AtomicUsize,
    free: AtomicI64,
    /// With what is retired and not released: one number, so that nobody who looks during a release
    /// misses what is on its way from the one to the other.
    after_commit: AtomicI64,
    clusters: AtomicI64,
}

/// The groups that one table page lists.
type Span = Box<[Place]>;

/// What memory has for a group.
#[derive(Default)]
struct Place {
    group: Mutex<Option<Box<Group>>>,
    /// What is free in it, to choose one without locking or loading it.
    free: AtomicU32,
    clusters: AtomicU32,
}

/// Blocks in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeBlocks {
    /// Blocks that can be given out now.
    pub now: i64,
    /// Blocks that can be given out after the next commit.
    pub after_commit: i64,
}

impl Allocator {
    /// The map of a new filesystem: nothing is in use but the fixed structures.
    pub fn format(disk: Arc<dyn Disk>, uuid: Uuid, layout: Layout) -> Self {
        let groups = (0..layout.groups).map(|group| initial_ref(&layout, group)).collect();
        let mut tables: Vec<Vec<PageRef>> = vec![groups];
        for level in 0..layout.tables.len() {
            let refs = tables[level]
                .chunks(TABLE_ENTRIES as usize)
                .map(|children| PageRef { free: free_below(children), ..PageRef::default() });
            let refs = refs.collect();
            tables.push(refs);
        }
        Self::new(disk, uuid, layout, tables, Txg(0))
    }

    /// The map as of the commit `txg`, whose superblock references `top`.
    pub fn open(
        disk: Arc<dyn Disk>,
        uuid: Uuid,
        layout: Layout,
        top: PageRef,
        txg: Txg,
    ) -> Result<Self, MapError> {
        let mut tables = vec![vec![top]];
        for level in (0..layout.tables.len()).rev() {
            let children = if level == 0 { layout.groups } else { layout.table_pages(level - 1) };
            let refs = load_table_level(&*disk, uuid, &layout, level, &tables[0], children)?;
            tables.insert(0, refs);
        }
        Ok(Self::new(disk, uuid, layout, tables, txg))
    }

    fn new(
        disk: Arc<dyn Disk>,
        uuid: Uuid,
        layout: Layout,
        tables: Vec<Vec<PageRef>>,
        txg: Txg,
    ) -> Self {
        let free = tables[0].iter().map(|page| i64::from(page.free)).sum();
        let clusters = tables[0].iter().map(|page| i64::from(page.clusters)).sum();
        let map = Self {
            disk,
            uuid,
            spans: (0..layout.tables[0]).map(|_| OnceLock::new()).collect(),
            tables: Mutex::new(tables),
            dirty: Mutex::default(),
            retired: Mutex::default(),
            cursors: std::array::from_fn(|stream| {
                AtomicUsize::new(stream % layout.groups as usize)
            }),
            captured: AtomicU64::new(txg.0),
            resident: AtomicUsize::new(0),
            free: AtomicI64::new(free),
            after_commit: AtomicI64::new(free),
            clusters: AtomicI64::new(clusters),
            layout: ArcSwap::from_pointee(layout),
        };
        for (index, page) in map.tables.lock()[0].iter().enumerate() {
            map.hint(index, page.free, u32::from(page.clusters));
        }
        map
    }

    /// The layout of the filesystem as it is now.
    pub fn layout(&self) -> Arc<Layout> {
        self.layout.load_full()
    }

    /// What is free.
    pub fn free(&self) -> FreeBlocks {
        let now = self.free.load(Ordering::Acquire);
        FreeBlocks { now, after_commit: self.after_commit.load(Ordering::Acquire) }
    }

    /// The bitmap of `group` as the last commit wrote it, read from disk.
    pub fn committed_bitmap(&self, group: u64) -> Result<Bitmap, MapError> {
        let page_ref = self.tables.lock()[0][group as usize];
        load_bitmap(&*self.disk, self.uuid, &self.layout.load(), group, page_ref)
    }

    /// Drops bitmaps that need not stay in memory.
    pub fn trim(&self) {
        for index in 0..self.count() {
            if self.resident.load(Ordering::Relaxed) <= RESIDENT_GROUPS_MAX {
                return;
            }
            if let Some(mut slot) = self.place(index).group.try_lock()
                && slot.as_ref().is_some_and(|group| group.is_idle())
            {
                *slot = None;
                self.resident.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Number of groups.
    fn count(&self) -> usize {
        self.layout.load().groups as usize
    }

    /// The place of a group of the layout, or of one that is about to be.
    fn place(&self, index: usize) -> &Place {
        let entries = TABLE_ENTRIES as usize;
        let new = || (0..entries).map(|_| Place::default()).collect();
        &self.spans[index / entries].get_or_init(new)[index % entries]
    }

    fn hint(&self, index: usize, free: u32, clusters: u32) {
        let place = self.place(index);
        place.free.store(free, Ordering::Relaxed);
        place.clusters.store(clusters, Ordering::Relaxed);
    }

    fn load(&self, index: usize) -> Result<MutexGuard<'_, Option<Box<Group>>>, MapError> {
        let slot = self.place(index).group.lock();
        if slot.is_some() {
            return Ok(slot);
        }
        drop(slot);
        let tables = self.tables.lock();
        self.load_with(index, &tables)
    }

    /// Lock order: the tables, then a group.
    fn load_with(
        &self,
        index: usize,
        tables: &[Vec<PageRef>],
    ) -> Result<MutexGuard<'_, Option<Box<Group>>>, MapError> {
        let mut slot = self.place(index).group.lock();
        if slot.is_none() {
            let page_ref = tables[0][index];
            let layout = self.layout.load();
            let bitmap = load_bitmap(&*self.disk, self.uuid, &layout, index as u64, page_ref)?;
            *slot = Some(Box::new(Group::new(bitmap)));
            self.resident.fetch_add(1, Ordering::Relaxed);
        }
        Ok(slot)
    }

    fn mark_dirty(&self, index: usize) {
        self.dirty.lock().insert(index);
    }

    /// Blocks of a group were given out, or given back.
    fn account(&self, index: usize, group: &Group, delta: Delta) {
        self.account_released(index, group, delta);
        self.after_commit.fetch_add(delta.blocks, Ordering::AcqRel);
    }

    /// Blocks that the next commit would free are free.
    fn account_released(&self, index: usize, group: &Group, delta: Delta) {
        self.hint(index, group.free() as u32, group.clusters() as u32);
        self.free.fetch_add(delta.blocks, Ordering::AcqRel);
        self.clusters.fetch_add(delta.clusters, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::disk::MemDisk;

    use super::*;
    use crate::layout::LaidOut;

    pub(super) fn allocator(blocks: u64) -> (Arc<MemDisk>, Allocator) {
        let disk = Arc::new(MemDisk::new(blocks));
        let layout = Layout::new(blocks, LaidOut::with_room(blocks)).expect("large enough");
        let map = Allocator::format(Arc::clone(&disk) as Arc<dyn Disk>, Uuid([3; 16]), layout);
        (disk, map)
    }

    #[test]
    fn the_map_is_read_back_as_it_was_captured() {
        let (disk, map) = allocator(70_000);
        let data = map.allocate(Purpose::Data { count: 100, hint: 1 }).expect("room");
        let node = map.allocate(Purpose::Node).expect("room");
        map.own(data, Txg(1)).expect("allocated");
        map.own(node, Txg(1)).expect("allocated");
        let captured = map.capture(Txg(1), None).expect("a working disk");
        let layout = Layout::clone(&map.layout());
        let disk = disk as Arc<dyn Disk>;
        let again =
            Allocator::open(Arc::clone(&disk), Uuid([3; 16]), layout.clone(), captured.top, Txg(1))
                .expect("what was written");
        assert_eq!(again.free(), map.free());
        for run in [data, node] {
            assert!(again.check_in_use(run).is_ok());
            assert!(again.take(run, Txg(2)).is_err());
        }
        let other = Allocator::open(disk, Uuid([4; 16]), layout, captured.top, Txg(1));
        assert!(other.is_err(), "pages of another filesystem are refused");
    }
}
