//! The layout of a file's bytes: fallocate(2) and lseek(2) for data and holes.

use gabion_base::BLOCK_SIZE;
use gabion_map::txn::{FILE_SIZE_MAX, SeekTarget};
use gabion_map::{FileId, LockMode, Txn};

use crate::bytes;
use crate::context::{Context, Privileges};
use crate::error::{Error, Result};
use crate::object;

/// Whether a range past the end moves the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeRule {
    /// The file ends at the end of the range at least.
    Extend,
    /// The size stays (`FALLOC_FL_KEEP_SIZE`).
    Keep,
}

/// What to do with a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceRequest {
    /// Later writes to it find space. What it holds stays.
    Allocate(SizeRule),
    /// It becomes a hole. The size stays.
    Punch,
    /// It reads as zeros, and later writes to it find space.
    Zero(SizeRule),
    /// It goes, and what follows moves down. Both ends are multiples of the block size.
    Collapse,
    /// It becomes a hole between what is before `offset` and what is after. Multiples of the block
    /// size.
    Insert,
}

/// Applies `request` to `length` bytes at `offset` of a file that is open for writing.
pub fn fallocate<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    request: SpaceRequest,
    offset: u64,
    length: u64,
    privileges: Privileges,
) -> Result<()> {
    let mut inode = object::load_exclusive(txn, file)?;
    object::require_regular(&inode)?;
    if length == 0 {
        return Err(Error::InvalidArgument);
    }
    let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
    let end = end.ok_or(Error::TooLarge)?;
    let size = txn.file(file)?.size;
    if matches!(request, SpaceRequest::Collapse | SpaceRequest::Insert) {
        check_move(request, offset, end, size)?;
    }
    bytes::record_change(txn, ctx, file, &mut inode, privileges)?;
    match request {
        SpaceRequest::Allocate(_) => txn.allocate(file, offset, end)?,
        SpaceRequest::Punch => txn.punch(file, offset, end)?,
        SpaceRequest::Zero(_) => {
            txn.punch(file, offset, end)?;
            txn.allocate(file, offset, end)?;
        }
        SpaceRequest::Collapse => txn.collapse(file, offset, length)?,
        SpaceRequest::Insert => txn.insert(file, offset, length)?,
    }
    let extends = matches!(
        request,
        SpaceRequest::Allocate(SizeRule::Extend) | SpaceRequest::Zero(SizeRule::Extend)
    );
    if extends && end > size {
        txn.set_size(file, end)?;
    }
    Ok(())
}

fn check_move(request: SpaceRequest, offset: u64, end: u64, size: u64) -> Result<()> {
    let is_aligned = |number: u64| number.is_multiple_of(BLOCK_SIZE as u64);
    if !is_aligned(offset) || !is_aligned(end) {
        return Err(Error::InvalidArgument);
    }
    match request {
        // To cut the end is the business of truncate.
        SpaceRequest::Collapse if end >= size => Err(Error::InvalidArgument),
        SpaceRequest::Insert if offset >= size => Err(Error::InvalidArgument),
        SpaceRequest::Insert if end - offset > FILE_SIZE_MAX - size => Err(Error::TooLarge),
        _ => Ok(()),
    }
}

/// The next data or hole at or after `offset`. `NoSuchOffset`: there is none, or the offset is at
/// or past the end. The end of the file is the begin of a hole.
pub fn seek<T: Txn + ?Sized>(
    txn: &mut T,
    file: FileId,
    offset: u64,
    target: SeekTarget,
) -> Result<u64> {
    txn.lock(file, LockMode::Shared)?;
    let size = txn.file(file)?.size;
    if offset >= size {
        return Err(Error::NoSuchOffset);
    }
    match (txn.seek(file, offset, target)?, target) {
        (Some(found), _) => Ok(found.min(size)),
        (None, SeekTarget::Hole) => Ok(size),
        (None, SeekTarget::Data) => Err(Error::NoSuchOffset),
    }
}
