//! Threads of which one runs at a time, in an order that follows from a seed, in a time that is a
//! number.
//!
//! ```text
//!   ready ---- chosen, by seed ----> runs ---- pauses -------------> ready
//!     ^                               |------- what it needs is taken --> contended
//!     |                               '------- waits -------------> waiting
//!     |-- somebody woke it, or its time has come ----------------------'
//!     '-- somebody else has done something -- contended
//! ```
//!
//! - Who runs has the baton; all others stand still wherever the product waits for a lock, for
//!   somebody, or for time. Time goes on by a little with every choice, and to the next moment
//!   that somebody waits for if nobody can run.
//! - Each thread belongs to a machine. A machine can be stopped for a while, and can crash: then
//!   its threads end, by unwinding, where they stand.
//! - If nobody can run and nobody waits for a moment, the run has failed. It has also failed if
//!   a thread panics, or if it makes more steps than `STEPS_MAX`.
//!
//! What belongs to several machines (the network, the history) is kept behind `std`'s locks, which
//! this does not know: nobody may stand still who has one.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use gabion_base::rng::Rng;
use gabion_base::sync::{Scheduler, enroll};

/// Steps of one run at most: a world that is busy without getting on is stopped.
const STEPS_MAX: u64 = 20_000_000;
/// Lines that are kept for whoever looks at a failure.
const LOG_MAX: usize = 400;
/// How much time one choice takes at most, in microseconds.
const CHOICE_MICROS: u64 = 20;

/// Where nobody is woken.
const NOWHERE: usize = 0;

thread_local! {
    static SEAT: RefCell<Option<Arc<Seat>>> = const { RefCell::new(None) };
}

/// A machine: all of its threads crash together.
pub type MachineId = usize;

/// What a thread of a crashed machine unwinds with.
struct Crashed;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Ready,
    /// Since so many things were done.
    Contended(u64),
    Waiting {
        place: usize,
        until: Option<Duration>,
    },
    Ended,
}

struct Runner {
    name: String,
    machine: MachineId,
    status: Status,
    was_woken: bool,
    is_crashed: bool,
    turn: Arc<Turn>,
}

/// Where a thread waits for the baton.
struct Turn {
    has_come: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

struct State {
    rng: Rng,
    now: Duration,
    runners: Vec<Runner>,
    /// Those that have not ended, by their numbers: most of a long run's threads have.
    alive: Vec<usize>,
    /// Who is able to run; kept for its memory.
    able: Vec<usize>,
    stopped: BTreeSet<MachineId>,
    /// Counts what was done, so that who waits for a lock does not look in vain.
    done: u64,
    steps: u64,
    /// Of so many pauses, one lets another thread go on.
    calm: u64,
    digest: u64,
    is_over: bool,
    failure: Option<String>,
    log: VecDeque<String>,
    handles: Vec<JoinHandle<()>>,
}

/// The baton of one run.
pub struct Baton {
    state: Mutex<State>,
}

/// How a run has ended.
pub struct Ending {
    /// What is wrong, if anything.
    pub failure: Option<String>,
    /// What happened last.
    pub log: Vec<String>,
    /// How many steps it took.
    pub steps: u64,
    /// A sum over all choices, to compare two runs.
    pub digest: u64,
}

impl Baton {
    /// Runs `director` as the first thread, on machine 0, until it returns or the run has failed.
    /// All other threads end with it.
    pub fn run(seed: u64, director: impl FnOnce(Arc<Self>) + Send + 'static) -> Ending {
        let mut rng = Rng::new(seed ^ 0xba70_0000);
        let calm = 1 << (1 + rng.below(6));
        let state = State {
            rng,
            now: Duration::ZERO,
            runners: Vec::new(),
            alive: Vec::new(),
            able: Vec::new(),
            stopped: BTreeSet::new(),
            done: 0,
            steps: 0,
            calm,
            digest: 0,
            is_over: false,
            failure: None,
            log: VecDeque::new(),
            handles: Vec::new(),
        };
        let baton = Arc::new(Self { state: Mutex::new(state) });
        let own = Arc::clone(&baton);
        baton.spawn(0, "director", move || director(own));
        baton.state().runners[0].turn.give();
        loop {
            let handle = baton.state().handles.pop();
            match handle {
                Some(handle) => handle.join().expect("a thread tells how it ends"),
                None => break,
            }
        }
        let mut state = baton.state();
        let (failure, steps, digest) = (state.failure.take(), state.steps, state.digest);
        Ending { failure, log: state.log.drain(..).collect(), steps, digest }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// The baton of the run that this thread belongs to.
    pub fn own() -> Arc<Self> {
        SEAT.with_borrow(|seat| Arc::clone(&seat.as_ref().expect("it belongs to a run").baton))
    }

    /// A number below `limit`, by seed.
    pub fn draw(&self, limit: u64) -> u64 {
        self.state().rng.below(limit)
    }

    /// Writes down what happens.
    pub fn note(&self, text: impl FnOnce() -> String) {
        let mut state = self.state();
        let line = format!("{:>10.6} {}", state.now.as_secs_f64(), text());
        state.log.push_back(line);
        if state.log.len() > LOG_MAX {
            state.log.pop_front();
        }
    }

    /// The run has failed: everybody ends. The first reason counts.
    pub fn fail(&self, reason: &str) {
        let mut state = self.state();
        state.fail(reason);
    }

    /// Whether the run has failed.
    pub fn has_failed(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Starts a thread on `machine`.
    pub fn spawn(
        self: &Arc<Self>,
        machine: MachineId,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) {
        let turn = Arc::new(Turn { has_come: AtomicBool::new(false), thread: Mutex::new(None) });
        let me = {
            let mut state = self.state();
            let is_crashed = state.is_over;
            state.runners.push(Runner {
                name: name.to_owned(),
                machine,
                status: Status::Ready,
                was_woken: false,
                is_crashed,
                turn: Arc::clone(&turn),
            });
            let me = state.runners.len() - 1;
            state.alive.push(me);
            me
        };
        let seat = Arc::new(Seat { baton: Arc::clone(self), me, machine });
        let own = Arc::clone(&turn);
        let body = move || {
            own.wait();
            enroll(Arc::clone(&seat) as Arc<dyn Scheduler>);
            SEAT.set(Some(Arc::clone(&seat)));
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                seat.unwind_if_crashed();
                run();
            }));
            seat.end(outcome.err());
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        let handle = thread.expect("the system has a thread for the simulator");
        *turn.thread.lock().expect("nobody panics here") = Some(handle.thread().clone());
        self.state().handles.push(handle);
    }

    /// All threads of the machine end where they stand.
    pub fn crash(&self, machine: MachineId) {
        self.state().crash(|runner| runner.machine == machine);
    }

    /// Nothing runs on the machine, until it is resumed.
    pub fn stop(&self, machine: MachineId) {
        self.state().stopped.insert(machine);
    }

    /// Everything goes on.
    pub fn resume(&self, machine: MachineId) {
        self.state().stopped.remove(&machine);
    }

    /// This thread waits until somebody wakes it at `place`, or for `patience`. Places of the
    /// world itself are small numbers, which no address is.
    pub fn wait(&self, place: usize, patience: Duration) {
        SEAT.with_borrow(|seat| {
            let seat = seat.as_ref().expect("it has the baton");
            seat.wait(place, Some(patience));
        });
    }

    /// This thread waits for a time.
    pub fn sleep(&self, time: Duration) {
        self.wait(NOWHERE, time);
    }

    /// Wakes all who wait at `place`.
    pub fn wake(&self, place: usize) {
        self.state().wake(place, usize::MAX);
    }

    /// Who waits for what, for people.
    pub fn standing(&self) -> String {
        let state = self.state();
        let alive = state.alive.iter().map(|at| &state.runners[*at]);
        let lines = alive.map(|runner| {
            format!("  machine {} {}: {:?}", runner.machine, runner.name, runner.status)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl State {
    fn fail(&mut self, reason: &str) {
        if self.failure.is_none() {
            self.failure = Some(reason.to_owned());
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.stopped.clear();
        self.crash(|_| true);
    }

    fn crash(&mut self, which: impl Fn(&Runner) -> bool) {
        for at in &self.alive {
            let runner = &mut self.runners[*at];
            if which(runner) {
                runner.is_crashed = true;
                runner.status = Status::Ready;
            }
        }
    }

    fn wake(&mut self, place: usize, count: usize) {
        self.done += 1;
        self.able.clear();
        for at in &self.alive {
            match self.runners[*at].status {
                Status::Waiting { place: own, .. } if own == place => self.able.push(*at),
                _ => {}
            }
        }
        for _ in 0..count.min(self.able.len()) {
            let chosen = self.rng.below(self.able.len() as u64) as usize;
            let runner = &mut self.runners[self.able.swap_remove(chosen)];
            runner.status = Status::Ready;
            runner.was_woken = true;
        }
    }

    /// Who runs next; nobody, if all have ended.
    fn choose(&mut self) -> Option<usize> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.fail("it makes very many steps without coming to an end");
        }
        let pace = self.rng.below(CHOICE_MICROS);
        self.now += Duration::from_micros(pace);
        loop {
            self.able.clear();
            let mut next: Option<Duration> = None;
            for at in &self.alive {
                let runner = &mut self.runners[*at];
                if self.stopped.contains(&runner.machine) && !runner.is_crashed {
                    continue;
                }
                match runner.status {
                    Status::Waiting { until: Some(until), .. } if until <= self.now => {
                        runner.status = Status::Ready;
                        self.able.push(*at);
                    }
                    Status::Waiting { until: Some(until), .. } => {
                        next = Some(next.map_or(until, |next| next.min(until)));
                    }
                    Status::Ready => self.able.push(*at),
                    Status::Contended(done) if done != self.done => self.able.push(*at),
                    _ => {}
                }
            }
            if !self.able.is_empty() {
                let chosen = self.able[self.rng.below(self.able.len() as u64) as usize];
                let choice = chosen as u64 ^ self.now.as_nanos() as u64;
                self.digest = self.digest.rotate_left(5) ^ choice;
                return Some(chosen);
            }
            match next {
                Some(next) => self.now = next,
                None if self.alive.is_empty() => return None,
                None if self.is_over => {
                    // Who is crashed looks again and again for a lock of somebody who is, too.
                    self.done += 1;
                }
                None => self.fail("nobody can go on"),
            }
        }
    }
}

impl Turn {
    fn give(&self) {
        self.has_come.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread.lock().expect("nobody panics here") {
            thread.unpark();
        }
    }

    fn wait(&self) {
        while !self.has_come.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

/// One thread's place in the run.
struct Seat {
    baton: Arc<Baton>,
    me: usize,
    machine: MachineId,
}

impl Seat {
    /// Stands still as `status` says until it is this thread's turn.
    fn stand(&self, status: Status) -> bool {
        let mut state = self.baton.state();
        let own = &mut state.runners[self.me];
        if own.status == Status::Ended {
            // What a thread leaves behind at its very end.
            return true;
        }
        // Who has crashed waits for nothing any more.
        let keeps_on = own.is_crashed && matches!(status, Status::Waiting { .. });
        own.status = if keeps_on { Status::Ready } else { status };
        own.was_woken = false;
        self.pass_on(state);
        let state = self.baton.state();
        let was_woken = state.runners[self.me].was_woken;
        drop(state);
        self.unwind_if_crashed();
        was_woken
    }

    fn pass_on(&self, mut state: MutexGuard<'_, State>) {
        match state.choose() {
            Some(next) if next == self.me => {}
            Some(next) => {
                let turn = Arc::clone(&state.runners[next].turn);
                let own = Arc::clone(&state.runners[self.me].turn);
                let has_ended = state.runners[self.me].status == Status::Ended;
                drop(state);
                turn.give();
                if !has_ended {
                    own.wait();
                }
            }
            None => {}
        }
    }

    fn unwind_if_crashed(&self) {
        if !thread::panicking() && self.baton.state().runners[self.me].is_crashed {
            panic::resume_unwind(Box::new(Crashed));
        }
    }

    fn end(&self, panic: Option<Box<dyn Any + Send>>) {
        let mut state = self.baton.state();
        if let Some(cause) = panic.filter(|cause| !cause.is::<Crashed>()) {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let name = state.runners[self.me].name.clone();
            state.fail(&format!("{name} panicked: {}", text.unwrap_or_default()));
        }
        state.runners[self.me].status = Status::Ended;
        state.alive.retain(|at| *at != self.me);
        state.done += 1;
        if self.me == 0 {
            state.finish();
        }
        self.pass_on(state);
    }
}

impl Scheduler for Seat {
    fn pause(&self) {
        if thread::panicking() {
            return;
        }
        let mut state = self.baton.state();
        state.done += 1;
        let calm = state.calm;
        let goes_on = !state.runners[self.me].is_crashed && !state.rng.chance(1, calm);
        drop(state);
        if !goes_on {
            self.stand(Status::Ready);
        }
    }

    fn contended(&self) {
        let done = self.baton.state().done;
        if self.stand(Status::Contended(done)) && thread::panicking() {
            thread::yield_now();
        }
    }

    fn wait(&self, place: usize, patience: Option<Duration>) -> bool {
        let mut state = self.baton.state();
        state.done += 1;
        // Of a patience without end, no end can be told.
        let until = patience.and_then(|patience| state.now.checked_add(patience));
        drop(state);
        self.stand(Status::Waiting { place, until })
    }

    fn now(&self) -> Duration {
        self.baton.now()
    }

    fn wake_one(&self, place: usize) {
        self.baton.state().wake(place, 1);
    }

    fn wake_all(&self, place: usize) {
        self.baton.wake(place);
    }

    fn spawn(&self, name: &str, run: Box<dyn FnOnce() + Send>) {
        self.baton.spawn(self.machine, name, run);
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::sync;

    use super::*;

    /// Three threads that count in steps under one lock, with the order in which they did.
    fn counting(seed: u64) -> (Ending, Vec<usize>) {
        let order = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&order);
        let ending = Baton::run(seed, move |baton| {
            let (count, all) = (Arc::new(sync::Mutex::new(0)), Arc::new(sync::Condvar::new()));
            for thread in 0..3 {
                let (count, all, seen) = (Arc::clone(&count), Arc::clone(&all), Arc::clone(&seen));
                baton.spawn(1, "counter", move || {
                    for _ in 0..20 {
                        let mut count = count.lock();
                        let before = *count;
                        // Others may run here, but not with the lock.
                        drop(sync::Mutex::new(()).lock());
                        *count = before + 1;
                        seen.lock().unwrap().push(thread);
                    }
                    all.notify_all();
                });
            }
            let mut count = count.lock();
            while *count < 60 {
                all.wait(&mut count);
            }
        });
        let order = order.lock().unwrap().clone();
        (ending, order)
    }

    #[test]
    fn one_seed_gives_one_order_and_others_give_others() {
        let mut orders = BTreeSet::new();
        for seed in 1..10 {
            let (one, order) = counting(seed);
            let (other, again) = counting(seed);
            assert_eq!((one.failure, other.failure), (None, None));
            assert_eq!((one.digest, &order), (other.digest, &again));
            orders.insert(order);
        }
        assert!(orders.len() > 5, "{orders:?}");
    }

    #[test]
    fn waits_end_in_a_time_that_is_a_number() {
        let hour = Duration::from_secs(3600);
        let ending = Baton::run(1, move |baton| {
            let (lock, never) = (sync::Mutex::new(()), sync::Condvar::new());
            assert!(never.wait_for(&mut lock.lock(), hour).timed_out());
            assert!(baton.now() >= hour && baton.now() < 2 * hour);
        });
        assert_eq!(ending.failure, None);
    }

    #[test]
    fn threads_that_wait_for_each_other_are_found_out() {
        let ending = Baton::run(1, |_| {
            let (lock, never) = (sync::Mutex::new(()), sync::Condvar::new());
            never.wait(&mut lock.lock());
        });
        assert_eq!(ending.failure.as_deref(), Some("nobody can go on"));
    }

    #[test]
    fn a_machine_that_crashes_leaves_no_locks_behind() {
        let ending = Baton::run(1, |baton| {
            let lock = Arc::new(sync::Mutex::new(()));
            let own = Arc::clone(&lock);
            let sleeper = Arc::clone(&baton);
            baton.spawn(1, "holder", move || {
                let _held = own.lock();
                sleeper.sleep(Duration::from_secs(1_000_000));
            });
            baton.sleep(Duration::from_secs(1));
            assert!(lock.try_lock().is_none());
            baton.crash(1);
            drop(lock.lock());
        });
        assert_eq!(ending.failure, None);
    }
}
