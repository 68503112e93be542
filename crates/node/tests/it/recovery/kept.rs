//! Which sessions, locks, snapshots and numbers outlive a server, and which do not.

use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength};
use gabion_fs::{Access, Caller};
use gabion_link::errand::{Errand, Report};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, SessionId, ToClient, ToServer,
};
use gabion_map::{FileId, Kind, LocalTxn, LockMode, Stop, Txn};
use gabion_node::served::Rights;

use super::{Client, Kept, Server, create};

/// Else nobody would be waited for any more, and nobody would go on.
#[test]
fn a_session_whose_notes_cannot_be_read_is_waited_for_no_longer_than_others() {
    let before = Server::new();
    before.begin(1);
    let server = before.after_crash();
    let (map, root) = (server.world.fs.map(), server.world.root());
    let notes = |ino: u64, at| FileId::new(root.subvol, Ino(ino)).key(Kind::SESSION, at);
    let damage = |txn: &mut LocalTxn<'_>| -> Result<(), Stop> {
        txn.lock(notes(0, 0).file(), LockMode::Shared)?;
        let sessions = txn.scan(notes(0, 0), notes(0, u64::MAX), 10)?;
        let damaged = notes(sessions[0].0.at, 0);
        txn.lock(damaged.file(), LockMode::Exclusive)?;
        txn.put(damaged, b"damaged".to_vec())
    };
    map.transact(damage).unwrap();
    let (peer, _heard) = server.peer(1);
    let resumed = server.served.resume(SessionId(1), String::new(), Rights::TRUSTED, peer);
    assert!(resumed.is_err());
    assert_eq!(server.served.awaited(), [SessionId(1)]);
    server.served.stop_waiting();
    server.run();
    assert!(!server.served.is_recovering());
}

#[test]
fn what_is_open_without_a_name_outlives_the_server() {
    let before = Server::new();
    let mut a = before.begin(1);
    let (file, _) = a.create("file");
    a.done(Call::Unlink { parent: before.world.root(), name: b"file".to_vec() });
    a.sync(file);
    let server = before.after_crash();
    server.world.reap();
    let a = server.resume(1);
    a.say(ToServer::Opened { file, caller: Caller::superuser(), access: Access::WRITE });
    a.has_recovered();
    server.world.reap();
    assert!(server.world.fs.stat(file).is_ok());
    a.say(ToServer::Closed(file));
    server.world.reap();
    assert!(server.world.fs.stat(file).is_err());
}

#[test]
fn sessions_that_have_ended_are_not_waited_for() {
    let before = Server::new();
    let (a, b) = (before.begin(1), before.begin(2));
    before.served.end(&a.session);
    let server = before.after_crash();
    assert!(server.served.remembered(SessionId(1)).is_none());
    // Who does not know that his session has ended may believe in it, and does not get it back.
    server.served.cut(&server.resume(2).session);
    let server = server.after_crash();
    assert!(server.served.is_recovering());
    assert!(server.served.remembered(SessionId(2)).is_none());
    assert_eq!(server.served.patience_before(), Duration::from_secs(10));
    drop(b);
}

#[test]
fn who_was_not_waited_for_any_more_does_not_come_back_after_another_crash() {
    let before = Server::new();
    let (_a, _b) = (before.begin(1), before.begin(2));
    let server = before.after_crash();
    server.resume(1).has_recovered();
    server.served.stop_waiting();
    // Before anything else is done.
    let next = server.after_crash();
    assert!(next.served.remembered(SessionId(1)).is_some());
    assert!(next.served.remembered(SessionId(2)).is_none());
    server.run();
    assert!(!server.served.is_recovering());
}

#[test]
fn who_is_given_up_while_it_is_waited_for_holds_nobody_up_and_does_not_come_back() {
    let before = Server::new();
    let (_a, mut b) = (before.begin(1), before.begin(2));
    let (_, made) = b.create("file");
    let server = before.after_crash();
    let b = server.resume(2);
    b.say_again(&[&made]);
    b.has_recovered();
    assert!(server.served.is_recovering());
    assert_eq!(server.served.awaited(), [SessionId(1)]);
    assert!(!server.served.give_up_awaited(SessionId(2)), "it has come");
    assert!(!server.served.give_up_awaited(SessionId(3)), "there is none");
    assert!(server.served.give_up_awaited(SessionId(1)));
    assert!(!server.served.give_up_awaited(SessionId(1)));
    let (peer, _heard) = server.peer(1);
    let back = server.served.resume(SessionId(1), String::new(), Rights::TRUSTED, peer);
    assert!(back.unwrap().is_none());
    server.run();
    assert!(!server.served.is_recovering());
    assert_eq!(server.content("file"), "");
    // Its client may still believe in what it has cached, of which nothing is written down.
    let next = server.after_crash();
    assert_eq!(next.served.awaited(), [SessionId(1), SessionId(2)]);
    assert!(next.served.remembered(SessionId(1)).is_none());
}

#[test]
fn numbers_that_are_taken_are_not_made_again() {
    let before = Server::new();
    let mut a = before.begin(1);
    let (taken, made) = a.create("taken");
    a.sync(taken);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made]);
    let call = create(server.world.root(), "stolen");
    let change = Change { made: Some(Ino(taken.ino.0)), call, ..made.change.clone() };
    a.say(ToServer::Done { id: CallId(7), change });
    a.has_recovered();
    assert!(a.has_heard_of_failures());
    assert_eq!(server.world.names(), ["taken"]);
}

#[test]
fn a_snapshot_that_a_server_made_and_did_not_tell_is_made_once_and_stays_what_it_was() {
    for is_told in [false, true] {
        let before = Server::new();
        let mut a = before.begin(1);
        let (file, made) = a.create("file");
        let first = a.write(file, 0, b"old");
        let (id, caller, after) = (a.next_id(), Caller::superuser(), ChangeNumber(0));
        let (path, name) = (Vec::new(), b"one".to_vec());
        let call = Call::Run(Errand::Snapshot { path, name, created: 77 });
        a.say(ToServer::Call { id, caller: caller.clone(), call: call.clone(), after });
        let Ok(Answer::Report(told)) = a.report(id) else { panic!("no report") };
        let later = a.write(file, 0, b"new");
        let appended = a.write(file, 3, b", and more");
        let server = before.after_crash();
        let a = server.resume(1);
        a.say_again(&[&made, &first, &later, &appended]);
        if !is_told {
            a.say(ToServer::Call { id, caller: caller.clone(), call: call.clone(), after });
        }
        a.has_recovered();
        if !is_told {
            let Ok(Answer::Report(again)) = a.report(id) else { panic!("no report") };
            assert_eq!(again, told);
        } else {
            // Who asks for it anew is told that it is there.
            let id = CallId(9999);
            a.say(ToServer::Call { id, caller, call, after });
            assert!(a.report(id).unwrap_err().to_string().contains("already"));
        }
        assert_eq!(server.content("file"), "new, and more");
        let world = &server.world;
        let Report::Snapshots { rows, .. } = told else { panic!("{told:?}") };
        let snapshots = world.fs.map().snapshots(world.root().subvol);
        assert_eq!(snapshots.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [rows[0].id]);
        let old = world.read(FileId::new(rows[0].id, file.ino));
        assert_eq!(old, b"old");
    }
}

#[test]
fn notes_go_when_the_client_has_heard_of_their_round_and_not_before() {
    let server = Server::new();
    let mut client = server.begin(1);
    let settle = || server.served.settle_round().unwrap();
    let is_hoarding = |client: &Client<'_>| server.served.is_hoarding(&client.session);
    let (_, made) = client.create("file");
    settle();
    let told = |client: &Client<'_>| {
        let is_durable = |message: &ToClient| matches!(message, ToClient::Durable { .. });
        match client.heard.try_iter().find(is_durable) {
            Some(ToClient::Durable { round, calls, .. }) => (round, calls),
            other => panic!("{other:?}"),
        }
    };
    let (first, calls) = told(&client);
    assert_eq!(calls, [made.id]);
    // What is asked once more is known, as long as the note is there: it is not done again.
    let is_noted = |kept: &Kept| {
        let next = server.after_crash();
        let client = next.resume(1);
        client.say(ToServer::Call {
            id: kept.id,
            caller: Caller::superuser(),
            call: kept.change.call.clone(),
            after: ChangeNumber(0),
        });
        client.has_recovered();
        client.answer(kept.id).0.is_ok_and(|answer| answer == kept.answer)
    };
    server.world.clock.advance(25);
    let (_, other) = client.create("other");
    settle();
    let (second, _) = told(&client);
    assert!(is_noted(&made) && is_noted(&other));
    assert!(!is_hoarding(&client));
    server.world.clock.advance(10);
    assert!(is_hoarding(&client), "it has not said that it has heard of the first round");
    client.say(ToServer::Settled(first));
    assert!(!is_hoarding(&client));
    settle();
    assert!(!is_noted(&made) && is_noted(&other));
    client.say(ToServer::Settled(second));
    server.world.clock.advance(100);
    assert!(!is_hoarding(&client), "there is nothing that it could not have heard of");
}

#[test]
fn who_claims_a_lock_that_another_one_has_hears_that_it_is_lost() {
    let before = Server::new();
    let (mut a, _b) = (before.begin(1), before.begin(2));
    let (file, _) = a.create("file");
    a.sync(file);
    let server = before.after_crash();
    let clients = [server.resume(1), server.resume(2)];
    let lock = |pid| Lock {
        file,
        class: LockClass::Posix,
        owner: LockOwner { client: 0, number: 9 },
        pid,
        strength: Strength::Exclusive,
        range: LockRange::WHOLE,
    };
    for (client, pid) in clients.iter().zip(1..) {
        client.say(ToServer::Opened { file, caller: Caller::superuser(), access: Access::WRITE });
        client.say(ToServer::Locked(vec![lock(pid)]));
        client.has_recovered();
    }
    let lost = |client: &Client<'_>| {
        let told = client.heard.try_iter().find_map(|message| match message {
            ToClient::LocksLost(locks) => Some(locks),
            _ => None,
        });
        told.map(|locks| locks.iter().map(|lock| lock.pid).collect::<Vec<u32>>())
    };
    assert_eq!([lost(&clients[0]), lost(&clients[1])], [None, Some(vec![2])]);
    assert_eq!(server.world.fs.locks().held().len(), 1);
}

#[test]
fn what_was_written_without_a_name_and_closed_is_done_again_without_complaint() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let (parent, name) = (before.world.root(), b"file".to_vec());
    let removed = b.done(Call::Unlink { parent, name });
    let written = a.write(file, 0, b"late");
    a.say(ToServer::Closed(file));
    let server = before.after_crash();
    let (a, b) = (server.resume(1), server.resume(2));
    a.say_again(&[&made, &written]);
    b.say_again(&[&removed]);
    a.has_recovered();
    b.has_recovered();
    assert!(!server.served.is_recovering());
    assert!(!a.has_heard_of_failures() && !b.has_heard_of_failures());
    assert!(server.world.lookup("file").is_err());
    server.world.reap();
    assert!(server.world.fs.stat(file).is_err());
}

/// A client that goes on from what the snapshot has of its session would say again what is undone.
#[test]
fn sessions_that_a_snapshot_has_do_not_go_on_after_a_crash_in_the_midst_of_a_rollback() {
    let server = Server::new();
    let mut client = server.begin(1);
    let (file, _) = client.create("file");
    client.write(file, 0, b"before");
    client.sync(file);
    let (fs, home) = (&server.world.fs, server.world.root().subvol);
    let one = fs.map().create_snapshot(home, b"one", 5).unwrap();
    client.write(file, 0, b"after!");
    client.sync(file);
    // Its server dies before it has ended the sessions.
    fs.roll_back(home, one, b"kept", 6).unwrap();
    let server = server.after_crash();
    assert!(!server.served.is_recovering());
    assert!(server.served.remembered(SessionId(1)).is_none());
    assert_eq!(server.content("file"), "before");
    // Those that begin later do.
    let mut later = server.begin(2);
    let file = server.world.lookup("file").unwrap().file;
    later.write(file, 0, b"later!");
    later.sync(file);
    let server = server.after_crash();
    assert!(server.served.is_recovering());
    server.resume(2);
    assert_eq!(server.content("file"), "later!");
}
