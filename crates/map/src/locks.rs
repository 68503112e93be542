//! Locks on objects, held by an operation from its first touch to the applying of its changes.
//!
//! Objects share a fixed number of slots, so locking allocates nothing; two objects that meet in
//! one slot only wait for each other needlessly. An operation holds a slot at most once, in one
//! mode.
//!
//! Deadlock is impossible: while an operation runs it only *tries* locks. If that fails, it gives
//! up everything, takes all slots it is known to need in ascending order, waiting, and runs again
//! ([`Held::acquire`]).

use gabion_base::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::key::FileId;
use crate::memtable::spread;
use crate::txn::LockMode;

const SLOTS: usize = 4096;

/// The locks of all objects.
pub struct LockTable {
    slots: Box<[RwLock<()>]>,
}

enum Guard<'a> {
    Shared(#[allow(dead_code, reason = "held for its drop")] RwLockReadGuard<'a, ()>),
    Exclusive(#[allow(dead_code, reason = "held for its drop")] RwLockWriteGuard<'a, ()>),
}

/// Slots that an operation is known to need, kept from one attempt to the next.
#[derive(Default)]
pub struct Wanted {
    slots: Vec<(usize, LockMode)>,
}

/// The locks that an operation holds.
pub struct Held<'a> {
    table: &'a LockTable,
    guards: Vec<(usize, Guard<'a>)>,
}

impl Default for LockTable {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| RwLock::new(())).collect() }
    }
}

impl LockTable {
    fn slot(file: FileId) -> usize {
        (spread(file) >> 40) as usize % SLOTS
    }
}

impl Wanted {
    /// Remembers that `file` is needed in `mode`.
    pub fn add(&mut self, file: FileId, mode: LockMode) {
        self.add_slot(LockTable::slot(file), mode);
    }

    fn add_slot(&mut self, slot: usize, mode: LockMode) {
        match self.slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(index) => self.slots[index].1 = self.slots[index].1.max(mode),
            Err(index) => self.slots.insert(index, (slot, mode)),
        }
    }
}

impl<'a> Held<'a> {
    /// Waits for all that is wanted.
    pub fn acquire(table: &'a LockTable, wanted: &Wanted) -> Self {
        let lock = |(slot, mode): &(usize, LockMode)| {
            let lock = &table.slots[*slot];
            let guard = match mode {
                LockMode::Shared => Guard::Shared(lock.read()),
                LockMode::Exclusive => Guard::Exclusive(lock.write()),
            };
            (*slot, guard)
        };
        // `Wanted` is sorted by slot, which makes this the one order in which anybody waits.
        Self { table, guards: wanted.slots.iter().map(lock).collect() }
    }

    /// Adds all that is held to what is wanted at the next attempt.
    pub fn remember(&self, wanted: &mut Wanted) {
        for (slot, guard) in &self.guards {
            let mode = match guard {
                Guard::Shared(_) => LockMode::Shared,
                Guard::Exclusive(_) => LockMode::Exclusive,
            };
            wanted.add_slot(*slot, mode);
        }
    }

    /// Whether `file` is locked in `mode` now, after trying to lock it if it was not.
    pub fn ensure(&mut self, file: FileId, mode: LockMode) -> bool {
        let slot = LockTable::slot(file);
        for (held, guard) in &self.guards {
            if *held == slot {
                return mode == LockMode::Shared || matches!(guard, Guard::Exclusive(_));
            }
        }
        let lock = &self.table.slots[slot];
        let guard = match mode {
            LockMode::Shared => lock.try_read().map(Guard::Shared),
            LockMode::Exclusive => lock.try_write().map(Guard::Exclusive),
        };
        let Some(guard) = guard else { return false };
        self.guards.push((slot, guard));
        true
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    #[test]
    fn a_lock_is_upgraded_only_by_starting_again() {
        let table = LockTable::default();
        let file = FileId::new(SubvolId(1), Ino(9));
        let mut wanted = Wanted::default();
        let mut held = Held::acquire(&table, &wanted);
        assert!(held.ensure(file, LockMode::Shared));
        assert!(!held.ensure(file, LockMode::Exclusive));
        wanted.add(file, LockMode::Shared);
        wanted.add(file, LockMode::Exclusive);
        drop(held);
        let mut held = Held::acquire(&table, &wanted);
        assert!(held.ensure(file, LockMode::Shared) && held.ensure(file, LockMode::Exclusive));
        assert!(!Held::acquire(&table, &Wanted::default()).ensure(file, LockMode::Shared));
    }
}
