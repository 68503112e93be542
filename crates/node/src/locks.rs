//! Advisory locks with those who wait for them.
//!
//! The rules are [`LockTable`]'s. Here stands who is to be told: whoever asks for a lock hands in
//! what shall happen at the end, and that happens exactly once, on the thread of whoever caused
//! the end, without any lock of this table held.

use std::collections::BTreeMap;

use gabion_base::sync::{Mutex, MutexGuard};
use gabion_fs::lock::{
    Lock, LockClass, LockOwner, LockRange, LockRequest, LockTable, Outcome, Ticket, Wait,
};
use gabion_fs::{Error, Result};
use gabion_map::FileId;

/// What happens when a request for a lock has ended: the lock is held, or why not.
pub type LockEnd = Box<dyn FnOnce(Result<()>) + Send>;

/// All advisory locks of a filesystem in use.
pub struct Locks {
    state: Mutex<State>,
}

struct State {
    table: LockTable,
    waiting: BTreeMap<Ticket, LockEnd>,
    next: u64,
    /// Ends that are decided and not told yet.
    untold: usize,
}

/// How a request for a lock has gone so far.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It has ended.
    Ended(Result<()>),
    /// It waits, and can be given up by the ticket.
    Waits(Ticket),
}

/// Locks, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockList {
    /// Those that are held.
    pub held: Vec<Lock>,
    /// How many more are held.
    pub more_held: usize,
    /// Those that are waited for, who came first in front.
    pub waiting: Vec<Lock>,
    /// How many more are waited for.
    pub more_waiting: usize,
}

impl Locks {
    pub(crate) fn new(limit: usize) -> Self {
        let (table, waiting) = (LockTable::new(limit), BTreeMap::new());
        Self { state: Mutex::new(State { table, waiting, next: 0, untold: 0 }) }
    }

    /// Asks for a lock. `end` is called before this returns if that is possible; else the request
    /// waits, and can be given up by the ticket.
    pub fn acquire(&self, lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket> {
        let mut end = Some(end);
        match self.ask(lock, wait, || end.take().expect("it is asked for once")) {
            Asked::Waits(ticket) => Some(ticket),
            Asked::Ended(result) => {
                if let Some(end) = end {
                    end(result);
                }
                None
            }
        }
    }

    /// Asks for a lock. `end` gives what is called at the end, if the request has to wait.
    pub(crate) fn ask(&self, lock: Lock, wait: Wait, end: impl FnOnce() -> LockEnd) -> Asked {
        let mut state = self.state.lock();
        let ticket = Ticket(state.next);
        state.next += 1;
        let outcomes = state.table.handle(LockRequest::Acquire { ticket, lock, wait });
        let asked = match outcomes.first() {
            Some(Outcome::Waiting(_)) => {
                state.waiting.insert(ticket, end());
                Asked::Waits(ticket)
            }
            Some(Outcome::Refused(_, refusal)) => Asked::Ended(Err(Error::from(*refusal))),
            Some(Outcome::Granted(_)) | None => Asked::Ended(Ok(())),
        };
        self.tell(state, &outcomes);
        asked
    }

    /// Forgets the locks on a file, all of which are the client's to keep from now on. False, and
    /// nothing is forgotten, if others have some, or if the client may not know all of its own yet.
    pub(crate) fn hand_over(&self, file: FileId, client: u64) -> bool {
        let mut state = self.state.lock();
        let is_own = |lock: &Lock| lock.owner.client == client;
        let is_possible = state.untold == 0
            && !state.table.is_waited_for(file)
            && state.table.held_on(file).iter().all(is_own);
        if is_possible {
            state.table.forget_held(file);
        }
        is_possible
    }

    /// Gives up what waits, if it still does: it ends with `Interrupted`.
    pub fn cancel(&self, ticket: Ticket) {
        self.change(LockRequest::Cancel { ticket });
    }

    /// Gives up an owner's locks on a range.
    pub fn release(&self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.change(LockRequest::Release { file, class, owner, range });
    }

    /// Ends all that a client has and waits for.
    pub fn release_client(&self, client: u64) {
        self.change(LockRequest::ReleaseClient { client });
    }

    /// Ends all that a client has on a file which it has closed.
    pub fn release_file(&self, client: u64, file: FileId) {
        let state = self.state.lock();
        let held = state.table.held_on(file).iter().filter(|lock| lock.owner.client == client);
        let held: Vec<Lock> = held.copied().collect();
        drop(state);
        for lock in held {
            self.release(file, lock.class, lock.owner, LockRange::WHOLE);
        }
    }

    /// A lock that stands in the way of `lock`.
    pub fn conflict(&self, lock: &Lock) -> Option<Lock> {
        self.state.lock().table.conflict(lock).copied()
    }

    /// All locks that are held.
    pub fn held(&self) -> Vec<Lock> {
        self.state.lock().table.held().copied().collect()
    }

    /// At most `limit` locks that are held and as many that are waited for, of one file or of all,
    /// and how many more there are of each.
    pub fn list(&self, file: Option<FileId>, limit: usize) -> LockList {
        let state = self.state.lock();
        let is_meant = |lock: &&Lock| file.is_none_or(|file| lock.file == file);
        let mut held = state.table.held().filter(is_meant).copied();
        let waiting = state.table.waiting().map(|(_, lock)| lock);
        let mut waiting = waiting.filter(is_meant).copied();
        LockList {
            held: held.by_ref().take(limit).collect(),
            more_held: held.count(),
            waiting: waiting.by_ref().take(limit).collect(),
            more_waiting: waiting.count(),
        }
    }

    fn change(&self, request: LockRequest) {
        let mut state = self.state.lock();
        let outcomes = state.table.handle(request);
        self.tell(state, &outcomes);
    }

    /// Tells those that waited.
    fn tell(&self, mut state: MutexGuard<'_, State>, outcomes: &[Outcome]) {
        let ended = state.settle(outcomes);
        if ended.is_empty() {
            return;
        }
        let count = ended.len();
        state.untold += count;
        drop(state);
        for (end, result) in ended {
            end(result);
        }
        self.state.lock().untold -= count;
    }
}

impl State {
    /// Takes out whoever has to be told, and what.
    fn settle(&mut self, outcomes: &[Outcome]) -> Vec<(LockEnd, Result<()>)> {
        let mut ended = Vec::new();
        for outcome in outcomes {
            let (ticket, result) = match *outcome {
                Outcome::Waiting(_) => continue,
                Outcome::Granted(ticket) => (ticket, Ok(())),
                Outcome::Refused(ticket, refusal) => (ticket, Err(Error::from(refusal))),
            };
            if let Some(end) = self.waiting.remove(&ticket) {
                ended.push((end, result));
            }
        }
        ended
    }
}
