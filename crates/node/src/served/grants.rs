//! The table of leases together with the calls that wait for it.

use std::collections::BTreeMap;

use gabion_link::table::{Action, LeaseTable, RequestId, RevokeId, Want};

use super::Job;

/// Who may touch what, and whose turn comes later.
pub(crate) struct Grants {
    pub(crate) table: LeaseTable,
    parked: BTreeMap<RequestId, Job>,
}

/// What follows from a change of the table.
#[derive(Default)]
pub(crate) struct Due {
    /// Calls that run again.
    pub(crate) jobs: Vec<Job>,
    /// Revocations to be told.
    pub(crate) revocations: Vec<Action>,
}

impl Grants {
    /// With an empty table whose revocations are numbered from `first` on.
    pub(crate) fn from(first: RevokeId) -> Self {
        Self { table: LeaseTable::from(first), parked: BTreeMap::new() }
    }

    /// Lets a call wait for `wants`.
    pub(crate) fn park(&mut self, job: Job, wants: &[Want]) -> Due {
        let (request, client) = (job.request, job.client());
        self.parked.insert(request, job);
        let actions = self.table.park(request, client, wants);
        self.due(actions)
    }

    /// Calls that wait, taken out if `is_over` says so of their session's number.
    pub(crate) fn drop_parked(&mut self, is_over: impl Fn(&Job) -> bool) {
        self.parked.retain(|_, job| !is_over(job));
    }

    /// What the driver has to do about `actions`.
    pub(crate) fn due(&mut self, actions: Vec<Action>) -> Due {
        let mut due = Due::default();
        for action in actions {
            match action {
                Action::Resume(request) => due.jobs.extend(self.parked.remove(&request)),
                Action::Revoke { .. } => due.revocations.push(action),
            }
        }
        due
    }
}
