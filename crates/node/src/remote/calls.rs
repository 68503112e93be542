//! Questions to the server and their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::lock::LockOwner;
use gabion_fs::{Caller, Result};
use gabion_link::errand::Errand;
use gabion_link::message::{Answer, Call, CallId, Change, ChangeNumber, ToClient, ToServer};
use gabion_map::txn::Value;
use gabion_map::{FileId, Key, Kind};

use crate::locks::LockEnd;
use crate::operation::{made_by, resolved};

use super::failures::{lost, silent};
use super::gate::Pass;
use super::locking::LockCall;
use super::losses::Refused;
use super::{RemoteFs, Wire};

/// How a call ended.
enum End {
    Answered(Result<Answer>, Pass),
    /// With the session.
    Lost,
}

#[derive(Default)]
struct Slot {
    end: Mutex<Option<End>>,
    ended: Condvar,
}

enum Waiter {
    /// A thread.
    Thread(Arc<Slot>),
    /// Somebody who is told.
    Told(Told),
}

/// Somebody who does not wait in a thread.
struct Told {
    /// Does not wait.
    end: LockEnd,
    asked: Duration,
    patience: Patience,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as that of any other call.
    Deadline,
    /// As long as the server lives: it waits for others.
    Life,
}

/// A call under way.
struct Asked {
    waiter: Waiter,
    /// What is said again to a server that has lost it, if not whoever waits asks again.
    again: Option<(Caller, Call)>,
    /// Whoever waits has given up: then it is said again, too, that the call is to end.
    is_given_up: bool,
}

/// Calls under way.
pub(super) struct Calls {
    wire: Arc<dyn Wire>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// How many sessions have begun.
    session: u64,
    waiting: BTreeMap<CallId, Asked>,
    /// Of those without an answer, also if nobody waits for it any more, what is about locks.
    locking: BTreeMap<CallId, LockCall>,
    /// What is told before the next call, or soon.
    notes: Vec<ToServer>,
}

impl Calls {
    pub(super) fn new(wire: Arc<dyn Wire>) -> Self {
        Self { wire, state: Mutex::default() }
    }

    pub(super) fn sent(&self) -> u64 {
        self.state.lock().last
    }

    /// Sends notes that wait, then `message`. The lock keeps the order.
    fn send(&self, state: &mut State, message: ToServer) {
        for note in state.notes.drain(..) {
            self.wire.send(note);
        }
        self.wire.send(message);
    }

    fn ask(&self, caller: &Caller, call: Call, after: ChangeNumber, waiter: Waiter) -> CallId {
        self.ask_in(&mut self.state.lock(), caller, call, after, waiter)
    }

    /// The same in the session that [`Calls::session`] has named, if it is still that one.
    fn ask_within(
        &self,
        session: u64,
        caller: &Caller,
        call: &Call,
        after: ChangeNumber,
        slot: &Arc<Slot>,
    ) -> Option<CallId> {
        let mut state = self.state.lock();
        let waiter = Waiter::Thread(Arc::clone(slot));
        let is_this = state.session == session;
        is_this.then(|| self.ask_in(&mut state, caller, call.clone(), after, waiter))
    }

    fn ask_in(
        &self,
        state: &mut State,
        caller: &Caller,
        call: Call,
        after: ChangeNumber,
        waiter: Waiter,
    ) -> CallId {
        state.last += 1;
        let id = CallId(state.last);
        if let Some(call) = LockCall::of(&call) {
            state.locking.insert(id, call);
        }
        let caller = caller.clone();
        let again = (!can_repeat(&call)).then(|| (caller.clone(), call.clone()));
        state.waiting.insert(id, Asked { waiter, again, is_given_up: false });
        self.send(state, ToServer::Call { id, caller, call, after });
        id
    }

    /// Which session it is. To be asked before what is decided in it.
    fn session(&self) -> u64 {
        self.state.lock().session
    }

    /// Has something told, before the next call at the latest. Two that cancel each other out are
    /// not told.
    pub(super) fn note(&self, note: ToServer) {
        let mut state = self.state.lock();
        if let ToServer::Closed(file) = note {
            let opened = |old: &ToServer| match old {
                ToServer::Opened { file: other, .. } => *other == file,
                _ => false,
            };
            if let Some(index) = state.notes.iter().position(opened) {
                state.notes.remove(index);
                return;
            }
        }
        state.notes.push(note);
    }

    /// Tells at once.
    pub(super) fn tell(&self, message: ToServer) {
        let mut state = self.state.lock();
        self.send(&mut state, message);
    }

    /// Gives up what waits at the server, if it still does.
    pub(super) fn give_up(&self, id: CallId) {
        let mut state = self.state.lock();
        if let Some(asked) = state.waiting.get_mut(&id) {
            asked.is_given_up = true;
        }
        self.send(&mut state, ToServer::Cancel(id));
    }

    /// The session has ended.
    pub(super) fn lose_all(&self) {
        let mut state = self.state.lock();
        state.notes.clear();
        state.locking.clear();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(|asked| asked.waiter.lose());
    }

    /// What was told so far is for nobody, and what was decided before is not asked any more.
    pub(super) fn begin_again(&self) {
        let mut state = self.state.lock();
        state.session += 1;
        self.wire.begin_again();
    }

    /// The server has lost what was said: begins anew with `first`, and asks once more what was not
    /// answered.
    pub(super) fn say_again(&self, first: Vec<ToServer>) {
        let mut state = self.state.lock();
        state.notes.clear();
        self.wire.begin_again();
        first.into_iter().for_each(|message| self.wire.send(message));
        let mut lost = Vec::new();
        for (id, asked) in std::mem::take(&mut state.waiting) {
            match &asked.again {
                None => lost.push(asked.waiter),
                Some((caller, call)) => {
                    let (caller, call, after) = (caller.clone(), call.clone(), ChangeNumber(0));
                    self.wire.send(ToServer::Call { id, caller, call, after });
                    if asked.is_given_up {
                        self.wire.send(ToServer::Cancel(id));
                    }
                    state.waiting.insert(id, asked);
                }
            }
        }
        self.wire.send(ToServer::Recovered);
        drop(state);
        lost.into_iter().for_each(Waiter::lose);
    }

    fn take(&self, id: CallId) -> Option<Asked> {
        self.state.lock().waiting.remove(&id)
    }

    /// All who are told and whom `is_overdue` says has waited long enough.
    fn take_told(&self, is_overdue: impl Fn(&Told) -> bool) -> Vec<Told> {
        let mut state = self.state.lock();
        let is_meant = |_: &CallId, asked: &mut Asked| match &asked.waiter {
            Waiter::Thread(_) => false,
            Waiter::Told(told) => is_overdue(told),
        };
        let taken = state.waiting.extract_if(.., is_meant);
        taken
            .filter_map(|(_, asked)| match asked.waiter {
                Waiter::Told(told) => Some(told),
                Waiter::Thread(_) => None,
            })
            .collect()
    }

    /// Whether the call is about locks, and has no answer.
    pub(super) fn is_about_locks(&self, id: CallId) -> bool {
        self.state.lock().locking.contains_key(&id)
    }

    /// The call about locks, which has its answer.
    pub(super) fn take_lock_call(&self, id: CallId) -> Option<LockCall> {
        self.state.lock().locking.remove(&id)
    }

    /// Tells what the owner has unlocked, unless it asks for a lock somewhere. Whether it is told.
    pub(super) fn tell_unlocked(&self, owner: LockOwner, unlocked: ToServer) -> bool {
        let mut state = self.state.lock();
        let is_asking = state.locking.values().any(|call| call.is_by(owner));
        if !is_asking {
            self.send(&mut state, unlocked);
        }
        !is_asking
    }

    /// All calls about locks that have no answer.
    pub(super) fn lock_calls(&self) -> Vec<LockCall> {
        self.state.lock().locking.values().copied().collect()
    }

    /// Whether a lock on the file is asked for by the owner.
    pub(super) fn is_locking(&self, file: FileId, owner: LockOwner) -> bool {
        self.state.lock().locking.values().any(|call| call.is_for(file, owner))
    }
}

impl Waiter {
    /// The call is lost.
    fn lose(self) {
        match self {
            Self::Thread(slot) => {
                *slot.end.lock() = Some(End::Lost);
                slot.ended.notify_all();
            }
            Self::Told(told) => (told.end)(Err(lost("lock"))),
        }
    }
}

/// Whether a call can be made once more without an effect that nobody asked for.
fn can_repeat(call: &Call) -> bool {
    match call {
        Call::Acquire { .. }
        | Call::Read { .. }
        | Call::Seek { .. }
        | Call::Space { .. }
        | Call::Numbers { .. }
        | Call::TestLock { .. }
        | Call::Run(Errand::Rollback { .. }) => true,
        Call::Run(errand) => !errand.changes(),
        _ => false,
    }
}

impl RemoteFs {
    /// Asks the server and waits for the answer. This thread is inside the gate then.
    pub(super) fn call(&self, caller: &Caller, call: Call) -> Result<Answer> {
        self.call_counting(caller, call).map(|(answer, _)| answer)
    }

    /// The same of what may take the server longer than the deadline.
    pub(super) fn call_patiently(
        &self,
        caller: &Caller,
        call: Call,
        patience: Duration,
    ) -> Result<Answer> {
        self.call_within(caller, call, patience).map(|(answer, _)| answer)
    }

    /// The same, and says how often something may have been lost before it was asked.
    pub(super) fn call_counting(&self, caller: &Caller, call: Call) -> Result<(Answer, u64)> {
        self.call_within(caller, call, self.settings.deadline)
    }

    fn call_within(
        &self,
        caller: &Caller,
        call: Call,
        patience: Duration,
    ) -> Result<(Answer, u64)> {
        call.check()?;
        // Whoever waits for the server must not be waited for.
        self.gate.leave_own();
        let reached = self.clock.monotonic() + self.settings.deadline;
        let deadline = self.clock.monotonic() + patience;
        // Those are small.
        let again = can_repeat(&call).then(|| call.clone());
        let mut next = Some(call);
        let caller = &self.told(caller);
        while let Some(call) = next.take() {
            let session = self.calls.session();
            if !self.wait_for_life(reached) {
                return Err(silent(self.settings.deadline));
            }
            // A lock that was there when the program called may have ended with its session.
            self.check_locks_of(&call)?;
            let slot = Arc::new(Slot::default());
            let losses = self.losses();
            let after = self.depends_on(&call);
            let Some(id) = self.calls.ask_within(session, caller, &call, after, &slot) else {
                next = Some(call);
                continue;
            };
            let mut end = slot.end.lock();
            while end.is_none() {
                let left = deadline.saturating_sub(self.clock.monotonic());
                let timed_out = slot.ended.wait_for(&mut end, left).timed_out();
                if timed_out && end.is_none() {
                    drop(end);
                    if self.calls.take(id).is_some() {
                        return Err(silent(patience));
                    }
                    // It is being answered this moment.
                    end = slot.end.lock();
                    while end.is_none() {
                        slot.ended.wait(&mut end);
                    }
                }
            }
            match end.take().expect("it was waited for") {
                End::Answered(result, pass) => {
                    self.gate.adopt(pass);
                    return result.map(|answer| (answer, losses));
                }
                End::Lost => next = again.clone(),
            }
        }
        Err(lost("call"))
    }

    /// Asks the server; `end` is told, and does not wait. Nothing if the server cannot be asked,
    /// which `end` is told, too.
    pub(super) fn call_later(
        &self,
        caller: &Caller,
        call: Call,
        patience: Patience,
        end: LockEnd,
    ) -> Option<CallId> {
        self.gate.leave_own();
        let asked = self.clock.monotonic();
        if !self.wait_for_life(asked + self.settings.deadline) {
            end(Err(silent(self.settings.deadline)));
            return None;
        }
        let after = self.depends_on(&call);
        let told = Waiter::Told(Told { end, asked, patience });
        Some(self.calls.ask(caller, call, after, told))
    }

    /// Tells those who do not wait in a thread that they have waited for too long. To be called now
    /// and then.
    pub fn end_overdue_calls(&self) {
        let (now, is_alive) = (self.clock.monotonic(), self.is_alive());
        let overdue = self.calls.take_told(|told| {
            let is_patient = told.patience == Patience::Life && is_alive;
            !is_patient && now.saturating_sub(told.asked) >= self.settings.deadline
        });
        for told in overdue {
            (told.end)(Err(silent(self.settings.deadline)));
        }
    }

    /// Asks what this thread's request does not need answered: it stays inside the gate.
    pub(super) fn call_aside(&self, caller: &Caller, call: Call, end: LockEnd) {
        let after = self.depends_on(&call);
        let asked = self.clock.monotonic();
        let told = Waiter::Told(Told { end, asked, patience: Patience::Deadline });
        self.calls.ask(&self.told(caller), call, after, told);
    }

    /// The last change that the server must have made before it looks at the call: of all for
    /// what comes after them, so that a crash leaves no later one without the earlier; of its
    /// objects for what is read.
    fn depends_on(&self, call: &Call) -> ChangeNumber {
        // Whoever makes a change now may have shown it to us, and has not told the server yet.
        drop(self.order.lock());
        match call {
            // What is locked has to be there.
            Call::Lock { lock, .. } => self.pending.last_of(&[lock.file]),
            Call::Sync { .. } | Call::Run(_) => self.pending.last(),
            call if call.changes() => self.pending.last(),
            call => self.pending.last_of(&call.files()),
        }
    }

    /// Takes what the server says, in the order in which it says it.
    pub fn receive(&self, message: ToClient) {
        match message {
            ToClient::Answer { id, result, updates, grants, now, order, done } => {
                self.pending.saw_order(order);
                self.server_time.told(now, self.clock.monotonic());
                let is_inode = |(key, _): &&(Key, Option<Value>)| key.kind == Kind::INODE;
                let changed = updates.iter().filter(is_inode).map(|(key, _)| key.file());
                let changed: Vec<FileId> = changed.collect();
                {
                    let mut known = self.note_lock_answer(id, &result);
                    let mut cache = self.cache.write();
                    cache.update(updates);
                    for grant in grants {
                        if let Some(known) = &mut known {
                            known.note_grant(&grant);
                        }
                        cache.grant(grant);
                    }
                    self.relieve(&mut cache);
                }
                self.kernel_forgets_attributes(&changed);
                let asked = self.calls.take(id);
                if let (Some(asked), Some(now), Ok(answer)) = (&asked, done, &result)
                    && let Some((caller, call)) = asked.again.clone()
                {
                    let (number, made) = (ChangeNumber(0), made_by(&call, answer));
                    let call = resolved(call, answer);
                    self.pending.keep_call(id, Change { number, order, now, made, caller, call });
                }
                match asked.map(|asked| asked.waiter) {
                    // Nobody has waited for so long. What was opened nobody is going to close.
                    None => {
                        if let Ok(Answer::Made(made, _)) = &result {
                            self.calls.note(ToServer::Closed(made.file));
                        }
                    }
                    Some(Waiter::Thread(slot)) => {
                        // What is revoked after this answer waits until it was made use of.
                        let pass = self.gate.enter();
                        *slot.end.lock() = Some(End::Answered(result, pass));
                        slot.ended.notify_all();
                    }
                    Some(Waiter::Told(told)) => {
                        (told.end)(result.map(drop));
                        self.go_on_ahead();
                    }
                }
            }
            ToClient::Pong { now, .. } => self.server_time.told(now, self.clock.monotonic()),
            ToClient::Applied { number, extents, credit } => {
                self.pending.applied(number, credit);
                let is_final = |(key, _): &(Key, Option<Value>)| {
                    self.pending.last_of(&[key.file()]) == ChangeNumber(0)
                };
                // Those of files that were changed again meanwhile come later.
                let _order = self.order.lock();
                let extents = extents.into_iter().filter(is_final);
                self.cache.write().update(extents);
            }
            ToClient::Tight(subvols) => self.pending.set_tight(subvols),
            ToClient::Witness(calls) => self.pending.witnessed(calls),
            ToClient::Freeze(freeze) => self.freeze(freeze),
            ToClient::Thaw(freeze) => self.freezing.thaw(freeze),
            ToClient::LocksLost(locks) => self.locks_are_lost(&locks),
            ToClient::Durable { round, number, calls } => {
                self.pending.durable(number, &calls);
                self.calls.note(ToServer::Settled(round));
            }
            ToClient::Failed { number, error } => {
                let found = self.pending.refused(number);
                let (change, files) =
                    found.map_or((None, Vec::new()), |(change, files)| (Some(change), files));
                self.revocations.refused(Refused { files, change, error });
            }
            // Nothing of them is cached but here.
            ToClient::Revoke { id, range, .. } if range.kind() == Some(Kind::LOCK) => {
                self.give_back_locks(&range);
                self.calls.tell(ToServer::Released(vec![id]));
            }
            ToClient::Revoke { id, range, keep } => self.revocations.push(id, range, keep),
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_fs::lock::{Lock, LockClass, LockRange, Strength, Wait};

    use super::*;

    /// A wire that keeps what is said.
    #[derive(Default)]
    struct Said(Mutex<Vec<ToServer>>);

    impl Wire for Said {
        fn send(&self, message: ToServer) {
            self.0.lock().push(message);
        }

        fn begin_again(&self) {
            self.0.lock().clear();
        }
    }

    #[test]
    fn who_has_given_up_waiting_for_a_lock_has_so_at_a_server_that_starts_again() {
        let wire = Arc::new(Said::default());
        let calls = Calls::new(Arc::clone(&wire) as _);
        let wanted = |number| Call::Lock {
            lock: Lock {
                file: FileId::new(SubvolId(1), Ino(7)),
                class: LockClass::Posix,
                owner: LockOwner { client: 0, number },
                pid: 1,
                strength: Strength::Exclusive,
                range: LockRange::WHOLE,
            },
            wait: Wait::Yes,
        };
        let ask = |number| {
            let (end, asked, patience) =
                (Box::new(|_: Result<()>| {}) as LockEnd, Duration::ZERO, Patience::Life);
            let waiter = Waiter::Told(Told { end, asked, patience });
            calls.ask(&Caller::superuser(), wanted(number), ChangeNumber(0), waiter)
        };
        let (patient, impatient) = (ask(1), ask(2));
        calls.give_up(impatient);
        calls.say_again(Vec::new());
        let said: Vec<(CallId, bool)> = wire
            .0
            .lock()
            .iter()
            .filter_map(|message| match message {
                ToServer::Call { id, .. } => Some((*id, true)),
                ToServer::Cancel(id) => Some((*id, false)),
                _ => None,
            })
            .collect();
        assert_eq!(said, [(patient, true), (impatient, true), (impatient, false)]);
    }
}
