//! What a mirror is told, and what it says.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{DiskError, DiskRequest, DiskResult, Repair};
use gabion_base::ids::BlockAddr;

use super::{Sent, Trust};
use crate::copies::CopyIndex;
use crate::record::CopyState;

/// What can be chosen about a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a request may take.
    pub deadline: Duration,
    /// Regions are settled when nobody wrote to them for this long.
    pub settle: Duration,
    /// How long a copy may take for one request before it is given up.
    pub copy_patience: Duration,
    /// Blocks that are copied in a second for a copy that catches up, while there are requests.
    pub busy_blocks_per_second: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            settle: Duration::from_secs(5),
            copy_patience: Duration::from_secs(10),
            busy_blocks_per_second: 16 << 10,
        }
    }
}

/// A request of the mirror's owner, named by the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a mirror is told.
#[derive(Debug)]
pub enum Input {
    /// Do this. The request is within the mirror's blocks.
    Request {
        /// How the answer is to be named.
        id: RequestId,
        /// The request.
        request: DiskRequest,
    },
    /// Read from this copy. The blocks are within the mirror's.
    ReadCopy {
        /// How the answer is to be named.
        id: RequestId,
        /// The copy.
        copy: CopyIndex,
        /// The first block.
        addr: BlockAddr,
        /// How many.
        count: usize,
    },
    /// Replace one block of this copy if it is what it is expected to be.
    RepairCopy {
        /// How the answer is to be named.
        id: RequestId,
        /// The copy.
        copy: CopyIndex,
        /// The block.
        addr: BlockAddr,
        /// What it is expected to be.
        bad: BlockSlice,
        /// What it is to be.
        good: BlockSlice,
    },
    /// A copy has answered.
    Done {
        /// What.
        sent: Sent,
        /// The answer.
        result: DiskResult,
    },
    /// The record says what it was last told to.
    Recorded,
    /// It may or may not say so: the coordinator did not answer.
    NotRecorded,
    /// Somebody else uses the volume now.
    Fenced {
        /// Who, as far as is known.
        reason: Arc<str>,
    },
    /// A stale copy is connected, and its header is in order.
    Attached {
        /// Which.
        copy: CopyIndex,
        /// Whether it may lack anything, as it is another disk, or an older state of the disk.
        /// Unless the record says so already, the copy is detached again, and is to be attached
        /// as soon as the record does. Nothing may be written to it before, its header least of
        /// all: who opens the volume next would take it for the old one.
        full: bool,
    },
    /// A copy is of no use any more, although it has not failed.
    Lost {
        /// Which.
        copy: CopyIndex,
        /// Why.
        reason: Arc<str>,
    },
    /// The administrator wants something.
    Order(Order),
    /// The record says how long the mirror is.
    LengthRecorded,
    /// It may or may not say so: the coordinator did not answer.
    LengthNotRecorded,
    /// Time has passed.
    Tick,
}

/// What an administrator can want of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Leave a copy alone.
    Suspend(CopyIndex),
    /// Use it again.
    Resume(CopyIndex),
    /// Forget a copy for good.
    TakeOut(CopyIndex),
    /// Bring a new disk up to date, at the place of one that was taken out or after the last.
    PutIn(CopyIndex),
    /// Compare all copies that are in sync.
    Compare,
    /// Use so many blocks of each copy, with the mirror's own at their heads. All that are
    /// connected must have them, and all that will be. Fewer than now, or while it grows already,
    /// change nothing.
    Grow(u64),
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send `request` to `copy`, and tell the answer as [`Input::Done`]. Addresses are the copy's.
    Send {
        /// To whom.
        copy: CopyIndex,
        /// Names the answer.
        sent: Sent,
        /// What.
        request: DiskRequest,
    },
    /// A request has ended.
    Complete {
        /// Which.
        id: RequestId,
        /// How.
        result: DiskResult,
    },
    /// A request to repair a copy has ended.
    Repaired {
        /// Which.
        id: RequestId,
        /// How.
        result: Result<Repair, DiskError>,
    },
    /// Make the record say this of the copies, and answer [`Input::Recorded`] or
    /// [`Input::NotRecorded`].
    Record(Vec<CopyState>),
    /// Make the record say that so many blocks of each copy are used, and answer
    /// [`Input::LengthRecorded`] or [`Input::LengthNotRecorded`].
    RecordLength(u64),
    /// Connect to a copy, again and again until [`Input::Attached`] or [`Output::Detach`].
    Attach(CopyIndex),
    /// Close what is connected of a copy, and do not try to connect any more.
    Detach(CopyIndex),
    /// Somebody should know.
    Notice(Notice),
}

/// What somebody should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A copy is not used any more.
    Stale {
        /// Which.
        copy: CopyIndex,
        /// Why.
        reason: Arc<str>,
    },
    /// The last copy does not work, and nothing can be done without it.
    LastCopyFails {
        /// Which.
        copy: CopyIndex,
        /// Why.
        reason: Arc<str>,
    },
    /// A copy is being brought up to date.
    SyncStarted {
        /// Which.
        copy: CopyIndex,
        /// Blocks to look at.
        blocks: u64,
    },
    /// A copy is in sync again.
    SyncFinished {
        /// Which.
        copy: CopyIndex,
    },
    /// A copy could not be read, and was written again from another.
    Rewritten {
        /// Which.
        copy: CopyIndex,
        /// First block.
        addr: BlockAddr,
        /// Blocks.
        count: u64,
    },
    /// A block cannot be read from any copy in sync. Its region is tried again for as long as
    /// somebody needs it. Told once for each block.
    Unreadable {
        /// The copy that should have it, or the first of them.
        copy: CopyIndex,
        /// The block.
        addr: BlockAddr,
        /// The copy that cannot be brought up to date without it; none if copies are compared.
        wanted_by: Option<CopyIndex>,
    },
    /// Copies in sync differ.
    Different {
        /// The copy that differs from the first one.
        copy: CopyIndex,
        /// First block of where they were compared.
        addr: BlockAddr,
        /// Blocks that differ there.
        blocks: u64,
    },
    /// More blocks can be used.
    Grown {
        /// Blocks of data.
        blocks: u64,
    },
    /// The mirror stays as long as it is, as the last copy could not be zeroed behind its end.
    NotGrown {
        /// Why.
        reason: Arc<str>,
    },
    /// All copies have been compared.
    Compared {
        /// Blocks that differed.
        different: u64,
    },
    /// Somebody else has the volume.
    Fenced {
        /// Who, as far as is known.
        reason: Arc<str>,
    },
}

/// How a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// Whether it is trusted.
    pub trust: Trust,
    /// Blocks that it lacks, or may lack.
    pub missing_blocks: u64,
    /// Blocks that it lacks and no other copy could read lately; it waits for them.
    pub unreadable_blocks: u64,
}

/// How far comparing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Blocks that were compared.
    pub done: u64,
    /// Blocks that differed.
    pub different: u64,
}
