//! The machine that serves: what the product's daemon does around [`Served`], in the simulated
//! world: connections, workers, the end of silent sessions, and the time after a start in which
//! nothing changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::{Hello, Refusal, RefusalReason, SessionId, ToClient, ToServer, Welcome};
use gabion_link::wire::FrameKind;
use gabion_map::{Limits, OpenMode};
use gabion_node::served::{Job, Peer, Served, Session};
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
/// Numbers for objects that are skipped: clients of the start before may use some of them.
const NUMBERS_SKIPPED: u64 = 1 << 24;
/// Memory of the filesystem.
const MEMORY: u64 = 16 << 20;

/// Calls that wait for a worker, and those that wait for the end of the grace time.
#[derive(Default)]
struct Jobs {
    state: Mutex<Queues>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queues {
    ready: VecDeque<Job>,
    /// When it ends, with what waits for that; nothing when it has ended.
    grace: Option<(Duration, Vec<Job>)>,
}

impl Jobs {
    fn queue(&self, job: Job) {
        let mut state = self.state.lock();
        match &mut state.grace {
            Some((_, waiting)) if job.changes() => waiting.push(job),
            _ => state.ready.push_back(job),
        }
        drop(state);
        self.arrived.notify_one();
    }

    fn end_grace_if_due(&self, now: Duration) {
        let mut state = self.state.lock();
        if let Some((_, waiting)) = state.grace.take_if(|(ends, _)| now >= *ends) {
            state.ready.extend(waiting);
        }
        drop(state);
        self.arrived.notify_all();
    }

    fn next(&self) -> Job {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.ready.pop_front() {
                return job;
            }
            self.arrived.wait(&mut state);
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
    owing: Mutex<Option<Duration>>,
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
        self.pipe.send(message.encode());
    }
}

/// A server from its start to its crash.
pub struct Server {
    world: Arc<World>,
    machine: MachineId,
    served: Arc<Served>,
    start: u64,
    jobs: Arc<Jobs>,
    links: Mutex<BTreeMap<SessionId, Arc<Link>>>,
}

impl Server {
    /// Opens what is on `disk` and serves it. `may_live` says whether there may be clients who
    /// believe in a session of an earlier start.
    pub fn start(
        world: &Arc<World>,
        machine: MachineId,
        disk: Arc<SimDisk>,
        start: u64,
        may_live: bool,
    ) -> Result<Arc<Self>, String> {
        let clock = Arc::new(MachineClock::exact(Arc::clone(&world.baton)));
        let settings = Settings { commit_interval: COMMIT_INTERVAL, ..Settings::default() };
        let limits = Limits::within(MEMORY);
        let fs = LocalFs::open(disk, OpenMode::ReadWrite, limits, settings, clock);
        let fs = Arc::new(fs.map_err(|error| format!("the server cannot start: {error}"))?);
        if may_live {
            let reserved = fs.map().reserve_inodes(fs.root().subvol, NUMBERS_SKIPPED);
            reserved.map_err(|error| format!("the server cannot start: {error}"))?;
        }
        let jobs = Arc::new(Jobs::default());
        if may_live && world.sabotage != Sabotage::NoGrace {
            let ends = world.baton.now() + PATIENCE + MARGIN;
            jobs.state.lock().grace = Some((ends, Vec::new()));
        }
        let queue = Arc::clone(&jobs);
        let served = Served::new(Arc::clone(&fs), start, Box::new(move |job| queue.queue(job)));
        let server = Arc::new(Self {
            world: Arc::clone(world),
            machine,
            served: Arc::new(served),
            start,
            jobs,
            links: Mutex::default(),
        });
        for _ in 0..1 + world.baton.draw(3) {
            let own = Arc::clone(&server);
            server.spawn("worker", move || own.work());
        }
        let own = Arc::clone(&server);
        server.spawn("sessions", move || own.keep_sessions());
        let own = Arc::clone(&server);
        server.spawn("listener", move || own.listen());
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

    fn now(&self) -> Duration {
        self.world.baton.now()
    }

    fn keep_sessions(&self) {
        loop {
            self.world.baton.sleep(GLANCE);
            self.jobs.end_grace_if_due(self.now());
            let links: Vec<_> = self.links.lock().values().cloned().collect();
            for link in links {
                let mut owing = link.owing.lock();
                match self.served.owes(&link.session) {
                    true => drop(owing.get_or_insert(self.now())),
                    false => *owing = None,
                }
                let is_stubborn =
                    owing.is_some_and(|since| self.now().saturating_sub(since) > REVOKE_PATIENCE);
                drop(owing);
                let mut links = self.links.lock();
                let heard = *link.heard.lock();
                let silence = self.now().saturating_sub(heard);
                if silence > PATIENCE + MARGIN || is_stubborn {
                    links.remove(&link.session.id());
                    drop(links);
                    let (name, id) = (link.session.name(), link.session.id().0);
                    self.world.baton.note(|| format!("server: {name} (session {id}) is evicted"));
                    self.world.history.lost(id);
                    self.served.end(&link.session);
                    link.pipe.close();
                }
            }
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
            _ => false,
        };
        if !is_lost {
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
        let link = match hello.session {
            None => self.begin(hello.name),
            Some((id, secret)) => {
                let links = self.links.lock();
                let known = links.get(&id).filter(|link| link.secret == secret).cloned();
                if let Some(link) = &known {
                    *link.heard.lock() = self.now();
                }
                drop(links);
                match known {
                    Some(link) => link,
                    None => return self.refuse(connection),
                }
            }
        };
        Some((link, hello.received))
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
            credit: self.served.credit(),
            identities: link.session.rights().identities,
            root: link.session.rights().root,
        };
        let frame = greeting(FrameKind::Welcome, &welcome.encode());
        self.world.network.send(connection, Side::Server, frame);
        link.pipe.attach(connection, received).is_ok()
    }

    fn begin(self: &Arc<Self>, name: String) -> Arc<Link> {
        let mut links = self.links.lock();
        let id = SessionId((self.start << 16) + self.world.new_session());
        let secret = self.world.baton.draw(u64::MAX);
        let pipe = Arc::new(Pipe::new(Arc::clone(&self.world.network), Side::Server));
        let outbox = Arc::new(Outbox {
            pipe: Arc::clone(&pipe),
            sabotage: self.world.sabotage,
            server: Arc::downgrade(self),
            session: OnceLock::new(),
        });
        let session = self.served.begin(id, name, self.world.rights, Arc::clone(&outbox) as _);
        let _ = outbox.session.set(Arc::downgrade(&session));
        let link = Arc::new(Link {
            session,
            secret,
            pipe,
            reading: Mutex::default(),
            heard: Mutex::new(self.now()),
            owing: Mutex::default(),
        });
        links.insert(id, Arc::clone(&link));
        link
    }
}
