//! Which blocks are in use: giving them out, taking them back, and writing that down.
//!
//! A block's life: [`Allocator::allocate`] (busy: nobody else gets it) → [`Allocator::own`] (in the
//! next commit's page, together with the item that references it) → [`Allocator::retire`] (not in
//! the next commit's page, still busy, because the last commit and the journal may reference it)
//! → the commit becomes durable → [`Allocator::release`] (free).
//!
//! [`Allocator::capture`] writes the pages of one commit. Whoever belongs to the transaction group
//! after it says so by its number, and is kept out of those pages (see [`group`]).
//!
//! Nodes need four aligned blocks, a cluster. So that fragmentation by data can never starve the
//! tree, data breaks no further cluster once only the reserve is left, as long as there are
//! fragments. Counts decide who may allocate at all: see [`crate::space`].

pub mod group;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Durability, Ticket};
use gabion_base::ids::{BlockAddr, Txg, Uuid};
use gabion_base::sync::{Mutex, MutexGuard};

use crate::alloc::group::{Bitmap, Delta, Group, Want};
use crate::copies;
use crate::error::MapError;
use crate::format::alloc::{PageCopy, PageRef, decode_table, encode_table, page_checksum};
use crate::format::journal::Run;
use crate::layout::{GROUP_BLOCKS, Layout, TABLE_ENTRIES};

/// Bitmaps that stay in memory between commits: 16 MiB for 128 GiB of device.
const RESIDENT_GROUPS_MAX: usize = 1024;
/// Independent streams of data allocation, so that writers do not meet in one group.
const STREAMS: usize = 4;

/// What blocks are for, and which stream of them this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A tree node: four aligned blocks.
    Node,
    /// Up to `count` blocks of file data; writers with different hints use different groups.
    Data {
        /// Most blocks wanted; fewer may come, at least one.
        count: u32,
        /// Anything that tells writers apart.
        hint: u64,
    },
}

/// The allocation map.
pub struct Allocator {
    disk: Arc<dyn Disk>,
    uuid: Uuid,
    layout: Layout,
    groups: Vec<Mutex<Option<Box<Group>>>>,
    /// What is free in each group, to choose one without locking or loading it.
    hints: Vec<Hint>,
    /// References to bitmap pages, then to each level of tables.
    tables: Mutex<Vec<Vec<PageRef>>>,
    dirty: Mutex<BTreeSet<usize>>,
    retired: Mutex<BTreeMap<Txg, Vec<Run>>>,
    cursors: [AtomicUsize; STREAMS + 1],
    captured: AtomicU64,
    resident: AtomicUsize,
    free: AtomicI64,
    clusters: AtomicI64,
    retiring: AtomicI64,
}

struct Hint {
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

/// What a commit's superblock says about the allocation map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedMap {
    /// The highest table page.
    pub top: PageRef,
    /// Free blocks as of the commit.
    pub free: u64,
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
            let children = if level == 0 { layout.groups } else { layout.tables[level - 1] };
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
        let groups = (0..layout.groups).map(|_| Mutex::new(None)).collect();
        let hints: Vec<Hint> = tables[0]
            .iter()
            .map(|page| Hint {
                free: AtomicU32::new(page.free),
                clusters: AtomicU32::new(u32::from(page.clusters)),
            })
            .collect();
        let free = tables[0].iter().map(|page| i64::from(page.free)).sum();
        let clusters = tables[0].iter().map(|page| i64::from(page.clusters)).sum();
        Self {
            disk,
            uuid,
            groups,
            hints,
            tables: Mutex::new(tables),
            dirty: Mutex::default(),
            retired: Mutex::default(),
            cursors: std::array::from_fn(|stream| {
                AtomicUsize::new(stream % layout.groups as usize)
            }),
            captured: AtomicU64::new(txg.0),
            resident: AtomicUsize::new(0),
            free: AtomicI64::new(free),
            clusters: AtomicI64::new(clusters),
            retiring: AtomicI64::new(0),
            layout,
        }
    }

    /// The layout of the filesystem.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What is free.
    pub fn free(&self) -> FreeBlocks {
        let now = self.free.load(Ordering::Acquire);
        FreeBlocks { now, after_commit: now + self.retiring.load(Ordering::Acquire) }
    }

    /// Gives out blocks. They are nobody's until [`Allocator::own`]. Fails with
    /// [`MapError::NoSpace`] only if there is nothing that fits.
    pub fn allocate(&self, purpose: Purpose) -> Result<Run, MapError> {
        match purpose {
            Purpose::Node => self.allocate_from(0, Want::Node)?.ok_or(MapError::NoSpace),
            Purpose::Data { count, hint } => {
                let stream = 1 + (hint % STREAMS as u64) as usize;
                let count = u64::from(count);
                let spare = self.clusters.load(Ordering::Acquire)
                    - self.layout.reserve_clusters as i64
                    - count.div_ceil(4) as i64;
                if spare < 0
                    && let Some(run) = self.allocate_from(stream, Want::Fragment(count))?
                {
                    return Ok(run);
                }
                let want = if spare < 0 { count.min(4) } else { count };
                self.allocate_from(stream, Want::Data(want))?.ok_or(MapError::NoSpace)
            }
        }
    }

    fn allocate_from(&self, stream: usize, want: Want) -> Result<Option<Run>, MapError> {
        let current = self.cursors[stream].load(Ordering::Relaxed);
        if let Some(run) = self.allocate_in(current, want)? {
            return Ok(Some(run));
        }
        // First a group with plenty of room, so that runs stay long; then whatever there is.
        for least in [GROUP_BLOCKS as u32 / 4, 1] {
            for group in 0..self.groups.len() {
                if self.room(group, want) < least {
                    continue;
                }
                if let Some(run) = self.allocate_in(group, want)? {
                    self.cursors[stream].store(group, Ordering::Relaxed);
                    return Ok(Some(run));
                }
            }
        }
        Ok(None)
    }

    /// Blocks of a group that can serve `want`, as far as the hints know.
    fn room(&self, group: usize, want: Want) -> u32 {
        let free = self.hints[group].free.load(Ordering::Relaxed);
        let clusters = self.hints[group].clusters.load(Ordering::Relaxed);
        match want {
            Want::Node => clusters * 4,
            Want::Data(_) => free,
            Want::Fragment(_) => free.saturating_sub(clusters * 4),
        }
    }

    fn allocate_in(&self, index: usize, want: Want) -> Result<Option<Run>, MapError> {
        if self.room(index, want) == 0 {
            return Ok(None);
        }
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let Some((start, count)) = group.find(want) else { return Ok(None) };
        let delta = group.take(start, count);
        self.account(index, group, delta);
        let addr = BlockAddr(index as u64 * GROUP_BLOCKS + start);
        Ok(Some(Run { addr, count: count as u32 }))
    }

    /// Marks blocks as in use that the journal says were given out. Fails if they cannot be.
    pub fn take(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        if !group.busy().all(start, u64::from(run.count), false) {
            return Err(misuse(run, "it is in use twice"));
        }
        let delta = group.take(start, u64::from(run.count));
        self.account(index, group, delta);
        drop(slot);
        self.own(run, txg)
    }

    /// The commit `txg` and later ones use `run`, which was allocated before.
    pub fn own(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        group.own(start, u64::from(run.count), txg, self.captured());
        drop(slot);
        self.mark_dirty(index);
        Ok(())
    }

    /// Takes back blocks that were allocated and never owned.
    pub fn give_back(&self, run: Run) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let delta = group.release(start, u64::from(run.count));
        self.account(index, group, delta);
        Ok(())
    }

    /// The commit `txg` and later ones no longer use `run`.
    pub fn retire(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let retired = group.retire(start, u64::from(run.count), txg, self.captured());
        drop(slot);
        self.mark_dirty(index);
        if !retired {
            return Err(misuse(run, "it is freed, but not in use"));
        }
        self.retired.lock().entry(txg).or_default().push(run);
        self.retiring.fetch_add(i64::from(run.count), Ordering::AcqRel);
        Ok(())
    }

    /// Whether `run` could be retired: on the device, within one group, in use.
    pub fn check_in_use(&self, run: Run) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        if group.busy().all(start, u64::from(run.count), true) {
            Ok(())
        } else {
            Err(misuse(run, "it is referenced, but not in use"))
        }
    }

    /// The commit `txg` is durable: what it retired can be given out again. Returns those runs.
    pub fn release(&self, txg: Txg) -> Result<Vec<Run>, MapError> {
        let runs = self.retired.lock().remove(&txg).unwrap_or_default();
        for run in &runs {
            let (index, start) = self.locate(*run)?;
            let mut slot = self.load(index)?;
            let group = slot.as_mut().expect("just loaded");
            if !group.busy().all(start, u64::from(run.count), true) {
                return Err(misuse(*run, "it was freed twice"));
            }
            let delta = group.release(start, u64::from(run.count));
            self.account(index, group, delta);
            self.retiring.fetch_sub(i64::from(run.count), Ordering::AcqRel);
        }
        Ok(runs)
    }

    /// Transaction groups up to `txg` that retired blocks which were not released yet, in order.
    pub fn retired_until(&self, txg: Txg) -> Vec<Txg> {
        self.retired.lock().range(..=txg).map(|(txg, _)| *txg).collect()
    }

    /// What `txg` retired, neighbours joined, in order.
    pub fn retired_runs(&self, txg: Txg) -> Vec<Run> {
        let mut runs = self.retired.lock().get(&txg).cloned().unwrap_or_default();
        runs.sort_unstable_by_key(|run| run.addr);
        runs.dedup_by(|next, run| {
            let joins = run.addr.plus(u64::from(run.count)) == next.addr;
            if joins {
                run.count += next.count;
            }
            joins
        });
        runs
    }

    /// Starts allocating from the front again, where the last commits made room.
    pub fn rewind(&self) {
        for (stream, cursor) in self.cursors.iter().enumerate() {
            let want = if stream == 0 { Want::Node } else { Want::Data(1) };
            let roomy = |group: &usize| self.room(*group, want) > GROUP_BLOCKS as u32 / 2;
            let mut roomy = (0..self.groups.len()).filter(roomy);
            if let Some(group) = roomy.nth(stream).or_else(|| roomy.next()) {
                cursor.store(group, Ordering::Relaxed);
            }
        }
    }

    /// Writes the pages of commit `txg` (without a flush). No allocation or retirement for `txg`
    /// may come any more.
    pub fn capture(&self, txg: Txg) -> Result<CapturedMap, MapError> {
        assert_eq!(txg, self.captured().next(), "commits come in order");
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let mut tickets = Vec::new();
        let mut tables = self.tables.lock();
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
            let place = self.layout.bitmap_page(*index as u64);
            let page_ref = &mut tables[0][*index];
            *page_ref = self.submit_page(*page_ref, place, page, &mut tickets);
            (page_ref.free, page_ref.clusters) = (free, clusters);
        }
        let mut changed = dirty;
        for level in 0..self.layout.tables.len() {
            let pages: BTreeSet<usize> =
                changed.iter().map(|child| child / TABLE_ENTRIES as usize).collect();
            for index in &pages {
                let first = index * TABLE_ENTRIES as usize;
                let last = (first + TABLE_ENTRIES as usize).min(tables[level].len());
                let children = &tables[level][first..last];
                let free = free_below(children);
                let page = encode_table(level as u8 + 1, txg, children);
                let place = self.layout.table_page(level, *index as u64);
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
        Ok(CapturedMap { top: tables[self.layout.tables.len()][0], free })
    }

    /// Drops bitmaps that need not stay in memory.
    pub fn trim(&self) {
        for slot in &self.groups {
            if self.resident.load(Ordering::Relaxed) <= RESIDENT_GROUPS_MAX {
                return;
            }
            if let Some(mut slot) = slot.try_lock()
                && slot.as_ref().is_some_and(|group| group.is_idle())
            {
                *slot = None;
                self.resident.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The bitmap of `group` as the last commit wrote it, read from disk.
    pub fn committed_bitmap(&self, group: u64) -> Result<Bitmap, MapError> {
        let page_ref = self.tables.lock()[0][group as usize];
        load_bitmap(&*self.disk, self.uuid, &self.layout, group, page_ref)
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
        for (index, slot) in self.groups.iter().enumerate() {
            let mut slot = slot.lock();
            if slot.as_mut().is_some_and(|group| group.settle(self.captured())) {
                drop(slot);
                self.mark_dirty(index);
            }
        }
    }

    /// The last commit whose pages are written.
    fn captured(&self) -> Txg {
        Txg(self.captured.load(Ordering::Acquire))
    }

    fn locate(&self, run: Run) -> Result<(usize, u64), MapError> {
        let count = u64::from(run.count);
        if count == 0 || !self.layout.contains(run.addr, count) {
            return Err(misuse(run, "it reaches past the device"));
        }
        let (group, start) = (run.addr.0 / GROUP_BLOCKS, run.addr.0 % GROUP_BLOCKS);
        if start + count > GROUP_BLOCKS {
            return Err(misuse(run, "it crosses allocation groups"));
        }
        let overlaps = |fixed: &(u64, u64)| start < fixed.0 + fixed.1 && fixed.0 < start + count;
        if self.layout.fixed_runs(group).iter().any(overlaps) {
            return Err(misuse(run, "it covers fixed structures"));
        }
        Ok((group as usize, start))
    }

    fn load(&self, index: usize) -> Result<MutexGuard<'_, Option<Box<Group>>>, MapError> {
        let slot = self.groups[index].lock();
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
        let mut slot = self.groups[index].lock();
        if slot.is_none() {
            let page_ref = tables[0][index];
            let bitmap = load_bitmap(&*self.disk, self.uuid, &self.layout, index as u64, page_ref)?;
            *slot = Some(Box::new(Group::new(bitmap)));
            self.resident.fetch_add(1, Ordering::Relaxed);
        }
        Ok(slot)
    }

    fn mark_dirty(&self, index: usize) {
        self.dirty.lock().insert(index);
    }

    fn account(&self, index: usize, group: &Group, delta: Delta) {
        self.hints[index].free.store(group.free() as u32, Ordering::Relaxed);
        self.hints[index].clusters.store(group.clusters() as u32, Ordering::Relaxed);
        self.free.fetch_add(delta.blocks, Ordering::AcqRel);
        self.clusters.fetch_add(delta.clusters, Ordering::AcqRel);
    }
}

fn misuse(run: Run, reason: &'static str) -> MapError {
    MapError::Corrupt { structure: "the allocation of a run", addr: run.addr, reason }
}

fn initial_bitmap(layout: &Layout, group: u64) -> Bitmap {
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

fn initial_ref(layout: &Layout, group: u64) -> PageRef {
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
fn free_below(children: &[PageRef]) -> u32 {
    children.iter().fold(0, |sum, child| sum.saturating_add(child.free))
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

fn load_bitmap(
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

fn load_table_level(
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

#[cfg(test)]
mod tests {
    use gabion_base::disk::MemDisk;

    use super::*;

    fn allocator(blocks: u64) -> (Arc<MemDisk>, Allocator) {
        let disk = Arc::new(MemDisk::new(blocks));
        let layout = Layout::new(blocks).expect("large enough");
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
        let captured = map.capture(Txg(1)).expect("a working disk");
        let layout = map.layout().clone();
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

    #[test]
    fn retired_blocks_come_back_only_after_the_commit() {
        let (_, map) = allocator(8192);
        let before = map.free();
        let run = map.allocate(Purpose::Data { count: 8, hint: 0 }).expect("room");
        map.own(run, Txg(1)).expect("allocated");
        map.capture(Txg(1)).expect("a working disk");
        map.retire(run, Txg(2)).expect("in use");
        assert_eq!(map.free().now, before.now - 8);
        assert_eq!(map.free().after_commit, before.now);
        map.capture(Txg(2)).expect("a working disk");
        assert_eq!(map.release(Txg(2)).expect("consistent"), vec![run]);
        assert_eq!(map.free(), before);
        assert!(map.retire(run, Txg(3)).is_err(), "freeing twice is refused");
    }

    #[test]
    fn the_largest_devices_have_more_free_blocks_than_a_page_can_say() {
        let layout = Layout::new(1 << 33).expect("large enough");
        let disk = Arc::new(MemDisk::new(1));
        let map = Allocator::format(disk, Uuid([3; 16]), layout);
        assert!(map.free().now > i64::from(u32::MAX));
        let tables = map.tables.lock();
        assert_eq!(tables.last().map(|top| top[0].free), Some(u32::MAX));
    }

    #[test]
    fn a_commit_does_not_write_what_came_after_its_freeze() {
        let (disk, map) = allocator(4096);
        let room = |count| map.allocate(Purpose::Data { count, hint: 0 }).expect("room");
        let (early, late, node) = (room(4), room(8), room(4));
        map.own(early, Txg(1)).expect("allocated");
        map.own(late, Txg(2)).expect("allocated");
        map.retire(early, Txg(2)).expect("in use");
        map.own(node, Txg(1)).expect("allocated");
        let captured = map.capture(Txg(1)).expect("a working disk");
        let layout = map.layout().clone();
        let again = Allocator::open(disk, Uuid([3; 16]), layout, captured.top, Txg(1));
        let again = again.expect("what was written");
        assert!(again.check_in_use(early).is_ok() && again.check_in_use(node).is_ok());
        assert!(again.check_in_use(late).is_err(), "nothing of this commit references it");
        map.capture(Txg(2)).expect("a working disk");
        let bitmap = map.committed_bitmap(0).expect("just written");
        assert!(bitmap.all(late.addr.0, 8, true) && bitmap.all(early.addr.0, 4, false));
    }

    #[test]
    fn data_leaves_the_reserve_of_clusters_while_there_are_fragments() {
        let (_, map) = allocator(4096);
        let mut data = 0;
        let reserve = map.layout().reserve_clusters as i64;
        let total = map.free().now;
        while data < total - 4 * reserve {
            let run = map.allocate(Purpose::Data { count: 3, hint: 0 }).expect("room");
            data += i64::from(run.count);
        }
        for _ in 0..reserve - 1 {
            map.allocate(Purpose::Node).expect("the reserve is whole");
        }
    }
}
