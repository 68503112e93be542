//! Orphans that nobody refers to: removed in the background, step by step.
//!
//! The list of orphans in the map is the truth; the queue here says which of them may go now. It
//! is bounded: what finds no room is found again by a scan of the map's list, which is also how a
//! start finds what a crash has left behind.
//!
//! ```text
//!   last reference gone --> queue --> reap, one transaction for each part --> gone
//!                             ^ full: scan later
//!   start --> scan -----------'
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::{Error, Result};
use gabion_map::txn::Removal;
use gabion_map::{FileId, LockMode, Txn};

use crate::local::LocalFs;
use crate::references::Left;

/// Orphans that wait in memory (1 MiB of them).
const QUEUE_MAX: usize = 65_536;
/// Orphans that one transaction of a scan looks at.
const SCAN_BATCH: usize = 256;

/// Before all orphans of all subvolumes.
const START: FileId = FileId::new(SubvolId(0), Ino(0));
/// How long one waits for a step of somebody else; only bounds what a lost wake-up could cost.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(1);

/// How far a round of reaping came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// There was nothing to reap.
    Nothing,
    /// A part of an orphan is gone, and more may be left.
    Part,
}

#[derive(Default)]
struct Queue {
    files: VecDeque<FileId>,
    /// The orphan that somebody is at.
    in_work: usize,
    /// From where on the map's list is to be read.
    scan_after: Option<FileId>,
    /// Steps that removed something.
    steps: u64,
    /// Nothing is removed for the time being.
    is_held: bool,
    is_stopped: bool,
}

/// The queue of orphans that may go.
pub(crate) struct Reaper {
    queue: Mutex<Queue>,
    /// There is something to reap, or the end has come.
    arrived: Condvar,
    /// A step is done.
    stepped: Condvar,
}

impl Reaper {
    /// Begins with a scan.
    pub(crate) fn new() -> Self {
        let queue = Queue { scan_after: Some(START), ..Queue::default() };
        Self { queue: Mutex::new(queue), arrived: Condvar::new(), stepped: Condvar::new() }
    }

    pub(crate) fn push(&self, file: FileId) {
        let mut queue = self.queue.lock();
        if queue.files.len() < QUEUE_MAX {
            queue.files.push_back(file);
        } else {
            queue.scan_after = Some(START);
        }
        if queue.files.len() == 1 {
            self.arrived.notify_one();
        }
    }

    /// Scans the whole list again.
    pub(crate) fn rescan(&self) {
        self.queue.lock().scan_after = Some(START);
    }

    /// Nothing that is known of a subvolume's orphans is so any more.
    pub(crate) fn forget(&self, subvol: SubvolId) {
        let mut queue = self.queue.lock();
        queue.files.retain(|file| file.subvol != subvol);
        queue.scan_after = Some(START);
        self.arrived.notify_one();
    }

    /// Waits until there is something to reap, or for `patience`. Whether to go on.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let mut queue = self.queue.lock();
        let is_idle = queue.files.is_empty() && queue.scan_after.is_none();
        if !queue.is_stopped && (is_idle || queue.is_held) {
            self.arrived.wait_for(&mut queue, patience);
        }
        !queue.is_stopped
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().is_stopped = true;
        self.arrived.notify_all();
    }

    /// How many steps have removed something so far.
    pub(crate) fn steps(&self) -> u64 {
        self.queue.lock().steps
    }

    /// Waits until the steps that others are at are done, each for `patience` at most. Whether
    /// there were any.
    pub(crate) fn wait_for_others(&self, patience: Duration) -> bool {
        let mut queue = self.queue.lock();
        let were_any = queue.in_work > 0;
        if were_any {
            self.stepped.wait_for(&mut queue, patience);
        }
        were_any
    }

    /// Orphans that wait.
    pub(crate) fn backlog(&self) -> usize {
        let queue = self.queue.lock();
        queue.files.len() + queue.in_work
    }

    fn next(&self) -> Option<FileId> {
        let mut queue = self.queue.lock();
        let file = queue.files.pop_front()?;
        queue.in_work += 1;
        Some(file)
    }

    /// Ends a step; an orphan of which a part is left is put back.
    fn done(&self, file: FileId, outcome: &Result<Removal>) {
        let mut queue = self.queue.lock();
        queue.in_work -= 1;
        queue.steps += u64::from(outcome.is_ok());
        if matches!(outcome, Ok(Removal::Partial)) {
            queue.files.push_front(file);
        }
        self.stepped.notify_all();
    }
}

impl LocalFs {
    /// Orphans stay for the time being: somebody may have them open of whom nothing is known yet.
    pub fn hold_orphans(&self) {
        self.reaper.queue.lock().is_held = true;
    }

    /// Orphans that nobody refers to are removed again.
    pub(crate) fn let_orphans_go(&self) {
        let mut queue = self.reaper.queue.lock();
        queue.is_held = false;
        drop(queue);
        self.reaper.arrived.notify_one();
    }

    /// Removes a part of an orphan that nobody refers to, or looks for more of them.
    pub fn reap_step(&self) -> Result<Reaped> {
        if self.is_read_only() || self.reaper.queue.lock().is_held {
            return Ok(Reaped::Nothing);
        }
        let Some(file) = self.reaper.next() else { return self.scan_step() };
        let outcome = self.map.transact(|txn| {
            txn.lock(file, LockMode::Exclusive)?;
            // A scan may have found it between the loss of its name and what is said here.
            if self.references.mark_unnamed(file) == Left::Some {
                return Ok::<_, Error>(Removal::Complete);
            }
            gabion_fs::reap(txn, file)
        });
        // One that cannot be removed is left to the next start.
        self.reaper.done(file, &outcome);
        outcome.map(|_| Reaped::Part)
    }

    fn scan_step(&self) -> Result<Reaped> {
        let Some(after) = self.reaper.queue.lock().scan_after.take() else {
            return Ok(Reaped::Nothing);
        };
        let found = self
            .map
            .transact(|txn| gabion_fs::orphans(txn, after.subvol, after.ino, SCAN_BATCH))?;
        let next = match found.last() {
            Some(last) if found.len() == SCAN_BATCH => Some(*last),
            _ => self.scan_start_behind(after.subvol),
        };
        let mut queue = self.reaper.queue.lock();
        if queue.scan_after.is_none() {
            queue.scan_after = next;
        }
        // Who refers to one says when he does not any more.
        let free = found.into_iter().filter(|f| self.references.mark_unnamed(*f) == Left::Orphan);
        queue.files.extend(free);
        Ok(Reaped::Part)
    }

    /// Where the list of the next subvolume begins, if there is one.
    fn scan_start_behind(&self, subvol: SubvolId) -> Option<FileId> {
        let mut subvols = self.map.writable_subvolumes().into_iter();
        subvols.find(|other| *other > subvol).map(|next| FileId::new(next, Ino(0)))
    }

    /// Reaps until nothing is left that nobody refers to, together with whoever else does. `limit`
    /// bounds the steps.
    pub(crate) fn reap_all(&self, limit: usize) -> Result<()> {
        for _ in 0..limit {
            let reaped = self.reap_step()?;
            if reaped == Reaped::Nothing && !self.reaper.wait_for_others(PATIENCE_WITH_OTHERS) {
                break;
            }
        }
        Ok(())
    }
}
