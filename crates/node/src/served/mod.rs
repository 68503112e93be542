//! A filesystem that is served to clients on other machines.
//!
//! ```text
//!   connection -> receive -> Job -> queue -> run: the operation, guarded by the table of leases
//!                    ^                         |  somebody else has a lease on what it touches
//!                    |                         '-> parked; Revoke --> that client
//!                    '----- Released <------------------------------------'
//!                             '-> resumed jobs -> queue
//! ```
//!
//! - No call waits on a thread: what has to wait is put aside and runs again from its start.
//! - What a client has changed by itself is applied in the order in which it says so, and before
//!   anything that it says later and that depends on it (`lane`).
//! - An answer is on its way before anything that the call held is free for others. So each client
//!   learns what happened in the order in which it happened.
//! - What a client has open stays, by a reference of its session; a session that has ended has
//!   nothing: no references, no leases, no advisory locks.
//!
//! - What a session may do is decided when it begins, and looked at before each call (`rights`).
//!
//! Absent: sockets and threads, which drive this; how long a client may be silent, or take to give
//! back what was revoked.

mod acquire;
mod execute;
mod grants;
mod guarded;
mod lane;
mod locking;
mod numbers;
mod rights;
mod rivals;
mod session;
mod subtree;
mod times;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::ids::Ino;
use gabion_base::sync::{Mutex, RwLock};
use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Context, Error};
use gabion_link::message::{Answer, Call, CallId, Grant, SessionId, ToClient, ToServer};
use gabion_link::table::{Action, ClientId, Lease, RequestId, RevokeId, Want};
use gabion_map::{FileId, Key, Kind, Value};

use crate::local::LocalFs;

use self::grants::{Grants, Revocation};
pub use self::rights::{Changing, Rights};
use self::rivals::Rivals;
pub use self::session::{Peer, Session};
use self::times::Times;

/// What a worker has to do.
pub struct Job(Work);

enum Work {
    Call(Request),
    /// What waits in the session's lane.
    Lane(Arc<Session>),
}

impl Work {
    fn session(&self) -> &Session {
        match self {
            Self::Call(request) => &request.session,
            Self::Lane(session) => session,
        }
    }
}

/// A call on its way to its answer.
struct Request {
    request: RequestId,
    session: Arc<Session>,
    id: CallId,
    caller: Caller,
    call: Call,
}

impl Job {
    /// Whether it may change what clients have leases on, or what they have locked, or let a client
    /// do so.
    pub fn changes(&self) -> bool {
        match &self.0 {
            Work::Call(request) => request.call.entitles(),
            Work::Lane(_) => true,
        }
    }

    /// Whether it is done without waiting for a disk or for anybody, so that whoever has it may as
    /// well do it.
    pub fn is_quick(&self) -> bool {
        match &self.0 {
            Work::Call(request) => request.is_quick(),
            Work::Lane(_) => false,
        }
    }

    /// Whose it is, and which call, if it is one.
    pub fn of(&self) -> (SessionId, Option<CallId>) {
        match &self.0 {
            Work::Call(request) => (request.session.id, Some(request.id)),
            Work::Lane(session) => (session.id, None),
        }
    }
}

impl Request {
    fn client(&self) -> ClientId {
        ClientId(self.session.id.0)
    }
}

/// What a call has come to.
struct Outcome {
    result: Result<Answer, Error>,
    updates: Vec<(Key, Option<Value>)>,
    grants: Vec<Grant>,
}

impl Outcome {
    fn plain(result: Result<Answer, Error>) -> Self {
        Self { result, updates: Vec::new(), grants: Vec::new() }
    }
}

/// Takes calls that are to be run, soon and on any thread.
pub type Queue = Box<dyn Fn(Job) + Send + Sync>;

/// A filesystem with its clients.
pub struct Served {
    fs: Arc<LocalFs>,
    grants: Mutex<Grants>,
    rivals: Mutex<Rivals>,
    sessions: RwLock<BTreeMap<SessionId, Arc<Session>>>,
    requests: AtomicU64,
    times: Arc<Times>,
    /// How often a directory may have got another parent.
    moves: AtomicU64,
    queue: Queue,
}

/// A client, for people.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    /// Its session.
    pub session: SessionId,
    /// What it calls itself.
    pub name: String,
    /// Ranges that it has leases on.
    pub leases: usize,
    /// Objects that it has open.
    pub opens: usize,
    /// Revocations that it has not answered.
    pub owed: usize,
}

impl Served {
    /// Serves `fs`. Whatever `queue` gets is to be run by [`Served::run`].
    /// `start` is drawn for each start of the server.
    pub fn new(fs: Arc<LocalFs>, start: u64, queue: Queue) -> Self {
        Self {
            times: Arc::new(Times::new(Arc::clone(&fs.clock))),
            fs,
            grants: Mutex::new(Grants::from(RevokeId(start >> 1))),
            rivals: Mutex::default(),
            sessions: RwLock::default(),
            requests: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            queue,
        }
    }

    /// The filesystem.
    pub fn fs(&self) -> &Arc<LocalFs> {
        &self.fs
    }

    /// A client has come, who may do what `rights` say. `id` is one that was never used before.
    pub fn begin(
        &self,
        id: SessionId,
        name: String,
        rights: Rights,
        peer: Arc<dyn Peer>,
    ) -> Arc<Session> {
        let session = Arc::new(Session::new(id, name, rights, peer));
        let before = self.sessions.write().insert(id, Arc::clone(&session));
        assert!(before.is_none(), "{id:?} is used twice");
        session
    }

    /// A client is gone, or has to be taken for gone.
    pub fn end(&self, session: &Arc<Session>) {
        if self.sessions.write().remove(&session.id).is_none() {
            return;
        }
        let opens = session.end();
        self.fs.locks().release_client(session.id.0);
        self.settle(|grants| grants.evict(session.id));
        for file in opens {
            self.fs.release(file);
        }
    }

    /// Takes what a client says. A call becomes a job for the queue.
    pub fn receive(&self, session: &Arc<Session>, message: ToServer) {
        match message {
            ToServer::Ping => {}
            ToServer::Cancel(id) => {
                if let Some(ticket) = session.lock_given_up(id) {
                    self.fs.locks().cancel(ticket);
                }
            }
            message => {
                // Before its turn comes, as it may be given up while it waits for that.
                if let ToServer::Call { id, call: Call::Lock { .. }, .. } = &message {
                    session.lock_asked(*id);
                }
                self.take_turn(session, message);
            }
        }
    }

    /// Does what a client has said, when it is its turn.
    fn attend(&self, session: &Arc<Session>, message: ToServer) {
        let client = ClientId(session.id.0);
        match message {
            ToServer::Call { id, caller, call, .. } => {
                let request = self.next_request();
                let caller = session.rights.identities.map(&caller);
                let session = Arc::clone(session);
                (self.queue)(Job(Work::Call(Request { request, session, id, caller, call })));
            }
            ToServer::Goodbye => self.end(session),
            ToServer::Opened { file, caller, access } => {
                if self.is_known(session, file) {
                    // First the reference: whatever ends the session gives it back.
                    self.fs.refer(file);
                    let granted = self.granted(session, file, &caller, access);
                    if !session.opened(file, granted) {
                        self.fs.release(file);
                    }
                }
            }
            ToServer::Closed(file) => {
                if session.closed(file) {
                    self.fs.locks().release_file(session.id.0, file);
                    self.fs.release(file);
                }
            }
            ToServer::Released(ids) => self.settle(|grants| {
                ids.into_iter().flat_map(|id| grants.table.released(client, id)).collect()
            }),
            ToServer::Yielded(ranges) => {
                self.note_yielded(session, &ranges);
                self.settle(|grants| {
                    ranges.iter().flat_map(|range| grants.table.yielded(client, range)).collect()
                });
            }
            ToServer::Locked(locks) => {
                self.take_locked(session, &locks);
            }
            ToServer::Unwanted(ranges) => self.settle(|grants| {
                ranges.iter().flat_map(|range| grants.table.unwanted(client, range)).collect()
            }),
            ToServer::Ping | ToServer::Cancel(_) | ToServer::Change(_) => {}
        }
    }

    fn next_request(&self) -> RequestId {
        RequestId(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// The circumstances of a call that is looked at now.
    fn context(&self, caller: &Caller) -> Context {
        Context { now: self.times.now(), ..self.fs.context(caller) }
    }

    /// The time of this server, which nothing that was done before is later than.
    pub fn now(&self) -> Timestamp {
        self.times.now()
    }

    /// Whether the session may name the object.
    fn is_known(&self, session: &Session, file: FileId) -> bool {
        self.is_served(file) && self.is_below(session, file)
    }

    /// Whether clients may name the object. Inode 0 is where the filesystem keeps what is its own.
    fn is_served(&self, file: FileId) -> bool {
        file.subvol == self.fs.root().subvol && file.ino != Ino(0)
    }

    /// Does a job.
    pub fn run(&self, job: Job) {
        match job.0 {
            Work::Call(request) => self.run_call(request),
            Work::Lane(session) => self.run_lane(&session),
        }
    }

    /// Runs a call, once or once more, to its answer or until it has to wait.
    fn run_call(&self, job: Request) {
        if job.session.is_over() {
            return self.settle(|grants| grants.table.withdraw(job.request));
        }
        match self.execute(&job) {
            Executed::Ended(outcome) => self.answer(&job, outcome),
            // Whoever ends a session says so before, and then looks for what it has parked.
            Executed::Blocked(wants) => self.settle(|grants| match job.session.is_over() {
                true => grants.table.withdraw(job.request),
                false => grants.park(job, &wants),
            }),
            Executed::AnswersLater => {}
        }
    }

    /// Answers, then frees what the call held.
    fn answer(&self, job: &Request, outcome: Outcome) {
        self.note_told(&job.session, &job.call, &outcome.grants, &outcome.updates);
        let Outcome { result, updates, grants } = job.session.rights.redacted(outcome);
        let leases: Vec<Want> = grants.iter().map(|grant| (grant.range, grant.mode)).collect();
        let gone = gone(&updates);
        let now = self.times.now();
        job.session.peer.send(ToClient::Answer { id: job.id, result, updates, grants, now });
        self.finish(&job.session, job.request, &leases, &gone);
    }

    /// A request is through: its client gets leases, and nobody has any on what is gone.
    fn finish(&self, session: &Session, request: RequestId, leases: &[Want], gone: &[FileId]) {
        self.settle(|grants| {
            // A session that has ended meanwhile gets no leases any more.
            let leases: &[Want] = if session.is_over() { &[] } else { leases };
            let mut actions = grants.table.finish(request, leases);
            for file in gone {
                actions.extend(grants.table.gone(*file, ClientId(session.id.0)));
            }
            actions
        });
    }

    /// Changes the table, and does what follows from that.
    fn settle(&self, change: impl FnOnce(&mut Grants) -> Vec<Action>) {
        let mut grants = self.grants.lock();
        let actions = change(&mut grants);
        let due = grants.due(actions);
        drop(grants);
        for Revocation { client, id, range, keep } in due.revocations {
            let session = self.sessions.read().get(&SessionId(client.0)).cloned();
            if let Some(session) = session {
                session.peer.send(ToClient::Revoke { id, range, keep });
            }
        }
        for work in due.work {
            (self.queue)(Job(work));
        }
    }

    /// All clients.
    pub fn clients(&self) -> Vec<ClientStatus> {
        let sessions: Vec<_> = self.sessions.read().values().cloned().collect();
        let grants = self.grants.lock();
        let mut leases: BTreeMap<ClientId, usize> = BTreeMap::new();
        for lease in grants.table.leases() {
            *leases.entry(lease.client).or_default() += 1;
        }
        let status = |session: Arc<Session>| {
            let client = ClientId(session.id.0);
            ClientStatus {
                session: session.id,
                name: session.name.clone(),
                leases: leases.get(&client).copied().unwrap_or(0),
                opens: session.opens(),
                owed: grants.table.owed_by(client),
            }
        };
        sessions.into_iter().map(status).collect()
    }

    /// Whether the client has revocations to answer.
    pub fn owes(&self, session: &Session) -> bool {
        self.grants.lock().table.owed_by(ClientId(session.id.0)) > 0
    }

    /// All leases, and all who wait for some.
    pub fn leases(&self) -> (Vec<Lease>, Vec<(ClientId, Vec<Want>)>) {
        let grants = self.grants.lock();
        let waiting = grants.table.waiting().map(|(_, client, wants)| (client, wants.to_vec()));
        (grants.table.leases().collect(), waiting.collect())
    }

    /// Ends all sessions.
    pub fn close(&self) {
        let sessions: Vec<_> = self.sessions.read().values().cloned().collect();
        for session in sessions {
            self.end(&session);
        }
    }
}

/// Objects of which nothing is left.
fn gone<'a>(changed: impl IntoIterator<Item = &'a (Key, Option<Value>)>) -> Vec<FileId> {
    let is_gone = |item: &&(Key, Option<Value>)| item.0.kind == Kind::INODE && item.1.is_none();
    changed.into_iter().filter(is_gone).map(|(key, _)| key.file()).collect()
}

/// How far a call has come.
enum Executed {
    /// To its answer.
    Ended(Outcome),
    /// It has to wait for these.
    Blocked(Vec<Want>),
    /// Somebody else answers it.
    AnswersLater,
}
