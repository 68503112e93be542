//! What clients say again puts nothing back that was replaced since, and leaves nothing out.

use std::thread;
use std::time::{Duration, Instant};

use gabion_fs::{Access, Caller, IfExists, OpenRequest, Privileges, SpaceRequest};
use gabion_link::errand::Errand;
use gabion_link::message::{Answer, Call, ChangeNumber, ReadLease, ToServer};
use gabion_map::FileId;

use crate::recovery::Server;

/// Opens a file, and cuts it.
fn open_and_cut(parent: FileId, name: &str) -> Call {
    Call::Create {
        parent,
        name: name.into(),
        permissions: 0o644,
        if_exists: IfExists::Open,
        request: OpenRequest { access: Access::WRITE, truncate: Some(Privileges::Keep) },
    }
}

#[test]
fn a_file_that_another_one_has_cut_when_it_opened_it_stays_cut() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let first = a.write(file, 0, b"aaaa");
    b.done(open_and_cut(before.world.root(), "file"));
    b.sync(file);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &first]);
    a.has_recovered();
    // The other one does not come.
    server.served.stop_waiting();
    server.run();
    assert_eq!(server.content("file"), "");
}

#[test]
fn a_file_that_was_cut_when_it_was_opened_stays_cut_though_the_answer_was_lost() {
    let before = Server::new();
    let mut a = before.begin(1);
    let (file, made) = a.create("file");
    let first = a.write(file, 0, b"aaaa");
    let (id, call) = (a.next_id(), open_and_cut(before.world.root(), "file"));
    a.ask_as(id, call.clone()).0.unwrap();
    let (other, other_made) = a.create("other");
    // What was done before is in the journal with it.
    a.sync(other);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &first, &other_made]);
    a.say(ToServer::Call { id, caller: Caller::superuser(), call, after: ChangeNumber(0) });
    a.has_recovered();
    assert!(a.answer(id).0.is_ok());
    assert_eq!(server.content("file"), "");
}

#[test]
fn what_a_round_has_not_told_is_not_written_again_over_what_was_moved_since() {
    let before = Server::new();
    let mut a = before.begin(1);
    let (file, made) = a.create("file");
    let text = [[b'1'; 4096], [b'2'; 4096]].concat();
    let written = before.with_a_round_before_the_answer(|| a.write(file, 0, &text));
    let (request, privileges) = (SpaceRequest::Collapse, Privileges::Keep);
    let moved = a.done(Call::Fallocate { file, request, offset: 0, length: 4096, privileges });
    a.sync(file);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &written, &moved]);
    a.has_recovered();
    assert_eq!(server.content("file"), "2".repeat(4096));
}

/// The note of how far the bytes are in the map is needed as long as changes may be said again
/// that are older.
#[test]
fn what_a_round_has_not_told_is_not_written_again_over_what_another_one_has_synced_since() {
    let before = Server::new();
    let (mut a, mut b) = (before.begin(1), before.begin(2));
    let (file, made) = a.create("file");
    let first = before.with_a_round_before_the_answer(|| a.write(file, 0, b"aaaa"));
    b.write(file, 1, b"bb");
    b.sync(file);
    let server = before.after_crash();
    let a = server.resume(1);
    a.say_again(&[&made, &first]);
    a.has_recovered();
    // The other one does not come.
    server.served.stop_waiting();
    server.run();
    assert_eq!(server.content("file"), "abba");
}

#[test]
fn bytes_that_were_copied_and_not_shared_are_there_after_a_crash() {
    for is_answered in [true, false] {
        let before = Server::new();
        let mut a = before.begin(1);
        let ((source, made), (target, target_made)) = (a.create("source"), a.create("target"));
        let written = a.write(source, 0, b"0123456789");
        let (source_offset, target_offset, length) = (3, 0, 4);
        let privileges = Privileges::Keep;
        let copy = Call::Copy { source, source_offset, target, target_offset, length, privileges };
        let copied = a.done(copy.clone());
        assert_eq!(copied.answer, Answer::Number(4));
        let later = a.write(source, 0, b"xxxxxxxxxx");
        let (other, other_made) = a.create("other");
        // What was done before is in the journal with it.
        a.sync(other);
        let server = before.after_crash();
        let a = server.resume(1);
        a.say_again(&[&made, &target_made, &written, &later, &other_made]);
        match is_answered {
            true => a.say_again(&[&copied]),
            false => a.say(ToServer::Call {
                id: copied.id,
                caller: Caller::superuser(),
                call: copy,
                after: ChangeNumber(0),
            }),
        }
        a.has_recovered();
        assert_eq!(server.content("target"), "3456");
        assert_eq!(server.content("source"), "xxxxxxxxxx");
    }
}

/// A server that waits for nobody when it starts gives changes places behind those that were noted.
#[test]
fn what_was_noted_of_sessions_that_are_over_keeps_nothing_from_being_written_again() {
    let first = Server::new();
    let (mut a, mut b) = (first.begin(1), first.begin(2));
    let (file, _) = a.create("file");
    for _ in 0..20 {
        a.write(file, 0, b"aaaa");
        b.write(file, 1, b"bb");
    }
    b.sync(file);
    first.served.end(&a.session);
    first.served.end(&b.session);
    let second = first.after_crash();
    assert!(!second.served.is_recovering());
    let mut c = second.begin(3);
    let written = c.write(file, 0, b"cccc");
    let (other, made) = c.create("other");
    // What was done before is in the journal with it.
    c.sync(other);
    let third = second.after_crash();
    let c = third.resume(3);
    c.say_again(&[&written, &made]);
    c.has_recovered();
    assert_eq!(third.content("file"), "cccc");
}

/// Else those who read all the time, side by side, would keep everybody from changing anything.
#[test]
fn a_snapshot_does_not_wait_for_who_only_reads() {
    let server = Server::new();
    let mut client = server.begin(1);
    let (file, _) = client.create("file");
    let (id, (coming, end)) = (client.next_id(), server.detour());
    let errand = Errand::Snapshot { path: Vec::new(), name: b"one".to_vec(), created: 77 };
    let is_made = thread::scope(|scope| {
        let read = Call::Read { file, offset: 0, length: 1, lease: ReadLease::None };
        let (server, client) = (&server, &client);
        scope.spawn(move || {
            client.say(ToServer::Call {
                id,
                caller: Caller::superuser(),
                call: read,
                after: ChangeNumber(0),
            })
        });
        coming.recv().unwrap();
        let made = scope.spawn(|| server.served.run_errand(&errand));
        let begun = Instant::now();
        while !made.is_finished() && begun.elapsed() < Duration::from_secs(10) {
            server.run();
            thread::yield_now();
        }
        let is_made = made.is_finished();
        drop(end);
        made.join().unwrap().unwrap();
        is_made
    });
    assert!(is_made, "it has waited until somebody had read");
}
