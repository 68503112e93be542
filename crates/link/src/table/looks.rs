//! What there is in a table: for people, and for whoever watches over clients.

use gabion_base::ids::SubvolId;
use gabion_map::LockMode;

use super::{ClientId, LeaseTable, RequestId, RevokeId, Want};
use crate::range::{KeyRange, RangeSet};

/// A lease, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub client: ClientId,
    /// On what.
    pub range: KeyRange,
    /// How.
    pub mode: LockMode,
}

impl LeaseTable {
    /// Whether clients were told to give up something of a subvolume and have not answered.
    pub fn is_owed_of(&self, subvol: SubvolId) -> bool {
        self.unanswered.values().any(|file| file.subvol == subvol)
    }

    /// How many times the client was told to give something up and has not answered.
    pub fn owed_by(&self, client: ClientId) -> usize {
        let all = (client, RevokeId(0))..=(client, RevokeId(u64::MAX));
        self.unanswered.range(all).count()
    }

    /// What the client was told first of what it has not answered.
    pub fn first_owed_by(&self, client: ClientId) -> Option<RevokeId> {
        let all = (client, RevokeId(0))..=(client, RevokeId(u64::MAX));
        self.unanswered.range(all).next().map(|((_, id), _)| *id)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = Lease> {
        self.objects.iter().flat_map(|(file, object)| {
            object.leases.iter().flat_map(move |(client, leases)| {
                let of = move |set: &RangeSet, mode| -> Vec<Lease> {
                    set.of(*file).map(|range| Lease { client: *client, range, mode }).collect()
                };
                let mut all = of(&leases.shared, LockMode::Shared);
                all.extend(of(&leases.exclusive, LockMode::Exclusive));
                all
            })
        })
    }

    /// All who wait, first come first, with what they wait for.
    pub fn waiting(&self) -> impl Iterator<Item = (RequestId, ClientId, &[Want])> {
        self.waiting.values().map(|one| (one.request, one.client, one.wants.as_slice()))
    }
}
