//! Whether a history can be told as a sequence: the search of Wing and Gong, with memory.
//!
//! ```text
//!   calls    a |-----|      b |----------|      c |---|
//!   moments  ----------------------------------------------->
//!            one sequence is looked for in which a call stands before all that began after its
//!            end, and each answer is the right one at its place
//! ```
//!
//! - Calls of which nobody knows whether they were done stand anywhere after their beginning, or
//!   nowhere.
//! - A call that fits and changes nothing is taken at once: if any sequence goes on from here, it
//!   also does with that call first.
//! - A pair of calls done and state reached is looked at once, and not at all if an answer that is
//!   left can plainly not be given any more.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::history::{Event, Outcome};

/// What is looked at, at most, before nothing is decided.
const LOOKS_MAX: usize = 100_000;

/// What answers are judged by.
pub trait Model {
    /// What there is.
    type State: Clone + Hash + Eq;

    /// All states that `event` with its answer may lead to; none if the answer is wrong.
    fn after(&self, state: &Self::State, event: &Event) -> Vec<Self::State>;

    /// Whether it is plain that one of the answers in `left` cannot come any more.
    fn is_hopeless(&self, _state: &Self::State, _left: &[&Event]) -> bool {
        false
    }
}

/// What a search has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A sequence.
    Fits,
    /// None. The most calls that fit into one, and those of which none can be the next.
    Impossible {
        /// Positions of calls, in the order of the longest sequence.
        longest: Vec<usize>,
        /// Positions of calls.
        stuck: Vec<usize>,
    },
    /// It would take too long.
    Undecided,
}

/// A step of the sequence: what is left to try from there.
struct Step<S> {
    choices: Vec<(usize, S)>,
    taken: Option<usize>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    events: &'a [Event],
    /// Positions by when they ended, those that never did last.
    order: Vec<usize>,
    is_done: Vec<bool>,
    left: usize,
    seen: HashSet<u128>,
    looks: usize,
}

fn is_known(event: &Event) -> bool {
    event.outcome != Outcome::Unknown
}

/// Looks for a sequence of `events` that begins with `state`.
pub fn search<M: Model>(model: &M, state: M::State, events: &[Event]) -> Verdict {
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_by_key(|at| events[*at].responded.unwrap_or(u64::MAX));
    let mut search = Search {
        model,
        events,
        order,
        is_done: vec![false; events.len()],
        left: events.iter().filter(|event| is_known(event)).count(),
        seen: HashSet::new(),
        looks: 0,
    };
    search.run(state)
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, state: M::State) -> Verdict {
        if self.left == 0 {
            return Verdict::Fits;
        }
        let mut steps = vec![Step { choices: self.choices(&state), taken: None }];
        let mut longest: (usize, Vec<usize>, Vec<usize>) = (usize::MAX, Vec::new(), Vec::new());
        while let Some(step) = steps.last_mut() {
            if let Some(taken) = step.taken.take() {
                self.is_done[taken] = false;
                self.left += usize::from(is_known(&self.events[taken]));
            }
            let Some((chosen, state)) = step.choices.pop() else {
                steps.pop();
                continue;
            };
            step.taken = Some(chosen);
            self.is_done[chosen] = true;
            self.left -= usize::from(is_known(&self.events[chosen]));
            if self.left == 0 {
                return Verdict::Fits;
            }
            self.looks += 1;
            if self.looks > LOOKS_MAX {
                return Verdict::Undecided;
            }
            if !self.seen.insert(self.fingerprint(&state)) || self.is_hopeless(&state) {
                continue;
            }
            if self.left < longest.0 {
                let taken = steps.iter().filter_map(|step| step.taken).collect();
                longest = (self.left, taken, self.candidates());
            }
            let choices = self.choices(&state);
            steps.push(Step { choices, taken: None });
        }
        let (_, longest, stuck) = longest;
        Verdict::Impossible { longest, stuck }
    }

    fn is_hopeless(&self, state: &M::State) -> bool {
        let left = self.order.iter().filter(|at| !self.is_done[**at]);
        let left: Vec<&Event> = left.map(|at| &self.events[*at]).collect();
        self.model.is_hopeless(state, &left)
    }

    fn fingerprint(&self, state: &M::State) -> u128 {
        let hash = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, &self.is_done, state).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        hash(1) << 64 | hash(2)
    }

    /// The calls that may be the next: nothing that is left ended before they began.
    fn candidates(&self) -> Vec<usize> {
        let left = || self.order.iter().copied().filter(|at| !self.is_done[*at]);
        let bound = left().filter_map(|at| self.events[at].responded).min().unwrap_or(u64::MAX);
        left().filter(|at| self.events[*at].invoked < bound).collect()
    }

    /// What may come next, the most likely last.
    fn choices(&self, state: &M::State) -> Vec<(usize, M::State)> {
        let mut choices = Vec::new();
        for at in self.candidates() {
            let event = &self.events[at];
            let next = self.model.after(state, event);
            if is_known(event) && event.op.only_reads() && next.len() == 1 && next[0] == *state {
                return vec![(at, state.clone())];
            }
            let matters = |next: &M::State| is_known(event) || next != state;
            choices.extend(next.into_iter().filter(matters).map(|next| (at, next)));
        }
        choices.reverse();
        choices
    }
}
