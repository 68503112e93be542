//! A fence before one file: while it is up, nobody begins to write to the file or to set its size.
//!
//! 1. Whoever writes back puts it up, and waits until those who have looked before have ended: they
//!    look, and write, with the file locked.
//! 2. Whoever wants to write finds it up, gives up all locks and waits.
//! 3. It goes down with its guard, however the writeback ends.
//!
//! Several may have it up at once.

use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::sync::{Condvar, Mutex};

/// Whether writers have to wait.
#[derive(Default)]
pub struct Fence {
    /// How many have put it up. Changed under the lock only.
    count: AtomicU64,
    lock: Mutex<()>,
    down: Condvar,
}

/// While it lives, the fence is up.
pub struct Up<'a>(&'a Fence);

impl Fence {
    /// Puts the fence up.
    pub fn put_up(&self) -> Up<'_> {
        let _changing = self.lock.lock();
        self.count.fetch_add(1, Ordering::AcqRel);
        Up(self)
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Waits until it is down.
    pub fn wait(&self) {
        let mut lock = self.lock.lock();
        while self.is_up() {
            self.down.wait(&mut lock);
        }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let _changing = self.0.lock.lock();
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.down.notify_all();
    }
}
