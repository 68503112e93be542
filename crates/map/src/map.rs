//! The local map: one filesystem on one device, used by many threads.
//!
//! ```text
//! operation ── locks objects ── reads View ── collects Changes ── apply ─┬─ memtable
//!                                                                        ├─ journal buffer
//! write ─────────────────────── accepted bytes (FileState) ─ writeback ──┴─ allocation map
//!
//! commit: writeback, freeze, merge into the trees, pages, flush, superblock
//! ```
//!
//! Lock order, from the outermost: the commit lock; a file's writeback lock; object locks (see
//! [`crate::locks`]); the gate; then leaves (memtable shards, allocation groups, the journal's
//! buffer, dirty bytes), each held alone and briefly. No lock but those of the commit and of a
//! writeback is held while the device writes; object locks are held shared while it reads.
//!
//! The gate is passed by everyone who applies changes and closed for the moment of a freeze, so
//! each batch belongs to one transaction group entirely.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use gabion_base::disk::{Disk, DiskError};
use gabion_base::ids::{SubvolId, Txg, Uuid};
use gabion_base::sync::{CachePadded, Condvar, Mutex, ReadMostly};

use crate::alloc::Allocator;
use crate::catalogue::Catalogue;
use crate::error::MapError;
use crate::file::FileTable;
use crate::format::item::{Access, SubvolRecord};
use crate::format::journal::FreedRun;
use crate::format::superblock::Superblock;
use crate::journal::Journal;
use crate::key::FileId;
use crate::locks::LockTable;
use crate::space::{Claim, Space, Uncommitted};
use crate::store::NodeCache;
use crate::subvolumes::Fate;
use crate::tree::NodeStore;
use crate::view::View;

/// How much memory the map may use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Cached tree nodes.
    pub nodes: u64,
    /// Accepted bytes that are not written yet. Writers wait when there are more.
    pub dirty: u64,
    /// Items that are not committed yet. Operations wait when there are more.
    pub items: u64,
}

impl Limits {
    /// Divides `bytes` of memory, of which at least 4 MiB are used.
    pub fn within(bytes: u64) -> Self {
        let bytes = bytes.max(4 << 20);
        Self { nodes: bytes / 4, dirty: bytes / 3, items: bytes / 8 }
    }
}

/// Whether a filesystem may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Yes.
    ReadWrite,
    /// No: the journal is replayed in memory only.
    ReadOnly,
}

/// What waits for somebody with time on his hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Accepted bytes should be written.
    pub writeback: bool,
    /// A commit should be made.
    pub commit: bool,
}

/// One filesystem.
pub struct LocalMap {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) uuid: Uuid,
    pub(crate) mode: OpenMode,
    pub(crate) limits: Limits,
    pub(crate) nodes: NodeCache,
    pub(crate) view: ArcSwap<View>,
    pub(crate) gate: ReadMostly<()>,
    /// Had by each operation from its beginning to its end, so that a rollback has none beside it.
    pub(crate) passage: ReadMostly<()>,
    pub(crate) locks: LockTable,
    pub(crate) files: FileTable,
    pub(crate) alloc: Allocator,
    pub(crate) space: Space,
    pub(crate) journal: Journal,
    pub(crate) subvols: ReadMostly<Catalogue>,
    /// Blocks that died while a snapshot needs them, by transaction group.
    pub(crate) dead: Mutex<BTreeMap<Txg, Vec<(SubvolId, FreedRun)>>>,
    /// The last durable superblock. Its lock is the commit lock.
    pub(crate) superblock: Mutex<Superblock>,
    pub(crate) committed: AtomicU64,
    pub(crate) tree_nodes: AtomicU64,
    pub(crate) dirty_blocks: CachePadded<AtomicU64>,
    pub(crate) journaled_bytes: CachePadded<AtomicU64>,
    /// Whether the forest differs from the last commit although no item does.
    pub(crate) forest_changed: AtomicBool,
    /// Held by whoever writes nodes of a commit.
    pub(crate) writing_nodes: Mutex<()>,
    /// Held by whoever counts what a subvolume refers to.
    pub(crate) counting: Mutex<()>,
    /// How many readers hold each committed state.
    pub(crate) pins: Mutex<BTreeMap<Txg, usize>>,
    stopped: OnceLock<String>,
    pressure: Mutex<Pressure>,
    pressed: Condvar,
}

/// What a map consists of when it is opened.
pub(crate) struct Parts {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) mode: OpenMode,
    pub(crate) limits: Limits,
    pub(crate) nodes: NodeCache,
    pub(crate) view: View,
    pub(crate) alloc: Allocator,
    pub(crate) journal: Journal,
    pub(crate) subvols: BTreeMap<SubvolId, SubvolRecord>,
    pub(crate) superblock: Superblock,
}

/// Space in numbers, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceReport {
    /// Blocks that files and their items can occupy in all.
    pub total: u64,
    /// Blocks that can still be filled.
    pub available: u64,
    /// Blocks in use, including those that wait for a commit to be free.
    pub used: u64,
    /// How many objects there may be, if that is limited.
    pub objects: Option<u64>,
    /// How many more.
    pub objects_left: Option<u64>,
}

/// What the map is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The last durable commit.
    pub committed: Txg,
    /// Bytes accepted but not written.
    pub dirty_bytes: u64,
    /// Bytes of items not committed.
    pub item_bytes: u64,
    /// Bytes in the journal's buffer.
    pub journal_bytes: u64,
}

impl LocalMap {
    pub(crate) fn assemble(parts: Parts) -> Self {
        let space = Space::new(&parts.alloc.layout());
        let writable = parts.subvols.values().filter(|it| it.access == Access::Writable);
        let tree_nodes = writable.map(|record| record.nodes).sum();
        Self {
            disk: parts.disk,
            uuid: parts.superblock.uuid,
            mode: parts.mode,
            limits: parts.limits,
            nodes: parts.nodes,
            view: ArcSwap::from_pointee(parts.view),
            gate: ReadMostly::new(()),
            passage: ReadMostly::new(()),
            locks: LockTable::default(),
            files: FileTable::default(),
            alloc: parts.alloc,
            space,
            journal: parts.journal,
            subvols: ReadMostly::new(parts.subvols.into_iter().collect()),
            dead: Mutex::default(),
            committed: AtomicU64::new(parts.superblock.txg.0),
            superblock: Mutex::new(parts.superblock),
            tree_nodes: AtomicU64::new(tree_nodes),
            dirty_blocks: CachePadded::default(),
            journaled_bytes: CachePadded::default(),
            forest_changed: AtomicBool::new(false),
            writing_nodes: Mutex::new(()),
            counting: Mutex::new(()),
            pins: Mutex::default(),
            stopped: OnceLock::new(),
            pressure: Mutex::default(),
            pressed: Condvar::new(),
        }
    }

    /// The filesystem's identity.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether it may be changed.
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    /// The last durable superblock.
    pub fn superblock(&self) -> Superblock {
        self.superblock.lock().clone()
    }

    /// Seed of name hashes.
    pub fn name_seed(&self) -> u64 {
        self.superblock.lock().name_seed
    }

    /// All subvolumes and snapshots that are there, oldest first.
    pub fn subvolumes(&self) -> Vec<(SubvolId, SubvolRecord)> {
        let mut records = self.records();
        records.retain(|(_, record)| record.is_there());
        records
    }

    /// The same with those that are being removed.
    pub(crate) fn records(&self) -> Vec<(SubvolId, SubvolRecord)> {
        let subvols = self.subvols.read();
        subvols.iter().map(|(id, subvol)| (*id, subvol.record.clone())).collect()
    }

    /// Space in numbers. `used + available` is less than `total` by the reserve, by promises, and
    /// by what the next commit may need.
    pub fn space(&self) -> SpaceReport {
        let layout = self.alloc.layout();
        let due = self.space.due(self.uncommitted());
        let free = self.alloc.free();
        // Fixed structures and the reserve are no part of what can be filled.
        let first = layout.journal.0 + layout.journal_blocks;
        let fixed = first + 2 * (layout.groups - 1) + crate::layout::SLOTS_EACH_END;
        let total = layout.blocks.saturating_sub(fixed + 4 * layout.reserve_clusters);
        let available = self.space.available(due, free, Claim::Pledged).max(0) as u64;
        let available = available.min(total);
        let (objects, objects_left) = (None, None);
        SpaceReport { total, available, used: total - available, objects, objects_left }
    }

    /// So many blocks and objects more, or less, are pledged: no operation uses them, of the disk
    /// or of a quota, but such as were promised room
    /// ([`LocalTxn::pay_from_pledged`](crate::LocalTxn::pay_from_pledged)).
    pub fn pledge(&self, blocks: i64, objects: i64) {
        self.space.pledge(blocks, objects);
    }

    /// Whether there is room for all that is pledged, in whichever subvolume it is used.
    pub fn keeps_pledges(&self) -> bool {
        let room = self.room_everywhere();
        let objects = self.space.pledged_objects();
        room.blocks >= self.pledged() && room.objects.is_none_or(|left| left as i64 >= objects)
    }

    /// Blocks that are pledged.
    pub fn pledged(&self) -> u64 {
        self.space.pledged().max(0) as u64
    }

    /// What the map is doing.
    pub fn activity(&self) -> Activity {
        Activity {
            committed: Txg(self.committed.load(Ordering::Acquire)),
            dirty_bytes: self.dirty_bytes(),
            item_bytes: self.uncommitted().bytes,
            journal_bytes: self.journal.waiting_bytes(),
        }
    }

    /// Fails if the map must not be changed, or no longer can.
    pub fn check_writable(&self) -> Result<(), MapError> {
        if self.mode == OpenMode::ReadOnly {
            return Err(MapError::ReadOnly);
        }
        match self.stopped.get() {
            None => Ok(()),
            Some(cause) => Err(MapError::Stopped { uuid: self.uuid, cause: cause.clone() }),
        }
    }

    /// The error that made the map stop writing, if one did.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.get().cloned()
    }

    /// After this failure the state on disk is no longer known: nothing more is written, what was
    /// committed or journaled before stays.
    pub(crate) fn stop(&self, failure: &MapError) {
        self.stopped.get_or_init(|| failure.to_string());
        let failure = match failure {
            MapError::Disk(failure) => failure.clone(),
            other => DiskError::Io {
                device: self.disk.name(),
                operation: "commit",
                addr: gabion_base::ids::BlockAddr(0),
                source: Arc::new(std::io::Error::other(other.to_string())),
            },
        };
        self.journal.fail(failure);
        self.press(|pressure| pressure.commit = true);
    }

    /// Changes that are in no commit yet.
    pub(crate) fn uncommitted(&self) -> Uncommitted {
        let view = self.view.load();
        let nodes = self.tree_nodes.load(Ordering::Relaxed);
        let mut sum =
            Uncommitted { bytes: view.active.bytes(), objects: view.active.objects(), nodes };
        if let Some(frozen) = &view.frozen {
            sum.bytes += frozen.bytes();
            sum.objects += frozen.objects();
        }
        sum
    }

    /// Bytes accepted but not written.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_blocks.load(Ordering::Relaxed) * gabion_base::BLOCK_SIZE as u64
    }

    /// Reads from the current view. A reader that is overtaken by a commit may find blocks of its
    /// older trees used again; it then reads once more from the newer ones.
    pub(crate) fn reading<T>(
        &self,
        read: impl Fn(&View, &dyn NodeStore) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        loop {
            let view = self.view.load();
            match read(&view, &self.nodes) {
                Err(MapError::Corrupt { .. })
                    if !Arc::ptr_eq(&view.roots, &self.view.load().roots) => {}
                outcome => return outcome,
            }
        }
    }

    /// Waits until there is something to do, or for `patience`. For the threads that do it.
    pub fn wait_for_pressure(&self, patience: Duration) -> Pressure {
        let mut pressure = self.pressure.lock();
        if *pressure == Pressure::default() {
            self.pressed.wait_for(&mut pressure, patience);
        }
        std::mem::take(&mut pressure)
    }

    /// Wakes whoever waits for pressure.
    pub fn wake(&self) {
        self.pressed.notify_all();
    }

    fn press(&self, add: impl FnOnce(&mut Pressure)) {
        add(&mut self.pressure.lock());
        self.pressed.notify_all();
    }

    /// After a change: asks for help when limits come near, and helps itself when they are passed,
    /// so that memory is bounded and writers go at the disk's speed. No locks are held.
    pub(crate) fn relieve(&self) -> Result<(), MapError> {
        let dirty = self.dirty_bytes();
        if dirty > self.limits.dirty / 4 {
            self.press(|pressure| pressure.writeback = true);
            if dirty > self.limits.dirty {
                self.write_back_some()?;
            }
        }
        let items = self.uncommitted();
        let large = |limit: u64| items.bytes > limit || self.journal.waiting_bytes() > limit;
        if self.journaled_bytes.load(Ordering::Acquire) > 2 * self.journaled_bytes_max() {
            self.commit()?;
        }
        if large(self.limits.items / 2) || self.space.wants_commit(items) {
            self.press(|pressure| pressure.commit = true);
            if large(self.limits.items) || self.space.wants_commit(items) {
                self.commit()?;
            }
        }
        Ok(())
    }

    /// What happens to blocks that leave their subvolume.
    pub(crate) fn fate(&self, freed: &FreedRun) -> Fate {
        let subvols = self.subvols.read();
        subvols.get(&freed.subvol).map_or(Fate::Free, |subvol| subvol.record.fate(freed.birth))
    }

    /// The size of a file that is not in motion, from its item.
    pub(crate) fn item_extent(&self, file: FileId) -> Result<crate::txn::FileExtent, MapError> {
        let key = file.key(crate::key::Kind::FILE, 0);
        let value = self.reading(|view, store| view.get(store, key))?;
        match value {
            None => Ok(crate::txn::FileExtent::default()),
            Some(value) => crate::format::item::decode_file(&value)
                .map_err(|source| MapError::BadItem { key, source }),
        }
    }
}
