//! Who writes to which blocks, so that a write of less than a block does not undo another one.
//!
//! - Writers of whole blocks share them: a client that lets such writes overlap gets any of them.
//! - Whoever reads a block, changes a part of it and writes it back has it alone.
//! - Each waits only for conflicts that came before it, so nobody waits for ever and there is no
//!   cycle of waiting.
//!
//! There are as many entries as requests in flight, so that a list is all the structure needed.

use gabion_base::sync::{Condvar, Mutex};

/// The ranges in use, and those waited for.
#[derive(Default)]
pub(super) struct Ranges {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of arrival.
    entries: Vec<Entry>,
    next: u64,
    waiters: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u64,
    start: u64,
    end: u64,
    sharing: Sharing,
}

/// Whether others may write to the range as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    Shared,
    Alone,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        overlap && (self.sharing == Sharing::Alone || other.sharing == Sharing::Alone)
    }
}

/// A range in use, until it is dropped.
pub(super) struct Held<'a> {
    ranges: &'a Ranges,
    id: u64,
}

impl Ranges {
    /// Lets somebody write to the blocks from `start` up to `end` until [`Ranges::leave`], if that
    /// is possible now.
    pub(super) fn try_share(&self, start: u64, end: u64) -> Option<u64> {
        let mut state = self.state.lock();
        let entry = Entry { id: state.next, start, end, sharing: Sharing::Shared };
        if state.entries.iter().any(|other| other.conflicts(&entry)) {
            return None;
        }
        state.next += 1;
        state.entries.push(entry);
        Some(entry.id)
    }

    /// Ends what [`Ranges::try_share`] has begun.
    pub(super) fn leave(&self, id: u64) {
        let mut state = self.state.lock();
        // Keeps the order, which the waiting depends on.
        state.entries.retain(|entry| entry.id != id);
        if state.waiters > 0 {
            self.released.notify_all();
        }
    }

    /// Waits until the blocks from `start` up to `end` may be written to.
    pub(super) fn enter(&self, start: u64, end: u64, sharing: Sharing) -> Held<'_> {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        let entry = Entry { id, start, end, sharing };
        state.entries.push(entry);
        while state.entries.iter().take_while(|e| e.id != id).any(|e| e.conflicts(&entry)) {
            state.waiters += 1;
            self.released.wait(&mut state);
            state.waiters -= 1;
        }
        Held { ranges: self, id }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ranges.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn whole_blocks_are_shared_and_parts_of_them_are_not() {
        let ranges = Ranges::default();
        let whole = ranges.enter(0, 4, Sharing::Shared);
        let shared = ranges.try_share(3, 5).expect("such writers share");
        ranges.leave(shared);
        drop(ranges.enter(2, 3, Sharing::Shared));
        drop(ranges.enter(4, 5, Sharing::Alone));
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let part = ranges.enter(3, 4, Sharing::Alone);
                sender.send("part").unwrap();
                drop(part);
            });
            while ranges.state.lock().waiters == 0 {
                thread::yield_now();
            }
            assert!(receiver.try_recv().is_err());
            assert_eq!(ranges.try_share(3, 4), None, "somebody waits for it");
            drop(whole);
            assert_eq!(receiver.recv(), Ok("part"));
        });
        assert!(ranges.state.lock().entries.is_empty());
    }
}
