//! Changes that were made here and are on their way to the server.
//!
//! ```text
//!   made --sent--> under way --Applied--> done
//!                     | Failed, or the session ends
//!                     v
//!                   lost: the next fsync of its files says so
//! ```
//!
//! How much may be under way is the server's word: it has room for that. Who makes more waits.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::ChangeNumber;
use gabion_map::FileId;

/// A change under way.
struct Entry {
    number: ChangeNumber,
    bytes: u64,
    files: Vec<FileId>,
}

#[derive(Default)]
struct State {
    last: ChangeNumber,
    entries: VecDeque<Entry>,
    bytes: u64,
    credit: u64,
    /// The last change under way of each file that has any.
    touched: BTreeMap<FileId, ChangeNumber>,
    /// For new objects.
    numbers: Range<u64>,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    fewer: Condvar,
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

impl Pending {
    /// Waits until `bytes` more may be under way, for `patience` at most.
    pub(super) fn wait_for_room(&self, bytes: u64, patience: Duration) -> Room {
        let mut state = self.state.lock();
        loop {
            if bytes > state.credit {
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

    /// Takes a change that touches `files`, and gives its number.
    pub(super) fn push(&self, bytes: u64, files: Vec<FileId>) -> ChangeNumber {
        let mut state = self.state.lock();
        state.last.0 += 1;
        let number = state.last;
        for file in &files {
            state.touched.insert(*file, number);
        }
        state.bytes += bytes;
        state.entries.push_back(Entry { number, bytes, files });
        number
    }

    /// The last change of all.
    pub(super) fn last(&self) -> ChangeNumber {
        let state = self.state.lock();
        if state.entries.is_empty() { ChangeNumber(0) } else { state.last }
    }

    /// The last change under way that touches one of `files`; 0 if there is none.
    pub(super) fn last_of(&self, files: &[FileId]) -> ChangeNumber {
        let state = self.state.lock();
        let of = |file| state.touched.get(file).copied();
        files.iter().filter_map(of).max().unwrap_or_default()
    }

    /// The files of the change, if it is under way.
    pub(super) fn files_of(&self, number: ChangeNumber) -> Vec<FileId> {
        let state = self.state.lock();
        let found = state.entries.iter().find(|entry| entry.number == number);
        found.map_or_else(Vec::new, |entry| entry.files.clone())
    }

    /// All up to `number` are applied.
    pub(super) fn applied(&self, number: ChangeNumber, credit: u64) {
        let mut state = self.state.lock();
        while let Some(entry) = state.entries.pop_front_if(|entry| entry.number <= number) {
            state.bytes -= entry.bytes;
            for file in entry.files {
                if state.touched.get(&file) == Some(&entry.number) {
                    state.touched.remove(&file);
                }
            }
        }
        state.credit = credit;
        drop(state);
        self.fewer.notify_all();
    }

    pub(super) fn set_credit(&self, credit: u64) {
        self.state.lock().credit = credit;
        self.fewer.notify_all();
    }

    /// The session has ended: the files of what was under way, which is lost with it, and how many
    /// changes that were.
    pub(super) fn lose(&self) -> (Vec<FileId>, usize) {
        let mut state = self.state.lock();
        let State { entries, touched, .. } = std::mem::take(&mut *state);
        drop(state);
        self.fewer.notify_all();
        (touched.into_keys().collect(), entries.len())
    }

    /// Changes and bytes that are under way.
    pub(super) fn under_way(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.entries.len(), state.bytes)
    }

    /// The next number for a new object, if there is one. It is not taken.
    pub(super) fn number(&self) -> Option<Ino> {
        self.state.lock().numbers.clone().next().map(Ino)
    }

    /// The number is an object's.
    pub(super) fn take_number(&self) {
        self.state.lock().numbers.next();
    }

    /// These numbers are this client's.
    pub(super) fn give_numbers(&self, numbers: Range<u64>) {
        self.state.lock().numbers = numbers;
    }
}
