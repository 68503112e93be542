//! Waiting to be asked to stop.
//!
//! 1. The first thread calls [`Signals::block`] before it starts any other. From then on the
//!    signals interrupt nobody (threads inherit the mask) and are kept until they are read.
//! 2. One thread calls [`Signals::wait`]. It returns for each signal, and when another thread
//!    calls [`Waker::wake`], because the program may end for other reasons, too.
//!
//! Programs that are started through `std::process::Command` get an empty mask again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use crate::sys::retried;

/// Why [`Signals::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// SIGINT: the user pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: the administrator or the system wants an orderly end.
    Terminate,
    /// SIGHUP: the terminal went away, or configuration is to be read again.
    HangUp,
    /// [`Waker::wake`] was called.
    Woken,
}

/// The signals that ask a program to stop, kept for whoever waits for them.
#[derive(Debug)]
pub struct Signals {
    signals: File,
    woken: Arc<File>,
}

/// Ends a wait for signals from another thread.
#[derive(Clone, Debug)]
pub struct Waker {
    woken: Arc<File>,
}

impl Signals {
    /// Blocks SIGINT, SIGTERM and SIGHUP in this thread and all that it will start.
    pub fn block() -> io::Result<Self> {
        // SAFETY: a set of signals is plain bytes, and is initialised by the first call.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: `set` is valid for each of these calls, which only write to it.
        unsafe {
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
        }
        // SAFETY: `set` is an initialised set; the old mask is not asked for.
        let errno = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: `set` is an initialised set.
        let signals = retried(|| unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) })?;
        // SAFETY: takes no pointers.
        let woken = retried(|| unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
        // SAFETY: the descriptors were just made, and nobody else owns them.
        unsafe {
            let signals = File::from(OwnedFd::from_raw_fd(signals));
            let woken = Arc::new(File::from(OwnedFd::from_raw_fd(woken?)));
            Ok(Self { signals, woken })
        }
    }

    /// Something by which another thread ends [`Signals::wait`].
    pub fn waker(&self) -> Waker {
        Waker { woken: Arc::clone(&self.woken) }
    }

    /// Waits for the next signal or wake-up; without an end, by its purpose.
    pub fn wait(&self) -> io::Result<Wake> {
        let poll =
            |file: &File| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut ready = [poll(&self.signals), poll(&self.woken)];
        // SAFETY: the pointer and the length describe `ready`.
        retried(|| unsafe { libc::poll(ready.as_mut_ptr(), 2, -1) })?;
        if ready[0].revents == 0 {
            (&*self.woken).read_exact(&mut [0; 8])?;
            return Ok(Wake::Woken);
        }
        let mut record = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
        (&self.signals).read_exact(&mut record)?;
        let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        match number as i32 {
            libc::SIGINT => Ok(Wake::Interrupt),
            libc::SIGTERM => Ok(Wake::Terminate),
            libc::SIGHUP => Ok(Wake::HangUp),
            other => Err(io::Error::other(format!("signal {other} was never asked for"))),
        }
    }
}

impl Waker {
    /// Makes the present or the next [`Signals::wait`] return.
    pub fn wake(&self) -> io::Result<()> {
        (&*self.woken).write_all(&1_u64.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: i32) {
        // SAFETY: takes no pointers. The signal goes to this thread, which has it blocked.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn a_wait_names_the_signal() {
        let signals = Signals::block().unwrap();
        for (number, wake) in [
            (libc::SIGTERM, Wake::Terminate),
            (libc::SIGINT, Wake::Interrupt),
            (libc::SIGHUP, Wake::HangUp),
        ] {
            raise(number);
            assert_eq!(signals.wait().unwrap(), wake);
        }
    }

    #[test]
    fn another_thread_ends_a_wait() {
        let signals = Signals::block().unwrap();
        let waker = signals.waker();
        std::thread::spawn(move || waker.wake().unwrap());
        assert_eq!(signals.wait().unwrap(), Wake::Woken);
    }
}
