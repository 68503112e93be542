//! Whether a mount is served, found out without the risk of waiting for it.
//!
//! The list of mounts does not tell a living mount from a dead one; only a call into the filesystem
//! does, and that call may never return. So a child process makes it, which can be killed and left
//! behind. The child holds nothing of ours: it closes all descriptors first, for a copy of a FUSE
//! device would keep the very mount alive whose end it waits for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::device::wait_readable;

/// How long a killed child is waited for before a thread is left to do it.
const GRACE: Duration = Duration::from_millis(100);

/// What serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Something answers.
    Alive,
    /// Nothing ever will: the daemon is gone, the connection aborted. Unmount it.
    Dead,
    /// Nothing did, for as long as was waited.
    Silent,
}

/// Asks the filesystem mounted at exactly this path for the attributes of its root, and waits for
/// the answer no longer than `patience`.
pub fn probe(mountpoint: &Path, patience: Duration) -> io::Result<Liveness> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let child = Child::asking(&path)?;
    if child.wait(patience)? {
        return Ok(match child.reap() {
            libc::ENOTCONN | libc::ECONNABORTED => Liveness::Dead,
            _ => Liveness::Alive,
        });
    }
    // SAFETY: the child was not reaped, so its id is still its own.
    unsafe { libc::kill(child.pid, libc::SIGKILL) };
    if child.wait(GRACE)? {
        child.reap();
    } else {
        // It ends when its request is answered or the connection goes; so does the thread.
        std::thread::Builder::new().name("fuse-probe".to_owned()).spawn(move || child.reap())?;
    }
    Ok(Liveness::Silent)
}

struct Child {
    pid: libc::pid_t,
    handle: OwnedFd,
}

impl Child {
    /// A process that stats `path` and exits with the errno.
    fn asking(path: &CString) -> io::Result<Self> {
        // SAFETY: between fork and _exit the child makes system calls on memory prepared before.
        unsafe {
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    let mut attributes: libc::statx = std::mem::zeroed();
                    libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
                    let flags = libc::AT_STATX_FORCE_SYNC | libc::AT_SYMLINK_NOFOLLOW;
                    let mask = libc::STATX_BASIC_STATS;
                    let (cwd, path) = (libc::AT_FDCWD, path.as_ptr());
                    let failed = libc::statx(cwd, path, flags, mask, &raw mut attributes) != 0;
                    libc::_exit(if failed { *libc::__errno_location() } else { 0 });
                }
                pid => {
                    let handle = libc::syscall(libc::SYS_pidfd_open, pid, 0);
                    if handle < 0 {
                        let error = io::Error::last_os_error();
                        libc::kill(pid, libc::SIGKILL);
                        return Err(error);
                    }
                    Ok(Self { pid, handle: OwnedFd::from_raw_fd(handle as i32) })
                }
            }
        }
    }

    /// Whether the child has ended before `patience` passes.
    fn wait(&self, patience: Duration) -> io::Result<bool> {
        wait_readable(self.handle.as_fd(), patience)
    }

    /// Waits for the child's end and returns its exit status, an errno or 0.
    fn reap(&self) -> i32 {
        let mut status = 0;
        // SAFETY: the child is ours and was not reaped; `status` is valid for a write.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        libc::WEXITSTATUS(status)
    }
}
