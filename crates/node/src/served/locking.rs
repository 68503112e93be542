//! Advisory locks of clients, and leases on them.
//!
//! ```text
//!   lock ----> nobody else has any there, nor wants any: granted, with an exclusive lease on all
//!         |    locks of the file. Its client decides by itself, and nothing is known of it here
//!         |--> others do: granted, with a shared lease. The client may unlock by itself, and tells
//!         '--> refused, or waits
//!   others want locks there --> Revoke --> Locked: what it holds, Released --> decided here
//! ```
//!
//! - Whatever is decided here about the locks of a file is decided while no client has an exclusive
//!   lease on them. So there is one place at each moment where they are decided.
//! - While a client has one, no lock of it on that file is in the table of locks.
//! - Who has a shared lease may have fewer locks than stand in the table. So nobody is refused one,
//!   or told who has it, as long as whoever stands in the way has a shared lease.
//! - Whoever waits, waits here, and then nobody has an exclusive lease; and no owner of locks
//!   unlocks by itself while it waits. So the search for circles sees all that matters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Wait};
use gabion_fs::{Access, Caller, Error, Result};
use gabion_link::message::{Answer, Call, CallId, Grant, ToClient};
use gabion_link::range::KeyRange;
use gabion_link::table::{ClientId, Lease};
use gabion_map::{FileId, Kind, LockMode};

use crate::locks::{Asked, LockEnd};

use super::execute::plain;
use super::guarded::Grip;
use super::{Executed, Outcome, Request, Served, Session};

impl Request {
    /// Whether it is about locks, and who it is for has been found out before.
    pub(super) fn is_quick(&self) -> bool {
        let (Call::Lock { lock: Lock { file, .. }, .. }
        | Call::TestLock { lock: Lock { file, .. } }
        | Call::Unlock { file, .. }) = &self.call
        else {
            return false;
        };
        let rights = &self.session.rights;
        let is_allowed = || self.session.granted(*file).has(Access::READ | Access::WRITE);
        rights.have_all() && (!rights.identities.are_checked() || is_allowed())
    }
}

impl Served {
    pub(super) fn lock(&self, job: &Request, lock: &Lock, wait: Wait) -> Executed {
        let (file, client, now) = (lock.file, job.client(), self.fs.clock.monotonic());
        let range = KeyRange::locks(file);
        let mut grip = Grip::new(&self.grants, job.request, client);
        if grip.ensure((range, LockMode::Shared)).is_err() {
            self.rivals.lock().collide(file, client, now);
            return Executed::Blocked(grip.denied().to_vec());
        }
        let locks = self.fs.locks();
        let is_alone = self.rivals.lock().asks(file, client, now);
        let is_only_one = is_alone && grip.try_hold((range, LockMode::Exclusive));
        if wait == Wait::No
            && self.is_doubtful(job, &locks.conflict(&own(&job.session, lock)))
            && grip.ensure((range, LockMode::Exclusive)).is_err()
        {
            return Executed::Blocked(grip.denied().to_vec());
        }
        if is_alone && !is_only_one {
            // Next time.
            self.settle(|grants| grants.table.recall(client, &range));
        }
        let asked =
            locks.ask(own(&job.session, lock), wait, || self.lock_end(&job.session, job.id));
        let executed = match asked {
            Asked::Ended(result) => {
                let grants = match result {
                    Ok(()) => {
                        let is_handed_over = is_only_one && locks.hand_over(file, job.session.id.0);
                        let mode = match is_handed_over {
                            true => LockMode::Exclusive,
                            false => LockMode::Shared,
                        };
                        vec![Grant { range, mode, items: Vec::new() }]
                    }
                    Err(_) => Vec::new(),
                };
                let result = result.map(|()| Answer::Done);
                Executed::Ended(Outcome { grants, ..Outcome::plain(result) })
            }
            Asked::Waits(ticket) => {
                self.rivals.lock().collide(file, client, now);
                if job.session.lock_waits(job.id, ticket) {
                    locks.cancel(ticket);
                }
                self.finish(&job.session, job.request, &[], &[]);
                Executed::AnswersLater
            }
        };
        // The session may have ended, and given up all of its locks, just before this one.
        if job.session.is_over() {
            locks.release_client(job.session.id.0);
        }
        executed
    }

    /// What happens when a request has waited.
    fn lock_end(&self, session: &Arc<Session>, id: CallId) -> LockEnd {
        let session = Arc::clone(session);
        let (times, clock) = (Arc::clone(&self.times), Arc::clone(&self.order));
        Box::new(move |result: Result<()>| {
            session.lock_answered(id);
            let result = result.map(|()| Answer::Done);
            let (updates, grants) = (Vec::new(), Vec::new());
            let (now, order, done) = (times.now(), clock.load(Ordering::SeqCst), None);
            session.peer.send(ToClient::Answer { id, result, updates, grants, now, order, done });
        })
    }

    /// A call for a lock is given up that may be waiting for somebody's lease.
    pub(super) fn give_up_parked(&self, session: &Arc<Session>, id: CallId) {
        if !session.is_lock_given_up(id) {
            return;
        }
        let mut parked = None;
        self.settle(|grants| {
            parked = grants.take_parked(session.id, id);
            parked.map_or_else(Vec::new, |request| grants.table.withdraw(request))
        });
        if parked.is_some() {
            self.lock_end(session, id)(Err(Error::Interrupted));
        }
    }

    pub(super) fn unlock(
        &self,
        job: &Request,
        file: FileId,
        (class, owner): (LockClass, u64),
        range: LockRange,
    ) -> Executed {
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        if grip.ensure((KeyRange::locks(file), LockMode::Shared)).is_err() {
            return Executed::Blocked(grip.denied().to_vec());
        }
        let owner = LockOwner { client: job.session.id.0, number: owner };
        self.fs.locks().release(file, class, owner, range);
        plain(Ok(Answer::Done))
    }

    pub(super) fn test_lock(&self, job: &Request, lock: &Lock) -> Executed {
        let (client, now) = (job.client(), self.fs.clock.monotonic());
        let mut grip = Grip::new(&self.grants, job.request, client);
        if grip.ensure((KeyRange::locks(lock.file), LockMode::Shared)).is_err() {
            self.rivals.lock().collide(lock.file, client, now);
            return Executed::Blocked(grip.denied().to_vec());
        }
        self.rivals.lock().asks(lock.file, client, now);
        let conflict = || self.fs.locks().conflict(&own(&job.session, lock));
        let range = KeyRange::locks(lock.file);
        if self.is_doubtful(job, &conflict()) && grip.ensure((range, LockMode::Exclusive)).is_err()
        {
            return Executed::Blocked(grip.denied().to_vec());
        }
        plain(Ok(Answer::Lock(conflict())))
    }

    /// Whether a lock that stands in the way may have been given up: its client has told nothing
    /// yet, or has, and that is on its way. What the asking client has told has come.
    fn is_doubtful(&self, job: &Request, conflict: &Option<Lock>) -> bool {
        conflict.is_some_and(|lock| {
            let holder = ClientId(lock.owner.client);
            let range = KeyRange::locks(lock.file);
            holder != job.client() && self.grants.lock().table.is_concerned(holder, &range)
        })
    }

    /// A client says which locks its processes hold: before it gives the lease on them back, or
    /// because this server has started again and does not know. Gives those that it cannot have:
    /// on files that it may not lock, and those that others have or may have.
    pub fn take_locked(&self, session: &Arc<Session>, locks: &[Lock]) -> Vec<Lock> {
        let is_refused = |lock: &&Lock| {
            let lock = &own(session, lock);
            !(self.is_known(session, lock.file)
                && self.permit_held(session, lock).is_ok()
                && self.put_lock(session, lock))
        };
        let refused = locks.iter().filter(is_refused).copied().collect();
        // As in `lock`.
        if session.is_over() {
            self.fs.locks().release_client(session.id.0);
        }
        refused
    }

    fn permit_held(&self, session: &Session, lock: &Lock) -> Result<()> {
        let caller = session.rights.identities.map(&Caller::superuser());
        self.permit(session, &caller, &Call::Lock { lock: *lock, wait: Wait::No })
    }

    fn put_lock(&self, session: &Session, lock: &Lock) -> bool {
        // Meanwhile nobody else gets the lease.
        let grants = self.grants.lock();
        let is_others = grants.table.is_others(ClientId(session.id.0), &KeyRange::locks(lock.file));
        let never: fn() -> LockEnd = || Box::new(|_| {});
        !is_others && matches!(self.fs.locks().ask(*lock, Wait::No, never), Asked::Ended(Ok(())))
    }

    /// A client has given leases up without having been asked: two of its own processes want the
    /// same lock.
    pub(super) fn note_yielded(&self, session: &Session, ranges: &[KeyRange]) {
        let now = self.fs.clock.monotonic();
        for range in ranges.iter().filter(|range| range.kind() == Some(Kind::LOCK)) {
            self.rivals.lock().collide(range.file(), ClientId(session.id.0), now);
        }
    }

    /// Asks clients for the locks that they decide about by themselves, of one file or of all, and
    /// says how many have not answered yet. If none has to, the table of locks knows all.
    pub fn recall_locks(&self, file: Option<FileId>) -> usize {
        let mut count = 0;
        self.settle(|grants| {
            let is_meant = |range: &KeyRange| {
                range.kind() == Some(Kind::LOCK) && file.is_none_or(|file| range.file() == file)
            };
            let leases = grants.table.leases().filter(|lease| is_meant(&lease.range));
            let leases: Vec<Lease> = leases.collect();
            count = leases.len();
            leases
                .iter()
                .flat_map(|lease| grants.table.unwanted(lease.client, &lease.range))
                .collect()
        });
        count
    }
}

/// The lock as the session's, whoever it says that it is.
fn own(session: &Session, lock: &Lock) -> Lock {
    let owner = LockOwner { client: session.id.0, number: lock.owner.number };
    Lock { owner, ..*lock }
}
