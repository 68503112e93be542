//! The INODE item: an object's attributes.
//!
//! ```text
//!   0  u8   version, 1            32  u64  parent: a directory that it has a name in
//!   1  u8   0                     40  u64  length: entries of a directory, bytes of a
//!   2  u16  mode with the type             symlink's target; else 0
//!   4  u32  flags                 48  u64  change counter
//!   8  u32  uid                   56  i64, u32  atime: seconds, nanoseconds
//!  12  u32  gid                   68  i64, u32  mtime
//!  16  u32  nlink                 80  i64, u32  ctime
//!  20  u32  of a device rdev, else place                  92  i64, u32  btime
//!  24  u64  generation           104
//! ```
//!
//! Of a directory the parent is true. Of other objects it is where the last of their names was
//! given, until that name goes. The place is the upper half of that name's position there. So an
//! object is found without a look at all names; 0 says that nobody wrote it down.
//!
//! Absent: the size and the blocks of a file's bytes. The map keeps them, so that writing bytes
//! changes no item here.

use std::ops::Range;

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::Ino;
use gabion_base::time::Timestamp;

use crate::mode::{self, FileType};
use crate::object::LINKS_MAX;

/// Length of the item in bytes.
pub const LENGTH: usize = 104;

const VERSION: u8 = 1;
/// Positions have 63 bits.
const PLACE_SHIFT: u32 = 31;

/// Facts about an object that spare reading other items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// It may have extended attributes of any kind.
    pub const ATTRIBUTES: Flags = Flags(1);
    /// It has an access ACL.
    pub const ACCESS_ACL: Flags = Flags(2);
    /// It has a default ACL.
    pub const DEFAULT_ACL: Flags = Flags(4);
    /// It has capabilities (`security.capability`).
    pub const CAPABILITY: Flags = Flags(8);
    /// Without a name from the start (`O_TMPFILE`), and may be given one.
    pub const LINKABLE: Flags = Flags(16);

    const KNOWN: u32 = 31;

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Sets `flags`.
    pub fn set(&mut self, flags: Flags) {
        self.0 |= flags.0;
    }

    /// Clears `flags`.
    pub fn clear(&mut self, flags: Flags) {
        self.0 &= !flags.0;
    }
}

/// An object's attributes as they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Permission bits. The type's bits are not in it.
    pub permissions: u32,
    /// What it is.
    pub file_type: FileType,
    /// Facts about it.
    pub flags: Flags,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; of a directory 2 and one for each directory in it; 0 once it is removed.
    pub nlink: u32,
    /// Device number in the kernel's 32-bit encoding; 0 for all but devices.
    pub rdev: u32,
    /// Tells apart two objects that had the same number in different histories of a subvolume.
    pub generation: u64,
    /// Of a directory: the one it is in (the root: itself). Else one that it may have a name in, or
    /// 0.
    pub parent: Ino,
    /// Entries of a directory, bytes of a symlink's target, else 0.
    pub length: u64,
    /// Of what is no device: where in `parent` it may have a name, see [`place`], or 0. Else 0.
    pub place: u32,
    /// Counts changes of the object.
    pub change: u64,
    /// Last reading, by the mount's policy.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

impl Inode {
    /// The mode word: type and permissions.
    pub fn mode(&self) -> u32 {
        self.file_type.bits() | self.permissions
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// Whether it is a device, which has a number.
    pub fn is_device(&self) -> bool {
        matches!(self.file_type, FileType::CharDevice | FileType::BlockDevice)
    }

    /// Decodes an item's value.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(value);
        if reader.u8()? != VERSION {
            return Err(DecodeError::Invalid("inode version"));
        }
        reader.zeros(1)?;
        let word = u32::from(reader.u16()?);
        let file_type = FileType::of_mode(word).ok_or(DecodeError::Invalid("file type"))?;
        let flags = Flags(reader.u32()?);
        if flags.0 & !Flags::KNOWN != 0 {
            return Err(DecodeError::Invalid("inode flags"));
        }
        let mut inode = Self {
            permissions: word & mode::CHANGEABLE,
            file_type,
            flags,
            uid: reader.u32()?,
            gid: reader.u32()?,
            nlink: reader.u32()?,
            rdev: reader.u32()?,
            generation: reader.u64()?,
            parent: Ino(reader.u64()?),
            length: reader.u64()?,
            place: 0,
            change: reader.u64()?,
            atime: timestamp(&mut reader)?,
            mtime: timestamp(&mut reader)?,
            ctime: timestamp(&mut reader)?,
            btime: timestamp(&mut reader)?,
        };
        reader.finish()?;
        // Counters that can still be counted up.
        if inode.nlink > LINKS_MAX || inode.length > i64::MAX as u64 {
            return Err(DecodeError::Invalid("number of links or entries"));
        }
        if !inode.is_device() {
            std::mem::swap(&mut inode.rdev, &mut inode.place);
        }
        Ok(inode)
    }

    /// The item's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LENGTH);
        out.put_u8(VERSION);
        out.put_u8(0);
        out.put_u16(self.mode() as u16);
        out.put_u32(self.flags.0);
        out.put_u32(self.uid);
        out.put_u32(self.gid);
        out.put_u32(self.nlink);
        out.put_u32(if self.is_device() { self.rdev } else { self.place });
        out.put_u64(self.generation);
        out.put_u64(self.parent.0);
        out.put_u64(self.length);
        out.put_u64(self.change);
        for time in [self.atime, self.mtime, self.ctime, self.btime] {
            out.put_u64(time.seconds as u64);
            out.put_u32(time.nanos);
        }
        assert_eq!(out.len(), LENGTH, "the layout has a fixed length");
        out
    }
}

/// What an inode keeps of a name's position.
pub const fn place(position: u64) -> u32 {
    (position >> PLACE_SHIFT) as u32
}

/// The positions that have this place.
pub const fn positions(place: u32) -> Range<u64> {
    (place as u64) << PLACE_SHIFT..(place as u64 + 1) << PLACE_SHIFT
}

fn timestamp(reader: &mut Reader<'_>) -> Result<Timestamp, DecodeError> {
    let seconds = reader.u64()? as i64;
    let nanos = reader.u32()?;
    if nanos >= 1_000_000_000 {
        return Err(DecodeError::Invalid("nanoseconds"));
    }
    Ok(Timestamp::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Inode {
        Inode {
            permissions: 0o2755,
            file_type: FileType::Directory,
            flags: Flags::DEFAULT_ACL,
            uid: 1000,
            gid: 100,
            nlink: 3,
            rdev: 0,
            generation: 0x1122_3344_5566_7788,
            parent: Ino(1),
            length: 5,
            place: 0,
            change: 9,
            atime: Timestamp::new(-1, 999_999_999),
            mtime: Timestamp::new(2, 3),
            ctime: Timestamp::new(4, 5),
            btime: Timestamp::new(6, 7),
        }
    }

    #[test]
    fn bytes_are_those_of_version_1() {
        let golden: [u8; LENGTH] = [
            1, 0, 0xed, 0x45, 4, 0, 0, 0, 0xe8, 3, 0, 0, 100, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0,
            0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0xff, 0xc9,
            0x9a, 0x3b, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6,
            0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0,
        ];
        assert_eq!(sample().encode(), golden);
        assert_eq!(Inode::decode(&golden), Ok(sample()));
        let placed = Inode { place: 0x1234_5678, ..sample() };
        let mut expected = golden;
        expected[20..24].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        assert_eq!(placed.encode(), expected);
        assert_eq!(Inode::decode(&expected), Ok(placed));
        let device = Inode { file_type: FileType::CharDevice, rdev: 0x1234_5678, ..sample() };
        expected[3] = 0x25;
        assert_eq!(device.encode(), expected);
        assert_eq!(Inode::decode(&expected), Ok(device));
    }

    #[test]
    fn damaged_bytes_are_refused_with_a_reason() {
        let good = sample().encode();
        for length in 0..LENGTH {
            assert_eq!(Inode::decode(&good[..length]), Err(DecodeError::Short));
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(Inode::decode(&long), Err(DecodeError::Invalid("trailing bytes")));
        for (offset, byte, reason) in [
            (0, 2, "inode version"),
            (1, 1, "reserved bytes"),
            (3, 0x35, "file type"),
            (7, 1, "inode flags"),
            (19, 0xff, "number of links or entries"),
            (47, 0xff, "number of links or entries"),
            (67, 0xff, "nanoseconds"),
        ] {
            let mut bad = good.clone();
            bad[offset] = byte;
            assert_eq!(Inode::decode(&bad), Err(DecodeError::Invalid(reason)));
        }
    }
}
