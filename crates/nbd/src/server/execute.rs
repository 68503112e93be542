//! From a request to calls on a disk.
//!
//! 1. [`admit`] refuses what makes no sense, before any data of it is looked at.
//! 2. [`execute`] does the rest. Requests count in bytes, disks in blocks: a write of less than a
//!    block reads it, changes it and writes it back, alone with that block.
//!
//! Zeros are written by the disk itself. Those that are asked for only if that is faster than
//! writing them are whole blocks first, and nothing at all where the disk knows no faster way.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Zeroing};
use gabion_base::ids::BlockAddr;

use super::export::{Export, Permission, Replies};
use super::handshake::{Contexts, Session};
use super::pool::{Buffer, Pool};
use super::ranges::Sharing;
use super::status::block_status;
use crate::wire::error::ErrorCode;
use crate::wire::reply::Descriptor;
use crate::wire::request::{Command, Request};
use crate::wire::{PAYLOAD_BYTES_MAX, command_flag};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Why a request is refused, or has failed.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) reason: String,
    pub(super) cause: Cause,
}

/// What is to be told to administrators.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// Nothing: it is the client's.
    Client,
    /// The disk has failed.
    Disk(DiskError),
    /// Somebody has taken a higher epoch.
    Fence,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), cause: Cause::Client }
    }
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        let (code, reason) = (ErrorCode::of_disk(&error), error.to_string());
        Self { code, reason, cause: Cause::Disk(error) }
    }
}

/// What has come out of a request.
pub(super) enum Outcome {
    /// It is done, and that is all.
    Done,
    /// The blocks of its [`span`].
    Read(Buffer),
    /// What is known of its range.
    Status(Vec<Descriptor>),
}

/// Finds out what a request wants, or why it cannot have that.
pub(super) fn admit(request: &Request, session: &Session) -> Result<Command, Refusal> {
    let invalid = |reason: &str| Err(Refusal::new(ErrorCode::Invalid, reason));
    let Some(command) = Command::of(request.command) else {
        return invalid("the command is not known");
    };
    let structured = session.replies == Replies::Structured;
    let flags = match command {
        Command::Read if structured => command_flag::DF,
        Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Command::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    };
    if request.flags & !(flags | command_flag::FUA) != 0 {
        return invalid("the command has flags that it does not know");
    }
    if writes(command) && session.permission == Permission::ReadOnly {
        return Err(Refusal::new(ErrorCode::Permission, "the export is read-only"));
    }
    if matches!(command, Command::Flush | Command::Disconnect) {
        return match (request.offset, request.length) {
            (0, 0) => Ok(command),
            _ => invalid("offset and length must be 0"),
        };
    }
    if request.length == 0 {
        return invalid("the length is 0");
    }
    let moves_data = matches!(command, Command::Read | Command::Write);
    if moves_data && request.length > PAYLOAD_BYTES_MAX {
        return invalid("the length is more than one request may have");
    }
    let end = request.offset.checked_add(u64::from(request.length));
    if end.is_none_or(|end| end > session.export.bytes()) {
        let code = match command {
            Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
            _ => ErrorCode::Invalid,
        };
        return Err(Refusal::new(code, "the request reaches past the end of the export"));
    }
    if command == Command::BlockStatus && session.contexts == Contexts::None {
        return invalid("no metadata context was chosen");
    }
    Ok(command)
}

fn writes(command: Command) -> bool {
    matches!(command, Command::Write | Command::Trim | Command::WriteZeroes)
}

/// The blocks that a request touches: the first, the number, and where it begins in the first.
pub(super) fn span(request: &Request) -> (BlockAddr, usize, usize) {
    let first = request.offset / BLOCK;
    let end = (request.offset + u64::from(request.length)).div_ceil(BLOCK);
    (BlockAddr(first), (end - first) as usize, (request.offset % BLOCK) as usize)
}

/// Does an admitted request, except a farewell. A write comes with the blocks of its [`span`], its
/// data in the place where it belongs, and whatever else in them.
pub(super) fn execute(
    command: Command,
    request: &Request,
    data: Option<Buffer>,
    session: &Session,
    pool: &Arc<Pool>,
) -> Result<Outcome, Refusal> {
    let export = &*session.export;
    // Until the request is done, so that no claim of an epoch is granted in the middle of it.
    let _entered = match &export.medium {
        Some(medium) if writes(command) => {
            let (code, cause) = (ErrorCode::Permission, Cause::Fence);
            let fenced = |reason| Refusal { code, reason, cause };
            Some(medium.enter(session.grant).map_err(fenced)?)
        }
        _ => None,
    };
    let durability = durability(request);
    let disk = &*export.disk;
    match command {
        Command::Read => {
            let (addr, count, _) = span(request);
            if export.is_pipelined {
                let read = disk.submit(DiskRequest::Read { addr, count }).wait()?;
                return Ok(outcome(read, pool));
            }
            let mut buffer = pool.take(count);
            disk.read(addr, buffer.bytes_mut())?;
            return Ok(Outcome::Read(buffer));
        }
        Command::Write => {
            let data = data.ok_or_else(|| Refusal::new(ErrorCode::Invalid, "no data came"))?;
            write(request, data, durability, export)?;
        }
        Command::Flush => disk.flush()?,
        Command::Trim => {
            // Only whole blocks can be given back; the rest may keep its content.
            let first = request.offset.div_ceil(BLOCK);
            let end = (request.offset + u64::from(request.length)) / BLOCK;
            if first < end {
                let _held = export.ranges.enter(first, end, Sharing::Shared);
                let addr = BlockAddr(first);
                disk.submit(DiskRequest::Discard { addr, count: end - first }).wait()?;
                flush_if(durability, disk)?;
            }
        }
        Command::WriteZeroes => {
            write_zeroes(request, export, pool)?;
            flush_if(durability, disk)?;
        }
        Command::BlockStatus => return Ok(Outcome::Status(block_status(request, disk)?)),
        // There is no cache that could be filled.
        Command::Cache | Command::Disconnect => {}
    }
    Ok(Outcome::Done)
}

/// What has come out of a request that was submitted.
pub(super) fn outcome(blocks: Option<Blocks>, pool: &Arc<Pool>) -> Outcome {
    match blocks {
        Some(blocks) => Outcome::Read(Buffer::adopt(blocks, pool)),
        None => Outcome::Done,
    }
}

/// What a small request is to the disk, if it can be submitted as it is: a write of whole blocks,
/// which comes with its data, a read or a flush.
pub(super) fn as_submitted(
    command: Command,
    request: &Request,
    data: &mut Option<Buffer>,
) -> Option<DiskRequest> {
    let (addr, count, within) = span(request);
    match command {
        Command::Read => Some(DiskRequest::Read { addr, count }),
        Command::Flush => Some(DiskRequest::Flush),
        Command::Write if within == 0 && request.length as usize == count * BLOCK_SIZE => {
            let part = whole(data.take()?);
            Some(DiskRequest::Write { addr, parts: vec![part], durability: durability(request) })
        }
        _ => None,
    }
}

/// Memory of blocks is whole blocks on a block boundary, so there is nothing to copy.
fn whole(data: Buffer) -> BlockSlice {
    let copied = |data: Buffer| BlockSlice::new(Blocks::from_bytes(data.bytes()));
    BlockSlice::adopt(data).unwrap_or_else(copied)
}

fn durability(request: &Request) -> Durability {
    match request.flags & command_flag::FUA {
        0 => Durability::Cached,
        _ => Durability::Fua,
    }
}

fn flush_if(durability: Durability, disk: &dyn Disk) -> Result<(), DiskError> {
    match durability {
        Durability::Cached => Ok(()),
        Durability::Fua => disk.flush(),
    }
}

fn write(
    request: &Request,
    mut data: Buffer,
    durability: Durability,
    export: &Export,
) -> Result<(), DiskError> {
    let (addr, count, within) = span(request);
    let end = within + request.length as usize;
    let is_whole = within == 0 && end == count * BLOCK_SIZE;
    let sharing = if is_whole { Sharing::Shared } else { Sharing::Alone };
    let _held = export.ranges.enter(addr.0, addr.0 + count as u64, sharing);
    if !is_whole {
        let mut edge = Blocks::zeroed(1);
        if within != 0 {
            export.disk.read(addr, edge.bytes_mut())?;
            data.bytes_mut()[..within].copy_from_slice(&edge.bytes()[..within]);
        }
        let tail = end % BLOCK_SIZE;
        if tail != 0 {
            if within == 0 || count > 1 {
                export.disk.read(addr.plus(count as u64 - 1), edge.bytes_mut())?;
            }
            data.bytes_mut()[end..].copy_from_slice(&edge.bytes()[tail..]);
        }
    }
    export.disk.write(addr, whole(data), durability)
}

/// Whole blocks by the disk, their edges as writes.
fn write_zeroes(request: &Request, export: &Export, pool: &Arc<Pool>) -> Result<(), Refusal> {
    let (start, end) = (request.offset, request.offset + u64::from(request.length));
    let first = start.next_multiple_of(BLOCK).min(end);
    let last = (end / BLOCK * BLOCK).max(first);
    let only_if_fast = request.flags & command_flag::FAST_ZERO != 0;
    let zeroing = match first < last {
        true => {
            let (addr, count) = (BlockAddr(first / BLOCK), (last - first) / BLOCK);
            let _held = export.ranges.enter(addr.0, addr.0 + count, Sharing::Shared);
            if only_if_fast {
                export.disk.zero_if_fast(addr, count)?
            } else {
                export.disk.submit(DiskRequest::WriteZeroes { addr, count }).wait()?;
                Zeroing::Done
            }
        }
        false if only_if_fast => Zeroing::NotFaster,
        false => Zeroing::Done,
    };
    if zeroing == Zeroing::NotFaster {
        let reason = "these zeros take as long as data";
        return Err(Refusal::new(ErrorCode::NotSupported, reason));
    }
    for (from, to) in [(start, first), (last, end)] {
        if from < to {
            let edge = Request { offset: from, length: (to - from) as u32, ..*request };
            let (_, count, _) = span(&edge);
            let mut zeros = pool.take(count);
            zeros.bytes_mut().fill(0);
            write(&edge, zeros, Durability::Cached, export)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gabion_base::disk::{MemDisk, Ticket};
    use proptest::prelude::*;

    use super::*;
    use crate::medium::Grant;

    const BYTES: usize = 4 * BLOCK_SIZE;

    fn session(permission: Permission) -> Session {
        let image = (0..BYTES).map(|at| (at % 251) as u8 | 1).collect();
        let disk = Arc::new(MemDisk::from_image(image));
        let export = Arc::new(Export::new("e", disk, permission));
        let (grant, replies) = (Grant::default(), Replies::Structured);
        let client = "it".into();
        Session { export, client, permission, grant, replies, contexts: Contexts::None }
    }

    fn request(command: Command, offset: u64, length: u32) -> Request {
        Request { flags: 0, command: command.number(), cookie: 1, offset, length }
    }

    fn content(session: &Session) -> Vec<u8> {
        let all = request(Command::Read, 0, BYTES as u32);
        match execute(Command::Read, &all, None, session, &Arc::default()) {
            Ok(Outcome::Read(blocks)) => blocks.bytes().to_vec(),
            _ => panic!("a read gives blocks"),
        }
    }

    proptest! {
        #[test]
        fn bytes_are_written_and_zeroed_exactly_where_asked(
            offset in 0..BYTES as u64, length in 1..BYTES as u32, zeroes: bool
        ) {
            let length = length.min(BYTES as u32 - offset as u32);
            let session = session(Permission::ReadWrite);
            let mut wanted = content(&session);
            let range = offset as usize..offset as usize + length as usize;
            let command = if zeroes { Command::WriteZeroes } else { Command::Write };
            let request = request(command, offset, length);
            prop_assert_eq!(admit(&request, &session).ok(), Some(command));
            let (_, count, within) = span(&request);
            // Memory that was used before, of which nothing may be seen.
            let pool = Arc::new(Pool::default());
            let mut data = pool.take(count);
            data.bytes_mut().fill(0x55);
            let value = if zeroes { 0 } else { 0xff };
            data.bytes_mut()[within..within + length as usize].fill(value);
            wanted[range].fill(value);
            execute(command, &request, Some(data), &session, &pool).unwrap();
            prop_assert_eq!(content(&session), wanted);
        }

        #[test]
        fn what_is_admitted_can_be_executed(
            flags: u16, command in 0_u16..9, offset in 0..2 * BYTES as u64, length: u32
        ) {
            let length = length % (2 * BYTES as u32);
            let session = session(Permission::ReadWrite);
            let pool = Arc::new(Pool::default());
            let request = Request { flags: flags & 0x3f, command, cookie: 1, offset, length };
            if let Ok(command) = admit(&request, &session) {
                let (_, count, _) = span(&request);
                let data = (command == Command::Write).then(|| pool.take(count));
                let done = execute(command, &request, data, &session, &pool);
                let code = done.map_err(|refusal| refusal.code).err();
                let not_fast = request.flags & command_flag::FAST_ZERO != 0;
                prop_assert_eq!(code, not_fast.then_some(ErrorCode::NotSupported));
            }
        }
    }

    #[test]
    fn each_misuse_has_its_error() {
        let code = |request: Request, permission| {
            admit(&request, &session(permission)).map_err(|refusal| refusal.code)
        };
        let writable = |request| code(request, Permission::ReadWrite);
        let end = BYTES as u64;
        let write = request(Command::Write, 0, 512);
        assert_eq!(code(write, Permission::ReadOnly), Err(ErrorCode::Permission));
        assert_eq!(writable(request(Command::Write, end, 1)), Err(ErrorCode::NoSpace));
        assert_eq!(writable(request(Command::Read, end, 1)), Err(ErrorCode::Invalid));
        assert_eq!(writable(request(Command::Trim, u64::MAX, 1)), Err(ErrorCode::Invalid));
        assert_eq!(writable(request(Command::Read, 0, 0)), Err(ErrorCode::Invalid));
        assert_eq!(writable(request(Command::Flush, 0, 1)), Err(ErrorCode::Invalid));
        assert_eq!(writable(request(Command::BlockStatus, 0, 1)), Err(ErrorCode::Invalid));
        assert_eq!(writable(Request { command: 99, ..write }), Err(ErrorCode::Invalid));
        assert_eq!(writable(Request { flags: 1 << 9, ..write }), Err(ErrorCode::Invalid));
        let fast = Request { flags: command_flag::FAST_ZERO, ..write };
        assert_eq!(writable(fast), Err(ErrorCode::Invalid), "a write is no zeros");
        let durable = Request { flags: 1, ..request(Command::Read, 0, 512) };
        assert_eq!(writable(durable), Ok(Command::Read));
    }
    /// A disk that zeroes fast, and no other way.
    struct Fast(MemDisk);

    impl Disk for Fast {
        fn name(&self) -> Arc<str> {
            "fast".into()
        }

        fn blocks(&self) -> u64 {
            self.0.blocks()
        }

        fn submit(&self, request: DiskRequest) -> Ticket {
            assert!(!matches!(request, DiskRequest::WriteZeroes { .. }), "zeros take long");
            self.0.submit(request)
        }

        fn zero_if_fast(&self, addr: BlockAddr, count: u64) -> Result<Zeroing, DiskError> {
            self.0.submit(DiskRequest::WriteZeroes { addr, count }).wait()?;
            Ok(Zeroing::Done)
        }
    }

    #[test]
    fn zeros_that_must_be_fast_are_all_written_or_none() {
        let slow = session(Permission::ReadWrite);
        let before = content(&slow);
        let disk = Arc::new(Fast(MemDisk::from_image(before.clone())));
        let export = Arc::new(Export::new("e", disk, Permission::ReadWrite));
        let fast = Session { export, ..slow.clone() };
        let zeroed = |session: &Session, offset, length| {
            let flags = command_flag::FAST_ZERO;
            let request = Request { flags, ..request(Command::WriteZeroes, offset, length) };
            let command = admit(&request, session).unwrap();
            let done = execute(command, &request, None, session, &Arc::default());
            done.map(drop).map_err(|refusal| refusal.code)
        };
        let not_fast = Err(ErrorCode::NotSupported);
        assert_eq!(zeroed(&slow, 100, 9000), not_fast);
        assert!(content(&slow) == before);
        assert_eq!(zeroed(&fast, 100, 4000), not_fast, "it has no whole block");
        assert!(content(&fast) == before);
        assert_eq!(zeroed(&fast, 100, 9000), Ok(()));
        let mut wanted = before;
        wanted[100..9100].fill(0);
        assert!(content(&fast) == wanted);
    }
}
