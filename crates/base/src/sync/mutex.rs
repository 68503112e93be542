//! A lock, and waiting for what it guards to change.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use super::scheduler;

/// A lock for one at a time.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(parking_lot::Mutex<T>);

/// Somebody has a [`Mutex`].
pub struct MutexGuard<'a, T: ?Sized>(parking_lot::MutexGuard<'a, T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    /// What it guards, if nobody can have it any more.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until nobody else has it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match scheduler::until_there(|| self.0.try_lock()) {
            Some(guard) => MutexGuard(guard),
            None => MutexGuard(self.0.lock()),
        }
    }

    /// Has it if nobody else does.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().map(MutexGuard)
    }

    /// What it guards: nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// Runs `run` while others may have the lock.
    #[inline]
    pub fn unlocked<U>(guard: &mut Self, run: impl FnOnce() -> U) -> U {
        let mutex = parking_lot::MutexGuard::mutex(&guard.0);
        parking_lot::MutexGuard::unlocked(&mut guard.0, || {
            let value = run();
            // Where one thread runs at a time, it is still free when this returns.
            scheduler::until_there(|| (!mutex.is_locked()).then_some(()));
            value
        })
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a wait ended because its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether nobody woke who waited.
    pub fn timed_out(self) -> bool {
        self.0
    }
}

/// Where threads wait until others wake them.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// Nobody waits yet.
    pub const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    /// Names it for a scheduler.
    fn place(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Waits until it is woken, without the lock meanwhile.
    #[inline]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        if self.scheduled(guard, None).is_none() {
            self.0.wait(&mut guard.0);
        }
    }

    /// Waits until it is woken, or for `patience`.
    #[inline]
    pub fn wait_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        patience: Duration,
    ) -> WaitTimeoutResult {
        match self.scheduled(guard, Some(patience)) {
            Some(result) => result,
            None => WaitTimeoutResult(self.0.wait_for(&mut guard.0, patience).timed_out()),
        }
    }

    /// Waits until it is woken, or until `deadline`, which no scheduler knows.
    #[inline]
    pub fn wait_until<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        WaitTimeoutResult(self.0.wait_until(&mut guard.0, deadline).timed_out())
    }

    fn scheduled<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        patience: Option<Duration>,
    ) -> Option<WaitTimeoutResult> {
        scheduler::with_own(|scheduler| {
            let is_woken = MutexGuard::unlocked(guard, || scheduler.wait(self.place(), patience));
            WaitTimeoutResult(!is_woken)
        })
    }

    /// Wakes one who waits.
    #[inline]
    pub fn notify_one(&self) {
        if scheduler::with_own(|scheduler| scheduler.wake_one(self.place())).is_none() {
            self.0.notify_one();
        }
    }

    /// Wakes all who wait.
    #[inline]
    pub fn notify_all(&self) {
        if scheduler::with_own(|scheduler| scheduler.wake_all(self.place())).is_none() {
            self.0.notify_all();
        }
    }
}
