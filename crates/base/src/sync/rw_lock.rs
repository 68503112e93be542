//! A lock that several may have to read.

use std::fmt;

pub use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::scheduler;

/// A lock for one that writes or any number that read.
#[derive(Default)]
pub struct RwLock<T: ?Sized>(parking_lot::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until nobody writes.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        match scheduler::until_there(|| self.0.try_read()) {
            Some(guard) => guard,
            None => self.0.read(),
        }
    }

    /// The same, past those who wait to write: also for who reads it already.
    #[inline]
    pub fn read_recursive(&self) -> RwLockReadGuard<'_, T> {
        match scheduler::until_there(|| self.0.try_read_recursive()) {
            Some(guard) => guard,
            None => self.0.read_recursive(),
        }
    }

    /// Waits until nobody else has it.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        match scheduler::until_there(|| self.0.try_write()) {
            Some(guard) => guard,
            None => self.0.write(),
        }
    }

    /// Has it to read if nobody writes.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.0.try_read()
    }

    /// Has it to write if nobody else has it.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.0.try_write()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
