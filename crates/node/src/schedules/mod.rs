//! Snapshots that are made by themselves: as often as the schedule of a subvolume says, and as many
//! kept.
//!
//! A snapshot is due if there is none of the period that it is now. So there is one an hour,
//! however often that is looked at; whoever was away makes the one that is due and none of those
//! that were; and a clock that goes back does no harm. Of each class the newest are kept, and
//! beyond those the ones that are held or have clones.

mod periods;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gabion_base::ids::SubvolId;
use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::Error;
use gabion_map::format::subvolume::Schedule;

use self::periods::{Class, classes, until_next};
use crate::local::LocalFs;

/// The clock may be set meanwhile: after so long it is looked at again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who wants to know of snapshots that are made by themselves.
pub trait SnapshotWatcher: Send + Sync {
    /// The snapshots of a subvolume are others now.
    fn changed(&self, of: SubvolId);

    /// One could not be made, or old ones not removed. It is tried again.
    fn failed(&self, of: SubvolId, name: &str, error: &Error);
}

/// What is known about schedules while the filesystem is in use.
#[derive(Default)]
pub(crate) struct Scheduler {
    watcher: OnceLock<Arc<dyn SnapshotWatcher>>,
    /// Snapshots of which the watcher knows that they could not be made.
    failed: Mutex<BTreeSet<(SubvolId, String)>>,
    /// A schedule was changed since it was looked at.
    is_changed: Mutex<bool>,
    changed: Condvar,
}

impl Scheduler {
    /// It is to be looked at schedules again.
    pub(crate) fn wake(&self) {
        *self.is_changed.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self, patience: Duration) {
        let mut is_changed = self.is_changed.lock();
        if !*is_changed {
            self.changed.wait_for(&mut is_changed, patience);
        }
        *is_changed = false;
    }

    fn tell(&self, of: SubvolId, name: &str, done: Result<(), Error>) {
        let what = (of, name.to_owned());
        let Err(error) = done else {
            self.failed.lock().remove(&what);
            return;
        };
        if let Some(watcher) = self.watcher.get()
            && self.failed.lock().insert(what)
        {
            watcher.failed(of, name, &error);
        }
    }
}

impl LocalFs {
    /// Whom to tell of snapshots that are made by themselves. The first one stays it.
    pub fn watch_snapshots(&self, watcher: Arc<dyn SnapshotWatcher>) {
        self.scheduler.watcher.get_or_init(|| watcher);
    }

    /// A schedule was changed: what is due by it is made soon.
    pub fn schedule_changed(&self) {
        self.scheduler.wake();
    }

    /// Makes snapshots when they are due, and removes old ones, until the end. What fails is told
    /// to the [`SnapshotWatcher`].
    pub fn keep_scheduled(&self, _report: &dyn Fn(&Error)) {
        if self.is_read_only() {
            return;
        }
        while !self.is_ending.load(Ordering::Acquire) {
            self.make_due_snapshots();
            let next = Duration::from_secs(until_next(self.clock.now().seconds));
            self.scheduler.wait(next.min(PATIENCE));
        }
    }

    /// Makes the snapshots that are due, and removes those that are too many.
    pub fn make_due_snapshots(&self) {
        for (of, schedule) in self.map.schedules() {
            // Who cannot write says so elsewhere.
            if self.map.check_writable().is_ok() {
                self.follow(of, &schedule);
            }
        }
    }

    fn follow(&self, of: SubvolId, schedule: &Schedule) {
        let now = self.clock.now().seconds;
        let mut has_changed = false;
        for (class, keep) in classes(schedule).into_iter().filter(|(_, keep)| *keep > 0) {
            let name = class.name(now);
            if self.map.find_snapshot(of, name.as_bytes()).is_none() {
                let made = self.map.create_snapshot(of, name.as_bytes(), now);
                has_changed |= made.is_ok();
                self.scheduler.tell(of, &name, made.map(drop).map_err(Error::from));
            }
            match self.prune(of, class, usize::from(keep)) {
                Ok(removed) => has_changed |= removed,
                Err(error) => self.scheduler.tell(of, &name, Err(error)),
            }
        }
        if let Some(watcher) = self.scheduler.watcher.get().filter(|_| has_changed) {
            watcher.changed(of);
        }
    }

    /// Removes all snapshots of a class but the newest, if they may be removed. Whether there were
    /// any.
    fn prune(&self, of: SubvolId, class: Class, keep: usize) -> Result<bool, Error> {
        let mut own = self.map.snapshots(of);
        own.retain(|(_, record)| class.has_named(&record.extended.name));
        own.truncate(own.len().saturating_sub(keep));
        let ids = own.into_iter().map(|(id, _)| id);
        let old: Vec<_> = ids.filter(|id| self.map.check_removable(&[*id]).is_ok()).collect();
        if !old.is_empty() {
            self.map.remove(&old)?;
        }
        Ok(!old.is_empty())
    }
}

#[cfg(test)]
mod tests {

    use std::sync::atomic::AtomicUsize;

    use gabion_map::MapError;

    use super::*;

    #[derive(Default)]
    struct Failures(AtomicUsize);

    impl SnapshotWatcher for Failures {
        fn changed(&self, _of: SubvolId) {}

        fn failed(&self, _of: SubvolId, _name: &str, _error: &Error) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_failure_is_told_once_for_each_snapshot() {
        let scheduler = Scheduler::default();
        let failures = Arc::new(Failures::default());
        scheduler.watcher.get_or_init(|| Arc::clone(&failures) as Arc<dyn SnapshotWatcher>);
        let told = || failures.0.load(Ordering::Relaxed);
        let fail = |name| scheduler.tell(SubvolId(1), name, Err(MapError::NoSpace.into()));
        (0..3).for_each(|_| fail("one"));
        assert_eq!(told(), 1);
        fail("two");
        assert_eq!(told(), 2);
        scheduler.tell(SubvolId(1), "one", Ok(()));
        fail("one");
        assert_eq!(told(), 3);
    }
}
