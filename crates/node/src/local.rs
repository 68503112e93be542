//! One local filesystem in use.
//!
//! An operation runs as one transaction of the map. Two of its errors are wishes, which are
//! fulfilled here before it runs again: bytes that must be on disk first
//! ([`Error::UnwrittenBytes`]), and space or quota, if there are orphans whose removal gives some.
//!
//! Attributes that an operation answers with stand for one reference to the object, of the kind
//! that its documentation says; it lasts until [`LocalFs::forget`] or [`LocalFs::release`].

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gabion_base::disk::Disk;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::Mutex;
use gabion_fs::{
    AtimePolicy, AtimeRules, Attributes, Caller, Context, Error, OpenState, ROOT, Result,
};
use gabion_map::map::SpaceReport;
use gabion_map::removal::Removing;
use gabion_map::{FileId, Limits, LocalMap, LocalTxn, MapError, OpenMode, Stop};

use crate::clock::Clock;
use crate::locks::Locks;
use crate::numbering;
use crate::reaper::Reaper;
use crate::references::{Left, Reference, References};
use crate::schedules::Scheduler;

/// How often an operation has bytes written before it gives up: each time, another writer must
/// have slipped in between.
const FLUSHES_MAX: usize = 100;
/// How often an operation looks for space before it fails for lack of it.
const SEARCHES_MAX: usize = 8;
/// Steps of reaping that an operation makes in one search for space.
const STEPS_FOR_SPACE: usize = 100_000;
/// Steps of removals that it makes.
const REMOVALS_FOR_SPACE: usize = 64;
/// How long an operation without space waits for references that are on their way back.
const PATIENCE_FOR_SPACE: Duration = Duration::from_millis(20);
/// Steps of reaping at the end; what is left then is left to the next start.
const STEPS_AT_END: usize = 10_000;
/// Advisory locks at most, held and waited for.
const LOCKS_MAX: usize = 1 << 20;

/// What can be chosen about a filesystem in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When reading is recorded.
    pub atime: AtimeRules,
    /// What was accepted is committed after this time at the latest.
    pub commit_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let atime = AtimeRules::all(AtimePolicy::Relative);
        Self { atime, commit_interval: Duration::from_secs(5) }
    }
}

/// One subvolume of a local map, in use.
pub struct LocalFs {
    pub(crate) map: Arc<LocalMap>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) references: References,
    pub(crate) reaper: Reaper,
    pub(crate) is_ending: AtomicBool,
    pub(crate) scheduler: Scheduler,
    /// Why the disk did not take what was written last.
    pub(crate) refusal: Mutex<Option<String>>,
    locks: Locks,
    root: FileId,
    seed: u64,
}

impl LocalFs {
    /// Opens the filesystem on `disk` and its first subvolume.
    pub fn open(
        disk: Arc<dyn Disk>,
        mode: OpenMode,
        limits: Limits,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let device = disk.name();
        let map = Arc::new(LocalMap::open(disk, mode, limits)?);
        let Some((subvol, _)) = map.subvolumes().into_iter().next() else {
            let reason = "it has no subvolume".to_owned();
            return Err(MapError::NotGabion { device: device.to_string(), reason }.into());
        };
        Self::new(map, subvol, settings, clock)
    }

    /// Uses the subvolume `subvol` of `map`. `Stale`: it has no root.
    pub fn new(
        map: Arc<LocalMap>,
        subvol: SubvolId,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let root = FileId::new(subvol, ROOT);
        map.transact(|txn| gabion_fs::stat(txn, root))?;
        let seed = map.name_seed();
        Ok(Self {
            map,
            clock,
            settings,
            references: References::default(),
            reaper: Reaper::new(),
            is_ending: AtomicBool::new(false),
            scheduler: Scheduler::default(),
            refusal: Mutex::default(),
            locks: Locks::new(LOCKS_MAX),
            root,
            seed,
        })
    }

    /// The root directory.
    pub fn root(&self) -> FileId {
        self.root
    }

    /// The object with this number.
    pub fn file(&self, ino: Ino) -> FileId {
        numbering::file(self.root.subvol, ino)
    }

    /// The map below.
    pub fn map(&self) -> &Arc<LocalMap> {
        &self.map
    }

    /// Whether nothing may be changed.
    pub fn is_read_only(&self) -> bool {
        self.map.mode() == OpenMode::ReadOnly
    }

    /// Why the disk did not take the bytes of files that were written to it last. They are kept,
    /// and tried again: if it takes them, nothing is lost.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    /// The advisory locks.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// Space in numbers.
    pub fn space(&self) -> SpaceReport {
        self.map.space()
    }

    /// Objects that somebody refers to.
    pub fn references_held(&self) -> usize {
        self.references.count()
    }

    /// Orphans that are known to wait for being reaped.
    pub fn orphans_waiting(&self) -> usize {
        self.reaper.backlog()
    }

    /// Gives back `count` references to an object that was looked up. Does not block.
    pub fn forget(&self, file: FileId, count: u64) {
        self.give_back(file, Reference::Lookup, count);
    }

    /// Gives back the reference of one who had the object open. Does not block.
    pub fn release(&self, file: FileId) {
        self.give_back(file, Reference::Open, 1);
    }

    /// Counts an opening, by somebody who makes sure that the object has a name meanwhile.
    pub(crate) fn refer(&self, file: FileId) {
        self.references.take(file, Reference::Open);
    }

    fn give_back(&self, file: FileId, reference: Reference, count: u64) {
        if self.references.give_back(file, reference, count) == Left::Orphan {
            self.reaper.push(file);
        }
    }

    /// Makes everything durable, once nobody uses the filesystem any more: no operation is running,
    /// none will come, and what is still referred to no longer counts.
    pub fn close(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.references.clear();
        self.reaper.rescan();
        let reaped = self.reap_all(STEPS_AT_END);
        self.map.sync()?;
        reaped
    }

    /// The circumstances of an operation that `caller` asks for now.
    pub(crate) fn context(&self, caller: &Caller) -> Context {
        Context { seed: self.seed, now: self.clock.now(), caller: caller.clone() }
    }

    /// Whether an object may go with its last name.
    pub(crate) fn open_state(&self, file: FileId) -> OpenState {
        match self.references.is_referred_to(file) {
            true => OpenState::Open,
            false => OpenState::Closed,
        }
    }

    /// Runs an operation, as often as it takes to get what it needs.
    pub(crate) fn run<T>(
        &self,
        mut operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut flushes = 0;
        let mut searches = 0;
        let mut steps = self.reaper.steps();
        loop {
            match self.map.transact(&mut operation) {
                Err(Error::UnwrittenBytes(file)) if flushes < FLUSHES_MAX => {
                    flushes += 1;
                    self.map.flush_file(file)?;
                }
                Err(Error::Stop(Stop::Map(MapError::NoSpace))) if searches < SEARCHES_MAX => {
                    searches += 1;
                    steps = self.find_space(steps, MapError::NoSpace)?;
                }
                Err(Error::Stop(Stop::Map(MapError::OverQuota))) if searches < SEARCHES_MAX => {
                    searches += 1;
                    steps = self.find_space(steps, MapError::OverQuota)?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes orphans, also those whose last reference is just on its way back, and, if it is the
    /// filesystem that is full, what snapshots have left. Fails with `lack` if nothing was removed
    /// since the reaper's count of steps was `seen`; else answers with the new count.
    fn find_space(&self, seen: u64, lack: MapError) -> Result<u64> {
        if self.reaper.steps() == seen && self.reaper.backlog() == 0 {
            self.reaper.wait(PATIENCE_FOR_SPACE);
        }
        // That reaping fails is for the background to tell; what counts here is what is gone.
        let _ = self.reap_all(STEPS_FOR_SPACE);
        let mut removed = 0;
        let most = match lack {
            MapError::NoSpace => REMOVALS_FOR_SPACE,
            // Snapshots count for nobody's quota.
            _ => 0,
        };
        while removed < most && self.map.remove_step()? == Removing::Step {
            removed += 1;
        }
        match self.reaper.steps() {
            steps if steps == seen && removed == 0 => Err(lack.into()),
            steps => Ok(steps),
        }
    }

    /// Runs an operation that finds one object and takes references to it.
    pub(crate) fn run_referring<T>(
        &self,
        references: &[Reference],
        mut operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T>,
        found: impl Fn(&T) -> &Attributes,
    ) -> Result<T> {
        let mut taken: Option<FileId> = None;
        let give_back = |taken: Option<FileId>| {
            for (file, reference) in
                taken.iter().flat_map(|file| references.iter().map(move |r| (file, r)))
            {
                self.give_back(*file, *reference, 1);
            }
        };
        let outcome = self.run(|txn| {
            give_back(taken.take());
            let value = operation(txn)?;
            // Here the object is locked, so that nobody takes its last name before this is counted.
            let file = found(&value).file;
            for reference in references {
                self.references.take(file, *reference);
            }
            taken = Some(file);
            Ok(value)
        });
        if outcome.is_err() {
            give_back(taken);
        }
        outcome
    }
}
