//! Advisory locks of this machine's processes.
//!
//! ```text
//!   lock --leased, free----------------> granted here, told to nobody
//!         |-leased, somebody here has it, and is to be waited for: the lease is given up
//!         '-not leased ----------------> the server decides; its answer may bring a lease
//!   unlock --leased--------------------> done here, and told if others may have locks, too
//!           '-not leased --------------> the server is asked
//!   others want locks on the file, or the file has to go: Locked, what is held here; Released
//! ```
//!
//! Under an exclusive lease on a file's locks everything is decided here; under a shared one locks
//! are given up here.
//!
//! - Here is known, whoever has decided it, which locks this machine's processes hold. That is what
//!   is decided by under a lease, and what a server is told that has started again.
//! - What the server answers is noted in the order of its answers, and before what it says next. So
//!   when it grants the lease on a file, what is known here of the file's locks is all there is.
//! - Nobody waits here. So the server, which knows all who wait and all that they wait for, finds
//!   the circles. For the same reason nobody who may be waiting there gives up locks here.
//! - A lock comes after the change that made its file, as that is said before any lock is.
//!
//! What is locked here takes the `order` lock first, if at all, then this one, then the cache.

use std::collections::BTreeSet;

use gabion_base::sync::{Mutex, MutexGuard};
use gabion_fs::lock::{
    Lock, LockClass, LockOwner, LockRange, LockRequest, LockTable, Outcome, Refusal, Ticket, Wait,
};
use gabion_fs::{Caller, Error, Result};
use gabion_link::message::{Answer, Call, CallId, Grant, ToServer};
use gabion_link::range::KeyRange;
use gabion_link::table::Keep;
use gabion_map::{FileId, Kind, LockMode};

use crate::locks::LockEnd;

use super::RemoteFs;
use super::calls::{Patience, nonsense};

/// Locks that this machine's processes may have under leases.
const LOCKS_MAX: usize = 1 << 20;
/// Locks that one message tells.
const TOLD_MAX: usize = 4096;

/// A call about locks.
#[derive(Clone, Copy, Debug)]
pub(super) enum LockCall {
    Lock(Lock),
    Unlock(FileId, LockClass, LockOwner, LockRange),
}

impl LockCall {
    pub(super) fn of(call: &Call) -> Option<Self> {
        match call {
            Call::Lock { lock, .. } => Some(Self::Lock(*lock)),
            Call::Unlock { file, class, owner, range } => {
                Some(Self::Unlock(*file, *class, own(*owner), *range))
            }
            _ => None,
        }
    }

    /// Whether it may give the owner locks.
    pub(super) fn is_by(&self, owner: LockOwner) -> bool {
        matches!(self, Self::Lock(lock) if lock.owner.number == owner.number)
    }

    /// Whether it may give the owner locks on the file.
    pub(super) fn is_for(&self, file: FileId, owner: LockOwner) -> bool {
        matches!(self, Self::Lock(lock) if lock.file == file) && self.is_by(owner)
    }
}

/// All owners here are one client's.
fn own(number: u64) -> LockOwner {
    LockOwner { client: 0, number }
}

fn as_own(lock: &Lock) -> Lock {
    Lock { owner: own(lock.owner.number), ..*lock }
}

/// What this machine's processes have locked.
pub(super) struct Locking {
    state: Mutex<Known>,
}

/// What is known of their locks.
pub(super) struct Known {
    held: LockTable,
    /// Files whose locks the server leaves to us, until it is told of them.
    left_to_us: BTreeSet<FileId>,
}

impl Default for Locking {
    fn default() -> Self {
        let (held, left_to_us) = (LockTable::new(LOCKS_MAX), BTreeSet::new());
        Self { state: Mutex::new(Known { held, left_to_us }) }
    }
}

impl Locking {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock()
    }
}

impl Known {
    /// Nobody here has the file open any more.
    pub(super) fn forget(&mut self, file: FileId) {
        self.held.forget_held(file);
    }

    /// Nothing that was held is held any more.
    fn forget_all(&mut self) {
        self.held = LockTable::new(LOCKS_MAX);
        self.left_to_us.clear();
    }

    /// Whether the owner has a lock on the file.
    fn has(&self, file: FileId, class: LockClass, owner: LockOwner) -> bool {
        let is_meant = |lock: &Lock| lock.class == class && lock.owner == owner;
        self.held.held_on(file).iter().any(is_meant)
    }

    fn release(&mut self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.held.handle(LockRequest::Release { file, class, owner, range });
    }

    /// What the server has answered.
    fn note(&mut self, call: LockCall, result: &Result<Answer>) {
        match (call, result) {
            (LockCall::Lock(lock), Ok(_)) => self.held.note_held(as_own(&lock)),
            (LockCall::Lock(lock), Err(Error::WouldBlock)) => self.give_up_first(&lock),
            (LockCall::Unlock(file, class, owner, range), Ok(_)) => {
                self.release(file, class, owner, range);
            }
            (LockCall::Lock(_) | LockCall::Unlock(..), Err(_)) => {}
        }
    }

    /// What the server has granted.
    pub(super) fn note_grant(&mut self, grant: &Grant) {
        if grant.range.kind() == Some(Kind::LOCK) && grant.mode == LockMode::Exclusive {
            self.left_to_us.insert(grant.range.file());
        }
    }

    /// Who wants a lock of flock(2) as another one gives up that first.
    fn give_up_first(&mut self, wanted: &Lock) {
        if wanted.class == LockClass::Flock {
            let owner = own(wanted.owner.number);
            self.release(wanted.file, wanted.class, owner, LockRange::WHOLE);
        }
    }
}

impl RemoteFs {
    /// Asks for a lock. `end` is called before this returns if the server has not to be asked. It
    /// must not wait.
    pub fn lock(&self, lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket> {
        if let Some(result) = self.lock_here(&as_own(&lock), wait) {
            end(result);
            return None;
        }
        let patience = match wait {
            Wait::No => Patience::Deadline,
            Wait::Yes => {
                // When it begins to wait nobody tells.
                self.locking.lock().give_up_first(&lock);
                Patience::Life
            }
        };
        let call = Call::Lock { lock, wait };
        let CallId(id) = self.call_later(&Caller::superuser(), call, patience, end)?;
        Some(Ticket(id))
    }

    /// Decides about a lock, unless that is the server's.
    fn lock_here(&self, lock: &Lock, wait: Wait) -> Option<Result<()>> {
        let (ticket, lock) = (Ticket(0), *lock);
        let decided = {
            let mut known = self.locking.lock();
            if !self.decides_locks(lock.file) {
                return None;
            }
            // Nobody waits here.
            let request = LockRequest::Acquire { ticket, lock, wait: Wait::No };
            known.held.handle(request).into_iter().next()
        };
        match decided {
            Some(Outcome::Refused(_, Refusal::WouldBlock)) if wait == Wait::Yes => {
                self.yield_locks(lock.file);
                None
            }
            Some(Outcome::Refused(_, refusal)) => Some(Err(refusal.into())),
            Some(Outcome::Granted(_)) => Some(Ok(())),
            Some(Outcome::Waiting(_)) | None => None,
        }
    }

    /// Gives up what waits.
    pub fn cancel_lock(&self, ticket: Ticket) {
        self.calls.tell(ToServer::Cancel(CallId(ticket.0)));
    }

    /// Gives up an owner's locks on a range, and waits for that.
    pub fn unlock(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<()> {
        match self.unlock_here(file, class, owner, range) {
            None => Ok(()),
            Some(call) => self.done(&Caller::superuser(), call),
        }
    }

    /// The same. `end` is called before this returns if the server has not to be asked. It must not
    /// wait.
    pub fn unlock_then(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
        end: LockEnd,
    ) {
        match self.unlock_here(file, class, owner, range) {
            None => end(Ok(())),
            Some(call) => {
                self.call_later(&Caller::superuser(), call, Patience::Deadline, end);
            }
        }
    }

    /// Unlocks what is locked under a lease. What the server has to be asked for is left.
    fn unlock_here(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Option<Call> {
        let (number, owner) = (owner.number, own(owner.number));
        let mut known = self.locking.lock();
        if self.decides_locks(file) {
            known.release(file, class, owner, range);
            return None;
        }
        if !known.has(file, class, owner) && !self.calls.is_locking(file, owner) {
            return None;
        }
        let unlocked = ToServer::Unlocked { file, class, owner: number, range };
        if self.leases_locks(file, LockMode::Shared) && self.calls.tell_unlocked(owner, unlocked) {
            known.release(file, class, owner, range);
            return None;
        }
        Some(Call::Unlock { file, class, owner: number, range })
    }

    /// Gives up an owner's locks on a range, soon. Does not wait.
    pub fn unlock_soon(&self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.revocations.unlock_later(file, class, owner, range);
    }

    /// A lock that stands in the way of `lock`.
    pub fn lock_conflict(&self, lock: &Lock) -> Result<Option<Lock>> {
        {
            let known = self.locking.lock();
            if self.decides_locks(lock.file) {
                return Ok(known.held.conflict(&as_own(lock)).copied());
            }
        }
        match self.call(&Caller::superuser(), Call::TestLock { lock: *lock })? {
            Answer::Lock(conflict) => Ok(conflict),
            _ => Err(nonsense()),
        }
    }

    /// Whether the locks of the file are decided about here.
    fn decides_locks(&self, file: FileId) -> bool {
        self.leases_locks(file, LockMode::Exclusive)
    }

    fn leases_locks(&self, file: FileId, mode: LockMode) -> bool {
        self.is_alive() && self.cache.read().covers_as(&KeyRange::locks(file), mode)
    }

    /// Takes note of the answer to a call about locks, and keeps what is known of them locked until
    /// the lease that may have come with it is noted, too.
    pub(super) fn note_lock_answer(
        &self,
        id: CallId,
        result: &Result<Answer>,
    ) -> Option<MutexGuard<'_, Known>> {
        if !self.calls.is_about_locks(id) {
            return None;
        }
        let mut known = self.locking.lock();
        if let Some(call) = self.calls.take_lock_call(id) {
            known.note(call, result);
        }
        Some(known)
    }

    /// Gives up the lease on the locks of a file, as somebody here has to wait for one.
    fn yield_locks(&self, file: FileId) {
        // Whoever has made the file has said so.
        let _order = self.order.lock();
        let mut known = self.locking.lock();
        let range = KeyRange::locks(file);
        let mut cache = self.cache.write();
        if cache.covers_as(&range, LockMode::Exclusive) {
            cache.give_up(&range, Keep::Nothing);
            drop(cache);
            known.left_to_us.remove(&file);
            self.tell_held(known.held.held_on(file));
            self.calls.tell(ToServer::Yielded(vec![range]));
        }
    }

    /// Takes away the lease on the locks in `range`, if there are any, and tells the server what is
    /// held there. It remains to say that the range is released.
    pub(super) fn give_back_locks(&self, range: &KeyRange) {
        let Some(locks) = range.intersection(&KeyRange::locks(range.file())) else { return };
        let mut known = self.locking.lock();
        self.cache.write().give_up(&locks, Keep::Nothing);
        if known.left_to_us.remove(&range.file()) {
            self.tell_held(known.held.held_on(range.file()));
        }
    }

    fn tell_held(&self, held: &[Lock]) {
        told(held).into_iter().for_each(|part| self.calls.tell(part));
    }

    /// All locks that processes here hold, whoever has decided that. Their owners' client is 0.
    pub fn held_locks(&self) -> Vec<Lock> {
        self.locking.lock().held.held().copied().collect()
    }

    /// What a server that has started again, and with which the session goes on, has to be told of
    /// locks: all that processes here hold. Nothing is decided here meanwhile, and no lease is
    /// left.
    pub(super) fn locks_again(&self) -> (MutexGuard<'_, Known>, Vec<ToServer>) {
        let mut known = self.locking.lock();
        known.left_to_us.clear();
        let held: Vec<Lock> = known.held.held().copied().collect();
        (known, told(&held))
    }

    /// The session has ended, and all locks with it.
    pub(super) fn forget_locks(&self) {
        self.locking.lock().forget_all();
    }
}

/// What the server is told of locks that are held.
fn told(held: &[Lock]) -> Vec<ToServer> {
    held.chunks(TOLD_MAX).map(|part| ToServer::Locked(part.to_vec())).collect()
}
