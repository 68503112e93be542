//! Which copy is asked for a read.
//!
//! - Whoever reads on near where a copy was read last stays with that copy for [`STRETCH`]: its
//!   disk has read ahead, and one copy that has much to send wakes fewer threads than two.
//! - Otherwise it is the copy with the fewest reads in flight; of several the one that was asked
//!   last, so that whoever reads one thing after the other meets one copy.

use crate::copies::{COPIES_MAX, CopyIndex, CopySet};

/// Blocks of a stream that one copy is asked for before another one may have its turn.
const STRETCH: u64 = 2048;
/// How far from the last read a read may begin to be of the same stream: several may be in flight,
/// and come in any order.
const NEAR: u64 = 1024;
/// Reads that a copy may have in flight more than another one because of a stream.
const AHEAD_MAX: u32 = 8;

pub(super) struct Balance {
    copies: [Load; COPIES_MAX],
    last: CopyIndex,
}

#[derive(Clone, Copy, Default)]
struct Load {
    in_flight: u32,
    /// Where the last read has ended.
    end: u64,
    /// Blocks that are left of the stretch.
    left: u64,
}

impl Default for Balance {
    fn default() -> Self {
        Self { copies: [Load::default(); COPIES_MAX], last: CopyIndex(0) }
    }
}

impl Balance {
    /// Chooses a copy of these for `count` blocks from `addr` on, and takes the read for begun.
    pub(super) fn begin(&mut self, among: CopySet, addr: u64, count: u64) -> Option<CopyIndex> {
        let fewest = among.iter().map(|copy| self.copies[copy.at()].in_flight).min()?;
        let goes_on = among.iter().find(|copy| {
            let copy = &self.copies[copy.at()];
            let is_behind = copy.in_flight >= fewest + AHEAD_MAX;
            copy.left >= count && copy.end.abs_diff(addr) <= NEAR && !is_behind
        });
        let load = |copy: &CopyIndex| (self.copies[copy.at()].in_flight, *copy != self.last);
        let chosen = match goes_on {
            Some(copy) => copy,
            None => among.iter().min_by_key(load)?,
        };
        let copy = &mut self.copies[chosen.at()];
        if goes_on.is_none() {
            copy.left = STRETCH;
        }
        copy.left = copy.left.saturating_sub(count);
        copy.end = addr + count;
        copy.in_flight += 1;
        self.last = chosen;
        Some(chosen)
    }

    /// A read has ended.
    pub(super) fn end(&mut self, copy: CopyIndex) {
        let in_flight = &mut self.copies[copy.at()].in_flight;
        *in_flight = in_flight.saturating_sub(1);
    }

    /// A copy is gone, and with it all that it was asked for.
    pub(super) fn forget(&mut self, copy: CopyIndex) {
        self.copies[copy.at()] = Load::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 256;

    fn both() -> CopySet {
        CopySet::only(CopyIndex(0)).or(CopySet::only(CopyIndex(1)))
    }

    #[test]
    fn a_stream_stays_with_a_copy_for_a_stretch_and_comes_to_all() {
        let mut balance = Balance::default();
        let mut asked = Vec::new();
        for step in 0..32_u64 {
            // Four in flight, of which two and two have changed places on the way.
            let copy = balance.begin(both(), (step ^ 1) * MIB, MIB).unwrap();
            asked.push(copy);
            if step >= 3 {
                balance.end(asked[step as usize - 3]);
            }
        }
        let stretches: Vec<_> = asked.chunk_by(|one, other| one == other).map(<[_]>::len).collect();
        assert_eq!(stretches, [8, 8, 8, 8]);
        assert_ne!(asked[0], asked[8]);
    }

    #[test]
    fn reads_of_anything_are_spread_and_a_copy_that_is_slow_loses_its_stream() {
        let mut balance = Balance::default();
        let mut counts = [0; 2];
        for step in 0..40 {
            counts[balance.begin(both(), step * 10_000, 1).unwrap().at()] += 1;
        }
        assert_eq!(counts, [20, 20]);
        let mut balance = Balance::default();
        let asked: Vec<_> =
            (0..12).map(|step| balance.begin(both(), step * 4, 4).unwrap()).collect();
        let first = asked[0];
        assert!(asked[..8].iter().all(|copy| *copy == first) && asked[8] != first);
    }

    #[test]
    fn who_reads_one_thing_after_the_other_meets_one_copy() {
        let mut balance = Balance::default();
        for step in 0..40 {
            let copy = balance.begin(both(), step * 10_000, 1).unwrap();
            assert_eq!(copy, CopyIndex(0));
            balance.end(copy);
        }
        let other = CopySet::only(CopyIndex(1));
        assert_eq!(balance.begin(other, 0, 1), Some(CopyIndex(1)));
        assert_eq!(balance.begin(CopySet::EMPTY, 0, 1), None);
    }
}
