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
//! - A pair of calls done and state reached is looked at once.
//! - Most histories fit at the first attempt. As soon as one had to turn back, nothing is looked at
//!   from where an answer that is left can plainly not be given any more.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use gabion_base::rng::Rng;

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
    /// A sum over those that are done.
    done: u64,
    left: usize,
    seen: HashSet<u128>,
    looks: usize,
}

/// A sum over all that is hashed, of so many bits that no two states of a search have the same.
/// It need not withstand anybody.
struct Sum([u64; 2]);

impl Sum {
    fn new() -> Self {
        Self([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344])
    }

    fn whole(&self) -> u128 {
        let [high, low] = self.0.map(mixed);
        u128::from(high) << 64 | u128::from(low)
    }
}

impl Hasher for Sum {
    fn finish(&self) -> u64 {
        mixed(self.0[0])
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let [high, low] = &mut self.0;
        *high = (*high ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        *low = (*low ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// A number of which each bit depends on each of `word`.
fn mixed(word: u64) -> u64 {
    Rng::new(word).next_u64()
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
        done: 0,
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
        let mut has_turned_back = false;
        while let Some(step) = steps.last_mut() {
            if let Some(taken) = step.taken.take() {
                self.turn(taken, false);
            }
            let Some((chosen, state)) = step.choices.pop() else {
                steps.pop();
                has_turned_back = true;
                if self.left < longest.0 {
                    let taken = steps.iter().filter_map(|step| step.taken).collect();
                    longest = (self.left, taken, self.candidates());
                }
                continue;
            };
            step.taken = Some(chosen);
            self.turn(chosen, true);
            if self.left == 0 {
                return Verdict::Fits;
            }
            self.looks += 1;
            if self.looks > LOOKS_MAX {
                return Verdict::Undecided;
            }
            let is_new = self.seen.insert(self.fingerprint(&state));
            if !is_new || has_turned_back && self.is_hopeless(&state) {
                continue;
            }
            let choices = self.choices(&state);
            steps.push(Step { choices, taken: None });
        }
        let (_, longest, stuck) = longest;
        Verdict::Impossible { longest, stuck }
    }

    /// A call is done, or not any more.
    fn turn(&mut self, at: usize, is_done: bool) {
        self.is_done[at] = is_done;
        self.done ^= mixed(at as u64);
        match (is_known(&self.events[at]), is_done) {
            (true, true) => self.left -= 1,
            (true, false) => self.left += 1,
            (false, _) => {}
        }
    }

    fn is_hopeless(&self, state: &M::State) -> bool {
        let left = self.order.iter().filter(|at| !self.is_done[**at]);
        let left: Vec<&Event> = left.map(|at| &self.events[*at]).collect();
        self.model.is_hopeless(state, &left)
    }

    fn fingerprint(&self, state: &M::State) -> u128 {
        let mut sum = Sum::new();
        (self.done, state).hash(&mut sum);
        sum.whole()
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
