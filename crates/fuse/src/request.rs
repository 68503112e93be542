//! What the kernel asks, typed. Names and bytes are borrowed from the message buffer.
//!
//! INIT, DESTROY, INTERRUPT, FORGET and notification replies are the session's own business and are
//! no [`Op`]s: a handler sees exactly the requests that want an answer from it. How the bytes
//! become these values is in [`crate::decode`].
//!
//! Names are bytes without the NUL, as the kernel sent them: never empty, never containing `/`,
//! except for TMPFILE, whose name is dropped.

use crate::buffer::Payload;

/// The kernel's name for an inode: what LOOKUP, CREATE and their like answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: Self = Self(1);
}

/// An open file or directory: what OPEN, OPENDIR, CREATE or TMPFILE answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Whoever owns a lock: for fcntl the process's table of files, for flock the open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockOwner(pub u64);

/// A point in time since 1970, as inodes carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since 1970, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// A time that SETATTR sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The filesystem's own current time.
    Now,
    /// A time the caller chose.
    At(Timestamp),
}

/// One request and who made it.
#[derive(Debug)]
pub struct Request<'a> {
    /// The kernel's number of the request, including the mark of a resent one.
    pub unique: u64,
    /// The inode asked of, or the parent directory of a named operation; 0 for STATFS at times.
    pub node: NodeId,
    /// The caller's filesystem user id; `u32::MAX` when idmapped mounts could not map it.
    pub uid: u32,
    /// The caller's filesystem group id; `u32::MAX` when idmapped mounts could not map it.
    pub gid: u32,
    /// The caller's process; 0 for the kernel's own threads and other PID namespaces.
    pub pid: u32,
    /// The caller's supplementary group that equals the parent directory's, for creations under
    /// [`CREATE_SUPP_GROUP`](crate::Features::CREATE_SUPP_GROUP).
    pub supplementary_group: Option<u32>,
    /// What is asked.
    pub op: Op<'a>,
}

impl Request<'_> {
    /// Whether the kernel sent this request before, to a filesystem that never answered it. It may
    /// have been carried out already.
    pub fn is_resent(&self) -> bool {
        self.unique & crate::abi::UNIQUE_RESEND != 0
    }
}

/// What is asked, with the reply method that answers it. Any of them may be answered by
/// [`error`](crate::Reply::error); ENOSYS makes the kernel stop asking for most of the optional
/// ones.
#[derive(Debug)]
pub enum Op<'a> {
    /// `entry`, or `entry_absent` to let the kernel cache that there is none. Each answer that
    /// reached the kernel counts one lookup, until forgotten.
    Lookup {
        /// The name in directory `node`.
        name: &'a [u8],
    },
    /// `attr`.
    Getattr {
        /// The open file, when asked through one.
        handle: Option<Handle>,
    },
    /// `statx`.
    Statx {
        /// The open file, when asked through one.
        handle: Option<Handle>,
        /// `AT_STATX_*` flags of the caller.
        flags: u32,
        /// `STATX_*` fields the caller wants.
        mask: u32,
    },
    /// `attr`.
    Setattr(Setattr),
    /// `bytes` with the target.
    Readlink,
    /// `entry`.
    Symlink {
        /// The new name in directory `node`.
        name: &'a [u8],
        /// What the link says.
        target: &'a [u8],
    },
    /// `entry`.
    Mknod {
        /// The new name in directory `node`.
        name: &'a [u8],
        /// Type and permissions; `umask` not yet applied under DONT_MASK, else applied.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// Device number of device nodes.
        rdev: u32,
    },
    /// `entry`.
    Mkdir {
        /// The new name in directory `node`.
        name: &'a [u8],
        /// Permissions; `umask` not yet applied under DONT_MASK, else applied.
        mode: u32,
        /// The caller's umask.
        umask: u32,
    },
    /// `ok`.
    Unlink {
        /// The name in directory `node`.
        name: &'a [u8],
    },
    /// `ok`.
    Rmdir {
        /// The name in directory `node`.
        name: &'a [u8],
    },
    /// `ok`.
    Rename {
        /// The old name in directory `node`.
        name: &'a [u8],
        /// The target directory.
        new_parent: NodeId,
        /// The target name.
        new_name: &'a [u8],
        /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`.
        flags: u32,
    },
    /// `entry`.
    Link {
        /// The file that gets a further name.
        source: NodeId,
        /// The new name in directory `node`.
        name: &'a [u8],
    },
    /// `open`. ENOSYS once under NO_OPEN_SUPPORT makes all opens silent.
    Open {
        /// `O_*` flags of the caller, without `O_CREAT`, `O_EXCL` and (without ATOMIC_O_TRUNC)
        /// `O_TRUNC`.
        flags: u32,
        /// The set-user-id and set-group-id bits are to be dropped (truncation).
        kill_suidgid: bool,
    },
    /// `create`.
    Create {
        /// The new name in directory `node`.
        name: &'a [u8],
        /// Type and permissions; `umask` not yet applied under DONT_MASK, else applied.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// `O_*` flags of the caller.
        flags: u32,
        /// The set-user-id and set-group-id bits are to be dropped (truncation).
        kill_suidgid: bool,
    },
    /// `create`, of a file without a name in the filesystem of directory `node`.
    Tmpfile {
        /// Type and permissions; `umask` not yet applied under DONT_MASK, else applied.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// `O_*` flags of the caller.
        flags: u32,
    },
    /// `bytes`, at most `size`; fewer mean end of file.
    Read(Read),
    /// `written`.
    Write(Write<'a>),
    /// `ok`; on each close(2) of a descriptor. Releases the fcntl locks of `lock_owner`; never
    /// answer ENOSYS, or the kernel no longer tells.
    Flush {
        /// The open file.
        handle: Handle,
        /// Whose fcntl locks end here.
        lock_owner: LockOwner,
    },
    /// `ok`; the last descriptor of the open file is gone. Nobody sees an error.
    Release(Release),
    /// `ok`.
    Fsync {
        /// The open file.
        handle: Handle,
        /// Data only, and the metadata needed to read it (fdatasync).
        datasync: bool,
    },
    /// `open`.
    Opendir {
        /// `O_*` flags of the caller.
        flags: u32,
    },
    /// `directory` with a [`DirectoryBuffer`](crate::DirectoryBuffer) of `size`.
    Readdir(ReadDirectory),
    /// `directory` with a [`DirectoryPlusBuffer`](crate::DirectoryPlusBuffer) of `size`.
    Readdirplus(ReadDirectory),
    /// `ok`.
    Releasedir {
        /// The open directory.
        handle: Handle,
        /// `O_*` flags of the opendir.
        flags: u32,
    },
    /// `ok`.
    Fsyncdir {
        /// The open directory.
        handle: Handle,
        /// Data only (fdatasync).
        datasync: bool,
    },
    /// `statfs`.
    Statfs,
    /// `ok`. ENOSYS makes syncfs succeed without asking ever again.
    Syncfs,
    /// `ok`.
    Setxattr {
        /// The attribute, with its namespace.
        name: &'a [u8],
        /// Its new value.
        value: &'a [u8],
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
        /// The set-group-id bit is to be dropped (an ACL was set by an outsider).
        kill_sgid: bool,
    },
    /// `xattr` with the value.
    Getxattr {
        /// The attribute, with its namespace.
        name: &'a [u8],
        /// The caller's room; 0 asks for the size only.
        size: u32,
    },
    /// `xattr` with the names, each followed by NUL.
    Listxattr {
        /// The caller's room; 0 asks for the size only.
        size: u32,
    },
    /// `ok`.
    Removexattr {
        /// The attribute, with its namespace.
        name: &'a [u8],
    },
    /// `ok` or EACCES; not sent under `default_permissions`.
    Access {
        /// `R_OK`, `W_OK`, `X_OK`, or 0 for existence.
        mask: u32,
    },
    /// `lock`: the first lock in the way, or one of kind [`LockKind::Unlock`].
    Getlk(LockRequest),
    /// `ok`, or EAGAIN if another lock is in the way.
    Setlk(LockRequest),
    /// `ok` once the lock is held. May take for ever: wait outside the handler, and give up with
    /// EINTR as soon as [`Cancel`](crate::Cancel) says so. It has no deadline.
    Setlkw(LockRequest),
    /// `ok`.
    Fallocate {
        /// The open file.
        handle: Handle,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*` flags.
        mode: u32,
    },
    /// `lseek`, for `SEEK_DATA` and `SEEK_HOLE`.
    Lseek {
        /// The open file.
        handle: Handle,
        /// Where to start.
        offset: u64,
        /// `SEEK_DATA` or `SEEK_HOLE`.
        whence: u32,
    },
    /// `copied`.
    CopyFileRange(CopyFileRange),
    /// `bmap`; only on block devices.
    Bmap {
        /// Block of the file.
        block: u64,
        /// Bytes in a block.
        block_size: u32,
    },
    /// `ioctl`, or ENOTTY. FICLONE and FICLONERANGE never come here.
    Ioctl(Ioctl<'a>),
    /// `poll`.
    Poll {
        /// The open file.
        handle: Handle,
        /// What [`Notifier::poll`](crate::Notifier::poll) wakes, if `notify`.
        kernel_handle: u64,
        /// The caller waits: notify it once something happens.
        notify: bool,
        /// `POLL*` events of interest.
        events: u32,
    },
}

/// The fields to change; all others stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setattr {
    /// The open file, for ftruncate and its like.
    pub handle: Option<Handle>,
    /// Permission bits (and the type, unchanged).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time; only the writeback cache sends it.
    pub ctime: Option<Timestamp>,
    /// Who truncates, where mandatory locks matter.
    pub lock_owner: Option<LockOwner>,
    /// The set-user-id and set-group-id bits are to be dropped.
    pub kill_suidgid: bool,
}

/// READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The open file.
    pub handle: Handle,
    /// First byte.
    pub offset: u64,
    /// Bytes wanted, at most.
    pub size: u32,
    /// `O_*` flags of the open file.
    pub flags: u32,
    /// Who reads, where mandatory locks matter.
    pub lock_owner: Option<LockOwner>,
}

/// WRITE.
#[derive(Debug)]
pub struct Write<'a> {
    /// The open file; only guessed when `from_page_cache`.
    pub handle: Handle,
    /// First byte. With `O_APPEND` it is the kernel's idea of the end, which may be stale.
    pub offset: u64,
    /// The bytes; [`Payload::take`] hands them over page-aligned.
    pub payload: Payload<'a>,
    /// `O_*` flags of the open file.
    pub flags: u32,
    /// Dirty pages written back later: the caller's ids are not those of the writer.
    pub from_page_cache: bool,
    /// The set-user-id and set-group-id bits are to be dropped.
    pub kill_suidgid: bool,
    /// Who writes, where mandatory locks matter.
    pub lock_owner: Option<LockOwner>,
}

/// RELEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The open file, gone after this.
    pub handle: Handle,
    /// `O_*` flags of the open file.
    pub flags: u32,
    /// A flush is asked for as well.
    pub flush: bool,
    /// Set when the open file may hold flock locks, which end here.
    pub unlock_flock: Option<LockOwner>,
}

/// READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDirectory {
    /// The open directory.
    pub handle: Handle,
    /// 0, or the `next_offset` of the entry after which to go on.
    pub offset: u64,
    /// Bytes of room in the answer.
    pub size: u32,
    /// `O_*` flags of the open directory.
    pub flags: u32,
}

/// GETLK, SETLK and SETLKW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// The open file.
    pub handle: Handle,
    /// Who locks.
    pub owner: LockOwner,
    /// fcntl or flock.
    pub family: LockFamily,
    /// What to lock, or to unlock.
    pub lock: Lock,
}

/// The two kinds of advisory locks, which ignore each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockFamily {
    /// fcntl and lockf: byte ranges, released by FLUSH with the same owner.
    Posix,
    /// flock: the whole file, released by RELEASE.
    Flock,
}

/// A byte range and how it is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` (0x7fff...) for "to the end".
    pub end: u64,
    /// Shared, exclusive or none.
    pub kind: LockKind,
    /// The process that holds or wants it.
    pub pid: u32,
}

/// How a range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `F_RDLCK`.
    Shared,
    /// `F_WRLCK`.
    Exclusive,
    /// `F_UNLCK`.
    Unlock,
}

/// COPY_FILE_RANGE and COPY_FILE_RANGE_64, from file `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFileRange {
    /// The open source.
    pub source_handle: Handle,
    /// First byte in the source.
    pub source_offset: u64,
    /// The target inode.
    pub target: NodeId,
    /// The open target.
    pub target_handle: Handle,
    /// First byte in the target.
    pub target_offset: u64,
    /// Bytes.
    pub length: u64,
    /// None are defined.
    pub flags: u64,
}

/// IOCTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl<'a> {
    /// The open file or directory.
    pub handle: Handle,
    /// `FUSE_IOCTL_*` flags: 1 compat, 8 32-bit caller, 16 on a directory.
    pub flags: u32,
    /// The command, which also encodes direction and size.
    pub command: u32,
    /// The caller's third argument, a pointer in its own memory.
    pub argument: u64,
    /// What the caller passed in.
    pub input: &'a [u8],
    /// Bytes of room in the caller's memory for the answer.
    pub output_size: u32,
}
