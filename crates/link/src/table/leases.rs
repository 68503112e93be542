//! The leases that one client has on one object.

use std::collections::BTreeMap;

use gabion_map::LockMode;

use super::{Keep, RevokeId};
use crate::range::{KeyRange, RangeSet};

/// One client's leases on one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    pub(super) shared: RangeSet,
    pub(super) exclusive: RangeSet,
    /// What it was told to give up and has not been granted again since.
    pub(super) revoked: BTreeMap<RevokeId, (RangeSet, Keep)>,
}

impl Leases {
    pub(super) fn stand_against(&self, range: &KeyRange, mode: LockMode) -> bool {
        self.exclusive.overlaps(range) || mode == LockMode::Exclusive && self.shared.overlaps(range)
    }

    pub(super) fn allow(&self, range: &KeyRange, mode: LockMode) -> bool {
        match mode {
            LockMode::Exclusive => self.exclusive.covers(range),
            LockMode::Shared => {
                self.exclusive.gaps(range).iter().all(|gap| self.shared.covers(gap))
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.exclusive.is_empty()
    }

    /// The parts of `range` that it was not told to give up yet.
    pub(super) fn not_revoked(&self, range: KeyRange) -> Vec<KeyRange> {
        let sets = self.revoked.values();
        let without = |parts: Vec<KeyRange>, (set, _): &(RangeSet, Keep)| {
            parts.iter().flat_map(|part| set.gaps(part)).collect()
        };
        sets.fold(vec![range], without)
    }

    pub(super) fn grant(&mut self, range: &KeyRange, mode: LockMode) {
        match mode {
            LockMode::Shared => self.shared.insert(range),
            LockMode::Exclusive => {
                self.shared.remove(range);
                self.exclusive.insert(range);
            }
        }
        // The client answers what it was told before it learns of this, or knows of this when it
        // is told; in both cases its answer does not speak of this lease.
        for (set, _) in self.revoked.values_mut() {
            set.remove(range);
        }
    }

    pub(super) fn give_up(&mut self, range: &KeyRange, keep: Keep) {
        match keep {
            Keep::Nothing => self.shared.remove(range),
            Keep::Shared => {
                for part in self.exclusive.parts(range) {
                    self.shared.insert(&part);
                }
            }
        }
        self.exclusive.remove(range);
    }
}
