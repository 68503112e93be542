//! The mode word: what an object is and who may do what with it.
//!
//! ```text
//! 15    12 11      9 8    6 5    3 2    0
//! [ type ][ s g t  ][ rwx ][ rwx ][ rwx ]     numbers as in stat(2), so that no edge translates
//!           set-user  owner  group  others
//!           set-group
//!           sticky
//! ```

/// The bits of the mode that say what an object is.
pub const TYPE_MASK: u32 = 0o170_000;
/// The bits that chmod(2) can set.
pub const CHANGEABLE: u32 = 0o7777;
/// The nine permission bits.
pub const PERMISSIONS: u32 = 0o777;
/// Run with the owner's rights.
pub const SET_USER: u32 = 0o4000;
/// Run with the group's rights; on a directory: new objects belong to its group.
pub const SET_GROUP: u32 = 0o2000;
/// On a directory: only owners remove and rename entries.
pub const STICKY: u32 = 0o1000;
/// The group may execute.
pub const GROUP_EXECUTE: u32 = 0o010;

/// What an object is. The numbers are those of the mode word and of `d_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FileType {
    /// A named pipe.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A directory.
    Directory = 4,
    /// A block device.
    BlockDevice = 6,
    /// A file with bytes.
    Regular = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A socket.
    Socket = 12,
}

impl FileType {
    /// The type with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The type that a mode word names.
    pub const fn of_mode(mode: u32) -> Option<Self> {
        Self::from_number(((mode & TYPE_MASK) >> 12) as u8)
    }

    /// The type's bits in a mode word.
    pub const fn bits(self) -> u32 {
        (self as u32) << 12
    }
}
