//! A machine that has the filesystem mounted: what the product's mount does around [`RemoteFs`],
//! in the simulated world: a connection that is made again whenever it breaks, signs of life, and
//! the end of sessions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gabion_link::message::{Hello, Refusal, RefusalReason, SessionId, ToClient, ToServer, Welcome};
use gabion_link::wire::FrameKind;
use gabion_node::Clock;
use gabion_node::remote::{self, RemoteFs, RemoteSettings, Wire};

use super::baton::MachineId;
use super::clock::MachineClock;
use super::kernel::{Kernel, Mount};
use super::network::{CONNECT_PATIENCE, ConnectionId, Side};
use super::pipe::{Pipe, greeting, open};
use super::{DEADLINE, PATIENCE, Sabotage, World};

/// How long to rest between two attempts to connect.
const REST: Duration = Duration::from_millis(20);
/// In how many parts a session's time is cut: each brings a sign of life.
const PINGS: u32 = 5;
/// How often it is looked whether a session has ended.
const GLANCE: Duration = Duration::from_millis(80);

/// What a client is made of.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// How much its clock goes in a thousand units of the world's time.
    pub pace: u32,
    /// Whether its kernel forgets names when it is told.
    pub can_forget_names: bool,
    /// Objects that it keeps leases on.
    pub objects_max: usize,
    /// Whether its kernel takes its time to forget, as one does that waits for what is locked.
    pub forgets_slowly: bool,
}

struct ToPipe {
    pipe: Arc<Pipe>,
}

impl Wire for ToPipe {
    fn send(&self, message: ToServer) {
        self.pipe.send(message.encode());
    }

    fn begin_again(&self) {
        self.pipe.reset();
    }
}

struct Life {
    session: (SessionId, u64),
    patience: Duration,
    /// Pings that were not confirmed yet: message and time.
    pings: Vec<(u64, Duration)>,
}

/// A client from its start to its crash.
pub struct Client {
    world: Arc<World>,
    /// Which of the clients it is.
    pub number: usize,
    machine: MachineId,
    clock: Arc<MachineClock>,
    pipe: Arc<Pipe>,
    /// The filesystem with the kernel that uses it.
    pub mount: Mount,
    life: Mutex<Life>,
    /// The start of the server that it knows of.
    start: AtomicU64,
    /// The session before the one that just begins, and that one: equal most of the time.
    sessions: [AtomicU64; 2],
    /// It has slept and does not know yet whether its session has ended. What programs see in
    /// this moment is nobody's promise.
    is_drowsy: AtomicBool,
}

enum Greeting {
    Welcome(ConnectionId, Welcome),
    Gone,
    Nothing,
}

impl Client {
    /// Connects, as long as it takes.
    pub fn start(
        world: &Arc<World>,
        number: usize,
        machine: MachineId,
        traits: Traits,
    ) -> Arc<Self> {
        let offset = Duration::from_secs(world.baton.draw(1000));
        let clock = Arc::new(MachineClock::new(Arc::clone(&world.baton), traits.pace, offset));
        let (connection, welcome, sent) = loop {
            let sent = clock.monotonic();
            match greet(world, number, None, (0, 0)) {
                Greeting::Welcome(connection, welcome) => break (connection, welcome, sent),
                Greeting::Gone | Greeting::Nothing => world.baton.sleep(REST),
            }
        };
        let pipe = Arc::new(Pipe::new(Arc::clone(&world.network), Side::Client));
        let wire = Arc::new(ToPipe { pipe: Arc::clone(&pipe) });
        let objects_max = traits.objects_max;
        let settings =
            RemoteSettings { deadline: DEADLINE, objects_max, ..RemoteSettings::default() };
        let fs = Arc::new(RemoteFs::new(&welcome, settings, Arc::clone(&clock) as _, wire));
        let baton = Arc::clone(&world.baton);
        let kernel = Kernel::new(baton, number, (traits, welcome.seed), world.sabotage);
        let kernel = Arc::new(kernel);
        fs.set_kernel(Arc::clone(&kernel) as Arc<dyn remote::Kernel>);
        let own = Arc::clone(world);
        fs.set_report(Box::new(move |text| own.reported(number, text)));
        let patience = patience_of(world, &welcome);
        fs.confirmed(sent, patience);
        pipe.attach(connection, welcome.received).expect("nothing was sent yet");
        let session = (welcome.session, welcome.secret);
        let client = Arc::new(Self {
            world: Arc::clone(world),
            number,
            machine,
            clock,
            pipe,
            mount: Mount { fs, kernel },
            life: Mutex::new(Life { session, patience, pings: Vec::new() }),
            start: AtomicU64::new(welcome.start),
            sessions: [welcome.session.0; 2].map(AtomicU64::new),
            is_drowsy: AtomicBool::new(false),
        });
        let own = Arc::clone(&client);
        client.spawn("reader", move || own.converse(connection));
        let own = Arc::clone(&client);
        client.spawn("pinger", move || own.keep_alive());
        let fs = Arc::clone(client.fs());
        client.spawn("revocations", move || fs.attend());
        let fs = Arc::clone(client.fs());
        client.spawn("later", move || fs.attend_later());
        client
    }

    /// Starts a thread on this machine.
    pub fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) {
        self.world.baton.spawn(self.machine, &format!("{name} {}", self.number), run);
    }

    fn fs(&self) -> &Arc<RemoteFs> {
        &self.mount.fs
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The start of the server that it has heard of last.
    pub fn server_start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }

    /// The earliest session that what is done now may belong to.
    pub fn earliest_session(&self) -> u64 {
        self.sessions[0].load(Ordering::Relaxed)
    }

    /// The latest one.
    pub fn latest_session(&self) -> u64 {
        self.sessions[1].load(Ordering::Relaxed)
    }

    /// Its clock.
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// It is about to sleep.
    pub fn becomes_drowsy(&self) {
        self.is_drowsy.store(true, Ordering::Relaxed);
    }

    /// Whether it has slept and not looked at its clock since.
    pub fn is_drowsy(&self) -> bool {
        self.is_drowsy.load(Ordering::Relaxed)
    }

    /// Reads until the connection breaks, and makes another one, until the end.
    fn converse(&self, mut connection: ConnectionId) {
        loop {
            let patience = self.life().patience;
            let network = &self.world.network;
            while let Some(frame) = network.receive(connection, Side::Client, patience) {
                let payload = match self.pipe.take(&frame) {
                    Ok(payload) => payload,
                    Err(error) => return self.world.baton.fail(&format!("at a client: {error}")),
                };
                self.confirm();
                let Some(payload) = payload else { continue };
                match ToClient::decode(&payload) {
                    Ok(message) => self.take(message),
                    Err(error) => return self.world.baton.fail(&format!("at a client: {error}")),
                }
            }
            self.pipe.detach(connection);
            network.close(connection);
            self.fs().disconnected();
            connection = self.connect_again();
        }
    }

    fn take(&self, message: ToClient) {
        match (self.world.sabotage, message) {
            (Sabotage::ReleasedAtOnce, ToClient::Revoke { id, range, keep }) => {
                // The server hears of it before anybody has done it.
                self.pipe.send(ToServer::Released(vec![id]).encode());
                self.fs().receive(ToClient::Revoke { id, range, keep });
            }
            (_, message) => self.fs().receive(message),
        }
    }

    /// The server has got a message: so it has heard of us since that was sent.
    fn confirm(&self) {
        let arrived = self.pipe.arrived();
        let mut life = self.life();
        let heard = life.pings.iter().filter(|(number, _)| *number <= arrived);
        let heard = heard.map(|ping| ping.1).max();
        life.pings.retain(|(number, _)| *number > arrived);
        let patience = life.patience;
        drop(life);
        if let Some(sent) = heard {
            self.fs().confirmed(sent, patience);
        }
    }

    fn connect_again(&self) -> ConnectionId {
        let mut session = Some(self.life().session);
        loop {
            let sent = self.clock.monotonic();
            let (start, received) = match session {
                Some(_) => (self.fs().start(), self.pipe.received()),
                None => (0, 0),
            };
            match greet(&self.world, self.number, session, (start, received)) {
                Greeting::Welcome(connection, welcome) => {
                    if session.is_none() {
                        self.begin_again(&welcome);
                    } else if welcome.start != start {
                        self.recover(&welcome);
                    }
                    if self.pipe.attach(connection, welcome.received).is_err() {
                        session = None;
                        continue;
                    }
                    let patience = patience_of(&self.world, &welcome);
                    let mut life = self.life();
                    life.session = (welcome.session, welcome.secret);
                    life.patience = patience;
                    drop(life);
                    self.fs().confirmed(sent, patience);
                    self.fs().connected();
                    return connection;
                }
                Greeting::Gone if session.is_some() => session = None,
                Greeting::Gone | Greeting::Nothing => self.world.baton.sleep(REST),
            }
        }
    }

    fn begin_again(&self, welcome: &Welcome) {
        let (number, session) = (self.number, welcome.session.0);
        self.world.baton.note(|| format!("client {number}: session {session} begins"));
        self.life().pings.clear();
        self.pipe.reset();
        // From here on nobody may count on what the session before has promised.
        self.sessions[1].store(session, Ordering::Relaxed);
        self.fs().begin_again(welcome);
        self.sessions[0].store(session, Ordering::Relaxed);
        self.start.store(welcome.start, Ordering::Relaxed);
    }

    fn recover(&self, welcome: &Welcome) {
        let (number, kept) = (self.number, self.fs().kept());
        self.world.baton.note(|| format!("client {number} says {kept} changes again"));
        self.life().pings.clear();
        self.fs().recover(welcome);
        self.start.store(welcome.start, Ordering::Relaxed);
    }

    /// Tells the server that we live, and forgets everything if it may not know any more.
    fn keep_alive(&self) {
        let fs = self.fs();
        let mut next = Duration::ZERO;
        let mut was_alive = true;
        loop {
            let now = self.clock.monotonic();
            if now >= next {
                let patience = self.life().patience.min(PATIENCE);
                next = now + patience / PINGS;
                fs.ping();
                let sent = self.pipe.sent();
                self.life().pings.push((sent, now));
            }
            let is_alive = fs.is_alive();
            self.mount.kernel.hurry(!is_alive);
            if was_alive && !is_alive {
                self.world.baton.note(|| format!("client {}: the server is silent", self.number));
                fs.forget_everything();
            }
            was_alive = is_alive;
            if self.world.has_locks {
                fs.end_overdue_calls();
            }
            self.is_drowsy.store(false, Ordering::Relaxed);
            self.world.baton.sleep(GLANCE);
        }
    }
}

fn patience_of(world: &World, welcome: &Welcome) -> Duration {
    match world.sabotage {
        Sabotage::EndlessSessions => Duration::from_secs(1_000_000),
        _ => Duration::from_millis(welcome.patience_ms.into()),
    }
}

/// Connects and says who we are.
fn greet(
    world: &World,
    number: usize,
    session: Option<(SessionId, u64)>,
    (start, received): (u64, u64),
) -> Greeting {
    let network = &world.network;
    let Some(connection) = network.connect(number) else { return Greeting::Nothing };
    let name = format!("client {number}");
    let hello = Hello { session, start, received, name, path: Vec::new() };
    network.send(connection, Side::Client, greeting(FrameKind::Hello, &hello.encode()));
    let Some(frame) = network.receive(connection, Side::Client, CONNECT_PATIENCE) else {
        network.close(connection);
        return Greeting::Nothing;
    };
    let (header, payload) = open(&frame).expect("the network damages nothing");
    match header.kind {
        FrameKind::Welcome => {
            let welcome = Welcome::decode(payload).expect("a welcome of the same version");
            Greeting::Welcome(connection, welcome)
        }
        FrameKind::Refusal => {
            let refusal = Refusal::decode(payload).expect("a refusal");
            network.close(connection);
            match refusal.reason {
                RefusalReason::Gone => Greeting::Gone,
                _ => Greeting::Nothing,
            }
        }
        FrameKind::Hello | FrameKind::Message | FrameKind::Application | FrameKind::Admission => {
            panic!("a client is greeted by {header:?}")
        }
    }
}
