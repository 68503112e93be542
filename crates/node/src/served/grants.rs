//! The table of leases together with the calls that wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::{CallId, SessionId};
use gabion_link::range::KeyRange;
use gabion_link::table::{Action, ClientId, Keep, LeaseTable, RequestId, RevokeId, Want};

use super::{Request, Session, Work};

/// Who may touch what, and whose turn comes later.
pub(super) struct Grants {
    pub(super) table: LeaseTable,
    parked: BTreeMap<RequestId, Work>,
}

/// What a client has to be told to give up.
pub(super) struct Revocation {
    pub(super) client: ClientId,
    pub(super) id: RevokeId,
    pub(super) range: KeyRange,
    pub(super) keep: Keep,
}

/// What follows from a change of the table.
#[derive(Default)]
pub(super) struct Due {
    /// What goes on.
    pub(super) work: Vec<Work>,
    pub(super) revocations: Vec<Revocation>,
}

/// Somebody who waits in a thread.
#[derive(Default)]
pub(super) struct Turn {
    has_come: Mutex<bool>,
    changed: Condvar,
}

impl Turn {
    /// The request holds all that it waited for.
    pub(super) fn come(&self) {
        *self.has_come.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for that. False: it took longer than `patience`.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut has_come = self.has_come.lock();
        while !*has_come {
            if self.changed.wait_for(&mut has_come, patience).timed_out() {
                return *has_come;
            }
        }
        true
    }
}

impl Grants {
    /// With an empty table whose revocations are numbered from `first` on.
    pub(super) fn from(first: RevokeId) -> Self {
        Self { table: LeaseTable::from(first), parked: BTreeMap::new() }
    }

    /// Lets a call wait for `wants`.
    pub(super) fn park(&mut self, job: Request, wants: &[Want]) -> Vec<Action> {
        let (request, client) = (job.request, job.client());
        self.parked.insert(request, Work::Call(job));
        self.table.park(request, client, wants)
    }

    /// Lets the change at the head of a session's lane wait for `wants`.
    pub(super) fn park_lane(
        &mut self,
        session: &Arc<Session>,
        request: RequestId,
        wants: &[Want],
    ) -> Vec<Action> {
        self.parked.insert(request, Work::Lane(Arc::clone(session)));
        self.table.park(request, ClientId(session.id.0), wants)
    }

    /// Lets somebody who waits in a thread wait for `wants`.
    pub(super) fn park_errand(
        &mut self,
        turn: Arc<Turn>,
        request: RequestId,
        client: ClientId,
        wants: &[Want],
    ) -> Vec<Action> {
        self.parked.insert(request, Work::Errand(turn));
        self.table.park(request, client, wants)
    }

    /// Nobody waits for this request any more.
    pub(super) fn forget_parked(&mut self, request: RequestId) {
        self.parked.remove(&request);
    }

    /// Takes out the request of a call that waits.
    pub(super) fn take_parked(&mut self, session: SessionId, id: CallId) -> Option<RequestId> {
        let is_meant = |work: &Work| match work {
            Work::Call(request) => request.session.id == session && request.id == id,
            Work::Lane(_) | Work::Errand(_) | Work::Recovery => false,
        };
        let request = *self.parked.iter().find(|(_, work)| is_meant(work))?.0;
        self.parked.remove(&request);
        Some(request)
    }

    /// A session has ended: nothing of it waits any more, or has leases.
    pub(super) fn evict(&mut self, session: SessionId) -> Vec<Action> {
        self.parked.retain(|_, work| work.session().is_none_or(|of| of.id != session));
        self.table.evict(ClientId(session.0))
    }

    /// What the driver has to do about `actions`.
    pub(super) fn due(&mut self, actions: Vec<Action>) -> Due {
        let mut due = Due::default();
        for action in actions {
            match action {
                Action::Resume(request) => due.work.extend(self.parked.remove(&request)),
                Action::Revoke { client, id, range, keep } => {
                    due.revocations.push(Revocation { client, id, range, keep });
                }
            }
        }
        due
    }
}
