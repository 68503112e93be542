//! Clients and leases, for people and for whoever watches over sessions.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_link::message::SessionId;
use gabion_link::table::{ClientId, Lease, RevokeId, Want};

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

/// What a client has to answer: the first of its revocations, that it stands still, and that it
/// knows that there is less room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed([Option<u64>; 3]);

impl Owed {
    /// Whether there is anything.
    pub fn is_any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }
}

/// Since when a client owes what it owes, as far as was looked. Who is asked for something all the
/// time, and answers all of it, always owes something, and nothing for long.
#[derive(Clone, Copy, Debug)]
pub struct Owing<T>([Option<(u64, T)>; 3]);

impl<T> Default for Owing<T> {
    fn default() -> Self {
        Self([const { None }; 3])
    }
}

impl<T: Copy + Ord> Owing<T> {
    /// Takes note of what the client owes `now`. Since when it has owed the oldest of that.
    pub fn look(&mut self, owed: Owed, now: T) -> Option<T> {
        for (since, owed) in self.0.iter_mut().zip(owed.0) {
            *since = owed.map(|id| match *since {
                Some((before, since)) if before == id => (id, since),
                _ => (id, now),
            });
        }
        self.0.iter().flatten().map(|(_, since)| *since).min()
    }
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

    /// What the client has to answer.
    pub fn owed_by(&self, session: &Session) -> Owed {
        let revocation = self.grants.lock().table.first_owed_by(ClientId(session.id.0));
        Owed([
            revocation.map(|RevokeId(id)| id),
            self.freezing.awaited(session.id),
            session.owed_fence(),
        ])
    }

    /// All leases, and all who wait for some.
    pub fn leases(&self) -> (Vec<Lease>, Vec<(ClientId, Vec<Want>)>) {
        let grants = self.grants.lock();
        let waiting = grants.table.waiting().map(|(_, client, wants)| (client, wants.to_vec()));
        (grants.table.leases().collect(), waiting.collect())
    }
}

#[cfg(test)]
mod tests {
    use gabion_fs::Caller;
    use gabion_link::message::{Call, Prefetch, ToServer};
    use gabion_link::range::KeyRange;
    use gabion_map::{FileId, LockMode};

    use super::super::testing::Stage;
    use super::*;

    #[test]
    fn who_is_asked_all_the_time_and_answers_owes_nothing_for_long() {
        let stage = Stage::new();
        let (one, _) = stage.client(1);
        let (other, _) = stage.client(2);
        let root = stage.served.fs.root();
        let directories: Vec<FileId> = (0..9)
            .map(|number| {
                let name = format!("{number}");
                let made = stage.served.fs.mkdir(&Caller::superuser(), root, name.as_bytes(), 0);
                made.unwrap().file
            })
            .collect();
        let acquire = |session, id, file, mode| {
            let needed = vec![(KeyRange::attributes(file), mode)];
            let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
            stage.ask(session, id, Call::Acquire { needed, welcome, prefetch });
            stage.run();
        };
        for (id, file) in (0..).zip(&directories) {
            acquire(&one, id, *file, LockMode::Exclusive);
        }
        let mut owing = Owing::default();
        let mut look = |now: u64| owing.look(stage.served.owed_by(&one), now);
        assert_eq!(look(1), None);
        acquire(&other, 1, directories[0], LockMode::Shared);
        assert_eq!((look(2), look(3)), (Some(2), Some(2)));
        for (now, file) in (4..).zip(&directories[1..]) {
            // The next one is wanted before it has answered.
            let owed = stage.served.owed_by(&one).0[0].unwrap();
            acquire(&other, now, *file, LockMode::Shared);
            stage.served.receive(&one, ToServer::Released(vec![RevokeId(owed)]));
            stage.run();
            assert_eq!(look(now), Some(now));
        }
        assert_eq!((look(100), look(101)), (Some(11), Some(11)));
    }
}
