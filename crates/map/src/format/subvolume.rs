//! The value of a SUBVOLUME item: a subvolume's, snapshot's or clone's record.
//!
//! ```text
//! short form  flags u32 (bit 0: read-only, bit 1: the long form, bit 2: held), parent u32,
//!             origin u32, root level u8, 3 zero bytes, root (address, birth, checksum: 24),
//!             birth u64, newest snapshot u64 (its birth, 0: none), newest snapshot's id u32,
//!             4 zero bytes, next inode u64, nodes u64
//!
//! long form   the same, then chain u32, base u32, base's birth u64, created i64 (seconds since
//!             1970), removal u8, kind u8, 6 zero bytes, inode u64, at u64 (the latter three: the
//!             key that a walk goes on from), name (the rest: at most 255 bytes)
//! ```
//!
//! A record that needs nothing of the long form has the short one, which is all that there was
//! before snapshots had names.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId, Txg};

use crate::format::node::{ItemKey, LEVEL_MAX, NODE_BLOCKS, NodePtr};
use crate::key::{INO_END, Kind};
use crate::layout::BLOCKS_MAX;

/// Longest name of a snapshot, in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 255;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_LONG: u32 = 2;
const FLAG_HELD: u32 = 4;

/// Whether a subvolume can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An ordinary subvolume.
    Writable,
    /// A snapshot.
    ReadOnly,
}

/// Whether a snapshot may be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Yes.
    #[default]
    Released,
    /// No: somebody wants to keep it.
    Held,
}

/// How far the removal of a subvolume or snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removal {
    /// It is not being removed.
    #[default]
    None,
    /// Nobody sees it any more; its blocks are all still there.
    Marked,
    /// Its deadlist becomes shorter.
    Draining,
    /// What is before this key in its tree is gone.
    Walking(ItemKey),
    /// Its tree is gone; its deadlist, of blocks that were in it, is dropped.
    Dropping,
}

/// What a record says in the long form only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// The chain that it belongs to; 0: that of its own id, or a snapshot's origin.
    pub chain: SubvolId,
    /// The snapshot that the chain was cloned from; 0 if it was not.
    pub base: SubvolId,
    /// Birth of that snapshot. What is not younger belongs to it.
    pub base_birth: Txg,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// How far its removal is.
    pub removal: Removal,
    /// Whether it may be removed.
    pub hold: Hold,
    /// Its name among the snapshots of its origin; empty if it has none.
    pub name: Vec<u8>,
}

/// A SUBVOLUME item's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubvolRecord {
    /// Whether it can be changed.
    pub access: Access,
    /// The subvolume it stands in; 0 for the first.
    pub parent: SubvolId,
    /// The subvolume it was made from; 0 if it was made empty.
    pub origin: SubvolId,
    /// Root of its tree.
    pub root: Option<NodePtr>,
    /// Level of the root.
    pub level: u8,
    /// When it was made.
    pub birth: Txg,
    /// Birth of its newest snapshot, or 0.
    pub newest_snapshot_birth: Txg,
    /// Its newest snapshot, or 0.
    pub newest_snapshot: SubvolId,
    /// The number that the next new inode gets.
    pub next_ino: u64,
    /// Nodes in its tree.
    pub nodes: u64,
    /// What else there is to say.
    pub extended: Extended,
}

impl SubvolRecord {
    /// Whether it takes the long form to write it.
    pub fn is_long(&self) -> bool {
        self.extended != Extended::default()
    }

    /// The encoded value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(136 + self.extended.name.len());
        out.put_u32(self.flags());
        out.put_u32(self.parent.0);
        out.put_u32(self.origin.0);
        out.put_u8(self.level);
        out.put_zeros(3);
        NodePtr::encode_optional(self.root, &mut out);
        out.put_u64(self.birth.0);
        out.put_u64(self.newest_snapshot_birth.0);
        out.put_u32(self.newest_snapshot.0);
        out.put_zeros(4);
        out.put_u64(self.next_ino);
        out.put_u64(self.nodes);
        if self.is_long() {
            self.extended.encode(&mut out);
        }
        out
    }

    fn flags(&self) -> u32 {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        flag(self.access == Access::ReadOnly, FLAG_READ_ONLY)
            | flag(self.is_long(), FLAG_LONG)
            | flag(self.extended.hold == Hold::Held, FLAG_HELD)
    }

    /// Decodes a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u32()?;
        let is_long = flags & FLAG_LONG != 0;
        let known = if is_long { FLAG_READ_ONLY | FLAG_LONG | FLAG_HELD } else { FLAG_READ_ONLY };
        if flags & !known != 0 {
            return Err(DecodeError::Invalid("flags of a subvolume"));
        }
        let access = if flags & FLAG_READ_ONLY == 0 { Access::Writable } else { Access::ReadOnly };
        let parent = SubvolId(reader.u32()?);
        let origin = SubvolId(reader.u32()?);
        let level = reader.u8()?;
        reader.zeros(3)?;
        let root = NodePtr::decode_optional(&mut reader)?;
        if level > LEVEL_MAX || (root.is_none() && level != 0) {
            return Err(DecodeError::Invalid("level of a subvolume's root"));
        }
        let birth = Txg(reader.u64()?);
        let newest_snapshot_birth = Txg(reader.u64()?);
        let newest_snapshot = SubvolId(reader.u32()?);
        reader.zeros(4)?;
        let next_ino = reader.u64()?;
        let nodes = reader.u64()?;
        let extended = match is_long {
            true => Extended::decode(&mut reader, flags & FLAG_HELD != 0)?,
            false => Extended::default(),
        };
        reader.finish()?;
        if next_ino == 0 || next_ino > INO_END {
            return Err(DecodeError::Invalid("next inode number of a subvolume"));
        }
        if nodes > BLOCKS_MAX / NODE_BLOCKS as u64 {
            return Err(DecodeError::Invalid("number of a subvolume's nodes"));
        }
        Ok(Self {
            access,
            parent,
            origin,
            root,
            level,
            birth,
            newest_snapshot_birth,
            newest_snapshot,
            next_ino,
            nodes,
            extended,
        })
    }
}

impl Extended {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.chain.0);
        out.put_u32(self.base.0);
        out.put_u64(self.base_birth.0);
        out.put_u64(self.created as u64);
        let (number, place) = match self.removal {
            Removal::None => (0, None),
            Removal::Marked => (1, None),
            Removal::Draining => (2, None),
            Removal::Walking(place) => (3, Some(place)),
            Removal::Dropping => (4, None),
        };
        let place = place.unwrap_or(ItemKey { ino: Ino(0), kind: Kind(0), at: 0 });
        out.put_u8(number);
        out.put_u8(place.kind.0);
        out.put_zeros(6);
        out.put_u64(place.ino.0);
        out.put_u64(place.at);
        out.extend_from_slice(&self.name);
    }

    fn decode(reader: &mut Reader<'_>, is_held: bool) -> Result<Self, DecodeError> {
        let chain = SubvolId(reader.u32()?);
        let base = SubvolId(reader.u32()?);
        let base_birth = Txg(reader.u64()?);
        let created = reader.u64()? as i64;
        let number = reader.u8()?;
        let kind = Kind(reader.u8()?);
        reader.zeros(6)?;
        let place = ItemKey { ino: Ino(reader.u64()?), kind, at: reader.u64()? };
        let is_start = place == ItemKey { ino: Ino(0), kind: Kind(0), at: 0 };
        let removal = match number {
            0 if is_start => Removal::None,
            1 if is_start => Removal::Marked,
            2 if is_start => Removal::Draining,
            3 => Removal::Walking(place),
            4 if is_start => Removal::Dropping,
            _ => return Err(DecodeError::Invalid("removal of a subvolume")),
        };
        let name = reader.bytes(reader.remaining())?;
        if name.len() > SNAPSHOT_NAME_MAX || (!name.is_empty() && !is_snapshot_name(name)) {
            return Err(DecodeError::Invalid("name of a snapshot"));
        }
        let hold = if is_held { Hold::Held } else { Hold::Released };
        let name = name.to_vec();
        let extended = Self { chain, base, base_birth, created, removal, hold, name };
        if extended == Self::default() {
            return Err(DecodeError::Invalid("form of a subvolume"));
        }
        Ok(extended)
    }
}

/// Whether a snapshot can have this name: what a file could be called, and not one of the dots.
pub fn is_snapshot_name(name: &[u8]) -> bool {
    let is_bad = |byte: &u8| *byte == b'/' || *byte == 0;
    (1..=SNAPSHOT_NAME_MAX).contains(&name.len())
        && !name.iter().any(is_bad)
        && name != b"."
        && name != b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> SubvolRecord {
        SubvolRecord {
            access: Access::Writable,
            parent: SubvolId(0),
            origin: SubvolId(0),
            root: None,
            level: 0,
            birth: Txg(1),
            newest_snapshot_birth: Txg(0),
            newest_snapshot: SubvolId(0),
            next_ino: 1,
            nodes: 0,
            extended: Extended::default(),
        }
    }

    fn decode(record: SubvolRecord) -> Result<SubvolRecord, DecodeError> {
        SubvolRecord::decode(&record.encode())
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, DecodeError>) -> &'static str {
        match result {
            Err(DecodeError::Invalid(reason)) => reason,
            other => panic!("not invalid but {other:?}"),
        }
    }

    #[test]
    fn subvolumes_with_impossible_numbers_are_refused() {
        assert_eq!(decode(good()), Ok(good()));
        let level = decode(SubvolRecord { level: 1, ..good() });
        assert_eq!(reason(level), "level of a subvolume's root");
        for next_ino in [0, INO_END + 1, u64::MAX] {
            let result = decode(SubvolRecord { next_ino, ..good() });
            assert_eq!(reason(result), "next inode number of a subvolume");
        }
        let nodes = decode(SubvolRecord { nodes: u64::MAX, ..good() });
        assert_eq!(reason(nodes), "number of a subvolume's nodes");
    }

    #[test]
    fn only_what_needs_it_is_in_the_long_form() {
        assert_eq!(good().encode().len(), 80);
        let place = ItemKey { ino: Ino(3), kind: Kind::DATA, at: 4096 };
        let removals = [Removal::None, Removal::Marked, Removal::Draining, Removal::Walking(place)];
        for (index, removal) in removals.into_iter().enumerate() {
            let name = if index == 1 { Vec::new() } else { b"monday".to_vec() };
            let hold = if index == 2 { Hold::Held } else { Hold::Released };
            let extended = Extended {
                chain: SubvolId(index as u32),
                base: SubvolId(7),
                base_birth: Txg(8),
                created: -9,
                removal,
                hold,
                name,
            };
            let record = SubvolRecord { extended, ..good() };
            assert!(record.is_long());
            assert_eq!(decode(record.clone()), Ok(record));
        }
    }

    #[test]
    fn long_forms_that_make_no_sense_are_refused() {
        let extended = Extended { name: b"n".to_vec(), ..Extended::default() };
        let bytes = SubvolRecord { extended, ..good() }.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            reason(SubvolRecord::decode(&bytes))
        };
        assert_eq!(with(104, 5), "removal of a subvolume");
        assert_eq!(with(105, 1), "removal of a subvolume");
        assert_eq!(with(128, b'/'), "name of a snapshot");
        assert_eq!(with(128, b'.'), "name of a snapshot");
        assert_eq!(with(0, 8), "flags of a subvolume");
        let short = SubvolRecord::decode(&[&[4][..], &good().encode()[1..]].concat());
        assert_eq!(reason(short), "flags of a subvolume");
    }
}
