//! Accepted bytes that count against a quota before any item has them.
//!
//! ```text
//!   blocks of a file    | item | item |  --  |  --  | item |
//!   accepted                   [====================)
//!   owed                              [======)               charged when they were accepted
//! ```
//!
//! A block is charged once, however often it is overwritten, until it is in an item or is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::sync::Mutex;

use super::{Delta, Terms, Usage};
use crate::error::MapError;

/// Blocks of one file that are charged although no item has them: accepted bytes.
#[derive(Default)]
pub struct Owed {
    owed: Mutex<Ranges>,
}

#[derive(Default)]
struct Ranges {
    /// Whom they are charged to.
    usage: Option<Arc<Usage>>,
    /// Behind the last block, by the first one. They do not touch each other.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// The parts of blocks `from..to` that are not in here.
    fn missing(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let before = self.ranges.range(..=from).next_back();
        let mut at = before.map_or(from, |(_, end)| from.max(*end));
        let mut missing = Vec::new();
        for (first, end) in self.ranges.range(from..to) {
            missing.extend((at < *first).then_some((at, *first)));
            at = at.max(*end);
        }
        missing.extend((at < to).then_some((at, to)));
        missing
    }

    /// Takes blocks `from..to` out, and says how many of them were in here.
    fn remove(&mut self, from: u64, to: u64) -> u64 {
        let before = self.ranges.range(..from).next_back().map(|(first, end)| (*first, *end));
        let within: Vec<_> = self.ranges.range(from..to).map(|(f, e)| (*f, *e)).collect();
        let mut removed = 0;
        for (first, end) in before.filter(|(_, end)| *end > from).into_iter().chain(within) {
            self.ranges.remove(&first);
            if first < from {
                self.ranges.insert(first, from);
            }
            if end > to {
                self.ranges.insert(to, end);
            }
            removed += end.min(to) - first.max(from);
        }
        removed
    }
}

impl Owed {
    /// Charges `usage` for those of `ranges` (blocks, past the last) that are not charged yet.
    pub(crate) fn charge(
        &self,
        usage: &Arc<Usage>,
        ranges: &[(u64, u64)],
        terms: Terms<'_>,
    ) -> Result<(), MapError> {
        let mut owed = self.owed.lock();
        if !owed.usage.as_ref().is_some_and(|now| Arc::ptr_eq(now, usage)) {
            owed.end();
            owed.usage = Some(Arc::clone(usage));
        }
        let missing = ranges.iter().flat_map(|(from, to)| owed.missing(*from, *to));
        let missing: Vec<_> = missing.collect();
        let blocks = missing.iter().map(|(from, to)| (to - from) as i64).sum();
        usage.take(Delta { blocks, objects: 0 }, terms)?;
        owed.ranges.extend(missing);
        Ok(())
    }

    /// Blocks `from..to` are in items now, or no longer wait.
    pub(crate) fn forget(&self, from: u64, to: u64) {
        let mut owed = self.owed.lock();
        let removed = owed.remove(from, to);
        if let Some(usage) = owed.usage.as_ref().filter(|_| removed > 0) {
            usage.release(removed, 0);
        }
    }
}

impl Ranges {
    fn end(&mut self) {
        let removed = self.remove(0, u64::MAX);
        if let Some(usage) = self.usage.take() {
            usage.release(removed, 0);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.owed.lock().end();
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::rng::Rng;

    use super::super::tests::usage;
    use super::*;

    #[test]
    fn blocks_are_charged_once_and_given_back_once() {
        let mut rng = Rng::new(1);
        let usage = usage(1 << 20);
        let owed = Owed::default();
        let mut model = [false; 300];
        for _ in 0..3000 {
            let (a, b) = (rng.below(300), rng.below(300));
            let (from, to) = (a.min(b), a.max(b) + 1);
            let charges = rng.chance(1, 2);
            match charges {
                true => owed.charge(&usage, &[(from, to)], Terms::default()).expect("room for all"),
                false => owed.forget(from, to),
            }
            model[from as usize..(to as usize).min(300)].fill(charges);
            let blocks = model.iter().filter(|is_owed| **is_owed).count() as u64;
            assert_eq!(usage.state.lock().reserved_blocks, blocks);
        }
        drop(owed);
        assert!(!usage.is_waited_for());
    }
}
