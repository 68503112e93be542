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
//! - **Direct I/O** where the filesystem below allows it, else through the page cache; durability
//!   does not depend on it. [`FileDisk::describe`] says which.
//! - **Errors** keep the system's reason. A call that a signal interrupted is made again.
//! - **Deadlines** are the kernel's own for the device; a local disk adds none, and dropping a
//!   `FileDisk` waits for what is in flight.

mod backing;
mod holes;
mod lock;
mod ring;
mod transfer;
mod workers;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::{fmt, process, thread};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Extent, Ticket, Zeroing};
use gabion_base::ids::BlockAddr;
use thiserror::Error;

pub use self::backing::{Access, Kind};
use self::backing::{Backing, Permission};
pub use self::lock::Holder;
use self::lock::Sharing;
use self::ring::Ring;
use self::workers::Workers;
use crate::signature::{self, Signature};
use crate::sys::retried;

/// `BLKGETSIZE64` of `linux/fs.h`.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<libc::size_t>(0x12, 114);

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To write. Nobody else may have it open in this mode or in [`OpenMode::ReadOnly`].
    ReadWrite,
    /// To read what nobody changes: there may be other readers, but no writer.
    ReadOnly,
    /// To look at it whatever others do, without a lock. What is read may change at any time.
    ReadOnlyShared,
}

/// Whether a writer of a block device keeps everybody else from claiming it, with `O_EXCL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Kernel filesystems, swap, LVM and RAID are kept out while it is open, and keep us out.
    Exclusive,
    /// Only the advisory lock is taken. Needed if the kernel shall mount with this device's name.
    Shared,
}

/// How submitted requests are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// By io_uring where there is one, else by threads.
    Best,
    /// By threads.
    Threads,
}

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// To read or to write.
    pub mode: OpenMode,
    /// For a block device that is opened to write.
    pub claim: Claim,
    /// For submitted requests.
    pub submission: Submission,
}

impl OpenOptions {
    /// What is right nearly always.
    pub fn new(mode: OpenMode) -> Self {
        Self { mode, claim: Claim::Exclusive, submission: Submission::Best }
    }
}

/// Why a disk cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process, or the kernel, has it open in a way that conflicts.
    #[error("{} is in use by {}", path.display(), holder_text(holder.as_ref()))]
    InUse {
        /// The file or device.
        path: PathBuf,
        /// Who that is, as far as can be seen.
        holder: Option<Holder>,
    },
    /// It is a directory, a terminal, or something else without blocks.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The system says no.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// "create", "open", "lock" or "measure".
        operation: &'static str,
        /// The file or device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

fn holder_text(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => holder.to_string(),
        None => "another process or the kernel (mounted, swap, LVM or RAID)".to_owned(),
    }
}

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
        let failed =
            |operation| move |source| OpenError::Io { operation, path: path.to_owned(), source };
        let kind = kind_of(&fs::metadata(path).map_err(failed("open"))?)
            .ok_or_else(|| OpenError::NotADisk { path: path.to_owned() })?;
        let (file, access) = open_file(path, kind, options)?;
        let metadata = file.metadata().map_err(failed("open"))?;
        if kind_of(&metadata) != Some(kind) {
            return Err(OpenError::NotADisk { path: path.to_owned() });
        }
        let sharing = match options.mode {
            OpenMode::ReadWrite => Some(Sharing::Exclusive),
            OpenMode::ReadOnly => Some(Sharing::Shared),
            OpenMode::ReadOnlyShared => None,
        };
        if let Some(sharing) = sharing {
            lock::lock(&file, sharing).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => in_use(path),
                _ => failed("lock")(error),
            })?;
        }
        let bytes = AtomicU64::new(length(&file, kind).map_err(failed("measure"))?);
        let permission = match options.mode {
            OpenMode::ReadWrite => Permission::ReadWrite,
            OpenMode::ReadOnly | OpenMode::ReadOnlyShared => Permission::ReadOnly,
        };
        let backing = Backing {
            access: settle_access(&file, access).map_err(failed("open"))?,
            file,
            name: path.to_string_lossy().into(),
            kind,
            permission,
            bytes,
            dsync_refused: AtomicBool::new(false),
        };
        Ok(Self {
            ring: OnceLock::new(),
            workers: OnceLock::new(),
            submission: options.submission,
            backing: Arc::new(backing),
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
        let bytes = length(&self.backing.file, self.backing.kind)?;
        self.backing.bytes.fetch_max(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Makes an image at least `bytes` bytes long, sparsely and durably. Fails for a device, which
    /// has the length that it has.
    pub fn lengthen(&self, bytes: u64) -> io::Result<()> {
        if self.backing.kind == Kind::Device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if length(&self.backing.file, Kind::Image)? < bytes {
            self.backing.file.set_len(bytes)?;
            self.backing.file.sync_all()?;
        }
        self.measure()
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

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = self.backing.check(&request) {
            return Ticket::ready(Err(error));
        }
        let (has_operation, is_empty) = match &request {
            DiskRequest::Flush => (true, false),
            DiskRequest::Read { count, .. } => (true, *count == 0),
            DiskRequest::Write { parts, .. } => (true, parts.is_empty()),
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

/// Makes a sparse image of `bytes` bytes that only its owner may read. Fails if `path` exists.
pub fn create_image(path: &Path, bytes: u64) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { operation: "create", path: path.to_owned(), source };
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let sized = file.set_len(bytes).and_then(|()| file.sync_all());
    // The folder, too, so that the image itself is not lost in a crash.
    sized.and_then(|()| File::open(folder)?.sync_all()).map_err(|error| {
        // What was made is of no use, and the reason why is what counts.
        let _ = fs::remove_file(path);
        failed(error)
    })
}

fn kind_of(metadata: &fs::Metadata) -> Option<Kind> {
    let file_type = metadata.file_type();
    if file_type.is_file() {
        Some(Kind::Image)
    } else if file_type.is_block_device() {
        Some(Kind::Device)
    } else {
        None
    }
}

/// Opens for direct I/O, or without where that is refused.
fn open_file(path: &Path, kind: Kind, options: OpenOptions) -> Result<(File, Access), OpenError> {
    let writes = options.mode == OpenMode::ReadWrite;
    let claims = writes && kind == Kind::Device && options.claim == Claim::Exclusive;
    let claim = if claims { libc::O_EXCL } else { 0 };
    let open = |flags| File::options().read(true).write(writes).custom_flags(flags).open(path);
    let opened = match open(libc::O_DIRECT | claim) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            open(claim).map(|file| (file, Access::Buffered))
        }
        opened => opened.map(|file| (file, Access::Direct)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => in_use(path),
        _ => OpenError::Io { operation: "open", path: path.to_owned(), source },
    })
}

fn in_use(path: &Path) -> OpenError {
    let holder = fs::metadata(path).ok().and_then(|metadata| lock::holder(&metadata));
    OpenError::InUse { path: path.to_owned(), holder }
}

/// Some filesystems accept the flag for direct I/O and refuse the first read of a block, or want
/// larger units than ours: then the flag is taken back.
fn settle_access(file: &File, opened: Access) -> io::Result<Access> {
    if opened == Access::Buffered {
        return Ok(Access::Buffered);
    }
    let mut probe = Blocks::zeroed(1);
    let probe = probe.bytes_mut();
    let fd = file.as_raw_fd();
    // The second block, as the first is aligned to everything.
    let offset = BLOCK_SIZE as i64;
    // SAFETY: the pointer and the length describe `probe`.
    let read =
        retried(|| unsafe { libc::pread(fd, probe.as_mut_ptr().cast(), probe.len(), offset) });
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        // Any other failure is for whoever reads there.
        _ => return Ok(Access::Direct),
    }
    // SAFETY: takes no pointers.
    let flags = retried(|| unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: takes no pointers.
    retried(|| unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_DIRECT) })?;
    Ok(Access::Buffered)
}

fn length(file: &File, kind: Kind) -> io::Result<u64> {
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
    use std::sync::atomic::Ordering;

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
