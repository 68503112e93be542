//! One instant of all clients, for a snapshot.
//!
//! ```text
//!   Freeze --> each client: changes nothing by itself any more, and says so behind all that it
//!              has changed --> Frozen
//!   all have said so, and all that they have changed is applied:
//!              the gate is closed --> Thaw: they go on; what they ask and change waits at the gate
//!   the snapshot is made            --> the gate is opened
//! ```
//!
//! What completed anywhere before the gate was closed is in the map then: a client's own changes,
//! as it was frozen, and calls that change something, as those that had begun are waited for. What
//! completes later has not been let through. So whatever comes before something in the snapshot, by
//! any chain of messages, also such as go past this filesystem, is in it, too.
//!
//! Clients stand still for a round trip, and at most for [`FROZEN_MAX`]: then they go on, and it is
//! tried again when those have answered that did not, or have lost their sessions.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::{Error, Result};
use gabion_link::message::{Call, SessionId, ToClient};

use super::{Job, Request, Served, Session, Work};

/// How long clients stand still for those that do not answer.
const FROZEN_MAX: Duration = Duration::from_secs(2);
/// How long it is tried: longer than a session that does not answer lasts.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whether clients are to stand still, and the gate that all changes go through.
#[derive(Default)]
pub(super) struct Freezing {
    state: Mutex<State>,
    changed: Condvar,
    /// There was an attempt: before, there is nothing to look at.
    is_used: AtomicBool,
    is_closed: AtomicBool,
    /// Nothing that a client asks goes through, whether it changes anything or not.
    is_shut: AtomicBool,
    /// What went through the gate and is not through, by how it passes. Nobody waits for what is
    /// still let through: there might be some at every moment.
    running: [AtomicUsize; 3],
}

#[derive(Default)]
struct State {
    /// Counts attempts.
    number: u64,
    is_freezing: bool,
    /// Who was told to stand still.
    asked: BTreeSet<SessionId>,
    /// Who of them has not said that it does.
    awaited: BTreeSet<SessionId>,
    /// What waits at the gate.
    held: Vec<Work>,
}

/// Something on its way through the gate.
pub(super) struct Pass<'a>(&'a Freezing, Passing);

/// The gate is closed, until this is dropped.
pub(super) struct Closed<'a>(&'a Served);

/// What goes through the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passing {
    /// What a client has changed.
    Change = 0,
    /// A call that changes what a snapshot has.
    ChangingCall = 1,
    /// Another call.
    Call = 2,
}

impl Freezing {
    /// Goes through the gate, unless it is closed.
    pub(super) fn enter(&self, passing: Passing) -> Option<Pass<'_>> {
        // Counted before it is looked: who closes the gate looks at the count after that.
        self.running[passing as usize].fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self, passing);
        (!self.keeps_out(passing)).then_some(pass)
    }

    fn keeps_out(&self, passing: Passing) -> bool {
        let is_closed = || self.is_closed.load(Ordering::SeqCst);
        let is_shut = || self.is_shut.load(Ordering::SeqCst);
        match passing {
            Passing::Change => is_closed(),
            Passing::ChangingCall => is_closed() || is_shut(),
            Passing::Call => is_shut(),
        }
    }

    /// Has something wait until the gate is opened. It is given back if it is open.
    pub(super) fn hold(&self, passing: Passing, work: Work) -> Option<Work> {
        let mut state = self.state.lock();
        if !self.keeps_out(passing) {
            return Some(work);
        }
        state.held.push(work);
        None
    }

    /// Calls that wait at the gate and would change something: they are not to be made any more.
    pub(super) fn refuse_calls(&self) -> Vec<Request> {
        let mut state = self.state.lock();
        let changing = |work: &mut Work| matches!(work, Work::Call(it) if it.call.changes());
        let refused = state.held.extract_if(.., changing);
        let request = |work| match work {
            Work::Call(request) => Some(request),
            _ => None,
        };
        refused.filter_map(request).collect()
    }

    /// Tells a client something, and to say that it knows it behind all that it has changed before.
    /// False: just now another freeze is under way.
    pub(super) fn part(&self, session: &Session, fence: u64, told: ToClient) -> bool {
        let state = self.state.lock();
        if state.is_freezing {
            return false;
        }
        for message in [told, ToClient::Freeze(fence), ToClient::Thaw(fence)] {
            session.peer.send(message);
        }
        true
    }

    /// A client stands still.
    pub(super) fn frozen(&self, session: SessionId, number: u64) {
        let mut state = self.state.lock();
        if state.number == number && state.awaited.remove(&session) {
            self.changed.notify_all();
        }
    }

    /// A session has ended.
    pub(super) fn left(&self, session: SessionId) {
        if !self.is_used.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        state.asked.remove(&session);
        if state.awaited.remove(&session) {
            self.changed.notify_all();
        }
    }

    /// A session has begun: it stands still like the others.
    pub(super) fn entered(&self, session: &Session) {
        if !self.is_used.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        if state.is_freezing && state.asked.insert(session.id) {
            state.awaited.insert(session.id);
            session.peer.send(ToClient::Freeze(state.number));
        }
    }

    /// The attempt at which the client has been told to stand still and does not say that it does.
    pub(super) fn awaited(&self, session: SessionId) -> Option<u64> {
        if !self.is_used.load(Ordering::SeqCst) {
            return None;
        }
        let state = self.state.lock();
        state.awaited.contains(&session).then_some(state.number)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Self(freezing, passing) = *self;
        let is_last = freezing.running[passing as usize].fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && freezing.keeps_out(passing) {
            // Whoever waits for it has looked at the count before, or looks after this.
            drop(freezing.state.lock());
            freezing.changed.notify_all();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.0.freezing.state.lock();
        self.0.freezing.is_closed.store(false, Ordering::SeqCst);
        self.0.freezing.is_shut.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut state.held);
        drop(state);
        for work in held {
            (self.0.queue)(Job(work));
        }
    }
}

/// How the call goes through the gate; `None`: past it, as it is about locks only.
pub(super) fn passing(call: &Call) -> Option<Passing> {
    match call {
        Call::Lock { .. } | Call::Unlock { .. } | Call::TestLock { .. } => None,
        call if call.changes() => Some(Passing::ChangingCall),
        _ => Some(Passing::Call),
    }
}

impl Served {
    /// Brings all clients to one instant and closes the gate. `Busy`: one of them does not answer,
    /// and has not lost its session either.
    pub(super) fn freeze(&self) -> Result<Closed<'_>> {
        let now = || self.fs.clock.monotonic();
        let gives_up = now() + PATIENCE;
        self.freezing.is_used.store(true, Ordering::SeqCst);
        loop {
            let mut state = self.freezing.state.lock();
            state.number += 1;
            state.is_freezing = true;
            for session in self.all_sessions() {
                state.asked.insert(session.id);
                state.awaited.insert(session.id);
                session.peer.send(ToClient::Freeze(state.number));
            }
            let ends = now() + FROZEN_MAX;
            while !state.awaited.is_empty() && now() < ends && !self.is_ending() {
                let left = ends.saturating_sub(now());
                self.freezing.changed.wait_for(&mut state, left);
            }
            state.is_freezing = false;
            let is_closed = state.awaited.is_empty();
            self.freezing.is_closed.store(is_closed, Ordering::SeqCst);
            let asked = std::mem::take(&mut state.asked);
            self.thaw(state.number, &asked);
            if is_closed {
                drop(state);
                self.withdraw();
                self.await_running([Passing::Change, Passing::ChangingCall]);
                return Ok(Closed(self));
            }
            while !state.awaited.is_empty() {
                if now() >= gives_up || self.is_ending() {
                    state.awaited.clear();
                    return Err(Error::Busy);
                }
                self.freezing.changed.wait_for(&mut state, FROZEN_MAX);
            }
        }
    }

    /// Closes the gate for everything that clients say, and has them give up all that they have of
    /// subvolumes that can be changed: nobody has anything cached that could become untrue, all
    /// that anybody has changed is applied, and all have been told so. `Busy`: one of them does not
    /// answer, and has not lost its session either.
    pub(super) fn shut(&self) -> Result<[Closed<'_>; 2]> {
        self.freezing.is_shut.store(true, Ordering::SeqCst);
        let shut = Closed(self);
        // Calls that are under way may yet bring leases. What clients have changed under those that
        // they give up has to come through.
        self.await_running([Passing::Call, Passing::ChangingCall]);
        if !self.forget_subvolumes(&self.fs.map().writable_subvolumes()) {
            return Err(Error::Busy);
        }
        // Whoever says that it stands still has heard all before.
        Ok([shut, self.freeze()?])
    }

    /// Waits until nothing that passes so, and is not let through any more, is on its way through
    /// the gate.
    fn await_running(&self, kept_out: [Passing; 2]) {
        let is_running =
            |how: Passing| self.freezing.running[how as usize].load(Ordering::SeqCst) > 0;
        let mut state = self.freezing.state.lock();
        while kept_out.into_iter().any(is_running) {
            self.freezing.changed.wait(&mut state);
        }
    }

    fn thaw(&self, number: u64, asked: &BTreeSet<SessionId>) {
        for session in self.all_sessions() {
            if asked.contains(&session.id) {
                session.peer.send(ToClient::Thaw(number));
            }
        }
    }
}
