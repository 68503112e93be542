//! The locks of blocking engine code.
//!
//! Engine code takes its locks from here and nowhere else, so that a simulator which runs it in
//! coroutines can put yielding locks in their place. Today they are `parking_lot`'s: small, fair
//! enough that nobody starves, and free of poisoning (a panic in the engine ends the process).

use std::sync::PoisonError;

pub use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
pub use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard,
    RwLockWriteGuard,
};

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
    pub fn read(&self) -> ShardedLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else has it.
    pub fn write(&self) -> ShardedLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
