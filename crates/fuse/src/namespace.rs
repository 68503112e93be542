//! Mounts that only one thread sees, and what it starts from then on.
//!
//! A new mount namespace is a copy, and what is mounted in a copy stays mounted however often it is
//! unmounted elsewhere: whoever makes one keeps the filesystems of all others busy. So
//! [`enter`] lets go at once of what it need not have, and has the rest follow what happens
//! outside, if that is told there at all: of a filesystem that is mounted *private* it is not.

use std::cell::Cell;
use std::io;
use std::ptr::null;

use crate::mount::{Unmount, unmount};
use crate::mountinfo::{Mount, mounts};

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread, and the threads and programs that it starts from now on, mounts of their own.
/// What they mount is not seen outside, and what is unmounted outside goes here, too. Mounts for
/// which `is_left` is true are left to the others, but for one that the current folder is in.
///
/// The first call of a thread counts.
pub fn enter(is_left: impl Fn(&Mount) -> bool) -> io::Result<()> {
    if IS_OWN.get() {
        return Ok(());
    }
    // SAFETY: only this thread's view of mounts changes; no memory and no descriptor is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    IS_OWN.set(true);
    let (none, flags) = (null(), libc::MS_REC | libc::MS_SLAVE);
    // SAFETY: the path is NUL-terminated; the other strings are not looked at with these flags.
    if unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let folder = std::env::current_dir()?;
    for mount in mounts()?.iter().rev() {
        if is_left(mount) && !folder.starts_with(&mount.mountpoint) {
            // It may have gone by itself.
            let _ = unmount(&mount.mountpoint, Unmount::Lazy);
        }
    }
    Ok(())
}
