//! The client's side: a connection that is made again whenever it breaks, to whichever server has
//! the filesystem by then.
//!
//! What confirms the session is what a server says for that purpose ([`ToClient::Pong`]): one that
//! may have lost the filesystem to another one says no such thing, whatever else it answers. Once
//! the session is not confirmed any more the connection is given up.

use std::io::{self, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::{Hello, RefusalReason, SessionId, ToClient, ToServer, Welcome};
use gabion_map::FileId;
use gabion_node::remote::{RemoteFs, RemoteSettings, Wire};
use gabion_node::{Clock, Filesystem};

use super::connection::Connection;
use super::dial::{ConnectError, greet};
use super::pipe::Pipe;
use super::servers::{Failing, Round, Step};
use crate::trust::identity::Protection;

/// How long to rest between two attempts to connect.
const REST: Duration = Duration::from_millis(100);
/// The same, if nothing will be different soon.
const LONG_REST: Duration = Duration::from_secs(2);
/// In how many parts a session's time is cut: each brings a sign of life.
const PINGS: u32 = 5;
/// How often it is looked whether a session has ended.
const GLANCE: Duration = Duration::from_millis(100);

/// Why asking a server has led to no session.
enum Asked {
    Refused(ConnectError),
    /// What was sent does not fit to what has arrived there.
    Broken,
    /// It has another filesystem.
    Another,
    /// It has another folder under this name.
    Elsewhere,
}

struct ToPipe(Arc<Pipe>);

impl Wire for ToPipe {
    fn send(&self, message: ToServer) {
        match message {
            // Nobody waits for these, and many come one after the other.
            ToServer::Change(_)
            | ToServer::Opened { .. }
            | ToServer::Closed(_)
            | ToServer::Accessed { .. }
            | ToServer::Settled(_) => self.0.send_soon(message.encode()),
            _ => {
                self.0.send(message.encode());
            }
        }
    }

    fn begin_again(&self) {
        self.0.reset();
    }
}

/// A filesystem of a server, with the threads that keep it alive.
pub struct Connected {
    fs: Arc<RemoteFs>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Where the filesystem may be served, HOST:PORT each,
    addresses: Vec<String>,
    /// and which of them was found to serve it last.
    current: AtomicUsize,
    protection: Protection,
    path: String,
    name: String,
    /// The root of the first session: what the kernel has as its root.
    root: FileId,
    clock: Arc<dyn Clock>,
    pipe: Arc<Pipe>,
    session: Mutex<(SessionId, u64)>,
    patience: Mutex<Duration>,
    /// Pings that were not confirmed yet: message and time.
    pings: Mutex<Vec<(u64, Duration)>>,
    is_ending: AtomicBool,
    end: Mutex<()>,
    ending: Condvar,
}

fn root_of(welcome: &Welcome) -> FileId {
    FileId::new(welcome.subvol, welcome.root)
}

/// Connects to the first of the servers at `addresses`, HOST:PORT each, that has the filesystem,
/// for its folder `path`, as `name`.
pub fn connect(
    addresses: &[String],
    protection: Protection,
    path: &str,
    name: &str,
    settings: RemoteSettings,
    clock: Arc<dyn Clock>,
) -> Result<Connected, ConnectError> {
    let hello =
        Hello { session: None, start: 0, received: 0, name: name.to_owned(), path: path.into() };
    let mut refusals = Vec::new();
    let found = addresses.iter().enumerate().find_map(|(at, address)| {
        let sent = clock.monotonic();
        match greet(address, &protection, &hello) {
            Ok(greeted) => Some((at, sent, greeted)),
            Err(error) => {
                refusals.push(error);
                None
            }
        }
    });
    let (current, sent, (connection, welcome)) =
        found.ok_or_else(|| ConnectError::all(refusals))?;
    let pipe = Pipe::new();
    let wire = Arc::new(ToPipe(Arc::clone(&pipe)));
    let is_part = path.split('/').any(|name| !matches!(name, "" | "."));
    let settings = RemoteSettings { is_part, ..settings };
    let fs = Arc::new(RemoteFs::new(&welcome, settings, Arc::clone(&clock), wire));
    let who = addresses.join(",");
    fs.set_report(Box::new(move |text| eprintln!("gabion: {who}: {text}")));
    let patience = Duration::from_millis(welcome.patience_ms.into());
    fs.confirmed(sent, patience);
    let shared = Arc::new(Shared {
        addresses: addresses.to_vec(),
        current: AtomicUsize::new(current),
        protection,
        path: path.to_owned(),
        name: name.to_owned(),
        root: root_of(&welcome),
        clock,
        pipe,
        session: Mutex::new((welcome.session, welcome.secret)),
        patience: Mutex::new(patience),
        pings: Mutex::default(),
        is_ending: AtomicBool::new(false),
        end: Mutex::default(),
        ending: Condvar::new(),
    });
    let connection = Arc::new(connection);
    shared.pipe.attach(&connection, welcome.received).map_err(ConnectError::Thread)?;
    let mut connected = Connected { fs, shared, threads: Vec::new() };
    connected.start(connection).map_err(ConnectError::Thread)?;
    Ok(connected)
}

impl Connected {
    /// The filesystem.
    pub fn fs(&self) -> &Arc<RemoteFs> {
        &self.fs
    }

    fn start(&mut self, connection: Arc<Connection>) -> io::Result<()> {
        let mut spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.to_owned());
            self.threads.push(thread.spawn(run)?);
            io::Result::Ok(())
        };
        let (shared, fs) = (Arc::clone(&self.shared), Arc::clone(&self.fs));
        spawn("reader", Box::new(move || shared.converse(&fs, connection)))?;
        let (shared, fs) = (Arc::clone(&self.shared), Arc::clone(&self.fs));
        spawn("pinger", Box::new(move || shared.keep_alive(&fs)))?;
        let fs = Arc::clone(&self.fs);
        spawn("revocations", Box::new(move || fs.attend()))?;
        let fs = Arc::clone(&self.fs);
        spawn("later", Box::new(move || fs.attend_later()))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        // Where the kernel has ended the mount in order, this was done then. Where not, nobody
        // waits for a server that is away.
        match self.fs.is_reachable().then(|| Filesystem::close(&*self.fs)) {
            None => self.fs.close(),
            Some(Ok(())) => {}
            Some(Err(error)) => eprintln!("gabion: {}: {error}", self.shared.address()),
        }
        self.shared.pipe.send(ToServer::Goodbye.encode());
        {
            let _end = self.shared.end.lock();
            self.shared.is_ending.store(true, Ordering::Release);
        }
        self.shared.ending.notify_all();
        self.shared.pipe.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // It has told all that it was told of.
        self.fs.set_loss_keeper(None);
    }
}

impl Shared {
    /// The server that was found last.
    fn address(&self) -> &str {
        &self.addresses[self.current.load(Ordering::Relaxed)]
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    fn rest(&self, time: Duration) {
        let mut end = self.end.lock();
        if !self.is_ending() {
            self.ending.wait_for(&mut end, time);
        }
    }

    /// Reads until the connection breaks, and makes another one, until the end.
    fn converse(&self, fs: &RemoteFs, mut connection: Arc<Connection>) {
        loop {
            let patience = *self.patience.lock();
            // The answers to pings come more often.
            let _ = connection.socket().set_read_timeout(Some(patience));
            let mut input = BufReader::with_capacity(256 << 10, &*connection);
            while let Ok(payload) = self.pipe.receive(&mut input) {
                let Some(payload) = payload else { continue };
                match ToClient::decode(&payload) {
                    Ok(message) => {
                        if let ToClient::Pong { received, .. } = &message {
                            self.confirm(fs, *received);
                        }
                        fs.receive(message);
                    }
                    Err(error) => {
                        eprintln!("gabion: {} does not make sense: {error}", self.address());
                        break;
                    }
                }
            }
            self.pipe.detach(&connection);
            fs.disconnected();
            connection = match self.connect_again(fs) {
                Some(connection) => connection,
                None => return,
            };
        }
    }

    /// The server has got so many messages, and has the filesystem: so the session lives since the
    /// last of those was sent.
    fn confirm(&self, fs: &RemoteFs, received: u64) {
        let mut pings = self.pings.lock();
        let heard = pings.iter().filter(|(number, _)| *number <= received).map(|ping| ping.1).max();
        pings.retain(|(number, _)| *number > received);
        drop(pings);
        if let Some(sent) = heard {
            fs.confirmed(sent, *self.patience.lock());
        }
    }

    fn connect_again(&self, fs: &RemoteFs) -> Option<Arc<Connection>> {
        let mut session = Some(*self.session.lock());
        let mut round = Round::new(self.addresses.len(), self.current.load(Ordering::Relaxed));
        let mut told: Vec<Option<String>> = vec![None; self.addresses.len()];
        while !self.is_ending() {
            let at = round.at();
            let failing = match self.ask(fs, at, session) {
                Ok(connection) => return connection,
                Err(Asked::Refused(ConnectError::Refused { refusal, .. }))
                    if refusal.reason == RefusalReason::Gone && session.is_some() =>
                {
                    Failing::Gone
                }
                Err(Asked::Refused(error)) if error.is_lasting() => {
                    let why = error.to_string();
                    if told[at].as_ref() != Some(&why) {
                        eprintln!("gabion: {why}");
                        told[at] = Some(why);
                    }
                    Failing::Lasting
                }
                Err(Asked::Refused(_)) => Failing::Soon,
                Err(Asked::Broken) => {
                    session = None;
                    continue;
                }
                Err(Asked::Another) => Failing::Lasting,
                Err(Asked::Elsewhere) => {
                    // The kernel would mix up what is in both.
                    session = None;
                    self.rest(*self.patience.lock());
                    Failing::Soon
                }
            };
            match round.failed(failing) {
                Step::Ask => {}
                Step::Rest => self.rest(REST),
                Step::RestLong => self.rest(LONG_REST),
                Step::BeginAnew => session = None,
            }
        }
        None
    }

    /// Asks a server to go on with a session, or for a new one. Gives the connection; none at the
    /// end.
    fn ask(
        &self,
        fs: &RemoteFs,
        at: usize,
        session: Option<(SessionId, u64)>,
    ) -> Result<Option<Arc<Connection>>, Asked> {
        let address = &self.addresses[at];
        let sent = self.clock.monotonic();
        let (start, received) = match session {
            Some(_) => (fs.start(), self.pipe.received()),
            None => (0, 0),
        };
        let (name, path) = (self.name.clone(), self.path.as_bytes().to_vec());
        let hello = Hello { session, start, received, name, path };
        let greeted = greet(address, &self.protection, &hello).map_err(Asked::Refused)?;
        let (connection, welcome) = greeted;
        if welcome.filesystem != fs.uuid() {
            return Err(Asked::Another);
        }
        if root_of(&welcome) != self.root {
            return Err(Asked::Elsewhere);
        }
        self.current.store(at, Ordering::Relaxed);
        if session.is_none() {
            self.pings.lock().clear();
            self.pipe.reset();
            fs.begin_again(&welcome);
            eprintln!("gabion: {address}: a new session has begun");
        } else if welcome.start != start {
            self.pings.lock().clear();
            let kept = fs.kept();
            fs.recover(&welcome);
            eprintln!("gabion: {address} has started; it is told {kept} changes once more");
        }
        let connection = Arc::new(connection);
        if self.pipe.attach(&connection, welcome.received).is_err() {
            return Err(Asked::Broken);
        }
        if self.is_ending() {
            // Attached after the end has closed what there was.
            self.pipe.close();
            return Ok(None);
        }
        let patience = Duration::from_millis(welcome.patience_ms.into());
        *self.session.lock() = (welcome.session, welcome.secret);
        *self.patience.lock() = patience;
        fs.confirmed(sent, patience);
        fs.connected();
        Ok(Some(connection))
    }

    /// Tells the server that we live, and forgets everything if it may not know any more.
    fn keep_alive(&self, fs: &RemoteFs) {
        let mut next = Duration::ZERO;
        let mut was_alive = true;
        while !self.is_ending() {
            let now = self.clock.monotonic();
            if now >= next {
                next = now + *self.patience.lock() / PINGS;
                // Whatever has this number is sent after `now`.
                let number = self.pipe.sent() + 1;
                self.pings.lock().push((number, now));
                fs.ping();
            }
            let is_alive = fs.is_alive();
            if was_alive && !is_alive && !fs.is_closed() {
                let address = self.address();
                eprintln!("gabion: {address} is silent: nothing is answered from memory");
                // It may be a server that has lost the filesystem, and does not know.
                self.pipe.close();
                fs.forget_everything();
            }
            was_alive = is_alive;
            fs.end_overdue_calls();
            self.rest(GLANCE);
        }
    }
}
