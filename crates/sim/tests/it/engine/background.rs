//! A background action on a thread of its own that stands still at every disk request.
//!
//! ```text
//! foreground   operation  operation  |let it take 2 steps|  operation         operation
//! background   parked ............... step ─► step ─► parked .............................
//!                                                            waits for a lock ─► step ─► parked
//! ```
//!
//! Only one of the two runs at a time, so that equal seeds give equal runs: the background takes as
//! many steps as it is given, each from one disk request to the next. The one exception is an
//! operation that needs a lock which the background holds: the kernel says that its thread sleeps,
//! and the background goes on until it does not.
//!
//! A request on which the background stands still was submitted and has not completed.

use std::cell::Cell;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::sync::{Condvar, Mutex, MutexGuard};
use gabion_map::MapError;

thread_local! {
    static IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// Where the background stands still.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the foreground is within an operation.
    busy: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What the foreground's thread is called below `/proc`.
    foreground: String,
    /// Steps that the background may take.
    steps: u64,
    parked: bool,
    running: bool,
}

/// An action under way.
pub struct Background {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<Result<(), MapError>>>,
}

/// A disk at whose requests the background stands still.
pub struct GatedDisk {
    disk: Arc<dyn Disk>,
    gate: Arc<Gate>,
}

impl GatedDisk {
    pub fn new(disk: Arc<dyn Disk>, gate: &Arc<Gate>) -> Self {
        Self { disk, gate: Arc::clone(gate) }
    }
}

impl Disk for GatedDisk {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let ticket = self.disk.submit(request);
        let gate = Arc::clone(&self.gate);
        Ticket::deferred(move || {
            if IN_BACKGROUND.get() {
                gate.stand_still();
            }
            ticket.wait()
        })
    }
}

impl Gate {
    /// The foreground begins an operation.
    pub fn enter(&self) {
        self.busy.store(true, Ordering::SeqCst);
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// The foreground's operation is done.
    pub fn leave(&self) {
        self.busy.store(false, Ordering::SeqCst);
    }

    fn stand_still(&self) {
        let mut state = self.state.lock();
        state.parked = true;
        self.changed.notify_all();
        while state.steps == 0 {
            if !self.busy.load(Ordering::SeqCst) {
                self.changed.wait(&mut state);
                continue;
            }
            let thread = state.foreground.clone();
            if MutexGuard::unlocked(&mut state, || self.is_waiting(&thread)) {
                break;
            }
        }
        state.steps = state.steps.saturating_sub(1);
        state.parked = false;
    }

    /// Whether the foreground sleeps within an operation: nobody else can hold what it waits for.
    fn is_waiting(&self, thread: &str) -> bool {
        thread::yield_now();
        let stat = fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
        let sleeps = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'));
        sleeps && self.busy.load(Ordering::SeqCst)
    }
}

impl Background {
    /// Starts `action`, up to its first disk request.
    pub fn start(
        gate: &Arc<Gate>,
        action: impl FnOnce() -> Result<(), MapError> + Send + 'static,
    ) -> Self {
        let foreground = fs::read_link("/proc/thread-self").expect("a thread is in /proc");
        let foreground = foreground.to_string_lossy().into_owned();
        *gate.state.lock() = State { foreground, steps: 0, parked: false, running: true };
        let (inner, gate) = (Arc::clone(gate), Arc::clone(gate));
        let thread = thread::spawn(move || {
            IN_BACKGROUND.set(true);
            let done = action();
            inner.state.lock().running = false;
            inner.changed.notify_all();
            done
        });
        let background = Self { gate, thread: Some(thread) };
        background.advance(0);
        background
    }

    /// Lets it take `steps` steps. False if it has ended.
    pub fn advance(&self, steps: u64) -> bool {
        let mut state = self.gate.state.lock();
        state.steps = steps;
        self.gate.changed.notify_all();
        while state.running && (state.steps > 0 || !state.parked) {
            self.gate.changed.wait(&mut state);
        }
        state.running
    }

    /// Lets it go on to its end.
    pub fn finish(mut self) -> Result<(), MapError> {
        self.end().expect("it was not ended before")
    }

    fn end(&mut self) -> Option<Result<(), MapError>> {
        let thread = self.thread.take()?;
        self.advance(u64::MAX);
        Some(thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.advance(u64::MAX);
            // Whoever drops it has another failure to tell.
            drop(thread.join());
        }
    }
}
