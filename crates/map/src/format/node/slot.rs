//! What slots are made of: keys, pointers, and where a value ends.
//!
//! ```text
//! leaf       key [17], end u16
//! interior   key [17], pointer [24]
//!
//! key        ino u64, kind u8, at u64
//! pointer    addr u64, birth u64, checksum u64
//! ```
//!
//! Keys are ordered as what they say is, not as their bytes are: numbers are little-endian. A
//! pointer names a place, but proves nothing: what stands there is compared with the whole pointer.
//! Superblocks and the items of subvolumes hold pointers, too, where all zeros mean that there is
//! no node.

use std::fmt;

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg};

use crate::format::node::NODE_BLOCKS;
use crate::key::{Key, Kind};
use crate::layout::BLOCKS_MAX;

/// Bytes that a leaf's item takes besides its value.
pub const LEAF_SLOT: usize = KEY_SIZE + 2;
/// Bytes that a child takes in an interior node.
pub const INTERIOR_SLOT: usize = KEY_SIZE + POINTER_SIZE;

pub(super) const KEY_SIZE: usize = 17;
pub(super) const POINTER_SIZE: usize = 24;

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

    pub(super) fn from_bytes(bytes: &[u8; KEY_SIZE]) -> Self {
        let [i0, i1, i2, i3, i4, i5, i6, i7, kind, a0, a1, a2, a3, a4, a5, a6, a7] = *bytes;
        Self {
            ino: Ino(u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7])),
            kind: Kind(kind),
            at: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; KEY_SIZE] {
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

    pub(super) fn from_bytes(bytes: &[u8; POINTER_SIZE]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Self { addr: BlockAddr(word(0)), birth: Txg(word(8)), checksum: word(16) }
    }

    pub(super) fn to_bytes(self) -> [u8; POINTER_SIZE] {
        let mut bytes = [0; POINTER_SIZE];
        bytes[..8].copy_from_slice(&self.addr.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.birth.0.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Whether some filesystem could hold a node there.
    pub(super) fn is_possible(&self) -> bool {
        self.addr.0 != 0
            && self.addr.0.is_multiple_of(NODE_BLOCKS as u64)
            && self.addr.0 < BLOCKS_MAX
            && self.birth.0 != 0
    }
}

pub(super) const fn slot_size(level: u8) -> usize {
    if level == 0 { LEAF_SLOT } else { INTERIOR_SLOT }
}

#[cfg(test)]
mod tests {
    use super::*;

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
