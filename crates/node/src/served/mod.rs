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
//! - Of each change and call is noted, in its transaction, that it is done (`ledger`). A server
//!   that starts again has its clients say again what may be lost, before it does anything
//!   (`recovery`).
//! - What a session may do is decided when it begins, and looked at before each call (`rights`).
//!
//! Absent: sockets and threads, which drive this; how long a client may be silent, or take to give
//! back what was revoked.

mod acquire;
mod deltas;
mod errands;
mod execute;
mod freezing;
mod grants;
mod guarded;
mod lane;
mod ledger;
mod locking;
mod numbers;
mod pledges;
mod policies;
mod readings;
mod recovery;
mod refinding;
mod rewinding;
mod rights;
mod rivals;
mod rounds;
mod session;
mod status;
mod subtree;
mod subvolumes;
#[cfg(test)]
mod testing;
mod tight;
mod times;
mod witnesses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex, ReadMostly, RwLock};
use gabion_base::time::Timestamp;
use gabion_fs::lock::LockOwner;
use gabion_fs::{Caller, Context, Error};
use gabion_link::message::{Answer, Call, CallId, Grant, SessionId, ToClient, ToServer, Witness};

use gabion_link::table::{Action, ClientId, RequestId, RevokeId, Want};
use gabion_map::{FileId, Key, Kind, Value};

use crate::local::LocalFs;
use crate::operation::made_by;

use self::errands::Errands;
use self::freezing::{Freezing, passing};
use self::grants::{Grants, Revocation, Turn};
use self::ledger::Pages;
pub use self::ledger::{Credentials, Record, Standing};
use self::pledges::Pledges;
use self::recovery::Recovery;
pub use self::rights::{Changing, Rights};
use self::rivals::Rivals;
use self::rounds::{Rounds, Said};
pub use self::session::{Peer, Session};
pub use self::status::{ClientStatus, Owed, Owing};
use self::tight::Tight;
use self::times::Times;
use self::witnesses::Witnesses;

/// How long what is done may be not durable.
const ROUND: Duration = Duration::from_secs(5);
/// How long a call may go on whose session has ended.
const REST_OF_CALLS: Duration = Duration::from_secs(60);

/// Places among changes that are believed: there are always higher ones.
const ORDER_SEEN_MAX: u64 = 1 << 62;

/// What a worker has to do.
pub struct Job(Work);

enum Work {
    Call(Request),
    /// What waits in the session's lane.
    Lane(Arc<Session>),
    /// An administrator waits for leases.
    Errand(Arc<Turn>),
    /// What clients say again after a crash.
    Recovery,
}

impl Work {
    fn session(&self) -> Option<&Session> {
        match self {
            Self::Call(request) => Some(&request.session),
            Self::Lane(session) => Some(session),
            Self::Errand(_) | Self::Recovery => None,
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
    /// How often it has waited for room that was pledged.
    withdrawals: u8,
}

impl Job {
    /// Which call of whom it is, if it is one.
    pub fn call(&self) -> Option<(SessionId, CallId)> {
        match &self.0 {
            Work::Call(request) => Some((request.session.id, request.id)),
            Work::Lane(_) | Work::Errand(_) | Work::Recovery => None,
        }
    }

    /// Whether it is done without waiting for a disk or for anybody, so that whoever has it may as
    /// well do it.
    pub fn is_quick(&self) -> bool {
        match &self.0 {
            Work::Call(request) => request.is_quick(),
            Work::Lane(_) | Work::Errand(_) | Work::Recovery => false,
        }
    }

    /// Whether it is what a client says in its order, of which there may be more in a moment.
    pub fn is_lane(&self) -> bool {
        matches!(self.0, Work::Lane(_))
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
    /// Its place among changes and its time, if it has changed something.
    done: Option<(u64, Timestamp)>,
}

impl Outcome {
    fn plain(result: Result<Answer, Error>) -> Self {
        Self { result, updates: Vec::new(), grants: Vec::new(), done: None }
    }
}

/// Takes calls that are to be run, soon and on any thread.
pub type Queue = Box<dyn Fn(Job) + Send + Sync>;

/// A filesystem with its clients.
pub struct Served {
    fs: Arc<LocalFs>,
    grants: Mutex<Grants>,
    rivals: Mutex<Rivals>,
    /// Had by whoever begins a session, so that a rollback knows all there are.
    entering: ReadMostly<()>,
    sessions: RwLock<BTreeMap<SessionId, Arc<Session>>>,
    requests: AtomicU64,
    times: Arc<Times>,
    /// A logical clock: nothing that is known here has a higher place among changes.
    order: Arc<AtomicU64>,
    rounds: Rounds,
    witnesses: Witnesses,
    recovery: Recovery,
    is_recovering: AtomicBool,
    /// Sessions that are over, and when what is noted of them may go.
    leaving: Mutex<Vec<(Pages, Duration)>>,
    settling: Settling,
    freezing: Freezing,
    pledges: Pledges,
    tight: Tight,
    errands: Errands,
    /// How often a directory may have got another parent.
    moves: AtomicU64,
    queue: Queue,
}

/// When the next round begins.
#[derive(Default)]
struct Settling {
    /// It is due, or the end has come.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Served {
    /// Serves `fs`. Whatever `queue` gets is to be run by [`Served::run`].
    /// `start` is drawn for each start of the server.
    ///
    /// If there are sessions of an earlier start, nothing is done until they have come back, or
    /// [`Served::stop_waiting`] says that they will not. Until then orphans stay.
    pub fn new(fs: Arc<LocalFs>, start: u64, queue: Queue) -> Result<Self, Error> {
        let remembered = ledger::sort_out_outlived(&fs)?;
        let mut served = Self::without_sessions(fs, start, queue);
        if !served.fs.is_read_only() {
            served.recovery = Recovery::of(served.sort_out(remembered));
        }
        // Places of changes go on behind those that were noted, be it of sessions that are over or
        // in what was cloned: what is changed from now on is none of what was.
        let kept = ledger::kept_before(&served.fs)?;
        kept.into_iter().for_each(|(_, order)| served.saw_order(order));
        match served.recovery.is_needed() {
            true => {
                served.fs.hold_orphans();
                served.is_recovering = AtomicBool::new(true);
            }
            false => served.fs.let_orphans_go(),
        }
        Ok(served)
    }

    fn without_sessions(fs: Arc<LocalFs>, start: u64, queue: Queue) -> Self {
        Self {
            times: Arc::new(Times::new(Arc::clone(&fs.clock))),
            fs,
            grants: Mutex::new(Grants::from(RevokeId(start >> 1))),
            rivals: Mutex::default(),
            entering: ReadMostly::default(),
            sessions: RwLock::default(),
            requests: AtomicU64::new(0),
            order: Arc::new(AtomicU64::new(1)),
            rounds: Rounds::default(),
            witnesses: Witnesses::default(),
            recovery: Recovery::default(),
            is_recovering: AtomicBool::new(false),
            leaving: Mutex::default(),
            settling: Settling::default(),
            freezing: Freezing::default(),
            pledges: Pledges::default(),
            tight: Tight::default(),
            errands: Errands::default(),
            moves: AtomicU64::new(0),
            queue,
        }
    }

    /// The filesystem.
    pub fn fs(&self) -> &Arc<LocalFs> {
        &self.fs
    }

    /// A client has come, who may do what `rights` say. `id` is one that was never used before. The
    /// session ends with this server.
    pub fn begin(
        &self,
        id: SessionId,
        name: String,
        rights: Rights,
        peer: Arc<dyn Peer>,
    ) -> Arc<Session> {
        let _entering = self.entering.pass();
        self.enter(Session::new(id, name, rights, peer))
    }

    fn enter(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        let before = self.sessions.write().insert(session.id, Arc::clone(&session));
        assert!(before.is_none(), "{:?} is used twice", session.id);
        self.freezing.entered(&session);
        session
    }

    fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.read().values().cloned().collect()
    }

    /// A client is gone, or knows that its session has ended.
    pub fn end(&self, session: &Arc<Session>) {
        self.end_as(session, Standing::Left);
    }

    /// A client has lost its session and does not know it.
    pub fn cut(&self, session: &Arc<Session>) {
        self.end_as(session, Standing::Cut);
    }

    fn end_as(&self, session: &Arc<Session>, standing: Standing) {
        if self.sessions.write().remove(&session.id).is_none() {
            return;
        }
        if let (Some(pages), Some(record)) = (session.pages, &session.record) {
            // Before anybody else has what was its: after a crash it could come back for that. If
            // this fails the disk does, and nobody has anything any more.
            let _ = self.write_record(pages, &Record { standing, ..record.clone() });
            let rest = match standing {
                Standing::Cut => Duration::from_millis(record.patience_ms.into()) * 2,
                Standing::Left | Standing::Alive => REST_OF_CALLS,
            };
            self.forget_after(pages, rest);
        }
        let opens = session.end();
        self.end_pledge(session);
        self.fs.locks().release_client(session.id.0);
        self.settle(|grants| grants.evict(session.id));
        for file in opens {
            self.fs.release(file);
        }
        // Who has gone is not waited for.
        self.freezing.left(session.id);
        self.has_recovered(session);
    }

    /// Nothing that was known when `order` was given has a higher place among changes.
    fn saw_order(&self, order: u64) {
        self.order.fetch_max(order.min(ORDER_SEEN_MAX), Ordering::SeqCst);
    }

    /// A place among changes that is higher than all that is known.
    fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Makes durable what was done, in rounds, until [`Served::end_rounds`]. For a thread of its
    /// own.
    pub fn keep_settled(&self, report: &dyn Fn(&Error)) {
        loop {
            let mut state = self.settling.state.lock();
            if !state.0 && !state.1 {
                self.settling.changed.wait_for(&mut state, ROUND);
            }
            let (_, is_over) = std::mem::take(&mut *state);
            drop(state);
            if is_over {
                return;
            }
            if !self.is_recovering() && !self.fs.is_read_only() {
                let settled = self.settle_round().and_then(|()| self.forget_over());
                if let Err(error) = settled {
                    report(&error);
                }
            }
        }
    }

    /// Lets [`Served::keep_settled`] return soon.
    pub fn end_rounds(&self) {
        self.settling.state.lock().1 = true;
        self.settling.changed.notify_all();
    }

    fn settle_soon_if(&self, is_due: bool) {
        if is_due {
            self.settling.state.lock().0 = true;
            self.settling.changed.notify_all();
        }
    }

    /// Takes what a client says. A call becomes a job for the queue.
    pub fn receive(&self, session: &Arc<Session>, message: ToServer) {
        match message {
            ToServer::Ping => {}
            // Nothing depends on when.
            ToServer::Settled(round) => session.settled(round),
            ToServer::Cancel(id) => match session.lock_given_up(id) {
                Some(ticket) => self.fs.locks().cancel(ticket),
                None => self.give_up_parked(session, id),
            },
            message => {
                // Before its turn comes, as it may be given up while it waits for that.
                if let ToServer::Call { id, call: Call::Lock { .. }, .. } = &message {
                    session.lock_asked(*id);
                }
                let has_recovered = matches!(message, ToServer::Recovered);
                self.take_turn(session, message);
                if has_recovered {
                    self.has_recovered(session);
                }
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
                let withdrawals = 0;
                let request = Request { request, session, id, caller, call, withdrawals };
                (self.queue)(Job(Work::Call(request)));
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
            ToServer::Released(ids) => {
                self.settle(|grants| grants.table.released_all(client, &ids));
            }
            ToServer::Yielded(ranges) => {
                self.note_yielded(session, &ranges);
                self.settle(|grants| {
                    ranges.iter().flat_map(|range| grants.table.yielded(client, range)).collect()
                });
            }
            ToServer::Locked(locks) => {
                let lost = self.take_locked(session, &locks);
                if !lost.is_empty() {
                    session.peer.send(ToClient::LocksLost(lost));
                }
            }
            ToServer::Unlocked { file, class, owner, range } => {
                let owner = LockOwner { client: session.id.0, number: owner };
                self.fs.locks().release(file, class, owner, range);
            }
            ToServer::Unwanted(ranges) => self.settle(|grants| {
                ranges.iter().flat_map(|range| grants.table.unwanted(client, range)).collect()
            }),
            ToServer::Frozen(freeze) => {
                self.freezing.frozen(session.id, freeze);
                self.fenced(session, freeze);
            }
            // Those that count are looked at when all have said theirs.
            ToServer::Done { .. }
            | ToServer::Witnessed(_)
            | ToServer::Recovered
            | ToServer::Settled(_)
            | ToServer::Ping
            | ToServer::Cancel(_)
            | ToServer::Accessed { .. }
            | ToServer::Change(_) => {}
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

    /// Does a job.
    pub fn run(&self, job: Job) {
        match job.0 {
            Work::Call(request) => self.run_call(request),
            Work::Lane(session) => self.run_lane(&session),
            Work::Errand(turn) => turn.come(),
            Work::Recovery => self.recover(),
        }
    }

    /// Runs a call, once or once more, to its answer or until it has to wait.
    fn run_call(&self, job: Request) {
        if job.session.is_over() {
            return self.settle(|grants| grants.table.withdraw(job.request));
        }
        if matches!(job.call, Call::Run(_)) {
            return self.queue_errand(job);
        }
        let _pass = match passing(&job.call) {
            Some(passing) => match self.freezing.enter(passing) {
                Some(pass) => Some(pass),
                None => {
                    if let Some(work) = self.freezing.hold(passing, Work::Call(job)) {
                        (self.queue)(Job(work));
                    }
                    return;
                }
            },
            None => None,
        };
        let pledging = self.pledging();
        match self.execute(&job) {
            Executed::Ended(outcome) => {
                if let Some(job) = self.wait_for_pledged(job, &outcome, pledging) {
                    self.answer(&job, outcome);
                }
            }
            // Whoever ends a session says so before, and then looks for what it has parked.
            Executed::Blocked(wants) => {
                let (session, id) = (Arc::clone(&job.session), job.id);
                self.settle(|grants| match session.is_over() {
                    true => grants.table.withdraw(job.request),
                    false => grants.park(job, &wants),
                });
                // Whoever gives a lock up says so before, too.
                if session.is_lock_given_up(id) {
                    self.give_up_parked(&session, id);
                }
            }
            Executed::AnswersLater => {}
        }
    }

    /// Answers, then frees what the call held.
    fn answer(&self, job: &Request, outcome: Outcome) {
        self.note_told(&job.session, &job.call, &outcome.grants, &outcome.updates);
        let Outcome { result, updates, grants, done } = job.session.rights.redacted(outcome);
        let leases: Vec<Want> = grants.iter().map(|grant| (grant.range, grant.mode)).collect();
        let gone = gone(&updates);
        let now = self.times.now();
        self.tell_witnessed(&job.session);
        let (id, session) = (job.id, &job.session);
        if matches!(job.call, Call::Lock { .. }) {
            session.lock_answered(id);
        }
        match done {
            None => {
                let (order, done) = (self.order.load(Ordering::SeqCst), None);
                let answer = ToClient::Answer { id, result, updates, grants, now, order, done };
                session.peer.send(answer);
            }
            Some((order, time)) => {
                let made = result.as_ref().ok().and_then(|answer| made_by(&job.call, answer));
                let (call, done) = (id, Some(time));
                let witness = Witness { session: session.id, call, order, now: time, made };
                let answer = ToClient::Answer { id, result, updates, grants, now, order, done };
                self.send_witnessed(session, witness, answer);
                // Not before: what a client is told to be durable it has to know.
                let (weight, most) = (lane::weight(&job.call), self.round_bytes(session));
                self.settle_soon_if(session.note_done(Some(id), weight, most));
                self.end_written(Said::Call(session.id, id));
            }
        }
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
            // Whoever has removed a subvolume since had nothing of this to revoke.
            for (range, _) in leases.iter().filter(|(range, _)| self.is_removed(range.file())) {
                actions.extend(grants.table.unwanted(ClientId(session.id.0), range));
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

    /// Ends all sessions.
    pub fn close(&self) {
        self.all_sessions().iter().for_each(|session| self.end(session));
    }

    /// Leaves all sessions to the next start. Nothing is done for them any more, and what they have
    /// open stays.
    pub fn leave_to_next(&self) -> Result<(), Error> {
        if self.fs.is_read_only() || self.is_recovering() {
            return Ok(());
        }
        self.forget_over()?;
        if !self.sessions.read().is_empty() {
            self.fs.hold_orphans();
        }
        self.settle_round()
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
