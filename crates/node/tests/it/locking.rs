//! Leases on advisory locks: what they save, and that nothing else is different from locks that are
//! all decided about at one place.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Ticket, Wait};
use gabion_fs::{Access, Changes, Error, OpenRequest, Privileges, Result, WriteAt};
use gabion_link::identities::{Identities, Squash};
use gabion_link::message::{Call, CallId, ChangeNumber, SessionId, ToClient, ToServer};
use gabion_link::range::KeyRange;
use gabion_link::table::Lease;
use gabion_map::{FileId, Kind, LockMode, Payload};
use gabion_node::served::{Peer, Rights};

use crate::shared::{Client, PATIENCE, Server, await_that, caller};

pub fn lock(file: FileId, owner: u64) -> Lock {
    let (class, strength) = (LockClass::Posix, Strength::Exclusive);
    let owner = LockOwner { client: 0, number: owner };
    Lock { file, class, owner, pid: owner.number as u32, strength, range: LockRange::WHOLE }
}

/// A request for a lock: how it ends, and its ticket if it waits.
pub struct Asked(Receiver<Result<()>>, pub Option<Ticket>);

impl Asked {
    #[track_caller]
    pub fn end(&self) -> Result<()> {
        self.0.recv_timeout(PATIENCE).expect("it ends")
    }

    pub fn has_ended(&self) -> bool {
        self.0.try_recv().is_ok()
    }
}

pub fn ask(client: &Client, lock: Lock, wait: Wait) -> Asked {
    let (tell, told) = channel();
    // At the end of a test nobody may be left to hear it.
    let end = Box::new(move |result| drop(tell.send(result)));
    let ticket = client.run(|fs| fs.lock(lock, wait, end));
    Asked(told, ticket)
}

pub fn try_lock(client: &Client, lock: Lock) -> Result<()> {
    ask(client, lock, Wait::No).end()
}

pub fn unlock(client: &Client, lock: Lock) {
    let Lock { file, class, owner, range, .. } = lock;
    client.run(|fs| fs.unlock(file, class, owner, range)).unwrap();
}

pub fn open(client: &Client, name: &str) -> FileId {
    let file = client.lookup(name).unwrap();
    let request = OpenRequest { access: Access::READ | Access::WRITE, truncate: None };
    client.run(|fs| fs.open_file(&caller(), file, &request)).unwrap();
    file
}

/// A file that all of these have open.
pub fn shared_file(clients: &[&Client], name: &str) -> FileId {
    let file = clients[0].create(name);
    clients[1..].iter().for_each(|client| assert_eq!(open(client, name), file));
    file
}

pub fn leases_on_locks(server: &Server) -> usize {
    let (leases, _) = server.served.leases();
    let decides = |lease: &&Lease| {
        lease.range.kind() == Some(Kind::LOCK) && lease.mode == LockMode::Exclusive
    };
    leases.iter().filter(decides).count()
}

pub fn await_waiting(server: &Server, count: usize) {
    await_that(|| server.world.fs.locks().list(None, 100).waiting.len() == count);
}

pub fn would_block(result: Result<()>) -> bool {
    matches!(result, Err(Error::WouldBlock))
}

#[test]
fn who_locks_alone_asks_once() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    client.run(|fs| fs.fsync(file)).unwrap();
    let before = client.messages();
    for round in 0..1000 {
        let lock = lock(file, round % 3);
        try_lock(&client, lock).unwrap();
        let other = Lock { owner: LockOwner { client: 0, number: 9 }, ..lock };
        let conflict = client.run(|fs| fs.lock_conflict(&other)).unwrap();
        assert_eq!(conflict.map(|lock| lock.pid), Some(lock.pid));
        unlock(&client, lock);
    }
    let messages = client.messages() - before;
    assert!(messages <= 2, "{messages} messages");
}

#[test]
fn what_is_locked_under_a_lease_is_locked_for_all() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    let part = |from, to| Lock { range: LockRange::new(from, to).unwrap(), ..lock(file, 1) };
    for number in 0..10 {
        try_lock(&a, part(10 * number, 10 * number + 4)).unwrap();
    }
    unlock(&a, part(50, 54));
    assert_eq!(a.fs.held_locks().len(), 9);
    await_that(|| leases_on_locks(&server) == 1);
    // The lease's beginning is all that the server knows.
    assert_eq!(server.world.fs.locks().held(), []);
    for number in 0..10 {
        let result = try_lock(&b, part(10 * number + 4, 10 * number + 4));
        assert_eq!(would_block(result), number != 5, "part {number}");
    }
    await_that(|| leases_on_locks(&server) == 0);
    let conflict = b.run(|fs| fs.lock_conflict(&lock(file, 1))).unwrap().unwrap();
    assert_eq!((conflict.range.start(), conflict.range.end()), (0, 4));
    unlock(&a, part(0, 99));
    try_lock(&b, lock(file, 1)).unwrap();
    assert!(would_block(try_lock(&a, lock(file, 2))));
}

#[test]
fn who_waits_for_a_lock_under_a_lease_gets_it_when_it_is_free() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    try_lock(&a, lock(file, 1)).unwrap();
    // Another machine's process, and behind it one of the same machine.
    let first = ask(&b, lock(file, 1), Wait::Yes);
    await_waiting(&server, 1);
    let others = [first, ask(&a, lock(file, 2), Wait::Yes)];
    await_waiting(&server, 2);
    assert!(others.iter().all(|other| !other.has_ended()));
    unlock(&a, lock(file, 1));
    others[0].end().unwrap();
    assert!(!others[1].has_ended());
    unlock(&b, lock(file, 1));
    others[1].end().unwrap();
    assert!(would_block(try_lock(&b, lock(file, 1))));
}

#[test]
fn two_processes_of_a_machine_wait_for_each_other_at_the_server() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    try_lock(&client, lock(file, 1)).unwrap();
    await_that(|| leases_on_locks(&server) == 1);
    let second = ask(&client, lock(file, 2), Wait::Yes);
    await_waiting(&server, 1);
    await_that(|| leases_on_locks(&server) == 0);
    assert!(!second.has_ended());
    client.fs.cancel_lock(second.1.unwrap());
    assert!(matches!(second.end(), Err(Error::Interrupted)));
    let third = ask(&client, lock(file, 3), Wait::Yes);
    await_waiting(&server, 1);
    unlock(&client, lock(file, 1));
    third.end().unwrap();
}

struct Silent;

impl Peer for Silent {
    fn send(&self, _: ToClient) {}

    fn sent(&self) -> u64 {
        0
    }

    fn arrived(&self) -> u64 {
        0
    }
}

#[test]
fn who_waits_for_a_lease_of_a_silent_client_can_be_killed() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    client.run(|fs| fs.fsync(file)).unwrap();
    let silent =
        server.served.begin(SessionId(1000), String::new(), Rights::TRUSTED, Arc::new(Silent));
    let (call, after) = (Call::Lock { lock: lock(file, 1), wait: Wait::No }, ChangeNumber(0));
    let message = ToServer::Call { id: CallId(1), caller: caller(), call, after };
    server.served.receive(&silent, message);
    await_that(|| leases_on_locks(&server) == 1);
    for wait in [Wait::Yes, Wait::No] {
        let asked = ask(&client, lock(file, 1), wait);
        await_that(|| !server.served.leases().1.is_empty());
        client.fs.cancel_lock(asked.1.unwrap());
        assert!(matches!(asked.end(), Err(Error::Interrupted)));
        assert!(server.served.leases().1.is_empty());
    }
}

#[test]
fn a_circle_is_found_though_its_locks_were_had_under_leases() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let [one, two] = ["one", "two"].map(|name| shared_file(&[&a, &b], name));
    try_lock(&a, lock(one, 1)).unwrap();
    try_lock(&b, lock(two, 1)).unwrap();
    await_that(|| leases_on_locks(&server) == 2);
    let waits = ask(&a, lock(two, 1), Wait::Yes);
    await_waiting(&server, 1);
    assert!(matches!(ask(&b, lock(one, 1), Wait::Yes).end(), Err(Error::Deadlock)));
    unlock(&b, lock(two, 1));
    waits.end().unwrap();
    // And between the processes of one machine.
    server.world.clock.advance(2);
    let [three, four] = ["three", "four"].map(|name| a.create(name));
    try_lock(&a, lock(three, 3)).unwrap();
    try_lock(&a, lock(four, 4)).unwrap();
    await_that(|| leases_on_locks(&server) == 2);
    let waits = ask(&a, lock(four, 3), Wait::Yes);
    await_waiting(&server, 1);
    assert!(matches!(ask(&a, lock(three, 4), Wait::Yes).end(), Err(Error::Deadlock)));
    unlock(&a, lock(four, 4));
    waits.end().unwrap();
}

#[test]
fn locks_that_several_machines_want_are_decided_about_at_the_server_for_a_while() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    for client in [&a, &b, &a, &a, &b] {
        try_lock(client, lock(file, 1)).unwrap();
        unlock(client, lock(file, 1));
    }
    await_that(|| leases_on_locks(&server) == 0);
    server.world.clock.advance(1);
    await_that(|| {
        try_lock(&b, lock(file, 1)).unwrap();
        leases_on_locks(&server) == 1
    });
    assert_eq!(b.calls(|b| unlock(b, lock(file, 1))).1, 0);
}

#[test]
fn to_unlock_takes_no_time_and_nobody_sees_a_lock_that_is_gone() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    a.move_away();
    try_lock(&b, lock(file, 1)).unwrap();
    unlock(&b, lock(file, 1));
    for round in 0..50 {
        try_lock(&a, lock(file, 1)).unwrap();
        await_that(|| leases_on_locks(&server) == 0);
        assert!(would_block(try_lock(&b, lock(file, 1))));
        // Who was refused has had the right taken away, for once.
        unlock(&a, lock(file, 1));
        try_lock(&a, lock(file, 1)).unwrap();
        assert_eq!(a.calls(|a| unlock(a, lock(file, 1))).1, 0);
        // It is on its way.
        if round % 2 == 0 {
            try_lock(&b, lock(file, 1)).unwrap();
            unlock(&b, lock(file, 1));
        } else {
            assert_eq!(b.run(|fs| fs.lock_conflict(&lock(file, 1))).unwrap(), None);
        }
    }
}

#[test]
fn a_lease_that_nobody_uses_keeps_no_other_client_from_deciding() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    for client in [&a, &b] {
        try_lock(client, lock(file, 1)).unwrap();
        unlock(client, lock(file, 1));
    }
    server.world.clock.advance(5);
    // The other one gives it up on a thread of its own.
    let lock_and_unlock = |a: &Client| {
        try_lock(a, lock(file, 1)).unwrap();
        unlock(a, lock(file, 1));
    };
    await_that(|| a.calls(lock_and_unlock).1 == 0);
    let before = a.messages();
    (0..1000).for_each(|_| lock_and_unlock(&a));
    assert!(a.messages() - before < 50, "{} messages", a.messages() - before);
}

#[test]
fn whoever_closes_a_file_unlocks_it_and_so_does_whoever_is_gone() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = shared_file(&[&a, &b], "file");
    try_lock(&a, lock(file, 1)).unwrap();
    try_lock(&a, lock(file, 1)).unwrap();
    a.fs.release(file);
    assert_eq!(a.fs.held_locks(), []);
    try_lock(&b, lock(file, 1)).unwrap();
    unlock(&b, lock(file, 1));
    server.world.clock.advance(1);
    try_lock(&b, lock(file, 1)).unwrap();
    await_that(|| leases_on_locks(&server) == 1);
    b.fs.close();
    server.served.end(&b.session());
    open(&a, "file");
    try_lock(&a, lock(file, 1)).unwrap();
}

#[test]
fn what_was_locked_under_a_lease_outlives_it_when_it_is_given_back_for_want_of_memory() {
    let server = Server::new();
    let client = server.client_limited(Rights::TRUSTED, 20);
    let file = client.create("file");
    try_lock(&client, lock(file, 1)).unwrap();
    for number in 0..200 {
        client.create(&format!("other {number}"));
    }
    await_that(|| leases_on_locks(&server) == 0);
    let held: Vec<FileId> = server.world.fs.locks().held().iter().map(|lock| lock.file).collect();
    assert_eq!(held, [file]);
    unlock(&client, lock(file, 1));
    assert_eq!(server.world.fs.locks().held(), []);
}

#[test]
fn locks_are_recalled_to_be_seen() {
    let server = Server::new();
    let client = server.client();
    let files = ["one", "two"].map(|name| client.create(name));
    for file in files {
        try_lock(&client, lock(file, 1)).unwrap();
        try_lock(&client, lock(file, 1)).unwrap();
    }
    await_that(|| server.served.recall_locks(Some(files[0])) == 0);
    let seen = server.world.fs.locks().held();
    assert_eq!(seen.iter().map(|lock| lock.file).collect::<Vec<_>>(), [files[0]]);
    await_that(|| server.served.recall_locks(None) == 0);
    assert_eq!(server.world.fs.locks().held().len(), 2);
}

#[test]
fn who_has_just_locked_reads_what_was_written_before_the_unlocking() {
    const ROUNDS: u64 = 100;
    let server = Server::new();
    let clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    let file = shared_file(&clients.iter().collect::<Vec<_>>(), "counter");
    clients[0].write(file, WriteAt::Offset(0), &0_u64.to_le_bytes());
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    ask(client, lock(file, 1), Wait::Yes).end().unwrap();
                    let value = client.read(file, 0, 8);
                    let value = u64::from_le_bytes(value.try_into().unwrap()) + 1;
                    client.write(file, WriteAt::Offset(0), &value.to_le_bytes());
                    unlock(client, lock(file, 1));
                }
            });
        }
        // Leases come and go meanwhile.
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                server.world.clock.advance(1);
                thread::yield_now();
            }
        });
    });
    let value = clients[1].read(file, 0, 8);
    assert_eq!(u64::from_le_bytes(value.try_into().unwrap()), 3 * ROUNDS);
}

#[test]
fn a_lock_that_is_asked_of_a_server_that_is_silent_ends_at_last() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    client.run(|fs| fs.fsync(file)).unwrap();
    server.begin_again(&client);
    let [at_once, later] = [Wait::No, Wait::Yes].map(|wait| ask(&client, lock(file, 1), wait));
    client.fs.end_overdue_calls();
    client.clock.advance(20);
    assert!(!at_once.has_ended());
    client.fs.end_overdue_calls();
    assert!(matches!(at_once.end(), Err(Error::Stop(_))));
    // Whoever waits for others may wait for as long as the session lives.
    client.clock.advance(900_000);
    client.fs.end_overdue_calls();
    assert!(!later.has_ended());
    client.clock.advance(100_000);
    client.fs.end_overdue_calls();
    assert!(matches!(later.end(), Err(Error::Stop(_))));
}

/// What clients claim to have locked.
#[test]
fn nobody_is_believed_to_hold_what_it_may_not_lock_or_what_others_may_have() {
    let server = Server::new();
    let identities = Identities { squash: Squash::Root, ..Identities::CHECKED };
    let squashed = Rights { identities, ..Rights::CHECKED };
    let (a, b) = (server.client(), server.client_with(squashed));
    let file = a.create("file");
    a.run(|fs| fs.fsync(file)).unwrap();
    let claim = |number| server.served.take_locked(&b.session(), &[lock(file, number)]);
    assert_eq!(claim(1).len(), 1, "it is not open for writing");
    let changes = Changes { permissions: Some(0o666), ..Changes::default() };
    a.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
    open(&b, "file");
    b.fs.ping();
    try_lock(&a, lock(file, 1)).unwrap();
    unlock(&a, lock(file, 1));
    assert_eq!(claim(1).len(), 1, "another one has the lease");
    await_that(|| server.served.recall_locks(None) == 0);
    // What it said of its opening may still be on its way.
    await_that(|| claim(1).is_empty());
    assert_eq!(claim(2).len(), 1, "it is locked");
    assert_eq!(server.world.fs.locks().held()[0].owner.client, b.session().id().0);
}

#[test]
fn leases_on_locks_are_had_by_locking_only() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    client.run(|fs| fs.fsync(file)).unwrap();
    let range = KeyRange::locks(file);
    let needed = vec![(range, LockMode::Exclusive)];
    let prefetch = gabion_link::message::Prefetch::Names;
    let call = Call::Acquire { needed, welcome: Vec::new(), prefetch };
    let (id, after) = (CallId(1_000_000), ChangeNumber(0));
    server.served.receive(&client.session(), ToServer::Call { id, caller: caller(), call, after });
    client.run(|fs| fs.space(client.root.subvol)).unwrap();
    await_that(|| leases_on_locks(&server) == 0);
}

/// What a program is told that uses a file on which it, or another one of its machine, has lost a
/// lock.
#[track_caller]
fn assert_fails(client: &Client, file: FileId, fails: bool) {
    let mut bytes = [0; 4];
    let payload = Payload::Copied(b"text");
    let at = WriteAt::Offset(0);
    let outcomes = [
        client.run(|fs| fs.read_now(&caller(), file, 0, &mut bytes)).map(drop),
        client.run(|fs| fs.write(&caller(), file, at, &payload, Privileges::Keep)).map(drop),
        client.run(|fs| fs.fsync(file)),
    ];
    let is_failure = |outcome: &Result<()>| match outcome {
        Ok(()) => false,
        Err(error) => {
            assert!(format!("{error:?}").contains("a lock on the file was lost"), "{error:?}");
            true
        }
    };
    assert_eq!(outcomes.each_ref().map(is_failure), [fails; 3]);
}

#[test]
fn who_has_lost_a_lock_cannot_use_the_file_until_it_has_given_it_up() {
    let server = Server::new();
    let client = server.client();
    let (told, losses) = channel();
    client.fs.set_lock_loss_teller(Box::new(move |loss| told.send(loss.clone()).unwrap()));
    let (file, other) = (client.create("file"), client.create("other"));
    let part =
        |owner, from, to| Lock { range: LockRange::new(from, to).unwrap(), ..lock(file, owner) };
    client.run(|fs| fs.syncfs()).unwrap();
    for one in [part(1, 10, 19), part(2, 30, 39)] {
        try_lock(&client, one).unwrap();
    }
    assert_fails(&client, file, false);
    // A server that has started again cannot take one of them, and none that is not held.
    client.fs.receive(ToClient::LocksLost(vec![part(1, 10, 19), part(3, 0, 9)]));
    assert_fails(&client, file, true);
    assert_fails(&client, other, false);
    assert_eq!(client.fs.held_locks(), [part(2, 30, 39)]);
    let loss = losses.recv_timeout(PATIENCE).unwrap();
    assert_eq!((loss.file.as_str(), loss.count), ("/file", 1));
    assert_eq!((loss.range.start(), loss.range.end()), (10, 19));
    // Others that unlock change nothing.
    unlock(&client, part(2, 30, 39));
    assert_fails(&client, file, true);
    unlock(&client, lock(file, 1));
    assert_fails(&client, file, false);
    // Who has it again may go on, too, and so may who comes when all have closed the file.
    for is_closed in [false, true] {
        try_lock(&client, lock(file, 1)).unwrap();
        client.fs.receive(ToClient::LocksLost(vec![lock(file, 1)]));
        assert_fails(&client, file, true);
        match is_closed {
            false => try_lock(&client, lock(file, 1)).unwrap(),
            true => {
                client.fs.release(file);
                open(&client, "file");
            }
        }
        assert_fails(&client, file, false);
    }
}

#[test]
fn a_session_that_ends_takes_the_locks_and_whoever_had_them_is_told() {
    let server = Server::new();
    let client = server.client();
    let (told, losses) = channel();
    client.fs.set_lock_loss_teller(Box::new(move |loss| told.send(loss.clone()).unwrap()));
    let file = client.create("file");
    client.run(|fs| fs.syncfs()).unwrap();
    try_lock(&client, lock(file, 1)).unwrap();
    client.fs.begin_again(&server.welcome(&client.session()));
    let loss = losses.recv_timeout(PATIENCE).unwrap();
    assert_eq!((loss.file.as_str(), loss.count), ("/file", 1));
    assert!(loss.reason.contains("session"), "{}", loss.reason);
    assert_fails(&client, file, true);
    unlock(&client, lock(file, 1));
    assert_fails(&client, file, false);
}
