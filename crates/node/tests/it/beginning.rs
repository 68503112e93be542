//! What was decided, asked or locked in one session is nothing of the next one.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength};
use gabion_fs::{Access, Changes, IfExists, OpenRequest, Privileges, WriteAt};
use gabion_link::message::{ChangeNumber, ToClient};
use gabion_link::range::KeyRange;
use gabion_link::table::{Keep, RevokeId};
use gabion_map::{FileId, LockMode, Payload};
use gabion_node::remote::{RemoteFs, RemoteSettings};
use gabion_node::served::Rights;

use crate::shared::{Client, Server, await_that, caller};

const PATIENCE: Duration = Duration::from_secs(20);

fn lock_of(file: FileId) -> Lock {
    let owner = LockOwner { client: 0, number: 7 };
    let (class, range, strength) = (LockClass::Posix, LockRange::WHOLE, Strength::Exclusive);
    Lock { file, class, owner, pid: 1, strength, range }
}

fn write(fs: &RemoteFs, file: FileId, offset: u64) -> gabion_fs::Result<()> {
    let (at, payload) = (WriteAt::Offset(offset), Payload::Copied(b"later"));
    let written = fs.write(&caller(), file, at, &payload, Privileges::Keep);
    fs.answered();
    written.map(drop)
}

/// A client that has locked a file.
fn with_lock(server: &Server) -> (Client, FileId) {
    let client = server.client();
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), b"before");
    client.run(|fs| fs.fsync(file)).unwrap();
    client.try_lock(lock_of(file)).unwrap();
    (client, file)
}

#[test]
fn what_was_to_be_written_under_a_lock_is_not_when_the_lock_is_lost_meanwhile() {
    let server = Server::new();
    let (client, file) = with_lock(&server);
    client.fs.disconnected();
    let looks = client.clock.looks();
    thread::scope(|scope| {
        let written = scope.spawn(|| write(&client.fs, file, 0));
        // It waits for a connection, and is through with all that it looks at before.
        await_that(|| client.clock.looks() > looks + 1);
        client.hear(server.begin_unheard(&client));
        client.fs.connected();
        assert!(written.join().unwrap().is_err());
    });
    assert_eq!(server.world.read(file), b"before");
}

#[test]
fn what_was_locked_before_is_not_told_in_the_next_session() {
    let server = Server::new();
    let (client, file) = with_lock(&server);
    client.cut();
    client.write(file, WriteAt::Offset(0), b"lost");
    // The server had wanted the lease on the locks back, which is attended to just now.
    let fs = Arc::downgrade(&client.fs);
    client.fs.set_report(Box::new(move |_| {
        let (id, range, keep) = (RevokeId(1), KeyRange::locks(file), Keep::Nothing);
        if let Some(fs) = fs.upgrade() {
            fs.receive(ToClient::Revoke { id, range, keep });
        }
    }));
    server.begin_again(&client);
    assert_eq!(server.world.fs.locks().held(), []);
}

#[test]
fn what_nobody_has_waited_for_so_long_is_closed() {
    let server = Server::new();
    let deadline = Duration::from_millis(50);
    let settings = RemoteSettings { deadline, ..RemoteSettings::default() };
    let (client, messages) = server.client_of(Rights::TRUSTED, settings);
    // The server has to be asked for each change.
    let (number, extents, credit) = (ChangeNumber(0), Vec::new(), 0);
    client.fs.receive(ToClient::Applied { number, extents, credit });
    let request = OpenRequest { access: Access::WRITE, truncate: None };
    let (name, how) = (b"file", IfExists::Open);
    let made = client.run(|fs| fs.create(&caller(), client.root, name, 0o644, how, &request));
    assert!(made.is_err(), "nobody has heard of it");
    let opens = || server.served.clients()[0].opens;
    await_that(|| opens() == 1);
    client.hear(messages);
    await_that(|| {
        client.fs.ping();
        opens() == 0
    });
}

/// Takes what the client is told up to the `count`-th answer.
fn answers(messages: &crossbeam_channel::Receiver<ToClient>, count: usize) -> Vec<ToClient> {
    let mut taken = Vec::new();
    let is_answer = |message: &&ToClient| matches!(message, ToClient::Answer { .. });
    while taken.iter().filter(is_answer).count() < count {
        taken.push(messages.recv_timeout(PATIENCE).expect("it is answered"));
    }
    taken
}

#[test]
fn what_is_asked_once_more_in_a_new_session_is_not_given_up_before_it_has_come() {
    let server = Server::new();
    let (client, other) = (server.client(), server.client());
    let file = other.create("file");
    other.write(file, WriteAt::Offset(0), &[1; 3 * 4096]);
    client.lookup("file").unwrap();
    let changes = Changes { permissions: Some(0o600), ..Changes::default() };
    client.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
    client.run(|fs| fs.syncfs()).unwrap();
    client.cut();
    let asked = client.fs.calls_sent();
    thread::scope(|scope| {
        // Two ask for the right to change bytes, and do so once more in the next session.
        for offset in [0, 4096] {
            let fs = &client.fs;
            scope.spawn(move || write(fs, file, offset).unwrap());
        }
        await_that(|| client.fs.calls_sent() == asked + 2);
        let messages = server.begin_unheard(&client);
        let mut told = answers(&messages, 2);
        // The first one hears of it, and asks for what else it needs. A third one reads.
        let last = told.pop().expect("two answers");
        let asked = client.fs.calls_sent();
        told.into_iter().for_each(|message| client.fs.receive(message));
        let reader = scope.spawn(|| client.read(file, 8192, 10));
        await_that(|| client.fs.calls_sent() >= asked + 2);
        client.fs.receive(last);
        client.hear(messages);
        assert_eq!(reader.join().unwrap().len(), 10);
    });
    client.run(|fs| fs.syncfs()).unwrap();
    let its = client.session().id();
    for offset in [0, 4096] {
        let at = WriteAt::Offset(offset);
        let ((), calls) = client.calls(|client| client.write(file, at, b"x"));
        let may_change = server.served.leases().0.into_iter().any(|lease| {
            let is_its = lease.client.0 == its.0 && lease.mode == LockMode::Exclusive;
            is_its && lease.range.overlaps(&KeyRange::bytes(file, offset, offset + 1))
        });
        assert!(calls > 0 || may_change, "it changes what the server may give to others");
    }
}
