//! The seam between the engine and whatever stores its blocks.
//!
//! # What is assumed of the medium
//!
//! 1. A block that was written and then covered by a completed [`Disk::flush`], or written with
//!    [`Durability::Fua`], is kept through a crash.
//! 2. A write that was not yet made durable may, after a crash, have happened, not have happened,
//!    or have happened in some of its blocks only, in any order relative to other such writes.
//!    A single block may even be torn within; every structure is checksummed for that reason.
//! 3. Reads may return anything (bit rot, misdirected or lost writes): the reader has a checksum
//!    that was kept elsewhere.
//! 4. Operations that overlap in time on overlapping blocks have no order. The engine never does
//!    that, except for reads whose result it then throws away.
//!
//! After a failed flush nothing is known about earlier writes, so the engine stops writing.
//!
//! Requests are started with [`Disk::submit`] and waited for with [`Ticket::wait`], so that one
//! caller keeps many in flight. The buffers of a request belong to it until it has completed.

use std::fmt;
use std::mem;
use std::sync::Arc;

use thiserror::Error;

use crate::BLOCK_SIZE;
use crate::batch;
use crate::buffer::{BlockSlice, Blocks};
use crate::ids::BlockAddr;
use crate::sync::{Condvar, Mutex};

/// Whether a write is on stable storage when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A later flush makes it durable.
    Cached,
    /// Durable on completion ("force unit access"). Says nothing about earlier writes.
    Fua,
}

/// One request to a device. All addresses and lengths are in blocks.
#[derive(Clone, Debug)]
pub enum DiskRequest {
    /// Read `count` blocks from `addr`.
    Read {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: usize,
    },
    /// Write `parts` side by side from `addr` on.
    Write {
        /// First block.
        addr: BlockAddr,
        /// What to write, in order.
        parts: Vec<BlockSlice>,
        /// Whether completion means durable.
        durability: Durability,
    },
    /// Make all completed writes durable.
    Flush,
    /// The blocks' content is no longer needed; reading them later gives anything.
    Discard {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
    /// Make the blocks read as zeros.
    WriteZeroes {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
}

/// What went wrong on a device. Cheap to clone: several waiters may share one failure.
#[derive(Clone, Debug, Error)]
pub enum DiskError {
    /// The device failed the request.
    #[error("{operation} of {device} at {addr}: {source}")]
    Io {
        /// The device's name as the administrator knows it.
        device: Arc<str>,
        /// "read", "write", "flush", "discard", "write zeroes" or "seek".
        operation: &'static str,
        /// Where.
        addr: BlockAddr,
        /// The system's reason.
        source: Arc<std::io::Error>,
    },
    /// The request reaches past the end of the device.
    #[error("{operation} of {device} at {addr} reaches past its end at {blocks} blocks")]
    OutOfRange {
        /// The device's name.
        device: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// Where.
        addr: BlockAddr,
        /// The device's length in blocks.
        blocks: u64,
    },
    /// Somebody else has opened the device for writing since: nothing more may be written here.
    #[error("{operation} of {device}: {reason}")]
    Fenced {
        /// The device's name.
        device: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// Who fenced it, as far as is known.
        reason: Arc<str>,
    },
}

/// Blocks side by side of which the same is known without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of blocks, not 0.
    pub count: u64,
    /// What is known of them.
    pub content: Content,
}

/// What is known of blocks without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: they may hold anything.
    Data,
    /// They read as zeros, and may take no space.
    Hole,
}

impl Extent {
    /// Puts an extent behind the last of `list`, or makes that one longer if it is alike. Nothing
    /// is put there if there are no blocks.
    pub fn append(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            _ if self.count == 0 => {}
            Some(last) if last.content == self.content => last.count += self.count,
            _ => list.push(self),
        }
    }
}

/// What became of zeros that were asked for only if they are cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// The blocks read as zeros, as after [`DiskRequest::WriteZeroes`].
    Done,
    /// It would take as long as to write them, as far as the device knows: nothing has changed.
    NotFaster,
}

/// The outcome of a request: the blocks read (for [`DiskRequest::Read`]), or nothing.
pub type DiskResult = Result<Option<Blocks>, DiskError>;

struct Slot {
    state: Mutex<Progress>,
    done: Condvar,
}

enum Progress {
    Pending,
    /// It is to be told, not waited for.
    Continued(Continuation),
    Completed(DiskResult),
    /// The outcome was handed on.
    Taken,
}

type Continuation = Box<dyn FnOnce(DiskResult) + Send>;

/// A request in flight.
pub struct Ticket(Flight);

enum Flight {
    /// Somebody else completes it.
    Shared(Arc<Slot>),
    /// It happens when it is waited for.
    Deferred(Box<dyn FnOnce() -> DiskResult + Send>),
}

/// The device's end of a request in flight.
pub struct Completion {
    slot: Arc<Slot>,
}

impl Ticket {
    /// A request in flight and the end by which the device completes it.
    pub fn pair() -> (Self, Completion) {
        let slot = Slot::new(Progress::Pending);
        (Self(Flight::Shared(Arc::clone(&slot))), Completion { slot })
    }

    /// A request that has completed already.
    pub fn ready(outcome: DiskResult) -> Self {
        Self(Flight::Shared(Slot::new(Progress::Completed(outcome))))
    }

    /// A request that completes when it is waited for: what a simulated device uses, so that
    /// whoever goes on without waiting is found out.
    pub fn deferred(complete: impl FnOnce() -> DiskResult + Send + 'static) -> Self {
        Self(Flight::Deferred(Box::new(complete)))
    }

    /// Waits for the outcome. Bounded by the device's own deadline for a request.
    pub fn wait(self) -> DiskResult {
        let slot = match self.0 {
            Flight::Shared(slot) => slot,
            Flight::Deferred(complete) => return complete(),
        };
        // Of which this request may be a part.
        batch::settle();
        let mut state = slot.state.lock();
        while matches!(*state, Progress::Pending) {
            slot.done.wait(&mut state);
        }
        match mem::replace(&mut *state, Progress::Taken) {
            Progress::Completed(outcome) => outcome,
            _ => unreachable!("a ticket is waited for or continued, once"),
        }
    }

    /// Has `next` called with the outcome: on the thread that completes the request, or at once
    /// on this one if it has completed. `next` must not wait for another request of the device.
    pub fn then(self, next: impl FnOnce(DiskResult) + Send + 'static) {
        let slot = match self.0 {
            Flight::Shared(slot) => slot,
            Flight::Deferred(complete) => return next(complete()),
        };
        let mut state = slot.state.lock();
        match mem::replace(&mut *state, Progress::Taken) {
            Progress::Completed(outcome) => {
                drop(state);
                next(outcome);
            }
            _ => *state = Progress::Continued(Box::new(next)),
        }
    }
}

impl Slot {
    fn new(state: Progress) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), done: Condvar::new() })
    }
}

impl Completion {
    /// Hands the outcome to whoever waits.
    pub fn complete(self, outcome: DiskResult) {
        let mut state = self.slot.state.lock();
        match mem::replace(&mut *state, Progress::Taken) {
            Progress::Continued(next) => {
                drop(state);
                next(outcome);
            }
            _ => {
                *state = Progress::Completed(outcome);
                drop(state);
                self.slot.done.notify_all();
            }
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

/// An array of blocks of [`BLOCK_SIZE`] bytes that survives a crash as the module's head says.
pub trait Disk: Send + Sync {
    /// The device's name for messages.
    fn name(&self) -> Arc<str>;

    /// Length in blocks. It can grow while the disk is used, and never becomes less.
    fn blocks(&self) -> u64;

    /// Looks how long it is by now, where that is not known by itself, and gives the length. May
    /// take as long as a request.
    fn remeasure(&self) -> Result<u64, DiskError> {
        Ok(self.blocks())
    }

    /// Starts a request. Never blocks for longer than it takes to find room in the device's queue.
    fn submit(&self, request: DiskRequest) -> Ticket;

    /// Reads `into.len() / BLOCK_SIZE` blocks and waits. `into` must be whole blocks; nothing is
    /// copied if it begins on a block boundary.
    fn read(&self, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        assert!(into.len().is_multiple_of(BLOCK_SIZE), "a read of {} bytes", into.len());
        let count = into.len() / BLOCK_SIZE;
        let read = self.submit(DiskRequest::Read { addr, count }).wait()?;
        into.copy_from_slice(read.expect("a read completes with blocks").bytes());
        Ok(())
    }

    /// Writes one buffer and waits.
    fn write(
        &self,
        addr: BlockAddr,
        part: BlockSlice,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.submit(DiskRequest::Write { addr, parts: vec![part], durability }).wait().map(drop)
    }

    /// Makes all completed writes durable.
    fn flush(&self) -> Result<(), DiskError> {
        self.submit(DiskRequest::Flush).wait().map(drop)
    }

    /// What is known of `count` blocks from `addr` on: one extent at least and `extents_max` at
    /// most (both numbers must not be 0), side by side, which may end before the blocks do. Blocks
    /// whose write completed before the call are [`Content::Data`] for sure, unless they
    /// were discarded or zeroed since; whatever happens at the same time may be told or not.
    fn extents(
        &self,
        addr: BlockAddr,
        count: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, DiskError> {
        assert!(count > 0 && extents_max > 0, "{extents_max} extents of {count} blocks");
        DiskRequest::Read { addr, count: count as usize }.check(&self.name(), self.blocks())?;
        Ok(vec![Extent { count, content: Content::Data }])
    }

    /// Makes the blocks read as zeros and waits, but only if that takes less time than to write
    /// them.
    fn zero_if_fast(&self, addr: BlockAddr, count: u64) -> Result<Zeroing, DiskError> {
        DiskRequest::WriteZeroes { addr, count }.check(&self.name(), self.blocks())?;
        Ok(Zeroing::NotFaster)
    }

    /// How many copies of each block the device keeps in different places.
    fn copies(&self) -> usize {
        1
    }

    /// Starts to read `count` blocks from copy `copy`; from the only one if there is no other. For
    /// whoever can tell by checksums which copy is right.
    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        assert!(copy < self.copies(), "copy {copy} of {}", self.copies());
        self.submit(DiskRequest::Read { addr, count })
    }

    /// Reads whole blocks from copy `copy` and waits; see [`Disk::submit_copy`].
    fn read_copy(&self, copy: usize, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        assert!(into.len().is_multiple_of(BLOCK_SIZE), "a read of {} bytes", into.len());
        let read = self.submit_copy(copy, addr, into.len() / BLOCK_SIZE).wait()?;
        into.copy_from_slice(read.expect("a read completes with blocks").bytes());
        Ok(())
    }

    /// Replaces the block at `addr` of copy `copy` by `good`, but only if it still is `bad`; no
    /// write to the block happens between looking and replacing.
    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        let _ = (copy, addr, bad, good);
        Ok(Repair::Impossible)
    }
}

/// What became of an attempt to repair a copy of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The copy is right now, durably.
    Repaired,
    /// The copy has changed meanwhile, so it was left alone.
    Changed,
    /// The device keeps no other copy to repair from, or does not repair.
    Impossible,
}

impl DiskRequest {
    /// The request's name in messages.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write zeroes",
        }
    }

    /// First block and number of blocks; (0, 0) for a flush.
    pub fn extent(&self) -> (BlockAddr, u64) {
        match self {
            Self::Read { addr, count } => (*addr, *count as u64),
            Self::Write { addr, parts, .. } => {
                (*addr, parts.iter().map(|part| part.count() as u64).sum())
            }
            Self::Flush => (BlockAddr(0), 0),
            Self::Discard { addr, count } | Self::WriteZeroes { addr, count } => (*addr, *count),
        }
    }

    /// The same request `blocks` blocks further on.
    #[must_use]
    pub fn moved(mut self, blocks: u64) -> Self {
        match &mut self {
            Self::Read { addr, .. }
            | Self::Write { addr, .. }
            | Self::Discard { addr, .. }
            | Self::WriteZeroes { addr, .. } => *addr = addr.plus(blocks),
            Self::Flush => {}
        }
        self
    }

    /// Fails if the request reaches past a device of `blocks` blocks.
    pub fn check(&self, device: &Arc<str>, blocks: u64) -> Result<(), DiskError> {
        let (addr, count) = self.extent();
        match addr.0.checked_add(count) {
            Some(end) if end <= blocks => Ok(()),
            _ => Err(DiskError::OutOfRange {
                device: Arc::clone(device),
                operation: self.operation(),
                addr,
                blocks,
            }),
        }
    }
}

/// A disk in memory that loses nothing, for unit tests of what stands on a disk.
pub struct MemDisk {
    blocks: Mutex<Vec<u8>>,
    count: u64,
}

impl MemDisk {
    /// A disk of `count` blocks of zeros.
    pub fn new(count: u64) -> Self {
        Self { blocks: Mutex::new(vec![0; count as usize * BLOCK_SIZE]), count }
    }

    /// A disk that holds a copy of `image`, whose length must be whole blocks.
    pub fn from_image(image: Vec<u8>) -> Self {
        assert_eq!(image.len() % BLOCK_SIZE, 0, "an image of whole blocks");
        let count = (image.len() / BLOCK_SIZE) as u64;
        Self { blocks: Mutex::new(image), count }
    }

    /// A copy of all that is on it.
    pub fn image(&self) -> Vec<u8> {
        self.blocks.lock().clone()
    }
}

impl Disk for MemDisk {
    fn name(&self) -> Arc<str> {
        Arc::from("memory")
    }

    fn blocks(&self) -> u64 {
        self.count
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.name(), self.count) {
            return Ticket::ready(Err(error));
        }
        let mut bytes = self.blocks.lock();
        let (addr, count) = request.extent();
        let start = addr.byte_offset() as usize;
        let span = start..start + count as usize * BLOCK_SIZE;
        Ticket::ready(Ok(match request {
            DiskRequest::Read { .. } => Some(Blocks::from_bytes(&bytes[span])),
            DiskRequest::Write { parts, .. } => {
                let mut at = start;
                for part in parts {
                    bytes[at..at + part.bytes().len()].copy_from_slice(part.bytes());
                    at += part.bytes().len();
                }
                None
            }
            DiskRequest::WriteZeroes { .. } => {
                bytes[span].fill(0);
                None
            }
            DiskRequest::Flush | DiskRequest::Discard { .. } => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_are_alike_become_one() {
        let mut list = Vec::new();
        let runs = [
            (3, Content::Hole),
            (0, Content::Data),
            (4, Content::Hole),
            (1, Content::Data),
            (2, Content::Data),
            (1, Content::Hole),
        ];
        for (count, content) in runs {
            Extent { count, content }.append(&mut list);
        }
        let told: Vec<_> = list.iter().map(|extent| (extent.count, extent.content)).collect();
        assert_eq!(told, [(7, Content::Hole), (3, Content::Data), (1, Content::Hole)]);
    }

    #[test]
    fn a_disk_that_knows_nothing_says_data_and_zeroes_nothing() {
        let disk = MemDisk::from_image(vec![5; 4 * BLOCK_SIZE]);
        let told = disk.extents(BlockAddr(1), 3, 1).unwrap();
        assert_eq!(told, [Extent { count: 3, content: Content::Data }]);
        assert!(disk.extents(BlockAddr(1), 4, 1).is_err());
        assert_eq!(disk.zero_if_fast(BlockAddr(0), 4).unwrap(), Zeroing::NotFaster);
        assert!(disk.zero_if_fast(BlockAddr(0), 5).is_err());
        assert!(disk.image().iter().all(|byte| *byte == 5));
    }
}
