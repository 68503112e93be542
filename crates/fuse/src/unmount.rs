//! Unmounting, and what has to be asked of a mount by somebody who has nothing open on it.

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::mount::{FUSERMOUNT, MountError, c_string, is_root};

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it, else EBUSY. On block devices waits for the filesystem to finish.
    Plain,
    /// Out of the tree at once; the filesystem ends when the last user goes. Works on dead mounts.
    Lazy,
    /// As lazy, after aborting the connection: all users get errors now. Root only.
    Force,
}

/// Unmounts what is mounted uppermost at exactly this path.
pub fn unmount(mountpoint: &Path, how: Unmount) -> Result<(), MountError> {
    if !is_root() {
        return fusermount_unmount(mountpoint, how);
    }
    let target = c_string(mountpoint.as_os_str())?;
    let flags = libc::UMOUNT_NOFOLLOW
        | match how {
            Unmount::Plain => 0,
            Unmount::Lazy => libc::MNT_DETACH,
            Unmount::Force => libc::MNT_FORCE | libc::MNT_DETACH,
        };
    unmount_apart(&target, flags).map_err(|error| {
        let mountpoint = mountpoint.to_owned();
        MountError::Unmount { mountpoint, error }
    })
}

/// What the kernel says of a mount that is to expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Somebody uses it, or something is mounted on it.
    InUse,
    /// Nobody uses it. If that stays so until it is asked again, it is unmounted then.
    Marked,
    /// Nobody has used it since it was asked before, and now it is unmounted.
    Unmounted,
}

/// Whether somebody uses what is mounted uppermost at exactly this path. Root only.
pub fn expire(mountpoint: &Path) -> Result<Expiry, MountError> {
    let target = c_string(mountpoint.as_os_str())?;
    match unmount_apart(&target, libc::UMOUNT_NOFOLLOW | libc::MNT_EXPIRE) {
        Ok(()) => Ok(Expiry::Unmounted),
        Err(error) => match error.raw_os_error() {
            Some(libc::EBUSY) => Ok(Expiry::InUse),
            Some(libc::EAGAIN) => Ok(Expiry::Marked),
            _ => Err(MountError::Unmount { mountpoint: mountpoint.to_owned(), error }),
        },
    }
}

/// Has the kernel hand over all that programs have written below this mountpoint, whatever errors
/// it meets. Whoever serves the mount may call this, but not from a thread that handles requests.
pub fn hand_over(mountpoint: &Path) -> Result<(), MountError> {
    let target = c_string(mountpoint.as_os_str())?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated and outlives the calls, and only system calls are made.
    let synced = apart(|| unsafe {
        match libc::open(target.as_ptr(), flags) {
            -1 => -1,
            mount => libc::syncfs(mount),
        }
    });
    synced.map_err(|error| MountError::Sync { mountpoint: mountpoint.to_owned(), error })
}

/// Calls umount2(2) where nothing of ours is open: on a block device the call waits for whoever
/// serves the mount. If that is this process, and it is killed meanwhile, a thread of it in that
/// call would keep the connection open that it waits for, for ever.
fn unmount_apart(target: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated and outlives the call.
    apart(|| unsafe { libc::umount2(target.as_ptr(), flags) })
}

/// Calls `run` in a process of its own, without our descriptors. It makes system calls only, on
/// memory that was there before, and gives what the failed one or the last one gave.
fn apart(run: impl FnOnce() -> libc::c_int) -> io::Result<()> {
    // SAFETY: the child makes system calls only, on memory that was there before.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: as above, and _exit runs no destructors.
        unsafe {
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            let status = match run() {
                0 => 0,
                _ => *libc::__errno_location(),
            };
            libc::_exit(status);
        }
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call, and nobody else waits for this child.
        match (unsafe { libc::waitpid(child, &mut status, 0) }, io::Error::last_os_error()) {
            (0.., _) => break,
            (_, error) if error.kind() == io::ErrorKind::Interrupted => {}
            (_, error) => return Err(error),
        }
    }
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        0 => Err(io::ErrorKind::Interrupted.into()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn fusermount_unmount(mountpoint: &Path, how: Unmount) -> Result<(), MountError> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if how != Unmount::Plain {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).output();
    let output = output.map_err(MountError::FusermountMissing)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(MountError::Fusermount(said))
}
