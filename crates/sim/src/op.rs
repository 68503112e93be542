//! The operations that a workload is made of, and what they answer.
//!
//! An [`Op`] is one system call, or the open-call-close that a program makes of it. It says
//! everything by value, so that a list of them can be stored, cut short and run again.
//!
//! # Conventions
//!
//! - Paths have no leading slash and are taken from the root of the filesystem; `""` is the root.
//! - The caller is root, its umask is 0, its groups are root's.
//! - An open file lives in a [`Slot`]. Opening into a slot closes what it held. A slot that holds
//!   nothing answers EBADF.
//! - Special files are never opened: whatever would open one answers ENXIO.
//! - Times, sizes of directories and space are not looked at; a directory's size is given as 0.
//! - The bytes of a write follow from its `stamp` and their offset ([`bytes`]), so that no two
//!   writes ever write equal blocks, and stale or foreign bytes are known for what they are.

use std::fmt;

/// A place for an open file.
pub type Slot = u8;

/// How an operation names its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By path.
    Path(String),
    /// By a file that is open.
    Slot(Slot),
}

/// What a rename does with an object that has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renaming {
    /// It is replaced.
    Replace,
    /// The rename fails.
    NoReplace,
    /// Both change places.
    Exchange,
}

/// What opening does if there is no such file, or if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It must exist.
    Existing,
    /// It must exist, and is cut to nothing.
    Truncate,
    /// It is made with this mode if it does not exist.
    Create(u32),
    /// It must not exist, and is made with this mode.
    Exclusive(u32),
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
}

/// What `fallocate` is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Reserve, and grow the file.
    Extend,
    /// Reserve only.
    KeepSize,
    /// Make a hole.
    Punch,
    /// Make zeros, and grow the file.
    Zero,
    /// Make zeros within the size.
    ZeroKeepSize,
    /// Take the range out.
    Collapse,
    /// Put a hole in.
    Insert,
}

/// What setting an extended attribute requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrWrite {
    /// Nothing.
    Any,
    /// That it is not there.
    Create,
    /// That it is there.
    Replace,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `mknod`: makes a file (not opened), a named pipe or a device. `rdev` counts for devices.
    Mknod {
        /// Where.
        path: String,
        /// `File`, `Fifo` or `CharDevice`.
        kind: Kind,
        /// Permission bits.
        mode: u32,
        /// Device number as `makedev` composes it.
        rdev: u64,
    },
    /// `mkdir`.
    Mkdir {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// `symlink`.
    Symlink {
        /// Where.
        path: String,
        /// What it says.
        target: String,
    },
    /// `link`, which does not follow a symbolic link; of a slot, by `AT_EMPTY_PATH`.
    Link {
        /// The object.
        from: Target,
        /// Its new name.
        to: String,
    },
    /// `unlink`.
    Unlink {
        /// Where.
        path: String,
    },
    /// `rmdir`.
    Rmdir {
        /// Where.
        path: String,
    },
    /// `renameat2`.
    Rename {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
        /// What happens to an object there.
        how: Renaming,
    },
    /// `open` for reading and writing.
    Open {
        /// Where; a symbolic link is followed, but not by `Exclusive`.
        path: String,
        /// Into which slot.
        slot: Slot,
        /// What is made or required.
        how: Opening,
    },
    /// `open` with `O_TMPFILE`.
    Tmpfile {
        /// The directory.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Into which slot.
        slot: Slot,
    },
    /// `close`.
    Close {
        /// Which.
        slot: Slot,
    },
    /// `pwrite`.
    Write {
        /// The file.
        file: Target,
        /// Offset in bytes.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Which bytes.
        stamp: u64,
    },
    /// `pread`.
    Read {
        /// The file.
        file: Target,
        /// Offset in bytes.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// `truncate`.
    SetSize {
        /// The file.
        file: Target,
        /// In bytes.
        size: u64,
    },
    /// `fallocate`.
    Fallocate {
        /// The file.
        file: Target,
        /// What to do.
        how: Allocation,
        /// Offset in bytes.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// `copy_file_range`, called once. The source is opened first.
    CopyRange {
        /// The source.
        from: Target,
        /// Offset in the source in bytes.
        from_offset: u64,
        /// The destination.
        to: Target,
        /// Offset in the destination in bytes.
        to_offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// `chmod`, which follows a symbolic link.
    Chmod {
        /// The object.
        object: Target,
        /// Permission bits.
        mode: u32,
    },
    /// `lchown`.
    Chown {
        /// The object; a symbolic link is meant itself.
        path: String,
        /// The new owner, if any.
        uid: Option<u32>,
        /// The new group, if any.
        gid: Option<u32>,
    },
    /// `lsetxattr`.
    SetXattr {
        /// The object; a symbolic link is meant itself.
        path: String,
        /// With its prefix.
        name: String,
        /// The value.
        value: Vec<u8>,
        /// What is required.
        how: XattrWrite,
    },
    /// `lremovexattr`.
    RemoveXattr {
        /// The object; a symbolic link is meant itself.
        path: String,
        /// With its prefix.
        name: String,
    },
    /// `lgetxattr`. Answers [`Value::Bytes`].
    Xattr {
        /// The object; a symbolic link is meant itself.
        path: String,
        /// With its prefix.
        name: String,
    },
    /// `llistxattr`, sorted. Answers [`Value::Names`].
    Xattrs {
        /// The object; a symbolic link is meant itself.
        path: String,
    },
    /// `lstat`, or `fstat`. Answers [`Value::Status`].
    Stat {
        /// The object; a symbolic link is meant itself.
        object: Target,
    },
    /// All entries but `.` and `..`, sorted; a symbolic link is followed. Answers
    /// [`Value::Entries`].
    ReadDir {
        /// The directory.
        path: String,
    },
    /// `readlink`. Answers [`Value::Text`].
    ReadLink {
        /// The link.
        path: String,
    },
    /// `fsync`; a symbolic link is followed.
    Fsync {
        /// The file or directory.
        object: Target,
    },
    /// `syncfs`.
    Sync,
}

impl Op {
    /// Whether it may need more space than it frees: on a full disk it may be refused.
    pub fn adds(&self) -> bool {
        match self {
            Self::Mknod { .. }
            | Self::Mkdir { .. }
            | Self::Symlink { .. }
            | Self::Link { .. }
            | Self::Rename { .. }
            | Self::Open { .. }
            | Self::Tmpfile { .. }
            | Self::Write { .. }
            | Self::CopyRange { .. }
            | Self::SetXattr { .. } => true,
            Self::Fallocate { how, .. } => !matches!(how, Allocation::Punch | Allocation::Collapse),
            _ => false,
        }
    }
}

/// What `stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// The kind of object.
    pub kind: Kind,
    /// The lower 12 bits of the mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the object; of a directory, 2 and one for each subdirectory.
    pub nlink: u32,
    /// Device number, 0 unless it is a device.
    pub rdev: u64,
    /// In bytes; 0 for a directory.
    pub size: u64,
}

/// What a successful operation answers.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Done,
    /// A number of bytes.
    Count(u64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A link's target.
    Text(String),
    /// Sorted names.
    Names(Vec<String>),
    /// Sorted directory entries.
    Entries(Vec<(String, Kind)>),
    /// Attributes.
    Status(Status),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("Done"),
            Self::Count(count) => write!(f, "Count({count})"),
            Self::Bytes(bytes) => {
                let sum = bytes
                    .iter()
                    .fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
                write!(f, "{} bytes, sum {sum:08x}", bytes.len())
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Entries(entries) => write!(f, "{entries:?}"),
            Self::Status(status) => write!(f, "{status:?}"),
        }
    }
}

/// An error number as Linux has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident $number:literal),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("Number ", stringify!($number), ".")]
            pub const $name: Errno = Errno($number);)*
        }

        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self(other) => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos! {
    EPERM 1, ENOENT 2, EIO 5, ENXIO 6, EBADF 9, EBUSY 16, EEXIST 17, ENOTDIR 20, EISDIR 21,
    EINVAL 22, ENOSPC 28, ERANGE 34, ENAMETOOLONG 36, ENOTEMPTY 39, ELOOP 40, ENODATA 61,
    EOPNOTSUPP 95, EDQUOT 122,
}

/// The answer to an operation.
pub type Outcome = Result<Value, Errno>;

/// The `length` bytes that a write with `stamp` puts at `offset`.
pub fn bytes(stamp: u64, offset: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| {
        let mut word = (at / 8).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stamp;
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (word ^ (word >> 32)).to_le_bytes()[(at % 8) as usize]
    };
    (offset..offset + length).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_write_depend_on_stamp_and_offset_only() {
        let whole = bytes(3, 0, 100);
        assert_eq!(whole[13..60], bytes(3, 13, 47));
        assert_ne!(whole, bytes(4, 0, 100));
        assert_ne!(whole[0..8], whole[8..16]);
    }
}
