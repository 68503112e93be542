//! Locks that processes here had and have no more, without having unlocked them.
//!
//! ```text
//!   held --the session ends, LocksLost--> lost --unlocked, closed, locked anew--> nothing
//!                                          | read, write, sync of the file: fails
//! ```
//!
//! Others may have such a lock by now, and the process that had it does not hear of it by itself.
//! So what it does to the file next fails until it has given the lock up, as with NFSv4. Which
//! process reads or writes a kernel does not tell: it fails for all who use the file on this
//! machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_base::sync::Mutex;
use gabion_fs::Result;
use gabion_fs::lock::{Lock, LockRange};
use gabion_link::message::Call;
use gabion_map::FileId;

use super::RemoteFs;
use super::failures::lock_lost;

/// Locks on one file that were lost at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockLoss {
    /// Where the file is, as people name it, if that is known; else its number.
    pub file: String,
    /// How many locks.
    pub count: usize,
    /// From the first byte that was locked to the last one.
    pub range: LockRange,
    /// Why, for people.
    pub reason: String,
}

/// Who tells of locks that are lost. Called on a thread that may wait.
pub type LockLossTeller = Box<dyn Fn(&LockLoss) + Send + Sync>;

/// Who is told.
#[derive(Default)]
pub(super) struct LockLosses {
    teller: Mutex<Option<Arc<LockLossTeller>>>,
}

impl RemoteFs {
    /// Who is to be told of locks that are lost.
    pub fn set_lock_loss_teller(&self, teller: LockLossTeller) {
        *self.lock_losses.teller.lock() = Some(Arc::new(teller));
    }

    /// Fails if a lock on the file was lost and is not given up.
    pub(super) fn check_locks(&self, file: FileId) -> Result<()> {
        if !self.locking.is_any_lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let known = self.locking.lock();
        self.locking.is_any_lost.store(known.has_lost_any(), Ordering::Release);
        match known.has_lost(file) {
            true => Err(lock_lost()),
            false => Ok(()),
        }
    }

    /// The server could not take these locks that are held here.
    pub(super) fn locks_are_lost(&self, locks: &[Lock]) {
        let lost = {
            let mut known = self.locking.lock();
            let lost = known.lose(locks);
            self.locking.is_any_lost.store(known.has_lost_any(), Ordering::Release);
            lost
        };
        let files: Vec<FileId> = lost.iter().map(|lock| lock.file).collect();
        let reason = "the server has started again, and somebody else has them";
        self.tell_lost(&lost, &self.paths_of(&files), reason);
    }

    /// The same of all files that the call reads from or writes to.
    pub(super) fn check_locks_of(&self, call: &Call) -> Result<()> {
        match call {
            Call::Read { file, .. } | Call::Write { file, .. } | Call::Fallocate { file, .. } => {
                self.check_locks(*file)
            }
            Call::Copy { source, target, .. } => {
                self.check_locks(*source).and_then(|()| self.check_locks(*target))
            }
            _ => Ok(()),
        }
    }

    /// Where the files are that processes here have locked.
    pub(super) fn paths_of_locks(&self) -> BTreeMap<FileId, Vec<u8>> {
        let mut files: Vec<FileId> = self.held_locks().iter().map(|lock| lock.file).collect();
        files.dedup();
        if files.is_empty() { BTreeMap::new() } else { self.paths_of(&files) }
    }

    /// The session has ended, and all locks with it.
    pub(super) fn lose_locks(&self, paths: &BTreeMap<FileId, Vec<u8>>) {
        let lost = {
            let mut known = self.locking.lock();
            let lost = known.lose_all();
            self.locking.is_any_lost.store(known.has_lost_any(), Ordering::Release);
            lost
        };
        self.tell_lost(&lost, paths, "the session has ended");
    }

    fn tell_lost(&self, lost: &[Lock], paths: &BTreeMap<FileId, Vec<u8>>, reason: &str) {
        if lost.is_empty() {
            return;
        }
        self.report(&format!("{} locks are lost: {reason}", lost.len()));
        let mut by_file: BTreeMap<FileId, Vec<LockRange>> = BTreeMap::new();
        for lock in lost {
            by_file.entry(lock.file).or_default().push(lock.range);
        }
        let losses = by_file.into_iter().map(|(file, ranges)| LockLoss {
            file: match paths.get(&file) {
                Some(path) => String::from_utf8_lossy(path).into_owned(),
                None => format!("inode {}", file.ino.0),
            },
            count: ranges.len(),
            range: span(&ranges),
            reason: reason.to_owned(),
        });
        let losses: Vec<LockLoss> = losses.collect();
        let Some(teller) = self.lock_losses.teller.lock().clone() else { return };
        self.revocations.later(Box::new(move || losses.iter().for_each(|loss| teller(loss))));
    }
}

/// From the first to the last byte of ranges, of which there is one at least.
fn span(ranges: &[LockRange]) -> LockRange {
    let first = ranges.iter().map(|range| range.start()).min();
    let last = ranges.iter().map(|range| range.end()).max();
    first.zip(last).and_then(|(first, last)| LockRange::new(first, last)).expect("one at least")
}
