//! Reading and writing a file's bytes, and the times that tell of writing.
//!
//! Many writers of one file go side by side: a write that finds its own time recorded and nothing
//! to clear changes no item and holds the file shared. So the clock's grain says how often writers
//! of one file wait for each other: once in a tick.

use gabion_map::txn::FILE_SIZE_MAX;
use gabion_map::{FileId, LockMode, Payload, Txn};

use crate::context::{Context, Privileges};
use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::object;
use crate::setattr;

/// Where to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAt {
    /// At this offset in bytes.
    Offset(u64),
    /// At the end, wherever that is at that moment (`O_APPEND`).
    End,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// From which offset in bytes.
    pub offset: u64,
    /// How many bytes: all of them.
    pub length: usize,
}

/// Reads bytes of a file that is open for reading; fewer than asked for only at its end.
pub fn read<T: Txn + ?Sized>(
    txn: &mut T,
    file: FileId,
    offset: u64,
    into: &mut [u8],
) -> Result<usize> {
    if offset >= FILE_SIZE_MAX {
        return Ok(0);
    }
    Ok(txn.read(file, offset, into)?)
}

/// Writes bytes to a file that is open for writing. `privileges`: what becomes of the set-user
/// and set-group bits.
pub fn write<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    at: WriteAt,
    payload: Payload<'_>,
    privileges: Privileges,
) -> Result<Written> {
    write_recording(txn, ctx, file, at, payload, privileges, Record::Times)
}

/// The same for a caller who keeps the file's times, and sets them himself (see
/// [`setattr()`](crate::setattr())): before this or after it, in any order.
pub fn write_untimed<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    at: WriteAt,
    payload: Payload<'_>,
    privileges: Privileges,
) -> Result<Written> {
    write_recording(txn, ctx, file, at, payload, privileges, Record::Nothing)
}

/// What a write tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    Times,
    Nothing,
}

fn write_recording<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    at: WriteAt,
    payload: Payload<'_>,
    privileges: Privileges,
    record: Record,
) -> Result<Written> {
    if at == WriteAt::End {
        txn.lock(file, LockMode::Exclusive)?;
    }
    let mut inode = object::load(txn, file)?;
    object::require_regular(&inode)?;
    let offset = match at {
        WriteAt::Offset(offset) => offset,
        WriteAt::End => txn.file(file)?.size,
    };
    let length = payload.bytes().len();
    let written = Written { offset, length };
    if length == 0 {
        return Ok(written);
    }
    if offset > FILE_SIZE_MAX || length as u64 > FILE_SIZE_MAX - offset {
        return Err(Error::TooLarge);
    }
    match record {
        Record::Times => record_change(txn, ctx, file, &mut inode, privileges)?,
        Record::Nothing if setattr::has_privileges(ctx, &inode, privileges) => {
            txn.lock(file, LockMode::Exclusive)?;
            setattr::clear_privileges(txn, ctx, file, &mut inode, privileges)?;
            object::store(txn, file, &inode)?;
        }
        Record::Nothing => {}
    }
    txn.write(file, offset, payload)?;
    Ok(written)
}

/// Records that bytes of the file change; takes the file exclusively only if there is something
/// to record.
pub(crate) fn record_change<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
    privileges: Privileges,
) -> Result<()> {
    let is_recorded = inode.mtime == ctx.now && inode.ctime == ctx.now;
    if is_recorded && !setattr::has_privileges(ctx, inode, privileges) {
        return Ok(());
    }
    txn.lock(file, LockMode::Exclusive)?;
    setattr::clear_privileges(txn, ctx, file, inode, privileges)?;
    inode.touch_content(ctx);
    object::store(txn, file, inode)
}
