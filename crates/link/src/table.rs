//! Who has which lease, which operations hold what, and who waits for whom.
//!
//! Two kinds of rights stand against each other here:
//!
//! - a *lease* is a client's, lasts until it is revoked, and says what the client may cache;
//! - a *hold* is one request's (an operation that the server runs), lasts until the request has
//!   ended, and says what the operation may touch meanwhile.
//!
//! ```text
//!   request --try_hold--> held ... held --finish--> holds end, some become leases
//!               |  somebody stands against it
//!               '--park--> waits, holding nothing --all of it free--> Resume: runs again
//! ```
//!
//! Invariants:
//!
//! 1. Leases of two clients overlap only if both are shared.
//! 2. Holds of two requests overlap only if both are shared.
//! 3. A hold of one client and a lease of another overlap only if both are shared. So do a hold on
//!    bytes and the same client's lease.
//! 4. Whoever waits holds nothing, and gets all that it waits for at once. So nobody waits in a
//!    circle.
//! 5. Of two that stand against each other, the one that came first goes first, however often it
//!    has to ask for more. So nobody starves. Only what the client has a lease on already is held
//!    past others that wait: until it has given up the lease, nothing has changed.
//!
//! What stands in the way of who waits is revoked, each part once. When it is given up is the
//! client's business, how long that may take the driver's.
//!
//! Absent: clocks, sessions, what the items are.

use std::collections::BTreeMap;

use gabion_map::{FileId, Kind, LockMode};

use crate::range::{KeyRange, RangeSet};

/// Names a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Names a request; the driver gives each its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names what a client was told to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevokeId(pub u64);

/// A range and how it is wanted.
pub type Want = (KeyRange, LockMode);

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request holds all that it waited for: run it again.
    Resume(RequestId),
    /// Tell the client to give up its lease on the range.
    Revoke {
        /// Who.
        client: ClientId,
        /// What the client answers with.
        id: RevokeId,
        /// What.
        range: KeyRange,
    },
}

/// One client's leases on one object.
#[derive(Clone, Debug, Default)]
struct Leases {
    shared: RangeSet,
    exclusive: RangeSet,
    /// What it was told to give up and has not been granted again since.
    revoked: BTreeMap<RevokeId, RangeSet>,
}

impl Leases {
    fn stand_against(&self, range: &KeyRange, mode: LockMode) -> bool {
        self.exclusive.overlaps(range) || mode == LockMode::Exclusive && self.shared.overlaps(range)
    }

    fn allow(&self, range: &KeyRange, mode: LockMode) -> bool {
        self.exclusive.covers(range) || mode == LockMode::Shared && self.shared.covers(range)
    }

    fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.exclusive.is_empty()
    }

    /// The parts of `range` that it was not told to give up yet.
    fn not_revoked(&self, range: KeyRange) -> Vec<KeyRange> {
        let sets = self.revoked.values();
        sets.fold(vec![range], |parts, set| parts.iter().flat_map(|part| set.gaps(part)).collect())
    }
}

#[derive(Debug, Default)]
struct Object {
    leases: BTreeMap<ClientId, Leases>,
    holds: Vec<(RequestId, KeyRange, LockMode)>,
}

#[derive(Debug)]
struct Request {
    client: ClientId,
    /// When it waited for the first time, in the order of all who ever did.
    arrival: Option<u64>,
    holds: Vec<Want>,
}

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    client: ClientId,
    wants: Vec<Want>,
}

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

/// All leases of a filesystem that is served.
#[derive(Debug, Default)]
pub struct LeaseTable {
    objects: BTreeMap<FileId, Object>,
    requests: BTreeMap<RequestId, Request>,
    /// By arrival.
    waiting: BTreeMap<u64, Waiting>,
    arrivals: u64,
    revokes: u64,
    /// Of which object each was that a client has not answered.
    unanswered: BTreeMap<(ClientId, RevokeId), FileId>,
}

/// Whether a client's own lease stands against what it wants. Nobody but the server can tell a
/// kernel that bytes which it caches have changed, not even if its own programs changed them.
fn minds_own(want: &Want) -> bool {
    let (range, mode) = want;
    *mode == LockMode::Exclusive && range.kind() == Some(Kind::DATA)
}

fn clash(one: LockMode, other: LockMode) -> bool {
    one == LockMode::Exclusive || other == LockMode::Exclusive
}

impl LeaseTable {
    /// An empty table whose revocations are numbered from `first` on: those of an earlier table may
    /// still be answered.
    pub fn from(first: RevokeId) -> Self {
        Self { revokes: first.0, ..Self::default() }
    }

    /// Holds `range` for the request, unless somebody stands against that. A request's first hold
    /// makes it known.
    pub fn try_hold(&mut self, id: RequestId, client: ClientId, want: Want) -> bool {
        let (range, mode) = want;
        let request = self.requests.entry(id).or_insert_with(|| Request {
            client,
            arrival: None,
            holds: Vec::new(),
        });
        let is_held = |(held, how): &Want| held.covers(&range) && *how >= mode;
        if request.holds.iter().any(is_held) {
            return true;
        }
        let arrival = request.arrival.unwrap_or(u64::MAX);
        if !self.is_free(id, client, arrival, &want) {
            return false;
        }
        self.hold(id, want);
        true
    }

    fn hold(&mut self, id: RequestId, want: Want) {
        let (range, mode) = want;
        self.objects.entry(range.file()).or_default().holds.push((id, range, mode));
        self.requests.get_mut(&id).expect("it is known").holds.push(want);
    }

    /// Whether nobody stands against `want`: no hold, no other client's lease, and nobody who came
    /// earlier and waits.
    fn is_free(&self, id: RequestId, client: ClientId, arrival: u64, want: &Want) -> bool {
        let (range, mode) = want;
        let mut may_pass = false;
        if let Some(object) = self.objects.get(&range.file()) {
            let held = object.holds.iter().any(|(other, held, how)| {
                *other != id && clash(*how, *mode) && held.overlaps(range)
            });
            let minds_own = minds_own(want);
            let leased = object.leases.iter().any(|(other, leases)| {
                (*other != client || minds_own) && leases.stand_against(range, *mode)
            });
            if held || leased {
                return false;
            }
            may_pass = object.leases.get(&client).is_some_and(|own| own.allow(range, *mode));
        }
        may_pass
            || !self.waiting.range(..arrival).any(|(_, other)| {
                other.request != id
                    && other
                        .wants
                        .iter()
                        .any(|(wanted, how)| clash(*how, *mode) && wanted.overlaps(range))
            })
    }

    /// Lets the request wait for `wants` and all that it holds, which others may have meanwhile.
    pub fn park(&mut self, id: RequestId, client: ClientId, wants: &[Want]) -> Vec<Action> {
        let mut all = self.drop_holds(id);
        let request = self.requests.entry(id).or_insert_with(|| Request {
            client,
            arrival: None,
            holds: Vec::new(),
        });
        for want in wants.iter().filter(|want| !all.contains(want)).copied().collect::<Vec<_>>() {
            all.push(want);
        }
        let arrival = *request.arrival.get_or_insert_with(|| {
            self.arrivals += 1;
            self.arrivals
        });
        self.waiting.insert(arrival, Waiting { request: id, client, wants: all });
        self.serve()
    }

    fn drop_holds(&mut self, id: RequestId) -> Vec<Want> {
        let Some(request) = self.requests.get_mut(&id) else { return Vec::new() };
        let holds = std::mem::take(&mut request.holds);
        for (range, _) in &holds {
            if let Some(object) = self.objects.get_mut(&range.file()) {
                object.holds.retain(|(holder, ..)| *holder != id);
            }
            self.tidy(range.file());
        }
        holds
    }

    /// Ends a request. The client gets shared leases on `grants`, each within what the request
    /// held.
    pub fn finish(&mut self, id: RequestId, grants: &[KeyRange]) -> Vec<Action> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let client = request.client;
        for range in grants {
            let is_held = request.holds.iter().any(|(held, _)| held.covers(range));
            assert!(is_held, "{range:?} of {:?}", request.holds);
        }
        for range in grants {
            let object = self.objects.entry(range.file()).or_default();
            let leases = object.leases.entry(client).or_default();
            leases.shared.insert(range);
            // The client answers what it was told before it learns of this, or knows of this when
            // it is told; in both cases its answer does not speak of this lease.
            for set in leases.revoked.values_mut() {
                set.remove(range);
            }
        }
        self.drop_holds(id);
        self.requests.remove(&id);
        self.serve()
    }

    /// Ends a request that waits or runs, without anything for anybody.
    pub fn withdraw(&mut self, id: RequestId) -> Vec<Action> {
        self.drop_holds(id);
        if let Some(arrival) = self.requests.remove(&id).and_then(|request| request.arrival) {
            self.waiting.remove(&arrival);
        }
        self.serve()
    }

    /// The client has done what it was told.
    pub fn released(&mut self, client: ClientId, id: RevokeId) -> Vec<Action> {
        let Some(file) = self.unanswered.remove(&(client, id)) else { return Vec::new() };
        if let Some(object) = self.objects.get_mut(&file)
            && let Some(leases) = object.leases.get_mut(&client)
        {
            let set = leases.revoked.remove(&id).unwrap_or_default();
            for range in set.of(file) {
                leases.shared.remove(&range);
                leases.exclusive.remove(&range);
            }
        }
        self.tidy(file);
        self.serve()
    }

    /// The client does not want leases on `range` any more. It loses them as anybody does.
    pub fn unwanted(&mut self, client: ClientId, range: &KeyRange) -> Vec<Action> {
        let mut actions = Vec::new();
        self.revoke_from(client, &(*range, LockMode::Exclusive), &mut actions);
        actions
    }

    /// The client is gone, and with it its leases and all of its requests that wait. Those that
    /// run end by themselves.
    pub fn evict(&mut self, client: ClientId) -> Vec<Action> {
        self.objects.retain(|_, object| {
            object.leases.remove(&client);
            !object.leases.is_empty() || !object.holds.is_empty()
        });
        self.unanswered.retain(|(owing, _), _| *owing != client);
        let gone: Vec<(u64, RequestId)> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.client == client)
            .map(|(arrival, waiting)| (*arrival, waiting.request))
            .collect();
        for (arrival, request) in gone {
            self.waiting.remove(&arrival);
            self.requests.remove(&request);
        }
        self.serve()
    }

    /// Forgets an object that nobody has anything of.
    fn tidy(&mut self, file: FileId) {
        if let Some(object) = self.objects.get_mut(&file) {
            object.leases.retain(|_, leases| !leases.is_empty());
            if object.leases.is_empty() && object.holds.is_empty() {
                self.objects.remove(&file);
            }
        }
    }

    /// Lets everybody go on who can, in order of arrival, and asks for what the others wait for.
    fn serve(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let arrivals: Vec<u64> = self.waiting.keys().copied().collect();
        for arrival in arrivals {
            let waiting = &self.waiting[&arrival];
            let (id, client) = (waiting.request, waiting.client);
            if waiting.wants.iter().all(|want| self.is_free(id, client, arrival, want)) {
                let waiting = self.waiting.remove(&arrival).expect("it was found");
                for want in waiting.wants {
                    self.hold(id, want);
                }
                actions.push(Action::Resume(id));
            } else {
                let wants = waiting.wants.clone();
                self.revoke(client, &wants, &mut actions);
            }
        }
        actions
    }

    fn revoke(&mut self, client: ClientId, wants: &[Want], actions: &mut Vec<Action>) {
        for want in wants {
            let Some(object) = self.objects.get(&want.0.file()) else { continue };
            let is_asked = |other: &ClientId| *other != client || minds_own(want);
            let others: Vec<_> = object.leases.keys().copied().filter(is_asked).collect();
            for other in others {
                self.revoke_from(other, want, actions);
            }
        }
    }

    /// Tells a client to give up what stands against `want`.
    fn revoke_from(&mut self, client: ClientId, want: &Want, actions: &mut Vec<Action>) {
        let (range, mode) = want;
        let file = range.file();
        let Some(object) = self.objects.get_mut(&file) else { return };
        let Some(leases) = object.leases.get_mut(&client) else { return };
        let mut parts = leases.exclusive.parts(range);
        if *mode == LockMode::Exclusive {
            parts.extend(leases.shared.parts(range));
        }
        for range in parts.into_iter().flat_map(|part| leases.not_revoked(part)).collect::<Vec<_>>()
        {
            self.revokes += 1;
            let id = RevokeId(self.revokes);
            leases.revoked.entry(id).or_default().insert(&range);
            self.unanswered.insert((client, id), file);
            actions.push(Action::Revoke { client, id, range });
        }
    }

    /// How many times the client was told to give something up and has not answered.
    pub fn owed_by(&self, client: ClientId) -> usize {
        let all = (client, RevokeId(0))..=(client, RevokeId(u64::MAX));
        self.unanswered.range(all).count()
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

    /// Whether the client has a shared lease on all of `range`.
    pub fn has(&self, client: ClientId, range: &KeyRange) -> bool {
        let object = self.objects.get(&range.file());
        let leases = object.and_then(|object| object.leases.get(&client));
        leases.is_some_and(|leases| leases.allow(range, LockMode::Shared))
    }
}
