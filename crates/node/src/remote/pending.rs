//! Changes that are not durable at the server yet: those that were made here, and those that it was
//! asked to make.
//!
//! ```text
//!   made --sent--> under way --Applied--> applied --Durable--> gone
//!   asked for, answered ------------------^   |
//!                     | Failed, or the session ends
//!                     v
//!                   lost: the next fsync of its files says so, and it is kept aside (`losses`)
//! ```
//!
//! All of them are kept until they are durable, and said again to a server that has lost them.
//! How much may be kept is the server's word: it has room for that. Who makes more waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::{CallId, Change, ChangeNumber, Witness};
use gabion_map::FileId;

use super::changing::payload;
use super::synced::Synced;

/// Calls of others that are remembered: more than are done between two rounds.
const WITNESSED_MAX: usize = 16_384;
/// Subvolumes for which there are numbers.
const SERIES_MAX: usize = 64;
/// Bytes of files that are kept of what the server has done. It makes them durable before.
const CALLS_BYTES_MAX: u64 = 256 << 20;

/// A change that was made here.
struct Entry {
    bytes: u64,
    files: Vec<FileId>,
    /// As it can be made again whatever there is then.
    change: Change,
    /// The server could not make it, which was told.
    is_refused: bool,
}

#[derive(Default)]
struct State {
    last: ChangeNumber,
    /// The server has told that all up to this one are applied.
    applied: ChangeNumber,
    /// The highest place among changes that is known here.
    order: u64,
    /// What is not durable, in order.
    entries: VecDeque<Entry>,
    /// What the server has done, and is not durable.
    calls: BTreeMap<CallId, Change>,
    /// Bytes of files in that.
    calls_bytes: u64,
    /// What others have had done, and may have to ask for again.
    witnessed: VecDeque<Witness>,
    synced: Synced,
    bytes: u64,
    credit: u64,
    /// Where the server makes all changes, whatever the credit is.
    tight: BTreeSet<SubvolId>,
    /// The last change under way of each file that has any.
    touched: BTreeMap<FileId, ChangeNumber>,
    /// For new objects, of few subvolumes.
    numbers: BTreeMap<SubvolId, Range<u64>>,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    fewer: Condvar,
}

/// What is going to be neither applied nor durable.
pub(super) struct Lost {
    /// Of what was under way.
    pub(super) files: Vec<FileId>,
    /// In order.
    pub(super) changes: Vec<Change>,
}

/// What the server may have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What it has not applied.
    UnderWay,
    /// What it has not made durable.
    Kept,
}

/// Whether a change may be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Enough,
    /// Never, as things are: it is for the server.
    None,
    /// It has taken too long to become so.
    TimedOut,
}

impl State {
    fn are_applied(&mut self, number: ChangeNumber) {
        let before = self.applied;
        self.applied = before.max(number);
        // Of many that are kept few are new.
        let first = self.entries.partition_point(|entry| entry.change.number <= before);
        let done = self.entries.range(first..);
        for entry in done.take_while(|entry| entry.change.number <= number) {
            for file in &entry.files {
                if self.touched.get(file) == Some(&entry.change.number) {
                    self.touched.remove(file);
                }
            }
        }
    }
}

impl Pending {
    /// Waits until `bytes` more of a subvolume may be kept, for `patience` at most.
    pub(super) fn wait_for_room(&self, of: SubvolId, bytes: u64, patience: Duration) -> Room {
        let mut state = self.state.lock();
        loop {
            if bytes > state.credit || state.tight.contains(&of) {
                return Room::None;
            }
            if state.bytes + bytes <= state.credit {
                return Room::Enough;
            }
            if self.fewer.wait_for(&mut state, patience).timed_out() {
                return Room::TimedOut;
            }
        }
    }

    /// Whether `bytes` more of a subvolume may be kept, now.
    pub(super) fn has_room(&self, of: SubvolId, bytes: u64) -> bool {
        let state = self.state.lock();
        state.bytes + bytes <= state.credit && !state.tight.contains(&of)
    }

    /// Takes a change that touches `files`, and gives it its number and place. It is kept as
    /// `kept` makes it.
    pub(super) fn push(
        &self,
        bytes: u64,
        files: Vec<FileId>,
        mut change: Change,
        kept: impl FnOnce(Change) -> Change,
    ) -> Change {
        let mut state = self.state.lock();
        state.last.0 += 1;
        state.order += 1;
        (change.number, change.order) = (state.last, state.order);
        for file in &files {
            state.touched.insert(*file, change.number);
        }
        state.bytes += bytes;
        state.entries.push_back(Entry {
            bytes,
            files,
            change: kept(change.clone()),
            is_refused: false,
        });
        change
    }

    /// The server knows of this place among changes: what is made here now comes later.
    pub(super) fn saw_order(&self, order: u64) {
        let mut state = self.state.lock();
        state.order = state.order.max(order);
    }

    /// The server tells of calls of others that what it says from now on may depend on.
    pub(super) fn witnessed(&self, calls: Vec<Witness>) {
        let mut state = self.state.lock();
        state.witnessed.extend(calls);
        while state.witnessed.len() > WITNESSED_MAX {
            state.witnessed.pop_front();
        }
    }

    /// The calls of others that may have to be asked for again.
    pub(super) fn all_witnessed(&self) -> Vec<Witness> {
        self.state.lock().witnessed.iter().cloned().collect()
    }

    /// Waits until not too much is kept of what the server has done. False: for longer than
    /// `patience`.
    pub(super) fn wait_for_calls(&self, patience: Duration) -> bool {
        let mut state = self.state.lock();
        while state.calls_bytes > CALLS_BYTES_MAX {
            if self.fewer.wait_for(&mut state, patience).timed_out() {
                return false;
            }
        }
        true
    }

    /// The server has done what it was asked for.
    pub(super) fn keep_call(&self, id: CallId, change: Change) {
        let mut state = self.state.lock();
        state.calls_bytes += payload(&change.call);
        state.calls.insert(id, change);
    }

    /// The last change under way of all; 0 if there is none.
    pub(super) fn last(&self) -> ChangeNumber {
        let state = self.state.lock();
        if state.last > state.applied { state.last } else { ChangeNumber(0) }
    }

    /// The last change under way that touches one of `files`; 0 if there is none.
    pub(super) fn last_of(&self, files: &[FileId]) -> ChangeNumber {
        let state = self.state.lock();
        let of = |file| state.touched.get(file).copied();
        files.iter().filter_map(of).max().unwrap_or_default()
    }

    /// The server could not make this change: it and its files, if it is kept.
    pub(super) fn refused(&self, number: ChangeNumber) -> Option<(Change, Vec<FileId>)> {
        let mut state = self.state.lock();
        let place = state.entries.binary_search_by_key(&number, |entry| entry.change.number);
        let found = &mut state.entries[place.ok()?];
        found.is_refused = true;
        Some((found.change.clone(), found.files.clone()))
    }

    /// What `of` makes of everything that is not durable.
    pub(super) fn map<T>(&self, of: impl Fn(&Change) -> T) -> Vec<T> {
        let state = self.state.lock();
        let made = state.entries.iter().map(|entry| &entry.change);
        made.chain(state.calls.values()).map(of).collect()
    }

    /// All up to `number` are applied.
    pub(super) fn applied(&self, number: ChangeNumber, credit: u64) {
        let mut state = self.state.lock();
        state.are_applied(number);
        state.credit = credit;
        drop(state);
        self.fewer.notify_all();
    }

    /// All up to `number` are durable, and these calls.
    pub(super) fn durable(&self, number: ChangeNumber, calls: &[CallId]) {
        let mut state = self.state.lock();
        state.are_applied(number);
        while let Some(entry) = state.entries.pop_front_if(|entry| entry.change.number <= number) {
            state.bytes -= entry.bytes;
        }
        for call in calls {
            let gone = state.calls.remove(call);
            state.calls_bytes -= gone.map_or(0, |change| payload(&change.call));
        }
        // Of what is kept; what is made from now on comes later.
        let made = state.entries.front().map(|entry| entry.change.order);
        let called = state.calls.values().map(|change| change.order).min();
        let first = made.into_iter().chain(called).min().unwrap_or(state.order + 1);
        state.synced.forget_before(first);
        drop(state);
        self.fewer.notify_all();
    }

    /// Everything that is not durable: changes in their order, and calls. Numbers for new objects
    /// are not ours any more.
    pub(super) fn all_again(&self) -> (Vec<Change>, Vec<(CallId, Change)>) {
        let mut state = self.state.lock();
        state.numbers.clear();
        let changes = state.entries.iter().map(|entry| entry.change.clone()).collect();
        let calls = state.calls.iter().map(|(id, change)| (*id, change.clone())).collect();
        (changes, calls)
    }

    pub(super) fn set_credit(&self, credit: u64) {
        self.state.lock().credit = credit;
        self.fewer.notify_all();
    }

    pub(super) fn set_tight(&self, tight: Vec<SubvolId>) {
        self.state.lock().tight = tight.into_iter().collect();
        self.fewer.notify_all();
    }

    /// The highest place among changes that is known here.
    pub(super) fn order(&self) -> u64 {
        self.state.lock().order
    }

    /// The file, or all files, are durable with all changes up to this place.
    pub(super) fn synced(&self, file: Option<FileId>, order: u64) {
        self.state.lock().synced.synced(file, order);
    }

    /// Everything is durable.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        let last = state.last;
        state.are_applied(last);
        state.entries.clear();
        state.calls.clear();
        state.bytes = 0;
    }

    /// The session has ended, and with it so much is lost.
    pub(super) fn lose(&self, extent: Extent) -> Lost {
        let mut state = self.state.lock();
        let order = state.order;
        let before = std::mem::replace(&mut *state, State { order, ..State::default() });
        drop(state);
        self.fewer.notify_all();
        let is_lost = |change: &Change| match extent {
            Extent::UnderWay => change.number > before.applied,
            Extent::Kept => !before.synced.has(change),
        };
        let made = before.entries.into_iter().filter(|entry| !entry.is_refused);
        let made = made.map(|entry| entry.change);
        let mut changes: Vec<Change> = made.filter(is_lost).collect();
        if extent == Extent::Kept {
            changes.extend(before.calls.into_values().filter(is_lost));
            changes.sort_by_key(|change| change.order);
        }
        Lost { files: before.touched.into_keys().collect(), changes }
    }

    /// Changes and bytes that are under way.
    pub(super) fn under_way(&self) -> (usize, u64) {
        let state = self.state.lock();
        let is_under_way = |entry: &&Entry| entry.change.number > state.applied;
        let entries = state.entries.iter().rev().take_while(is_under_way);
        entries.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.bytes))
    }

    /// Changes and calls that are not durable.
    pub(super) fn kept(&self) -> usize {
        let state = self.state.lock();
        state.entries.len() + state.calls.len()
    }

    /// The next number for a new object of a subvolume, if there is one. It is not taken.
    pub(super) fn number(&self, of: SubvolId) -> Option<Ino> {
        self.state.lock().numbers.get(&of)?.clone().next().map(Ino)
    }

    /// The number is an object's.
    pub(super) fn take_number(&self, of: SubvolId) {
        self.state.lock().numbers.get_mut(&of).and_then(Iterator::next);
    }

    /// These numbers are this client's.
    pub(super) fn give_numbers(&self, of: SubvolId, numbers: Range<u64>) {
        let given = &mut self.state.lock().numbers;
        given.retain(|_, left| !left.is_empty());
        if given.len() >= SERIES_MAX {
            // The first one is mostly that which is mounted.
            given.pop_last();
        }
        given.insert(of, numbers);
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::time::Timestamp;
    use gabion_fs::{Caller, Privileges, WriteAt};
    use gabion_link::message::Call;

    use super::*;

    /// A client that always has something that is not durable, and syncs one file after the other.
    #[test]
    fn what_was_synced_is_not_remembered_for_longer_than_what_was_changed_is_kept() {
        let pending = Pending::default();
        let write = |number| {
            let file = FileId::new(SubvolId(1), Ino(number));
            let (at, privileges, bytes) = (WriteAt::Offset(0), Privileges::Keep, Vec::new());
            let call = Call::Write { file, at, privileges, bytes: bytes.into() };
            let (now, caller) = (Timestamp::new(1, 0), Caller::superuser());
            let (order, made) = (0, None);
            let change = Change { number: ChangeNumber(0), order, now, made, caller, call };
            (file, pending.push(1, vec![file], change, |change| change))
        };
        let (_, mut before) = write(0);
        for number in 1..1000 {
            let (file, change) = write(number);
            pending.synced(Some(file), pending.order());
            pending.durable(before.number, &[]);
            before = change;
            assert!(pending.kept() > 0);
        }
        assert!(pending.state.lock().synced.files() <= 2);
    }
}
