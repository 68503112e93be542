//! How an image or a device becomes a disk.
//!
//! 1. What is at the path is looked at before it is opened, as opening a pipe or a terminal does
//!    something; and once more afterwards, as it may have been another one by then.
//! 2. It is opened for direct I/O, or without where that is refused, and a writer claims a device.
//! 3. The lock is taken ([`lock`]), or the one who has it is named.
//! 4. Its length is measured, and direct I/O tried.
//! 5. A writer through the page cache has that forget what it holds of it.
//!
//! Nothing that is on the disk is looked at here.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::sync::Mutex;
use thiserror::Error;

use super::backing::{Access, Backing, Kind, Permission, length};
use super::lock::{self, Holder, Sharing};
use crate::sys::retried;

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

/// Whether writes wait in the page cache for a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// They go past it, and so do reads, where the filesystem below allows that.
    #[default]
    None,
    /// They do, and reads find there what was used lately.
    Writeback,
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
    /// For reads and writes.
    pub caching: Caching,
}

impl OpenOptions {
    /// What is right nearly always.
    pub fn new(mode: OpenMode) -> Self {
        let (claim, submission) = (Claim::Exclusive, Submission::Best);
        Self { mode, claim, submission, caching: Caching::None }
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

/// Opens what is at `path`.
pub(super) fn open(path: &Path, options: OpenOptions) -> Result<Backing, OpenError> {
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
    let access = settle_access(&file, access).map_err(failed("open"))?;
    if access != Access::Direct && permission == Permission::ReadWrite {
        forget_cached(&file);
    }
    Ok(Backing {
        access,
        file,
        name: path.to_string_lossy().into(),
        kind,
        permission,
        bytes,
        dsync_refused: AtomicBool::new(false),
        failed_flush: Mutex::new(None),
    })
}

/// Opens for direct I/O, or without where that is refused or not wanted.
fn open_file(path: &Path, kind: Kind, options: OpenOptions) -> Result<(File, Access), OpenError> {
    let writes = options.mode == OpenMode::ReadWrite;
    let claims = writes && kind == Kind::Device && options.claim == Claim::Exclusive;
    let claim = if claims { libc::O_EXCL } else { 0 };
    let open = |flags| File::options().read(true).write(writes).custom_flags(flags).open(path);
    let opened = match options.caching {
        Caching::Writeback => open(claim).map(|file| (file, Access::Cached)),
        Caching::None => open_direct(|flag| open(flag | claim)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => in_use(path),
        _ => OpenError::Io { operation: "open", path: path.to_owned(), source },
    })
}

fn open_direct(open: impl Fn(libc::c_int) -> io::Result<File>) -> io::Result<(File, Access)> {
    match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            open(0).map(|file| (file, Access::Buffered))
        }
        opened => opened.map(|file| (file, Access::Direct)),
    }
}

/// What the kernel could not write stays in the page cache as if it had been. Whoever opens the
/// file after a failed flush must read what the disk holds: a copy that is compared with a good one
/// would seem equal otherwise.
///
/// What is changed is written first, as the cache forgets several blocks at a time, and none of
/// them if one is changed. If that fails, what nobody has flushed is lost, as in a loss of power.
fn forget_cached(file: &File) {
    let _ = file.sync_data();
    // SAFETY: takes no pointers. A filesystem that knows no such advice has no disk below.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Some filesystems accept the flag for direct I/O and refuse the first read of a block, or want
/// larger units than ours: then the flag is taken back.
fn settle_access(file: &File, opened: Access) -> io::Result<Access> {
    if opened != Access::Direct {
        return Ok(opened);
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

fn in_use(path: &Path) -> OpenError {
    let holder = fs::metadata(path).ok().and_then(|metadata| lock::holder(&metadata));
    OpenError::InUse { path: path.to_owned(), holder }
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
