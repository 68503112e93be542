//! Attaching a connection to a directory.
//!
//! Root mounts in two steps (see [`Attachment`]), so that who serves the filesystem is ready when
//! it appears in the tree. Others go through the set-user-id program `fusermount3`: it is started
//! with one end of a socket pair named in `_FUSE_COMMFD`, mounts, and sends the open device back as
//! an SCM_RIGHTS message.
//!
//! `fuse.SUBTYPE` is the ordinary kind. `fuseblk.SUBTYPE` needs a block device as its source, which
//! the kernel then holds exclusively; only there does sync(2) reach the filesystem, and only there
//! does umount(2) wait until the filesystem has finished.
//!
//! Nothing here looks at the mountpoint itself: a dead mount there would answer ENOTCONN, a hanging
//! one never. Check with [`find`](crate::mountinfo::find) before.

use std::ffi::{CString, NulError, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

pub use crate::attachment::Attachment;
use crate::bits::flag_set;
use crate::device::Device;
pub use crate::unmount::{Expiry, Unmount, expire, hand_over, unmount};

pub(crate) const FUSERMOUNT: &str = "fusermount3";
/// The longest option that fsconfig(2) takes, in bytes.
const OPTION_BYTES_MAX: usize = 255;

flag_set! {
    /// Options of the mount itself, which the kernel enforces before it asks the filesystem.
    MountFlags(u64) {
        /// Nothing may be changed.
        READ_ONLY = libc::MS_RDONLY;
        /// Set-user-id and set-group-id bits have no effect.
        NOSUID = libc::MS_NOSUID;
        /// Device nodes cannot be opened.
        NODEV = libc::MS_NODEV;
        /// Programs cannot be run.
        NOEXEC = libc::MS_NOEXEC;
        /// Reads do not update access times.
        NOATIME = libc::MS_NOATIME;
        /// Access times of directories are not updated.
        NODIRATIME = libc::MS_NODIRATIME;
        /// Access times are updated when older than the last change, or than a day.
        RELATIME = libc::MS_RELATIME;
        /// Access times are always updated.
        STRICTATIME = libc::MS_STRICTATIME;
        /// Writes are synchronous.
        SYNCHRONOUS = libc::MS_SYNCHRONOUS;
        /// Changes of directories are synchronous.
        DIRSYNC = libc::MS_DIRSYNC;
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A name for people to read, as the source in the list of mounts.
    Name(String),
    /// A block device, for `fuseblk`.
    BlockDevice {
        /// Its path.
        path: PathBuf,
        /// Block size, in bytes: a power of two from 512 to a page.
        block_size: u32,
    },
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What is mounted.
    pub source: Source,
    /// What follows `fuse.` in the filesystem's type.
    pub subtype: String,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Users other than the mounting one may enter. Not for root to ask lightly.
    pub allow_other: bool,
    /// The kernel checks permissions by mode, owner and ACL; else the filesystem must.
    pub default_permissions: bool,
    /// The largest READ, in bytes; the kernel's choice if not given.
    pub max_read: Option<u32>,
}

impl MountOptions {
    /// For everybody, checked by the kernel, without device nodes and set-id programs.
    pub fn new(source: Source, subtype: &str) -> Self {
        Self {
            source,
            subtype: subtype.to_owned(),
            flags: MountFlags::NOSUID | MountFlags::NODEV,
            allow_other: true,
            default_permissions: true,
            max_read: None,
        }
    }

    /// The type as the list of mounts shows it.
    pub(crate) fn fstype(&self) -> String {
        format!("{}.{}", self.kind(), self.subtype)
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self.source {
            Source::Name(_) => "fuse",
            Source::BlockDevice { .. } => "fuseblk",
        }
    }

    pub(crate) fn source(&self) -> &OsStr {
        match &self.source {
            Source::Name(name) => OsStr::new(name),
            Source::BlockDevice { path, .. } => path.as_os_str(),
        }
    }

    /// The options that the filesystem type itself takes.
    pub(crate) fn own(&self) -> Vec<String> {
        let mut options = Vec::new();
        if self.allow_other {
            options.push("allow_other".to_owned());
        }
        if self.default_permissions {
            options.push("default_permissions".to_owned());
        }
        if let Some(max_read) = self.max_read {
            options.push(format!("max_read={max_read}"));
        }
        if let Source::BlockDevice { block_size, .. } = self.source {
            options.push(format!("blksize={block_size}"));
        }
        options
    }

    /// The options as fusermount takes them.
    fn for_fusermount(&self) -> String {
        let names = [
            (MountFlags::READ_ONLY, "ro"),
            (MountFlags::NOSUID, "nosuid"),
            (MountFlags::NODEV, "nodev"),
            (MountFlags::NOEXEC, "noexec"),
            (MountFlags::NOATIME, "noatime"),
            (MountFlags::SYNCHRONOUS, "sync"),
            (MountFlags::DIRSYNC, "dirsync"),
        ];
        let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
        let mut options = format!("subtype={}", escape(&self.subtype));
        options += &format!(",fsname={}", escape(&self.source().to_string_lossy()));
        for (flag, name) in names {
            if self.flags.contains(flag) {
                options += &format!(",{name}");
            }
        }
        self.own().iter().fold(options, |options, own| options + "," + own)
    }
}

/// Why something could not be mounted or unmounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse")]
    Device(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot mount {fstype} at {}", mountpoint.display())]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// What type.
        fstype: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// umount(2) refused.
    #[error("cannot unmount {}", mountpoint.display())]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// Why: EBUSY if it is in use, EINVAL if nothing is mounted there.
        #[source]
        error: io::Error,
    },
    /// What programs have written below a mount cannot be had.
    #[error("cannot sync {}", mountpoint.display())]
    Sync {
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The program that mounts for ordinary users failed.
    #[error("{FUSERMOUNT} failed: {0}")]
    Fusermount(String),
    /// The program that mounts for ordinary users cannot be used.
    #[error("cannot run {FUSERMOUNT}")]
    FusermountMissing(#[source] io::Error),
    /// A path or an option contains a NUL byte.
    #[error("a path or option contains a NUL byte")]
    Nul(#[from] NulError),
}

/// Mounts at a directory. The kernel's INIT waits in the device, for
/// [`Session::start`](crate::Session::start).
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<Device, MountError> {
    let (device, mut attachment) = prepare(mountpoint, options)?;
    attachment.make()?;
    Ok(device)
}

/// The same, but leaves it to the caller when it shall appear there. For ordinary users, and with a
/// source of a very long name, it has.
pub fn prepare(
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<(Device, Attachment), MountError> {
    if !is_root() {
        let device = fusermount(mountpoint, options)?;
        return Ok((device, Attachment::made(mountpoint, options)));
    }
    let device = Device::open().map_err(MountError::Device)?;
    let fd = device.as_fd().as_raw_fd();
    let attachment = match options.source().len() {
        ..=OPTION_BYTES_MAX => Attachment::prepare(mountpoint, options, fd)?,
        _ => mount_at_once(mountpoint, options, fd)?,
    };
    Ok((device, attachment))
}

pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

pub(crate) fn c_string(text: &OsStr) -> Result<CString, NulError> {
    CString::new(text.as_bytes())
}

/// By mount(2) alone, which takes longer names.
fn mount_at_once(
    mountpoint: &Path,
    options: &MountOptions,
    fd: RawFd,
) -> Result<Attachment, MountError> {
    let fstype = options.fstype();
    let own = options.own().join(",");
    let own = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,{own}");
    let (source, target) = (c_string(options.source())?, c_string(mountpoint.as_os_str())?);
    let (kind, own) = (CString::new(fstype.as_str())?, CString::new(own)?);
    // SAFETY: all four strings are NUL-terminated and outlive the call.
    let failed = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            options.flags.bits(),
            own.as_ptr().cast(),
        )
    } != 0;
    if failed {
        let (mountpoint, error) = (mountpoint.to_owned(), io::Error::last_os_error());
        return Err(MountError::Mount { mountpoint, fstype, error });
    }
    Ok(Attachment::made(mountpoint, options))
}

fn fusermount(mountpoint: &Path, options: &MountOptions) -> Result<Device, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::FusermountMissing)?;
    let inherited = theirs.as_raw_fd();
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-o").arg(options.for_fusermount()).arg("--").arg(mountpoint);
    command.env("_FUSE_COMMFD", inherited.to_string());
    // SAFETY: fcntl is async-signal-safe; the descriptor is open in the child until exec.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let child = command.stderr(std::process::Stdio::piped()).spawn();
    let child = child.map_err(MountError::FusermountMissing)?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(MountError::FusermountMissing)?;
    match received {
        Ok(Some(fd)) if output.status.success() => Ok(Device::from_fd(fd)),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(MountError::Fusermount(format!("{said} ({})", output.status)))
        }
    }
}

/// Receives one descriptor with one byte; `None` if the other side is closed without sending it.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    union Control {
        _align: libc::cmsghdr,
        bytes: [u8; 64],
    }
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let length = loop {
        // SAFETY: `message` points at live memory of the lengths it says.
        let got =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match (got, io::Error::last_os_error()) {
            (0.., _) => break got,
            (_, error) if error.kind() == io::ErrorKind::Interrupted => {}
            (_, error) => return Err(error),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    // SAFETY: `message` was filled by recvmsg; CMSG_FIRSTHDR checks the length of a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let Some(header) = header else { return Ok(None) };
    // SAFETY: CMSG_LEN only computes.
    let needed = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    let rights = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    if (header.cmsg_level, header.cmsg_type) != rights || header.cmsg_len < needed {
        return Ok(None);
    }
    // SAFETY: the kernel put at least one open descriptor, ours from now on, behind this header.
    Ok(Some(unsafe {
        OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send_descriptor(socket: &UnixStream, fd: RawFd) {
        let mut control = [0u64; 8];
        let mut byte = 0u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: the message is built from live memory with room for one control header.
        unsafe {
            let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            assert_eq!(libc::sendmsg(socket.as_raw_fd(), &raw const message, 0), 1);
        }
    }

    #[test]
    fn descriptor_sent_over_the_socket_is_received_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (probe, other) = UnixStream::pair().unwrap();
        send_descriptor(&theirs, other.as_raw_fd());
        drop((theirs, other));
        let received = UnixStream::from(receive_descriptor(&ours).unwrap().unwrap());
        io::Write::write_all(&mut &received, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut &probe, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }

    #[test]
    fn commas_and_backslashes_in_names_do_not_become_options() {
        let source = Source::Name("a,suid\\b".to_owned());
        let options = MountOptions::new(source, "gabion").for_fusermount();
        assert_eq!(
            options,
            "subtype=gabion,fsname=a\\,suid\\\\b,nosuid,nodev,allow_other,default_permissions"
        );
    }
}
