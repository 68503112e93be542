//! Who writes where: no two writers of a mirror are at one block at the same time.
//!
//! Copies that get two writes to one block in different orders would differ for ever. A writer
//! whose blocks are taken waits; so does one whose blocks an earlier waiter wants, so nobody
//! starves.

use std::collections::{BTreeMap, VecDeque};

use super::FlightId;

/// Blocks from `start` to before `end`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// By their starts; they do not overlap.
    taken: BTreeMap<u64, u64>,
    waiting: VecDeque<(Span, FlightId)>,
}

impl Ranges {
    /// Takes `span` for `flight`; if that is not possible now, [`Ranges::release`] tells when.
    pub(super) fn take(&mut self, span: Span, flight: FlightId) -> bool {
        assert!(span.start < span.end, "{span:?}");
        let wanted = self.waiting.iter().any(|(other, _)| other.overlaps(span));
        if wanted || self.is_taken(span) {
            self.waiting.push_back((span, flight));
            return false;
        }
        self.taken.insert(span.start, span.end);
        true
    }

    /// Takes `span` if nobody has or wants any of it.
    pub(super) fn try_take(&mut self, span: Span) -> bool {
        let wanted = self.waiting.iter().any(|(other, _)| other.overlaps(span));
        if wanted || self.is_taken(span) {
            return false;
        }
        self.taken.insert(span.start, span.end);
        true
    }

    /// Lets go of `span`, and gives those whose turn it is.
    pub(super) fn release(&mut self, span: Span) -> Vec<FlightId> {
        let end = self.taken.remove(&span.start);
        assert_eq!(end, Some(span.end), "what is released was taken");
        let mut next = Vec::new();
        let mut still: VecDeque<(Span, FlightId)> = VecDeque::new();
        for (span, flight) in std::mem::take(&mut self.waiting) {
            let wanted = still.iter().any(|(other, _)| other.overlaps(span));
            if wanted || self.is_taken(span) {
                still.push_back((span, flight));
            } else {
                self.taken.insert(span.start, span.end);
                next.push(flight);
            }
        }
        self.waiting = still;
        next
    }

    /// Forgets a waiter.
    pub(super) fn forget(&mut self, flight: FlightId) {
        self.waiting.retain(|(_, waiting)| *waiting != flight);
    }

    fn is_taken(&self, span: Span) -> bool {
        self.taken.range(..span.end).next_back().is_some_and(|(_, end)| *end > span.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn writers_of_one_block_take_turns() {
        let mut ranges = Ranges::default();
        assert!(ranges.take(span(0, 10), FlightId(1)));
        assert!(ranges.take(span(10, 20), FlightId(2)));
        assert!(!ranges.take(span(5, 15), FlightId(3)));
        assert!(!ranges.take(span(9, 10), FlightId(4)), "behind the third");
        assert!(!ranges.try_take(span(14, 30)));
        assert_eq!(ranges.release(span(0, 10)), []);
        assert_eq!(ranges.release(span(10, 20)), [FlightId(3)]);
        assert_eq!(ranges.release(span(5, 15)), [FlightId(4)]);
        assert_eq!(ranges.release(span(9, 10)), []);
        assert!(ranges.try_take(span(0, 100)));
    }

    #[test]
    fn a_forgotten_waiter_holds_nobody_up() {
        let mut ranges = Ranges::default();
        assert!(ranges.take(span(0, 2), FlightId(1)));
        assert!(!ranges.take(span(1, 4), FlightId(2)));
        ranges.forget(FlightId(2));
        assert!(ranges.take(span(2, 4), FlightId(3)));
    }
}
