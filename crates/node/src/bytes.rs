//! Operations on the bytes of files, and making things durable.

use gabion_fs::{Caller, CopyRequest, Error, Privileges, Result, SpaceRequest, WriteAt, Written};
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Payload};

use crate::local::LocalFs;

/// Bytes that one transaction of a copy covers, so that its size does not depend on the file's.
pub const COPY_CHUNK: u64 = 64 << 20;
/// Bytes that one call of [`LocalFs::copy_range`] covers, so that it ends in bounded time.
pub const COPY_BYTES_MAX: u64 = 16 << 30;
/// Transactions of one call, for ranges whose bytes have to be copied really (256 KiB each).
const COPY_STEPS_MAX: usize = 1024;

impl LocalFs {
    /// Reads bytes; fewer than asked for only at the file's end.
    pub fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        let count = self.run(|txn| gabion_fs::read(txn, file, offset, into));
        self.unless_removed(file, count)
    }

    /// Writes bytes, all of them.
    pub fn write(
        &self,
        caller: &Caller,
        file: FileId,
        at: WriteAt,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        let written =
            self.run(|txn| gabion_fs::write(txn, &ctx, file, at, payload.clone(), privileges))?;
        self.references.set_read_recorded(file, None);
        Ok(written)
    }

    /// Writes bytes, all of them, for a kernel that keeps the file's times.
    pub fn write_untimed(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        let at = WriteAt::Offset(offset);
        self.run(|txn| gabion_fs::write_untimed(txn, &ctx, file, at, payload.clone(), privileges))
    }

    /// Changes the layout of a file's bytes.
    pub fn fallocate(
        &self,
        caller: &Caller,
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    ) -> Result<()> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        self.run(|txn| gabion_fs::fallocate(txn, &ctx, file, request, offset, length, privileges))?;
        self.references.set_read_recorded(file, None);
        Ok(())
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, file: FileId, offset: u64, target: SeekTarget) -> Result<u64> {
        let found = self.run(|txn| gabion_fs::seek(txn, file, offset, target));
        self.unless_removed(file, found)
    }

    /// Copies bytes from file to file and says how many: all, or fewer at the source's end and
    /// where the work got long.
    pub fn copy_range(
        &self,
        caller: &Caller,
        request: &CopyRequest,
        privileges: Privileges,
    ) -> Result<u64> {
        self.check_changeable(request.target)?;
        self.check_overlap(request)?;
        let ctx = self.context(caller);
        let length = request.length.min(COPY_BYTES_MAX);
        let mut done = 0;
        for _ in 0..COPY_STEPS_MAX {
            let step = CopyRequest {
                source_offset: request.source_offset.saturating_add(done),
                target_offset: request.target_offset.saturating_add(done),
                length: (length - done).min(COPY_CHUNK),
                ..*request
            };
            let copied = self.run(|txn| gabion_fs::copy_range(txn, &ctx, &step, privileges));
            match self.unless_removed(request.source, copied) {
                Ok(0) => break,
                Ok(count) => done += count,
                // What was copied is told first; the error comes again with the next call.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            if done == length {
                break;
            }
        }
        if done > 0 {
            self.references.set_read_recorded(request.target, None);
        }
        Ok(done)
    }

    /// The steps of a copy overlap less than the whole.
    fn check_overlap(&self, request: &CopyRequest) -> Result<()> {
        if request.source != request.target {
            return Ok(());
        }
        let left = self.stat(request.source)?.size.saturating_sub(request.source_offset);
        let distance = request.source_offset.abs_diff(request.target_offset);
        match distance < request.length.min(left) {
            true => Err(Error::InvalidArgument),
            false => Ok(()),
        }
    }

    /// Makes an object and everything that completed before durable.
    pub fn fsync(&self, file: FileId) -> Result<()> {
        if self.is_read_only() || self.is_frozen(file) {
            return Ok(());
        }
        Ok(self.map.sync_file(file)?)
    }

    /// Makes everything that completed before durable.
    pub fn syncfs(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        Ok(self.map.sync()?)
    }
}
