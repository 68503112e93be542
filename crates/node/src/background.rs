//! What has to be done without being asked: writing, committing, reaping.
//!
//! The owner gives each of [`LocalFs::keep_committed`] and [`LocalFs::keep_reaped`] a thread. Both
//! return after [`LocalFs::end_background`].
//!
//! A failure is kept for whoever asks, see [`LocalFs::take_failures`]; a map that cannot write any
//! more says so to every later operation and fsync by itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_fs::{Error, Result};

use crate::local::LocalFs;
use crate::reaper::Reaped;

/// Failures that are kept; later ones are most likely consequences.
const FAILURES_MAX: usize = 16;
/// How long reaping sleeps if nothing comes. Only bounds what a lost wake-up could cost.
const REAPER_PATIENCE: Duration = Duration::from_secs(5);

impl LocalFs {
    /// Writes and commits, under pressure at once and else once in an interval, until the end.
    pub fn keep_committed(&self) {
        let mut committed = self.clock.monotonic();
        let interval = self.settings.commit_interval;
        while !self.is_ending.load(Ordering::Acquire) {
            let age = self.clock.monotonic().saturating_sub(committed);
            let pressure = self.map.wait_for_pressure(interval.saturating_sub(age));
            if self.is_read_only() || self.map.stopped().is_some() {
                continue;
            }
            if pressure.writeback {
                self.record_failure(self.map.write_back_some().map_err(Error::from));
            }
            let now = self.clock.monotonic();
            if pressure.commit || now.saturating_sub(committed) >= interval {
                self.record_failure(self.map.commit().map_err(Error::from));
                committed = self.clock.monotonic();
            }
        }
    }

    /// Reaps orphans that nobody refers to, until the end.
    pub fn keep_reaped(&self) {
        while self.reaper.wait(REAPER_PATIENCE) {
            // Several steps for each look at the clock of events.
            let reaped = self.reap_step();
            if !matches!(reaped, Ok(Reaped::Part)) {
                self.record_failure(reaped);
            }
        }
    }

    /// Lets both loops return soon.
    pub fn end_background(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.map.wake();
        self.reaper.stop();
    }

    /// What went wrong in the background since the last call.
    pub fn take_failures(&self) -> Vec<Error> {
        std::mem::take(&mut *self.failures.lock())
    }

    fn record_failure<T>(&self, outcome: Result<T>) {
        if let Err(error) = outcome {
            let mut failures = self.failures.lock();
            if failures.len() < FAILURES_MAX {
                failures.push(error);
            }
        }
    }
}
