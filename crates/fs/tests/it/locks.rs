//! Advisory locks.

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::rng::Rng;
use gabion_fs::lock::{
    Lock, LockClass, LockOwner, LockRange, LockRequest, LockTable, Outcome, Refusal, Strength,
    Ticket, Wait,
};
use gabion_map::FileId;

use LockClass::{Flock, OpenFile, Posix};
use Outcome::{Granted, Refused, Waiting};
use Strength::{Exclusive, Shared};

fn file(ino: u64) -> FileId {
    FileId::new(SubvolId(1), Ino(ino))
}

fn range(start: u64, end: u64) -> LockRange {
    LockRange::new(start, end).expect("a range")
}

fn lock(class: LockClass, owner: u64, strength: Strength, start: u64, end: u64) -> Lock {
    let owner = LockOwner { client: owner % 10, number: owner };
    let range = range(start, end);
    Lock { file: file(7), class, owner, pid: 100, strength, range }
}

struct Table {
    table: LockTable,
    ticket: u64,
}

impl Table {
    fn new() -> Self {
        Self { table: LockTable::new(1000), ticket: 0 }
    }

    fn acquire(&mut self, lock: Lock, wait: Wait) -> Vec<Outcome> {
        self.ticket += 1;
        self.table.handle(LockRequest::Acquire { ticket: Ticket(self.ticket), lock, wait })
    }

    /// Acquires at once, and nothing else happens.
    #[track_caller]
    fn grant(&mut self, lock: Lock) {
        let outcomes = self.acquire(lock, Wait::No);
        assert_eq!(outcomes, [Granted(Ticket(self.ticket))]);
    }

    #[track_caller]
    fn refuse(&mut self, lock: Lock) {
        let outcomes = self.acquire(lock, Wait::No);
        assert_eq!(outcomes, [Refused(Ticket(self.ticket), Refusal::WouldBlock)]);
    }

    #[track_caller]
    fn wait(&mut self, lock: Lock) -> Ticket {
        let outcomes = self.acquire(lock, Wait::Yes);
        assert_eq!(outcomes, [Waiting(Ticket(self.ticket))]);
        Ticket(self.ticket)
    }

    fn release(&mut self, lock: Lock) -> Vec<Outcome> {
        let Lock { file, class, owner, range, .. } = lock;
        self.table.handle(LockRequest::Release { file, class, owner, range })
    }

    fn ranges(&self, owner: u64) -> Vec<(u64, u64, Strength)> {
        let held = self.table.held().filter(|lock| lock.owner.number == owner);
        let mut ranges: Vec<_> =
            held.map(|lock| (lock.range.start(), lock.range.end(), lock.strength)).collect();
        ranges.sort();
        ranges
    }
}

#[test]
fn readers_share_and_writers_exclude() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Shared, 0, 9));
    table.grant(lock(Posix, 2, Shared, 5, 14));
    table.refuse(lock(Posix, 3, Exclusive, 9, 9));
    table.grant(lock(Posix, 3, Exclusive, 15, 20));
    table.refuse(lock(Posix, 1, Shared, 14, 15));
    let asked = lock(Posix, 3, Exclusive, 0, 100);
    assert_eq!(table.table.conflict(&asked).unwrap().owner.number, 1);
    assert_eq!(table.table.conflict(&lock(Posix, 3, Shared, 0, 100)), None);
    assert_eq!(LockRange::new(2, 1), None);
}

#[test]
fn a_holder_has_one_lock_on_each_byte() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Shared, 0, 99));
    table.grant(lock(Posix, 1, Exclusive, 10, 19));
    assert_eq!(table.ranges(1), [(0, 9, Shared), (10, 19, Exclusive), (20, 99, Shared)]);
    table.grant(lock(Posix, 1, Exclusive, 20, 29));
    assert_eq!(table.ranges(1), [(0, 9, Shared), (10, 29, Exclusive), (30, 99, Shared)]);
    table.grant(lock(Posix, 1, Shared, 10, 29));
    assert_eq!(table.ranges(1), [(0, 99, Shared)]);
    assert_eq!(table.release(lock(Posix, 1, Shared, 40, 49)), []);
    assert_eq!(table.ranges(1), [(0, 39, Shared), (50, 99, Shared)]);
    table.release(lock(Posix, 1, Shared, 0, u64::MAX));
    assert_eq!(table.ranges(1), []);
}

#[test]
fn what_is_decided_elsewhere_is_noted_and_forgotten_as_it_is() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    // The order in which one hears of things is not always theirs.
    table.table.note_held(lock(Posix, 2, Exclusive, 5, 14));
    assert_eq!(table.ranges(2), [(5, 14, Exclusive)]);
    let waits = table.wait(lock(Posix, 3, Exclusive, 5, 5));
    assert!(table.table.is_waited_for(file(7)));
    assert_eq!(table.table.handle(LockRequest::Cancel { ticket: waits }).len(), 1);
    assert!(!table.table.is_waited_for(file(7)));
    table.table.forget_held(file(7));
    assert_eq!(table.table.held().count(), 0);
    // And counted no more.
    let mut small = Table { table: LockTable::new(3), ticket: 0 };
    for _ in 0..5 {
        small.grant(lock(Posix, 1, Exclusive, 0, 9));
        small.table.forget_held(file(7));
    }
}

#[test]
fn the_last_byte_can_be_locked() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, u64::MAX, u64::MAX));
    table.grant(lock(Posix, 1, Exclusive, 0, u64::MAX - 1));
    assert_eq!(table.ranges(1), [(0, u64::MAX, Exclusive)]);
    table.release(lock(Posix, 1, Exclusive, 5, u64::MAX));
    assert_eq!(table.ranges(1), [(0, 4, Exclusive)]);
}

#[test]
fn waiters_are_served_in_order_of_arrival() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    let second = table.wait(lock(Posix, 2, Exclusive, 0, 4));
    let third = table.wait(lock(Posix, 3, Exclusive, 0, 9));
    let fourth = table.wait(lock(Posix, 4, Shared, 5, 9));
    let all = lock(Posix, 1, Shared, 0, u64::MAX);
    assert_eq!(table.release(all), [Granted(second), Granted(fourth)]);
    assert_eq!(table.release(lock(Posix, 2, Shared, 0, 9)), []);
    assert_eq!(table.release(lock(Posix, 4, Shared, 0, 9)), [Granted(third)]);
    assert_eq!(table.table.waiting().count(), 0);
}

#[test]
fn a_weaker_lock_in_place_of_a_stronger_one_wakes_readers() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    let reader = table.wait(lock(Posix, 2, Shared, 0, 9));
    let writer = table.wait(lock(Posix, 3, Exclusive, 0, 9));
    let outcomes = table.acquire(lock(Posix, 1, Shared, 0, 9), Wait::No);
    assert_eq!(outcomes, [Granted(Ticket(table.ticket)), Granted(reader)]);
    table.release(lock(Posix, 1, Shared, 0, 9));
    assert_eq!(table.release(lock(Posix, 2, Shared, 0, 9)), [Granted(writer)]);
}

#[test]
fn a_wait_that_is_given_up_ends_at_once_and_only_once() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    let ticket = table.wait(lock(Posix, 2, Exclusive, 0, 9));
    let cancel = LockRequest::Cancel { ticket };
    assert_eq!(table.table.handle(cancel), [Refused(ticket, Refusal::Interrupted)]);
    assert_eq!(table.table.handle(cancel), []);
    assert_eq!(table.release(lock(Posix, 1, Shared, 0, 9)), []);
    assert_eq!(table.table.held().count(), 0);
}

#[test]
fn a_circle_of_waiting_processes_is_refused_across_files() {
    let mut table = Table::new();
    let on = |ino, lock: Lock| Lock { file: file(ino), ..lock };
    for owner in 1..=3 {
        table.grant(on(owner, lock(Posix, owner, Exclusive, 0, 9)));
    }
    table.wait(on(2, lock(Posix, 1, Exclusive, 0, 0)));
    let second = table.wait(on(3, lock(Posix, 2, Shared, 5, 5)));
    let circle = table.acquire(on(1, lock(Posix, 3, Exclusive, 9, 20)), Wait::Yes);
    assert_eq!(circle, [Refused(Ticket(table.ticket), Refusal::Deadlock)]);
    // Without waiting there is no circle, and open files are not searched.
    table.refuse(on(1, lock(Posix, 3, Exclusive, 9, 20)));
    table.wait(on(1, lock(OpenFile, 3, Exclusive, 9, 20)));
    let freed = table.release(on(3, lock(Posix, 3, Exclusive, 0, 9)));
    assert_eq!(freed, [Granted(second)]);
    table.wait(on(1, lock(Posix, 3, Exclusive, 9, 20)));
}

#[test]
fn processes_and_open_files_are_different_holders_and_flock_is_a_world_of_its_own() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    table.refuse(lock(OpenFile, 1, Exclusive, 0, 9));
    table.grant(lock(Flock, 1, Exclusive, 0, u64::MAX));
    table.refuse(lock(Flock, 2, Shared, 0, u64::MAX));
    table.grant(lock(OpenFile, 2, Exclusive, 10, 19));
    table.release(lock(Posix, 1, Exclusive, 0, u64::MAX));
    table.refuse(lock(Flock, 2, Shared, 0, u64::MAX));
}

#[test]
fn flock_gives_up_the_old_lock_before_it_asks_for_another_one() {
    let whole = |owner, strength| lock(Flock, owner, strength, 0, u64::MAX);
    let mut table = Table::new();
    table.grant(whole(1, Shared));
    table.grant(whole(2, Shared));
    table.grant(whole(1, Shared));
    table.refuse(whole(1, Exclusive));
    assert_eq!(table.ranges(1), []);
    table.grant(whole(2, Exclusive));
    let waiter = table.wait(whole(1, Shared));
    let outcomes = table.acquire(whole(2, Shared), Wait::No);
    assert_eq!(outcomes, [Granted(Ticket(table.ticket)), Granted(waiter)]);
}

#[test]
fn a_client_takes_its_locks_and_its_waits_with_it() {
    let mut table = Table::new();
    table.grant(lock(Posix, 1, Exclusive, 0, 9));
    table.grant(lock(Flock, 11, Exclusive, 0, u64::MAX));
    table.grant(lock(Posix, 2, Exclusive, 20, 29));
    let own = table.wait(lock(Posix, 11, Exclusive, 20, 29));
    let other = table.wait(lock(Posix, 3, Exclusive, 0, 9));
    let outcomes = table.table.handle(LockRequest::ReleaseClient { client: 1 });
    assert_eq!(outcomes, [Refused(own, Refusal::Interrupted), Granted(other)]);
    assert_eq!(table.table.held().count(), 2);
}

#[test]
fn the_table_has_a_bound() {
    let mut table = Table { table: LockTable::new(4), ticket: 0 };
    for i in 0..3 {
        table.grant(lock(Posix, i, Exclusive, i * 10, i * 10));
    }
    let outcomes = table.acquire(lock(Posix, 9, Exclusive, 90, 90), Wait::Yes);
    assert_eq!(outcomes, [Refused(Ticket(4), Refusal::TooManyLocks)]);
    table.release(lock(Posix, 0, Exclusive, 0, u64::MAX));
    table.grant(lock(Posix, 9, Exclusive, 90, 90));
}

/// The model has one entry for each byte; the table must grant exactly what it allows.
#[test]
fn random_requests_agree_with_a_lock_for_each_byte() {
    const BYTES: u64 = 24;
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let mut table = Table::new();
        let mut model: Vec<Vec<(u64, Strength)>> = vec![Vec::new(); BYTES as usize];
        for _ in 0..300 {
            let owner = rng.below(4);
            let start = rng.below(BYTES);
            let end = start + rng.below(BYTES - start);
            let strength = if rng.chance(1, 2) { Shared } else { Exclusive };
            let wanted = lock(Posix, owner, strength, start, end);
            let bytes = &mut model[start as usize..=end as usize];
            if rng.chance(1, 3) {
                table.release(wanted);
                bytes.iter_mut().for_each(|byte| byte.retain(|(holder, _)| *holder != owner));
                continue;
            }
            let is_free = bytes
                .iter()
                .flatten()
                .all(|(holder, held)| *holder == owner || *held == Shared && strength == Shared);
            if !is_free {
                table.refuse(wanted);
                continue;
            }
            table.grant(wanted);
            for byte in bytes {
                byte.retain(|(holder, _)| *holder != owner);
                byte.push((owner, strength));
            }
        }
        for owner in 0..4 {
            let mut expected: Vec<(u64, u64, Strength)> = Vec::new();
            for (at, byte) in model.iter().enumerate() {
                let at = at as u64;
                let Some((_, strength)) = byte.iter().find(|(holder, _)| *holder == owner) else {
                    continue;
                };
                match expected.last_mut() {
                    Some((_, end, last)) if *end + 1 == at && last == strength => *end = at,
                    _ => expected.push((at, at, *strength)),
                }
            }
            assert_eq!(table.ranges(owner), expected, "seed {seed}, owner {owner}");
        }
    }
}
