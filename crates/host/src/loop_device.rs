//! A block device's name for an image file.
//!
//! The kernel mounts some types only from a block device. A loop device gives an image that name;
//! the data itself does not have to pass through it.
//!
//! Every device attached here is detached by the kernel when nobody has it open any more
//! (`LO_FLAGS_AUTOCLEAR`). The guard has it open, so it stays for as long as the guard lives, and
//! beyond that for as long as it is mounted: whoever mounts keeps the guard until the mount is
//! made, and no crash leaves a device behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::{os_error, retried};

// Of `linux/loop.h`.
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Another process may take the device that the kernel has called free; so often one more is tried.
const ATTEMPTS_MAX: usize = 64;
/// The sector size that goes with our blocks.
const SECTOR_BYTES: u32 = 4096;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopStatus {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    status: LoopStatus,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopStatus>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopStatus {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// Whether the device may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopAccess {
    /// Reads and writes reach the image.
    ReadWrite,
    /// Writes are refused.
    ReadOnly,
}

/// A loop device that is attached to an image, open so that it stays.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a free device to `image`. Needs the right to administer the system.
    pub fn attach(image: &Path, access: LoopAccess) -> io::Result<Self> {
        let backing = open(image, access)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS_MAX {
            // SAFETY: takes no pointers.
            let number =
                retried(|| unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match attach_to(&path, &backing, image, access) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                attached => return attached.map(|device| Self { device, path }),
            }
        }
        Err(os_error(libc::EBUSY))
    }

    /// The device's name, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches the device now, or, if others have it open, when they close it. Dropping the guard
    /// has the same effect, but tells of no errors.
    pub fn detach(self) -> io::Result<()> {
        // SAFETY: takes no pointers.
        retried(|| unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) }).map(drop)
    }
}

/// The devices that are attached to `image`, by whatever name they were given it.
pub fn attached_to(image: &Path) -> io::Result<Vec<PathBuf>> {
    let image = fs::metadata(image)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        match status(&path) {
            Ok(status) if status.device == image.dev() && status.inode == image.ino() => {
                found.push(path);
            }
            Ok(_) => {}
            // Detached since.
            Err(error) if [libc::ENXIO, libc::ENOENT].map(Some).contains(&error.raw_os_error()) => {
            }
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

fn open(path: &Path, access: LoopAccess) -> io::Result<File> {
    File::options().read(true).write(access == LoopAccess::ReadWrite).open(path)
}

fn attach_to(path: &Path, backing: &File, image: &Path, access: LoopAccess) -> io::Result<File> {
    let device = open(path, access)?;
    let mut status = LoopStatus::ZERO;
    status.flags = match access {
        LoopAccess::ReadWrite => LO_FLAGS_AUTOCLEAR,
        LoopAccess::ReadOnly => LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY,
    };
    // For people to read; cut off, and ended by a zero byte.
    let name = image.as_os_str().as_encoded_bytes();
    let length = name.len().min(status.file_name.len() - 1);
    status.file_name[..length].copy_from_slice(&name[..length]);
    match configure(&device, backing, status, SECTOR_BYTES) {
        // Sectors of this size are not possible on this kernel: then the usual ones.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            configure(&device, backing, status, 0)?;
        }
        configured => configured?,
    }
    Ok(device)
}

fn configure(device: &File, backing: &File, status: LoopStatus, block_size: u32) -> io::Result<()> {
    let fd = backing.as_raw_fd() as u32;
    let config = LoopConfig { fd, block_size, status, reserved: [0; 8] };
    // SAFETY: the command reads a `loop_config` from the pointer.
    retried(|| unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }).map(drop)
}

fn status(path: &Path) -> io::Result<LoopStatus> {
    let device = File::open(path)?;
    let mut status = LoopStatus::ZERO;
    // SAFETY: the command writes a `loop_info64` to the pointer.
    retried(|| unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut status) })?;
    Ok(status)
}
