//! The table of leases: its invariants after every step of random histories, and what each rule
//! is for.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::ids::{Ino, SubvolId};
use gabion_link::range::{KeyRange, RangeSet};
use gabion_link::table::{Action, ClientId, Keep, Lease, LeaseTable, RequestId, RevokeId, Want};
use gabion_map::{FileId, LockMode};
use proptest::prelude::*;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);

fn bytes(from: u64, to: u64) -> KeyRange {
    KeyRange::bytes(FileId::new(SubvolId(1), Ino(1)), from, to)
}

fn shared(range: KeyRange) -> Want {
    (range, LockMode::Shared)
}

fn exclusive(range: KeyRange) -> Want {
    (range, LockMode::Exclusive)
}

/// A request that holds all that it wants and has ended with leases on `grants`.
fn lease(table: &mut LeaseTable, id: u64, client: ClientId, range: KeyRange) {
    assert!(table.try_hold(RequestId(id), client, shared(range)));
    assert_eq!(table.finish(RequestId(id), &[shared(range)]), []);
}

fn own(table: &mut LeaseTable, id: u64, client: ClientId, range: KeyRange) {
    assert!(table.try_hold(RequestId(id), client, exclusive(range)));
    assert_eq!(table.finish(RequestId(id), &[exclusive(range)]), []);
}

#[test]
fn a_change_of_bytes_waits_for_all_leases_on_them_and_takes_no_more_than_it_needs() {
    let mut table = LeaseTable::default();
    lease(&mut table, 1, A, bytes(0, 100));
    lease(&mut table, 2, B, bytes(50, 150));
    let wants = exclusive(bytes(40, 60));
    assert!(!table.try_hold(RequestId(3), A, wants));
    let keep = Keep::Nothing;
    let own = Action::Revoke { client: A, id: RevokeId(1), range: bytes(40, 60), keep };
    let revoke = Action::Revoke { client: B, id: RevokeId(2), range: bytes(50, 60), keep };
    assert_eq!(table.park(RequestId(3), A, &[wants]), [own, revoke]);
    assert_eq!(table.owed_by(B), 1);
    // Bytes are cached by a kernel, which has to be told by somebody.
    assert_eq!(table.released(A, RevokeId(1)), []);
    // What the client keeps beside it stays leased.
    let resume = Action::Resume(RequestId(3));
    assert_eq!(table.released(B, RevokeId(2)), [resume]);
    assert!(table.has(B, &bytes(60, 150)) && !table.has(B, &bytes(59, 61)));
    assert!(table.try_hold(RequestId(3), A, wants));
    assert_eq!(table.finish(RequestId(3), &[shared(bytes(40, 60))]), []);
    assert!(table.has(A, &bytes(0, 100)));
}

#[test]
fn what_is_not_wanted_before_it_is_granted_is_given_up_when_it_is() {
    let mut table = LeaseTable::default();
    assert!(table.try_hold(RequestId(1), A, shared(bytes(0, 10))));
    assert!(table.try_hold(RequestId(2), B, shared(bytes(0, 10))));
    // The answer is on its way before the lease is here, and so may be this.
    assert_eq!(table.unwanted(A, &bytes(5, 20)), []);
    let (id, range) = (RevokeId(1), bytes(5, 10));
    let revoke = Action::Revoke { client: A, id, range, keep: Keep::Nothing };
    assert_eq!(table.finish(RequestId(1), &[shared(bytes(0, 10))]), [revoke]);
    assert_eq!(table.finish(RequestId(2), &[shared(bytes(0, 10))]), []);
    table.released(A, RevokeId(1));
    assert!(table.has(A, &bytes(0, 5)) && !table.has(A, &bytes(5, 6)));
    // What is granted later is wanted.
    lease(&mut table, 3, A, bytes(0, 20));
}

#[test]
fn who_comes_later_waits_behind_who_waits_already() {
    let mut table = LeaseTable::default();
    lease(&mut table, 1, A, bytes(0, 10));
    assert_eq!(table.park(RequestId(2), B, &[exclusive(bytes(0, 10))]).len(), 1);
    // It would not stand against the lease, but the writer would starve.
    assert!(!table.try_hold(RequestId(3), C, shared(bytes(5, 6))));
    assert_eq!(table.park(RequestId(3), C, &[shared(bytes(5, 6))]), []);
    assert_eq!(table.released(A, RevokeId(1)), [Action::Resume(RequestId(2))]);
    assert_eq!(table.finish(RequestId(2), &[]), [Action::Resume(RequestId(3))]);
}

#[test]
fn what_is_leased_and_not_yet_given_up_is_read_past_who_waits() {
    let mut table = LeaseTable::default();
    lease(&mut table, 1, A, bytes(0, 10));
    table.park(RequestId(2), B, &[exclusive(bytes(0, 10))]);
    // The kernel may hold locks that it gives up only with the answer to this.
    assert!(table.try_hold(RequestId(3), A, shared(bytes(2, 8))));
    assert_eq!(table.finish(RequestId(3), &[]), []);
    assert!(!table.try_hold(RequestId(4), A, exclusive(bytes(2, 8))));
}

#[test]
fn who_needs_more_gives_up_what_it_holds_and_keeps_its_place() {
    let mut table = LeaseTable::default();
    let (low, high) = (bytes(0, 1), bytes(1, 2));
    assert!(table.try_hold(RequestId(1), A, exclusive(low)));
    assert!(table.try_hold(RequestId(2), B, exclusive(high)));
    assert_eq!(table.park(RequestId(1), A, &[exclusive(high)]), []);
    // The first waits for both of its ranges, and holds neither; the second goes behind it.
    assert!(!table.try_hold(RequestId(2), B, exclusive(low)));
    let resumed = table.park(RequestId(2), B, &[exclusive(low)]);
    assert_eq!(resumed, [Action::Resume(RequestId(1))]);
    assert_eq!(table.finish(RequestId(1), &[]), [Action::Resume(RequestId(2))]);
}

#[test]
fn of_a_lease_on_locks_nothing_is_kept_and_an_idle_one_is_recalled() {
    let mut table = LeaseTable::default();
    let locks = KeyRange::locks(FileId::new(SubvolId(1), Ino(1)));
    let revoke =
        |id| Action::Revoke { client: A, id: RevokeId(id), range: locks, keep: Keep::Nothing };
    assert!(!table.is_concerned(A, &locks));
    lease(&mut table, 1, A, locks);
    assert!(table.is_concerned(A, &locks) && !table.is_others(B, &locks));
    assert_eq!(table.recall(A, &locks), []);
    assert_eq!(table.recall(B, &locks), [revoke(1)]);
    assert_eq!(table.recall(B, &locks), [], "it was told once");
    assert_eq!(table.released(A, RevokeId(1)), []);
    assert!(!table.is_concerned(A, &locks));
    assert!(table.try_hold(RequestId(2), A, exclusive(locks)));
    // The lease comes a moment after the answer.
    assert!(table.is_concerned(A, &locks) && table.is_others(B, &locks));
    assert_eq!(table.finish(RequestId(2), &[exclusive(locks)]), []);
    assert!(table.is_others(B, &locks) && !table.is_others(A, &locks));
    assert_eq!(table.park(RequestId(3), B, &[shared(locks)]), [revoke(2)]);
    assert_eq!(table.released(A, RevokeId(2)), [Action::Resume(RequestId(3))]);
    assert!(!table.is_others(B, &locks));
}

#[test]
fn a_client_that_is_gone_stands_in_nobodys_way() {
    let mut table = LeaseTable::default();
    lease(&mut table, 1, A, bytes(0, 10));
    table.park(RequestId(2), B, &[exclusive(bytes(0, 10))]);
    table.park(RequestId(3), C, &[shared(bytes(0, 10))]);
    assert_eq!(table.evict(B), [Action::Resume(RequestId(3))]);
    assert_eq!(table.finish(RequestId(3), &[]), []);
    assert_eq!(table.evict(A), []);
    assert_eq!(table.leases().count(), 0);
}

#[test]
fn a_change_of_names_does_not_cost_the_client_its_own_lease() {
    let mut table = LeaseTable::default();
    let names = KeyRange::names(FileId::new(SubvolId(1), Ino(1)));
    lease(&mut table, 1, A, names);
    assert!(table.try_hold(RequestId(2), A, exclusive(names)));
    assert_eq!(table.finish(RequestId(2), &[]), []);
    assert!(table.has(A, &names));
}

#[test]
fn an_answer_to_a_revocation_does_not_take_what_was_granted_after_it() {
    let mut table = LeaseTable::default();
    lease(&mut table, 1, A, bytes(0, 10));
    assert!(table.try_hold(RequestId(2), A, shared(bytes(0, 10))));
    table.park(RequestId(3), B, &[exclusive(bytes(0, 10))]);
    // The client has answered the first one when this reaches it, and keeps what it says.
    let keep = Keep::Nothing;
    let again = Action::Revoke { client: A, id: RevokeId(2), range: bytes(0, 10), keep };
    assert_eq!(table.finish(RequestId(2), &[shared(bytes(0, 10))]), [again]);
    assert_eq!(table.released(A, RevokeId(1)), []);
    assert!(table.has(A, &bytes(0, 10)));
    assert_eq!(table.released(A, RevokeId(2)), [Action::Resume(RequestId(3))]);
}

#[test]
fn what_a_client_has_exclusively_only_its_changes_touch() {
    let mut table = LeaseTable::default();
    let names = KeyRange::names(FileId::new(SubvolId(1), Ino(1)));
    own(&mut table, 1, A, names);
    // The server may not know what the client has made of it.
    assert!(!table.try_hold(RequestId(2), A, shared(names)));
    table.begin_informed(RequestId(3), A);
    assert!(table.try_hold(RequestId(3), A, exclusive(names)));
    assert_eq!(table.finish(RequestId(3), &[]), []);
    let keep = Keep::Shared;
    let revoke = Action::Revoke { client: A, id: RevokeId(1), range: names, keep };
    assert_eq!(table.park(RequestId(2), A, &[shared(names)]), [revoke]);
    // Until it is given up, changes are made past who waits.
    table.begin_change(RequestId(4), A);
    assert!(table.try_hold(RequestId(4), A, exclusive(names)));
    table.finish(RequestId(4), &[]);
    assert_eq!(table.released(A, RevokeId(1)), [Action::Resume(RequestId(2))]);
    assert!(table.has(A, &names));
}

#[test]
fn whoever_waits_for_what_is_not_there_yet_does_not_hold_up_who_makes_it() {
    let mut table = LeaseTable::default();
    let file = |number| KeyRange::attributes(FileId::new(SubvolId(1), Ino(number)));
    own(&mut table, 1, A, file(1));
    // B waits for both, and A gives up the first only after it has made the second.
    table.park(RequestId(2), B, &[shared(file(1)), shared(file(2))]);
    table.begin_change(RequestId(3), A);
    assert!(table.try_hold(RequestId(3), A, exclusive(file(2))));
    assert_eq!(table.finish(RequestId(3), &[]), []);
    assert_eq!(table.released(A, RevokeId(1)), [Action::Resume(RequestId(2))]);
}

#[test]
fn who_stands_in_the_way_of_readers_goes_on_reading() {
    let mut table = LeaseTable::default();
    let names = KeyRange::names(FileId::new(SubvolId(1), Ino(1)));
    own(&mut table, 1, A, names);
    table.park(RequestId(2), B, &[shared(names)]);
    assert_eq!(table.released(A, RevokeId(1)), [Action::Resume(RequestId(2))]);
    assert_eq!(table.finish(RequestId(2), &[shared(names)]), []);
    assert!(table.has(A, &names) && table.has(B, &names));
    table.begin_change(RequestId(3), A);
    assert!(!table.try_hold(RequestId(3), A, exclusive(names)));
}

#[test]
fn what_is_yielded_is_free() {
    let mut table = LeaseTable::default();
    own(&mut table, 1, A, bytes(0, 100));
    let revoke = table.park(RequestId(2), B, &[shared(bytes(10, 20))]);
    let keep = Keep::Nothing;
    let range = bytes(10, 20);
    assert_eq!(revoke, [Action::Revoke { client: A, id: RevokeId(1), range, keep }]);
    assert_eq!(table.yielded(A, &bytes(0, 100)), [Action::Resume(RequestId(2))]);
    assert_eq!(table.finish(RequestId(2), &[shared(bytes(10, 20))]), []);
    // The answer to what was asked before says nothing new.
    assert_eq!(table.released(A, RevokeId(1)), []);
    assert!(table.has(B, &bytes(10, 20)) && !table.has(A, &bytes(0, 1)));
}

#[test]
fn nobody_has_leases_on_what_is_gone() {
    let mut table = LeaseTable::default();
    let file = FileId::new(SubvolId(1), Ino(1));
    lease(&mut table, 1, A, KeyRange::attributes(file));
    lease(&mut table, 2, B, bytes(0, 10));
    let (range, keep) = (bytes(0, 10), Keep::Nothing);
    let revoke = Action::Revoke { client: B, id: RevokeId(1), range, keep };
    assert_eq!(table.gone(file, A), [revoke]);
    assert_eq!(table.released(B, RevokeId(1)), []);
    assert_eq!(table.leases().count(), 0);
}

fn attributes(number: u64) -> KeyRange {
    KeyRange::attributes(FileId::new(SubvolId(1), Ino(number)))
}

/// What a client is told to give up.
fn told(actions: &[Action]) -> Vec<(RevokeId, u64)> {
    let revocation = |action: &Action| match action {
        Action::Revoke { client: A, id, range, keep: Keep::Nothing } => (*id, range.file().ino.0),
        other => panic!("{other:?}"),
    };
    actions.iter().map(revocation).collect()
}

#[test]
fn who_has_leases_on_too_many_objects_gives_up_each_in_its_turn() {
    let mut table = LeaseTable::with_limit(32);
    let mut given_up = Vec::new();
    for number in 0..100 {
        let want = shared(attributes(number));
        assert!(table.try_hold(RequestId(number), A, want));
        for (id, ino) in told(&table.finish(RequestId(number), &[want])) {
            given_up.push(ino);
            table.released(A, id);
        }
        assert!(table.objects_of(A) <= 32 && table.objects_of(A) >= number.min(30) as usize);
    }
    assert!(given_up.is_sorted() && given_up.len() >= 68, "{given_up:?}");
    // Others have their own.
    lease(&mut table, 1000, B, attributes(0));
    table.evict(A);
    assert_eq!((table.objects_of(A), table.objects_of(B)), (0, 1));
}

#[test]
fn who_gives_up_nothing_gets_no_more_until_he_does() {
    let mut table = LeaseTable::with_limit(16);
    let mut owed = Vec::new();
    let mut number = 0;
    while table.try_hold(RequestId(number), A, shared(attributes(number))) {
        owed.extend(told(&table.finish(RequestId(number), &[shared(attributes(number))])));
        number += 1;
    }
    assert_eq!((table.objects_of(A), number), (32, 32));
    // Each was told once.
    let files: BTreeSet<u64> = owed.iter().map(|(_, ino)| *ino).collect();
    assert_eq!(files.len(), owed.len());
    assert_eq!(table.park(RequestId(number), A, &[shared(attributes(number))]), []);
    // What it has changed by itself is taken all the same, and others do not mind.
    table.begin_change(RequestId(1000), A);
    assert!(table.try_hold(RequestId(1000), A, exclusive(attributes(1000))));
    assert_eq!(table.finish(RequestId(1000), &[]), []);
    lease(&mut table, 1001, B, attributes(1000));
    assert_eq!(table.released(A, owed[0].0), [Action::Resume(RequestId(number))]);
    assert_eq!(table.objects_of(A), 31);
}

/// One client or request does something, by number.
#[derive(Clone, Debug)]
enum Step {
    /// A request of a client asks for a range.
    Ask { client: u64, from: u64, length: u64, is_exclusive: bool },
    /// A request that runs asks for more.
    More { pick: usize, from: u64, length: u64, is_exclusive: bool },
    /// A request that runs ends, with a lease on the first range it held or without.
    End { pick: usize, takes_lease: bool },
    /// A client does what it was told.
    Obey { pick: usize },
    /// A client makes a change by itself.
    Change { client: u64, pick: usize },
    /// A client gives up what it has exclusively.
    Yield { client: u64, from: u64, length: u64 },
    /// A client goes.
    Leave { client: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..12_u64, 1..5_u64, any::<bool>());
    prop_oneof![
        4 => (1..4_u64, range()).prop_map(|(client, (from, length, is_exclusive))| {
            Step::Ask { client, from, length, is_exclusive }
        }),
        2 => (any::<usize>(), range()).prop_map(|(pick, (from, length, is_exclusive))| {
            Step::More { pick, from, length, is_exclusive }
        }),
        4 => (any::<usize>(), any::<bool>())
            .prop_map(|(pick, takes_lease)| Step::End { pick, takes_lease }),
        3 => any::<usize>().prop_map(|pick| Step::Obey { pick }),
        3 => (1..4_u64, any::<usize>()).prop_map(|(client, pick)| Step::Change { client, pick }),
        1 => (1..4_u64, 0..12_u64, 1..5_u64)
            .prop_map(|(client, from, length)| Step::Yield { client, from, length }),
        1 => (1..4_u64).prop_map(|client| Step::Leave { client }),
    ]
}

/// Clients and requests as they see themselves.
#[derive(Default)]
struct World {
    table: LeaseTable,
    next: u64,
    running: BTreeMap<RequestId, (ClientId, Vec<Want>)>,
    parked: BTreeMap<RequestId, (ClientId, Vec<Want>)>,
    told: Vec<(ClientId, RevokeId, KeyRange)>,
    /// What each client believes to have, and what of it exclusively.
    believed: BTreeMap<ClientId, (RangeSet, RangeSet)>,
}

impl World {
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Resume(id) => {
                    let (client, wants) = self.parked.remove(&id).expect("it waits");
                    for want in &wants {
                        assert!(self.table.try_hold(id, client, *want), "{want:?} is held");
                    }
                    self.running.insert(id, (client, wants));
                }
                Action::Revoke { client, id, range, keep } => {
                    assert!(self.table.has(client, &range));
                    // The client forgets at once; that it says so takes a while.
                    let (all, exclusive) = self.believed.entry(client).or_default();
                    exclusive.remove(&range);
                    if keep == Keep::Nothing {
                        all.remove(&range);
                    }
                    self.told.push((client, id, range));
                }
            }
        }
    }

    fn ask(&mut self, id: RequestId, client: ClientId, mut held: Vec<Want>, want: Want) {
        if self.table.try_hold(id, client, want) {
            held.push(want);
            self.running.insert(id, (client, held));
        } else {
            let actions = self.table.park(id, client, &[want]);
            held.push(want);
            self.parked.insert(id, (client, held));
            self.act(actions);
        }
    }

    fn step(&mut self, step: Step) {
        let want = |from, length, is_exclusive| {
            let mode = if is_exclusive { LockMode::Exclusive } else { LockMode::Shared };
            (bytes(from, from + length), mode)
        };
        match step {
            Step::Ask { client, from, length, is_exclusive } => {
                self.next += 1;
                let want = want(from, length, is_exclusive);
                self.ask(RequestId(self.next), ClientId(client), Vec::new(), want);
            }
            Step::More { pick, from, length, is_exclusive } => {
                let Some(id) = self.pick(pick) else { return };
                let (client, held) = self.running.remove(&id).unwrap();
                self.ask(id, client, held, want(from, length, is_exclusive));
            }
            Step::End { pick, takes_lease } => {
                let Some(id) = self.pick(pick) else { return };
                let (client, held) = self.running.remove(&id).unwrap();
                let grants = if takes_lease { vec![held[0]] } else { Vec::new() };
                // The answer with the grants is on its way before anything that follows.
                for (range, mode) in &grants {
                    let (all, exclusive) = self.believed.entry(client).or_default();
                    all.insert(range);
                    if *mode == LockMode::Exclusive {
                        exclusive.insert(range);
                    }
                }
                let actions = self.table.finish(id, &grants);
                self.act(actions);
            }
            Step::Obey { pick } => {
                if self.told.is_empty() {
                    return;
                }
                let (client, id, _) = self.told.remove(pick % self.told.len());
                let actions = self.table.released(client, id);
                self.act(actions);
            }
            Step::Change { client, pick } => {
                let client = ClientId(client);
                let file = FileId::new(SubvolId(1), Ino(1));
                let Some((_, exclusive)) = self.believed.get(&client) else { return };
                let ranges: Vec<_> = exclusive.of(file).collect();
                let Some(range) = ranges.get(pick % ranges.len().max(1)) else { return };
                self.next += 1;
                let id = RequestId(self.next);
                self.table.begin_change(id, client);
                let want = (*range, LockMode::Exclusive);
                assert!(self.table.try_hold(id, client, want), "a change never waits");
                let actions = self.table.finish(id, &[]);
                self.act(actions);
            }
            Step::Yield { client, from, length } => {
                let (client, range) = (ClientId(client), bytes(from, from + length));
                let (all, exclusive) = self.believed.entry(client).or_default();
                for part in exclusive.parts(&range) {
                    all.remove(&part);
                    exclusive.remove(&part);
                }
                let actions = self.table.yielded(client, &range);
                self.act(actions);
            }
            Step::Leave { client } => {
                let client = ClientId(client);
                self.told.retain(|(who, ..)| *who != client);
                self.believed.remove(&client);
                self.parked.retain(|_, (who, _)| *who != client);
                let actions = self.table.evict(client);
                self.act(actions);
            }
        }
    }

    fn pick(&self, pick: usize) -> Option<RequestId> {
        let ids: Vec<_> = self.running.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[pick % ids.len()])
    }

    /// The table's first three invariants, by brute force.
    fn check(&self) {
        let leases: Vec<_> = self.table.leases().collect();
        let clash = |one: LockMode, other: LockMode| {
            one == LockMode::Exclusive || other == LockMode::Exclusive
        };
        let running: Vec<_> = self.running.iter().collect();
        for (index, (id, (client, held))) in running.iter().enumerate() {
            for (range, mode) in held {
                let minds = |lease: &&Lease| {
                    lease.client != *client
                        || *mode == LockMode::Exclusive
                        || lease.mode == LockMode::Exclusive
                };
                for lease in leases.iter().filter(minds) {
                    let apart = !lease.range.overlaps(range) || !clash(lease.mode, *mode);
                    assert!(apart, "{id:?} holds {range:?} against {lease:?}");
                }
                for (other, (_, others)) in &running[index + 1..] {
                    let apart =
                        |(theirs, how): &Want| !theirs.overlaps(range) || !clash(*how, *mode);
                    assert!(others.iter().all(apart), "{id:?} and {other:?} hold {range:?}");
                }
            }
        }
        // Nobody believes to have what the table does not know of.
        for (client, (all, exclusive)) in &self.believed {
            let file = FileId::new(SubvolId(1), Ino(1));
            assert!(all.of(file).all(|range| self.table.has(*client, &range)), "{client:?}");
            let is_own = |range: &KeyRange| {
                let others = leases.iter().filter(|lease| lease.client != *client);
                others.into_iter().all(|lease| !lease.range.overlaps(range))
            };
            assert!(exclusive.of(file).all(|range| is_own(&range)), "{client:?}");
        }
        for client in [A, B, C] {
            let its = leases.iter().filter(|lease| lease.client == client);
            let objects: BTreeSet<_> = its.map(|lease| lease.range.file()).collect();
            assert_eq!(self.table.objects_of(client), objects.len());
        }
        let waiting: BTreeSet<_> = self.table.waiting().map(|(id, ..)| id).collect();
        assert_eq!(waiting, self.parked.keys().copied().collect());
    }

    /// Everybody does what is to be done: then nobody waits.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some(id) = self.pick(0) {
                self.running.remove(&id);
                let actions = self.table.finish(id, &[]);
                self.act(actions);
            } else if !self.told.is_empty() {
                self.step(Step::Obey { pick: 0 });
            } else {
                assert!(self.parked.is_empty(), "stuck: {:?}", self.parked);
                return;
            }
        }
        panic!("no end");
    }
}

proptest! {
    #[test]
    fn rights_that_clash_never_meet_and_everybody_comes_to_an_end(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::default();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.settle();
    }
}
