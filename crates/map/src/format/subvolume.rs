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
//!
//! Before the name of a long form stand, each if its flag is set:
//!
//! ```text
//! bit 3, quota     most blocks u64, most objects u64 (all bits set: as many as there is room for),
//!                  counted u8 (1: no, 2: yes), 7 zero bytes, blocks u64, objects u64
//! bit 4, schedule  snapshots to keep, each u16: hourly, daily, weekly, monthly
//! ```

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId, Txg};

use crate::format::node::{ItemKey, LEVEL_MAX, NODE_BLOCKS, NodePtr};
use crate::key::{INO_END, Kind};
use crate::layout::BLOCKS_MAX;

/// Longest name of a snapshot, in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 255;

/// More blocks or objects than any subvolume can refer to.
pub const COUNT_MAX: u64 = 1 << 62;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_LONG: u32 = 2;
const FLAG_HELD: u32 = 4;
const FLAG_QUOTA: u32 = 8;
const FLAG_SCHEDULE: u32 = 16;
const FLAGS_LONG: u32 = FLAG_READ_ONLY | FLAG_LONG | FLAG_HELD | FLAG_QUOTA | FLAG_SCHEDULE;

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

/// How much a subvolume may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The most of it.
    pub most: Most,
    /// What it refers to as the commit has it; `None` until that was counted. A snapshot's is that
    /// of its subvolume when it was made.
    pub count: Option<Count>,
}

/// Limits of a subvolume; `None`: as much as there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Blocks: those of the files' bytes, shared ones fully, and one for each object.
    pub blocks: Option<u64>,
    /// Objects: files, directories and whatever else has an inode.
    pub objects: Option<u64>,
}

/// What a subvolume refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Blocks of the files' bytes, shared ones fully.
    pub blocks: u64,
    /// Objects.
    pub objects: u64,
}

impl Count {
    /// What counts against the limit on blocks.
    pub fn charged(&self) -> u64 {
        self.blocks.saturating_add(self.objects)
    }
}

/// How many snapshots of each class are made by themselves and kept; 0: none are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// One an hour.
    pub hourly: u16,
    /// One a day.
    pub daily: u16,
    /// One a week.
    pub weekly: u16,
    /// One a month.
    pub monthly: u16,
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
    /// How much it may refer to, if that is limited.
    pub quota: Option<Quota>,
    /// Which snapshots of it are made by themselves, if any are.
    pub schedule: Option<Schedule>,
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

    /// Whether it has a quota or a schedule.
    pub fn has_attachments(&self) -> bool {
        self.extended.quota.is_some() || self.extended.schedule.is_some()
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
            | flag(self.extended.quota.is_some(), FLAG_QUOTA)
            | flag(self.extended.schedule.is_some(), FLAG_SCHEDULE)
    }

    /// Decodes a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u32()?;
        let is_long = flags & FLAG_LONG != 0;
        let known = if is_long { FLAGS_LONG } else { FLAG_READ_ONLY };
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
            true => Extended::decode(&mut reader, flags)?,
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
        if let Some(quota) = &self.quota {
            quota.encode(out);
        }
        if let Some(schedule) = &self.schedule {
            schedule.encode(out);
        }
        out.extend_from_slice(&self.name);
    }

    fn decode(reader: &mut Reader<'_>, flags: u32) -> Result<Self, DecodeError> {
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
        let has = |flag: u32| flags & flag != 0;
        let quota = has(FLAG_QUOTA).then(|| Quota::decode(reader)).transpose()?;
        let schedule = has(FLAG_SCHEDULE).then(|| Schedule::decode(reader)).transpose()?;
        let name = reader.bytes(reader.remaining())?;
        if name.len() > SNAPSHOT_NAME_MAX || (!name.is_empty() && !is_snapshot_name(name)) {
            return Err(DecodeError::Invalid("name of a snapshot"));
        }
        let hold = if has(FLAG_HELD) { Hold::Held } else { Hold::Released };
        let name = name.to_vec();
        let extended =
            Self { chain, base, base_birth, created, removal, hold, name, quota, schedule };
        if extended == Self::default() {
            return Err(DecodeError::Invalid("form of a subvolume"));
        }
        Ok(extended)
    }
}

/// All that an unlimited number can be.
const UNLIMITED: u64 = u64::MAX;

impl Quota {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.most.blocks.unwrap_or(UNLIMITED));
        out.put_u64(self.most.objects.unwrap_or(UNLIMITED));
        out.put_u8(if self.count.is_some() { 2 } else { 1 });
        out.put_zeros(7);
        let count = self.count.unwrap_or_default();
        out.put_u64(count.blocks);
        out.put_u64(count.objects);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (blocks, objects) = (reader.u64()?, reader.u64()?);
        let limit = |number: u64| (number != UNLIMITED).then_some(number);
        let most = Most { blocks: limit(blocks), objects: limit(objects) };
        let counted = reader.u8()?;
        reader.zeros(7)?;
        let count = Count { blocks: reader.u64()?, objects: reader.u64()? };
        let count = match counted {
            1 if count == Count::default() => None,
            2 if count.blocks <= COUNT_MAX && count.objects <= COUNT_MAX => Some(count),
            _ => return Err(DecodeError::Invalid("count of a quota")),
        };
        let quota = Self { most, count };
        if most == Most::default() {
            return Err(DecodeError::Invalid("limits of a quota"));
        }
        Ok(quota)
    }
}

impl Schedule {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.hourly);
        out.put_u16(self.daily);
        out.put_u16(self.weekly);
        out.put_u16(self.monthly);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (hourly, daily) = (reader.u16()?, reader.u16()?);
        let (weekly, monthly) = (reader.u16()?, reader.u16()?);
        let schedule = Self { hourly, daily, weekly, monthly };
        if schedule == Self::default() {
            return Err(DecodeError::Invalid("schedule of snapshots"));
        }
        Ok(schedule)
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
            let most = Most { blocks: Some(10), objects: None };
            let count = (index < 3).then_some(Count { blocks: 11, objects: 12 });
            let extended = Extended {
                chain: SubvolId(index as u32),
                base: SubvolId(7),
                base_birth: Txg(8),
                created: -9,
                removal,
                hold,
                name,
                quota: (index > 1).then_some(Quota { most, count }),
                schedule: (index % 2 == 0).then_some(Schedule { weekly: 4, ..Schedule::default() }),
            };
            let record = SubvolRecord { extended, ..good() };
            assert!(record.is_long());
            assert_eq!(decode(record.clone()), Ok(record));
        }
    }

    #[test]
    fn quotas_and_schedules_that_make_no_sense_are_refused() {
        let most = Most { blocks: None, objects: Some(1) };
        let count = Some(Count { blocks: 1, objects: 1 });
        let quota = |quota| Extended { quota: Some(quota), ..Extended::default() };
        let refused = |extended| reason(decode(SubvolRecord { extended, ..good() }));
        let unlimited = Quota { most: Most::default(), count };
        assert_eq!(refused(quota(unlimited)), "limits of a quota");
        let count = Some(Count { blocks: 1, objects: u64::MAX });
        assert_eq!(refused(quota(Quota { most, count })), "count of a quota");
        let schedule = Some(Schedule::default());
        assert_eq!(refused(Extended { schedule, ..Extended::default() }), "schedule of snapshots");
        let extended = quota(Quota { most, count: None });
        let mut bytes = SubvolRecord { extended, ..good() }.encode();
        bytes[128 + 16] = 3;
        assert_eq!(reason(SubvolRecord::decode(&bytes)), "count of a quota");
        bytes[128 + 16] = 1;
        bytes[128 + 24] = 1;
        assert_eq!(reason(SubvolRecord::decode(&bytes)), "count of a quota");
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
        assert_eq!(with(0, 32), "flags of a subvolume");
        let short = SubvolRecord::decode(&[&[4][..], &good().encode()[1..]].concat());
        assert_eq!(reason(short), "flags of a subvolume");
    }
}
