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
//! A set of items has exactly one encoding. [`Node::decode`] verifies everything once: identity and
//! checksum here, order and bounds in `items`. What reads a [`Node`] afterwards indexes without
//! failing. A child is never younger than its parent, because whoever rewrites a child rewrites its
//! parent. [`Draft`] makes nodes; `slot` has the keys and pointers that slots are made of.
//!
//! Not verified here, because it takes two nodes: that a child's keys lie between the parent's
//! separators. The tree does so on every descent.

mod draft;
mod items;
mod slot;

use std::fmt;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Reader};
use gabion_base::ids::{BlockAddr, SubvolId, Txg, Uuid};

use self::items::items;
use self::slot::slot_size;
use crate::error::MapError;
use crate::txn::VALUE_LENGTH_MAX;

pub use self::draft::{Draft, Place};
pub use self::items::Items;
pub use self::slot::{INTERIOR_SLOT, ItemKey, LEAF_SLOT, NodePtr};

/// Blocks in a node, and what its address is a multiple of.
pub const NODE_BLOCKS: usize = 4;
/// Bytes in a node.
pub const NODE_SIZE: usize = NODE_BLOCKS * BLOCK_SIZE;
/// Bytes of a node that items can use.
pub const NODE_CAPACITY: usize = NODE_SIZE - HEADER_SIZE;
/// The highest level there is. Nodes with a hundred children each never come near it.
pub const LEVEL_MAX: u8 = 12;

const MAGIC: u32 = u32::from_le_bytes(*b"GbnN");
const VERSION: u16 = 1;
const HEADER_SIZE: usize = 64;
const CHECKSUM_AT: usize = 40;

const _: () = assert!(3 * (LEAF_SLOT + VALUE_LENGTH_MAX) <= NODE_CAPACITY);
const _: () = assert!(NODE_CAPACITY <= u16::MAX as usize);

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

#[cfg(test)]
mod tests {
    use gabion_base::buffer::Blocks;
    use gabion_base::ids::Ino;
    use gabion_base::rng::Rng;

    use super::*;
    use crate::key::Kind;

    const UUID: Uuid = Uuid([7; 16]);
    const OWNER: SubvolId = SubvolId(5);

    pub(super) fn key(number: u64) -> ItemKey {
        ItemKey { ino: Ino(number / 3), kind: Kind((number % 3 + 1) as u8), at: number % 7 }
    }

    pub(super) fn seal(draft: Draft) -> Node {
        draft.seal(&Place { uuid: UUID, addr: BlockAddr(40), birth: Txg(9), owner: OWNER })
    }

    pub(super) fn sample_leaf() -> Node {
        let items: Vec<(ItemKey, Vec<u8>)> =
            (0..200).map(|n| (key(n), vec![n as u8; (n % 60) as usize])).collect();
        let items: Vec<_> = items.iter().map(|(key, value)| (*key, &value[..])).collect();
        seal(Draft::leaf(&items))
    }

    pub(super) fn sample_interior() -> Node {
        let ptr = |n| NodePtr { addr: BlockAddr(4 * n + 4), birth: Txg(n % 9 + 1), checksum: n };
        let children: Vec<_> = (0..398).map(|n| (key(n), ptr(n))).collect();
        seal(Draft::interior(2, &children))
    }

    pub(super) fn expected(node: &Node) -> Expected {
        Expected { ptr: node.ptr(), uuid: UUID, owner: Some(OWNER), level: node.level() }
    }

    pub(super) fn reason(bytes: &[u8], expected: &Expected) -> &'static str {
        match Node::decode(BlockSlice::new(Blocks::from_bytes(bytes)), expected) {
            Err(MapError::Corrupt { structure: "node", addr, reason }) => {
                assert_eq!(addr, expected.ptr.addr);
                reason
            }
            other => panic!("not a corrupt node but {other:?}"),
        }
    }

    /// The bytes with their checksum put right, and the pointer to them.
    pub(super) fn forge(mut bytes: Vec<u8>, expected: &Expected) -> (Vec<u8>, Expected) {
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
}
