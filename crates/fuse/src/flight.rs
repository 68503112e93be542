//! Requests in flight: read from the kernel, not yet answered.
//!
//! ```text
//!              +-- reply -------------------+
//!              +-- reply dropped: EIO ------+
//!   registered +-- deadline: ETIMEDOUT -----+--> answered, once; later answers are dropped
//!              +-- caller killed: EINTR ----+
//!
//!   cancelled, at any time before, once: interrupted | deadline passed | session ended
//! ```
//!
//! Being cancelled is a hint to whoever waits on behalf of the request, not an answer. Its hooks
//! run on the thread that reads from the kernel, so they only record and wake. An INTERRUPT may
//! overtake its request; it is then answered EAGAIN and the kernel sends it again.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::abi::{InHeader, opcode};
use crate::device::Device;
use crate::reply::Outcome;

/// Tables of requests in flight, to keep reader threads off one lock.
const SHARDS: usize = 16;

/// Why a request should no longer be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The caller got a signal: a wait should end with EINTR; anything else may go on.
    Interrupted,
    /// The request was answered ETIMEDOUT already.
    DeadlinePassed,
    /// The mount is gone, or the session was shut down.
    SessionEnded,
}

type Hook = Box<dyn FnOnce(CancelReason) + Send>;

#[derive(Default)]
struct CancelState {
    reason: Option<CancelReason>,
    answered: bool,
    hooks: Vec<Hook>,
}

/// One request in flight.
pub(crate) struct Flight {
    pub(crate) unique: u64,
    pub(crate) opcode: u32,
    pid: u32,
    since: Instant,
    answered: AtomicBool,
    cancel: Mutex<CancelState>,
}

impl Flight {
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Marks the request cancelled and returns what is to be run because of it.
    fn cancel(&self, reason: CancelReason) -> Vec<Hook> {
        let mut state = self.cancel.lock();
        if state.reason.is_some() || state.answered {
            return Vec::new();
        }
        state.reason = Some(reason);
        std::mem::take(&mut state.hooks)
    }
}

/// Tells whether a request is still worth waiting for. Clones speak of the same request.
#[derive(Clone)]
pub struct Cancel(pub(crate) Arc<Flight>);

impl Cancel {
    /// Why the request should be given up, if it should.
    pub fn reason(&self) -> Option<CancelReason> {
        self.0.cancel.lock().reason
    }

    /// Whether the request should be given up.
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// Runs `hook` once the request should be given up, at once if it is so already, never if it
    /// was answered. The hook must not block.
    pub fn on_cancel(&self, hook: impl FnOnce(CancelReason) + Send + 'static) {
        let mut state = self.0.cancel.lock();
        match state.reason {
            Some(reason) => {
                drop(state);
                hook(reason);
            }
            // What an answered request's hook owns is dropped outside the lock.
            None if state.answered => drop(state),
            None => state.hooks.push(Box::new(hook)),
        }
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cancel").field(&self.reason()).finish()
    }
}

/// The device and all requests that were read from it and not answered.
pub(crate) struct Core {
    pub(crate) device: Device,
    /// Set when the session stops before the mount does: requests without an answer are left for
    /// whoever serves the connection next.
    handing_over: AtomicBool,
    ended: AtomicBool,
    shards: [Mutex<BTreeMap<u64, Arc<Flight>>>; SHARDS],
}

impl Core {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            handing_over: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            shards: Default::default(),
        }
    }

    fn shard(&self, unique: u64) -> &Mutex<BTreeMap<u64, Arc<Flight>>> {
        // Bit 0 marks interrupts, so neighbours differ from bit 1 on.
        &self.shards[(unique >> 1) as usize % SHARDS]
    }

    pub(crate) fn register(&self, header: &InHeader) -> Arc<Flight> {
        let unique = header.unique;
        let flight = Arc::new(Flight {
            unique,
            opcode: header.opcode,
            pid: header.pid,
            since: Instant::now(),
            answered: AtomicBool::new(false),
            cancel: Mutex::default(),
        });
        self.shard(unique).lock().insert(unique, Arc::clone(&flight));
        // After the insertion: either this sees the flag or `end` sees the flight.
        if self.ended.load(Ordering::SeqCst) {
            flight.cancel(CancelReason::SessionEnded);
        }
        flight
    }

    pub(crate) fn find(&self, unique: u64) -> Option<Arc<Flight>> {
        self.shard(unique).lock().get(&unique).cloned()
    }

    /// Sends the answer of `flight`, unless it has one. `error` is a negated errno or 0.
    pub(crate) fn answer(&self, flight: &Flight, error: i32, body: &[IoSlice<'_>]) -> Outcome {
        if flight.answered.swap(true, Ordering::AcqRel) {
            return Outcome::Gone;
        }
        // ENOENT: the kernel gave the request up. ENODEV: the mount is gone. Anything else is an
        // answer that does not fit the request, which the kernel itself has turned into EIO.
        let sent = self.device.write(flight.unique, error, body);
        self.close(flight);
        if sent.is_ok() { Outcome::Delivered } else { Outcome::Gone }
    }

    /// Ends the life of a request that its handler dropped.
    pub(crate) fn abandon(&self, flight: &Flight) {
        if self.handing_over.load(Ordering::Acquire) {
            flight.answered.store(true, Ordering::Release);
            self.close(flight);
        } else {
            self.answer(flight, -libc::EIO, &[]);
        }
    }

    fn close(&self, flight: &Flight) {
        self.shard(flight.unique).lock().remove(&flight.unique);
        let hooks = {
            let mut state = flight.cancel.lock();
            state.answered = true;
            std::mem::take(&mut state.hooks)
        };
        // Dropped outside the lock: a hook may own the very reply that is closing.
        drop(hooks);
    }

    /// Cancels one request because its caller got a signal.
    pub(crate) fn interrupt(&self, flight: &Flight) {
        run(flight.cancel(CancelReason::Interrupted), CancelReason::Interrupted);
    }

    /// Answers what nobody should wait for any longer: requests older than `deadline`, except waits
    /// for locks, and requests of callers that were killed, whose handlers did not take the hint.
    pub(crate) fn expire(&self, deadline: Duration) {
        let now = Instant::now();
        let overdue = |flight: &Flight| {
            flight.opcode != opcode::SETLKW && now.duration_since(flight.since) >= deadline
        };
        for flight in self.flights(overdue) {
            // The reason is set first, but the hooks run last: theirs is not the answer.
            let hooks = flight.cancel(CancelReason::DeadlinePassed);
            self.answer(&flight, -libc::ETIMEDOUT, &[]);
            run(hooks, CancelReason::DeadlinePassed);
        }
        // FLUSH is left to finish: it releases locks, and the exit of a process waits for it.
        let interrupted = |flight: &Flight| {
            flight.opcode != opcode::FLUSH && flight.cancel.lock().reason.is_some()
        };
        for flight in self.flights(interrupted) {
            if is_killed(flight.pid) {
                self.answer(&flight, -libc::EINTR, &[]);
            }
        }
    }

    /// Cancels everything in flight because nobody waits for answers any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        for flight in self.flights(|_| true) {
            run(flight.cancel(CancelReason::SessionEnded), CancelReason::SessionEnded);
        }
    }

    /// As [`end`](Self::end), but requests that stay without an answer may get one from a
    /// successor.
    pub(crate) fn hand_over(&self) {
        self.handing_over.store(true, Ordering::Release);
        self.end();
    }

    fn flights(&self, wanted: impl Fn(&Flight) -> bool) -> Vec<Arc<Flight>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().values().filter(|flight| wanted(flight)).cloned());
        }
        found
    }
}

/// Whether a thread is dying and only our answer keeps it. The kernel says INTERRUPT for any
/// signal, and says it once, so a signal that kills may be the second one.
fn is_killed(thread: u32) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        return false;
    };
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|mask| mask & SIGKILL_BIT != 0)
}

/// Runs hooks; one that panics does not take the reading thread with it.
fn run(hooks: Vec<Hook>, reason: CancelReason) {
    for hook in hooks {
        let _ = catch_unwind(AssertUnwindSafe(|| hook(reason)));
    }
}
