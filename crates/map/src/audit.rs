//! Comparing the allocation map with what the trees reference, to the block.
//!
//! A block is in use if and only if one of these says so:
//!
//! - a fixed structure lies there;
//! - it is a node of a tree, or in an extent of one: of the forest, of a subvolume or snapshot that
//!   is there, or of what is left of one that is being removed;
//! - it is on a deadlist.
//!
//! What the journal has set aside since is in no commit, so it does not count.
//!
//! Trees share nodes. Each is looked at once, so the cost follows the blocks in use, however many
//! snapshots there are.

use std::collections::{BTreeMap, HashSet};

use gabion_base::ids::{BlockAddr, SubvolId};

use crate::commit::FOREST;
use crate::error::MapError;
use crate::extents::Piece;
use crate::format::item::{Access, Dead, Sharing, decode_freed};
use crate::format::journal::Run;
use crate::format::node::{NODE_BLOCKS, NodePtr};
use crate::format::subvolume::Removal;
use crate::key::{Key, Kind};
use crate::layout::GROUP_BLOCKS;
use crate::map::LocalMap;
use crate::removal::{Remains, remains};
use crate::tree::{Pruner, Root, Tree, Visit, Visitor};

/// Runs that an audit lists of each kind.
const RUNS_MAX: usize = 1000;

/// How the allocation map and the trees disagree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Blocks in use.
    pub used: u64,
    /// Blocks marked as in use that nothing references: (first, count), at most a thousand runs.
    pub leaked: Vec<(u64, u64)>,
    /// Blocks that are referenced and not marked.
    pub missing: Vec<(u64, u64)>,
    /// Blocks that are referenced more often than they should be.
    pub doubled: Vec<(u64, u64)>,
}

impl Audit {
    /// Whether both agree to the block.
    pub fn is_exact(&self) -> bool {
        self.leaked.is_empty() && self.missing.is_empty() && self.doubled.is_empty()
    }
}

/// How many runs cover each block of a device, at a cost that follows the number of runs.
struct Cover {
    /// By how many more runs a block is covered than the one before it.
    steps: Vec<i32>,
}

impl Cover {
    fn new(blocks: u64) -> Self {
        Self { steps: vec![0; blocks as usize + 1] }
    }

    /// Counts the part of a run that is on the device.
    fn add(&mut self, run: Run) {
        let end = self.steps.len() as u64 - 1;
        let to = run.addr.0.saturating_add(u64::from(run.count)).min(end);
        let from = run.addr.0.min(end);
        self.steps[from as usize] += 1;
        self.steps[to as usize] -= 1;
    }

    /// The counts, block by block.
    fn counts(&self) -> impl Iterator<Item = i32> {
        self.steps.iter().scan(0, |count, step| {
            *count += step;
            Some(*count)
        })
    }
}

/// Compares the allocation map of the last commit with what its trees reference. Keeps twelve bytes
/// a block in memory: for tests and for checks on request. Commits wait meanwhile.
pub fn audit(map: &LocalMap) -> Result<Audit, MapError> {
    let superblock = map.superblock.lock();
    let layout = map.alloc.layout();
    let records = map.records();
    let mut found = References::new(layout.blocks);
    for group in 0..layout.groups {
        for (start, count) in layout.fixed_runs(group) {
            let addr = BlockAddr(group * GROUP_BLOCKS + start);
            found.shared.add(Run { addr, count: count as u32 });
        }
    }
    // A tree that is gone takes its deadlist with it.
    let void = records.iter().filter(|(_, record)| {
        matches!(record.extended.removal, Removal::Walking(_) | Removal::Dropping)
    });
    found.void = void.map(|(id, _)| *id).collect();
    let forest = Root { ptr: superblock.forest, level: superblock.forest_level };
    Tree::new(&map.nodes, forest, FOREST).walk(&mut found)?;
    for (subvol, root) in map.view.load().roots.iter() {
        Tree::new(&map.nodes, root, subvol).walk(&mut found)?;
    }
    for rest in remains(&records) {
        found.add_remains(map, &rest)?;
    }
    let mut audit = Audit::default();
    let has_snapshots = records.iter().any(|(_, record)| {
        record.access == Access::ReadOnly || record.extended.base != SubvolId(0)
    });
    let mut counts = found.seen.counts().zip(found.shared.counts()).zip(found.dead.counts());
    for group in 0..layout.groups {
        let bitmap = map.alloc.committed_bitmap(group)?;
        let blocks = 0..layout.group_blocks(group);
        for (start, ((seen, shared), dead)) in blocks.zip(&mut counts) {
            let block = group * GROUP_BLOCKS + start;
            let is_used = bitmap.is_set(start);
            let count = if shared > 0 { 1 } else { seen };
            audit.used += u64::from(is_used);
            match (is_used, count) {
                (true, 0) => extend(&mut audit.leaked, block),
                (false, 1..) => extend(&mut audit.missing, block),
                (true, 2..) if dead > 1 || !has_snapshots => extend(&mut audit.doubled, block),
                _ => {}
            }
        }
    }
    drop(superblock);
    Ok(audit)
}

fn extend(runs: &mut Vec<(u64, u64)>, block: u64) {
    if let Some((start, count)) = runs.last_mut()
        && *start + *count == block
    {
        *count += 1;
    } else if runs.len() < RUNS_MAX {
        runs.push((block, 1));
    }
}

/// Collects what trees reference.
struct References {
    seen: Cover,
    /// What counts once however often it is referenced.
    shared: Cover,
    dead: Cover,
    /// Nodes that were looked at.
    nodes: HashSet<u64>,
    /// Whose deadlists mean nothing any more.
    void: Vec<SubvolId>,
    /// Shared blocks that are free already, of the subvolume that shared them.
    freed: BTreeMap<(SubvolId, u64), u64>,
}

impl References {
    fn new(blocks: u64) -> Self {
        let cover = || Cover::new(blocks);
        let (nodes, void, freed) = Default::default();
        Self { seen: cover(), shared: cover(), dead: cover(), nodes, void, freed }
    }

    fn add_data(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        if let Some((run, _, sharing)) = Piece::decode(key, value)?.run() {
            self.seen.add(run);
            // Files share extents with their copies by reference.
            if sharing == Sharing::Shared {
                self.shared.add(run);
            }
        }
        Ok(())
    }

    fn add_remains(&mut self, map: &LocalMap, rest: &Remains) -> Result<(), MapError> {
        let tree = Tree::new(&map.nodes, rest.root, rest.of);
        let mut left = Left { found: self, rest };
        tree.prune(rest.place, rest.kept, usize::MAX, &mut left).map(drop)
    }
}

impl Visitor for References {
    fn node(&mut self, ptr: NodePtr, _level: u8) -> Result<Visit, MapError> {
        if !self.nodes.insert(ptr.addr.0) {
            return Ok(Visit::Skip);
        }
        self.seen.add(Run { addr: ptr.addr, count: NODE_BLOCKS as u32 });
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        let bad = |source| MapError::BadItem { key, source };
        let of = SubvolId(key.ino.0 as u32);
        match key.kind {
            Kind::DATA => self.add_data(key, value)?,
            Kind::DEAD if key.subvol == FOREST && !self.void.contains(&of) => {
                let dead = Dead::decode(value).map_err(bad)?;
                let run = Run { addr: BlockAddr(key.at), count: dead.count };
                self.seen.add(run);
                self.dead.add(run);
            }
            Kind::FREED if key.subvol == FOREST => {
                let count = decode_freed(value).map_err(bad)?;
                self.freed.insert((of, key.at), u64::from(count));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Adds what is left of a tree that is being taken down.
struct Left<'a> {
    found: &'a mut References,
    rest: &'a Remains,
}

impl Pruner for Left<'_> {
    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        if key.kind != Kind::DATA {
            return Ok(());
        }
        let Some((run, birth, sharing)) = Piece::decode(key, value)?.run() else { return Ok(()) };
        if birth <= self.rest.kept {
            return Ok(());
        }
        if sharing == Sharing::Sole {
            self.found.seen.add(run);
            return Ok(());
        }
        let (mut at, end) = (run.addr.0, run.addr.0 + u64::from(run.count));
        let of = self.rest.of;
        let before = self.found.freed.range((of, 0)..(of, at)).next_back();
        let within = self.found.freed.range((of, at)..(of, end));
        let mut parts = Vec::new();
        for ((_, from), count) in before.into_iter().chain(within) {
            if *from > at {
                parts.push((at, *from));
            }
            at = at.max(from + count);
        }
        parts.extend((at < end).then_some((at, end)));
        for (from, to) in parts {
            self.found.shared.add(Run { addr: BlockAddr(from), count: (to - from) as u32 });
        }
        Ok(())
    }

    fn node(&mut self, ptr: NodePtr) -> Result<(), MapError> {
        // Marked ones may share nodes that are their own no longer than the last of them.
        if self.found.nodes.insert(ptr.addr.0) {
            self.found.seen.add(Run { addr: ptr.addr, count: NODE_BLOCKS as u32 });
        }
        Ok(())
    }
}
