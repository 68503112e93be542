//! Checking everything that is reachable, online.
//!
//! - [`scrub`] reads every node and every block of data past the caches and verifies checksums. On
//!   a device with copies it looks at all of them, and puts right what is wrong.
//! - [`audit`] compares the allocation map with what the trees reference, to the block.
//!
//! A scrub walks a pinned state. It renews the pin every few thousand nodes and goes on behind the
//! last key in the newer state, so that it never holds much space back. What it finds is collected,
//! not fatal: a scrub ends at the end.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::checksum::crc32c;
use gabion_base::ids::{BlockAddr, SubvolId};

use crate::commit::FOREST;
use crate::copies;
use crate::error::MapError;
use crate::extents::Piece;
use crate::format::item::{Access, Dead, FileData};
use crate::format::journal::Run;
use crate::format::node::{NODE_BLOCKS, NODE_SIZE, Node, NodePtr};
use crate::key::{Key, Kind};
use crate::layout::GROUP_BLOCKS;
use crate::map::LocalMap;
use crate::pin::Pin;
use crate::tree::{NodeStore, Tree};

/// Leaves after which a scrub renews its pin.
const LEAVES_PER_PIN: u64 = 1024;
/// Findings that a report lists; more are only counted.
const FINDINGS_MAX: usize = 1000;

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nodes verified.
    pub nodes: u64,
    /// Items seen.
    pub items: u64,
    /// Bytes of file data verified.
    pub data_bytes: u64,
    /// Bytes that are in use in all, so that a time left can be told.
    pub total_bytes: u64,
}

impl Progress {
    /// Bytes verified.
    pub fn bytes(&self) -> u64 {
        self.nodes * NODE_SIZE as u64 + self.data_bytes
    }
}

/// Something that is damaged.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The subvolume.
    pub subvol: SubvolId,
    /// The item whose data is bad; `None` for a node.
    pub key: Option<Key>,
    /// What is wrong.
    pub error: MapError,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was verified.
    pub progress: Progress,
    /// What is damaged.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub more: u64,
    /// Blocks of copies that were wrong and have been written again from others.
    pub mended: u64,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// Verifies every reachable block. `watch` is called often and may stop it.
pub fn scrub(
    map: &LocalMap,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, MapError> {
    let free = map.alloc.free().after_commit.max(0) as u64;
    let space = map.alloc.layout().blocks.saturating_sub(free);
    let mut scrubber = Scrubber { map, report: Report::default(), watch, path: BTreeMap::new() };
    scrubber.report.progress.total_bytes = space * BLOCK_SIZE as u64;
    let mut subvols = vec![FOREST];
    subvols.extend(map.pin().subvolumes());
    for subvol in subvols {
        let mut from = Some(Key::first(subvol));
        while let Some(key) = from {
            from = scrubber.stretch(subvol, key);
            if scrubber.report.stopped {
                return Ok(scrubber.report);
            }
        }
    }
    Ok(scrubber.report)
}

struct Scrubber<'a> {
    map: &'a LocalMap,
    report: Report,
    watch: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    /// The last verified node of each level.
    path: BTreeMap<u8, NodePtr>,
}

impl Scrubber<'_> {
    /// Verifies leaves from `from` on under one pin. Returns where to go on.
    fn stretch(&mut self, subvol: SubvolId, from: Key) -> Option<Key> {
        let pin = self.map.pin();
        let root = pin.tree(subvol).root();
        let ptr = root.ptr?;
        let mut from = from;
        for _ in 0..LEAVES_PER_PIN {
            match self.leaf(&pin, subvol, ptr, root.level, from) {
                Some(next) => from = next,
                None => return None,
            }
            if (self.watch)(&self.report.progress).is_break() {
                self.report.stopped = true;
                return None;
            }
        }
        Some(from)
    }

    /// Verifies the path to the leaf that holds or follows `from`, and the leaf's items. Returns
    /// the first key behind that leaf (or behind the damaged node), if there is one.
    fn leaf(
        &mut self,
        pin: &Pin<'_>,
        subvol: SubvolId,
        root: NodePtr,
        level: u8,
        from: Key,
    ) -> Option<Key> {
        let mut ptr = root;
        let mut level = level;
        let mut next = None;
        loop {
            let node = match self.node(ptr, level) {
                Ok(node) => node,
                Err(error) => {
                    self.found(subvol, None, error);
                    return next;
                }
            };
            let items = node.items();
            if level == 0 {
                for index in 0..items.count() {
                    let key = items.key(index).of(subvol);
                    if key >= from {
                        self.item(key, items.value(index));
                    }
                }
                return next;
            }
            let index = items.at_or_before(from.into()).unwrap_or(0);
            if index + 1 < items.count() {
                next = Some(items.key(index + 1).of(subvol));
            }
            ptr = items.child(index);
            level -= 1;
            debug_assert!(pin.txg() >= ptr.birth);
        }
    }

    /// Reads a node from the device, unless it was the last one of its level.
    fn node(&mut self, ptr: NodePtr, level: u8) -> Result<std::sync::Arc<Node>, MapError> {
        if self.path.get(&level) == Some(&ptr) {
            return self.map.nodes.load(ptr, FOREST, level);
        }
        let node = self.map.nodes.read(ptr, level)?;
        self.mend(ptr.addr, node.blocks());
        self.path.insert(level, ptr);
        self.report.progress.nodes += 1;
        Ok(node)
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        self.report.progress.items += 1;
        if key.kind != Kind::DATA {
            return;
        }
        let piece = match Piece::decode(key, value) {
            Ok(piece) => piece,
            Err(error) => return self.found(key.subvol, Some(key), error),
        };
        let FileData::Extent(extent) = piece.data else { return };
        let mut blocks = Blocks::zeroed(extent.checksums.len());
        if let Err(error) = self.map.disk.read(extent.addr, blocks.bytes_mut()) {
            return self.found(key.subvol, Some(key), error.into());
        }
        self.report.progress.data_bytes += blocks.bytes().len() as u64;
        let blocks = BlockSlice::new(blocks);
        for (index, checksum) in extent.checksums.iter().enumerate() {
            let addr = extent.addr.plus(index as u64);
            let block = blocks.part(index, 1);
            if crc32c(block.bytes()) == *checksum {
                self.mend(addr, &block);
                continue;
            }
            let offset = key.at + (index * BLOCK_SIZE) as u64;
            let file = key.file();
            let wrong = || MapError::BadData { file, offset, addr };
            let right = copies::right_copy(&*self.map.disk, addr, 1, wrong(), |found| {
                if crc32c(found.bytes()) == *checksum { Ok(()) } else { Err(wrong()) }
            });
            match right {
                Ok(()) => self.report.mended += 1,
                Err(error) => self.found(key.subvol, Some(key), error),
            }
        }
    }

    /// Compares the other copies of blocks that are right.
    fn mend(&mut self, addr: BlockAddr, right: &BlockSlice) {
        if self.map.disk.copies() > 1 {
            self.report.mended += copies::mend(&*self.map.disk, addr, right);
        }
    }

    fn found(&mut self, subvol: SubvolId, key: Option<Key>, error: MapError) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(Finding { subvol, key, error });
        } else {
            self.report.more += 1;
        }
    }
}

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
    fn add(&mut self, from: u64, count: u64) {
        let end = self.steps.len() as u64 - 1;
        let (from, to) = (from.min(end), from.saturating_add(count).min(end));
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

/// Compares the allocation map of the last commit with what its trees reference. Keeps eight bytes
/// a block in memory: for tests and for checks on request. Commits wait meanwhile.
pub fn audit(map: &LocalMap) -> Result<Audit, MapError> {
    let superblock = map.superblock.lock();
    let layout = map.alloc.layout();
    let mut seen = Cover::new(layout.blocks);
    // What counts once however often it is referenced.
    let mut shared = Cover::new(layout.blocks);
    for group in 0..layout.groups {
        for (start, count) in layout.fixed_runs(group) {
            shared.add(group * GROUP_BLOCKS + start, count);
        }
    }
    let view = map.view.load_full();
    let records = map.subvolumes();
    let snapshots = records.iter().any(|(_, record)| record.access == Access::ReadOnly);
    let forest = crate::tree::Root { ptr: superblock.forest, level: superblock.forest_level };
    let mut trees = vec![Tree::new(&map.nodes, forest, FOREST)];
    for (subvol, root) in view.roots.iter() {
        trees.push(Tree::new(&map.nodes, *root, *subvol));
    }
    for tree in trees {
        let mut visitor = References::default();
        tree.walk(&mut visitor)?;
        let add = |cover: &mut Cover, run: &Run| cover.add(run.addr.0, u64::from(run.count));
        visitor.runs.iter().for_each(|run| add(&mut seen, run));
        // Trees share nodes and extents with snapshots, and files with their copies by reference.
        visitor.shared.iter().for_each(|run| add(&mut shared, run));
    }
    let mut audit = Audit::default();
    let mut counts = seen.counts().zip(shared.counts());
    for group in 0..layout.groups {
        let bitmap = map.alloc.committed_bitmap(group)?;
        let blocks = 0..layout.group_blocks(group);
        for (start, (seen, shared)) in blocks.zip(&mut counts) {
            let block = group * GROUP_BLOCKS + start;
            let used = bitmap.is_set(start);
            let count = if shared > 0 { 1 } else { seen };
            audit.used += u64::from(used);
            match (used, count) {
                (true, 0) => extend(&mut audit.leaked, block),
                (false, 1..) => extend(&mut audit.missing, block),
                (true, 2..) if !snapshots => extend(&mut audit.doubled, block),
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
    } else if runs.len() < FINDINGS_MAX {
        runs.push((block, 1));
    }
}

/// Collects what a tree references.
#[derive(Default)]
struct References {
    runs: Vec<Run>,
    shared: Vec<Run>,
}

impl crate::tree::Visitor for References {
    fn node(&mut self, ptr: NodePtr, _level: u8) -> Result<crate::tree::Visit, MapError> {
        self.runs.push(Run { addr: ptr.addr, count: NODE_BLOCKS as u32 });
        Ok(crate::tree::Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        let bad = |source| MapError::BadItem { key, source };
        if key.kind == Kind::DATA {
            if let Some((run, _, sharing)) = Piece::decode(key, value)?.run() {
                self.runs.push(run);
                if sharing == crate::format::item::Sharing::Shared {
                    self.shared.push(run);
                }
            }
        } else if key.kind == Kind::DEAD {
            let dead = Dead::decode(value).map_err(bad)?;
            let run = Run { addr: BlockAddr(key.at), count: dead.count };
            self.runs.push(run);
        }
        Ok(())
    }
}
