//! The servers of a filesystem: one serves at a time, and another may take its place.
//!
//! ```text
//!   asked    --welcome-->  used until its connection breaks; then asked first
//!     '------refused, silent, not there--> the next one, at once
//!            after the last one: a rest, and all over again
//! ```
//!
//! One that says that the session has ended is believed only if none of the others goes on with it.

/// How asking a server has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    /// It may be otherwise soon.
    Soon,
    /// It will be the same for a while.
    Lasting,
    /// It does not know the session.
    Gone,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the next one.
    Ask,
    /// Rest before that,
    Rest,
    /// or longer, as none of them will answer otherwise soon.
    RestLong,
    /// The session has ended: ask for a new one.
    BeginAnew,
}

/// Whom to ask next.
#[derive(Debug)]
pub(super) struct Round {
    count: usize,
    at: usize,
    /// So many have been asked in this round.
    asked: usize,
    is_lasting: bool,
    /// The first one that did not know the session.
    gone: Option<usize>,
}

impl Round {
    /// Of `count` servers, beginning with the one at `first`.
    pub(super) fn new(count: usize, first: usize) -> Self {
        assert!(first < count, "server {first} of {count}");
        Self { count, at: first, asked: 0, is_lasting: true, gone: None }
    }

    /// The one to be asked.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// It was asked, and there is no session.
    pub(super) fn failed(&mut self, how: Failing) -> Step {
        self.is_lasting &= how == Failing::Lasting;
        if how == Failing::Gone {
            self.gone.get_or_insert(self.at);
        }
        self.asked += 1;
        self.at = (self.at + 1) % self.count;
        if self.asked < self.count {
            return Step::Ask;
        }
        let (step, next) = match self.gone {
            Some(gone) => (Step::BeginAnew, gone),
            None if self.is_lasting => (Step::RestLong, self.at),
            None => (Step::Rest, self.at),
        };
        *self = Self::new(self.count, next);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_asked_in_turns_and_there_is_a_rest_after_the_last_one() {
        let mut round = Round::new(3, 1);
        for _ in 0..2 {
            let mut asked = Vec::new();
            let steps = [Failing::Soon, Failing::Lasting, Failing::Soon].map(|how| {
                asked.push(round.at());
                round.failed(how)
            });
            assert_eq!(asked, [1, 2, 0]);
            assert_eq!(steps, [Step::Ask, Step::Ask, Step::Rest]);
        }
        let mut alone = Round::new(1, 0);
        assert_eq!(alone.failed(Failing::Soon), Step::Rest);
        assert_eq!(alone.at(), 0);
    }

    #[test]
    fn the_rest_is_longer_where_nobody_will_answer_otherwise_soon() {
        let mut round = Round::new(2, 0);
        round.failed(Failing::Lasting);
        assert_eq!(round.failed(Failing::Lasting), Step::RestLong);
        round.failed(Failing::Lasting);
        assert_eq!(round.failed(Failing::Soon), Step::Rest);
    }

    #[test]
    fn a_session_has_ended_if_nobody_goes_on_with_it() {
        assert_eq!(Round::new(1, 0).failed(Failing::Gone), Step::BeginAnew);
        let mut round = Round::new(3, 0);
        assert_eq!(round.failed(Failing::Soon), Step::Ask);
        assert_eq!(round.failed(Failing::Gone), Step::Ask);
        assert_eq!(round.failed(Failing::Lasting), Step::BeginAnew);
        // Who knew that is there.
        assert_eq!(round.at(), 1);
        // It counts for this round only.
        let steps = [Failing::Soon; 3].map(|how| round.failed(how));
        assert_eq!(steps, [Step::Ask, Step::Ask, Step::Rest]);
    }
}
