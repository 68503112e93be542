//! Keys: where an item stands in the map.
//!
//! ```text
//! key = (subvolume u32, inode u64, kind u8, at u64)      ordered field by field
//! ```
//!
//! All items of one object are neighbours, and within it all items of one kind. The map gives
//! meaning to three kinds itself, because it stores file bytes and shares blocks: [`Kind::FILE`],
//! [`Kind::DATA`] and [`Kind::REFERENCE`]. Every other kind is bytes to it.

use std::fmt;

use gabion_base::ids::{Ino, SubvolId};

/// Inode numbers end before this: half of what a counter holds, so none ever overflows.
pub const INO_END: u64 = 1 << 63;

/// What an item is. Numbers are the disk format's; 0 is invalid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// Attributes of an object, at 0.
    pub const INODE: Kind = Kind(1);
    /// Size and number of blocks of a file's bytes, at 0. Kept by the map itself.
    pub const FILE: Kind = Kind(2);
    /// Target of a symbolic link, at 0.
    pub const SYMLINK: Kind = Kind(3);
    /// Extended attributes whose names share a hash, at the hash.
    pub const XATTR: Kind = Kind(4);
    /// Directory entries whose names share a hash, at the hash.
    pub const DIRENT: Kind = Kind(5);
    /// A file's bytes, at their offset. Kept by the map itself.
    pub const DATA: Kind = Kind(6);
    /// An object without a name that is still to be removed: under inode 0, at the inode.
    pub const ORPHAN: Kind = Kind(7);
    /// How many more than one owner a run of blocks has: under inode 0, at the block address.
    /// Kept by the map itself.
    pub const REFERENCE: Kind = Kind(8);
    /// A subvolume's record: in the forest, under the subvolume's id as inode, at 0.
    pub const SUBVOLUME: Kind = Kind(9);
    /// A run of blocks that died while an older snapshot still needs it: in the forest, under the
    /// owning subvolume's id as inode, at the block address.
    pub const DEAD: Kind = Kind(10);
    /// A run of blocks with several owners that is free already, while the subvolume that shared
    /// it is being removed: in the forest, under that one's id as inode, at the block address.
    pub const FREED: Kind = Kind(11);
    /// What a server notes of its clients' sessions: who they are under inode 0, what they have had
    /// done under inodes of their own, which are no objects.
    pub const SESSION: Kind = Kind(12);
    /// Advisory locks, at the byte that is locked. Never an item: only leases are on them.
    pub const LOCK: Kind = Kind(64);
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::INODE => "INODE",
            Self::FILE => "FILE",
            Self::SYMLINK => "SYMLINK",
            Self::XATTR => "XATTR",
            Self::DIRENT => "DIRENT",
            Self::DATA => "DATA",
            Self::ORPHAN => "ORPHAN",
            Self::REFERENCE => "REFERENCE",
            Self::SUBVOLUME => "SUBVOLUME",
            Self::DEAD => "DEAD",
            Self::FREED => "FREED",
            Self::SESSION => "SESSION",
            Self::LOCK => "LOCK",
            Self(other) => return write!(f, "kind {other}"),
        })
    }
}

/// An object: a file, directory or other inode of one subvolume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The subvolume it lives in.
    pub subvol: SubvolId,
    /// Its number there.
    pub ino: Ino,
}

impl FileId {
    /// The object `ino` of `subvol`.
    pub const fn new(subvol: SubvolId, ino: Ino) -> Self {
        Self { subvol, ino }
    }

    /// The key of this object's item of `kind` at `at`.
    pub const fn key(self, kind: Kind, at: u64) -> Key {
        Key { subvol: self.subvol, ino: self.ino, kind, at }
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.subvol.0, self.ino.0)
    }
}

/// Where an item stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The subvolume.
    pub subvol: SubvolId,
    /// The object.
    pub ino: Ino,
    /// What the item is.
    pub kind: Kind,
    /// A hash, an offset, an address: what the kind says.
    pub at: u64,
}

impl Key {
    /// The object the item belongs to.
    pub const fn file(&self) -> FileId {
        FileId { subvol: self.subvol, ino: self.ino }
    }

    /// The first possible key of a subvolume.
    pub const fn first(subvol: SubvolId) -> Self {
        Self { subvol, ino: Ino(0), kind: Kind(0), at: 0 }
    }

    /// The last possible key of a subvolume.
    pub const fn last(subvol: SubvolId) -> Self {
        Self { subvol, ino: Ino(u64::MAX), kind: Kind(u8::MAX), at: u64::MAX }
    }

    /// The key right after this one, if there is any in the subvolume.
    pub fn successor(self) -> Option<Self> {
        if let Some(at) = self.at.checked_add(1) {
            return Some(Self { at, ..self });
        }
        if let Some(kind) = self.kind.0.checked_add(1) {
            return Some(Self { kind: Kind(kind), at: 0, ..self });
        }
        let ino = Ino(self.ino.0.checked_add(1)?);
        Some(Self { ino, kind: Kind(0), at: 0, ..self })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} {:?}@{}", self.subvol.0, self.ino.0, self.kind, self.at)
    }
}
