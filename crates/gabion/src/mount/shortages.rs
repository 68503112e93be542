//! Programs whose bytes the kernel has taken, and for which there was no room.
//!
//! A kernel that collects writes tells of that at fsync(2) and close(2). A program that does
//! neither could write for ever. So its next write(2) is told, too:
//!
//! 1. Bytes that the kernel hands over find no room. That is noted, and the kernel's attributes of
//!    the file are dropped.
//! 2. Before it takes more bytes for the file, the kernel asks for those. It gets the error in
//!    their place, once, if there is no room still, and gives it to the program.
//!
//! The kernel asks in the same words when a program reads at the end of the file. Which of both it
//! is tells the system call that the program waits in.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::sync::Mutex;
use gabion_fuse::{NodeId, Notifier};
use gabion_map::FileId;

/// Files that are remembered. Beyond that programs hear of it at fsync(2) and close(2).
const FILES_MAX: usize = 1024;
/// System calls that write to a file.
const WRITING: [libc::c_long; 7] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_splice,
];

/// What the next writes of programs are to be told.
#[derive(Default)]
pub(super) struct Shortages {
    notifier: OnceLock<Notifier>,
    /// Files, and why their bytes were refused: ENOSPC or EDQUOT.
    files: Mutex<BTreeMap<FileId, i32>>,
    /// There are some, as far as is known without the lock.
    are_some: AtomicBool,
}

impl Shortages {
    /// Whom to tell.
    pub(super) fn tell(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier);
    }

    /// For bytes of `file`, which the kernel knows by this number and has handed over, there was no
    /// room, for this reason.
    pub(super) fn add(&self, (file, node): (FileId, NodeId), errno: i32) {
        let mut files = self.files.lock();
        if files.len() < FILES_MAX || files.contains_key(&file) {
            files.insert(file, errno);
            self.are_some.store(true, Ordering::Release);
        }
        drop(files);
        if let Some(notifier) = self.notifier.get() {
            // A kernel that does not know the file has nobody who writes to it.
            let _ = notifier.inval_attr(node);
        }
    }

    /// Whether somebody is to be told about a file: until then the kernel keeps no attributes of
    /// it.
    pub(super) fn has(&self, file: FileId) -> bool {
        self.are_some.load(Ordering::Acquire) && self.files.lock().contains_key(&file)
    }

    /// The kernel does not know the file any more, and so nobody has it open.
    pub(super) fn forget(&self, file: FileId) {
        if self.are_some.load(Ordering::Acquire) {
            self.files.lock().remove(&file);
        }
    }

    /// What a process is to be told, once, that asks for the attributes of a file which it has
    /// open.
    pub(super) fn take(&self, file: FileId, process: u32) -> Option<i32> {
        if !self.are_some.load(Ordering::Acquire) {
            return None;
        }
        let mut files = self.files.lock();
        let errno = files.get(&file).copied().filter(|_| is_writing(process))?;
        files.remove(&file);
        self.are_some.store(!files.is_empty(), Ordering::Release);
        Some(errno)
    }
}

/// Whether it waits in a system call that writes, as far as can be seen.
fn is_writing(process: u32) -> bool {
    let called = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
    let number = called.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: libc::c_long| WRITING.contains(&number))
}
