//! What has to be done without being asked: writing, committing, reaping.
//!
//! The owner gives each of [`LocalFs::keep_committed`], [`LocalFs::keep_reaped`] and
//! [`LocalFs::keep_scheduled`] a thread. They return after [`LocalFs::end_background`].
//!
//! Failures are told to the owner at once. A map that cannot write any more says so to every later
//! operation and fsync by itself, and is left alone here; the [`FilesystemWatcher`] is told once.
//!
//! [`FilesystemWatcher`]: crate::FilesystemWatcher

use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_fs::Error;
use gabion_map::MapError;

use crate::local::LocalFs;

/// How long reaping sleeps if nothing comes. Only bounds what a lost wake-up could cost.
const REAPER_PATIENCE: Duration = Duration::from_secs(5);

/// The longest pause between two steps of a removal.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl LocalFs {
    /// Writes and commits, under pressure at once and else once in an interval, until the end.
    pub fn keep_committed(&self, report: &dyn Fn(&Error)) {
        let told = |outcome: Result<(), MapError>| {
            if let Err(error) = outcome {
                self.note_refusal(&error);
                report(&error.into());
            }
        };
        let interval = self.settings.commit_interval;
        let mut committed = self.clock.monotonic();
        let mut is_stopped = false;
        while !self.is_ending.load(Ordering::Acquire) {
            let age = self.clock.monotonic().saturating_sub(committed);
            let pressure = self.map.wait_for_pressure(interval.saturating_sub(age));
            let can_write = self.map.check_writable().is_ok();
            if pressure.writeback && can_write {
                told(self.map.write_back_some());
            }
            let age = self.clock.monotonic().saturating_sub(committed);
            if pressure.commit || age >= interval {
                if can_write {
                    let committed = self.map.commit().map(drop);
                    if committed.is_ok() {
                        self.forget_refusal();
                    }
                    told(committed);
                }
                committed = self.clock.monotonic();
            }
            if let Some(reason) = self.map.stopped().filter(|_| !is_stopped) {
                is_stopped = true;
                self.tell_stopped(&reason);
            }
        }
    }

    /// The disk has not taken something, and is asked again.
    fn note_refusal(&self, error: &MapError) {
        if let MapError::Disk(error) = error
            && self.map.check_writable().is_ok()
        {
            let reason = error.to_string();
            if self.refusal.lock().replace(reason.clone()).is_none() {
                self.tell_refused(Some(&reason));
            }
        }
    }

    /// The disk has taken all that there was.
    fn forget_refusal(&self) {
        if self.refusal.lock().take().is_some() {
            self.tell_refused(None);
        }
    }

    /// Counts what has a quota and was not counted yet; then reaps orphans that nobody refers to,
    /// and frees what removed snapshots leave, until the end.
    pub fn keep_reaped(&self, report: &dyn Fn(&Error)) {
        if self.is_read_only() {
            return;
        }
        // A crash may have come between a quota and its count.
        if let Err(error) = self.map.count_usages() {
            report(&error.into());
        }
        let mut removes = true;
        let mut pause = Duration::ZERO;
        while self.reaper.wait(self.patience(removes, pause)) {
            if let Err(error) = self.reap_step() {
                report(&error);
            }
            let begun = self.clock.monotonic();
            if removes && let Err(error) = self.map.remove_step() {
                report(&error.into());
                // What is damaged would fail again.
                removes = false;
            }
            pause = self.clock.monotonic().saturating_sub(begun).min(PAUSE_MAX);
        }
    }

    /// How long the loop that reaps may sleep. While a snapshot is being removed that is as long as
    /// the last step took: each is a commit, and others want to write, too.
    fn patience(&self, removes: bool, pause: Duration) -> Duration {
        match removes && self.map.is_removing() {
            true => pause,
            false => REAPER_PATIENCE,
        }
    }

    /// Lets all loops return soon.
    pub fn end_background(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.map.wake();
        self.scheduler.wake();
        self.reaper.stop();
    }
}
