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

/// Who wants to know what a filesystem does by itself.
pub trait FilesystemWatcher: Send + Sync {
    /// A snapshot is about to be made: whoever keeps back what programs have written hands it over.
    fn hand_over(&self) {}

    /// Calls `make`, which makes the snapshot, at an instant at which nothing is changed.
    fn at_rest(&self, make: &mut dyn FnMut()) {
        make();
    }

    /// The snapshots of a subvolume are others now.
    fn changed(&self, of: SubvolId);

    /// One could not be made, or old ones not removed. It is tried again.
    fn failed(&self, of: SubvolId, name: &str, error: &Error);

    /// Nothing more is written until it is mounted again, because something could not be.
    fn stopped(&self, reason: &str);

    /// The disk refuses bytes of files, which are kept and tried again; or takes them again, if
    /// there is no reason any more.
    fn refused(&self, reason: Option<&str>);
}

/// Who makes and removes snapshots: the filesystem itself, or the server for all its clients.
pub(crate) trait SnapshotMaker {
    /// Whether it can by now, and goes on for ever.
    fn stage(&self) -> Stage;

    /// Makes a snapshot of a subvolume.
    fn make(&self, of: SubvolId, name: &[u8], created: i64) -> Result<(), Error>;

    /// Removes snapshots of a subvolume.
    fn remove(&self, of: SubvolId, old: &[(SubvolId, Vec<u8>)]) -> Result<(), Error>;
}

/// How far a [`SnapshotMaker`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It cannot yet.
    Beginning,
    /// It can.
    Ready,
    /// It is over.
    Ending,
}

impl SnapshotMaker for LocalFs {
    fn stage(&self) -> Stage {
        match self.is_ending.load(Ordering::Acquire) {
            true => Stage::Ending,
            false => Stage::Ready,
        }
    }

    fn make(&self, of: SubvolId, name: &[u8], created: i64) -> Result<(), Error> {
        let mut made = Ok(());
        let mut make = || made = self.map.create_snapshot(of, name, created).map(drop);
        match self.scheduler.watcher.get() {
            Some(watcher) => {
                watcher.hand_over();
                // What is written before need not be while everybody waits.
                self.map.sync()?;
                watcher.at_rest(&mut make);
            }
            None => make(),
        }
        Ok(made?)
    }

    fn remove(&self, _of: SubvolId, old: &[(SubvolId, Vec<u8>)]) -> Result<(), Error> {
        let ids: Vec<_> = old.iter().map(|(id, _)| *id).collect();
        Ok(self.map.remove(&ids)?)
    }
}

/// What is known about schedules while the filesystem is in use.
#[derive(Default)]
pub(crate) struct Scheduler {
    watcher: OnceLock<Arc<dyn FilesystemWatcher>>,
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
    /// Whom to tell what it does by itself. The first one stays it.
    pub fn watch(&self, watcher: Arc<dyn FilesystemWatcher>) {
        self.scheduler.watcher.get_or_init(|| watcher);
    }

    /// Nothing more is written.
    pub(crate) fn tell_stopped(&self, reason: &str) {
        if let Some(watcher) = self.scheduler.watcher.get() {
            watcher.stopped(reason);
        }
    }

    /// The disk refuses what is written, or does not any more.
    pub(crate) fn tell_refused(&self, reason: Option<&str>) {
        if let Some(watcher) = self.scheduler.watcher.get() {
            watcher.refused(reason);
        }
    }

    /// A schedule was changed: what is due by it is made soon.
    pub fn schedule_changed(&self) {
        self.scheduler.wake();
    }

    /// Makes snapshots when they are due, and removes old ones, until the end. What fails is told
    /// to the [`FilesystemWatcher`].
    pub fn keep_scheduled(&self, _report: &dyn Fn(&Error)) {
        self.keep_scheduled_by(self);
    }

    /// The same, by whoever can.
    pub(crate) fn keep_scheduled_by(&self, maker: &dyn SnapshotMaker) {
        if self.is_read_only() {
            return;
        }
        while maker.stage() != Stage::Ending {
            if maker.stage() == Stage::Ready {
                self.make_due_by(maker);
            }
            let next = Duration::from_secs(until_next(self.clock.now().seconds));
            self.scheduler.wait(next.min(PATIENCE));
        }
    }

    /// Makes the snapshots that are due, and removes those that are too many.
    pub fn make_due_snapshots(&self) {
        self.make_due_by(self);
    }

    fn make_due_by(&self, maker: &dyn SnapshotMaker) {
        for (of, schedule) in self.map.schedules() {
            // Who cannot write says so elsewhere.
            if self.map.check_writable().is_ok() {
                self.follow(maker, of, &schedule);
            }
        }
    }

    fn follow(&self, maker: &dyn SnapshotMaker, of: SubvolId, schedule: &Schedule) {
        let now = self.clock.now().seconds;
        let mut has_changed = false;
        for (class, keep) in classes(schedule).into_iter().filter(|(_, keep)| *keep > 0) {
            let name = class.name(now);
            if self.map.find_snapshot(of, name.as_bytes()).is_none() {
                let made = maker.make(of, name.as_bytes(), now);
                has_changed |= made.is_ok();
                self.scheduler.tell(of, &name, made);
            }
            match self.prune(maker, of, class, usize::from(keep)) {
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
    fn prune(
        &self,
        maker: &dyn SnapshotMaker,
        of: SubvolId,
        class: Class,
        keep: usize,
    ) -> Result<bool, Error> {
        let mut own = self.map.snapshots(of);
        own.retain(|(_, record)| class.has_named(&record.extended.name));
        own.truncate(own.len().saturating_sub(keep));
        own.retain(|(id, _)| self.map.check_removable(&[*id]).is_ok());
        let old: Vec<_> = own.into_iter().map(|(id, record)| (id, record.extended.name)).collect();
        if !old.is_empty() {
            maker.remove(of, &old)?;
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

    impl FilesystemWatcher for Failures {
        fn changed(&self, _of: SubvolId) {}

        fn failed(&self, _of: SubvolId, _name: &str, _error: &Error) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn stopped(&self, reason: &str) {
            panic!("{reason}");
        }

        fn refused(&self, reason: Option<&str>) {
            panic!("{reason:?}");
        }
    }

    #[test]
    fn a_failure_is_told_once_for_each_snapshot() {
        let scheduler = Scheduler::default();
        let failures = Arc::new(Failures::default());
        scheduler.watcher.get_or_init(|| Arc::clone(&failures) as Arc<dyn FilesystemWatcher>);
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
