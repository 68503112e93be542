//! copy_file_range(2), by sharing blocks where that is possible.
//!
//! A call makes one step and says how far it came; the driver calls again for the rest, but not
//! past the end that the source had at first (a file copied to its own end grows). A step is one
//! of:
//!
//! - up to [`COPY_STEP`] bytes are read and written: where the two offsets differ within a block,
//!   before the first whole block, after the last one, between subvolumes;
//! - all whole blocks of the range are shared. The part of a block at the end of the source is
//!   shared as well if nothing follows it in the target.
//!
//! So a step either changes the map or writes bytes, and is atomic in itself.

use gabion_base::BLOCK_SIZE;
use gabion_map::txn::FILE_SIZE_MAX;
use gabion_map::{FileId, LockMode, Payload, Txn};

use crate::bytes;
use crate::context::{Context, Privileges};
use crate::error::{Error, Result};
use crate::object;

/// Bytes that a step copies at most.
pub const COPY_STEP: usize = 256 * 1024;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A range of one file that is to be copied to another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// Open for reading.
    pub source: FileId,
    /// In bytes.
    pub source_offset: u64,
    /// Open for writing. May be the source, but then the ranges must not overlap.
    pub target: FileId,
    /// In bytes.
    pub target_offset: u64,
    /// In bytes. What goes past the source's end is left out.
    pub length: u64,
}

/// Makes the first step of `request` and says how many bytes it copied; 0 at the source's end.
pub fn copy_range<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    request: &CopyRequest,
    privileges: Privileges,
) -> Result<u64> {
    let CopyRequest { source, source_offset, target, target_offset, length } = *request;
    txn.lock(target, LockMode::Exclusive)?;
    if may_share(request) {
        // The source learns that its blocks have one more owner.
        txn.lock(source, LockMode::Exclusive)?;
    }
    let source_inode = object::load(txn, source)?;
    let mut target_inode = object::load(txn, target)?;
    object::require_regular(&source_inode)?;
    object::require_regular(&target_inode)?;
    if target_offset > FILE_SIZE_MAX {
        return Err(Error::TooLarge);
    }
    let left = txn.file(source)?.size.saturating_sub(source_offset);
    let length = length.min(left);
    if source == target && source_offset.abs_diff(target_offset) < length {
        return Err(Error::InvalidArgument);
    }
    if length == 0 {
        return Ok(0);
    }
    if length > FILE_SIZE_MAX - target_offset {
        return Err(Error::TooLarge);
    }
    let step = step(request, length, left, txn.file(target)?.size);
    match step {
        Step::Share(length) => {
            bytes::record_change(txn, ctx, target, &mut target_inode, privileges)?;
            txn.share(source, source_offset, target, target_offset, length)?;
            Ok(length)
        }
        Step::Copy(length) => {
            let mut buffer = vec![0; length];
            let count = txn.read(source, source_offset, &mut buffer)?;
            bytes::record_change(txn, ctx, target, &mut target_inode, privileges)?;
            txn.write(target, target_offset, Payload::Copied(&buffer[..count]))?;
            Ok(count as u64)
        }
    }
}

enum Step {
    Share(u64),
    Copy(usize),
}

/// Decides on the step for `length` bytes, of which the source has `left` from here on.
fn step(request: &CopyRequest, length: u64, left: u64, target_size: u64) -> Step {
    if !may_share(request) {
        return Step::Copy(length.min(COPY_STEP as u64) as usize);
    }
    let head = request.source_offset % BLOCK;
    if head != 0 {
        return Step::Copy(length.min(BLOCK - head) as usize);
    }
    let ends_both = length == left && request.target_offset + length >= target_size;
    let shared = if ends_both { length } else { length - length % BLOCK };
    if shared == 0 { Step::Copy(length as usize) } else { Step::Share(shared) }
}

/// Whether some part of the range could be shared.
fn may_share(request: &CopyRequest) -> bool {
    request.source.subvol == request.target.subvol
        && request.source_offset % BLOCK == request.target_offset % BLOCK
}
