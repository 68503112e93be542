//! Who has which lease, which operations hold what, and who waits for whom.
//!
//! Two kinds of rights stand against each other here:
//!
//! - a *lease* is a client's, lasts until it is revoked, and says what the client may cache;
//! - a *hold* is one request's (an operation that the server runs), lasts until the request has
//!   ended, and says what the operation may touch meanwhile.
//!
//! What a client has an exclusive lease on it may have changed already, and the server learns it
//! later, as a *change*. A request that makes such a change here, or that reads and comes after
//! all of them (an *informed* one), is not stopped by its own client's leases. Every other request
//! waits until they are given up, also one of the same client.
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
//!    bytes and the same client's lease, and a hold that is not informed and the same client's
//!    exclusive lease.
//! 4. Whoever waits holds nothing, and gets all that it waits for at once. So nobody waits in a
//!    circle.
//! 5. Of two that stand against each other, the one that came first goes first, however often it
//!    has to ask for more. So nobody starves. Only what the client has a lease on already is held
//!    past others that wait, as until it has given up the lease nothing has changed; and whatever a
//!    change is about, as it has been made already.
//!
//! A client has leases on so many objects at most (`counts`): of more it is told to give some up.
//!
//! What stands in the way of who waits is revoked, each part once. Who stands in the way of
//! readers only keeps a shared lease. When it is given up is the client's business, how long that
//! may take the driver's.
//!
//! Absent: clocks, sessions, what the items are.

mod counts;
mod leases;
mod looks;

use std::collections::BTreeMap;

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::{FileId, Kind, LockMode};

use crate::range::{KeyRange, RangeSet};

use self::counts::Counts;
use self::leases::Leases;
pub use self::looks::Lease;

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

/// What a client keeps of what it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// A shared lease on what it had an exclusive one on.
    Shared,
}

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
        /// What is left to the client.
        keep: Keep,
    },
}

#[derive(Debug, Default)]
struct Object {
    leases: BTreeMap<ClientId, Leases>,
    holds: Vec<(RequestId, KeyRange, LockMode)>,
}

#[derive(Debug)]
struct Request {
    client: ClientId,
    kind: RequestKind,
    /// When it waited for the first time, in the order of all who ever did.
    arrival: Option<u64>,
    holds: Vec<Want>,
    /// What its client does not want of what it may be granted.
    unwanted: Vec<KeyRange>,
}

impl Request {
    fn new(client: ClientId, kind: RequestKind) -> Self {
        Self { client, kind, arrival: None, holds: Vec::new(), unwanted: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestKind {
    /// The client has made it already.
    Change,
    /// It comes after all that the client has changed.
    Informed,
    /// The same, and its client is going to cache the bytes that it holds.
    Caching,
    Other,
}

impl RequestKind {
    /// Whether its own client's exclusive lease on `range` stands against it.
    fn minds_exclusive(self, range: &KeyRange) -> bool {
        match self {
            Self::Change | Self::Informed => false,
            Self::Caching => range.kind() == Some(Kind::DATA),
            Self::Other => true,
        }
    }
}

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    client: ClientId,
    wants: Vec<Want>,
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
    counts: Counts,
}

/// Whether a client's own shared lease stands against what it wants. Nobody but the server can tell
/// a kernel that bytes which it caches have changed, not even if its own programs changed them.
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

    /// Begins a request that comes after all that the client has changed: the client's own
    /// exclusive leases do not stand against it.
    pub fn begin_informed(&mut self, id: RequestId, client: ClientId) {
        let new = || Request::new(client, RequestKind::Informed);
        self.requests.entry(id).or_insert_with(new);
    }

    /// The same for a request to read bytes that the client is going to cache: who may change
    /// bytes has none of them cached.
    pub fn begin_caching(&mut self, id: RequestId, client: ClientId) {
        let new = || Request::new(client, RequestKind::Caching);
        self.requests.entry(id).or_insert_with(new);
    }

    /// Begins a request that makes what the client has made already.
    pub fn begin_change(&mut self, id: RequestId, client: ClientId) {
        let new = || Request::new(client, RequestKind::Change);
        self.requests.entry(id).or_insert_with(new);
    }

    /// Holds `range` for the request, unless somebody stands against that. A request's first hold
    /// makes it known.
    pub fn try_hold(&mut self, id: RequestId, client: ClientId, want: Want) -> bool {
        let request =
            self.requests.entry(id).or_insert_with(|| Request::new(client, RequestKind::Other));
        let arrival = request.arrival.unwrap_or(u64::MAX);
        if self.is_held(id, &want) {
            return true;
        }
        if !self.is_free(id, client, arrival, &want) {
            return false;
        }
        self.hold(id, want);
        true
    }

    /// Whether the request holds all of `want`. Requests hold many objects, and few hold one.
    fn is_held(&self, id: RequestId, (range, mode): &Want) -> bool {
        let holds = self.objects.get(&range.file()).map_or(&[][..], |object| &object.holds);
        holds.iter().any(|(holder, held, how)| *holder == id && held.covers(range) && how >= mode)
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
        let kind = self.requests.get(&id).map_or(RequestKind::Other, |request| request.kind);
        if matches!(kind, RequestKind::Caching | RequestKind::Other)
            && self.counts.is_overdrawn(client)
        {
            return false;
        }
        let mut may_pass = kind == RequestKind::Change;
        if let Some(object) = self.objects.get(&range.file()) {
            let held = object.holds.iter().any(|(other, held, how)| {
                *other != id && clash(*how, *mode) && held.overlaps(range)
            });
            let minds_own = minds_own(want);
            let leased = object.leases.iter().any(|(other, leases)| match *other == client {
                false => leases.stand_against(range, *mode),
                true => {
                    minds_own && leases.shared.overlaps(range)
                        || kind.minds_exclusive(range) && leases.exclusive.overlaps(range)
                }
            });
            if held || leased {
                return false;
            }
            may_pass |= object.leases.get(&client).is_some_and(|own| own.allow(range, *mode));
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
        let request =
            self.requests.entry(id).or_insert_with(|| Request::new(client, RequestKind::Other));
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

    /// Ends a request. The client gets leases as `grants` say, each within what the request held.
    pub fn finish(&mut self, id: RequestId, grants: &[Want]) -> Vec<Action> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let client = request.client;
        for (range, mode) in grants {
            assert!(self.is_held(id, &(*range, *mode)), "{range:?} of {:?}", request.holds);
        }
        for (range, mode) in grants {
            let file = range.file();
            let object = self.objects.entry(file).or_default();
            let leases = object.leases.entry(client).or_insert_with(|| {
                self.counts.begun(client);
                Leases::default()
            });
            leases.grant(range, *mode);
            self.counts.granted(client, file);
        }
        self.drop_holds(id);
        let unwanted = self.requests.remove(&id).map_or(Vec::new(), |request| request.unwanted);
        let mut actions = Vec::new();
        for range in unwanted {
            self.revoke_from(client, &(range, LockMode::Exclusive), &mut actions);
        }
        self.shed(client, &mut actions);
        actions.extend(self.serve());
        actions
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
        self.released_all(client, &[id])
    }

    /// The client has done all of this that it was told. Who waits is looked at once.
    pub fn released_all(&mut self, client: ClientId, ids: &[RevokeId]) -> Vec<Action> {
        let mut is_any = false;
        for id in ids {
            let Some(file) = self.unanswered.remove(&(client, *id)) else { continue };
            is_any = true;
            if let Some(object) = self.objects.get_mut(&file)
                && let Some(leases) = object.leases.get_mut(&client)
            {
                let (set, keep) =
                    leases.revoked.remove(id).unwrap_or((RangeSet::default(), Keep::Nothing));
                for range in set.of(file) {
                    leases.give_up(&range, keep);
                }
            }
            self.tidy(file);
        }
        if is_any { self.serve() } else { Vec::new() }
    }

    /// The client has nothing of `range` exclusively any more.
    pub fn yielded(&mut self, client: ClientId, range: &KeyRange) -> Vec<Action> {
        if let Some(object) = self.objects.get_mut(&range.file())
            && let Some(leases) = object.leases.get_mut(&client)
        {
            leases.exclusive.remove(range);
        }
        self.tidy(range.file());
        self.serve()
    }

    /// The object is gone. `knowing` has forgotten it, all others shall.
    pub fn gone(&mut self, file: FileId, knowing: ClientId) -> Vec<Action> {
        let Some(object) = self.objects.get_mut(&file) else { return Vec::new() };
        if object.leases.remove(&knowing).is_some() {
            self.counts.ended(knowing, file);
        }
        let others: Vec<ClientId> = object.leases.keys().copied().collect();
        let mut actions: Vec<Action> = others
            .into_iter()
            .flat_map(|client| self.unwanted(client, &KeyRange::everything(file)))
            .collect();
        self.tidy(file);
        actions.extend(self.serve());
        actions
    }

    /// The client does not want leases on `range` any more. It loses them as anybody does; those
    /// that are granted by an answer that it may have heard already, as soon as they are.
    pub fn unwanted(&mut self, client: ClientId, range: &KeyRange) -> Vec<Action> {
        let holds = self.objects.get(&range.file()).map_or(&[][..], |object| &object.holds);
        for (id, ..) in holds.iter().filter(|(_, held, _)| held.overlaps(range)) {
            if let Some(request) = self.requests.get_mut(id).filter(|one| one.client == client) {
                request.unwanted.push(*range);
            }
        }
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
        self.counts.evict(client);
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
            object.leases.retain(|client, leases| {
                if leases.is_empty() {
                    self.counts.ended(*client, file);
                }
                !leases.is_empty()
            });
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
            let clients: Vec<_> = object.leases.keys().copied().collect();
            for other in clients {
                // Of its own a client loses what the server may not know yet.
                let mode = match other == client && !minds_own(want) {
                    true => LockMode::Shared,
                    false => want.1,
                };
                self.revoke_from(other, &(want.0, mode), actions);
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
        // Of bytes that it may change a client has no copy that would be worth keeping, and of
        // advisory locks it knows its own only.
        let is_kept = !matches!(range.kind(), Some(Kind::DATA | Kind::LOCK));
        let keep = match *mode == LockMode::Shared && is_kept {
            true => Keep::Shared,
            false => Keep::Nothing,
        };
        for range in parts.into_iter().flat_map(|part| leases.not_revoked(part)).collect::<Vec<_>>()
        {
            self.revokes += 1;
            let id = RevokeId(self.revokes);
            let mut set = RangeSet::default();
            set.insert(&range);
            leases.revoked.insert(id, (set, keep));
            self.unanswered.insert((client, id), file);
            actions.push(Action::Revoke { client, id, range, keep });
        }
    }

    /// A whole subvolume is gone: all shall forget what they know of it.
    pub fn all_gone(&mut self, subvol: SubvolId) -> Vec<Action> {
        let (first, last) = (FileId::new(subvol, Ino(0)), FileId::new(subvol, Ino(u64::MAX)));
        let leased = self.objects.range(first..=last);
        let leased: Vec<(FileId, ClientId)> = leased
            .flat_map(|(file, object)| object.leases.keys().map(|client| (*file, *client)))
            .collect();
        let mut actions = Vec::new();
        for (file, client) in leased {
            let want = (KeyRange::everything(file), LockMode::Exclusive);
            self.revoke_from(client, &want, &mut actions);
        }
        actions
    }

    /// Whether the client may change all of `range` by itself.
    pub fn owns(&self, client: ClientId, range: &KeyRange) -> bool {
        self.leases_of(client, range).is_some_and(|own| own.allow(range, LockMode::Exclusive))
    }

    /// Asks all other clients for their leases on `range`, though nobody waits for that.
    pub fn recall(&mut self, client: ClientId, range: &KeyRange) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(object) = self.objects.get(&range.file()) else { return actions };
        let others: Vec<_> = object.leases.keys().filter(|id| **id != client).copied().collect();
        for other in others {
            self.revoke_from(other, &(*range, LockMode::Exclusive), &mut actions);
        }
        actions
    }

    /// Whether another client has an exclusive lease on some of `range`, or is about to get one.
    pub fn is_others(&self, client: ClientId, range: &KeyRange) -> bool {
        let Some(object) = self.objects.get(&range.file()) else { return false };
        let mut others = object.leases.iter().filter(|(other, _)| **other != client);
        let mut holds = object.holds.iter().filter(|(id, held, mode)| {
            *mode == LockMode::Exclusive && held.overlaps(range) && self.client_of(*id) != client
        });
        others.any(|(_, leases)| leases.exclusive.overlaps(range)) || holds.next().is_some()
    }

    /// Whether the client has a lease on some of `range`, or may be about to get one.
    pub fn is_concerned(&self, client: ClientId, range: &KeyRange) -> bool {
        let Some(object) = self.objects.get(&range.file()) else { return false };
        let leases = object.leases.get(&client);
        let mut holds = object.holds.iter();
        leases.is_some_and(|own| own.stand_against(range, LockMode::Exclusive))
            || holds.any(|(id, held, _)| held.overlaps(range) && self.client_of(*id) == client)
    }

    fn client_of(&self, id: RequestId) -> ClientId {
        self.requests[&id].client
    }

    /// Whether there are at least `count` parts of `range`, not none, that the client may read.
    pub fn has_parts(&self, client: ClientId, range: &KeyRange, count: usize) -> bool {
        self.leases_of(client, range).is_some_and(|own| own.shared.has_parts(range, count))
    }

    fn leases_of(&self, client: ClientId, range: &KeyRange) -> Option<&Leases> {
        self.objects.get(&range.file())?.leases.get(&client)
    }

    /// Whether the client may read all of `range`.
    pub fn has(&self, client: ClientId, range: &KeyRange) -> bool {
        self.leases_of(client, range).is_some_and(|own| own.allow(range, LockMode::Shared))
    }
}
