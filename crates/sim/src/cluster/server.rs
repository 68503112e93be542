//! The machine that serves: what the product's daemon does around [`Served`], in the simulated
//! world: connections, workers, the end of silent sessions, and the time after a start in which
//! nothing changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::{
    Change, Hello, Refusal, RefusalReason, SessionId, ToClient, ToServer, Welcome,
};
use gabion_link::wire::FrameKind;
use gabion_map::{Limits, OpenMode};
use gabion_node::served::{Credentials, Job, Owing, Peer, Served, Session};
use gabion_node::{LocalFs, Settings};

use super::baton::MachineId;
use super::clock::MachineClock;
use super::network::{ConnectionId, Side};
use super::pipe::{Pipe, greeting, open};
use super::{MARGIN, PATIENCE, REVOKE_PATIENCE, Sabotage, World};
use crate::disk::SimDisk;

/// How often it is looked for sessions that fell silent.
const GLANCE: Duration = Duration::from_millis(50);
/// How long a connection may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(2);
/// What is accepted is committed after this time.
const COMMIT_INTERVAL: Duration = Duration::from_secs(3);
/// How long what was done may be not durable.
const ROUNDS: Duration = Duration::from_secs(4);
/// What is promised by who does not count.
const ENDLESS: u64 = 1 << 40;
/// Memory of the filesystem.
const MEMORY: u64 = 16 << 20;

/// Calls that wait for a worker.
#[derive(Default)]
struct Jobs {
    ready: Mutex<VecDeque<Job>>,
    arrived: Condvar,
}

impl Jobs {
    fn queue(&self, job: Job) {
        self.ready.lock().push_back(job);
        self.arrived.notify_one();
    }

    fn next(&self) -> Job {
        let mut ready = self.ready.lock();
        loop {
            if let Some(job) = ready.pop_front() {
                return job;
            }
            self.arrived.wait(&mut ready);
        }
    }
}

/// A session with its connections.
struct Link {
    session: Arc<Session>,
    secret: u64,
    pipe: Arc<Pipe>,
    /// Held by who reads what the client says: one connection after the other.
    reading: Mutex<()>,
    heard: Mutex<Duration>,
    owing: Mutex<Owing<Duration>>,
}

struct Outbox {
    pipe: Arc<Pipe>,
    sabotage: Sabotage,
    server: Weak<Server>,
    session: OnceLock<Weak<Session>>,
}

impl Peer for Outbox {
    fn send(&self, message: ToClient) {
        if let (Sabotage::GrantsAnyway, ToClient::Revoke { id, .. }) = (self.sabotage, &message)
            && let Some(server) = self.server.upgrade()
            && let Some(session) = self.session.get().and_then(Weak::upgrade)
        {
            return server.served.receive(&session, ToServer::Released(vec![*id]));
        }
        if let (Sabotage::SnapshotsAnyway, ToClient::Freeze(number)) = (self.sabotage, &message)
            && let Some(server) = self.server.upgrade()
            && let Some(session) = self.session.get().and_then(Weak::upgrade)
        {
            return server.frozen(session, *number);
        }
        let message = match (self.sabotage, message) {
            (Sabotage::EndlessCredit, ToClient::Applied { number, extents, .. }) => {
                ToClient::Applied { number, extents, credit: ENDLESS }
            }
            (_, message) => message,
        };
        self.pipe.send(message.encode());
    }

    fn cut(&self) {
        self.pipe.close();
    }

    fn sent(&self) -> u64 {
        self.pipe.sent()
    }

    fn arrived(&self) -> u64 {
        self.pipe.arrived()
    }
}

/// A server from its start to its crash.
pub struct Server {
    world: Arc<World>,
    machine: MachineId,
    fs: Arc<LocalFs>,
    served: Arc<Served>,
    start: u64,
    jobs: Arc<Jobs>,
    /// When clients of an earlier start are not waited for any more.
    grace_ends: Duration,
    links: Mutex<BTreeMap<SessionId, Arc<Link>>>,
}

impl Server {
    /// Opens what is on `disk` and serves it.
    pub fn start(
        world: &Arc<World>,
        machine: MachineId,
        disk: Arc<SimDisk>,
        start: u64,
    ) -> Result<Arc<Self>, String> {
        let clock = Arc::new(MachineClock::exact(Arc::clone(&world.baton)));
        let settings = Settings { commit_interval: COMMIT_INTERVAL, ..Settings::default() };
        let limits = Limits::within(MEMORY);
        let fs = LocalFs::open(disk, OpenMode::ReadWrite, limits, settings, clock);
        let fs = Arc::new(fs.map_err(|error| format!("the server cannot start: {error}"))?);
        fs.hold_orphans();
        let jobs = Arc::new(Jobs::default());
        let queue = Arc::clone(&jobs);
        let served = Served::new(Arc::clone(&fs), start, Box::new(move |job| queue.queue(job)));
        let served = served.map_err(|error| format!("the server cannot start: {error}"))?;
        if served.is_recovering() {
            let skipped = served.skip_numbers();
            skipped.map_err(|error| format!("the server cannot start: {error}"))?;
        }
        let grace = match world.sabotage {
            Sabotage::NoGrace => Duration::ZERO,
            _ => served.patience_before() + MARGIN,
        };
        let server = Arc::new(Self {
            world: Arc::clone(world),
            machine,
            fs: Arc::clone(&fs),
            served: Arc::new(served),
            start,
            jobs,
            grace_ends: world.baton.now() + grace,
            links: Mutex::default(),
        });
        for _ in 0..1 + world.baton.draw(3) {
            let own = Arc::clone(&server);
            server.spawn("worker", move || own.work());
        }
        let own = Arc::clone(&server);
        server.spawn("rounds", move || own.keep_settled());
        let own = Arc::clone(&server);
        server.spawn("sessions", move || own.keep_sessions());
        let own = Arc::clone(&server);
        server.spawn("listener", move || own.listen());
        if world.has_snapshots {
            let own = Arc::clone(&server);
            server.spawn("errands", move || own.served.keep_errands());
        }
        let (own, baton) = (Arc::clone(&fs), Arc::clone(&world.baton));
        let report = move |error: &gabion_fs::Error| baton.fail(&format!("background: {error}"));
        let told = report.clone();
        server.spawn("commits", move || own.keep_committed(&told));
        server.spawn("reaper", move || fs.keep_reaped(&report));
        Ok(server)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) {
        self.world.baton.spawn(self.machine, name, run);
    }

    fn work(&self) {
        loop {
            self.served.run(self.jobs.next());
        }
    }

    /// Makes what was done durable, now and then.
    fn keep_settled(&self) {
        loop {
            let rest = self.world.baton.draw(ROUNDS.as_millis() as u64);
            self.world.baton.sleep(Duration::from_millis(rest));
            if !self.served.is_recovering()
                && let Err(error) = self.served.settle_round()
            {
                self.world.baton.fail(&format!("a round: {error}"));
            }
            self.check_quota();
        }
    }

    /// Nothing goes over the quota, but where what somebody had given back came again with a crash.
    fn check_quota(&self) {
        let quota = self.fs.map().quota(self.world.subvol);
        let Some((most, count)) = quota.and_then(|it| Some((it.most.blocks?, it.count?))) else {
            return;
        };
        let is_known = !self.served.is_recovering() && !self.world.history.has_lost_by_crash();
        if is_known && count.charged() > most {
            let charged = count.charged();
            self.world.baton.fail(&format!("{charged} blocks are used, and {most} may be"));
        }
    }

    fn listen(self: &Arc<Self>) {
        loop {
            let connection = self.world.network.accept();
            let own = Arc::clone(self);
            self.spawn("reader", move || {
                own.converse(connection);
                own.world.network.close(connection);
            });
        }
    }

    /// Takes a client for standing still. Who tells it to has the lock that this needs.
    fn frozen(self: Arc<Self>, session: Arc<Session>, number: u64) {
        let own = Arc::clone(&self);
        self.spawn("frozen", move || own.served.receive(&session, ToServer::Frozen(number)));
    }

    fn now(&self) -> Duration {
        self.world.baton.now()
    }

    fn keep_sessions(&self) {
        loop {
            self.world.baton.sleep(GLANCE);
            self.end_grace_if_due();
            let links: Vec<_> = self.links.lock().values().cloned().collect();
            for link in links {
                if link.session.is_over() {
                    // It has ended with a rollback, and nothing was lost.
                    self.links.lock().remove(&link.session.id());
                    continue;
                }
                let (owed, now) = (self.served.owed_by(&link.session), self.now());
                let owing = link.owing.lock().look(owed, now);
                let is_stubborn =
                    owing.is_some_and(|since| now.saturating_sub(since) > REVOKE_PATIENCE);
                let mut links = self.links.lock();
                let heard = *link.heard.lock();
                let silence = self.now().saturating_sub(heard);
                if silence > PATIENCE + MARGIN || is_stubborn {
                    links.remove(&link.session.id());
                    drop(links);
                    let (name, id) = (link.session.name(), link.session.id().0);
                    self.world.baton.note(|| format!("server: {name} (session {id}) is evicted"));
                    self.world.history.lost(id, self.served.is_recovering());
                    match is_stubborn {
                        true => self.served.cut(&link.session),
                        false => self.served.end(&link.session),
                    }
                    link.pipe.close();
                }
            }
        }
    }

    fn end_grace_if_due(&self) {
        if self.served.is_recovering() && self.now() >= self.grace_ends {
            for session in self.served.awaited() {
                self.world.baton.note(|| format!("server: session {} did not come", session.0));
                self.world.history.lost(session.0, true);
            }
            self.served.stop_waiting();
        }
    }

    /// One connection from its first frame to its last.
    fn converse(self: &Arc<Self>, connection: ConnectionId) {
        let Some((link, received)) = self.meet(connection) else { return };
        link.pipe.close();
        let _reading = link.reading.lock();
        if !self.welcome(&link, connection, received) {
            return;
        }
        let patience = PATIENCE + MARGIN;
        while let Some(frame) = self.world.network.receive(connection, Side::Server, patience) {
            if link.session.is_over() {
                break;
            }
            let payload = match link.pipe.take(&frame) {
                Ok(payload) => payload,
                Err(error) => return self.world.baton.fail(&format!("at the server: {error}")),
            };
            *link.heard.lock() = self.now();
            let Some(payload) = payload else { continue };
            match ToServer::decode(&payload) {
                Ok(ToServer::Goodbye) => {
                    self.links.lock().remove(&link.session.id());
                    self.served.end(&link.session);
                    return link.pipe.close();
                }
                Ok(ToServer::Ping) => {
                    let received = link.pipe.received();
                    link.pipe.send(ToClient::Pong { received, now: self.served.now() }.encode());
                }
                Ok(message) => self.take(&link, message),
                Err(error) => return self.world.baton.fail(&format!("at the server: {error}")),
            }
        }
        link.pipe.detach(connection);
    }

    fn take(&self, link: &Link, message: ToServer) {
        let is_lost = match self.world.sabotage {
            Sabotage::ForgottenOpens => matches!(message, ToServer::Opened { .. }),
            Sabotage::LostCalls => {
                matches!(message, ToServer::Call { .. }) && self.world.baton.draw(60) == 0
            }
            Sabotage::LostChanges => {
                matches!(message, ToServer::Change(_)) && self.world.baton.draw(20) == 0
            }
            Sabotage::LostLocks => matches!(message, ToServer::Locked(_)),
            Sabotage::LostUnlocks => matches!(message, ToServer::Unlocked { .. }),
            Sabotage::NothingSaidAgain => {
                let is_change = matches!(message, ToServer::Change(_) | ToServer::Done { .. });
                is_change && self.served.is_recovering()
            }
            _ => false,
        };
        if !is_lost {
            let message = match (self.world.sabotage, message) {
                (Sabotage::NoOrder, ToServer::Change(change)) => {
                    ToServer::Change(Change { order: 1, ..change })
                }
                (_, message) => message,
            };
            self.served.receive(&link.session, message);
        }
    }

    /// Finds out who has connected, and how far that client has come.
    fn meet(self: &Arc<Self>, connection: ConnectionId) -> Option<(Arc<Link>, u64)> {
        let network = &self.world.network;
        let frame = network.receive(connection, Side::Server, GREETING_PATIENCE)?;
        let (header, payload) = open(&frame).expect("the network damages nothing");
        assert_eq!(header.kind, FrameKind::Hello);
        let hello = Hello::decode(payload).expect("a hello of the same version");
        let received = if hello.start == self.start { hello.received } else { 0 };
        match hello.session {
            None => Some((self.begin(hello.name), received)),
            Some((id, secret)) => match self.resume(id, secret, hello.name) {
                Some(link) => Some((link, received)),
                None => self.refuse(connection),
            },
        }
    }

    fn resume(self: &Arc<Self>, id: SessionId, secret: u64, name: String) -> Option<Arc<Link>> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&id) {
            *link.heard.lock() = self.now();
            return (link.secret == secret).then(|| Arc::clone(link));
        }
        if self.served.remembered(id)?.secret != secret {
            return None;
        }
        let link = self.link(secret, |outbox| {
            let resumed = self.served.resume(id, name, self.world.rights, outbox);
            resumed.expect("a sound map")
        })?;
        links.insert(id, Arc::clone(&link));
        Some(link)
    }

    fn refuse<T>(&self, connection: ConnectionId) -> Option<T> {
        let reason = RefusalReason::Gone;
        let refusal = Refusal { reason, text: "the session has ended".to_owned() };
        let frame = greeting(FrameKind::Refusal, &refusal.encode());
        self.world.network.send(connection, Side::Server, frame);
        // Long enough for the client to hear it.
        self.world.baton.sleep(Duration::from_millis(500));
        None
    }

    fn welcome(&self, link: &Link, connection: ConnectionId, received: u64) -> bool {
        if link.session.is_over() {
            return self.refuse::<()>(connection).is_some();
        }
        let fs = self.served.fs();
        let welcome = Welcome {
            session: link.session.id(),
            secret: link.secret,
            received: link.pipe.received(),
            patience_ms: PATIENCE.as_millis() as u32,
            filesystem: fs.map().uuid(),
            subvol: fs.root().subvol,
            seed: fs.map().name_seed(),
            read_only: fs.is_read_only(),
            start: self.start,
            now: self.served.now(),
            credit: match self.world.sabotage {
                Sabotage::EndlessCredit => ENDLESS,
                _ => self.served.credit(&link.session),
            },
            identities: link.session.rights().identities,
            root: link.session.rights().root,
            eras: self.served.eras(),
        };
        let frame = greeting(FrameKind::Welcome, &welcome.encode());
        self.world.network.send(connection, Side::Server, frame);
        link.pipe.attach(connection, received).is_ok()
    }

    fn begin(self: &Arc<Self>, name: String) -> Arc<Link> {
        let mut links = self.links.lock();
        let id = SessionId((self.start << 16) + self.world.new_session());
        let secret = self.world.baton.draw(u64::MAX);
        let kept = (Credentials { secret, holder: Vec::new() }, PATIENCE);
        let link = self.link(secret, |outbox| {
            let rights = self.world.rights;
            Some(self.served.begin_remembered(id, name, rights, kept, outbox).expect("room"))
        });
        let link = link.expect("it has begun");
        links.insert(id, Arc::clone(&link));
        link
    }

    fn link(
        self: &Arc<Self>,
        secret: u64,
        begin: impl FnOnce(Arc<dyn Peer>) -> Option<Arc<Session>>,
    ) -> Option<Arc<Link>> {
        let pipe = Arc::new(Pipe::new(Arc::clone(&self.world.network), Side::Server));
        let outbox = Arc::new(Outbox {
            pipe: Arc::clone(&pipe),
            sabotage: self.world.sabotage,
            server: Arc::downgrade(self),
            session: OnceLock::new(),
        });
        let session = begin(Arc::clone(&outbox) as _)?;
        let _ = outbox.session.set(Arc::downgrade(&session));
        Some(Arc::new(Link {
            session,
            secret,
            pipe,
            reading: Mutex::default(),
            heard: Mutex::new(self.now()),
            owing: Mutex::default(),
        }))
    }
}
