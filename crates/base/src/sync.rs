//! The locks of blocking code, and the seam at which a simulator decides who runs.
//!
//! Everything but the program's front end takes its locks and short-lived threads from here and
//! nowhere else. They are `parking_lot`'s: small, fair enough that nobody starves, and free of
//! poisoning (a panic in the engine ends the process).
//!
//! ```text
//!   lock, wait, notify, spawn --- nobody is enrolled in this process ---> parking_lot
//!            '--- this thread is enrolled ---> its Scheduler: others may run, or have to
//! ```
//!
//! A thread that was [enrolled](enroll) runs only while its [`Scheduler`] lets it, so whole
//! programs of many threads can be run one step after the other, in an order that follows from a
//! seed, and with waits that end in a time that is a number.
//!
//! Absent: schedulers. No product has one; without it each operation costs one look at a flag more
//! than `parking_lot`'s.

mod mutex;
mod queue;
mod rw_lock;
mod scheduler;

use std::sync::{PoisonError, TryLockError};

pub use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

pub use self::mutex::{Condvar, Mutex, MutexGuard, WaitTimeoutResult};
pub use self::queue::Queue;
pub use self::rw_lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use self::scheduler::{Scheduler, enroll, now, sleep, spawn};

/// A lock for what is read all the time and hardly ever written: readers on different processors
/// touch different memory, and a writer pays for that.
#[derive(Debug, Default)]
pub struct ReadMostly<T>(ShardedLock<T>);

impl<T> ReadMostly<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(ShardedLock::new(value))
    }

    /// Waits until nobody writes.
    #[inline]
    pub fn read(&self) -> ShardedLockReadGuard<'_, T> {
        match scheduler::until_there(|| unless_taken(self.0.try_read())) {
            Some(guard) => guard,
            None => self.0.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The same for what everybody has while doing anything, and hardly anybody ever writes: where
    /// nobody does, it is no occasion for others to run.
    #[inline]
    pub fn pass(&self) -> ShardedLockReadGuard<'_, T> {
        match unless_taken(self.0.try_read()) {
            Some(guard) => guard,
            None => self.read(),
        }
    }

    /// Waits until nobody else has it.
    #[inline]
    pub fn write(&self) -> ShardedLockWriteGuard<'_, T> {
        match scheduler::until_there(|| unless_taken(self.0.try_write())) {
            Some(guard) => guard,
            None => self.0.write().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

fn unless_taken<G>(attempt: Result<G, TryLockError<G>>) -> Option<G> {
    match attempt {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
