//! Calls on their way to the workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gabion_base::sync::RwLock;
use gabion_link::message::SessionId;
use gabion_node::served::Job;

use super::load::Load;

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

    /// Has a call run soon.
    pub(super) fn queue(&self, job: Job) {
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
