//! Calls on their way to the workers, and those that have to wait for the end of a grace period.
//!
//! To wake a worker takes longer than some calls do. Those are done by the thread that has read
//! them, or has set them free, if it is ready for that ([`Jobs::with_quick`]).
//!
//! After a start, clients of the start before may still answer from what they have cached, because
//! their sessions have not ended by their own clocks. Until they must have ended, nothing is
//! changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gabion_base::sync::{Mutex, RwLock};
use gabion_link::message::SessionId;
use gabion_node::served::Job;

use super::load::Load;

thread_local! {
    /// Calls that this thread does itself, if it does.
    static QUICK: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
}

/// Calls that are to be run.
pub(super) struct Jobs {
    sender: Sender<Job>,
    receiver: Receiver<Job>,
    /// When the grace period ends, with what waits for that; nothing when it has ended.
    grace: Mutex<Option<(Instant, Vec<Job>)>>,
    loads: RwLock<BTreeMap<SessionId, Arc<Load>>>,
}

impl Jobs {
    /// None yet. If there may be sessions of an earlier start, it said how long they live.
    pub(super) fn new(grace: Option<Duration>) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let grace = grace.map(|grace| (Instant::now() + grace, Vec::new()));
        Self { sender, receiver, grace: Mutex::new(grace), loads: RwLock::default() }
    }

    /// Counts a session's calls from now on.
    pub(super) fn enter(&self, session: SessionId) -> Arc<Load> {
        let load = Arc::new(Load::default());
        self.loads.write().insert(session, Arc::clone(&load));
        load
    }

    /// A session has ended.
    pub(super) fn leave(&self, session: SessionId) {
        self.loads.write().remove(&session);
    }

    /// Has a call run, soon or after the grace period.
    pub(super) fn queue(&self, job: Job) {
        let mut grace = self.grace.lock();
        match &mut *grace {
            Some((_, waiting)) if job.changes() => waiting.push(job),
            _ => {
                drop(grace);
                self.send(job);
            }
        }
    }

    /// Does `first`, and then by `run` whatever quick calls came of that.
    pub(super) fn with_quick<T>(&self, first: impl FnOnce() -> T, run: impl Fn(Job)) -> T {
        QUICK.set(Some(VecDeque::new()));
        let value = first();
        while let Some(job) = QUICK.with_borrow_mut(|jobs| jobs.as_mut()?.pop_front()) {
            run(job);
        }
        QUICK.set(None);
        value
    }

    fn send(&self, job: Job) {
        let Some(job) = keep_if_quick(job) else { return };
        if let (session, Some(call)) = job.of()
            && let Some(load) = self.loads.read().get(&session)
        {
            load.queued(call);
        }
        // Both ends are here.
        let sent = self.sender.send(job);
        debug_assert!(sent.is_ok(), "there are no workers");
    }

    /// The next call, if there is one within `patience`.
    pub(super) fn next(&self, patience: Duration) -> Option<Job> {
        let job = match self.receiver.recv_timeout(patience) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        if let (session, Some(call)) = job.of() {
            let load = self.loads.read().get(&session).cloned();
            if let Some(load) = load {
                load.taken(call);
            }
        }
        Some(job)
    }

    /// Ends the grace period when it is over.
    pub(super) fn end_grace_if_due(&self) {
        let due = self.grace.lock().take_if(|(ends, _)| Instant::now() >= *ends);
        due.into_iter().flat_map(|(_, waiting)| waiting).for_each(|job| self.send(job));
    }
}

/// Leaves a quick call to this thread, if it is ready for that. Else it is given back.
fn keep_if_quick(job: Job) -> Option<Job> {
    QUICK.with_borrow_mut(|jobs| match jobs {
        Some(jobs) if job.is_quick() => {
            jobs.push_back(job);
            None
        }
        _ => Some(job),
    })
}
