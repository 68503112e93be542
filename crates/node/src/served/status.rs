//! Clients and leases, for people and for whoever watches over sessions.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_link::message::SessionId;
use gabion_link::table::{ClientId, Lease, Want};

use super::{Served, Session};

/// A client, for people.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    /// Its session.
    pub session: SessionId,
    /// What it calls itself.
    pub name: String,
    /// Ranges that it has leases on.
    pub leases: usize,
    /// Objects that it has open.
    pub opens: usize,
    /// Revocations that it has not answered.
    pub owed: usize,
}

impl Served {
    /// All clients.
    pub fn clients(&self) -> Vec<ClientStatus> {
        let sessions: Vec<_> = self.sessions.read().values().cloned().collect();
        let grants = self.grants.lock();
        let mut leases: BTreeMap<ClientId, usize> = BTreeMap::new();
        for lease in grants.table.leases() {
            *leases.entry(lease.client).or_default() += 1;
        }
        let status = |session: Arc<Session>| {
            let client = ClientId(session.id.0);
            ClientStatus {
                session: session.id,
                name: session.name.clone(),
                leases: leases.get(&client).copied().unwrap_or(0),
                opens: session.opens(),
                owed: grants.table.owed_by(client),
            }
        };
        sessions.into_iter().map(status).collect()
    }

    /// Whether the client has revocations to answer, or to stand still, or to know that there is
    /// less room.
    pub fn owes(&self, session: &Session) -> bool {
        self.freezing.is_awaited(session.id)
            || session.owes_fence()
            || self.grants.lock().table.owed_by(ClientId(session.id.0)) > 0
    }

    /// All leases, and all who wait for some.
    pub fn leases(&self) -> (Vec<Lease>, Vec<(ClientId, Vec<Want>)>) {
        let grants = self.grants.lock();
        let waiting = grants.table.waiting().map(|(_, client, wants)| (client, wants.to_vec()));
        (grants.table.leases().collect(), waiting.collect())
    }
}
