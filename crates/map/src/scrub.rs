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

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::checksum::crc32c;
use gabion_base::ids::{BlockAddr, SubvolId, Txg};

use crate::commit::FOREST;
use crate::copies;
use crate::error::MapError;
use crate::extents::Piece;
use crate::format::item::FileData;
use crate::format::node::{NODE_SIZE, Node, NodePtr};
use crate::key::{Key, Kind};
use crate::map::LocalMap;
use crate::pin::Pin;
use crate::tree::NodeStore;

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
    /// The last verified node of each level.
    path: BTreeMap<u8, NodePtr>,
}

impl Scrubber<'_> {
    /// Verifies leaves from `from` on under one pin. Returns where to go on.
    fn stretch(&mut self, subvol: SubvolId, from: Key, seen: Txg) -> Option<Key> {
        let pin = self.map.pin();
        let root = pin.tree(subvol).root();
        let ptr = root.ptr.filter(|ptr| ptr.birth > seen)?;
        let mut from = from;
        for _ in 0..LEAVES_PER_PIN {
            match self.leaf(&pin, (ptr, root.level), from, seen) {
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
    /// the first key behind that leaf (or behind the damaged node, or behind what was seen in an
    /// earlier tree), if there is one.
    fn leaf(&mut self, pin: &Pin<'_>, root: (NodePtr, u8), from: Key, seen: Txg) -> Option<Key> {
        let subvol = from.subvol;
        let (mut ptr, mut level) = root;
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
                        self.item(key, items.value(index), seen);
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
            if ptr.birth <= seen {
                return next;
            }
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

    fn item(&mut self, key: Key, value: &[u8], seen: Txg) {
        self.report.progress.items += 1;
        if key.kind != Kind::DATA {
            return;
        }
        let piece = match Piece::decode(key, value) {
            Ok(piece) => piece,
            Err(error) => return self.found(key.subvol, Some(key), error),
        };
        let FileData::Extent(extent) = piece.data else { return };
        if extent.birth <= seen {
            return;
        }
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
