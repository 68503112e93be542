//! Servers that crash, and what clients of theirs say again: no threads, no clients' caches.

mod kept;
mod said_again;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_fs::{Access, Caller, Disposition, IfExists, OpenRequest, Privileges, Result, WriteAt};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Prefetch, SessionId, ToClient, ToServer, Witness,
};
use gabion_link::range::KeyRange;
use gabion_link::table::RevokeId;
use gabion_map::{FileId, LockMode, OpenMode};
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
