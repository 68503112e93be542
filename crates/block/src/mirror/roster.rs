//! Which copies are to be trusted, and what the record says about it.
//!
//! ```text
//!                      an answer is an error           recorded
//!   InSync ---------------------------------> Failing ----------> Stale <------ opened so
//!     ^                                          ^                  | attached
//!     | recorded                  an error       |                  v
//!   Joining <-----------------------------------------------    Syncing
//!     |            nothing is missing any more                      | an error
//!     +--- an error: Failing                                        +-----> Stale
//!
//!   Stale, Syncing, InSync <-- the administrator --> Suspended
//! ```
//!
//! - While a copy is `Failing` nothing that it lacks is acknowledged: the record still trusts it.
//! - The last copy that is in sync never becomes `Failing`: without it there is nothing to trust.
//! - One change of the record is under way at a time, and always tells of all copies.

use super::Order;
use crate::copies::{COPIES_MAX, CopyIndex, CopySet};
use crate::record::CopyState;

/// What a copy is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Has everything; reads may use it.
    InSync,
    /// Is not used any more, but the record does not know yet.
    Failing,
    /// Lacks something, and is not connected.
    Stale,
    /// Lacks something, gets every write, and is being brought up to date.
    Syncing,
    /// Lacks nothing any more, but the record does not know yet.
    Joining,
    /// Not used because somebody said so.
    Suspended,
    /// Taken out.
    Removed,
}

#[derive(Debug)]
pub(super) struct Roster {
    trust: Vec<Trust>,
    /// What the record says.
    recorded: Vec<CopyState>,
    /// What it is being told.
    in_flight: Option<Vec<CopyState>>,
    /// Whether the record may say something else, after an answer that never came.
    doubtful: bool,
    /// Stale copies of which nothing can be used.
    full: CopySet,
    /// Copies that stay away when they become stale.
    suspended: CopySet,
    /// Copies that are no more when they have become stale.
    removed: CopySet,
}

impl Roster {
    pub(super) fn new(recorded: &[CopyState]) -> Self {
        let trust = |state: &CopyState| match state {
            CopyState::InSync => Trust::InSync,
            CopyState::Stale { .. } => Trust::Stale,
            CopyState::Suspended { .. } => Trust::Suspended,
            CopyState::Removed => Trust::Removed,
        };
        let numbered = || recorded.iter().enumerate().map(|(n, state)| (CopyIndex(n as u8), state));
        let with = |wanted: fn(&CopyState) -> bool| {
            numbered().filter(|(_, state)| wanted(state)).map(|(copy, _)| copy).collect()
        };
        Self {
            trust: recorded.iter().map(trust).collect(),
            recorded: recorded.to_vec(),
            in_flight: None,
            doubtful: false,
            full: with(|state| state.is_full()),
            suspended: with(|state| matches!(state, CopyState::Suspended { .. })),
            removed: with(|state| *state == CopyState::Removed),
        }
    }

    pub(super) fn trust(&self, copy: CopyIndex) -> Trust {
        self.trust[copy.at()]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = CopyIndex> + use<> {
        (0..self.trust.len() as u8).map(CopyIndex)
    }

    fn are(&self, wanted: &[Trust]) -> CopySet {
        self.all().filter(|copy| wanted.contains(&self.trust(*copy))).collect()
    }

    /// Copies that are not used, and of which the record does not know that.
    pub(super) fn failing(&self) -> CopySet {
        self.are(&[Trust::Failing])
    }

    /// Copies that reads may use.
    pub(super) fn in_sync(&self) -> CopySet {
        self.are(&[Trust::InSync])
    }

    /// Copies that are being brought up to date, or have just been.
    pub(super) fn catching_up(&self) -> CopySet {
        self.are(&[Trust::Syncing, Trust::Joining])
    }

    /// Copies that lack nothing any more, of which the record does not know that.
    pub(super) fn joining(&self) -> CopySet {
        self.are(&[Trust::Joining])
    }

    /// Copies that get every write.
    pub(super) fn written_to(&self) -> CopySet {
        self.are(&[Trust::InSync, Trust::Syncing, Trust::Joining])
    }

    /// Copies that do not get writes, and want to have them some day.
    pub(super) fn left_out(&self) -> CopySet {
        self.are(&[Trust::Failing, Trust::Stale, Trust::Suspended])
    }

    /// Copies of which the record may say that they have everything.
    pub(super) fn trusted_by_record(&self) -> CopySet {
        let in_sync = |states: &[CopyState], copy: CopyIndex| states[copy.at()].is_in_sync();
        let flying = |copy| self.in_flight.as_ref().is_some_and(|states| in_sync(states, copy));
        self.all().filter(|copy| in_sync(&self.recorded, *copy) || flying(*copy)).collect()
    }

    /// Whether `copy` may be given up.
    pub(super) fn is_last(&self, copy: CopyIndex) -> bool {
        self.in_sync().without(CopySet::only(copy)).is_empty()
    }

    pub(super) fn is_full(&self, copy: CopyIndex) -> bool {
        self.full.contains(copy)
    }

    /// Nothing on `copy` can be used; or, if `full` is not so, all it lacks is in the bitmap.
    pub(super) fn set_full(&mut self, copy: CopyIndex, full: bool) {
        match full {
            true => self.full.insert(copy),
            false => {
                self.full.remove(copy);
            }
        }
    }

    /// Whether the record knows for certain whether `copy` is of any use.
    pub(super) fn fullness_is_recorded(&self, copy: CopyIndex) -> bool {
        let full = self.is_full(copy);
        let says = |states: &Vec<CopyState>| states[copy.at()].is_full() == full;
        says(&self.recorded) && self.in_flight.as_ref().is_none_or(says) && !self.doubtful
    }

    /// `copy` is not used any more.
    pub(super) fn give_up(&mut self, copy: CopyIndex) {
        self.trust[copy.at()] = match self.trust(copy) {
            Trust::InSync | Trust::Joining => Trust::Failing,
            Trust::Syncing => self.away(copy),
            other => other,
        };
        self.settle();
    }

    /// What a copy is once it is neither trusted nor written to.
    fn away(&self, copy: CopyIndex) -> Trust {
        match () {
            () if self.removed.contains(copy) => Trust::Removed,
            () if self.suspended.contains(copy) => Trust::Suspended,
            () => Trust::Stale,
        }
    }

    /// Whether the order is about copies that there are, and about a place that is free.
    pub(super) fn fits(&self, order: Order) -> bool {
        match order {
            Order::Suspend(copy) | Order::Resume(copy) | Order::TakeOut(copy) => {
                copy.at() < self.trust.len()
            }
            Order::PutIn(copy) => match self.trust.get(copy.at()) {
                Some(trust) => *trust == Trust::Removed,
                None => copy.at() == self.trust.len() && copy.at() < COPIES_MAX,
            },
            Order::Compare | Order::Grow(_) => true,
        }
    }

    /// The administrator wants `copy` to stay away.
    pub(super) fn suspend(&mut self, copy: CopyIndex) {
        self.suspended.insert(copy);
        self.leave(copy);
    }

    /// The administrator takes `copy` out.
    pub(super) fn take_out(&mut self, copy: CopyIndex) {
        self.removed.insert(copy);
        self.full.insert(copy);
        self.leave(copy);
    }

    fn leave(&mut self, copy: CopyIndex) {
        match self.trust(copy) {
            Trust::Stale | Trust::Suspended => self.trust[copy.at()] = self.away(copy),
            _ => self.give_up(copy),
        }
    }

    /// There is a new disk at the place of `copy`, which was taken out or is one more than there
    /// were.
    pub(super) fn put_in(&mut self, copy: CopyIndex) {
        if copy.at() == self.trust.len() {
            self.trust.push(Trust::Removed);
            self.recorded.push(CopyState::Removed);
            if let Some(flying) = &mut self.in_flight {
                flying.push(CopyState::Removed);
            }
        }
        assert_eq!(self.trust(copy), Trust::Removed, "{copy} is put in");
        self.removed.remove(copy);
        self.suspended.remove(copy);
        self.full.insert(copy);
        self.trust[copy.at()] = Trust::Stale;
    }

    /// The administrator wants `copy` back.
    pub(super) fn resume(&mut self, copy: CopyIndex) {
        self.suspended.remove(copy);
        if self.trust(copy) == Trust::Suspended {
            self.trust[copy.at()] = Trust::Stale;
        }
    }

    pub(super) fn attached(&mut self, copy: CopyIndex) {
        assert_eq!(self.trust(copy), Trust::Stale, "{copy} is attached");
        self.trust[copy.at()] = Trust::Syncing;
    }

    pub(super) fn caught_up(&mut self, copy: CopyIndex) {
        assert_eq!(self.trust(copy), Trust::Syncing, "{copy} has caught up");
        self.trust[copy.at()] = Trust::Joining;
    }

    fn wanted(&self, copy: CopyIndex) -> CopyState {
        let full = self.is_full(copy);
        match self.trust(copy) {
            Trust::InSync | Trust::Joining => CopyState::InSync,
            _ if self.removed.contains(copy) => CopyState::Removed,
            _ if self.suspended.contains(copy) => CopyState::Suspended { full },
            _ => CopyState::Stale { full },
        }
    }

    /// What the record is to say from now on, if it does not say so and nothing is under way.
    pub(super) fn next_record(&mut self) -> Option<Vec<CopyState>> {
        let mut copies = self.all();
        let is_right = copies.all(|copy| self.recorded[copy.at()] == self.wanted(copy));
        if self.in_flight.is_some() || (is_right && !self.doubtful) {
            return None;
        }
        let wanted: Vec<_> = self.all().map(|copy| self.wanted(copy)).collect();
        self.in_flight = Some(wanted.clone());
        Some(wanted)
    }

    /// The record says now what it was last told.
    pub(super) fn recorded(&mut self) {
        self.recorded = self.in_flight.take().expect("only what was sent is answered");
        self.doubtful = false;
        self.settle();
    }

    /// It is not known what the record says; it is told again.
    pub(super) fn not_recorded(&mut self) {
        // It may have been told: then it trusts what both say, until it is told again.
        let flying = self.in_flight.take().expect("only what was sent is answered");
        for (recorded, flying) in self.recorded.iter_mut().zip(flying) {
            if flying.is_in_sync() {
                *recorded = flying;
            }
        }
        self.doubtful = true;
        self.settle();
    }

    fn settle(&mut self) {
        let trusted = self.trusted_by_record();
        let certain = self.in_flight.is_none() && !self.doubtful;
        for copy in self.all() {
            let recorded = self.recorded[copy.at()];
            self.trust[copy.at()] = match self.trust(copy) {
                Trust::Failing if !trusted.contains(copy) => self.away(copy),
                Trust::Joining if recorded.is_in_sync() && certain => Trust::InSync,
                other => other,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE: CopyState = CopyState::Stale { full: false };
    const A: CopyIndex = CopyIndex(0);
    const B: CopyIndex = CopyIndex(1);

    #[test]
    fn a_failed_copy_is_trusted_by_the_record_until_it_was_told() {
        let mut roster = Roster::new(&[CopyState::InSync, CopyState::InSync]);
        roster.give_up(A);
        assert_eq!(roster.trust(A), Trust::Failing);
        assert!(roster.is_last(B));
        assert_eq!(roster.next_record(), Some(vec![STALE, CopyState::InSync]));
        assert!(roster.trusted_by_record().contains(A));
        assert_eq!(roster.next_record(), None, "one change at a time");
        roster.recorded();
        assert_eq!(roster.trust(A), Trust::Stale);
        assert!(!roster.trusted_by_record().contains(A));
    }

    #[test]
    fn a_copy_that_fails_while_it_joins_is_recorded_as_stale_again() {
        let mut roster = Roster::new(&[CopyState::InSync, STALE]);
        roster.attached(B);
        roster.caught_up(B);
        assert_eq!(roster.next_record(), Some(vec![CopyState::InSync; 2]));
        roster.give_up(B);
        assert_eq!(roster.trust(B), Trust::Failing);
        assert!(roster.trusted_by_record().contains(B), "the answer is yet to come");
        roster.recorded();
        assert_eq!(roster.trust(B), Trust::Failing);
        assert_eq!(roster.next_record(), Some(vec![CopyState::InSync, STALE]));
        roster.recorded();
        assert_eq!(roster.trust(B), Trust::Stale);
    }

    #[test]
    fn an_unknown_outcome_counts_as_trusted() {
        let mut roster = Roster::new(&[CopyState::InSync, STALE]);
        roster.attached(B);
        roster.caught_up(B);
        roster.next_record().unwrap();
        roster.not_recorded();
        assert_eq!(roster.trust(B), Trust::Joining);
        roster.give_up(B);
        assert_eq!(roster.trust(B), Trust::Failing);
        assert_eq!(roster.next_record(), Some(vec![CopyState::InSync, STALE]));
    }

    #[test]
    fn a_suspended_copy_comes_back_only_when_it_is_told_to() {
        let mut roster = Roster::new(&[CopyState::InSync, CopyState::InSync]);
        roster.suspend(B);
        let suspended = CopyState::Suspended { full: false };
        assert_eq!(roster.next_record(), Some(vec![CopyState::InSync, suspended]));
        roster.recorded();
        assert_eq!(roster.trust(B), Trust::Suspended);
        roster.resume(B);
        assert_eq!(roster.next_record(), Some(vec![CopyState::InSync, STALE]));
    }
}
