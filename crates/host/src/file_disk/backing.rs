//! An open file or device, and every request on it as plain calls on the calling thread.
//!
//! # What makes a write durable
//!
//! [`Durability::Fua`] is `pwritev2(RWF_DSYNC)`: one call that returns when the data, and what is
//! needed to find it again, has been flushed. Where the kernel refuses the flag it is `pwritev`
//! and `fdatasync`. Measured on Linux 6.18, ext4 on a virtio disk with a volatile cache, random
//! 4 KiB overwrites of a preallocated (written) region, median of 300, each with one disk flush:
//! `RWF_DSYNC` 55-61 us, `pwrite` and `fdatasync` 61-72 us, both linked in an io_uring 67-89 us.
//! In a sparse file, or one preallocated without being written, each of them takes 105-185 us,
//! as the first write of a block commits the journal of the filesystem below.
//!
//! Through the page cache `Durability::Fua` is `pwritev` and a flush, so that a write that fails is
//! told from a flush that does.
//!
//! # A flush that fails
//!
//! What the kernel cannot write from the page cache it tells once, to the next fdatasync(2) of this
//! opening, and then takes for written. So flushes through the page cache go one by one, and after
//! one has failed all do: who was told that a write is lost need not be the one who wrote it.
//! Only another opening can be relied on again; it reads what the disk holds ([`super::opening`]).
//!
//! # Absent
//!
//! Deadlines: how long a local disk may take for a request is the kernel's decision (for SCSI 30
//! seconds and some retries, then an error), and no call can be taken back from it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Content, DiskError, DiskRequest, DiskResult, Durability, Extent, Zeroing};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;
use thiserror::Error;

use super::holes;
use super::transfer::{Progress, ReadCursor, WriteCursor};
use crate::sys::{os_error, retried};

/// `BLKDISCARD` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = libc::_IO(0x12, 119);
/// `BLKZEROOUT` of `linux/fs.h`.
const BLKZEROOUT: libc::Ioctl = libc::_IO(0x12, 127);
/// `BLKGETSIZE64` of `linux/fs.h`.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<libc::size_t>(0x12, 114);
/// How much is written at once where zeros have to be written.
const ZEROES_BLOCKS: u64 = 256;

/// What stands behind a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file that holds an image.
    Image,
    /// A block device.
    Device,
}

/// Whether requests go past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To the device itself.
    Direct,
    /// Through the page cache, because the filesystem below refuses direct I/O.
    Buffered,
    /// Through the page cache, because that was asked for.
    Cached,
}

/// Whether a disk may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    ReadWrite,
    ReadOnly,
}

/// An open file or device.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) access: Access,
    pub(super) permission: Permission,
    /// Length in bytes when it was last measured.
    pub(super) bytes: AtomicU64,
    /// Set once the kernel has refused `RWF_DSYNC`.
    pub(super) dsync_refused: AtomicBool,
    /// Why a flush through the page cache has failed.
    pub(super) failed_flush: Mutex<Option<Arc<io::Error>>>,
}

/// Why nothing can be flushed any more.
#[derive(Debug, Error)]
#[error("what was written before may be lost since a flush has failed ({0}); open it again")]
struct EarlierFlush(Arc<io::Error>);

impl Backing {
    pub(super) fn blocks(&self) -> u64 {
        self.bytes.load(Ordering::Acquire) / BLOCK_SIZE as u64
    }

    /// See [`super::FileDisk::measure`].
    pub(super) fn measure(&self) -> io::Result<()> {
        let bytes = length(&self.file, self.kind)?;
        self.bytes.fetch_max(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// See [`super::FileDisk::lengthen`].
    pub(super) fn lengthen(&self, bytes: u64) -> io::Result<()> {
        if self.kind == Kind::Device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if length(&self.file, Kind::Image)? < bytes {
            self.file.set_len(bytes)?;
            self.sync(|| self.file.sync_all())?;
        }
        self.measure()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Fails if the request reaches past the end, or changes a disk that is open for reading.
    pub(super) fn check(&self, request: &DiskRequest) -> Result<(), DiskError> {
        request.check(&self.name, self.blocks())?;
        let changes = !matches!(request, DiskRequest::Read { .. } | DiskRequest::Flush);
        if changes && self.permission == Permission::ReadOnly {
            let addr = request.extent().0;
            return Err(self.failure(request.operation(), addr, os_error(libc::EROFS)));
        }
        Ok(())
    }

    /// What the waiter of a failed request is told.
    pub(super) fn failure(
        &self,
        operation: &'static str,
        addr: BlockAddr,
        source: io::Error,
    ) -> DiskError {
        let device = Arc::clone(&self.name);
        DiskError::Io { device, operation, addr, source: Arc::new(source) }
    }

    /// Does a checked request on this thread.
    pub(super) fn execute(&self, request: DiskRequest) -> DiskResult {
        let operation = request.operation();
        let addr = request.extent().0;
        let outcome = match request {
            DiskRequest::Read { count, .. } => {
                let mut blocks = Blocks::zeroed(count);
                self.read(addr, blocks.bytes_mut()).map(|()| Some(blocks))
            }
            DiskRequest::Write { parts, durability, .. } => {
                self.write(addr, &parts, durability).map(|()| None)
            }
            DiskRequest::Flush => self.flush().map(|()| None),
            DiskRequest::Discard { count, .. } => self.discard(addr, count).map(|()| None),
            DiskRequest::WriteZeroes { count, .. } => self.write_zeroes(addr, count).map(|()| None),
        };
        outcome.map_err(|error| self.failure(operation, addr, error))
    }

    pub(super) fn read(&self, addr: BlockAddr, buffer: &mut [u8]) -> io::Result<()> {
        let mut cursor = ReadCursor::new(addr);
        while !buffer.is_empty() {
            let offset = cursor.offset() as i64;
            let rest = cursor.rest(buffer);
            // SAFETY: the pointer and the length describe `rest`, which is ours to write to.
            let count = retried(|| unsafe {
                libc::pread(self.fd(), rest.as_mut_ptr().cast(), rest.len(), offset)
            })?;
            if cursor.advance(buffer, count as usize, |at| self.is_end(at))? == Progress::Done {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn write(
        &self,
        addr: BlockAddr,
        parts: &[BlockSlice],
        durability: Durability,
    ) -> io::Result<()> {
        let mut cursor = WriteCursor::new(addr, parts);
        let mut unsynced = false;
        while !cursor.rest().is_empty() {
            let dsync = durability == Durability::Fua
                && self.access == Access::Direct
                && !self.dsync_refused.load(Ordering::Relaxed);
            let count = match self.write_some(&cursor, if dsync { libc::RWF_DSYNC } else { 0 }) {
                Err(error) if dsync && is_unsupported(&error) => {
                    self.dsync_refused.store(true, Ordering::Relaxed);
                    continue;
                }
                count => count?,
            };
            unsynced |= durability == Durability::Fua && !dsync;
            if cursor.advance(count)? == Progress::Done {
                break;
            }
        }
        if unsynced { self.flush() } else { Ok(()) }
    }

    fn write_some(&self, cursor: &WriteCursor, flags: libc::c_int) -> io::Result<usize> {
        let parts = cursor.rest();
        let offset = cursor.offset() as i64;
        let count = parts.len() as libc::c_int;
        // SAFETY: each part describes memory that the cursor's maker owns for as long.
        let written = retried(|| unsafe {
            match flags {
                0 => libc::pwritev(self.fd(), parts.as_ptr(), count, offset),
                flags => libc::pwritev2(self.fd(), parts.as_ptr(), count, offset, flags),
            }
        })?;
        Ok(written as usize)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        // SAFETY: takes no pointers.
        self.sync(|| retried(|| unsafe { libc::fdatasync(self.fd()) }).map(drop))
    }

    /// Every call that makes the kernel tell what it could not write.
    fn sync(&self, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.access == Access::Direct {
            return call();
        }
        let mut failed = self.failed_flush.lock();
        if let Some(cause) = &*failed {
            return Err(io::Error::other(EarlierFlush(Arc::clone(cause))));
        }
        call().inspect_err(|error| {
            // An error cannot be copied; a system's is all in its number.
            let same = error.raw_os_error().map_or_else(|| error.kind().into(), os_error);
            *failed = Some(Arc::new(same));
        })
    }

    /// That a disk cannot discard is no failure: the blocks' content is of no use either way.
    fn discard(&self, addr: BlockAddr, count: u64) -> io::Result<()> {
        let discarded = match self.kind {
            Kind::Image => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.allocate(mode, addr, count)
            }
            Kind::Device => self.block_ioctl(BLKDISCARD, addr, count),
        };
        match discarded {
            Err(error) if is_unsupported(&error) => Ok(()),
            discarded => discarded,
        }
    }

    fn write_zeroes(&self, addr: BlockAddr, count: u64) -> io::Result<()> {
        let zeroed = match self.kind {
            Kind::Image => self.allocate(libc::FALLOC_FL_ZERO_RANGE, addr, count),
            Kind::Device => self.block_ioctl(BLKZEROOUT, addr, count),
        };
        match zeroed {
            Err(error) if is_unsupported(&error) => self.write_zeroes_as_blocks(addr, count),
            zeroed => zeroed,
        }
    }

    pub(super) fn write_zeroes_as_blocks(&self, addr: BlockAddr, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let zeros = BlockSlice::new(Blocks::zeroed(count.min(ZEROES_BLOCKS) as usize));
        let mut done = 0;
        while done < count {
            let step = (count - done).min(ZEROES_BLOCKS);
            let part = zeros.part(0, step as usize);
            self.write(addr.plus(done), &[part], Durability::Cached)?;
            done += step;
        }
        Ok(())
    }

    /// Only a filesystem marks zeros without writing any; a device may do so or not, and does not
    /// say which.
    pub(super) fn zero_if_fast(&self, addr: BlockAddr, count: u64) -> io::Result<Zeroing> {
        if self.kind == Kind::Device {
            return Ok(Zeroing::NotFaster);
        }
        match self.allocate(libc::FALLOC_FL_ZERO_RANGE, addr, count) {
            Err(error) if is_unsupported(&error) => Ok(Zeroing::NotFaster),
            zeroed => zeroed.map(|()| Zeroing::Done),
        }
    }

    /// See [`holes`] for when it is known where the holes are.
    pub(super) fn extents(
        &self,
        addr: BlockAddr,
        count: u64,
        extents_max: usize,
    ) -> io::Result<Vec<Extent>> {
        let data = || Ok(vec![Extent { count, content: Content::Data }]);
        match (self.kind, self.access) {
            (Kind::Image, Access::Direct) => {}
            (Kind::Image, _) if holes::looks_into_cache(&self.file)? => {}
            (Kind::Device | Kind::Image, _) => return data(),
        }
        match holes::extents(&self.file, addr.0, addr.0 + count, extents_max) {
            Err(error) if is_unsupported(&error) || error.kind() == io::ErrorKind::InvalidInput => {
                data()
            }
            told => told,
        }
    }

    fn allocate(&self, mode: libc::c_int, addr: BlockAddr, count: u64) -> io::Result<()> {
        let offset = addr.byte_offset() as i64;
        let length = (count * BLOCK_SIZE as u64) as i64;
        if length == 0 {
            return Ok(());
        }
        // SAFETY: takes no pointers.
        retried(|| unsafe { libc::fallocate(self.fd(), mode, offset, length) }).map(drop)
    }

    fn block_ioctl(&self, command: libc::Ioctl, addr: BlockAddr, count: u64) -> io::Result<()> {
        let range = [addr.byte_offset(), count * BLOCK_SIZE as u64];
        if count == 0 {
            return Ok(());
        }
        // SAFETY: both commands read two u64, offset and length in bytes, from the pointer.
        retried(|| unsafe { libc::ioctl(self.fd(), command, range.as_ptr()) }).map(drop)
    }

    /// Whether there is nothing at `offset` and behind, because an image was made shorter.
    pub(super) fn is_end(&self, offset: u64) -> bool {
        self.kind == Kind::Image && self.file.metadata().is_ok_and(|file| offset >= file.len())
    }
}

/// Whether the kernel, the filesystem below or the device does not know a request at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY].contains(&errno)
}

/// Length in bytes.
pub(super) fn length(file: &File, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::Image => file.metadata().map(|metadata| metadata.len()),
        Kind::Device => device_bytes(file),
    }
}

fn device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the command writes one u64 to the pointer.
    retried(|| unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut bytes) })?;
    Ok(bytes)
}
