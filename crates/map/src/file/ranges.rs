//! Range locks: reads and writes of one file in different ranges run side by side, those that
//! overlap (unless all only read) take turns.
//!
//! A file has few reads and writes in flight at once, so the table is a short list. Fairness comes
//! from the mutex: whoever waits looks again each time somebody leaves.

use gabion_base::sync::{Condvar, Mutex};

use crate::txn::LockMode;

/// The ranges of one file that are being read or written.
#[derive(Default)]
pub struct RangeLocks {
    held: Mutex<Vec<(u64, u64, LockMode)>>,
    freed: Condvar,
}

/// A locked range.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: (u64, u64, LockMode),
}

impl RangeLocks {
    /// Waits until nobody holds a conflicting lock on `from..to`, and locks it.
    pub fn lock(&self, from: u64, to: u64, mode: LockMode) -> RangeGuard<'_> {
        let mut held = self.held.lock();
        let conflicts = |other: &(u64, u64, LockMode)| {
            from < other.1
                && other.0 < to
                && (mode == LockMode::Exclusive || other.2 == LockMode::Exclusive)
        };
        while held.iter().any(conflicts) {
            self.freed.wait(&mut held);
        }
        held.push((from, to, mode));
        RangeGuard { locks: self, range: (from, to, mode) }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock();
        let index = held.iter().position(|range| *range == self.range).expect("it is held");
        held.swap_remove(index);
        drop(held);
        self.locks.freed.notify_all();
    }
}
