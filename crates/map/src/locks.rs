//! Locks on objects, held by an operation from its first touch to the applying of its changes.
//!
//! Objects share a fixed number of slots, so locking allocates nothing; two objects that meet in
//! one slot only wait for each other needlessly. An operation holds a slot at most once, in one
//! mode.
//!
//! Deadlock is impossible: while an operation runs it only *tries* locks. If that fails, it gives
//! up everything, takes all slots it is known to need in ascending order, waiting, and runs again
//! ([`Held::acquire`]).
//!
//! A shared lock becomes an exclusive one on the way if nothing has changed since it was taken,
//! which a count in each slot tells: what the operation has read is still true then.

use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::key::FileId;
use crate::memtable::spread;
use crate::txn::LockMode;

const SLOTS: usize = 4096;

/// The locks of all objects.
pub struct LockTable {
    slots: Box<[Slot]>,
}

/// Counts what may have changed the slot's objects: exclusive locks, and bytes that were accepted
/// under shared ones.
type Slot = RwLock<AtomicU64>;

enum Guard<'a> {
    /// With the slot's count when it was taken.
    Shared(RwLockReadGuard<'a, AtomicU64>, u64),
    Exclusive(#[allow(dead_code, reason = "held for its drop")] RwLockWriteGuard<'a, AtomicU64>),
    /// It was shared and could not become exclusive.
    Lost,
}

impl<'a> Guard<'a> {
    fn shared(guard: RwLockReadGuard<'a, AtomicU64>) -> Self {
        let seen = guard.load(Ordering::Acquire);
        Self::Shared(guard, seen)
    }

    fn exclusive(mut guard: RwLockWriteGuard<'a, AtomicU64>) -> Self {
        *guard.get_mut() += 1;
        Self::Exclusive(guard)
    }

    /// Whether it is exclusive now. If not, whatever it protected may have changed.
    fn upgrade(&mut self, slot: &'a Slot) -> bool {
        match std::mem::replace(self, Self::Lost) {
            Self::Lost => return false,
            Self::Exclusive(guard) => *self = Self::Exclusive(guard),
            Self::Shared(guard, seen) => {
                drop(guard);
                match slot.try_write() {
                    Some(guard) if guard.load(Ordering::Acquire) == seen => {
                        *self = Self::exclusive(guard)
                    }
                    _ => return false,
                }
            }
        }
        true
    }
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
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect() }
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
                LockMode::Shared => Guard::shared(lock.read()),
                LockMode::Exclusive => Guard::exclusive(lock.write()),
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
                Guard::Shared(..) | Guard::Lost => LockMode::Shared,
                Guard::Exclusive(_) => LockMode::Exclusive,
            };
            wanted.add_slot(*slot, mode);
        }
    }

    /// Says that `file`, which is locked, is changed under a shared lock, too.
    pub fn touch(&self, file: FileId) {
        let slot = LockTable::slot(file);
        for (held, guard) in &self.guards {
            if let (true, Guard::Shared(guard, _)) = (*held == slot, guard) {
                guard.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Whether `file` is locked in `mode` now, after trying to lock it if it was not.
    pub fn ensure(&mut self, file: FileId, mode: LockMode) -> bool {
        let slot = LockTable::slot(file);
        let lock = &self.table.slots[slot];
        for (held, guard) in &mut self.guards {
            if *held == slot {
                return match (mode, &guard) {
                    (LockMode::Shared, Guard::Lost) => false,
                    (LockMode::Shared, _) => true,
                    (LockMode::Exclusive, _) => guard.upgrade(lock),
                };
            }
        }
        let guard = match mode {
            LockMode::Shared => lock.try_read().map(Guard::shared),
            LockMode::Exclusive => lock.try_write().map(Guard::exclusive),
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
    fn a_lock_is_upgraded_unless_somebody_else_may_have_changed_something() {
        let table = LockTable::default();
        let file = FileId::new(SubvolId(1), Ino(9));
        let none = Wanted::default();
        let mut held = Held::acquire(&table, &none);
        assert!(held.ensure(file, LockMode::Shared) && held.ensure(file, LockMode::Exclusive));
        assert!(!Held::acquire(&table, &none).ensure(file, LockMode::Shared));
        drop(held);
        // Beside another reader.
        let (mut held, mut other) = (Held::acquire(&table, &none), Held::acquire(&table, &none));
        assert!(held.ensure(file, LockMode::Shared) && other.ensure(file, LockMode::Shared));
        assert!(!held.ensure(file, LockMode::Exclusive));
        // What it had read may have changed since it gave up the shared lock.
        drop(other);
        assert!(!held.ensure(file, LockMode::Exclusive));
        let mut wanted = Wanted::default();
        held.remember(&mut wanted);
        wanted.add(file, LockMode::Exclusive);
        drop(held);
        let mut held = Held::acquire(&table, &wanted);
        assert!(held.ensure(file, LockMode::Shared) && held.ensure(file, LockMode::Exclusive));
    }

    #[test]
    fn changes_since_a_shared_lock_was_taken_are_noticed() {
        let table = LockTable::default();
        let file = FileId::new(SubvolId(1), Ino(9));
        let none = Wanted::default();
        let (mut held, mut other) = (Held::acquire(&table, &none), Held::acquire(&table, &none));
        assert!(held.ensure(file, LockMode::Shared) && other.ensure(file, LockMode::Shared));
        other.touch(file);
        drop(other);
        assert!(!held.ensure(file, LockMode::Exclusive) && !held.ensure(file, LockMode::Shared));
    }
}
