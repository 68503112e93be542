//! Making a filesystem, and opening one: superblock, allocation map, forest, journal.
//!
//! Opening costs the length of the journal, never the size of the filesystem. Nothing of what is
//! read is trusted before it is checked: wrong bytes give an error that says what is wrong where.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::codec::DecodeError;
use gabion_base::disk::{Disk, DiskError, Durability};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};

use crate::alloc::Allocator;
use crate::changes::Changes;
use crate::commit::FOREST;
use crate::copies;
use crate::error::MapError;
use crate::format::alloc::PageRef;
use crate::format::item::{Access, SubvolRecord};
use crate::format::journal::Batch;
use crate::format::superblock::{
    INCOMPATIBLE, JournalStart, LAID_OUT, MAGIC, READ_ONLY_COMPATIBLE, Superblock,
};
use crate::journal::{Journal, replay};
use crate::key::{FileId, INO_END, Key, Kind};
use crate::layout::{BLOCKS_MAX, BLOCKS_MIN, HEAD_SLOTS, LaidOut, Layout, SLOTS_EACH_END};
use crate::map::{Limits, LocalMap, OpenMode, Parts};
use crate::memtable::Memtable;
use crate::store::NodeCache;
use crate::tree::{Root, Tree};
use crate::view::View;

/// Zeros that are written at once, in blocks (1 MiB).
const ZERO_BLOCKS: usize = 256;
/// Transaction groups and the journal's sequence end before this, far from their type's end.
const COUNT_END: u64 = 1 << 63;
/// The first transaction group. An even one, whose superblock is at the head: the tail of a
/// filesystem that is shorter than its disk is only found by what stands at the head.
const FIRST_TXG: Txg = Txg(2);
/// File bytes that a replay holds in memory, in lengths of the ring. Commits come when there is a
/// quarter of one; the rest is for operations that are under way when that happens.
const REPLAYED_RINGS_MAX: u64 = 4;

/// What a new filesystem shall be.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Its identity.
    pub uuid: Uuid,
    /// Its label, at most 64 bytes.
    pub label: String,
    /// A random number: the seed of name hashes.
    pub name_seed: u64,
    /// Now, in seconds since 1970.
    pub created: i64,
    /// Its length in blocks; the whole device if not given.
    pub blocks: Option<u64>,
}

/// A superblock slot as it stands on the device.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Where it is.
    pub addr: BlockAddr,
    /// What is in it, or why it cannot be read.
    pub content: Result<Superblock, String>,
}

/// Makes an empty filesystem: no subvolumes, nothing in use. Whatever was on the device is lost.
pub fn format(disk: &Arc<dyn Disk>, options: &FormatOptions) -> Result<Superblock, MapError> {
    let blocks = options.blocks.unwrap_or(disk.blocks()).min(disk.blocks()).min(BLOCKS_MAX);
    let layout = Layout::new(blocks, LaidOut::with_room(blocks))?;
    // Old superblocks must not be found again. The journal's ring is written with real zeros, so
    // that the first writes to it find their place on the medium below already.
    zero(&**disk, BlockAddr(0), HEAD_SLOTS + SLOTS_EACH_END)?;
    zero(&**disk, BlockAddr(layout.blocks - SLOTS_EACH_END), SLOTS_EACH_END)?;
    if disk.blocks() >= layout.blocks + SLOTS_EACH_END {
        zero(&**disk, BlockAddr(disk.blocks() - SLOTS_EACH_END), SLOTS_EACH_END)?;
    }
    zero(&**disk, layout.journal, layout.journal_blocks)?;
    disk.flush()?;
    let alloc = Allocator::format(Arc::clone(disk), options.uuid, layout.clone());
    let free = alloc.free().now as u64;
    let superblock = Superblock {
        compatible: 0,
        read_only_compatible: 0,
        incompatible: LAID_OUT,
        uuid: options.uuid,
        txg: FIRST_TXG,
        blocks: layout.blocks,
        name_seed: options.name_seed,
        next_subvol: SubvolId(1),
        free_blocks: free,
        forest: None,
        forest_level: 0,
        alloc: PageRef::default(),
        journal: JournalStart { position: 0, sequence: 1, previous: options.name_seed },
        created: options.created,
        label: options.label.clone(),
        laid_out: Some(layout.laid_out()),
    };
    let addr = layout.slot(superblock.txg.0 % Layout::slots());
    disk.write(addr, BlockSlice::new(superblock.encode(addr)), Durability::Fua)?;
    Ok(superblock)
}

/// Writes zeros, without a flush.
pub(crate) fn zero(disk: &dyn Disk, addr: BlockAddr, count: u64) -> Result<(), MapError> {
    let zeros = BlockSlice::new(Blocks::zeroed(ZERO_BLOCKS));
    let mut done = 0;
    while done < count {
        let part = (count - done).min(ZERO_BLOCKS as u64);
        let slice = zeros.part(0, part as usize);
        disk.write(addr.plus(done), slice, Durability::Cached)?;
        done += part;
    }
    Ok(())
}

/// All superblock slots of a device, newest commit last, unreadable ones first. A slot that the
/// device cannot read is one of the latter; fails only if there is no other.
///
/// The tail stands at the end of the filesystem, as the newest slot at the head has it. The others
/// there may know an earlier end, where there are files now. Without any, the end of the device is
/// all there is to go by.
pub fn superblocks(disk: &dyn Disk) -> Result<Vec<Slot>, MapError> {
    let blocks = disk.blocks();
    let mut first_failure = None;
    let mut read = |range: std::ops::Range<u64>| -> Vec<Slot> {
        let slot = |addr| {
            let content = read_slot(disk, addr).unwrap_or_else(|failure| {
                let reason = failure.to_string();
                first_failure.get_or_insert(failure);
                Err(reason)
            });
            Slot { addr, content }
        };
        range.map(BlockAddr).map(slot).collect()
    };
    let head_end = HEAD_SLOTS + SLOTS_EACH_END;
    let mut slots = read(HEAD_SLOTS..head_end.min(blocks));
    let heads = slots.iter().filter_map(|slot| slot.content.as_ref().ok());
    let newest = heads.max_by_key(|superblock| superblock.txg);
    let end = newest.map_or(blocks, |newest| newest.blocks).min(blocks);
    let mut tail = read(end.saturating_sub(SLOTS_EACH_END).max(head_end)..end);
    for slot in &mut tail {
        // Left over from when the filesystem, or one before it, had another length.
        if slot.content.as_ref().is_ok_and(|superblock| superblock.blocks != end) {
            slot.content = Err("of another length".to_string());
        }
    }
    slots.append(&mut tail);
    match first_failure {
        Some(failure) if slots.iter().all(|slot| slot.content.is_err()) => {
            return Err(failure.into());
        }
        _ => {}
    }
    slots.sort_by_key(|slot| slot.content.as_ref().map(|superblock| superblock.txg).ok());
    Ok(slots)
}

fn read_slot(disk: &dyn Disk, addr: BlockAddr) -> Result<Result<Superblock, String>, DiskError> {
    let read = copies::read_right(disk, addr, 1, |block| {
        let bytes = block.bytes();
        Superblock::decode(bytes, addr).map_err(|reason| match reason {
            _ if bytes.iter().all(|byte| *byte == 0) => NoSuperblock::Other("empty".to_string()),
            _ if !bytes.starts_with(MAGIC) => NoSuperblock::Other("no superblock".to_string()),
            reason => NoSuperblock::Other(reason.to_string()),
        })
    });
    match read {
        Ok(superblock) => Ok(Ok(superblock)),
        Err(NoSuperblock::Other(reason)) => Ok(Err(reason)),
        Err(NoSuperblock::Disk(error)) => Err(error),
    }
}

/// Why a superblock cannot be had.
enum NoSuperblock {
    Other(String),
    Disk(DiskError),
}

impl From<DiskError> for NoSuperblock {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// The superblock to go on from.
fn newest(disk: &dyn Disk) -> Result<Superblock, MapError> {
    let slots = superblocks(disk)?;
    let device = || disk.name().to_string();
    let newest = slots.iter().rev().find_map(|slot| slot.content.as_ref().ok());
    let Some(newest) = newest else {
        let damaged = slots.iter().filter_map(|slot| slot.content.as_ref().err());
        let mut damaged =
            damaged.filter(|reason| !matches!(reason.as_str(), "empty" | "no superblock"));
        let reason = match damaged.next() {
            Some(reason) => format!("its superblocks are damaged ({reason} is wrong)"),
            None => "no superblock was found; `gabion mkfs` makes one".to_string(),
        };
        return Err(MapError::NotGabion { device: device(), reason });
    };
    let unknown = newest.incompatible & !INCOMPATIBLE;
    if unknown != 0 {
        let set = "incompatible";
        return Err(MapError::UnknownFeatures { device: device(), set, bits: unknown });
    }
    if newest.blocks > disk.blocks() {
        let (actual, needed) = (disk.blocks(), newest.blocks);
        return Err(MapError::Truncated { device: device(), actual, needed });
    }
    Ok(newest.clone())
}

/// What is read of a filesystem that is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpTo {
    /// What the journal has, too.
    Journal,
    /// What the last commit has.
    Commit,
}

impl LocalMap {
    /// Opens the filesystem on `disk` and replays its journal.
    pub fn open(disk: Arc<dyn Disk>, mode: OpenMode, limits: Limits) -> Result<Self, MapError> {
        Self::open_up_to(UpTo::Journal, disk, mode, limits)
    }

    /// Opens what the last commit has, to be read while somebody else may change the filesystem.
    /// Snapshots can be relied upon for as long as nobody removes them. All else is used again in
    /// time, and then fails its checksums; that may happen to this call, too.
    pub fn open_beside(disk: Arc<dyn Disk>, limits: Limits) -> Result<Self, MapError> {
        Self::open_up_to(UpTo::Commit, disk, OpenMode::ReadOnly, limits)
    }

    fn open_up_to(
        up_to: UpTo,
        disk: Arc<dyn Disk>,
        mode: OpenMode,
        limits: Limits,
    ) -> Result<Self, MapError> {
        let superblock = newest(&*disk)?;
        let uuid = superblock.uuid;
        let unknown = superblock.read_only_compatible & !READ_ONLY_COMPATIBLE;
        if mode == OpenMode::ReadWrite && unknown != 0 {
            let (device, set) = (disk.name().to_string(), "read-only compatible");
            return Err(MapError::UnknownFeatures { device, set, bits: unknown });
        }
        let damaged = |reason| {
            let addr = BlockAddr(HEAD_SLOTS);
            MapError::Corrupt { structure: "superblock", addr, reason }
        };
        if superblock.blocks < BLOCKS_MIN {
            return Err(damaged("its length is impossible"));
        }
        let layout = superblock.layout()?;
        let journal = &superblock.journal;
        if journal.position > layout.journal_blocks
            || journal.sequence >= COUNT_END
            || superblock.txg.0 >= COUNT_END
        {
            return Err(damaged("its journal or transaction group is impossible"));
        }
        if superblock.forest.is_some_and(|root| root.birth > superblock.txg) {
            return Err(damaged("its forest is from a later transaction group"));
        }
        let alloc = Allocator::open(
            Arc::clone(&disk),
            uuid,
            layout.clone(),
            superblock.alloc,
            superblock.txg,
        )?;
        let nodes = NodeCache::new(Arc::clone(&disk), uuid, limits.nodes);
        let subvols = read_forest(&nodes, &superblock)?;
        // Ids are never used twice, so the next one is past them all.
        if subvols.keys().next_back().copied().unwrap_or(FOREST) >= superblock.next_subvol {
            return Err(damaged("its next subvolume exists already"));
        }
        let root = |record: &SubvolRecord| Root { ptr: record.root, level: record.level };
        let there = subvols.iter().filter(|(_, record)| record.is_there());
        let roots = there.map(|(id, record)| (*id, root(record))).collect();
        let txg = superblock.txg.next();
        let view =
            View { active: Arc::new(Memtable::new(txg)), frozen: None, roots: Arc::new(roots) };
        let journal = Journal::new(Arc::clone(&disk), uuid, &layout, superblock.journal);
        let start = superblock.journal;
        let mut map = Self::assemble(Parts {
            disk: Arc::clone(&disk),
            mode,
            limits,
            nodes,
            view,
            alloc,
            journal,
            subvols,
            superblock,
        });
        if up_to == UpTo::Commit {
            return Ok(map);
        }
        let mut batches = 0_u64;
        let next = replay(&*disk, uuid, &layout, start, |batch| {
            batches += 1;
            map.replay_batch(batch)
        })?;
        if mode == OpenMode::ReadWrite {
            // The ring beyond the last whole unit may hold a torn one. Start behind what was
            // replayed, and make that durable by a commit before anything else.
            map.journal = Journal::resume(Arc::clone(&disk), uuid, &layout, start, next);
            if batches > 0 {
                map.commit()?;
            }
        }
        Ok(map)
    }

    /// Applies a batch of the journal, exactly as when it was made, but for the journal itself.
    fn replay_batch(&self, batch: Batch) -> Result<(), MapError> {
        let corrupt = |reason| MapError::Corrupt {
            structure: "journal unit",
            addr: self.alloc.layout().journal,
            reason,
        };
        let view = self.view.load();
        let txg = view.active.txg();
        let subvols = self.subvols.read();
        let items = batch.items.iter().map(|(key, _)| key.file());
        for file in items.chain(batch.bytes.iter().map(|part| part.file)) {
            let subvol = subvols.get(&file.subvol);
            let subvol = subvol.ok_or(corrupt("a change of a subvolume that does not exist"))?;
            if subvol.record.access == Access::ReadOnly {
                return Err(corrupt("a change of a snapshot"));
            }
            if !subvol.record.is_there() {
                return Err(corrupt("a change of a subvolume that was removed"));
            }
            if file.ino.0 >= INO_END {
                return Err(corrupt("an inode number that is impossible"));
            }
            subvol.next_ino.fetch_max(file.ino.0 + 1, Ordering::AcqRel);
        }
        drop(subvols);
        for run in &batch.allocated {
            self.alloc.take(*run, txg)?;
        }
        let allocated = Batch { allocated: Vec::new(), ..batch };
        self.apply_replayed(Changes { batch: allocated, ..Changes::default() })?;
        // A forged ring could name a block of memory for every few bytes of it.
        if self.dirty_bytes() > REPLAYED_RINGS_MAX * self.journal.ring_bytes() {
            return Err(corrupt("more file bytes than a journal ever holds"));
        }
        Ok(())
    }
}

/// The records of all subvolumes.
fn read_forest(
    nodes: &NodeCache,
    superblock: &Superblock,
) -> Result<BTreeMap<SubvolId, SubvolRecord>, MapError> {
    let root = Root { ptr: superblock.forest, level: superblock.forest_level };
    let tree = Tree::new(nodes, root, FOREST);
    let mut records = BTreeMap::new();
    let mut cursor = tree.cursor(Key::first(FOREST))?;
    while let Some((key, value)) = cursor.item() {
        if key.kind == Kind::SUBVOLUME {
            let bad = |source| MapError::BadItem { key, source };
            let record = SubvolRecord::decode(value).map_err(bad)?;
            let invalid = |reason| bad(DecodeError::Invalid(reason));
            let id = u32::try_from(key.ino.0).ok().map(SubvolId).filter(|id| *id != FOREST);
            let id = id.filter(|_| key.at == 0).ok_or(invalid("subvolume id"))?;
            if record.root.is_some_and(|root| root.birth > superblock.txg) {
                return Err(invalid("birth of a subvolume's root"));
            }
            records.insert(id, record);
        }
        // A subvolume may have any number of dead runs after its record: skip them.
        let Some(next) = key.ino.0.checked_add(1) else { break };
        cursor.seek(FileId::new(FOREST, Ino(next)).key(Kind(0), 0))?;
    }
    Ok(records)
}

const _: () = assert!(BLOCK_SIZE == 4096, "the format's block size");
