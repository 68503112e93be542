//! The seam between the map and the rules of files: one attempt at one operation.
//!
//! A driver runs an operation as a function over a [`Txn`]:
//!
//! 1. The operation reads items and bytes and collects changes. It sees its own changes.
//! 2. What it touches is locked for it: shared by reading, exclusive by changing. If a lock cannot
//!    be had at once, the call returns [`Stop::Need`], the operation returns that with `?`, the
//!    driver gets everything needed so far in a fixed order, and runs the operation again from its
//!    start. So operations take no care of lock order, and nothing can deadlock. The same
//!    mechanism fetches leases when the map is a client's cache.
//! 3. When the operation returns `Ok`, the driver applies all its changes atomically: after a
//!    crash either all or none of them are there.
//! 4. When it returns an error, nothing has changed.
//!
//! [`Txn::write`] is the exception to 3 and 4: bytes of files are accepted at once and become
//! durable by their own rules (`fsync`). An operation therefore writes bytes last.
//!
//! Absent: time, credentials, names. The map knows no directory and no permission.

use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::ids::{Ino, SubvolId};

use crate::error::MapError;
use crate::key::{FileId, Key};

/// The longest value of an item, in bytes: three of the longest items fit a tree node.
pub const VALUE_LENGTH_MAX: usize = 5000;

/// A file's greatest size in bytes: `i64::MAX`, what an offset can say.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// An item's value, shared and immutable.
pub type Value = Arc<[u8]>;

/// How an object is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockMode {
    /// Others may read, and write bytes of other ranges.
    Shared,
    /// Nobody else.
    Exclusive,
}

/// Why an attempt at an operation ended without a result.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The driver has to lock `file` first and run the operation again.
    Need {
        /// What to lock.
        file: FileId,
        /// How.
        mode: LockMode,
    },
    /// Others have a say in what the operation touches. Its driver knows what that is and whom to
    /// ask.
    Lease,
    /// The world failed.
    Map(MapError),
}

impl From<MapError> for Stop {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// A file's bytes in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileExtent {
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 4 KiB that it occupies (shared ones count fully).
    pub blocks: u64,
}

/// Bytes to be written.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// To be copied.
    Copied(&'a [u8]),
    /// The first `length` bytes of `blocks`, which the map may keep without copying them.
    Shared {
        /// The buffer. Bytes past `length` are ignored.
        blocks: BlockSlice,
        /// Length in bytes.
        length: usize,
    },
}

impl Payload<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Shared { blocks, length } => &blocks.bytes()[..*length],
        }
    }
}

/// What `SEEK_HOLE` and `SEEK_DATA` look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTarget {
    /// The next bytes that are stored.
    Data,
    /// The next gap; the end of the file counts as one.
    Hole,
}

/// Whether more of an object's bytes are left to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// All bytes are gone.
    Complete,
    /// More are left: run the same operation again.
    Partial,
}

/// One attempt at one operation; see the module's head.
pub trait Txn {
    /// Locks an object before anything else is done with it. Not needed, but an operation that
    /// will change what it reads first saves a second attempt by asking for `Exclusive` at once.
    fn lock(&mut self, file: FileId, mode: LockMode) -> Result<(), Stop>;

    /// The item at `key`.
    fn get(&mut self, key: Key) -> Result<Option<Value>, Stop>;

    /// These keys, all of one subvolume, are going to be asked for. What has to be read from a disk
    /// for that is read at once. It changes nothing else, and locks nothing.
    fn prefetch(&mut self, _keys: &[Key]) -> Result<(), Stop> {
        Ok(())
    }

    /// At most `limit` items with `from <= key <= to`, in key order. Both must be of one object.
    fn scan(&mut self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, Stop>;

    /// Puts an item in place of whatever is at `key`. At most [`VALUE_LENGTH_MAX`] bytes.
    fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), Stop>;

    /// Removes the item at `key`, if there is one.
    fn delete(&mut self, key: Key) -> Result<(), Stop>;

    /// An inode number of `subvol` that nobody has used. The new object is locked exclusively.
    fn new_inode(&mut self, subvol: SubvolId) -> Result<Ino, Stop>;

    /// Fails with [`MapError::NoSpace`] unless there is room for a new item or two. Operations
    /// that make the filesystem larger call it; those that only remove do not, so that a full
    /// filesystem can be emptied.
    fn require_space(&mut self) -> Result<(), Stop>;

    /// Size and blocks of a file's bytes; zeros if it has none.
    fn file(&mut self, file: FileId) -> Result<FileExtent, Stop>;

    /// Cuts a file, or extends it by a hole.
    fn set_size(&mut self, file: FileId, size: u64) -> Result<(), Stop>;

    /// Makes `from..to` (bytes) a hole. The size does not change.
    fn punch(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop>;

    /// Sees to it that later writes to `from..to` find space. The range reads as before (zeros
    /// where there was a hole) and does not extend the size.
    fn allocate(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop>;

    /// Lets `target` share `length` bytes of `source`. All three numbers must be multiples of the
    /// block size, but for a `length` that ends at or past the source's end; the target's size
    /// grows as needed. Ranges of one file must not overlap.
    fn share(
        &mut self,
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
    ) -> Result<(), Stop>;

    /// Removes `length` bytes at `offset` and moves what follows down (`collapse`), both in
    /// multiples of the block size.
    fn collapse(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop>;

    /// Opens a hole of `length` bytes at `offset` and moves what follows up, both in multiples of
    /// the block size.
    fn insert(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop>;

    /// Removes a bounded number of a file's extents, from its end; `Complete` when it has neither
    /// bytes nor size any more. For files of any size that nobody can reach.
    fn remove_bytes(&mut self, file: FileId) -> Result<Removal, Stop>;

    /// The next data or hole at or after `offset`, which is below the file's size. `None`: no data
    /// up to the end.
    fn seek(&mut self, file: FileId, offset: u64, target: SeekTarget) -> Result<Option<u64>, Stop>;

    /// Reads bytes from `offset` into `into` and says how many; fewer only at the end of the file.
    fn read(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize, Stop>;

    /// Accepts bytes at `offset`; the file grows as needed. Effective at once, see above.
    fn write(&mut self, file: FileId, offset: u64, payload: Payload<'_>) -> Result<(), Stop>;

    /// Whether bytes of the file were accepted that are not on disk yet.
    fn has_unwritten_bytes(&mut self, file: FileId) -> Result<bool, Stop>;
}

/// An error of an operation, of which the driver must know whether it asks for a lock.
pub trait Failure: From<Stop> {
    /// What to lock before the operation is run again, if that is what the error says.
    fn need(&self) -> Option<(FileId, LockMode)>;
}

impl Failure for Stop {
    fn need(&self) -> Option<(FileId, LockMode)> {
        match self {
            Self::Need { file, mode } => Some((*file, *mode)),
            Self::Lease | Self::Map(_) => None,
        }
    }
}
