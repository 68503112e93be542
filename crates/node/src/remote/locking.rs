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
use std::sync::atomic::AtomicBool;

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
use super::calls::Patience;
use super::failures::nonsense;

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
    /// Whether there may be locks that were lost.
    pub(super) is_any_lost: AtomicBool,
}

/// What is known of their locks.
pub(super) struct Known {
    held: LockTable,
    /// Files whose locks the server leaves to us, until it is told of them.
    left_to_us: BTreeSet<FileId>,
    /// Locks that are not held any more, which their owners do not know.
    lost: LockTable,
    /// What owners have asked the server to unlock, and what it has not said to be done. They do
    /// not believe that they have it.
    leaving: Vec<Leaving>,
}

type Leaving = (FileId, LockClass, LockOwner, LockRange);

impl Default for Locking {
    fn default() -> Self {
        let new = || LockTable::new(LOCKS_MAX);
        let (left_to_us, leaving) = (BTreeSet::new(), Vec::new());
        let known = Known { held: new(), left_to_us, lost: new(), leaving };
        Self { state: Mutex::new(known), is_any_lost: AtomicBool::new(false) }
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
        self.lost.forget_held(file);
        self.leaving.retain(|(of, ..)| *of != file);
    }

    /// Nothing that was held is held any more. Gives what that was.
    pub(super) fn lose_all(&mut self) -> Vec<Lock> {
        for (file, class, owner, range) in std::mem::take(&mut self.leaving) {
            self.release(file, class, owner, range);
        }
        let held: Vec<Lock> = self.held.held().copied().collect();
        self.held = LockTable::new(LOCKS_MAX);
        self.left_to_us.clear();
        held.iter().for_each(|lock| self.lost.note_held(*lock));
        held
    }

    /// These are not held any more. Gives those of them that were.
    pub(super) fn lose(&mut self, locks: &[Lock]) -> Vec<Lock> {
        let own = locks.iter().map(as_own);
        let lost: Vec<Lock> =
            own.filter(|lock| self.has(lock.file, lock.class, lock.owner)).collect();
        for lock in &lost {
            self.release(lock.file, lock.class, lock.owner, lock.range);
            self.lost.note_held(*lock);
        }
        lost
    }

    /// Whether any lock was.
    pub(super) fn has_lost_any(&self) -> bool {
        self.lost.held().next().is_some()
    }

    /// Whether a lock on the file was lost, which its owner has not given up.
    pub(super) fn has_lost(&self, file: FileId) -> bool {
        !self.lost.held_on(file).is_empty()
    }

    /// The owner has no lock there any more, and knows it, or has one again.
    fn is_cleared(&mut self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.lost.handle(LockRequest::Release { file, class, owner, range });
    }

    /// Whether the owner has a lock on the file.
    fn has(&self, file: FileId, class: LockClass, owner: LockOwner) -> bool {
        let is_meant = |lock: &Lock| lock.class == class && lock.owner == owner;
        self.held.held_on(file).iter().any(is_meant)
    }

    fn release(&mut self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.held.handle(LockRequest::Release { file, class, owner, range });
        self.is_cleared(file, class, owner, range);
    }

    /// What the server has answered.
    fn note(&mut self, call: LockCall, result: &Result<Answer>) {
        match (call, result) {
            (LockCall::Lock(lock), Ok(_)) => {
                let lock = as_own(&lock);
                self.is_cleared(lock.file, lock.class, lock.owner, lock.range);
                self.leaving
                    .retain(|(file, _, owner, _)| (*file, *owner) != (lock.file, lock.owner));
                self.held.note_held(lock);
            }
            (LockCall::Lock(lock), Err(Error::WouldBlock)) => self.give_up_first(&lock),
            (LockCall::Unlock(file, class, owner, range), Ok(_)) => {
                self.release(file, class, owner, range);
                self.leaving.retain(|leaving| *leaving != (file, class, owner, range));
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

    /// What is held whatever the server has done of these calls, which it has not answered: what it
    /// was asked to unlock, or to share, others may have got.
    fn surely_held(&self, calls: &[LockCall]) -> Vec<Lock> {
        let mut sure = LockTable::new(LOCKS_MAX);
        self.held.held().for_each(|lock| sure.note_held(*lock));
        for call in calls {
            let (file, class, owner, range) = match call {
                LockCall::Unlock(file, class, owner, range) => (*file, *class, *owner, *range),
                LockCall::Lock(lock) => (lock.file, lock.class, own(lock.owner.number), lock.range),
            };
            let is_meant = |lock: &&Lock| lock.class == class && lock.owner == owner;
            let before: Vec<Lock> = sure.held_on(file).iter().filter(is_meant).copied().collect();
            sure.handle(LockRequest::Release { file, class, owner, range });
            // To convert a lock of flock(2) is to give it up first.
            if let LockCall::Lock(wanted) = call
                && class != LockClass::Flock
            {
                for lock in before {
                    let strength = lock.strength.min(wanted.strength);
                    let start = lock.range.start().max(range.start());
                    if let Some(range) = LockRange::new(start, lock.range.end().min(range.end())) {
                        sure.note_held(Lock { strength, range, ..lock });
                    }
                }
            }
        }
        sure.held().copied().collect()
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
            let decided = known.held.handle(request).into_iter().next();
            if let Some(Outcome::Granted(_)) = decided {
                known.is_cleared(lock.file, lock.class, lock.owner, lock.range);
            }
            decided
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
        self.calls.give_up(CallId(ticket.0));
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
        known.is_cleared(file, class, owner, range);
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
        let leaving = (file, class, owner, range);
        if known.has(file, class, owner) && !known.leaving.contains(&leaving) {
            known.leaving.push(leaving);
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
        let held = known.surely_held(&self.calls.lock_calls());
        (known, told(&held))
    }
}

/// What the server is told of locks that are held.
fn told(held: &[Lock]) -> Vec<ToServer> {
    held.chunks(TOLD_MAX).map(|part| ToServer::Locked(part.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_fs::lock::Strength;

    use super::*;

    fn lock(class: LockClass, number: u64, strength: Strength, (from, to): (u64, u64)) -> Lock {
        let (file, range) = (FileId::new(SubvolId(1), Ino(7)), LockRange::new(from, to).unwrap());
        Lock { file, class, owner: own(number), pid: 1, strength, range }
    }

    fn known(held: &[Lock]) -> Known {
        let new = || LockTable::new(LOCKS_MAX);
        let (left_to_us, leaving) = (BTreeSet::new(), Vec::new());
        let mut known = Known { held: new(), left_to_us, lost: new(), leaving };
        held.iter().for_each(|lock| known.held.note_held(*lock));
        known
    }

    #[test]
    fn what_was_being_unlocked_when_the_session_ended_is_nobodys_loss() {
        let held = lock(LockClass::Posix, 1, Strength::Exclusive, (0, 99));
        let mut known = known(&[held]);
        known.leaving.push((held.file, held.class, held.owner, LockRange::new(0, 49).unwrap()));
        let rest = lock(LockClass::Posix, 1, Strength::Exclusive, (50, 99));
        assert_eq!(known.lose_all(), [rest]);
        assert!(known.has_lost(held.file) && known.has_lost_any());
        known.release(held.file, held.class, held.owner, LockRange::WHOLE);
        assert!(!known.has_lost_any());
    }

    #[test]
    fn what_others_may_have_got_by_now_is_not_claimed() {
        use LockClass::{Flock, Posix};
        use Strength::{Exclusive, Shared};
        let held = [
            lock(Posix, 1, Exclusive, (0, 99)),
            lock(Posix, 2, Exclusive, (100, 199)),
            lock(Posix, 3, Shared, (200, 299)),
        ];
        let sure = |calls: &[LockCall]| known(&held).surely_held(calls);
        assert_eq!(sure(&[]), held);
        // Whether the server has unlocked, shared, or strengthened them, or not.
        let unlock =
            LockCall::Unlock(held[0].file, Posix, own(1), LockRange::new(50, 149).unwrap());
        let share = LockCall::Lock(lock(Posix, 2, Shared, (150, 250)));
        let strengthen = LockCall::Lock(lock(Posix, 3, Exclusive, (200, 299)));
        let expected = [
            lock(Posix, 1, Exclusive, (0, 49)),
            lock(Posix, 2, Exclusive, (100, 149)),
            lock(Posix, 2, Shared, (150, 199)),
            lock(Posix, 3, Shared, (200, 299)),
        ];
        let mut left = sure(&[unlock, share, strengthen]);
        left.sort_by_key(|lock| lock.range.start());
        assert_eq!(left, expected);
        // A lock of flock(2) that is converted is given up first.
        let whole = lock(Flock, 4, Shared, (0, u64::MAX));
        let convert = LockCall::Lock(Lock { strength: Exclusive, ..whole });
        assert_eq!(known(&[whole]).surely_held(&[]), [whole]);
        assert_eq!(known(&[whole]).surely_held(&[convert]), []);
    }
}
