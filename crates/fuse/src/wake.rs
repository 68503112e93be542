//! Getting a thread out of a blocking read of the device, which nothing else than a request, the
//! end of the mount or a signal ends. (poll would wake all threads for each request, and a retrieve
//! notification, which makes the kernel send one, is refused for directories.)
//!
//! The signal is SIGURG: ignored by default, so a stray one is harmless, and interesting to hardly
//! any program. Its handler does nothing; without `SA_RESTART` the read fails with EINTR. A handler
//! that the program has installed itself is left in place. A signal that arrives just before the
//! read is lost, so whoever wakes repeats it until the thread is gone.

use std::sync::Once;

/// A thread of this process, as long as it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread, which from now on can be woken.
    pub(crate) fn wakeable() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        // SAFETY: the set is initialised by sigemptyset; unblocking a signal has no preconditions.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGURG);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            Self(libc::gettid())
        }
    }

    /// Interrupts the system call the thread is in. The thread must not have ended.
    pub(crate) fn wake(self) {
        // SAFETY: SIGURG to a thread of this process runs at worst the program's own handler.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, libc::SIGURG) };
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

fn install() {
    // SAFETY: both structures are valid; the handler is async-signal-safe.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGURG, std::ptr::null(), &raw mut current);
        if current.sa_sigaction == libc::SIG_DFL || current.sa_sigaction == libc::SIG_IGN {
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGURG, &raw const ours, std::ptr::null_mut());
        }
    }
}
