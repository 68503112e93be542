//! Calls on their way to the workers.
//!
//! To wake a worker takes longer than some calls do. Those are done by the thread that has read
//! them, or has set them free, if it is ready for that ([`Jobs::with_quick`]).
//!
//! And a worker that is woken by the first of many messages that have come together would do each
//! as it is taken, and answer each by itself. So what clients say in order is handed to it when
//! all have been taken ([`Jobs::together`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gabion_base::sync::RwLock;
use gabion_link::message::SessionId;
use gabion_node::served::Job;

use super::load::Load;

thread_local! {
    /// Calls that this thread does itself, if it does.
    static QUICK: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
    /// Lanes that wait until this thread has taken all that it has read, if it takes several.
    static LANES: RefCell<Option<Vec<Job>>> = const { RefCell::new(None) };
}

/// Calls that are to be run.
pub(super) struct Jobs {
    sender: Sender<Job>,
    receiver: Receiver<Job>,
    loads: RwLock<BTreeMap<SessionId, Arc<Load>>>,
}

impl Jobs {
    /// None yet.
    pub(super) fn new() -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self { sender, receiver, loads: RwLock::default() }
    }

    /// Counts a session's calls from now on.
    pub(super) fn enter(&self, session: SessionId, load: &Arc<Load>) {
        self.loads.write().insert(session, Arc::clone(load));
    }

    /// A session has ended.
    pub(super) fn leave(&self, session: SessionId) {
        self.loads.write().remove(&session);
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

    /// Takes many messages by `take`, and then has run what is to be done in order.
    pub(super) fn together<T>(&self, take: impl FnOnce() -> T) -> T {
        LANES.set(Some(Vec::new()));
        let _end = Together(self);
        take()
    }

    /// Has a call run soon.
    pub(super) fn queue(&self, job: Job) {
        let Some(job) = keep_if_quick(job).and_then(keep_if_lane) else { return };
        if let Some((session, call)) = job.call()
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
        if let Some((session, call)) = job.call() {
            let load = self.loads.read().get(&session).cloned();
            if let Some(load) = load {
                load.taken(call);
            }
        }
        Some(job)
    }
}

/// When this goes, what was kept is handed on, also if a message was none that could be taken.
struct Together<'j>(&'j Jobs);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        LANES.take().into_iter().flatten().for_each(|job| self.0.queue(job));
    }
}

/// Keeps a lane for later, if this thread takes several messages. Else it is given back.
fn keep_if_lane(job: Job) -> Option<Job> {
    LANES.with_borrow_mut(|lanes| match lanes {
        Some(lanes) if job.is_lane() => {
            lanes.push(job);
            None
        }
        _ => Some(job),
    })
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
