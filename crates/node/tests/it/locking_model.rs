//! Random histories of locks at several clients, beside one table that decides about the same
//! requests.

use std::collections::BTreeMap;

use gabion_base::rng::Rng;
use gabion_fs::Error;
use gabion_fs::lock::{
    Lock, LockClass, LockOwner, LockRange, LockRequest, LockTable, Outcome, Refusal, Strength,
    Ticket, Wait,
};
use gabion_map::FileId;

use crate::locking::{Asked, ask, await_waiting, leases_on_locks, lock, open, shared_file, unlock};
use crate::shared::{Client, Server, await_that};

/// Clients and one table that decides about the same requests.
struct History {
    server: Server,
    clients: Vec<Client>,
    files: Vec<FileId>,
    table: LockTable,
    tickets: u64,
    waiting: BTreeMap<Ticket, (usize, Asked)>,
    /// Whose turn it is.
    client: usize,
}

const NAMES: [&str; 2] = ["one", "two"];

impl History {
    /// The first `far` clients are far away.
    fn new(clients: usize, far: usize) -> Self {
        let server = Server::new();
        let clients: Vec<Client> = (0..clients).map(|_| server.client()).collect();
        let all: Vec<&Client> = clients.iter().collect();
        let files = NAMES.iter().map(|name| shared_file(&all, name)).collect();
        clients[..far].iter().for_each(Client::move_away);
        let (table, tickets, waiting) = (LockTable::new(10_000), 0, BTreeMap::new());
        Self { server, clients, files, table, tickets, waiting, client: 0 }
    }

    fn step(&mut self, rng: &mut Rng) {
        // Most do several things before others come.
        if rng.below(5) == 0 {
            self.client = rng.below(self.clients.len() as u64) as usize;
        }
        let client = self.client;
        match rng.below(20) {
            0..=6 => self.lock(client, random_lock(&self.files, client, rng), rng.below(3) == 0),
            7..=9 => self.unlock(client, random_lock(&self.files, client, rng)),
            10..=11 => {
                let range = LockRange::WHOLE;
                let lock = random_lock(&self.files, client, rng);
                self.unlock(client, Lock { range, ..lock });
            }
            12 => self.test(client, random_lock(&self.files, client, rng)),
            13 => self.cancel(),
            14 => self.close(client, rng.below(NAMES.len() as u64) as usize),
            15 => await_that(|| self.server.served.recall_locks(None) == 0),
            _ => self.server.world.clock.advance(1),
        }
        await_waiting(&self.server, self.table.waiting().count());
        assert!(self.waiting.values().all(|(_, asked)| !asked.has_ended()));
        let sorted = |mut locks: Vec<Lock>| {
            locks.sort_by_key(|lock| (lock.file, lock.class, lock.owner, lock.range.start()));
            locks
        };
        let of = |(index, client): (usize, &Client)| -> Vec<Lock> {
            client.fs.held_locks().into_iter().map(|lock| owned(lock, index)).collect()
        };
        let held = sorted(self.clients.iter().enumerate().flat_map(of).collect());
        assert_eq!(held, sorted(self.table.held().copied().collect()));
    }

    fn lock(&mut self, client: usize, wanted: Lock, waits: bool) {
        self.tickets += 1;
        let (ticket, wait) = (Ticket(self.tickets), if waits { Wait::Yes } else { Wait::No });
        let request = LockRequest::Acquire { ticket, lock: owned(wanted, client), wait };
        let outcomes = self.table.handle(request);
        let asked = ask(&self.clients[client], wanted, wait);
        match outcomes[0] {
            Outcome::Waiting(_) => drop(self.waiting.insert(ticket, (client, asked))),
            Outcome::Granted(_) => asked.end().unwrap(),
            Outcome::Refused(_, refusal) => {
                let error = asked.end().unwrap_err();
                assert_eq!(refusal_of(&error), Some(refusal));
            }
        }
        self.settle(&outcomes[1..]);
    }

    fn unlock(&mut self, client: usize, lock: Lock) {
        let Lock { file, class, owner, range, .. } = owned(lock, client);
        let outcomes = self.table.handle(LockRequest::Release { file, class, owner, range });
        unlock(&self.clients[client], lock);
        self.settle(&outcomes);
    }

    fn test(&self, client: usize, lock: Lock) {
        let expected = self.table.conflict(&owned(lock, client));
        let found = self.clients[client].run(|fs| fs.lock_conflict(&lock)).unwrap();
        let start = |lock: &Lock| lock.range.start();
        assert_eq!(found.as_ref().map(start), expected.map(start));
    }

    /// Whoever waits longest gives up.
    fn cancel(&mut self) {
        let Some((ticket, (client, asked))) = self.waiting.first_key_value() else { return };
        let ticket = *ticket;
        self.clients[*client].fs.cancel_lock(asked.1.expect("it waits"));
        let outcomes = self.table.handle(LockRequest::Cancel { ticket });
        self.settle(&outcomes);
    }

    fn close(&mut self, client: usize, file: usize) {
        let (name, file) = (NAMES[file], self.files[file]);
        // Whoever waits has it open.
        let is_own = |lock: &Lock| lock.owner.client == client as u64 && lock.file == file;
        if self.table.waiting().any(|(_, lock)| is_own(lock)) {
            return;
        }
        let held: Vec<Lock> = self.table.held().copied().filter(|lock| is_own(lock)).collect();
        let mut outcomes = Vec::new();
        for Lock { file, class, owner, .. } in held {
            let range = LockRange::WHOLE;
            outcomes.extend(self.table.handle(LockRequest::Release { file, class, owner, range }));
        }
        let client = &self.clients[client];
        client.fs.release(file);
        open(client, name);
        // What the kernel has not unlocked before is unlocked when the server hears of it.
        client.run(|fs| fs.space(client.root.subvol)).unwrap();
        self.settle(&outcomes);
    }

    fn settle(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let (ticket, refusal) = match outcome {
                Outcome::Granted(ticket) => (ticket, None),
                Outcome::Refused(ticket, refusal) => (ticket, Some(*refusal)),
                Outcome::Waiting(_) => panic!("nobody has asked: {outcomes:?}"),
            };
            let (_, asked) = self.waiting.remove(ticket).expect("it waits");
            assert_eq!(asked.end().err().as_ref().and_then(refusal_of), refusal);
        }
    }
}

fn refusal_of(error: &Error) -> Option<Refusal> {
    match error {
        Error::WouldBlock => Some(Refusal::WouldBlock),
        Error::Deadlock => Some(Refusal::Deadlock),
        Error::Interrupted => Some(Refusal::Interrupted),
        other => panic!("{other:?}"),
    }
}

/// The lock as the table knows it.
fn owned(lock: Lock, client: usize) -> Lock {
    Lock { owner: LockOwner { client: client as u64, ..lock.owner }, ..lock }
}

fn random_lock(files: &[FileId], client: usize, rng: &mut Rng) -> Lock {
    let class = [LockClass::Posix, LockClass::Posix, LockClass::OpenFile, LockClass::Flock]
        [rng.below(4) as usize];
    let from = rng.below(6);
    let range = match class {
        LockClass::Flock => LockRange::WHOLE,
        _ => LockRange::new(from, from + rng.below(4)).unwrap(),
    };
    let strength = [Strength::Shared, Strength::Exclusive][rng.below(2) as usize];
    let number = 10 * client as u64 + rng.below(2);
    let file = files[rng.below(files.len() as u64) as usize];
    Lock { class, range, strength, ..lock(file, number) }
}

#[test]
fn clients_with_leases_decide_as_one_table_would() {
    let (mut leased, mut steps) = (0, 0);
    for seed in 0..12 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let clients = 2 + seed as usize % 2;
        let mut history = History::new(clients, rng.below(3) as usize);
        for _ in 0..120 {
            history.step(&mut rng);
            leased += leases_on_locks(&history.server);
            steps += NAMES.len();
        }
    }
    // A file is leased some of the time.
    assert!(leased > steps / 10 && leased < steps / 2, "{leased} of {steps}");
}
