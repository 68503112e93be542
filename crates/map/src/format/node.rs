//! Nodes: what a tree is made of on disk.
//!
//! ```text
//! node, 16 KiB = 4 blocks at an address that is a multiple of 4
//!    0  magic     u32   "GbnN"
//!    4  version   u16   1
//!    6  level     u8    0: leaf; at most 12
//!    7  flags     u8    0
//!    8  uuid      [16]  the filesystem
//!   24  addr      u64   the node's own first block
//!   32  birth     u64   the transaction group that wrote it, > 0
//!   40  checksum  u64   CRC-64 of the 16 KiB with this field zero; the parent holds it too
//!   48  owner     u32   the subvolume that wrote it
//!   52  count     u16   items, > 0
//!   54  zero      [10]
//!   64  slots     count times, in strictly ascending order of their keys
//!         leaf:      key [17], end u16: where the item's value ends in the heap
//!         interior:  key [17], pointer [24]: a child, and the lowest key in it
//!    .  heap      leaf only: the values side by side, in the order of the slots
//!    .  zeros     up to 16 KiB
//!
//! key      ino u64, kind u8, at u64                    the subvolume is the tree's, not the key's
//! pointer  addr u64, birth u64, checksum u64           all zero where there may be none
//! ```
//!
//! A set of items has exactly one encoding. [`Node::decode`] verifies everything once: identity,
//! checksum, order, bounds. What reads a [`Node`] afterwards indexes without failing. A child is
//! never younger than its parent, because whoever rewrites a child rewrites its parent.
//!
//! Not verified here, because it takes two nodes: that a child's keys lie between the parent's
//! separators. The tree does so on every descent.

use std::fmt;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};

use crate::error::MapError;
use crate::key::{Key, Kind};
use crate::layout::BLOCKS_MAX;
use crate::txn::VALUE_LENGTH_MAX;

/// Blocks in a node, and what its address is a multiple of.
pub const NODE_BLOCKS: usize = 4;
/// Bytes in a node.
pub const NODE_SIZE: usize = NODE_BLOCKS * BLOCK_SIZE;
/// Bytes of a node that items can use.
pub const NODE_CAPACITY: usize = NODE_SIZE - HEADER_SIZE;
/// The highest level there is. Nodes with a hundred children each never come near it.
pub const LEVEL_MAX: u8 = 12;
/// Bytes that a leaf's item takes besides its value.
pub const LEAF_SLOT: usize = KEY_SIZE + 2;
/// Bytes that a child takes in an interior node.
pub const INTERIOR_SLOT: usize = KEY_SIZE + POINTER_SIZE;

const MAGIC: u32 = u32::from_le_bytes(*b"GbnN");
const VERSION: u16 = 1;
const HEADER_SIZE: usize = 64;
const CHECKSUM_AT: usize = 40;
const KEY_SIZE: usize = 17;
const POINTER_SIZE: usize = 24;
/// What follows the last item. Comparing with it is many times faster than a look at each byte.
static ZEROS: [u8; NODE_SIZE] = [0; NODE_SIZE];

const _: () = assert!(3 * (LEAF_SLOT + VALUE_LENGTH_MAX) <= NODE_CAPACITY);
const _: () = assert!(NODE_CAPACITY <= u16::MAX as usize);

/// A key within one tree: a [`Key`] without its subvolume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    /// The object.
    pub ino: Ino,
    /// What the item is.
    pub kind: Kind,
    /// The key's last part.
    pub at: u64,
}

impl ItemKey {
    /// The key as one of `subvol`.
    pub const fn of(self, subvol: SubvolId) -> Key {
        Key { subvol, ino: self.ino, kind: self.kind, at: self.at }
    }

    fn from_bytes(bytes: &[u8; KEY_SIZE]) -> Self {
        let [i0, i1, i2, i3, i4, i5, i6, i7, kind, a0, a1, a2, a3, a4, a5, a6, a7] = *bytes;
        Self {
            ino: Ino(u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7])),
            kind: Kind(kind),
            at: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        }
    }

    fn to_bytes(self) -> [u8; KEY_SIZE] {
        let mut bytes = [0; KEY_SIZE];
        bytes[..8].copy_from_slice(&self.ino.0.to_le_bytes());
        bytes[8] = self.kind.0;
        bytes[9..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }
}

impl From<Key> for ItemKey {
    fn from(key: Key) -> Self {
        Self { ino: key.ino, kind: key.kind, at: key.at }
    }
}

impl fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}@{}", self.ino.0, self.kind, self.at)
    }
}

/// Where a node stands, and enough to recognise it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodePtr {
    /// Its first block.
    pub addr: BlockAddr,
    /// The transaction group that wrote it.
    pub birth: Txg,
    /// Its checksum.
    pub checksum: u64,
}

impl NodePtr {
    /// Appends `ptr`, or zeros if there is none.
    pub fn encode_optional(ptr: Option<Self>, into: &mut Vec<u8>) {
        match ptr {
            Some(ptr) => into.extend_from_slice(&ptr.to_bytes()),
            None => into.put_zeros(POINTER_SIZE),
        }
    }

    /// Decodes a pointer, or its absence.
    pub fn decode_optional(reader: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        let bytes = reader.array::<POINTER_SIZE>()?;
        if bytes == [0; POINTER_SIZE] {
            return Ok(None);
        }
        let ptr = Self::from_bytes(&bytes);
        if ptr.is_possible() { Ok(Some(ptr)) } else { Err(DecodeError::Invalid("node pointer")) }
    }

    fn from_bytes(bytes: &[u8; POINTER_SIZE]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self { addr: BlockAddr(word(0)), birth: Txg(word(8)), checksum: word(16) }
    }

    fn to_bytes(self) -> [u8; POINTER_SIZE] {
        let mut bytes = [0; POINTER_SIZE];
        bytes[..8].copy_from_slice(&self.addr.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.birth.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Whether some filesystem could hold a node there.
    fn is_possible(&self) -> bool {
        self.addr.0 != 0
            && self.addr.0.is_multiple_of(NODE_BLOCKS as u64)
            && self.addr.0 < BLOCKS_MAX
            && self.birth.0 != 0
    }
}

/// The items of a node, to be read in place.
#[derive(Clone, Copy)]
pub struct Items<'a> {
    level: u8,
    slots: &'a [u8],
    heap: &'a [u8],
}

impl<'a> Items<'a> {
    /// How many there are; never 0 in a node that was decoded or built.
    pub fn count(&self) -> usize {
        self.slots.len() / slot_size(self.level)
    }

    /// Bytes of the node that they use.
    pub fn used(&self) -> usize {
        self.slots.len() + if self.level == 0 { self.end(self.count() - 1) } else { 0 }
    }

    /// The key of item `index`. Panics past the end, as all accessors do.
    pub fn key(&self, index: usize) -> ItemKey {
        ItemKey::from_bytes(self.part(index, 0))
    }

    /// The value of a leaf's item `index`.
    pub fn value(&self, index: usize) -> &'a [u8] {
        assert_eq!(self.level, 0, "only leaves hold values");
        let start = if index == 0 { 0 } else { self.end(index - 1) };
        &self.heap[start..self.end(index)]
    }

    /// Child `index` of an interior node.
    pub fn child(&self, index: usize) -> NodePtr {
        assert_ne!(self.level, 0, "leaves have no children");
        NodePtr::from_bytes(self.part(index, KEY_SIZE))
    }

    /// The last item at or before `key`.
    pub fn at_or_before(&self, key: ItemKey) -> Option<usize> {
        if self.level == 0 {
            at_or_before::<LEAF_SLOT>(self.slots, key)
        } else {
            at_or_before::<INTERIOR_SLOT>(self.slots, key)
        }
    }

    /// The item at `key`.
    pub fn find(&self, key: ItemKey) -> Option<usize> {
        self.at_or_before(key).filter(|index| self.key(*index) == key)
    }

    /// Where a leaf's value `index` ends in the heap.
    fn end(&self, index: usize) -> usize {
        usize::from(u16::from_le_bytes(*self.part(index, KEY_SIZE)))
    }

    /// `N` bytes of slot `index` from `at` on.
    fn part<const N: usize>(&self, index: usize, at: usize) -> &'a [u8; N] {
        let slot = &self.slots[index * slot_size(self.level) + at..];
        slot.first_chunk().expect("the slots hold a whole number of slots")
    }

    /// The reason why this cannot be what a node of `birth` holds.
    fn check(&self, birth: Txg) -> Result<(), &'static str> {
        let mut end = 0;
        for index in 0..self.count() {
            if index > 0 && self.key(index - 1) >= self.key(index) {
                return Err("keys out of order");
            }
            if self.level == 0 {
                let start = std::mem::replace(&mut end, self.end(index));
                if end < start || end - start > VALUE_LENGTH_MAX || end > self.heap.len() {
                    return Err("a value out of bounds");
                }
            } else {
                let child = self.child(index);
                if !child.is_possible() || child.birth > birth {
                    return Err("an impossible child");
                }
            }
        }
        let rest = &self.heap[end..];
        if rest != &ZEROS[..rest.len()] {
            return Err("bytes after the last item");
        }
        Ok(())
    }
}

/// Binary search over slots of `N` bytes.
fn at_or_before<const N: usize>(slots: &[u8], key: ItemKey) -> Option<usize> {
    let (slots, _) = slots.as_chunks::<N>();
    let key_of = |slot: &[u8; N]| {
        ItemKey::from_bytes(slot.first_chunk().expect("a slot starts with a whole key"))
    };
    slots.partition_point(|slot| key_of(slot) <= key).checked_sub(1)
}

const fn slot_size(level: u8) -> usize {
    if level == 0 { LEAF_SLOT } else { INTERIOR_SLOT }
}

/// What a reader knows about a node before it has read it.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The parent's pointer.
    pub ptr: NodePtr,
    /// The filesystem.
    pub uuid: Uuid,
    /// The subvolume that wrote it; `None` where trees share nodes and any may have.
    pub owner: Option<SubvolId>,
    /// One less than the parent's.
    pub level: u8,
}

/// A valid node. Immutable, and cheap to search in place.
pub struct Node {
    blocks: BlockSlice,
    ptr: NodePtr,
    owner: SubvolId,
    level: u8,
    count: usize,
}

impl Node {
    /// Decodes a node and verifies all of it. Fails with [`MapError::Corrupt`] only.
    pub fn decode(blocks: BlockSlice, expected: &Expected) -> Result<Self, MapError> {
        check(blocks.bytes(), expected)
            .map(|(owner, count)| Self {
                blocks,
                ptr: expected.ptr,
                owner,
                level: expected.level,
                count,
            })
            .map_err(|reason| corrupt(expected.ptr, reason))
    }

    /// What a parent keeps of it.
    pub fn ptr(&self) -> NodePtr {
        self.ptr
    }

    /// The subvolume that wrote it.
    pub fn owner(&self) -> SubvolId {
        self.owner
    }

    /// Its level; 0 is a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The bytes as they stand on disk, to be written without copying them.
    pub fn blocks(&self) -> &BlockSlice {
        &self.blocks
    }

    /// Its items.
    pub fn items(&self) -> Items<'_> {
        items(self.blocks.bytes(), self.level, self.count)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({:?}, level {}, {} items)", self.ptr, self.level, self.count)
    }
}

/// The error of a node that is not what its pointer says.
pub fn corrupt(ptr: NodePtr, reason: &'static str) -> MapError {
    MapError::Corrupt { structure: "node", addr: ptr.addr, reason }
}

/// The items in a node's bytes, whose number must have been checked.
fn items(bytes: &[u8], level: u8, count: usize) -> Items<'_> {
    let (slots, rest) = bytes[HEADER_SIZE..].split_at(count * slot_size(level));
    Items { level, slots, heap: rest }
}

/// Verifies a node's bytes; gives its owner and its number of items.
fn check(bytes: &[u8], expected: &Expected) -> Result<(SubvolId, usize), &'static str> {
    if bytes.len() != NODE_SIZE {
        return Err("wrong length");
    }
    let (owner, count) = check_header(bytes, expected).map_err(|error| match error {
        DecodeError::Short => "too short",
        DecodeError::Invalid(reason) => reason,
    })?;
    if count == 0 || count * slot_size(expected.level) > NODE_CAPACITY {
        return Err("impossible number of items");
    }
    items(bytes, expected.level, count).check(expected.ptr.birth)?;
    Ok((owner, count))
}

fn check_header(bytes: &[u8], expected: &Expected) -> Result<(SubvolId, usize), DecodeError> {
    fn require(fits: bool, reason: &'static str) -> Result<(), DecodeError> {
        if fits { Ok(()) } else { Err(DecodeError::Invalid(reason)) }
    }
    let mut reader = Reader::new(bytes);
    require(reader.u32()? == MAGIC, "not a node")?;
    require(reader.u16()? == VERSION, "unknown version")?;
    let level = reader.u8()?;
    let flags = reader.u8()?;
    let uuid = Uuid(reader.array()?);
    let addr = BlockAddr(reader.u64()?);
    let birth = Txg(reader.u64()?);
    let checksum = reader.u64()?;
    require(checksum == checksum_of(bytes), "checksum mismatch")?;
    require(uuid == expected.uuid, "of another filesystem")?;
    require(addr == expected.ptr.addr, "of another place")?;
    require(birth == expected.ptr.birth, "of another transaction group")?;
    require(checksum == expected.ptr.checksum, "not the version its parent points to")?;
    require(level == expected.level && level <= LEVEL_MAX, "of another level")?;
    require(flags == 0, "unknown flags")?;
    let owner = SubvolId(reader.u32()?);
    require(expected.owner.is_none_or(|expected| expected == owner), "of another subvolume")?;
    let count = usize::from(reader.u16()?);
    reader.zeros(10)?;
    Ok((owner, count))
}

fn checksum_of(bytes: &[u8]) -> u64 {
    crc64_of(&[&bytes[..CHECKSUM_AT], &[0; 8], &bytes[CHECKSUM_AT + 8..]])
}

/// Where a finished node goes and who writes it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The filesystem.
    pub uuid: Uuid,
    /// The node's first block.
    pub addr: BlockAddr,
    /// The transaction group.
    pub birth: Txg,
    /// The subvolume.
    pub owner: SubvolId,
}

/// A node that is packed already but has no place yet.
pub struct Draft {
    blocks: Blocks,
    level: u8,
    count: usize,
}

impl Draft {
    /// A leaf of `items`, which must be in order and fit: [`LEAF_SLOT`] bytes each and the value.
    pub fn leaf(items: &[(ItemKey, &[u8])]) -> Self {
        let mut draft = Self::empty(0, items.len());
        let (slots, heap) =
            draft.blocks.bytes_mut()[HEADER_SIZE..].split_at_mut(items.len() * LEAF_SLOT);
        let mut end = 0;
        for (slot, (key, value)) in slots.chunks_exact_mut(LEAF_SLOT).zip(items) {
            assert!(value.len() <= VALUE_LENGTH_MAX, "a value of {} bytes", value.len());
            heap[end..end + value.len()].copy_from_slice(value);
            end += value.len();
            slot[..KEY_SIZE].copy_from_slice(&key.to_bytes());
            slot[KEY_SIZE..].copy_from_slice(&(end as u16).to_le_bytes());
        }
        assert!(items.is_sorted_by(|a, b| a.0 < b.0), "items of a leaf in order");
        draft
    }

    /// An interior node of `children` (with the lowest key of each), in order, which must fit:
    /// [`INTERIOR_SLOT`] bytes each.
    pub fn interior(level: u8, children: &[(ItemKey, NodePtr)]) -> Self {
        assert!((1..=LEVEL_MAX).contains(&level), "an interior node of level {level}");
        let mut draft = Self::empty(level, children.len());
        let slots = &mut draft.blocks.bytes_mut()[HEADER_SIZE..];
        for (slot, (key, ptr)) in slots.chunks_exact_mut(INTERIOR_SLOT).zip(children) {
            slot[..KEY_SIZE].copy_from_slice(&key.to_bytes());
            slot[KEY_SIZE..].copy_from_slice(&ptr.to_bytes());
        }
        assert!(children.is_sorted_by(|a, b| a.0 < b.0), "children of a node in order");
        draft
    }

    fn empty(level: u8, count: usize) -> Self {
        assert!(count > 0, "a node without items");
        assert!(count * slot_size(level) <= NODE_CAPACITY, "{count} items do not fit a node");
        Self { blocks: Blocks::zeroed(NODE_BLOCKS), level, count }
    }

    /// Its level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its items.
    pub fn items(&self) -> Items<'_> {
        items(self.blocks.bytes(), self.level, self.count)
    }

    /// Gives the node its place, which makes it final.
    pub fn seal(mut self, place: &Place) -> Node {
        let mut header = Vec::with_capacity(HEADER_SIZE);
        header.put_u32(MAGIC);
        header.put_u16(VERSION);
        header.put_u8(self.level);
        header.put_u8(0);
        header.extend_from_slice(&place.uuid.0);
        header.put_u64(place.addr.0);
        header.put_u64(place.birth.0);
        header.put_u64(0);
        header.put_u32(place.owner.0);
        header.put_u16(self.count as u16);
        header.put_zeros(10);
        let bytes = self.blocks.bytes_mut();
        bytes[..HEADER_SIZE].copy_from_slice(&header);
        let checksum = checksum_of(bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        let ptr = NodePtr { addr: place.addr, birth: place.birth, checksum };
        assert!(ptr.is_possible(), "no node can be at {ptr:?}");
        Node {
            blocks: BlockSlice::new(self.blocks),
            ptr,
            owner: place.owner,
            level: self.level,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::rng::Rng;

    use super::*;

    const UUID: Uuid = Uuid([7; 16]);
    const OWNER: SubvolId = SubvolId(5);

    fn key(number: u64) -> ItemKey {
        ItemKey { ino: Ino(number / 3), kind: Kind((number % 3 + 1) as u8), at: number % 7 }
    }

    fn seal(draft: Draft) -> Node {
        draft.seal(&Place { uuid: UUID, addr: BlockAddr(40), birth: Txg(9), owner: OWNER })
    }

    fn sample_leaf() -> Node {
        let items: Vec<(ItemKey, Vec<u8>)> =
            (0..200).map(|n| (key(n), vec![n as u8; (n % 60) as usize])).collect();
        let items: Vec<_> = items.iter().map(|(key, value)| (*key, &value[..])).collect();
        seal(Draft::leaf(&items))
    }

    fn sample_interior() -> Node {
        let ptr = |n| NodePtr { addr: BlockAddr(4 * n + 4), birth: Txg(n % 9 + 1), checksum: n };
        let children: Vec<_> = (0..398).map(|n| (key(n), ptr(n))).collect();
        seal(Draft::interior(2, &children))
    }

    fn expected(node: &Node) -> Expected {
        Expected { ptr: node.ptr(), uuid: UUID, owner: Some(OWNER), level: node.level() }
    }

    fn reason(bytes: &[u8], expected: &Expected) -> &'static str {
        match Node::decode(BlockSlice::new(Blocks::from_bytes(bytes)), expected) {
            Err(MapError::Corrupt { structure: "node", addr, reason }) => {
                assert_eq!(addr, expected.ptr.addr);
                reason
            }
            other => panic!("not a corrupt node but {other:?}"),
        }
    }

    /// The bytes with their checksum put right, and the pointer to them.
    fn forge(mut bytes: Vec<u8>, expected: &Expected) -> (Vec<u8>, Expected) {
        let checksum = checksum_of(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_le_bytes());
        (bytes, Expected { ptr: NodePtr { checksum, ..expected.ptr }, ..*expected })
    }

    #[test]
    fn nodes_round_trip() {
        let leaf = sample_leaf();
        let read = Node::decode(leaf.blocks().clone(), &expected(&leaf)).expect("valid");
        let items = read.items();
        assert_eq!(items.count(), 200);
        assert_eq!(items.used(), 200 * 19 + (0..200).map(|n| n % 60).sum::<usize>());
        for n in 0..200 {
            assert_eq!(items.find(key(n)), Some(n as usize));
            assert_eq!(items.value(n as usize), vec![n as u8; (n % 60) as usize]);
        }
        let interior = sample_interior();
        let read = Node::decode(interior.blocks().clone(), &expected(&interior)).expect("valid");
        assert_eq!(read.items().count(), 398);
        assert_eq!(read.items().child(5).addr, BlockAddr(24));
        assert_eq!((read.level(), read.owner(), read.ptr()), (2, OWNER, interior.ptr()));
    }

    #[test]
    fn search_finds_the_neighbour_below() {
        let keys = [key(3), key(6), key(9)];
        let node = seal(Draft::leaf(&keys.map(|key| (key, &b"v"[..]))));
        let items = node.items();
        assert_eq!(items.at_or_before(key(2)), None);
        assert_eq!(items.at_or_before(key(3)), Some(0));
        assert_eq!(items.at_or_before(key(8)), Some(1));
        assert_eq!(items.at_or_before(key(100)), Some(2));
        assert_eq!(items.find(key(8)), None);
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let item = ItemKey { ino: Ino(0x0102), kind: Kind(6), at: 0x0304 };
        let node = seal(Draft::leaf(&[(item, b"abc")]));
        let bytes = node.blocks().bytes();
        assert_eq!(&bytes[..8], b"GbnN\x01\0\0\0");
        assert_eq!(&bytes[8..24], &[7; 16]);
        assert_eq!(&bytes[24..40], b"\x28\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        assert_eq!(&bytes[40..48], node.ptr().checksum.to_le_bytes());
        assert_eq!(&bytes[48..64], b"\x05\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&bytes[64..83], b"\x02\x01\0\0\0\0\0\0\x06\x04\x03\0\0\0\0\0\0\x03\0");
        assert_eq!(&bytes[83..87], b"abc\0");
        let sizes = (NODE_SIZE, NODE_CAPACITY, LEAF_SLOT, INTERIOR_SLOT, LEVEL_MAX);
        assert_eq!(sizes, (16_384, 16_320, 19, 41, 12));
    }

    #[test]
    fn a_node_elsewhere_or_of_somebody_else_is_refused() {
        let node = sample_leaf();
        let bytes = node.blocks().bytes();
        let good = expected(&node);
        let ptr = good.ptr;
        let with = |ptr| Expected { ptr, ..good };
        let moved = NodePtr { addr: BlockAddr(44), ..ptr };
        assert_eq!(reason(bytes, &with(moved)), "of another place");
        let older = NodePtr { birth: Txg(8), ..ptr };
        assert_eq!(reason(bytes, &with(older)), "of another transaction group");
        let other = NodePtr { checksum: ptr.checksum ^ 1, ..ptr };
        assert_eq!(reason(bytes, &with(other)), "not the version its parent points to");
        let stranger = Expected { uuid: Uuid([8; 16]), ..good };
        assert_eq!(reason(bytes, &stranger), "of another filesystem");
        let tree = Expected { owner: Some(SubvolId(6)), ..good };
        assert_eq!(reason(bytes, &tree), "of another subvolume");
        assert_eq!(reason(bytes, &Expected { level: 1, ..good }), "of another level");
        assert_eq!(reason(&bytes[..BLOCK_SIZE], &good), "wrong length");
        let anyone = Expected { owner: None, ..good };
        assert!(Node::decode(node.blocks().clone(), &anyone).is_ok());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut rng = Rng::new(1);
        for node in [sample_leaf(), sample_interior()] {
            for _ in 0..1000 {
                let mut bytes = node.blocks().bytes().to_vec();
                bytes[rng.below(NODE_SIZE as u64) as usize] ^= 1 << rng.below(8);
                reason(&bytes, &expected(&node));
            }
        }
    }

    #[test]
    fn forged_nodes_with_a_right_checksum_never_panic() {
        let mut rng = Rng::new(2);
        let mut valid = 0;
        for node in [sample_leaf(), sample_interior()] {
            let used = HEADER_SIZE as u64 + node.items().used() as u64;
            for round in 0..3000 {
                let mut bytes = node.blocks().bytes().to_vec();
                if round % 10 == 0 {
                    rng.fill(&mut bytes[HEADER_SIZE..]);
                }
                for _ in 0..=rng.below(3) {
                    bytes[48 + rng.below(used - 48) as usize] = rng.next_u64() as u8;
                }
                let (bytes, expected) = forge(bytes, &expected(&node));
                let blocks = BlockSlice::new(Blocks::from_bytes(&bytes));
                if let Ok(node) = Node::decode(blocks, &expected) {
                    valid += 1;
                    let items = node.items();
                    for index in 0..items.count() {
                        assert_eq!(items.find(items.key(index)), Some(index));
                        if node.level() == 0 {
                            assert!(items.value(index).len() <= VALUE_LENGTH_MAX);
                        }
                    }
                }
            }
        }
        assert!(valid > 100, "the loop must reach the accessors");
    }

    #[test]
    fn impossible_items_are_refused_with_their_reason() {
        let node = sample_leaf();
        let forged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = node.blocks().bytes().to_vec();
            change(&mut bytes);
            let (bytes, expected) = forge(bytes, &expected(&node));
            reason(&bytes, &expected)
        };
        assert_eq!(forged(&|b| b[52..54].fill(0)), "impossible number of items");
        assert_eq!(forged(&|b| b[52..54].fill(0xff)), "impossible number of items");
        assert_eq!(forged(&|b| b[60] = 1), "reserved bytes");
        assert_eq!(forged(&|b| b[7] = 1), "unknown flags");
        assert_eq!(forged(&|b| b[64] = 0xff), "keys out of order");
        assert_eq!(forged(&|b| b[64 + 18] = 0x7f), "a value out of bounds");
        assert_eq!(forged(&|b| b[NODE_SIZE - 1] = 1), "bytes after the last item");
        let node = sample_interior();
        let mut bytes = node.blocks().bytes().to_vec();
        bytes[64 + 17 + 8] = 10;
        let (bytes, expected) = forge(bytes, &expected(&node));
        assert_eq!(reason(&bytes, &expected), "an impossible child");
    }

    #[test]
    fn optional_pointers_round_trip() {
        let ptr = NodePtr { addr: BlockAddr(8), birth: Txg(3), checksum: 99 };
        let mut bytes = Vec::new();
        NodePtr::encode_optional(Some(ptr), &mut bytes);
        NodePtr::encode_optional(None, &mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(NodePtr::decode_optional(&mut reader), Ok(Some(ptr)));
        assert_eq!(NodePtr::decode_optional(&mut reader), Ok(None));
        bytes[0] = 9;
        let result = NodePtr::decode_optional(&mut Reader::new(&bytes));
        assert_eq!(result, Err(DecodeError::Invalid("node pointer")));
    }
}
