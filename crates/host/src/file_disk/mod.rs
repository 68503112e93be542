//! An image file or a block device as a [`Disk`].
//!
//! - **Synchronous calls** ([`Disk::read`], [`Disk::write`], [`Disk::flush`]) are system calls on
//!   the calling thread: handing a request to another thread would cost more than many disks take.
//! - **Submitted requests** go through an io_uring, or through a few threads where the kernel
//!   offers none. Both are started by the first request and not before, so that a program may open
//!   its disks first and go to the background then.
//! - **Length** is that of the file or device when it was opened, rounded down to whole blocks, or
//!   when it was measured again and had become longer ([`FileDisk::measure`]). An image that
//!   somebody makes shorter afterwards reads as zeros behind its end.
//! - **One writer**: see [`OpenMode`]. The lock belongs to the opening, and a forked child keeps
//!   it.
//! - **Direct I/O** where the filesystem below allows it, unless [`Caching`] says otherwise, else
//!   through the page cache. What was flushed is durable either way; after a flush through the page
//!   cache has failed, all do. [`FileDisk::describe`] says which it is.
//! - **Errors** keep the system's reason. A call that a signal interrupted is made again.
//! - **Deadlines** are the kernel's own for the device; a local disk adds none, and dropping a
//!   `FileDisk` waits for what is in flight.

mod backing;
mod holes;
mod lock;
mod opening;
mod ring;
mod transfer;
mod workers;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::{fmt, process, thread};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Extent, Ticket, Zeroing};
use gabion_base::ids::BlockAddr;

pub use self::backing::{Access, Kind};
use self::backing::{Backing, Permission};
pub use self::lock::Holder;
pub use self::opening::{
    Caching, Claim, OpenError, OpenMode, OpenOptions, Submission, create_image,
};
use self::ring::Ring;
use self::workers::Workers;
use crate::signature::{self, Signature};

/// An image file or block device that is open.
pub struct FileDisk {
    // Before `backing` in order, so that nothing is in flight when the descriptor is closed.
    ring: OnceLock<Option<Ring>>,
    workers: OnceLock<Option<Workers>>,
    submission: Submission,
    backing: Arc<Backing>,
}

impl FileDisk {
    /// Opens what is at `path` in the usual way.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, OpenError> {
        Self::open_with(path, OpenOptions::new(mode))
    }

    /// Opens what is at `path`.
    pub fn open_with(path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        Ok(Self {
            ring: OnceLock::new(),
            workers: OnceLock::new(),
            submission: options.submission,
            backing: Arc::new(opening::open(path, options)?),
        })
    }

    /// Whether this is an image file or a device.
    pub fn kind(&self) -> Kind {
        self.backing.kind
    }

    /// Whether requests go past the page cache.
    pub fn access(&self) -> Access {
        self.backing.access
    }

    /// Length in bytes, before it is rounded down to whole blocks.
    pub fn bytes(&self) -> u64 {
        self.backing.bytes.load(Ordering::Acquire)
    }

    /// Looks how long the file or device is by now. From now on all of it can be used; if it has
    /// become shorter the length stays, as what is missing reads as zeros or fails.
    pub fn measure(&self) -> io::Result<()> {
        self.backing.measure()
    }

    /// Makes an image at least `bytes` bytes long, sparsely and durably. Fails for a device, which
    /// has the length that it has.
    pub fn lengthen(&self, bytes: u64) -> io::Result<()> {
        self.backing.lengthen(bytes)
    }

    /// One line for people: what this is, and how it is read and written.
    pub fn describe(&self) -> String {
        let kind = match self.backing.kind {
            Kind::Image => "image file",
            Kind::Device => "block device",
        };
        let permission = match self.backing.permission {
            Permission::ReadWrite => "read-write",
            Permission::ReadOnly => "read-only",
        };
        let access = match self.backing.access {
            Access::Direct => "direct I/O",
            Access::Buffered => "buffered I/O (the filesystem below refuses direct I/O)",
            Access::Cached => "buffered I/O",
        };
        let submission = match (self.ring.get(), self.workers.get()) {
            (Some(Some(_)), _) => "io_uring",
            (_, Some(Some(_))) => "threads",
            (_, _) => "nothing submitted yet",
        };
        let (name, blocks) = (&self.backing.name, self.backing.blocks());
        format!("{name}: {kind}, {blocks} blocks, {permission}, {access}, {submission}")
    }

    /// What is on the disk now, if it is anything known.
    pub fn signature(&self) -> io::Result<Option<Signature>> {
        signature::identify(&self.reopen_buffered(OpenMode::ReadOnlyShared)?)
    }

    /// Takes off what [`FileDisk::signature`] finds. See [`signature::wipe`].
    pub fn wipe(&self) -> io::Result<Vec<Signature>> {
        signature::wipe(&self.reopen_buffered(OpenMode::ReadWrite)?)
    }

    /// The same file without direct I/O, for access in bytes.
    fn reopen_buffered(&self, mode: OpenMode) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.backing.fd());
        File::options().read(true).write(mode == OpenMode::ReadWrite).open(path)
    }

    fn ring(&self) -> Option<&Ring> {
        let start = || match self.submission {
            Submission::Best => Ring::start(&self.backing).ok(),
            Submission::Threads => None,
        };
        self.ring.get_or_init(start).as_ref()
    }

    fn workers(&self) -> Option<&Workers> {
        self.workers.get_or_init(|| Workers::start(&self.backing).ok()).as_ref()
    }
}

impl Disk for FileDisk {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.backing.name)
    }

    fn blocks(&self) -> u64 {
        self.backing.blocks()
    }

    fn remeasure(&self) -> Result<u64, DiskError> {
        let measured = self.backing.measure();
        measured.map_err(|error| self.backing.failure("measure", BlockAddr(0), error))?;
        Ok(self.backing.blocks())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = self.backing.check(&request) {
            return Ticket::ready(Err(error));
        }
        // Of flushes through the page cache there is one at a time, for which a ring knows no way.
        let is_direct = self.backing.access == Access::Direct;
        let (has_operation, is_empty) = match &request {
            DiskRequest::Flush => (is_direct, false),
            DiskRequest::Read { count, .. } => (true, *count == 0),
            DiskRequest::Write { parts, durability, .. } => {
                (is_direct || *durability == Durability::Cached, parts.is_empty())
            }
            DiskRequest::Discard { count, .. } | DiskRequest::WriteZeroes { count, .. } => {
                (false, *count == 0)
            }
        };
        if is_empty {
            return Ticket::ready(self.backing.execute(request));
        }
        match self.ring().filter(|_| has_operation) {
            Some(ring) => ring.submit(request),
            None => match self.workers() {
                Some(workers) => workers.submit(request),
                // Without threads, nothing is left but to do it now.
                None => Ticket::ready(self.backing.execute(request)),
            },
        }
    }

    fn read(&self, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        assert!(into.len().is_multiple_of(BLOCK_SIZE), "a read of {} bytes", into.len());
        let count = into.len() / BLOCK_SIZE;
        self.backing.check(&DiskRequest::Read { addr, count })?;
        if !into.as_ptr().addr().is_multiple_of(BLOCK_SIZE) {
            // Direct I/O is for aligned memory only.
            let read = self.backing.execute(DiskRequest::Read { addr, count })?;
            into.copy_from_slice(read.expect("a read gives blocks").bytes());
            return Ok(());
        }
        let read = self.backing.read(addr, into);
        read.map_err(|error| self.backing.failure("read", addr, error))
    }

    fn write(
        &self,
        addr: BlockAddr,
        part: BlockSlice,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let request = DiskRequest::Write { addr, parts: vec![part], durability };
        self.backing.check(&request)?;
        self.backing.execute(request).map(drop)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.backing.execute(DiskRequest::Flush).map(drop)
    }

    fn extents(
        &self,
        addr: BlockAddr,
        count: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, DiskError> {
        assert!(count > 0 && extents_max > 0, "{extents_max} extents of {count} blocks");
        self.backing.check(&DiskRequest::Read { addr, count: count as usize })?;
        let told = self.backing.extents(addr, count, extents_max);
        told.map_err(|error| self.backing.failure("seek", addr, error))
    }

    fn zero_if_fast(&self, addr: BlockAddr, count: u64) -> Result<Zeroing, DiskError> {
        let request = DiskRequest::WriteZeroes { addr, count };
        self.backing.check(&request)?;
        let zeroed = self.backing.zero_if_fast(addr, count);
        zeroed.map_err(|error| self.backing.failure(request.operation(), addr, error))
    }
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// A thread that completes tickets must not end without having done so, or its waiters would hang:
/// the process ends instead.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use gabion_base::buffer::Blocks;

    use super::*;

    #[test]
    fn a_kernel_that_refuses_the_flag_for_durable_writes_is_remembered_and_served() {
        let path = std::env::temp_dir().join(format!("gabion-dsync-{}", process::id()));
        create_image(&path, 4 * BLOCK_SIZE as u64).unwrap();
        let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
        fs::remove_file(&path).unwrap();
        disk.backing.dsync_refused.store(true, Ordering::Relaxed);
        let ones = BlockSlice::new(Blocks::from_bytes(&[1; BLOCK_SIZE]));
        disk.write(BlockAddr(1), ones.clone(), Durability::Fua).unwrap();
        let mut read = Blocks::zeroed(1);
        disk.read(BlockAddr(1), read.bytes_mut()).unwrap();
        assert_eq!(read.bytes(), ones.bytes());
    }
}
