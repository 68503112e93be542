//! The table of leases together with the calls that wait for it.

use std::collections::BTreeMap;

use gabion_link::message::SessionId;
use gabion_link::range::KeyRange;
use gabion_link::table::{Action, ClientId, LeaseTable, RequestId, RevokeId, Want};

use super::Job;

/// Who may touch what, and whose turn comes later.
pub(super) struct Grants {
    pub(super) table: LeaseTable,
    parked: BTreeMap<RequestId, Job>,
}

/// What a client has to be told to give up.
pub(super) struct Revocation {
    pub(super) client: ClientId,
    pub(super) id: RevokeId,
    pub(super) range: KeyRange,
}

/// What follows from a change of the table.
#[derive(Default)]
pub(super) struct Due {
    /// Calls that run again.
    pub(super) jobs: Vec<Job>,
    pub(super) revocations: Vec<Revocation>,
}

impl Grants {
    /// With an empty table whose revocations are numbered from `first` on.
    pub(super) fn from(first: RevokeId) -> Self {
        Self { table: LeaseTable::from(first), parked: BTreeMap::new() }
    }

    /// Lets a call wait for `wants`.
    pub(super) fn park(&mut self, job: Job, wants: &[Want]) -> Vec<Action> {
        let (request, client) = (job.request, job.client());
        self.parked.insert(request, job);
        self.table.park(request, client, wants)
    }

    /// A session has ended: nothing of it waits any more, or has leases.
    pub(super) fn evict(&mut self, session: SessionId) -> Vec<Action> {
        self.parked.retain(|_, job| job.session.id != session);
        self.table.evict(ClientId(session.0))
    }

    /// What the driver has to do about `actions`.
    pub(super) fn due(&mut self, actions: Vec<Action>) -> Due {
        let mut due = Due::default();
        for action in actions {
            match action {
                Action::Resume(request) => due.jobs.extend(self.parked.remove(&request)),
                Action::Revoke { client, id, range } => {
                    due.revocations.push(Revocation { client, id, range });
                }
            }
        }
        due
    }
}
