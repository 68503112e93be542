//! Records in a folder of this machine.
//!
//! ```text
//! FOLDER/lock            held during each call: one at a time, whatever process it comes from
//! FOLDER/records.redb    the records
//! FOLDER/changes         written to before each change, so that who waits is woken by inotify
//! FOLDER/claims/NAME     held by whoever has the claim on NAME; who that is stands in it
//! ```
//!
//! The store is redb: copy-on-write with checksums in plain Rust, no server, no C. Its usual mode
//! is for one process at a time, and the daemon of a mount and commands use the store together. So
//! it is opened for the moment of each call, below the lock. (It has a mode for many processes
//! too, which is a few weeks old. SQLite and LMDB do that for long, at the price of C compilers.)
//!
//! - Locks are flock(2)'s: they end with the process that has them, however it ends. Lock files
//!   are never removed, as somebody may be waiting for the file that has lost its name.
//! - Whoever waits for a change sees `changes` being written, then waits for the lock, and so
//!   reads what was committed. A writer that dies between the two wakes others for nothing.
//! - No call waits longer than [`DEADLINE`] for the lock. It is held for milliseconds.

mod store;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gabion_block::coordinator::{Claim, Coordinator, CoordinatorError, Revision, Stored};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::{OpenError, check_name, check_record, claimed, conflict, strange, unavailable};

/// How long a call waits for others to be done.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(2);
/// How often a record is looked at where the kernel does not tell of changes, and a claim.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// The longest text about a holder that is shown, in bytes.
const HOLDER_BYTES_MAX: usize = 4096;

/// Records in a folder.
#[derive(Debug)]
pub struct Embedded {
    folder: PathBuf,
    name: String,
    deadline: Duration,
}

impl Embedded {
    /// Keeps records in `folder`, which is made if it is missing.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Folder { folder: folder.display().to_string(), source };
        // A daemon leaves the folder that it was started in.
        let folder_path = std::path::absolute(folder).map_err(failed)?;
        let claims = folder_path.join("claims");
        DirBuilder::new().recursive(true).mode(0o700).create(claims).map_err(failed)?;
        lock_file(&folder_path.join("changes")).map_err(failed)?;
        let name = folder_path.display().to_string();
        Ok(Self { folder: folder_path, name, deadline: DEADLINE })
    }

    /// The same with another time that a call waits for others to be done.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Keeps everybody else out until the result is dropped.
    fn lock(&self) -> Result<File, CoordinatorError> {
        let path = self.path("lock");
        let failed = |error| self.failed("open", &path, &error);
        let file = lock_file(&path).map_err(failed)?;
        let end = Instant::now() + self.deadline;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(self.failed("lock", &path, &error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    let text = format!("another process keeps {} locked", path.display());
                    return Err(unavailable(&self.name, text));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL),
            }
        }
    }

    fn failed(&self, operation: &str, path: &Path, error: &io::Error) -> CoordinatorError {
        unavailable(&self.name, format!("cannot {operation} {}: {error}", path.display()))
    }

    fn store(&self) -> store::Store {
        store::Store::at(self.path("records.redb"))
    }

    fn store_failed(&self, volume: &str, error: store::StoreError) -> CoordinatorError {
        match error {
            store::StoreError::Failed(reason) => unavailable(&self.name, reason),
            store::StoreError::Damaged(reason) => {
                let path = self.path("records.redb");
                let path = path.display();
                let reason = format!(
                    "{path} is damaged ({reason}); put a copy of it in its place, or move it away \
                     to begin without records"
                );
                strange(&self.name, volume, reason)
            }
        }
    }

    /// Reads a record or a note.
    fn kept(&self, among: store::Texts, name: &str) -> Result<Option<Stored>, CoordinatorError> {
        check_name(&self.name, name)?;
        let _lock = self.lock()?;
        self.store().read(among, name).map_err(|error| self.store_failed(name, error))
    }

    /// Replaces a record or a note.
    fn put(
        &self,
        among: store::Texts,
        name: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        check_record(&self.name, name, text)?;
        self.change(among, name, expected, |store| store.write(among, name, text))
    }

    /// Changes the store if the record, or note, has the revision that is expected.
    fn change<T>(
        &self,
        among: store::Texts,
        volume: &str,
        expected: Revision,
        change: impl FnOnce(&store::Store) -> Result<T, store::StoreError>,
    ) -> Result<T, CoordinatorError> {
        check_name(&self.name, volume)?;
        let _lock = self.lock()?;
        let failed = |error| self.store_failed(volume, error);
        let found = self.store().read(among, volume).map_err(failed)?;
        if found.map_or(Revision::ABSENT, |stored| stored.revision) != expected {
            return Err(conflict(volume));
        }
        let changes = self.path("changes");
        fs::write(&changes, "changed\n").map_err(|error| self.failed("write", &changes, &error))?;
        change(&self.store()).map_err(failed)
    }

    fn claim_path(&self, volume: &str) -> PathBuf {
        // A suffix, as `.` and `..` are names of volumes and not of files.
        self.path("claims").join(format!("{volume}.claim"))
    }
}

/// A file to be locked; what is in it stays.
fn lock_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

impl Coordinator for Embedded {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn volumes(&self) -> Result<Vec<String>, CoordinatorError> {
        let _lock = self.lock()?;
        self.store().volumes().map_err(|error| self.store_failed("all volumes", error))
    }

    fn read(&self, volume: &str) -> Result<Option<Stored>, CoordinatorError> {
        self.kept(store::RECORDS, volume)
    }

    fn replace(
        &self,
        volume: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        self.put(store::RECORDS, volume, expected, text)
    }

    fn remove(&self, volume: &str, expected: Revision) -> Result<(), CoordinatorError> {
        if expected == Revision::ABSENT {
            return Err(conflict(volume));
        }
        self.change(store::RECORDS, volume, expected, |store| store.remove(volume))
    }

    fn changed(
        &self,
        volume: &str,
        known: Revision,
        patience: Duration,
    ) -> Result<Option<Stored>, CoordinatorError> {
        let end = Instant::now() + patience;
        // Before the first look, so that nothing falls in between.
        let mut watch = Watch::start(&self.path("changes"));
        loop {
            let read = self.read(volume)?;
            if let Some(stored) = read.filter(|stored| stored.revision != known) {
                return Ok(Some(stored));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            watch.wait(left);
        }
    }

    fn claim(&self, volume: &str, holder: &str) -> Result<Box<dyn Claim>, CoordinatorError> {
        check_name(&self.name, volume)?;
        let _lock = self.lock()?;
        let path = self.claim_path(volume);
        let file = lock_file(&path).map_err(|error| self.failed("open", &path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(claimed(volume, holder_in(&path))),
            Err(TryLockError::Error(error)) => return Err(self.failed("lock", &path, &error)),
        }
        fs::write(&path, holder).map_err(|error| self.failed("write", &path, &error))?;
        Ok(Box::new(FileClaim { file }))
    }

    fn holder(&self, volume: &str) -> Result<Option<String>, CoordinatorError> {
        check_name(&self.name, volume)?;
        // Trying takes the claim for a moment. Below the lock nobody is turned away by that.
        let _lock = self.lock()?;
        let path = self.claim_path(volume);
        match File::open(&path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Ok(None),
                Err(TryLockError::WouldBlock) => Ok(Some(holder_in(&path))),
                Err(TryLockError::Error(error)) => Err(self.failed("lock", &path, &error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("open", &path, &error)),
        }
    }

    fn note(&self, name: &str) -> Result<Option<Stored>, CoordinatorError> {
        self.kept(store::NOTES, name)
    }

    fn replace_note(
        &self,
        name: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        self.put(store::NOTES, name, expected, text)
    }

    fn released(
        &self,
        volume: &str,
        patience: Duration,
    ) -> Result<Option<String>, CoordinatorError> {
        let end = Instant::now() + patience;
        loop {
            let holder = self.holder(volume)?;
            let left = end.saturating_duration_since(Instant::now());
            if holder.is_none() || left.is_zero() {
                return Ok(holder);
            }
            // Nobody is told by the kernel that a lock has ended, but who waits for it alone.
            thread::sleep(LOOK_INTERVAL.min(left));
        }
    }
}

/// Who says to hold a claim. It is for people, so that anything will do.
fn holder_in(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(HOLDER_BYTES_MAX)]);
    match text.trim() {
        "" => "somebody".to_owned(),
        text => text.to_owned(),
    }
}

/// A locked file. Closing it ends the claim.
struct FileClaim {
    file: File,
}

impl Claim for FileClaim {
    fn is_held(&self) -> bool {
        // Others lock the file that has the name. Without one this lock keeps out nobody.
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }
}

/// Waits for a file to be written to.
struct Watch {
    /// Nothing if the user has no more of them, in which case waits are short.
    inotify: Option<OwnedFd>,
}

impl Watch {
    fn start(path: &Path) -> Self {
        let start = || {
            let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
            let inotify = inotify::init(flags)?;
            inotify::add_watch(&inotify, path, inotify::WatchFlags::MODIFY)?;
            Ok::<_, rustix::io::Errno>(inotify)
        };
        Self { inotify: start().ok() }
    }

    /// Returns when it was written to or `patience` is over, or for no reason.
    fn wait(&mut self, patience: Duration) {
        let Some(inotify) = &self.inotify else {
            return thread::sleep(patience.min(LOOK_INTERVAL));
        };
        let timeout = Timespec {
            tv_sec: patience.as_secs().min(3600) as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let ready = poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&timeout));
        // What it says is known already: that something was written.
        let drained = rustix::io::read(inotify, &mut [0_u8; 4096]);
        let again = [rustix::io::Errno::AGAIN, rustix::io::Errno::INTR];
        let broken = |error: rustix::io::Errno| !again.contains(&error);
        if ready.is_err_and(broken) || drained.is_err_and(broken) {
            self.inotify = None;
        }
    }
}
