//! One writer per disk.
//!
//! Whoever writes holds `flock(LOCK_EX)` on the image or the device's node, whoever reads holds
//! `LOCK_SH`; the kernel drops the lock when the last descriptor of that opening is closed, however
//! the process ended. On a device `O_EXCL` comes on top, which also keeps out kernel filesystems,
//! swap, LVM and RAID, and openings through another node of the same device.
//!
//! Who holds a lock that is in the way is read from `/proc/PID/fdinfo`, which shows the locks of
//! each descriptor, rather than from `/proc/locks`: there a daemon that was forked after it locked
//! appears under the process identifier of its parent, which is gone. The latter is asked only when
//! the former may not be read.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::sys::retried;

/// How many may hold a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    Exclusive,
    Shared,
}

/// A process that keeps a disk locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its identifier.
    pub pid: u32,
    /// Its program's name, if it may be known.
    pub name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// Takes the lock, or fails at once with `WouldBlock` if somebody has it.
pub(super) fn lock(file: &File, sharing: Sharing) -> io::Result<()> {
    let operation = match sharing {
        Sharing::Exclusive => libc::LOCK_EX,
        Sharing::Shared => libc::LOCK_SH,
    };
    // SAFETY: takes no pointers.
    retried(|| unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// Somebody who has a lock on the file with this metadata.
pub(super) fn holder(file: &fs::Metadata) -> Option<Holder> {
    let pid = holder_by_descriptor(file).or_else(|| holder_by_lock(file))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(Holder { pid, name: name.map(|name| name.trim_end().to_owned()) })
}

fn holder_by_descriptor(file: &fs::Metadata) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        descriptors.filter_map(Result::ok).any(|descriptor| {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
            locks.filter_map(Lock::parse).any(|lock| lock.is_on(file))
        })
    })
}

fn holder_by_lock(file: &fs::Metadata) -> Option<u32> {
    let text = fs::read_to_string("/proc/locks").ok()?;
    let lock = text.lines().filter_map(Lock::parse).find(|lock| lock.is_on(file))?;
    (lock.pid > 0).then_some(lock.pid)
}

/// A line such as `1: FLOCK  ADVISORY  WRITE 359 fe:00:11691 0 EOF`.
#[derive(Debug, PartialEq, Eq)]
struct Lock {
    pid: u32,
    major: u32,
    minor: u32,
    inode: u64,
}

impl Lock {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let mut words = words.skip(2);
        let pid = words.next()?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let major = u32::from_str_radix(place.next()?, 16).ok()?;
        let minor = u32::from_str_radix(place.next()?, 16).ok()?;
        Some(Self { pid, major, minor, inode: place.next()?.parse().ok()? })
    }

    fn is_on(&self, file: &fs::Metadata) -> bool {
        let device = libc::makedev(self.major, self.minor);
        self.inode == file.ino() && device == file.dev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_locks_is_understood() {
        let line = "27: FLOCK  ADVISORY  WRITE 359 fe:10:11691 0 EOF";
        let lock = Lock { pid: 359, major: 0xfe, minor: 0x10, inode: 11691 };
        assert_eq!(Lock::parse(line), Some(lock));
        assert_eq!(Lock::parse("1: POSIX  ADVISORY  WRITE 359 fe:00:11691 0 EOF"), None);
        assert_eq!(Lock::parse("1: -> FLOCK  ADVISORY  WRITE 359 fe:00:11691 0 EOF"), None);
        assert_eq!(Lock::parse("1: FLOCK  ADVISORY"), None);
    }

    #[test]
    fn a_holder_is_found_by_its_descriptor_and_by_its_lock() {
        let name = format!("gabion-lock-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::create_new(&path).unwrap();
        let metadata = file.metadata().unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(holder(&metadata), None);
        lock(&file, Sharing::Exclusive).unwrap();
        let me = Some(std::process::id());
        assert_eq!(holder_by_descriptor(&metadata), me);
        assert_eq!(holder_by_lock(&metadata), me);
    }
}
