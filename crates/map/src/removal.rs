//! What a removed subvolume or snapshot leaves becomes free, step by step.
//!
//! A removal marks the record, by one commit. From then on nobody sees it. The blocks follow in
//! steps, each a commit of its own that is bounded, so that a crash or an end at any moment leaves
//! a state that the next step goes on from:
//!
//! ```text
//!   Marked --+-- a later one of its chain is left --> Draining -----------------+--> gone
//!            |                                                                  |
//!            +-- it is the last of its chain ------> Walking --> Dropping ------+
//! ```
//!
//! - **Draining.** The blocks of which it is the newest owner are on its deadlist. Those that are
//!   younger than the snapshot before it are free; the others move to that one's deadlist. Its
//!   tree is not looked at: what else is in there others have, too.
//! - **Walking.** All that is in its tree and younger than the snapshot before it is free; that one
//!   is the last of the chain now. Blocks on its deadlist are in its tree, so the list is void
//!   (**Dropping**). Blocks with several owners are met several times, and freed at the first:
//!   FREED items remember them meanwhile.
//!
//! One removal is under way at a time, and of a chain the last one comes first: what comes before
//! it in its chain is whole until then, whether it is marked or not.

use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg};

use crate::commit::{Besides, FOREST};
use crate::edits::{Edit, ForestChange};
use crate::error::MapError;
use crate::extents::Piece;
use crate::forest::Draft;
use crate::format::item::{Access, Dead, Sharing, SubvolRecord, decode_freed, encode_freed};
use crate::format::journal::Run;
use crate::format::node::{ItemKey, NODE_BLOCKS, NodePtr};
use crate::format::subvolume::Removal;
use crate::key::{FileId, Key, Kind};
use crate::map::LocalMap;
use crate::tree::{Pruner, Root, Tree};

/// Items of a deadlist that one step takes off it: some nodes of the forest.
const DRAINED_ITEMS: usize = 1024;
/// Leaves that one step takes down: of extents that are all shared, some thousand FREED items, for
/// which even a full filesystem has room.
const WALKED_LEAVES: usize = 16;

/// Whether a step of a removal left something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removing {
    /// Nothing is being removed.
    Nothing,
    /// A step was made; there may be more.
    Step,
}

/// What a step does.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) of: SubvolId,
    removal: Removal,
    root: Root,
    /// The snapshot before it in its chain.
    before: Option<SubvolId>,
    /// What is not younger than this is not its own.
    kept: Txg,
}

/// Where a removal is after a step.
pub(crate) enum Reached {
    /// There is more to do.
    Stage(Removal),
    /// Nothing is left of it.
    End,
}

impl LocalMap {
    /// Whether something is being removed.
    pub fn is_removing(&self) -> bool {
        self.subvols.read().leaving().next().is_some()
    }

    /// Makes a step of a removal, which is a commit.
    pub fn remove_step(&self) -> Result<Removing, MapError> {
        let mut superblock = self.superblock.lock();
        let Some(change) = self.next_removal() else { return Ok(Removing::Nothing) };
        self.check_writable()?;
        self.commit_locked(&mut superblock, Besides::Forest(change))?;
        Ok(Removing::Step)
    }

    /// What the next step is, if there is one. The commit lock is held.
    fn next_removal(&self) -> Option<ForestChange> {
        let subvols = self.subvols.read();
        let (of, subvol) = subvols.leaving().max_by_key(|(_, subvol)| {
            let record = &subvol.record;
            (record.extended.removal != Removal::Marked, record.rank())
        })?;
        let record = &subvol.record;
        let chain = record.chain(of);
        let fellows = || {
            let records = subvols.iter().map(|(id, subvol)| (*id, &subvol.record));
            records.filter(|(id, other)| *id != of && other.chain(*id) == chain)
        };
        let before = fellows().filter(|(_, other)| other.rank() < record.rank());
        let before = before.max_by_key(|(_, other)| other.rank());
        let base = record.extended.base_birth;
        let kept = before.map_or(base, |(_, before)| before.birth.max(base));
        let before = before.map(|(id, _)| id);
        let mut change = ForestChange::default();
        if record.extended.removal != Removal::Marked {
            let root = Root { ptr: record.root, level: record.level };
            let removal = record.extended.removal;
            change.edits.push(Edit::Removal { of, removal });
            change.work = Some(Work { of, removal, root, before, kept });
            return Some(change);
        }
        let is_last = fellows().all(|(_, other)| other.rank() < record.rank());
        let removal = if is_last { Removal::Walking(START) } else { Removal::Draining };
        change.edits.push(Edit::Removal { of, removal });
        // What dies from now on goes where it belongs without this one.
        let (snapshot, birth) = before.map_or((SubvolId(0), Txg(0)), |before| (before, kept));
        for (later, other) in fellows().filter(|(_, other)| other.newest_snapshot == of) {
            if other.access == Access::Writable {
                change.edits.push(Edit::Newest { of: later, snapshot, birth });
            }
        }
        Some(change)
    }

    /// Does the work of a step, within the commit `txg`.
    pub(crate) fn do_work(
        &self,
        work: &Work,
        txg: Txg,
        draft: &mut Draft<'_>,
    ) -> Result<Reached, MapError> {
        match work.removal {
            Removal::None | Removal::Marked => Ok(Reached::Stage(work.removal)),
            Removal::Draining => self.drain(work, txg, draft),
            Removal::Dropping => drop_lists(work, draft),
            Removal::Walking(place) => {
                let tree = Tree::new(&self.nodes, work.root, work.of);
                let mut walk = Walk { map: self, work, txg, draft };
                let next = tree.prune(place, work.kept, WALKED_LEAVES, &mut walk)?;
                Ok(Reached::Stage(next.map_or(Removal::Dropping, Removal::Walking)))
            }
        }
    }

    fn drain(&self, work: &Work, txg: Txg, draft: &mut Draft<'_>) -> Result<Reached, MapError> {
        let items = draft.scan(list_key(work.of, Kind::DEAD, 0), Kind::DEAD, DRAINED_ITEMS)?;
        for (key, value) in &items {
            let dead =
                Dead::decode(value).map_err(|source| MapError::BadItem { key: *key, source })?;
            let run = Run { addr: BlockAddr(key.at), count: dead.count };
            match work.before {
                Some(before) if dead.birth <= work.kept => {
                    draft.put_dead(before, run, dead.birth)?;
                }
                _ => self.alloc.retire(run, txg)?,
            }
            draft.delete(*key);
        }
        Ok(if items.len() < DRAINED_ITEMS { Reached::End } else { Reached::Stage(work.removal) })
    }
}

fn drop_lists(work: &Work, draft: &mut Draft<'_>) -> Result<Reached, MapError> {
    let items = draft.scan(list_key(work.of, Kind::DEAD, 0), Kind::FREED, DRAINED_ITEMS)?;
    items.iter().for_each(|(key, _)| draft.delete(*key));
    Ok(if items.len() < DRAINED_ITEMS { Reached::End } else { Reached::Stage(work.removal) })
}

const START: ItemKey = ItemKey { ino: Ino(0), kind: Kind(0), at: 0 };

/// Where a list of `of` in the forest has a run at `at`.
pub(crate) fn list_key(of: SubvolId, kind: Kind, at: u64) -> Key {
    FileId::new(FOREST, Ino(u64::from(of.0))).key(kind, at)
}

/// Frees what a tree has alone.
struct Walk<'w, 'd> {
    map: &'w LocalMap,
    work: &'w Work,
    txg: Txg,
    draft: &'w mut Draft<'d>,
}

impl Pruner for Walk<'_, '_> {
    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        if key.kind != Kind::DATA {
            return Ok(());
        }
        match Piece::decode(key, value)?.run() {
            Some((run, birth, sharing)) if birth > self.work.kept => match sharing {
                Sharing::Sole => self.map.alloc.retire(run, self.txg),
                Sharing::Shared => self.free_shared(run),
            },
            _ => Ok(()),
        }
    }

    fn node(&mut self, ptr: NodePtr) -> Result<(), MapError> {
        self.map.nodes.abandon(ptr);
        self.map.alloc.retire(Run { addr: ptr.addr, count: NODE_BLOCKS as u32 }, self.txg)
    }
}

impl Walk<'_, '_> {
    /// Frees what of a run was not freed for another of its owners.
    fn free_shared(&mut self, run: Run) -> Result<(), MapError> {
        let mut at = run.addr.0;
        let end = at + u64::from(run.count);
        for (from, to) in freed_within(self.draft, self.work.of, run)? {
            self.free(at, from)?;
            at = at.max(to);
        }
        self.free(at, end)
    }

    fn free(&mut self, from: u64, to: u64) -> Result<(), MapError> {
        if from >= to {
            return Ok(());
        }
        let count = (to - from) as u32;
        self.draft.put(list_key(self.work.of, Kind::FREED, from), encode_freed(count));
        self.map.alloc.retire(Run { addr: BlockAddr(from), count }, self.txg)
    }
}

/// The parts of `run` that FREED items of `of` cover, in order.
fn freed_within(draft: &Draft<'_>, of: SubvolId, run: Run) -> Result<Vec<(u64, u64)>, MapError> {
    let (from, to) = (run.addr.0, run.addr.0 + u64::from(run.count));
    let mut found = Vec::new();
    for (key, value) in draft.around(list_key(of, Kind::FREED, from), to - 1)? {
        let count = decode_freed(&value).map_err(|source| MapError::BadItem { key, source })?;
        let (first, last) = (key.at.max(from), (key.at + u64::from(count)).min(to));
        if first < last {
            found.push((first, last));
        }
    }
    Ok(found)
}

/// Of which chain members a tree is the one to be read from, and from which place on, when blocks
/// are counted: see [`crate::audit`].
pub(crate) fn remains(records: &[(SubvolId, SubvolRecord)]) -> Vec<Remains> {
    let mut remains = Vec::new();
    for (id, record) in records.iter().filter(|(_, record)| !record.is_there()) {
        let chain = record.chain(*id);
        let fellows =
            || records.iter().filter(|(other, its)| other != id && its.chain(*other) == chain);
        let is_covered = fellows().any(|(_, its)| its.is_there() && its.rank() > record.rank());
        let place = match record.extended.removal {
            Removal::Marked if !is_covered => START,
            Removal::Walking(place) => place,
            _ => continue,
        };
        // What is being drained has only its deadlist.
        let before = fellows().filter(|(_, its)| {
            its.rank() < record.rank() && its.extended.removal != Removal::Draining
        });
        let kept = before.map(|(_, its)| its.birth).max().unwrap_or(Txg(0));
        let kept = kept.max(record.extended.base_birth);
        let root = Root { ptr: record.root, level: record.level };
        remains.push(Remains { of: *id, root, place, kept });
    }
    remains
}

/// What is still there of a tree that is being taken down.
pub(crate) struct Remains {
    pub(crate) of: SubvolId,
    pub(crate) root: Root,
    pub(crate) place: ItemKey,
    pub(crate) kept: Txg,
}
