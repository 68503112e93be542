//! Checking everything that is reachable, online.
//!
//! - [`scrub`] reads every node and every block of data past the caches and verifies checksums. On
//!   a device with copies it looks at all of them, and puts right what is wrong.
//!
//! What a snapshot shares with the one before it is verified once. At the end the counts of quotas
//! are compared with what there is.
//!
//! A scrub walks a pinned state. It renews the pin every few thousand nodes and goes on behind the
//! last key in the newer state, so that it never holds much space back. What it finds is collected,
//! not fatal: a scrub ends at the end.
//!
//! Many reads are in flight: leaves ahead of the walk, and data behind it (`data`). Both are
//! bounded.

mod data;
mod reads;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::checksum::crc32c;
use gabion_base::ids::{SubvolId, Txg};

use self::data::{Data, Extent};
use self::reads::{Found, Reading};
use crate::commit::FOREST;
use crate::copies;
use crate::error::MapError;
use crate::extents::Piece;
use crate::format::item::FileData;
use crate::format::node::{NODE_BLOCKS, NODE_SIZE, Node, NodePtr};
use crate::key::{Key, Kind};
use crate::map::LocalMap;
use crate::tree::NodeStore;

/// Leaves after which a scrub renews its pin.
const LEAVES_PER_PIN: usize = 1024;
/// Leaves that are being read.
const LEAVES_AHEAD: usize = 32;
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
    let (report, path) = (Report::default(), BTreeMap::new());
    let mut scrubber = Scrubber { map, report, watch, path, data: Data::default() };
    scrubber.report.progress.total_bytes = space * BLOCK_SIZE as u64;
    for (subvol, seen) in trees(map) {
        let mut from = Some(Key::first(subvol));
        while let Some(key) = from {
            from = scrubber.stretch(subvol, key, seen);
            if scrubber.report.stopped {
                return Ok(scrubber.report);
            }
        }
    }
    for (subvol, error) in map.check_counts() {
        scrubber.found(subvol, None, error);
    }
    Ok(scrubber.report)
}

/// All trees, and of each the birth up to which it has nothing that an earlier one has not: that of
/// the snapshot before it.
fn trees(map: &LocalMap) -> Vec<(SubvolId, Txg)> {
    let mut records = map.subvolumes();
    records.sort_by_key(|(id, record)| (record.chain(*id), record.rank()));
    let mut trees = vec![(FOREST, Txg(0))];
    let mut before: Option<(SubvolId, Txg)> = None;
    for (id, record) in records {
        let chain = record.chain(id);
        let older = before.filter(|(of, _)| *of == chain).map(|(_, birth)| birth);
        let seen = older.unwrap_or(record.extended.base_birth);
        trees.push((id, seen));
        before = Some((chain, record.birth));
    }
    trees
}

struct Scrubber<'a> {
    map: &'a LocalMap,
    report: Report,
    watch: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    /// The last verified node of each level above the leaves.
    path: BTreeMap<u8, NodePtr>,
    data: Data,
}

impl Scrubber<'_> {
    /// Verifies what is in leaves from `from` on, under one pin. Returns where to go on.
    fn stretch(&mut self, subvol: SubvolId, from: Key, seen: Txg) -> Option<Key> {
        let pin = self.map.pin();
        let root = pin.tree(subvol).root();
        let ptr = root.ptr.filter(|ptr| ptr.birth > seen)?;
        debug_assert!(pin.txg() >= ptr.birth);
        let (mut from, mut left) = (from, LEAVES_PER_PIN);
        let next = loop {
            let (leaves, behind) = self.leaves((ptr, root.level), from, seen);
            left = left.saturating_sub(leaves.len().max(1));
            if self.verify_leaves(leaves, from, seen).is_break() {
                self.report.stopped = true;
                return None;
            }
            match behind {
                Some(behind) if left > 0 => from = behind,
                behind => break behind,
            }
        };
        // Before the pin goes: somebody may write there then.
        self.data.close_batch();
        self.verify_data(true);
        next
    }

    /// The leaves from `from` on that have the same parent, and the first key behind all below
    /// that parent (or behind a damaged node, or behind what was seen in an earlier tree), if there
    /// is one.
    fn leaves(&mut self, root: (NodePtr, u8), from: Key, seen: Txg) -> (Vec<NodePtr>, Option<Key>) {
        let subvol = from.subvol;
        let (mut ptr, mut level) = root;
        let mut behind = None;
        while level > 0 {
            let node = match self.inner_node(ptr, level) {
                Ok(node) => node,
                Err(error) => {
                    self.found(subvol, None, error);
                    return (Vec::new(), behind);
                }
            };
            let items = node.items();
            let index = items.at_or_before(from.into()).unwrap_or(0);
            if level == 1 {
                let children = (index..items.count()).map(|index| items.child(index));
                return (children.filter(|child| child.birth > seen).collect(), behind);
            }
            if index + 1 < items.count() {
                behind = Some(items.key(index + 1).of(subvol));
            }
            ptr = items.child(index);
            level -= 1;
            if ptr.birth <= seen {
                return (Vec::new(), behind);
            }
        }
        (vec![ptr], behind)
    }

    /// Reads a node from the device, unless it was the last one of its level.
    fn inner_node(&mut self, ptr: NodePtr, level: u8) -> Result<Arc<Node>, MapError> {
        if self.path.get(&level) == Some(&ptr) {
            return self.map.nodes.load(ptr, FOREST, level);
        }
        let node = self.node(ptr, level, Reading::start(&*self.map.disk, ptr.addr, NODE_BLOCKS))?;
        self.path.insert(level, ptr);
        Ok(node)
    }

    /// Verifies a node that is being read.
    fn node(&mut self, ptr: NodePtr, level: u8, reading: Reading) -> Result<Arc<Node>, MapError> {
        let (nodes, disk) = (&self.map.nodes, &*self.map.disk);
        let decode = |blocks: &BlockSlice| nodes.verify(ptr, level, blocks);
        let node = match reading.wait().right(disk, (0, NODE_BLOCKS), decode) {
            Some((node, mended)) => {
                self.report.mended += mended;
                node
            }
            // As it is read by everybody else, who is told why that fails.
            None => nodes.read(ptr, level)?,
        };
        self.report.progress.nodes += 1;
        Ok(node)
    }

    /// Verifies leaves, some of which are read ahead, and has what they point to verified.
    fn verify_leaves(&mut self, leaves: Vec<NodePtr>, from: Key, seen: Txg) -> ControlFlow<()> {
        let mut reading = VecDeque::new();
        let mut leaves = leaves.into_iter();
        loop {
            let room = LEAVES_AHEAD - reading.len();
            reading.extend(
                leaves
                    .by_ref()
                    .take(room)
                    .map(|ptr| (ptr, Reading::start(&*self.map.disk, ptr.addr, NODE_BLOCKS))),
            );
            let Some((ptr, leaf)) = reading.pop_front() else {
                return ControlFlow::Continue(());
            };
            match self.node(ptr, 0, leaf) {
                Ok(leaf) => {
                    let items = leaf.items();
                    for index in 0..items.count() {
                        let key = items.key(index).of(from.subvol);
                        if key >= from {
                            self.item(key, items.value(index), seen);
                        }
                    }
                }
                Err(error) => self.found(from.subvol, None, error),
            }
            (self.watch)(&self.report.progress)?;
        }
    }

    fn item(&mut self, key: Key, value: &[u8], seen: Txg) {
        self.report.progress.items += 1;
        if key.kind != Kind::DATA {
            return;
        }
        let piece = match Piece::decode(key, value) {
            Ok(piece) => piece,
            Err(error) => return self.found(key.subvol, Some(key), error),
        };
        if let FileData::Extent(extent) = piece.data
            && extent.birth > seen
        {
            self.data.add(Extent { key, addr: extent.addr, checksums: extent.checksums });
            self.verify_data(false);
        }
    }

    /// Verifies data that holds up other data, or all.
    fn verify_data(&mut self, all: bool) {
        while let Some(run) = self.data.next(&*self.map.disk, all) {
            let found = run.reading.wait();
            let mut at = 0;
            for extent in run.extents {
                match found.error() {
                    None => (0..extent.checksums.len())
                        .for_each(|index| self.block(&extent, index, &found, at + index)),
                    Some(_) => self.each_alone(&extent),
                }
                at += extent.checksums.len();
            }
        }
    }

    /// Reads the blocks of an extent that could not be read as one.
    fn each_alone(&mut self, extent: &Extent) {
        let disk = &*self.map.disk;
        let read = |index| Reading::start(disk, extent.addr.plus(index as u64), 1);
        let blocks: Vec<_> = (0..extent.checksums.len()).map(read).collect();
        for (index, block) in blocks.into_iter().enumerate() {
            let found = block.wait();
            match found.error() {
                None => self.block(extent, index, &found, 0),
                Some(error) => {
                    let error = error.clone().into();
                    self.found(extent.key.subvol, Some(extent.key), error);
                }
            }
        }
    }

    /// Verifies a block of an extent, which is the one at `at` of what was found.
    fn block(&mut self, extent: &Extent, index: usize, found: &Found, at: usize) {
        let (key, disk) = (extent.key, &*self.map.disk);
        let (addr, checksum) = (extent.addr.plus(index as u64), extent.checksums[index]);
        let offset = key.at + (index * BLOCK_SIZE) as u64;
        self.report.progress.data_bytes += BLOCK_SIZE as u64;
        let wrong = || MapError::BadData { file: key.file(), offset, addr };
        let decode = |block: &BlockSlice| match crc32c(block.bytes()) == checksum {
            true => Ok(()),
            false => Err(wrong()),
        };
        if let Some(((), mended)) = found.right(disk, (at, 1), decode) {
            self.report.mended += mended;
            return;
        }
        match copies::right_copy(disk, addr, 1, wrong(), decode) {
            Ok(()) => self.report.mended += 1,
            Err(error) => self.found(key.subvol, Some(key), error),
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
