//! Lies with right checksums: whatever is changed in an image, all that vouches for it is made
//! to agree again, up to the superblock.
//!
//! ```text
//! superblock ─┬─ forest ── SUBVOLUME items ── trees of nodes     [`Forge::nodes`]
//!             ├─ table page ── bitmap page                       [`Forge::pages`]
//!             └─ journal: units, each with the sum of the last   [`Forge::journal`]
//! ```

use std::collections::BTreeMap;

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::Reader;
use gabion_base::disk::Disk;
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg};

use gabion_map::alloc::group::Bitmap;
use gabion_map::format::alloc::{PageRef, decode_table, encode_table, page_checksum};
use gabion_map::format::journal::{
    Batch, UnitId, decode_unit, decode_unit_length, encode_unit, unit_blocks,
};
use gabion_map::format::node::{Draft, ItemKey, NODE_BLOCKS, Place};
use gabion_map::format::superblock::Superblock;
use gabion_map::layout::{GROUP_BLOCKS, Layout};
use gabion_map::open::superblocks;
use gabion_map::{Kind, key::Kind as ItemKind};

use crate::image::{Image, ImageDisk};

const HEADER: usize = 64;
const CHECKSUM: std::ops::Range<usize> = 40..48;
const KEY: usize = 17;
const LEAF_SLOT: usize = 19;
const INTERIOR_SLOT: usize = 41;

/// An image, and where its newest state is.
pub struct Forge {
    pub image: Image,
    pub superblock: Superblock,
    pub layout: Layout,
    place: BlockAddr,
}

/// An item of a leaf.
pub type Item = (ItemKey, Vec<u8>);

/// A node's bytes, to be changed.
pub struct NodeBytes {
    pub addr: BlockAddr,
    pub bytes: Vec<u8>,
}

impl NodeBytes {
    pub fn level(&self) -> u8 {
        self.bytes[6]
    }

    pub fn count(&self) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[52], self.bytes[53]]))
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Where the pointers to children stand.
    fn children(&self) -> Vec<usize> {
        let slots = (0..self.count()).map(|index| HEADER + index * INTERIOR_SLOT + KEY);
        if self.level() == 0 { Vec::new() } else { slots.collect() }
    }

    /// Where a leaf's values stand.
    pub fn values(&self) -> Vec<std::ops::Range<usize>> {
        let heap = HEADER + self.count() * LEAF_SLOT;
        let end = |index: usize| {
            let at = HEADER + index * LEAF_SLOT + KEY;
            heap + usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
        };
        let start = |index: usize| if index == 0 { heap } else { end(index - 1) };
        (0..self.count()).map(|index| start(index)..end(index)).collect()
    }

    pub fn key(&self, index: usize) -> ItemKey {
        let slot = if self.level() == 0 { LEAF_SLOT } else { INTERIOR_SLOT };
        let at = HEADER + index * slot;
        let kind = ItemKind(self.bytes[at + 8]);
        ItemKey { ino: Ino(self.word(at)), kind, at: self.word(at + 9) }
    }

    /// A leaf's items.
    pub fn items(&self) -> Vec<Item> {
        let values = self.values().into_iter().enumerate();
        values.map(|(index, at)| (self.key(index), self.bytes[at].to_vec())).collect()
    }

    /// Puts other items into a leaf: sorted, and as many as fit.
    pub fn set_items(&mut self, mut items: Vec<Item>) {
        items.sort_by_key(|item| item.0);
        items.dedup_by_key(|item| item.0);
        let size = |item: &Item| LEAF_SLOT + item.1.len();
        while items.iter().map(size).sum::<usize>() > self.bytes.len() - HEADER {
            items.remove(items.len() / 2);
        }
        if items.is_empty() {
            return;
        }
        let entries: Vec<_> = items.iter().map(|(key, value)| (*key, &value[..])).collect();
        let owner = SubvolId(u32::from_le_bytes(self.bytes[48..52].try_into().expect("four")));
        let place =
            Place { uuid: super::sample::UUID, addr: self.addr, birth: Txg(self.word(32)), owner };
        self.bytes = Draft::leaf(&entries).seal(&place).blocks().bytes().to_vec();
    }
}

/// What a node's parent says about it.
struct Sealed {
    checksum: u64,
    first: [u8; KEY],
}

impl Forge {
    pub fn new(image: Image) -> Self {
        let disk = ImageDisk::new(image);
        let slots = superblocks(&*disk as &dyn Disk).expect("readable");
        let newest = slots.last().expect("there are slots");
        let superblock = newest.content.clone().expect("the sample is whole");
        let layout = superblock.layout().expect("the sample is large enough");
        Self { image: disk.image(), superblock, layout, place: newest.addr }
    }

    /// Writes the superblock in its place.
    pub fn seal(&mut self) {
        let block = self.superblock.encode(self.place);
        self.image.write(self.place, block.bytes());
    }

    /// Shows each node to `edit`, children before parents, and repairs what points to it.
    pub fn nodes(&mut self, edit: &mut dyn FnMut(SubvolId, &mut NodeBytes)) {
        let mut done = BTreeMap::new();
        if let Some(mut root) = self.superblock.forest {
            let sealed = self.node(SubvolId(0), root.addr, &mut done, edit);
            root.checksum = sealed.checksum;
            self.superblock.forest = Some(root);
        }
        self.seal();
    }

    // Recursion over an image that the test has made itself.
    fn node(
        &mut self,
        tree: SubvolId,
        addr: BlockAddr,
        done: &mut BTreeMap<BlockAddr, (u64, [u8; KEY])>,
        edit: &mut dyn FnMut(SubvolId, &mut NodeBytes),
    ) -> Sealed {
        if let Some((checksum, first)) = done.get(&addr) {
            return Sealed { checksum: *checksum, first: *first };
        }
        let mut node = NodeBytes { addr, bytes: self.image.read(addr, NODE_BLOCKS) };
        for at in node.children() {
            let below = self.node(tree, BlockAddr(node.word(at)), done, edit);
            node.bytes[at + 16..at + 24].copy_from_slice(&below.checksum.to_le_bytes());
            node.bytes[at - KEY..at].copy_from_slice(&below.first);
        }
        if tree == SubvolId(0) && node.level() == 0 {
            for (index, at) in node.values().into_iter().enumerate() {
                let (key, root) = (node.key(index), at.start + 16);
                if key.kind == Kind::SUBVOLUME && node.word(root) != 0 {
                    let subvol = SubvolId(key.ino.0 as u32);
                    let below = self.node(subvol, BlockAddr(node.word(root)), done, edit);
                    let sum = &below.checksum.to_le_bytes();
                    node.bytes[root + 16..root + 24].copy_from_slice(sum);
                }
            }
        }
        edit(tree, &mut node);
        let checksum =
            crc64_of(&[&node.bytes[..CHECKSUM.start], &[0; 8], &node.bytes[CHECKSUM.end..]]);
        node.bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        self.image.write(addr, &node.bytes);
        let first = node.bytes[HEADER..HEADER + KEY].try_into().expect("a key");
        done.insert(addr, (checksum, first));
        Sealed { checksum, first }
    }

    /// Shows the only bitmap and the reference to it, then the page that holds the reference.
    pub fn pages(
        &mut self,
        edit: &mut dyn FnMut(&mut Bitmap, &mut PageRef),
        edit_table: &mut dyn FnMut(&mut Vec<u8>),
    ) {
        let uuid = self.superblock.uuid;
        let table_at = self.layout.table_page(0, 0);
        let table = self.superblock.alloc.current(table_at).expect("written by the sample");
        let page = self.image.read(table, 1);
        let mut below = decode_table(&page, 1, 1).expect("a whole sample")[0];
        let bitmap_at = below.current(self.layout.bitmap_page(0)).expect("written");
        let mut bitmap = Bitmap::from_page(&self.image.read(bitmap_at, 1));
        edit(&mut bitmap, &mut below);
        let bytes = bitmap.to_page();
        below.checksum = page_checksum(uuid, bitmap_at, &bytes);
        self.image.write(bitmap_at, &bytes);
        let mut page = encode_table(1, self.superblock.txg, &[below]);
        edit_table(&mut page);
        self.superblock.alloc.checksum = page_checksum(uuid, table, &page);
        self.image.write(table, &page);
        self.seal();
    }

    /// Replaces the units of the journal.
    pub fn journal(&mut self, edit: &mut dyn FnMut(&mut Vec<Vec<u8>>)) {
        let mut units = self.units();
        edit(&mut units);
        let mut next = self.superblock.journal;
        let ring = self.layout.journal_blocks;
        for payload in units {
            let wrap = next.position + unit_blocks(payload.len()) > ring;
            let position = if wrap { 0 } else { next.position };
            let id = UnitId {
                uuid: self.superblock.uuid,
                position,
                sequence: next.sequence,
                previous: next.previous,
            };
            let (blocks, checksum) = encode_unit(&id, &payload);
            if position + blocks.count() as u64 > ring {
                return;
            }
            self.image.write(self.layout.journal.plus(position), blocks.bytes());
            next.position = position + blocks.count() as u64;
            next.sequence += 1;
            next.previous = checksum;
        }
    }

    fn units(&self) -> Vec<Vec<u8>> {
        let mut next = self.superblock.journal;
        let mut units = Vec::new();
        while next.position < self.layout.journal_blocks {
            let addr = self.layout.journal.plus(next.position);
            let id = UnitId {
                uuid: self.superblock.uuid,
                position: next.position,
                sequence: next.sequence,
                previous: next.previous,
            };
            let Ok(length) = decode_unit_length(&self.image.read(addr, 1), &id) else { break };
            let count = unit_blocks(length);
            let bytes = self.image.read(addr, count as usize);
            let Ok((payload, checksum)) = decode_unit(&bytes, length) else { break };
            units.push(payload.to_vec());
            next.position += count;
            next.sequence += 1;
            next.previous = checksum;
        }
        units
    }
}

/// The batches of a unit, up to one that was forged before.
pub fn batches(payload: &[u8]) -> Vec<Batch> {
    let mut reader = Reader::new(payload);
    let mut batches = Vec::new();
    while reader.remaining() > 0 {
        let Ok(batch) = Batch::decode(&mut reader) else { break };
        batches.push(batch);
    }
    batches
}

/// A unit's payload.
pub fn payload(batches: &[Batch]) -> Vec<u8> {
    let mut payload = Vec::new();
    batches.iter().for_each(|batch| batch.encode(&mut payload));
    payload
}

/// Counts that agree with a bitmap.
pub fn recount(bitmap: &Bitmap, page: &mut PageRef) {
    page.free = (GROUP_BLOCKS - bitmap.count_set()) as u32;
    page.clusters = bitmap.count_clusters() as u16;
}

const _: () = assert!(BLOCK_SIZE == 4096, "the offsets above are the format's");
