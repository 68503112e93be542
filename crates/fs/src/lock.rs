//! Advisory locks: fcntl(2) of processes and of open files (OFD), and flock(2).
//!
//! A state machine without threads and without waiting: [`LockTable::handle`] takes a request and
//! answers with what is decided by it, which may be requests that came long before.
//!
//! ```text
//!   Acquire --no conflict--> Granted
//!      |---- conflict, Wait::No ----> Refused(WouldBlock)
//!      |---- conflict, a circle ----> Refused(Deadlock)        only locks of processes
//!      '---- conflict, Wait::Yes ---> Waiting --a lock goes--> Granted
//!                                        '------ Cancel -----> Refused(Interrupted)
//! ```
//!
//! Rules:
//!
//! - Two locks conflict if they overlap, one is exclusive, their holders differ, and both are of
//!   fcntl or both of flock. A process and an open file are different holders.
//! - A holder has one lock on each byte: acquiring replaces what it had there, and neighbours of
//!   equal strength become one. Releasing a part leaves the rest.
//! - Who waits is served in order of arrival, but does not keep others from what they can have.
//! - flock changes its strength by giving up the old lock first, so a change that is refused loses
//!   it. So does Linux.
//! - A wait is a deadlock if the chain of who waits for whom leads back to the caller.
//!
//! Absent: durability. Locks live as long as their holders' clients.

use std::collections::{BTreeMap, BTreeSet};

use gabion_map::FileId;

use crate::error::Error;

/// Which call a lock is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockClass {
    /// fcntl of a process.
    Posix,
    /// fcntl of an open file (OFD).
    OpenFile,
    /// flock of an open file.
    Flock,
}

/// Who has a lock: a client and its number for the process or open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    /// The client; its locks end with it.
    pub client: u64,
    /// The kernel's `lock_owner`.
    pub number: u64,
}

/// Shared by readers or one writer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// Others may have shared locks.
    Shared,
    /// Nobody else may have one.
    Exclusive,
}

/// A range of bytes, both ends included, as in the protocol of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    start: u64,
    end: u64,
}

impl LockRange {
    /// The whole file, however long it gets.
    pub const WHOLE: LockRange = LockRange { start: 0, end: u64::MAX };

    /// The bytes from `start` to `end`, unless that is before `start`.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether both make one range without a gap.
    fn touches(self, other: Self) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }
}

/// A lock that is held or wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The file.
    pub file: FileId,
    /// Which call it is of.
    pub class: LockClass,
    /// Who has it.
    pub owner: LockOwner,
    /// The process to be named to who asks (`F_GETLK`).
    pub pid: u32,
    /// How strong.
    pub strength: Strength,
    /// Which bytes. flock: [`LockRange::WHOLE`].
    pub range: LockRange,
}

type Holder = (LockClass, LockOwner);

impl Lock {
    fn holder(&self) -> Holder {
        (self.class, self.owner)
    }

    fn conflicts_with(&self, other: &Lock) -> bool {
        let are_kin = (self.class == LockClass::Flock) == (other.class == LockClass::Flock);
        let is_exclusive = self.strength.max(other.strength) == Strength::Exclusive;
        are_kin
            && is_exclusive
            && self.holder() != other.holder()
            && self.range.overlaps(other.range)
    }
}

/// Names a request to acquire; the driver gives each its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Whether to wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Yes,
    /// Not at all.
    No,
}

/// What is asked of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRequest {
    /// To have a lock.
    Acquire {
        /// The request's name.
        ticket: Ticket,
        /// The lock.
        lock: Lock,
        /// Whether to wait for it.
        wait: Wait,
    },
    /// To give up a holder's locks on a range; on [`LockRange::WHOLE`] when a process or an open
    /// file closes the file.
    Release {
        /// The file.
        file: FileId,
        /// Which locks.
        class: LockClass,
        /// Whose.
        owner: LockOwner,
        /// Where.
        range: LockRange,
    },
    /// To give up waiting.
    Cancel {
        /// The request that waits.
        ticket: Ticket,
    },
    /// To end all that a client has and waits for.
    ReleaseClient {
        /// The client.
        client: u64,
    },
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The lock is held now.
    Granted(Ticket),
    /// The request waits; a later outcome will say how it ends.
    Waiting(Ticket),
    /// The request has ended without the lock.
    Refused(Ticket, Refusal),
}

/// Why a request has ended without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody else has it.
    WouldBlock,
    /// Waiting would never end.
    Deadlock,
    /// The wait was given up.
    Interrupted,
    /// The table is full.
    TooManyLocks,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::WouldBlock => Self::WouldBlock,
            Refusal::Deadlock => Self::Deadlock,
            Refusal::Interrupted => Self::Interrupted,
            Refusal::TooManyLocks => Self::TooManyLocks,
        }
    }
}

/// All advisory locks of a filesystem.
///
/// Invariants: no two held locks of a file conflict; no file is kept that has neither locks nor
/// waiters; every waiter conflicts with a held lock.
#[derive(Debug)]
pub struct LockTable {
    files: BTreeMap<FileId, FileLocks>,
    waiting: BTreeMap<Ticket, Lock>,
    /// The waiting requests of each process, for the search of circles.
    waiting_of: BTreeMap<LockOwner, BTreeSet<Ticket>>,
    held_count: usize,
    limit: usize,
}

#[derive(Debug, Default)]
struct FileLocks {
    held: Vec<Lock>,
    /// In order of arrival.
    queue: Vec<Ticket>,
}

impl LockTable {
    /// An empty table for at most `limit` locks, held and waited for.
    pub fn new(limit: usize) -> Self {
        Self {
            files: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_of: BTreeMap::new(),
            held_count: 0,
            limit,
        }
    }

    /// Takes a request and says what is decided now, in this order: about the request itself, then
    /// about others.
    pub fn handle(&mut self, request: LockRequest) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        match request {
            LockRequest::Acquire { ticket, lock, wait } => {
                self.acquire(ticket, lock, wait, &mut outcomes);
            }
            LockRequest::Release { file, class, owner, range } => {
                self.release(file, (class, owner), range);
                self.serve(file, &mut outcomes);
            }
            LockRequest::Cancel { ticket } => self.cancel(ticket, &mut outcomes),
            LockRequest::ReleaseClient { client } => self.release_client(client, &mut outcomes),
        }
        outcomes
    }

    /// A lock that stands in the way of `lock` (`F_GETLK`), the one of the lowest range.
    pub fn conflict(&self, lock: &Lock) -> Option<&Lock> {
        let held = &self.files.get(&lock.file)?.held;
        held.iter().filter(|held| held.conflicts_with(lock)).min_by_key(|held| held.range.start)
    }

    /// All locks that are held.
    pub fn held(&self) -> impl Iterator<Item = &Lock> {
        self.files.values().flat_map(|file| &file.held)
    }

    /// The locks that are held on a file.
    pub fn held_on(&self, file: FileId) -> &[Lock] {
        self.files.get(&file).map_or(&[], |file| &file.held)
    }

    /// All requests that wait.
    pub fn waiting(&self) -> impl Iterator<Item = (Ticket, &Lock)> {
        self.waiting.iter().map(|(ticket, lock)| (*ticket, lock))
    }

    /// Whether somebody waits for a lock on the file.
    pub fn is_waited_for(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|locks| !locks.queue.is_empty())
    }

    /// Takes note of a lock that is held, whatever it stands against here: that was decided
    /// elsewhere.
    pub fn note_held(&mut self, lock: Lock) {
        self.grant(lock);
    }

    /// Forgets the locks on a file: they are somebody else's to keep. Nobody may wait for any.
    pub fn forget_held(&mut self, file: FileId) {
        let Some(locks) = self.files.remove(&file) else { return };
        assert!(locks.queue.is_empty(), "{:?} wait for locks on {file:?}", locks.queue);
        self.held_count -= locks.held.len();
    }

    fn acquire(&mut self, ticket: Ticket, lock: Lock, wait: Wait, outcomes: &mut Vec<Outcome>) {
        assert!(!self.waiting.contains_key(&ticket), "{ticket:?} is used twice");
        // A lock that splits another one makes three of one.
        if self.held_count + self.waiting.len() + 2 > self.limit {
            outcomes.push(Outcome::Refused(ticket, Refusal::TooManyLocks));
            return;
        }
        let gives_up_first = lock.class == LockClass::Flock && !self.holds(&lock);
        if gives_up_first {
            self.release(lock.file, lock.holder(), LockRange::WHOLE);
        }
        let outcome = if self.conflict(&lock).is_none() {
            self.grant(lock);
            Outcome::Granted(ticket)
        } else if wait == Wait::No {
            Outcome::Refused(ticket, Refusal::WouldBlock)
        } else if self.closes_circle(&lock) {
            Outcome::Refused(ticket, Refusal::Deadlock)
        } else {
            self.enqueue(ticket, lock);
            Outcome::Waiting(ticket)
        };
        outcomes.push(outcome);
        // A weaker lock in place of a stronger one may be what others wait for.
        self.serve(lock.file, outcomes);
    }

    fn holds(&self, lock: &Lock) -> bool {
        self.files.get(&lock.file).is_some_and(|file| {
            file.held.iter().any(|held| {
                held.holder() == lock.holder()
                    && held.strength == lock.strength
                    && held.range == lock.range
            })
        })
    }

    fn grant(&mut self, lock: Lock) {
        let held = &mut self.files.entry(lock.file).or_default().held;
        let before = held.len();
        place(held, lock);
        self.held_count = self.held_count - before + held.len();
    }

    fn release(&mut self, file: FileId, holder: Holder, range: LockRange) {
        let Some(locks) = self.files.get_mut(&file) else { return };
        let before = locks.held.len();
        cut(&mut locks.held, holder, range);
        self.held_count = self.held_count - before + locks.held.len();
    }

    fn enqueue(&mut self, ticket: Ticket, lock: Lock) {
        self.files.entry(lock.file).or_default().queue.push(ticket);
        self.waiting.insert(ticket, lock);
        if lock.class == LockClass::Posix {
            self.waiting_of.entry(lock.owner).or_default().insert(ticket);
        }
    }

    /// Forgets a waiting request, but for its place in its file's queue.
    fn forget(&mut self, ticket: Ticket) -> Option<Lock> {
        let lock = self.waiting.remove(&ticket)?;
        if lock.class == LockClass::Posix
            && let Some(tickets) = self.waiting_of.get_mut(&lock.owner)
        {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.waiting_of.remove(&lock.owner);
            }
        }
        Some(lock)
    }

    /// Grants what has become possible, in order of arrival, until nothing more is.
    fn serve(&mut self, file: FileId, outcomes: &mut Vec<Outcome>) {
        // Each round but the last grants at least one of the waiting requests.
        loop {
            let Some(locks) = self.files.get_mut(&file) else { return };
            let queue = std::mem::take(&mut locks.queue);
            let mut left = Vec::with_capacity(queue.len());
            let count = queue.len();
            for ticket in queue {
                let lock = self.waiting[&ticket];
                if self.conflict(&lock).is_some() {
                    left.push(ticket);
                    continue;
                }
                self.forget(ticket);
                self.grant(lock);
                outcomes.push(Outcome::Granted(ticket));
            }
            let is_settled = left.len() == count;
            let locks = self.files.get_mut(&file).expect("it was there at the loop's head");
            locks.queue = left;
            if is_settled {
                if locks.held.is_empty() && locks.queue.is_empty() {
                    self.files.remove(&file);
                }
                return;
            }
        }
    }

    fn cancel(&mut self, ticket: Ticket, outcomes: &mut Vec<Outcome>) {
        let Some(lock) = self.forget(ticket) else { return };
        if let Some(locks) = self.files.get_mut(&lock.file) {
            locks.queue.retain(|waiting| *waiting != ticket);
        }
        outcomes.push(Outcome::Refused(ticket, Refusal::Interrupted));
        self.serve(lock.file, outcomes);
    }

    fn release_client(&mut self, client: u64, outcomes: &mut Vec<Outcome>) {
        let mut files = BTreeSet::new();
        let waiting: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(_, lock)| lock.owner.client == client)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in waiting {
            if let Some(lock) = self.forget(ticket) {
                let locks = self.files.get_mut(&lock.file).expect("waiters keep their file");
                locks.queue.retain(|waiting| *waiting != ticket);
                files.insert(lock.file);
                outcomes.push(Outcome::Refused(ticket, Refusal::Interrupted));
            }
        }
        for (file, locks) in &mut self.files {
            let before = locks.held.len();
            locks.held.retain(|held| held.owner.client != client);
            if locks.held.len() < before {
                self.held_count -= before - locks.held.len();
                files.insert(*file);
            }
        }
        for file in files {
            self.serve(file, outcomes);
        }
    }

    /// Whether the process would wait for itself, through however many others.
    fn closes_circle(&self, lock: &Lock) -> bool {
        if lock.class != LockClass::Posix {
            return false;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![*lock];
        while let Some(wanted) = open.pop() {
            let Some(locks) = self.files.get(&wanted.file) else { continue };
            for held in locks.held.iter().filter(|held| held.conflicts_with(&wanted)) {
                if held.class != LockClass::Posix || !seen.insert(held.owner) {
                    continue;
                }
                if held.owner == lock.owner {
                    return true;
                }
                let tickets = self.waiting_of.get(&held.owner).into_iter().flatten();
                open.extend(tickets.map(|ticket| self.waiting[ticket]));
            }
        }
        false
    }
}

/// Removes the holder's locks from `range`; what sticks out stays.
fn cut(held: &mut Vec<Lock>, holder: Holder, range: LockRange) {
    let mut rest = Vec::new();
    held.retain(|lock| {
        if lock.holder() != holder || !lock.range.overlaps(range) {
            return true;
        }
        if lock.range.start < range.start {
            let part = LockRange { start: lock.range.start, end: range.start - 1 };
            rest.push(Lock { range: part, ..*lock });
        }
        if lock.range.end > range.end {
            let part = LockRange { start: range.end + 1, end: lock.range.end };
            rest.push(Lock { range: part, ..*lock });
        }
        false
    });
    held.append(&mut rest);
}

/// Puts `lock` in place of what its holder has there, and joins it with equal neighbours.
fn place(held: &mut Vec<Lock>, mut lock: Lock) {
    cut(held, lock.holder(), lock.range);
    held.retain(|other| {
        let joins = other.holder() == lock.holder()
            && other.strength == lock.strength
            && other.range.touches(lock.range);
        if joins {
            lock.range.start = lock.range.start.min(other.range.start);
            lock.range.end = lock.range.end.max(other.range.end);
        }
        !joins
    });
    held.push(lock);
}
