//! What a session has under way, and when nothing more is read from it.
//!
//! ```text
//!   asked --> queued --> taken by a worker --> answered
//!               ^              |
//!               '-- it waited for others' leases, or for a lock
//! ```
//!
//! Changes that a client has made by itself are under way until it is told that they are applied.
//! What it says besides may have to wait for them.
//!
//! A client that asks faster than it is answered is not read any more, and so has to wait when the
//! sockets between are full. What counts is above all what waits for a worker, as that ends by
//! itself. What waits for others counts, too, but not before there is very much: its end may be in
//! what is not read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use gabion_base::sync::Mutex;
use gabion_link::message::{CallId, ChangeNumber};

use super::connection::Connection;
use super::watch::{READABLE, WRITABLE};

/// Some calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    calls: usize,
    bytes: usize,
}

/// What may wait for workers.
const QUEUED_MAX: Amount = Amount { calls: 1024, bytes: 64 << 20 };
/// What may be under way in all.
const OPEN_MAX: Amount = Amount { calls: 16_384, bytes: 256 << 20 };
/// What may be said besides while something waits.
const NOTES_MAX: Amount = Amount { calls: 1 << 20, bytes: 64 << 20 };
/// What may be said again to a server that has started again, of calls that were answered.
const AGAIN_BYTES_MAX: usize = 1 << 30;
/// How long a session is spared that is not read because too much of it waits for others.
const SPARED: Duration = Duration::from_secs(30);

impl Amount {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }

    /// Whether it is more than `most`, or than a part of it.
    fn is_above(self, most: Self, part: usize) -> bool {
        self.calls > most.calls / part || self.bytes > most.bytes / part
    }
}

/// What a session has under way.
#[derive(Default)]
pub(super) struct Load {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<CallId, Open>,
    /// Changes that are not applied, with their bytes, in their order.
    changes: VecDeque<(ChangeNumber, usize)>,
    last_change: ChangeNumber,
    open: Amount,
    queued: Amount,
    notes: Amount,
    again: usize,
    paused: Option<Pause>,
    /// Since when it has been.
    since: Option<Instant>,
    /// What the session is read from.
    connection: Weak<Connection>,
}

struct Open {
    bytes: usize,
    is_queued: bool,
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// The workers have to catch up.
    Queued,
    /// Too much waits for others.
    Open,
}

impl Load {
    /// A call has come, of so many bytes. False if there is one of this name.
    pub(super) fn asked(&self, id: CallId, bytes: usize) -> bool {
        let state = &mut *self.state.lock();
        let is_new = !state.calls.contains_key(&id);
        if is_new {
            state.calls.insert(id, Open { bytes, is_queued: false });
            state.open.add(bytes);
        }
        is_new
    }

    /// A change has come. False if it is not behind all others.
    pub(super) fn changed(&self, number: ChangeNumber, bytes: usize) -> bool {
        let state = &mut *self.state.lock();
        let is_new = number > state.last_change;
        if is_new {
            state.last_change = number;
            state.changes.push_back((number, bytes));
            state.open.add(bytes);
        }
        is_new
    }

    /// All changes up to this one are applied.
    pub(super) fn applied(&self, number: ChangeNumber) {
        let state = &mut *self.state.lock();
        while let Some((_, bytes)) = state.changes.pop_front_if(|(first, _)| *first <= number) {
            state.open.take(bytes);
        }
        state.go_on_if_there_is_room();
    }

    /// Something else was said; `waits` if there is anything that has to be done before. False if
    /// that is too much.
    pub(super) fn noted(&self, bytes: usize, waits: bool) -> bool {
        let state = &mut *self.state.lock();
        if !waits {
            state.notes = Amount::default();
            return true;
        }
        state.notes.add(bytes);
        !state.notes.is_above(NOTES_MAX, 1)
    }

    /// A call was said again that was answered before this server had started. False if that is too
    /// much.
    pub(super) fn said_again(&self, bytes: usize) -> bool {
        let state = &mut *self.state.lock();
        state.again += bytes;
        state.again <= AGAIN_BYTES_MAX
    }

    /// It waits for a worker.
    pub(super) fn queued(&self, id: CallId) {
        let state = &mut *self.state.lock();
        if let Some(call) = state.calls.get_mut(&id).filter(|call| !call.is_queued) {
            call.is_queued = true;
            state.queued.add(call.bytes);
        }
    }

    /// A worker has taken it.
    pub(super) fn taken(&self, id: CallId) {
        let state = &mut *self.state.lock();
        if let Some(call) = state.calls.get_mut(&id).filter(|call| call.is_queued) {
            call.is_queued = false;
            state.queued.take(call.bytes);
        }
        state.go_on_if_there_is_room();
    }

    /// It is answered.
    pub(super) fn answered(&self, id: CallId) {
        let state = &mut *self.state.lock();
        if let Some(call) = state.calls.remove(&id) {
            state.open.take(call.bytes);
            if call.is_queued {
                state.queued.take(call.bytes);
            }
        }
        state.go_on_if_there_is_room();
    }

    /// The session is read from this connection now.
    pub(super) fn is_read_from(&self, connection: &Arc<Connection>) {
        self.state.lock().connection = Arc::downgrade(connection);
    }

    /// Whether nothing more is to be read. If so, its connection wakes nobody for that until there
    /// is room again.
    pub(super) fn is_to_pause(&self) -> bool {
        let state = &mut *self.state.lock();
        let paused = state.why(1);
        if let Some(connection) = state.connection.upgrade() {
            match paused {
                Some(_) => connection.unwant(READABLE),
                None => connection.want(READABLE),
            }
        }
        state.pause(paused);
        paused.is_some()
    }

    /// Whether the client is not read just now.
    pub(super) fn is_paused(&self) -> bool {
        self.state.lock().paused.is_some()
    }

    /// Whether it is not the client's doing that nothing is heard of it.
    pub(super) fn is_spared(&self, now: Instant) -> bool {
        let state = self.state.lock();
        match state.paused {
            None => false,
            Some(Pause::Queued) => true,
            Some(Pause::Open) => state.since.is_some_and(|since| now < since + SPARED),
        }
    }
}

impl State {
    fn why(&self, part: usize) -> Option<Pause> {
        if self.queued.is_above(QUEUED_MAX, part) {
            return Some(Pause::Queued);
        }
        self.open.is_above(OPEN_MAX, part).then_some(Pause::Open)
    }

    fn pause(&mut self, why: Option<Pause>) {
        self.paused = why;
        self.since = why.map(|_| self.since.unwrap_or_else(Instant::now));
    }

    /// Half of what stops it must be gone: else it would be stopped again at once.
    fn go_on_if_there_is_room(&mut self) {
        if self.paused.is_none() || self.why(2).is_some() {
            return;
        }
        self.pause(None);
        if let Some(connection) = self.connection.upgrade() {
            // It can be written, usually: so it is looked at, whether or not more has come since.
            connection.want(READABLE | WRITABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: u64 = QUEUED_MAX.calls as u64;

    #[test]
    fn a_session_that_asks_faster_than_it_is_answered_is_not_read() {
        let load = Load::default();
        for id in 0..=CALLS {
            assert!(!load.is_to_pause());
            assert!(load.asked(CallId(id), 10));
            load.queued(CallId(id));
        }
        assert!(load.is_to_pause());
        assert!(load.is_spared(Instant::now() + SPARED));
        let mut stopped = Vec::new();
        for id in 0..=CALLS {
            load.taken(CallId(id));
            if load.is_spared(Instant::now()) {
                stopped.push(id);
            }
        }
        assert_eq!(stopped, (0..CALLS / 2).collect::<Vec<_>>());
        assert!(!load.is_to_pause());
    }

    #[test]
    fn long_calls_count_for_their_length() {
        let load = Load::default();
        let half = QUEUED_MAX.bytes / 2 + 1;
        for id in [1, 2] {
            assert!(!load.is_to_pause());
            load.asked(CallId(id), half);
            load.queued(CallId(id));
        }
        assert!(load.is_to_pause());
        assert!(load.is_spared(Instant::now() + SPARED));
        load.taken(CallId(1));
        assert!(load.is_spared(Instant::now() + SPARED));
        load.taken(CallId(2));
        assert!(!load.is_spared(Instant::now() + SPARED));
    }

    #[test]
    fn what_waits_for_others_stops_nobody_until_it_is_very_much() {
        let load = Load::default();
        let most = OPEN_MAX.calls as u64;
        for id in 0..=most {
            assert!(!load.is_to_pause(), "{id}");
            load.asked(CallId(id), 0);
            load.queued(CallId(id));
            load.taken(CallId(id));
        }
        assert!(load.is_to_pause());
        assert!(!load.is_spared(Instant::now() + SPARED));
        (0..=most / 2).for_each(|id| load.answered(CallId(id)));
        assert!(load.state.lock().paused.is_none());
    }

    #[test]
    fn changes_are_under_way_until_they_are_applied() {
        let load = Load::default();
        let most = OPEN_MAX.calls as u64;
        for number in 1..=most {
            assert!(load.changed(ChangeNumber(number), 10));
            assert!(!load.is_to_pause());
        }
        assert!(!load.changed(ChangeNumber(most), 10));
        assert!(load.changed(ChangeNumber(most + 1), 10));
        assert!(load.is_to_pause());
        assert!(load.is_spared(Instant::now()) && !load.is_spared(Instant::now() + SPARED));
        load.applied(ChangeNumber(most / 2 + 1));
        assert!(!load.is_spared(Instant::now()));
        assert_eq!(load.state.lock().open, Amount { calls: 8192, bytes: 81_920 });
    }

    #[test]
    fn what_is_said_besides_counts_only_while_something_waits() {
        let load = Load::default();
        let half = NOTES_MAX.bytes / 2 + 1;
        assert!(load.noted(half, false));
        assert!(load.noted(half, true));
        assert!(load.noted(half, false));
        assert!(load.noted(half, true));
        assert!(!load.noted(half, true));
    }

    #[test]
    fn two_calls_of_one_name_are_noticed() {
        let load = Load::default();
        assert!(load.asked(CallId(1), 5));
        assert!(!load.asked(CallId(1), 5));
        load.answered(CallId(1));
        assert!(load.asked(CallId(1), 5));
        // Whatever is said twice or of nobody changes nothing.
        load.queued(CallId(1));
        load.queued(CallId(1));
        load.taken(CallId(7));
        load.answered(CallId(1));
        load.answered(CallId(1));
        assert_eq!(load.state.lock().queued, Amount::default());
        assert_eq!(load.state.lock().open, Amount::default());
    }
}
