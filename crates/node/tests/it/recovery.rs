//! Servers that crash, and what clients of theirs say again: no threads, no clients' caches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength};
use gabion_fs::{
    Access, Caller, Changes, Disposition, IfExists, OpenRequest, Privileges, Result, SizeRule,
    SpaceRequest, WriteAt,
};
use gabion_link::errand::{Errand, Report};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Prefetch, SessionId, ToClient, ToServer, Witness,
};
use gabion_link::range::KeyRange;
use gabion_link::table::RevokeId;
use gabion_map::{FileId, Kind, LocalTxn, LockMode, OpenMode, Stop, Txn};
use gabion_node::served::{Credentials, Job, Peer, Rights, Served, Session};

use crate::world::World;

/// A server whose calls run when it is told.
pub struct Server {
    pub world: World,
    pub served: Served,
    jobs: Receiver<Job>,
    /// What is revoked is given back at once.
    revoked: (Sender<Revoked>, Receiver<Revoked>),
    /// Who is told to stand still says so at once.
    frozen: (Sender<Frozen>, Receiver<Frozen>),
    /// Has the next answer wait on its way.
    detour: Arc<Mutex<Option<Detour>>>,
    sessions: Mutex<BTreeMap<SessionId, Arc<Session>>>,
}

/// Says that the answer has come by, and waits until the other end is gone.
type Detour = (Sender<()>, Receiver<()>);

type Revoked = (SessionId, RevokeId);
type Frozen = (SessionId, u64);

impl Server {
    fn on(world: World) -> Self {
        let (sender, jobs) = unbounded();
        let queue = Box::new(move |job| drop(sender.send(job)));
        let served = Served::new(Arc::clone(&world.fs), 1, queue).unwrap();
        let (revoked, frozen) = (unbounded(), unbounded());
        let (detour, sessions) = (Arc::default(), Mutex::default());
        Self { world, served, jobs, revoked, frozen, detour, sessions }
    }

    pub fn new() -> Self {
        Self::on(World::new(64 << 20))
    }

    pub fn after_crash(&self) -> Self {
        Self::on(self.world.after_crash(OpenMode::ReadWrite))
    }

    pub fn run(&self) {
        loop {
            if let Ok(job) = self.jobs.try_recv() {
                self.served.run(job);
            } else if let Ok((session, id)) = self.revoked.1.try_recv() {
                let session = Arc::clone(&self.sessions.lock()[&session]);
                self.served.receive(&session, ToServer::Released(vec![id]));
            } else if let Ok((session, freeze)) = self.frozen.1.try_recv() {
                let session = Arc::clone(&self.sessions.lock()[&session]);
                self.served.receive(&session, ToServer::Frozen(freeze));
            } else {
                return;
            }
        }
    }

    fn client(&self, number: u64, session: Arc<Session>, heard: Receiver<ToClient>) -> Client<'_> {
        self.sessions.lock().insert(session.id(), Arc::clone(&session));
        let witnessed = Mutex::default();
        Client { server: self, session, heard, calls: 100 * number, witnessed }
    }

    pub fn begin(&self, number: u64) -> Client<'_> {
        self.begin_as(number, Rights::TRUSTED)
    }

    pub fn begin_as(&self, number: u64, rights: Rights) -> Client<'_> {
        let (peer, heard) = self.peer(number);
        let kept = (Credentials { secret: number, holder: Vec::new() }, Duration::from_secs(10));
        let (id, name) = (SessionId(number), format!("client {number}"));
        let session = self.served.begin_remembered(id, name, rights, kept, peer).unwrap();
        self.client(number, session, heard)
    }

    pub fn resume(&self, number: u64) -> Client<'_> {
        self.resume_as(number, Rights::TRUSTED)
    }

    pub fn resume_as(&self, number: u64, rights: Rights) -> Client<'_> {
        let id = SessionId(number);
        assert_eq!(self.served.remembered(id).unwrap().secret, number);
        let (peer, heard) = self.peer(number);
        let resumed = self.served.resume(id, String::new(), rights, peer);
        let mut client = self.client(number, resumed.unwrap().unwrap(), heard);
        client.calls += 50;
        client
    }

    fn peer(&self, number: u64) -> (Arc<Heard>, Receiver<ToClient>) {
        let (others, heard) = unbounded();
        let (session, revoked) = (SessionId(number), self.revoked.0.clone());
        let (frozen, detour) = (self.frozen.0.clone(), Arc::clone(&self.detour));
        (Arc::new(Heard { session, revoked, frozen, detour, others }), heard)
    }

    /// Has the next answer wait on its way: it has come by when there is something to be received,
    /// and goes on when what is sent from is dropped.
    pub fn detour(&self) -> (Receiver<()>, Sender<()>) {
        let ((came_by, coming), (end, until)) = (unbounded(), unbounded());
        *self.detour.lock() = Some((came_by, until));
        (coming, end)
    }

    /// Does something that is answered, and makes everything durable while the answer is on its
    /// way.
    pub fn with_a_round_before_the_answer<T>(&self, run: impl FnOnce() -> T) -> T {
        let (coming, end) = self.detour();
        thread::scope(|scope| {
            scope.spawn(move || {
                coming.recv().unwrap();
                self.served.settle_round().unwrap();
                drop(end);
            });
            run()
        })
    }

    pub fn content(&self, name: &str) -> String {
        let file = self.world.lookup(name).unwrap().file;
        String::from_utf8(self.world.read(file)).unwrap()
    }
}

struct Heard {
    session: SessionId,
    revoked: Sender<Revoked>,
    frozen: Sender<Frozen>,
    detour: Arc<Mutex<Option<Detour>>>,
    others: Sender<ToClient>,
}

impl Peer for Heard {
    fn send(&self, message: ToClient) {
        if let ToClient::Answer { .. } = message
            && let Some((came_by, until)) = self.detour.lock().take()
        {
            came_by.send(()).unwrap();
            assert!(until.recv().is_err());
        }
        let _ = match message {
            ToClient::Revoke { id, .. } => self.revoked.send((self.session, id)).is_ok(),
            ToClient::Freeze(freeze) => self.frozen.send((self.session, freeze)).is_ok(),
            message => self.others.send(message).is_ok(),
        };
    }

    fn sent(&self) -> u64 {
        1
    }

    // Nothing is known of that.
    fn arrived(&self) -> u64 {
        0
    }
}

/// What was done of a call: what its client keeps.
pub struct Kept {
    pub id: CallId,
    change: Change,
    pub answer: Answer,
}

pub struct Client<'s> {
    server: &'s Server,
    pub session: Arc<Session>,
    heard: Receiver<ToClient>,
    calls: u64,
    witnessed: Mutex<Vec<Witness>>,
}

impl Client<'_> {
    pub fn say(&self, message: ToServer) {
        self.server.served.receive(&self.session, message);
        self.server.run();
    }

    pub fn ask_as(&self, id: CallId, call: Call) -> (Result<Answer>, u64, Option<Timestamp>) {
        let (caller, after) = (Caller::superuser(), ChangeNumber(0));
        self.say(ToServer::Call { id, caller, call, after });
        self.answer(id)
    }

    pub fn answer(&self, id: CallId) -> (Result<Answer>, u64, Option<Timestamp>) {
        loop {
            match self.heard.try_recv().expect("an answer") {
                ToClient::Answer { id: of, result, order, done, .. } if of == id => {
                    return (result, order, done);
                }
                ToClient::Witness(calls) => self.witnessed.lock().extend(calls),
                _ => {}
            }
        }
    }

    pub fn next_id(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    /// Has something done that is kept then.
    pub fn done(&mut self, call: Call) -> Kept {
        let id = self.next_id();
        let (result, order, done) = self.ask_as(id, call.clone());
        let answer = result.unwrap();
        let (number, now, caller) = (ChangeNumber(0), done.unwrap(), Caller::superuser());
        let made = match &answer {
            Answer::Made(made, Disposition::Created) => Some(made.file.ino),
            _ => None,
        };
        let change = Change { number, order, now, made, caller, call };
        Kept { id, change, answer }
    }

    /// Asks for all names of a directory.
    pub fn list(&mut self, dir: FileId) {
        let needed = vec![(KeyRange::names(dir), LockMode::Shared)];
        let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
        let id = self.next_id();
        self.ask_as(id, Call::Acquire { needed, welcome, prefetch }).0.unwrap();
    }

    pub fn create(&mut self, name: &str) -> (FileId, Kept) {
        let kept = self.done(create(self.server.world.root(), name));
        let Answer::Made(made, _) = &kept.answer else { panic!("{:?}", kept.answer) };
        (made.file, kept)
    }

    pub fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Kept {
        self.done(write(file, offset, bytes))
    }

    pub fn sync(&mut self, file: FileId) {
        let id = self.next_id();
        self.ask_as(id, Call::Sync { file: Some(file) }).0.unwrap();
    }

    pub fn say_again(&self, kept: &[&Kept]) {
        for Kept { id, change, .. } in kept {
            self.say(ToServer::Done { id: *id, change: change.clone() });
        }
    }

    /// What an errand comes to that was asked for.
    fn report(&self, id: CallId) -> Result<Answer> {
        thread::scope(|scope| {
            scope.spawn(|| self.server.served.keep_errands());
            loop {
                self.server.run();
                match self.heard.try_recv() {
                    Ok(ToClient::Answer { id: of, result, .. }) if of == id => {
                        self.server.served.end_errands();
                        return result;
                    }
                    _ => thread::yield_now(),
                }
            }
        })
    }

    pub fn has_recovered(&self) {
        self.say(ToServer::Recovered);
    }

    pub fn has_heard_of_failures(&self) -> bool {
        self.heard.try_iter().any(|message| matches!(message, ToClient::Failed { .. }))
    }
}

pub fn create(parent: FileId, name: &str) -> Call {
    Call::Create {
        parent,
        name: name.into(),
        permissions: 0o644,
        if_exists: IfExists::Fail,
        request: OpenRequest { access: Access::WRITE, truncate: None },
    }
}

fn write(file: FileId, offset: u64, bytes: &[u8]) -> Call {
    let at = WriteAt::Offset(offset);
    Call::Write { file, at, privileges: Privileges::Keep, bytes: Arc::new(bytes.to_vec()) }
}

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
