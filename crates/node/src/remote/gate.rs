//! Answers on their way to the kernel, which a revocation must not overtake.
//!
//! ```text
//!   handler     enter .. finds out .. answers the kernel .. leave
//!   revocation        takes the lease away | barrier: all who entered before have left | tells
//!                                                                                 the kernel
//! ```
//!
//! Whoever enters after the lease was taken away finds out that it is gone. So what the kernel is
//! told to forget has reached it before, and nothing of it comes after.
//!
//! Nobody waits for the server between `enter` and `leave`: the server may be waiting for the
//! revocation.

use std::cell::Cell;
use std::collections::BTreeMap;

use gabion_base::sync::{Condvar, Mutex};

/// The gate of one mount.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    round: u64,
    /// How many entered in each round and have not left.
    inside: BTreeMap<u64, usize>,
}

/// Somebody inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass(u64);

thread_local! {
    /// The pass of the request that this thread handles.
    static OWN: Cell<Option<Pass>> = const { Cell::new(None) };
    /// Whether this thread's request is answered with what the server has said, not with what was
    /// found out under leases.
    static IS_HEARSAY: Cell<bool> = const { Cell::new(false) };
}

/// This thread's request is answered with what the server has said. A lease that is there now may
/// have come after that, and what it covers be newer: so the kernel must not keep this.
pub(super) fn answer_by_hearsay() {
    IS_HEARSAY.set(true);
}

/// Whether it is.
pub(super) fn is_hearsay() -> bool {
    IS_HEARSAY.get()
}

/// This thread's request is answered.
pub(super) fn end_hearsay() {
    IS_HEARSAY.set(false);
}

impl Gate {
    /// Enters on behalf of a thread that is going to [`Gate::adopt`] the pass.
    pub(super) fn enter(&self) -> Pass {
        let mut state = self.state.lock();
        let round = state.round;
        *state.inside.entry(round).or_default() += 1;
        Pass(round)
    }

    /// Makes `pass` this thread's.
    pub(super) fn adopt(&self, pass: Pass) {
        if let Some(before) = OWN.replace(Some(pass)) {
            self.give_back(before);
        }
    }

    /// Enters for this thread, unless it is inside.
    pub(super) fn enter_own(&self) {
        if OWN.get().is_none() {
            OWN.set(Some(self.enter()));
        }
    }

    /// Leaves, if this thread is inside.
    pub(super) fn leave_own(&self) {
        if let Some(pass) = OWN.take() {
            self.give_back(pass);
        }
    }

    /// Gives back a pass that nobody adopts.
    pub(super) fn give_back(&self, pass: Pass) {
        let mut state = self.state.lock();
        let count = state.inside.get_mut(&pass.0).expect("who leaves has entered");
        *count -= 1;
        if *count == 0 {
            state.inside.remove(&pass.0);
            self.left.notify_all();
        }
    }

    /// How often somebody has waited for all who had entered, or does.
    #[cfg(test)]
    pub(super) fn barriers(&self) -> u64 {
        self.state.lock().round
    }

    /// Waits until all have left who have entered so far.
    pub(super) fn barrier(&self) {
        let mut state = self.state.lock();
        state.round += 1;
        let round = state.round;
        while state.inside.range(..round).next().is_some() {
            self.left.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_barrier_waits_for_who_was_inside_and_for_nobody_else() {
        let gate = Arc::new(Gate::default());
        let (early, waited) = (gate.enter(), Arc::clone(&gate));
        let (sender, receiver) = mpsc::channel();
        let barrier = thread::spawn(move || {
            waited.barrier();
            sender.send(()).unwrap();
        });
        while gate.state.lock().round == 0 {
            thread::yield_now();
        }
        let late = gate.enter();
        assert!(receiver.try_recv().is_err());
        gate.give_back(early);
        receiver.recv().unwrap();
        barrier.join().unwrap();
        gate.give_back(late);
    }
}
