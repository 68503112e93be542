//! The server's side: connections, workers, and the end of sessions that fell silent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gabion_base::event::{ClientEvent, Event, FilesystemEvent, Sink};
use gabion_base::sync::Mutex;
use gabion_host::random;
use gabion_link::message::{Hello, Refusal, RefusalReason, SessionId, ToClient, ToServer, Welcome};
use gabion_link::wire::{FrameKind, Header, encode_frame};
use gabion_node::LocalFs;
use gabion_node::served::{self, Changing, Job, Rights, Served, Session};

use super::pipe::{Pipe, read_frame};
use crate::exports::{Exports, Peer};
use crate::print::printable;

/// Threads that run calls. A call never waits for another client, only for the disk.
const WORKERS: usize = 8;
/// How long a connection may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// By how much the server is more patient than it told the client.
const MARGIN: Duration = Duration::from_secs(2);
/// How long a client may take to give back what was revoked before it is taken for gone.
const REVOKE_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked for sessions that fell silent.
const GLANCE: Duration = Duration::from_millis(250);
/// The longest time after which silence ends a session.
const SESSION_MAX: Duration = Duration::from_secs(600);
/// More numbers for objects than clients can be given between two commits.
const NUMBERS_SKIPPED: u64 = 1 << 24;
/// Sessions at the same time.
const SESSIONS_MAX: usize = 4096;

/// What can be chosen.
#[derive(Clone)]
pub struct ServeOptions {
    /// What people call the filesystem.
    pub name: String,
    /// Who is told what happens to clients.
    pub sink: Arc<dyn Sink>,
    /// After how much silence a session ends.
    pub patience: Duration,
    /// The file that says that there are sessions, for the next start.
    pub marker: PathBuf,
    /// What clients may do.
    pub exports: Exports,
}

/// What the marker file says, and why it may have to go on saying so.
struct Marker {
    is_there: bool,
    /// The longest time that a session may live without being heard of, as the file has it.
    patience: Duration,
    /// When a session was ended last whose client may not have known: it may live by its own clock.
    cut: Option<Instant>,
}

/// How long sessions of an earlier start may live without being heard of, if there may be any. What
/// cannot be read may say anything.
fn told_by(marker: &Path) -> Option<Duration> {
    match fs::read_to_string(marker) {
        Ok(text) => Some(text.trim().parse().map_or(SESSION_MAX, Duration::from_millis)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(_) => Some(SESSION_MAX),
    }
}

/// The time after a start in which clients of the start before may still answer from what they have
/// cached, because their sessions have not ended by their own clocks. Nothing is changed in it.
struct Grace {
    jobs: crossbeam_channel::Sender<Job>,
    /// When it ends, with what waits for that; nothing when it has ended.
    state: Mutex<Option<(Instant, Vec<Job>)>>,
}

impl Grace {
    /// Lasts until sessions that are heard of for the last time now have ended.
    fn begin(patience: Option<Duration>, jobs: crossbeam_channel::Sender<Job>) -> Self {
        let ends = patience.map(|patience| Instant::now() + patience + MARGIN);
        Self { jobs, state: Mutex::new(ends.map(|ends| (ends, Vec::new()))) }
    }

    fn queue(&self, job: Job) {
        let mut state = self.state.lock();
        match &mut *state {
            Some((_, waiting)) if job.changes() => waiting.push(job),
            // At the end nobody runs it, and nobody waits for it.
            _ => drop(self.jobs.send(job)),
        }
    }

    fn end_if_due(&self) {
        let mut state = self.state.lock();
        if let Some((_, waiting)) = state.take_if(|(ends, _)| Instant::now() >= *ends) {
            waiting.into_iter().for_each(|job| drop(self.jobs.send(job)));
        }
    }
}

/// A session with its connections.
struct Link {
    session: Arc<Session>,
    secret: u64,
    pipe: Arc<Pipe>,
    /// Held by who reads what the client says: one connection after the other, lest a message
    /// should be taken twice or overtaken.
    reading: Mutex<()>,
    heard: Mutex<Instant>,
    /// Since when it has revocations to answer, as far as was looked.
    owing: Mutex<Option<Instant>>,
}

struct Outbox(Arc<Pipe>);

impl served::Peer for Outbox {
    fn send(&self, message: ToClient) {
        self.0.send(message.encode());
    }
}

struct Shared {
    served: Arc<Served>,
    options: ServeOptions,
    start: u64,
    grace: Arc<Grace>,
    marker: Mutex<Marker>,
    links: Mutex<BTreeMap<SessionId, Arc<Link>>>,
    is_ending: AtomicBool,
}

/// A filesystem that is served.
pub struct LinkServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
    jobs: Option<crossbeam_channel::Sender<Job>>,
}

impl LinkServer {
    /// Serves `fs` to whoever connects to `listener`.
    pub fn start(
        fs: Arc<LocalFs>,
        listener: TcpListener,
        options: ServeOptions,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let start = draw();
        let before = told_by(&options.marker);
        if before.is_some() && !fs.is_read_only() {
            // Clients of the start before may use numbers that it gave and that a crash forgot.
            let reserved = fs.map().reserve_inodes(fs.root().subvol, NUMBERS_SKIPPED);
            reserved.map_err(io::Error::other)?;
        }
        let grace = Arc::new(Grace::begin(before, jobs.clone()));
        if let Some(patience) = before {
            let patience_ms = (patience + MARGIN).as_millis() as u64;
            let filesystem = options.name.clone();
            let event = FilesystemEvent::ServedAgain { patience_ms };
            options.sink.publish(Event::Filesystem { filesystem, event });
        }
        let marker = Marker {
            is_there: before.is_some(),
            patience: before.unwrap_or_default(),
            cut: Some(Instant::now()),
        };
        let queued = Arc::clone(&grace);
        let served = Arc::new(Served::new(fs, start, Box::new(move |job| queued.queue(job))));
        let shared = Arc::new(Shared {
            served: Arc::clone(&served),
            options,
            start,
            grace,
            marker: Mutex::new(marker),
            links: Mutex::default(),
            is_ending: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(run)
        };
        for _ in 0..WORKERS {
            let (served, queue, shared) = (Arc::clone(&served), queue.clone(), Arc::clone(&shared));
            let work = move || {
                while !shared.is_ending.load(Ordering::Acquire) {
                    match queue.recv_timeout(GLANCE) {
                        Ok(job) => served.run(job),
                        Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                        Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
                    }
                }
            };
            threads.push(spawn("worker", Box::new(work))?);
        }
        let keeper = Arc::clone(&shared);
        threads.push(spawn("sessions", Box::new(move || keeper.keep_sessions()))?);
        let greeter = Arc::clone(&shared);
        threads.push(spawn("listener", Box::new(move || greeter.listen(&listener)))?);
        Ok(Self { shared, address, threads, jobs: Some(jobs) })
    }

    /// Its sessions, for those who tend them. They may outlive it.
    pub fn sessions(&self) -> Sessions {
        Sessions(Arc::clone(&self.shared))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The sessions of a filesystem that is served.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

impl Sessions {
    /// What is served, with its clients and leases.
    pub fn served(&self) -> &Served {
        &self.0.served
    }

    /// Ends a session; false if there is none of this name. Its client learns it when it comes
    /// back, and begins another one.
    pub fn evict(&self, id: SessionId) -> bool {
        let Some(link) = self.0.links.lock().remove(&id) else { return false };
        eprintln!("gabion: the client {}: evicted by a command", link.session.name());
        self.0.marker.lock().cut = Some(Instant::now());
        self.0.end(&link);
        let session = id.text();
        let reason = "evicted by a command".to_owned();
        self.0.publish(&link.session, ClientEvent::Evicted { session, reason });
        true
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Release);
        // Wakes who waits for connections.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.unmark();
        let links = std::mem::take(&mut *self.shared.links.lock());
        for link in links.values() {
            self.shared.end(link);
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        for connection in listener.incoming() {
            if self.is_ending.load(Ordering::Acquire) {
                return;
            }
            let Ok(connection) = connection else {
                // Out of descriptors or memory: others may give some back.
                thread::sleep(GLANCE);
                continue;
            };
            let shared = Arc::clone(self);
            let reader = thread::Builder::new().name("reader".to_owned());
            // Without a thread for it the connection closes, and its client tries again.
            let _ = reader.spawn(move || shared.converse(connection));
        }
    }

    fn keep_sessions(&self) {
        while !self.is_ending.load(Ordering::Acquire) {
            thread::sleep(GLANCE);
            self.grace.end_if_due();
            self.unmark();
            let links: Vec<_> = self.links.lock().values().cloned().collect();
            for link in links {
                let mut owing = link.owing.lock();
                match self.served.owes(&link.session) {
                    true => drop(owing.get_or_insert_with(Instant::now)),
                    false => *owing = None,
                }
                let is_stubborn = owing.is_some_and(|since| since.elapsed() > REVOKE_PATIENCE);
                drop(owing);
                // Decided and removed at once: a client that comes back just now is heard before,
                // or does not find its session.
                let mut links = self.links.lock();
                let is_silent = link.heard.lock().elapsed() > self.options.patience + MARGIN;
                if is_silent || is_stubborn {
                    links.remove(&link.session.id());
                    drop(links);
                    let why = if is_silent { "is silent" } else { "does not give back leases" };
                    eprintln!("gabion: the client {} {why}: evicted", link.session.name());
                    if is_stubborn {
                        self.marker.lock().cut = Some(Instant::now());
                    }
                    self.end(&link);
                    let session = link.session.id().text();
                    let patience_ms = self.options.patience.as_millis() as u64;
                    let event = match is_silent {
                        true => ClientEvent::Silent { session, patience_ms },
                        false => ClientEvent::Evicted { session, reason: why.to_owned() },
                    };
                    self.publish(&link.session, event);
                }
            }
        }
    }

    /// Makes sure that the next start knows of sessions, before the first one begins.
    fn mark(&self) -> io::Result<()> {
        let mut marker = self.marker.lock();
        if marker.is_there && marker.patience >= self.options.patience {
            return Ok(());
        }
        // Sessions of an earlier start may have been promised more.
        marker.patience = marker.patience.max(self.options.patience);
        let mut file = File::create(&self.options.marker)?;
        writeln!(file, "{}", marker.patience.as_millis())?;
        file.sync_all()?;
        if let Some(folder) = self.options.marker.parent() {
            File::open(folder)?.sync_all()?;
        }
        marker.is_there = true;
        Ok(())
    }

    /// Takes the marker away when nobody is left who could believe in a session.
    fn unmark(&self) {
        let links = self.links.lock();
        let mut marker = self.marker.lock();
        let patience = marker.patience + MARGIN;
        let is_quiet = marker.cut.is_none_or(|cut| cut.elapsed() > patience);
        if marker.is_there && links.is_empty() && is_quiet {
            marker.is_there = fs::remove_file(&self.options.marker).is_err();
            marker.patience = Duration::ZERO;
        }
    }

    /// Tells what has happened to a client.
    fn publish(&self, session: &Session, event: ClientEvent) {
        let filesystem = self.options.name.clone();
        let client = printable(session.name());
        self.options.sink.publish(Event::Client { filesystem, client, event });
    }

    fn end(&self, link: &Link) {
        self.served.end(&link.session);
        link.pipe.close();
    }

    /// One connection from its first byte to its last.
    fn converse(&self, connection: TcpStream) {
        let _ = connection.set_nodelay(true);
        let connection = Arc::new(connection);
        let mut input = BufReader::with_capacity(256 << 10, &*connection);
        let _ = connection.set_read_timeout(Some(GREETING_PATIENCE));
        let greeted = self.meet(&connection, &mut input);
        let Ok((link, received)) = greeted else {
            let _ = connection.shutdown(Shutdown::Both);
            return;
        };
        // Whatever has come on the connection before is taken first, to its end.
        link.pipe.close();
        let _reading = link.reading.lock();
        if self.welcome(&link, &connection, received).is_err() {
            let _ = connection.shutdown(Shutdown::Both);
            return;
        }
        // A client pings long before this.
        let _ = connection.set_read_timeout(Some(self.options.patience + MARGIN));
        while let Ok(payload) = link.pipe.receive(&mut input) {
            if link.session.is_over() {
                break;
            }
            *link.heard.lock() = Instant::now();
            let Some(payload) = payload else { continue };
            match ToServer::decode(&payload) {
                Ok(ToServer::Goodbye) => {
                    self.links.lock().remove(&link.session.id());
                    self.end(&link);
                    let session = link.session.id().text();
                    self.publish(&link.session, ClientEvent::Left { session });
                    return;
                }
                Ok(ToServer::Ping) => {
                    let received = link.pipe.received();
                    link.pipe.send(ToClient::Pong { received, now: self.served.now() }.encode());
                }
                Ok(message) => self.served.receive(&link.session, message),
                Err(error) => {
                    eprintln!("gabion: the client {}: {error}", link.session.name());
                    break;
                }
            }
        }
        link.pipe.detach(&connection);
    }

    /// Finds out who has connected, and how far that client has come.
    fn meet(
        &self,
        connection: &Arc<TcpStream>,
        input: &mut BufReader<&TcpStream>,
    ) -> io::Result<(Arc<Link>, u64)> {
        let (header, payload) = read_frame(input)?;
        if header.kind != FrameKind::Hello {
            return Err(io::Error::other("a hello was due"));
        }
        let hello = match Hello::decode(&payload) {
            Ok(hello) => hello,
            Err(error) => {
                return Err(refuse(connection, RefusalReason::Version, &error.to_string()));
            }
        };
        let link = match hello.session {
            None => {
                let rights = self.admit(connection, &hello.path)?;
                self.begin(hello.name, rights, connection)?
            }
            Some((id, secret)) => {
                let links = self.links.lock();
                let known = links.get(&id).filter(|link| link.secret == secret).cloned();
                if let Some(link) = &known {
                    *link.heard.lock() = Instant::now();
                }
                drop(links);
                known.ok_or_else(|| {
                    refuse(connection, RefusalReason::Gone, "the session has ended")
                })?
            }
        };
        Ok((link, hello.received))
    }

    /// Lets a client in that has come as far as `received`.
    fn welcome(&self, link: &Link, connection: &Arc<TcpStream>, received: u64) -> io::Result<()> {
        if link.session.is_over() {
            return Err(refuse(connection, RefusalReason::Gone, "the session has ended"));
        }
        let (fs, rights) = (self.served.fs(), link.session.rights());
        let welcome = Welcome {
            session: link.session.id(),
            secret: link.secret,
            received: link.pipe.received(),
            patience_ms: self.options.patience.as_millis() as u32,
            filesystem: fs.map().uuid(),
            subvol: fs.root().subvol,
            seed: fs.map().name_seed(),
            read_only: fs.is_read_only() || rights.changing == Changing::Refused,
            start: self.start,
            now: self.served.now(),
            credit: match rights.changing {
                Changing::Allowed => self.served.credit(),
                Changing::Refused => 0,
            },
            identities: rights.identities,
            root: rights.root,
        };
        greet_with(connection, FrameKind::Welcome, &welcome.encode())?;
        link.pipe.attach(connection, received)
    }

    /// What a session about the folder at `path` may do, if the client may begin one.
    fn admit(&self, connection: &TcpStream, path: &[u8]) -> io::Result<Rights> {
        let peer = Peer { address: connection.peer_addr()?.ip(), certificate: None };
        let rights = self.options.exports.rights(path, &peer);
        // Who may not mount it does not learn whether it is there.
        let found = rights.and_then(|rights| Some((rights, self.served.fs().at(path).ok()?)));
        match found.filter(|(_, found)| found.mode & libc::S_IFMT == libc::S_IFDIR) {
            Some((rights, folder)) => Ok(Rights { root: folder.file.ino, ..rights }),
            None => {
                let path = String::from_utf8_lossy(path);
                let text = format!("/{path} is not exported to {}", peer.address.to_canonical());
                Err(refuse(connection, RefusalReason::Unauthorized, &text))
            }
        }
    }

    fn begin(
        &self,
        name: String,
        rights: Rights,
        connection: &Arc<TcpStream>,
    ) -> io::Result<Arc<Link>> {
        let (id, secret) = (SessionId(draw()), draw());
        let mut links = self.links.lock();
        if links.len() >= SESSIONS_MAX {
            return Err(refuse(connection, RefusalReason::Busy, "too many clients"));
        }
        self.mark()?;
        let pipe = Pipe::new();
        let session = self.served.begin(id, name, rights, Arc::new(Outbox(Arc::clone(&pipe))));
        let link = Arc::new(Link {
            session,
            secret,
            pipe,
            reading: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            owing: Mutex::default(),
        });
        links.insert(id, Arc::clone(&link));
        drop(links);
        let session = id.text();
        let address = connection.peer_addr().map_or_else(|_| String::new(), |at| at.to_string());
        self.publish(&link.session, ClientEvent::Connected { session, address });
        Ok(link)
    }
}

/// A number that nobody can guess.
fn draw() -> u64 {
    u64::from_le_bytes(*random::bytes().first_chunk().expect("16 bytes hold 8"))
}

fn greet_with(mut connection: &TcpStream, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let frame = encode_frame(&Header::greeting(kind, payload), payload);
    connection.write_all(&frame)
}

fn refuse(connection: &TcpStream, reason: RefusalReason, text: &str) -> io::Error {
    let refusal = Refusal { reason, text: text.to_owned() };
    // Who does not hear it sees that the connection closes.
    let _ = greet_with(connection, FrameKind::Refusal, &refusal.encode());
    io::Error::other(text.to_owned())
}
