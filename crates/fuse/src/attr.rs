//! What replies say of files: attributes, directory entries found by name, open files, the whole
//! filesystem. Times to live are durations: zero means never cached, `Duration::MAX` for ever.

use std::time::Duration;

use crate::abi;
use crate::bits::flag_set;
use crate::request::{Handle, NodeId, Timestamp};

/// The attributes of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number shown to users.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Type (`S_IFMT`) and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Preferred size of I/O, in bytes.
    pub block_size: u32,
}

impl Attr {
    pub(crate) fn to_wire(self) -> abi::Attr {
        abi::Attr {
            ino: self.ino,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime.seconds,
            mtime: self.mtime.seconds,
            ctime: self.ctime.seconds,
            atimensec: self.atime.nanoseconds,
            mtimensec: self.mtime.nanoseconds,
            ctimensec: self.ctime.nanoseconds,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.block_size,
            flags: 0,
        }
    }
}

/// An inode found under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name the kernel shall use for the inode. This answer counts one lookup of it.
    pub node: NodeId,
    /// Distinguishes reuses of `node`.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the name may be cached.
    pub entry_ttl: Duration,
    /// How long the attributes may be cached.
    pub attr_ttl: Duration,
}

impl Entry {
    pub(crate) fn to_wire(self) -> abi::EntryOut {
        abi::EntryOut {
            nodeid: self.node.0,
            generation: self.generation,
            entry_valid: self.entry_ttl.as_secs(),
            attr_valid: self.attr_ttl.as_secs(),
            entry_valid_nsec: self.entry_ttl.subsec_nanos(),
            attr_valid_nsec: self.attr_ttl.subsec_nanos(),
            attr: self.attr.to_wire(),
        }
    }
}

/// Attributes with what only statx(2) shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedAttr {
    /// The basic attributes.
    pub attr: Attr,
    /// When the file was made, if known.
    pub btime: Option<Timestamp>,
    /// `STATX_ATTR_*` flags that are set.
    pub attributes: u64,
    /// `STATX_ATTR_*` flags that the filesystem knows.
    pub attributes_known: u64,
}

impl ExtendedAttr {
    pub(crate) fn to_wire(self) -> abi::Statx {
        let time = |time: Timestamp| abi::SxTime {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds,
            reserved: 0,
        };
        let attr = self.attr;
        let btime_known = self.btime.map_or(0, |_| libc::STATX_BTIME);
        abi::Statx {
            mask: libc::STATX_BASIC_STATS | btime_known,
            blksize: attr.block_size,
            attributes: self.attributes,
            attributes_mask: self.attributes_known,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode as u16,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime),
            btime: time(self.btime.unwrap_or_default()),
            ctime: time(attr.ctime),
            mtime: time(attr.mtime),
            rdev_major: libc::major(attr.rdev.into()),
            rdev_minor: libc::minor(attr.rdev.into()),
            ..abi::Statx::default()
        }
    }
}

flag_set! {
    /// How an open file is cached.
    OpenFlags(u32) {
        /// Bypass the page cache.
        DIRECT_IO = 1 << 0;
        /// Keep the pages cached by earlier opens.
        KEEP_CACHE = 1 << 1;
        /// Seeking is an error.
        NONSEEKABLE = 1 << 2;
        /// The kernel may cache the directory's entries.
        CACHE_DIR = 1 << 3;
        /// There is no file position at all.
        STREAM = 1 << 4;
        /// No FLUSH on close. Breaks the release of fcntl locks.
        NOFLUSH = 1 << 5;
        /// Direct writes of one file may run in parallel.
        PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// What later requests name it by; the filesystem's own choice.
    pub handle: Handle,
    /// How it is cached.
    pub flags: OpenFlags,
}

impl Opened {
    pub(crate) fn to_wire(self) -> abi::OpenOut {
        abi::OpenOut { fh: self.handle.0, open_flags: self.flags.bits(), backing_id: 0 }
    }
}

/// The size and fill of the filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Blocks free for ordinary users.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// The longest name, in bytes.
    pub name_max: u32,
}

impl Statfs {
    pub(crate) fn to_wire(self) -> abi::StatfsOut {
        abi::StatfsOut {
            blocks: self.blocks,
            bfree: self.blocks_free,
            bavail: self.blocks_available,
            files: self.files,
            ffree: self.files_free,
            bsize: self.block_size,
            namelen: self.name_max,
            frsize: self.block_size,
            ..abi::StatfsOut::default()
        }
    }
}
