//! What clients say again is done once, in its order, and where it belongs.

use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use gabion_base::ids::Ino;
use gabion_fs::{Caller, Changes, Disposition, IfTaken, Leave, Privileges, SizeRule, SpaceRequest};
use gabion_link::message::{Answer, Call, ChangeNumber, SessionId, ToServer};
use gabion_map::{FileId, Kind, LocalTxn, LockMode, OpenMode, Stop, Txn};

use super::{Server, create};

#[test]
fn what_was_answered_and_not_durable_is_done_again_in_its_order() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let first = a.write(file, 0, b"aaaa");
    let second = b.write(file, 1, b"bb");
    let third = a.write(file, 2, b"c");
    let server = before.after_crash();
    assert!(server.served.is_recovering());
    assert!(server.world.lookup("file").is_err(), "it was not durable");
    let (a, b) = (server.resume(1), server.resume(2));
    b.say_again(&[&second]);
    b.has_recovered();
    assert!(server.served.is_recovering(), "one of them has not said all");
    a.say_again(&[&made, &first, &third]);
    a.has_recovered();
    assert!(!server.served.is_recovering());
    assert_eq!(server.content("file"), "abca");
    assert_eq!(server.world.lookup("file").unwrap().file.ino, file.ino);
    assert!(!a.has_heard_of_failures() && !b.has_heard_of_failures());
    // It is durable now.
    assert_eq!(server.after_crash().content("file"), "abca");
}

#[test]
fn what_was_answered_finds_room_after_a_crash_though_others_have_filled_the_disk_since() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let text = "text ".repeat(10_000);
    let written = a.write(file, 0, text.as_bytes());
    let (hog, _) = b.create("hog");
    let mut offset = 0;
    for length in (12..24).rev().map(|bits| 1_u64 << bits) {
        let id = b.next_id();
        let request = SpaceRequest::Allocate(SizeRule::Extend);
        let (file, privileges) = (hog, Privileges::Keep);
        let fill = |offset| Call::Fallocate { file, request, offset, length, privileges };
        while b.ask_as(id, fill(offset)).0.is_ok() {
            offset += length;
        }
    }
    // With the rest it becomes durable that the bytes were written, and not the bytes.
    b.sync(hog);
    let server = before.after_crash();
    let (a, b) = (server.resume(1), server.resume(2));
    a.say_again(&[&made, &written]);
    a.has_recovered();
    b.has_recovered();
    assert!(!a.has_heard_of_failures());
    assert_eq!(server.content("file"), text);
}

#[test]
fn what_one_client_has_synced_is_not_replaced_by_what_another_one_says_again() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let first = a.write(file, 0, b"aaaa");
    b.write(file, 1, b"bb");
    b.sync(file);
    let later = a.write(file, 3, b"c");
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &first, &later]);
    a.has_recovered();
    assert!(server.served.is_recovering());
    // The other one does not come.
    server.served.stop_waiting();
    server.run();
    assert!(!server.served.is_recovering());
    assert_eq!(server.content("file"), "abbc");
}

/// Holds a round up that goes on, behind its sync and before it forgets anything, until `until`
/// ends.
fn hold_round_up(server: &Server, is_held: &Sender<()>, until: &Receiver<()>) {
    let index = FileId::new(server.world.root().subvol, Ino(0));
    let (first, last) = (index.key(Kind::SESSION, 0), index.key(Kind::SESSION, 1 << 62));
    type Attempt<T> = std::result::Result<T, Stop>;
    let map = server.world.fs.map();
    let sessions = map.transact(|txn| -> Attempt<_> { txn.scan(first, last, 100) }).unwrap();
    // Where it is going to be noted how far they are durable.
    let hold = |txn: &mut LocalTxn<'_>| -> Attempt<()> {
        for (key, _) in &sessions {
            txn.lock(FileId::new(index.subvol, Ino(key.at)), LockMode::Exclusive)?;
        }
        is_held.send(()).unwrap();
        assert!(until.recv().is_err());
        Ok(())
    };
    map.transact(hold).unwrap();
}

#[test]
fn what_is_synced_while_a_round_goes_on_is_not_replaced_either() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, _) = a.create("file");
    a.write(file, 0, b"aaaa");
    b.write(file, 1, b"bb");
    b.sync(file);
    a.create("is not durable before the round has begun");
    let ((is_held, held), (end, until)) = (unbounded(), unbounded());
    let later = thread::scope(|scope| {
        scope.spawn(|| hold_round_up(&before, &is_held, &until));
        held.recv().unwrap();
        let round = scope.spawn(|| before.served.settle_round().unwrap());
        while before.world.after_crash(OpenMode::ReadOnly).names().len() < 2 {
            assert!(!round.is_finished());
        }
        let later = a.write(file, 3, b"c");
        b.write(file, 3, b"d");
        b.sync(file);
        drop(end);
        later
    });
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&later]);
    a.has_recovered();
    // The other one does not come.
    server.served.stop_waiting();
    server.run();
    assert_eq!(server.content("file"), "abbd");
}

#[test]
fn bytes_that_were_moved_since_are_not_written_again_where_they_were() {
    let before = Server::new();
    let mut a = before.begin(1);
    let (file, made) = a.create("file");
    let text = [[b'1'; 4096], [b'2'; 4096]].concat();
    let written = a.write(file, 0, &text);
    let (request, privileges) = (SpaceRequest::Collapse, Privileges::Keep);
    let moved = a.done(Call::Fallocate { file, request, offset: 0, length: 4096, privileges });
    let last = a.write(file, 4096, b"3");
    let (other, other_made) = a.create("other");
    // What was done before is in the journal with it.
    a.sync(other);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &written, &moved, &last, &other_made]);
    a.has_recovered();
    assert_eq!(server.content("file"), format!("{}3", "2".repeat(4096)));
}

/// As if the one who is lost had never done anything: so a name is free that was free for what was
/// made there since.
#[test]
fn what_is_renamed_again_is_what_was_there_before_what_is_lost() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let root = before.world.root();
    let (old, old_made) = a.create("name");
    a.sync(old);
    b.done(Call::Unlink { parent: root, name: "name".into() });
    b.create("name");
    let renamed = a.done(Call::Rename {
        source_parent: root,
        source_name: "name".into(),
        target_parent: root,
        target_name: "other name".into(),
        if_taken: IfTaken::Fail,
        leave: Leave::Nothing,
    });
    let (new, new_made) = a.create("name");
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&old_made, &renamed, &new_made]);
    a.has_recovered();
    // The other one does not come.
    server.served.stop_waiting();
    server.run();
    assert!(!a.has_heard_of_failures());
    assert_eq!(server.world.lookup("other name").unwrap().file, old);
    assert_eq!(server.world.lookup("name").unwrap().file, new);
}

#[test]
fn a_call_whose_answer_was_lost_is_done_once() {
    for is_durable in [false, true] {
        let before = Server::new();
        let mut a = before.begin(1);
        let (other, other_made) = a.create("other");
        let (id, call) = (a.next_id(), create(before.world.root(), "file"));
        let (unheard, ..) = a.ask_as(id, call.clone());
        let Ok(Answer::Made(unheard, Disposition::Created)) = unheard else {
            panic!("{unheard:?}")
        };
        if is_durable {
            a.sync(other);
        }
        let server = before.after_crash();
        let a = server.resume(1);
        a.say_again(&[&other_made]);
        a.say(ToServer::Call { id, caller: Caller::superuser(), call, after: ChangeNumber(0) });
        a.has_recovered();
        let (answer, ..) = a.answer(id);
        let Ok(Answer::Made(made, Disposition::Created)) = answer else { panic!("{answer:?}") };
        assert_eq!(made.file == unheard.file, is_durable);
        // The answer stands for an opening.
        server.world.unlink("file");
        server.world.reap();
        assert!(server.world.fs.stat(made.file).is_ok());
        a.say(ToServer::Closed(made.file));
        server.world.reap();
        assert!(server.world.fs.stat(made.file).is_err());
    }
}

#[test]
fn a_call_that_others_have_seen_done_is_done_again_where_it_belongs() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let first = a.write(file, 0, b"aaaa");
    let changes = Changes { size: Some((2, Privileges::Keep)), ..Changes::default() };
    let (id, cut) = (a.next_id(), Call::Setattr { file, changes });
    a.ask_as(id, cut.clone()).0.unwrap();
    // The client has not heard of it when others go on.
    let second = b.write(file, 2, b"b");
    let seen = b.witnessed.lock().clone();
    assert!(seen.iter().any(|one| one.call == id && one.session == SessionId(1)));
    let server = before.after_crash();
    let (a, b) = (server.resume(1), server.resume(2));
    a.say_again(&[&made, &first]);
    a.say(ToServer::Call { id, caller: Caller::superuser(), call: cut, after: ChangeNumber(0) });
    a.has_recovered();
    b.say_again(&[&second]);
    b.say(ToServer::Witnessed(seen));
    b.has_recovered();
    assert_eq!(server.content("file"), "aab");
    assert!(a.answer(id).0.is_ok());
}
