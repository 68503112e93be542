//! The DIRENT item: the entries of a directory whose names share a hash.
//!
//! ```text
//! version u8 = 1, then entries, by slot:
//!   inode u64 | slot u4, type u4 | length u8 | name
//! ```
//!
//! An entry's *cookie*, its place in a listing, is `position + slot + 1`. Positions are multiples
//! of 16 in `16..2^63`, so cookies fit a signed 64-bit number and 1 and 2 are left for "." and
//! "..". An entry keeps its slot until it is removed, hence a listing that is interrupted neither
//! loses nor repeats an entry that was there all the time.
//!
//! A position has [`SLOTS`] slots. The hash is seeded and 59 bits wide, so more names than that
//! on one position do not happen by chance.

use gabion_base::checksum::name_hash;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::Ino;

use crate::mode::FileType;
use crate::subvolume;

/// Entries that share a position at most.
pub const SLOTS: u8 = 15;
/// The first position; cookies below it are those of "." and "..".
pub const FIRST_POSITION: u64 = 16;
/// Longest name in bytes.
pub const NAME_LENGTH_MAX: usize = 255;

const VERSION: u8 = 1;
const HEAD: usize = 10;

/// Where a name's entry stands in its directory.
pub fn position(name: &[u8], seed: u64) -> u64 {
    ((name_hash(name, seed) >> 1) & !0xf).max(FIRST_POSITION)
}

/// The position of the entry with this cookie.
pub const fn position_of_cookie(cookie: u64) -> u64 {
    cookie & !0xf
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The object.
    pub ino: Ino,
    /// What it is.
    pub file_type: FileType,
    /// Number among those of the same position.
    pub slot: u8,
    /// The name.
    pub name: &'a [u8],
    /// Where the entry starts in the item's value.
    pub start: usize,
}

impl Dirent<'_> {
    /// Where the entry ends in the item's value.
    pub fn end(&self) -> usize {
        self.start + HEAD + self.name.len()
    }

    /// Where the name starts in the item's value.
    pub fn name_start(&self) -> usize {
        self.start + HEAD
    }

    /// The entry's cookie in a listing.
    pub fn cookie(&self, position: u64) -> u64 {
        position.saturating_add(u64::from(self.slot) + 1)
    }
}

/// The entries of an item's value, in the order of their slots.
#[derive(Clone, Debug)]
pub struct Dirents<'a> {
    length: usize,
    reader: Reader<'a>,
    slot_min: u8,
}

impl<'a> Dirents<'a> {
    /// Starts to decode `value`.
    pub fn decode(value: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(value);
        if reader.u8()? != VERSION {
            return Err(DecodeError::Invalid("directory entry version"));
        }
        Ok(Self { length: value.len(), reader, slot_min: 0 })
    }

    /// The next entry, `None` after the last one.
    pub fn next_entry(&mut self) -> Result<Option<Dirent<'a>>, DecodeError> {
        if self.reader.remaining() == 0 {
            return Ok(None);
        }
        let start = self.length - self.reader.remaining();
        let ino = Ino(self.reader.u64()?);
        if ino == Ino(0) {
            return Err(DecodeError::Invalid("inode of a directory entry"));
        }
        let kind = self.reader.u8()?;
        let slot = kind >> 4;
        if slot < self.slot_min || slot >= SLOTS {
            return Err(DecodeError::Invalid("slot of a directory entry"));
        }
        self.slot_min = slot + 1;
        let file_type = FileType::from_number(kind & 0xf)
            .ok_or(DecodeError::Invalid("type of a directory entry"))?;
        let length = usize::from(self.reader.u8()?);
        if length == 0 {
            return Err(DecodeError::Invalid("name of a directory entry"));
        }
        let name = self.reader.bytes(length)?;
        Ok(Some(Dirent { ino, file_type, slot, name, start }))
    }

    /// The next entry that stands for an object of the same subvolume.
    pub fn next_object(&mut self) -> Result<Option<Dirent<'a>>, DecodeError> {
        while let Some(entry) = self.next_entry()? {
            if subvolume::of_entry(entry.ino).is_none() {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The entry of `name`.
    pub fn find(mut self, name: &[u8]) -> Result<Option<Dirent<'a>>, DecodeError> {
        while let Some(entry) = self.next_entry()? {
            if entry.name == name {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// The value of an item that has one entry.
pub fn encode_first(name: &[u8], ino: Ino, file_type: FileType) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + HEAD + name.len());
    out.put_u8(VERSION);
    put_entry(&mut out, 0, name, ino, file_type);
    out
}

/// `value` with one more entry, in the lowest free slot. `None`: all slots are taken.
pub fn insert(
    value: &[u8],
    name: &[u8],
    ino: Ino,
    file_type: FileType,
) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut entries = Dirents::decode(value)?;
    let mut slot = 0;
    let mut at = 1;
    while let Some(entry) = entries.next_entry()? {
        if entry.slot > slot {
            break;
        }
        slot = entry.slot + 1;
        at = entry.end();
    }
    if slot >= SLOTS {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(value.len() + HEAD + name.len());
    out.extend_from_slice(&value[..at]);
    put_entry(&mut out, slot, name, ino, file_type);
    out.extend_from_slice(&value[at..]);
    Ok(Some(out))
}

/// `value` with `entry` (decoded from it) naming another object.
pub fn replace(value: &[u8], entry: &Dirent<'_>, ino: Ino, file_type: FileType) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    out.extend_from_slice(&value[..entry.start]);
    put_entry(&mut out, entry.slot, entry.name, ino, file_type);
    out.extend_from_slice(&value[entry.end()..]);
    out
}

/// `value` without `entry` (decoded from it). `None`: it was the last one.
pub fn remove(value: &[u8], entry: &Dirent<'_>) -> Option<Vec<u8>> {
    let length = entry.end() - entry.start;
    if value.len() == 1 + length {
        return None;
    }
    let mut out = Vec::with_capacity(value.len() - length);
    out.extend_from_slice(&value[..entry.start]);
    out.extend_from_slice(&value[entry.end()..]);
    Some(out)
}

fn put_entry(out: &mut Vec<u8>, slot: u8, name: &[u8], ino: Ino, file_type: FileType) {
    assert!(name.len() <= NAME_LENGTH_MAX && slot < SLOTS, "{} {slot}", name.len());
    out.put_u64(ino.0);
    out.put_u8(slot << 4 | file_type as u8);
    out.put_u8(name.len() as u8);
    out.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_version_1() {
        let one = encode_first(b"ab", Ino(7), FileType::Regular);
        assert_eq!(one, [1, 7, 0, 0, 0, 0, 0, 0, 0, 0x08, 2, b'a', b'b']);
        let two = insert(&one, b"c", Ino(8), FileType::Directory).unwrap().unwrap();
        assert_eq!(two[..13], one);
        assert_eq!(two[13..], [8, 0, 0, 0, 0, 0, 0, 0, 0x14, 1, b'c']);
    }

    #[test]
    fn positions_leave_room_for_slots_and_for_the_two_dots() {
        for i in 0..1000_u32 {
            let at = position(&i.to_le_bytes(), 5);
            assert!(at >= FIRST_POSITION && at.is_multiple_of(16) && at < 1 << 63);
        }
        assert_eq!(position(b"name", 1), position(b"name", 1));
        assert_ne!(position(b"name", 1), position(b"name", 2));
    }

    #[test]
    fn an_entry_keeps_its_slot_while_others_come_and_go() {
        let mut value = encode_first(b"0", Ino(10), FileType::Regular);
        for i in 1..SLOTS {
            let name = [b'0' + i];
            value =
                insert(&value, &name, Ino(10 + u64::from(i)), FileType::Regular).unwrap().unwrap();
        }
        assert_eq!(insert(&value, b"more", Ino(99), FileType::Regular), Ok(None));
        let third = Dirents::decode(&value).unwrap().find(b"3").unwrap().unwrap();
        let value = remove(&value, &third).unwrap();
        let fifth = Dirents::decode(&value).unwrap().find(b"5").unwrap().unwrap();
        assert_eq!(fifth.slot, 5);
        let value = insert(&value, b"new", Ino(50), FileType::Fifo).unwrap().unwrap();
        let new = Dirents::decode(&value).unwrap().find(b"new").unwrap().unwrap();
        assert_eq!((new.slot, new.ino, new.file_type), (3, Ino(50), FileType::Fifo));
        let value = replace(&value, &new, Ino(51), FileType::Socket);
        let new = Dirents::decode(&value).unwrap().find(b"new").unwrap().unwrap();
        assert_eq!((new.slot, new.ino, new.file_type), (3, Ino(51), FileType::Socket));
    }

    #[test]
    fn the_last_entry_takes_the_item_with_it() {
        let value = encode_first(b"x", Ino(2), FileType::Regular);
        let entry = Dirents::decode(&value).unwrap().find(b"x").unwrap().unwrap();
        assert_eq!(remove(&value, &entry), None);
    }

    #[test]
    fn damaged_bytes_are_refused_with_a_reason() {
        let good = encode_first(b"ab", Ino(7), FileType::Regular);
        for length in 2..good.len() {
            let mut entries = Dirents::decode(&good[..length]).unwrap();
            assert_eq!(entries.next_entry(), Err(DecodeError::Short));
        }
        for (offset, byte, reason) in [
            (1, 0, "inode of a directory entry"),
            (9, 0xf8, "slot of a directory entry"),
            (9, 0x03, "type of a directory entry"),
            (10, 0, "name of a directory entry"),
        ] {
            let mut bad = good.clone();
            bad[offset] = byte;
            let mut entries = Dirents::decode(&bad).unwrap();
            assert_eq!(entries.next_entry(), Err(DecodeError::Invalid(reason)));
        }
        assert!(Dirents::decode(&[2]).is_err());
    }
}
