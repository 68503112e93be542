//! Waiting for the end of another process.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process of which the end is awaited.
pub struct End {
    process: OwnedFd,
}

impl End {
    /// The process `pid`, if it lives.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { process })
    }

    /// Waits for the end; false if it has not come within `patience`.
    pub fn within(&self, patience: Duration) -> bool {
        let mut ends = [PollFd::new(&self.process, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).ok();
        matches!(poll(&mut ends, timeout.as_ref()), Ok(1))
    }
}
