//! The server's side: sessions, workers, and the end of sessions that fell silent.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use gabion_base::event::{ClientEvent, Event, FilesystemEvent, Sink};
use gabion_base::sync::Mutex;
use gabion_fs::ROOT;
use gabion_host::random;
use gabion_link::message::{Hello, Refusal, RefusalReason, SessionId, ToServer, Welcome};
use gabion_link::wire::FrameKind;
use gabion_map::format::item::Access;
use gabion_node::LocalFs;
use gabion_node::served::{self, Changing, Credentials, Owing, Rights, Served, Session};
use gabion_tls::authority::Holder;
use gabion_volume::tenure::{BELIEF, Tenure};

use super::connection::Connection;
use super::event_loop::EventLoop;
use super::gate::Gate;
use super::greeting::{Peer, answer_with, refusal};
use super::jobs::Jobs;
use super::load::Load;
use super::outbox::Outbox;
use super::pipe::Pipe;
use crate::exports::{self, Exports};
use crate::failure::chain;
use crate::print::printable;
use crate::trust::Trust;

/// Threads that run calls. A call never waits for another client, only for the disk.
const WORKERS: usize = 8;
/// By how much the server is more patient than it told the client. In this time fits what a server
/// before this one may have confirmed when it did not have the filesystem any more.
const MARGIN: Duration = Duration::from_secs(2);
const _: () = assert!(BELIEF.as_millis() < MARGIN.as_millis());
/// How long a client may take to give back what was revoked before it is taken for gone.
const REVOKE_PATIENCE: Duration = Duration::from_secs(15);
/// How long a client may take to say again what a server before this one may have lost.
const SAYING_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for sessions that fell silent.
const GLANCE: Duration = Duration::from_millis(250);
/// Events that may wait to be told. What is more is told by nobody.
const EVENTS_MAX: usize = 4096;
/// What is noted of the holder of a session's certificate.
const HOLDER_BYTES_MAX: usize = 1024;
/// Sessions at the same time.
const SESSIONS_MAX: usize = 4096;

/// What can be chosen.
pub struct ServeOptions {
    /// What people call the filesystem.
    pub name: String,
    /// Who is told what happens to clients.
    pub sink: Arc<dyn Sink>,
    /// After how much silence a session ends.
    pub patience: Duration,
    /// How clients are known.
    pub trust: Arc<Trust>,
    /// Whether they may come without encryption, and then without being known.
    pub plain: bool,
    /// What they may do.
    pub exports: Exports,
    /// Whether nobody else has taken the filesystem; nothing if nobody can.
    pub tenure: Option<Arc<Tenure>>,
}

/// A session with its connections.
pub(super) struct Link {
    pub(super) session: Arc<Session>,
    secret: u64,
    /// Whose certificate began it; no other goes on with it.
    holder: Option<Holder>,
    pub(super) pipe: Arc<Pipe>,
    pub(super) load: Arc<Load>,
    outbox: Arc<Outbox>,
    /// The number of the conversation that it is read from. Held while that is done: one connection
    /// comes after the other, lest a message should be taken twice or overtaken.
    pub(super) reading: Mutex<u64>,
    pub(super) heard: Mutex<Instant>,
    /// Since when it has something to answer, as far as was looked.
    owing: Mutex<Owing<Instant>>,
}

pub(super) struct Shared {
    pub(super) served: Arc<Served>,
    pub(super) options: ServeOptions,
    pub(super) gate: Gate,
    start: u64,
    jobs: Arc<Jobs>,
    /// How long clients of an earlier start are waited for.
    grace: Duration,
    links: Mutex<BTreeMap<SessionId, Arc<Link>>>,
    /// What has happened to clients and was not told yet.
    events: Mutex<Vec<(String, ClientEvent)>>,
    is_ending: AtomicBool,
}

/// A filesystem that is served.
pub struct LinkServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl LinkServer {
    /// Serves `fs` to whoever connects to `listener`.
    pub fn start(
        fs: Arc<LocalFs>,
        listener: TcpListener,
        options: ServeOptions,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let start = draw();
        let jobs = Arc::new(Jobs::new());
        let queue = Arc::clone(&jobs);
        let served = Served::new(Arc::clone(&fs), start, Box::new(move |job| queue.queue(job)));
        let served = Arc::new(served.map_err(io::Error::other)?);
        let grace = served.patience_before() + MARGIN;
        if served.is_recovering() {
            served.skip_numbers().map_err(io::Error::other)?;
            let patience_ms = grace.as_millis() as u64;
            let filesystem = options.name.clone();
            let event = FilesystemEvent::ServedAgain { patience_ms };
            options.sink.publish(Event::Filesystem { filesystem, event });
        }
        let shared = Arc::new(Shared {
            served: Arc::clone(&served),
            options,
            gate: Gate::default(),
            start,
            jobs,
            grace,
            links: Mutex::default(),
            events: Mutex::default(),
            is_ending: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(run)
        };
        for _ in 0..WORKERS {
            let shared = Arc::clone(&shared);
            let work = move || {
                while !shared.is_ending.load(Ordering::Acquire) {
                    if let Some(job) = shared.jobs.next(GLANCE) {
                        shared.served.run(job);
                    }
                }
            };
            threads.push(spawn("worker", Box::new(work))?);
        }
        let settler = Arc::clone(&shared);
        let settle = move || {
            let report = |error: &gabion_fs::Error| eprintln!("gabion: {}", chain(error));
            settler.served.keep_settled(&report);
        };
        threads.push(spawn("rounds", Box::new(settle))?);
        let errands = Arc::clone(&shared);
        threads.push(spawn("errands", Box::new(move || errands.served.keep_errands()))?);
        let scheduler = Arc::clone(&shared);
        let schedule = move || scheduler.served.keep_scheduled();
        threads.push(spawn("snapshots", Box::new(schedule))?);
        let keeper = Arc::clone(&shared);
        threads.push(spawn("sessions", Box::new(move || keeper.keep_sessions()))?);
        for event_loop in EventLoop::all(&shared, listener)? {
            threads.push(spawn("connections", Box::new(move || event_loop.run()))?);
        }
        Ok(Self { shared, address, threads })
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

    /// How clients are known.
    pub fn trust(&self) -> &Trust {
        &self.0.options.trust
    }

    /// Whose certificate began a session; nothing if none did.
    pub fn holder(&self, id: SessionId) -> Option<Holder> {
        self.0.links.lock().get(&id)?.holder.clone()
    }

    /// Ends a session; false if there is none of this name. Its client learns it when it comes
    /// back, and begins another one.
    pub fn evict(&self, id: SessionId) -> bool {
        let Some(link) = self.0.links.lock().remove(&id) else {
            return self.evict_awaited(id);
        };
        eprintln!("gabion: the client {}: evicted by a command", link.session.name());
        self.0.served.cut(&link.session);
        self.0.end(&link);
        let session = id.text();
        let reason = "evicted by a command".to_owned();
        self.0.note(&link.session, ClientEvent::Evicted { session, reason });
        true
    }
}

impl Sessions {
    /// Sessions of an earlier start that are waited for, each with the machine that showed a
    /// certificate to begin it.
    pub fn awaited(&self) -> Vec<(SessionId, Option<String>)> {
        let sessions = self.0.served.awaited().into_iter();
        let machine = |written: Vec<u8>| {
            let (_, name) = std::str::from_utf8(&written).ok()?.split_once(' ')?;
            Some(name.to_owned())
        };
        // Those that were cut off can go on no more: only their time is waited for.
        let alive = |id| Some((id, machine(self.0.served.remembered(id)?.holder)));
        sessions.filter_map(alive).collect()
    }

    fn evict_awaited(&self, id: SessionId) -> bool {
        let client = format!("of session {}", id.text());
        if !self.0.served.give_up_awaited(id) {
            return false;
        }
        eprintln!("gabion: the client {client}: evicted by a command, while it was waited for");
        let reason = "evicted by a command, while it was waited for".to_owned();
        let event = ClientEvent::Evicted { session: id.text(), reason };
        self.0.events.lock().push((client, event));
        true
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Release);
        self.shared.served.end_rounds();
        self.shared.served.end_errands();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // They go on with the next start.
        if let Err(error) = self.shared.served.leave_to_next() {
            eprintln!("gabion: what clients keep cannot be made durable: {}", chain(&error));
        }
        let links = std::mem::take(&mut *self.shared.links.lock());
        links.values().for_each(|link| link.pipe.close());
        self.shared.publish();
    }
}

impl Shared {
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// Whether nobody else serves the filesystem by now. Does not wait.
    pub(super) fn is_certain(&self) -> bool {
        self.options.tenure.as_ref().is_none_or(|tenure| tenure.is_certain())
    }

    /// Takes messages that have come together.
    pub(super) fn together<T>(&self, take: impl FnOnce() -> T) -> T {
        self.jobs.together(take)
    }

    /// Takes what a client says, and does at once what is quickly done.
    pub(super) fn receive(&self, session: &Arc<Session>, message: ToServer) {
        let receive = || self.served.receive(session, message);
        self.jobs.with_quick(receive, |job| self.served.run(job));
    }

    fn keep_sessions(&self) {
        let mut grace_ends = Instant::now() + self.grace;
        while !self.is_ending.load(Ordering::Acquire) {
            thread::sleep(GLANCE);
            self.publish();
            // Who is not let in and not confirmed is not silent.
            let is_certain = self.is_certain();
            if !is_certain {
                grace_ends = Instant::now() + self.grace;
            }
            if self.served.is_recovering() && Instant::now() >= grace_ends {
                self.served.stop_waiting();
            }
            if self.served.is_recovering() && Instant::now() >= grace_ends + SAYING_PATIENCE {
                self.served.cut_stragglers();
            }
            let links: Vec<_> = self.links.lock().values().cloned().collect();
            for link in links {
                if link.session.is_over() {
                    self.forget(&link);
                    continue;
                }
                link.outbox.go_on();
                let owed = self.served.owed_by(&link.session);
                let owing = link.owing.lock().look(owed, Instant::now());
                let is_stubborn = owing.is_some_and(|since| since.elapsed() > REVOKE_PATIENCE);
                // Decided and removed at once: a client that comes back just now is heard before,
                // or does not find its session.
                let mut links = self.links.lock();
                if link.load.is_spared(Instant::now()) || !is_certain {
                    // It is not silent: it is not listened to.
                    *link.heard.lock() = Instant::now();
                }
                let is_silent = link.heard.lock().elapsed() > self.options.patience + MARGIN;
                let is_hoarding = !link.load.is_paused() && self.served.is_hoarding(&link.session);
                if is_silent || is_stubborn || is_hoarding {
                    links.remove(&link.session.id());
                    drop(links);
                    let why = match (is_silent, is_stubborn) {
                        (true, _) => "is silent",
                        (false, true) => "does not give back leases",
                        (false, false) => "does not say that it knows what is durable",
                    };
                    eprintln!("gabion: the client {} {why}: evicted", link.session.name());
                    if !is_silent || is_stubborn {
                        self.served.cut(&link.session);
                    }
                    self.end(&link);
                    let session = link.session.id().text();
                    let patience_ms = self.options.patience.as_millis() as u64;
                    let event = match is_silent {
                        true => ClientEvent::Silent { session, patience_ms },
                        false => ClientEvent::Evicted { session, reason: why.to_owned() },
                    };
                    self.note(&link.session, event);
                }
            }
        }
    }

    /// A client has left.
    pub(super) fn left(&self, link: &Link) {
        self.forget(link);
        let session = link.session.id().text();
        self.note(&link.session, ClientEvent::Left { session });
    }

    /// A client has lost its session, and does not know it.
    pub(super) fn give_up(&self, link: &Link, reason: &str) {
        self.served.cut(&link.session);
        self.forget(link);
        let (session, reason) = (link.session.id().text(), reason.to_owned());
        self.note(&link.session, ClientEvent::Evicted { session, reason });
    }

    /// A session is over.
    pub(super) fn forget(&self, link: &Link) {
        self.links.lock().remove(&link.session.id());
        self.end(link);
    }

    /// Has told what has happened to a client, soon and by somebody who may wait for a disk.
    pub(super) fn note(&self, session: &Session, event: ClientEvent) {
        let mut events = self.events.lock();
        if events.len() < EVENTS_MAX {
            events.push((printable(session.name()), event));
        }
    }

    /// Tells what was noted.
    fn publish(&self) {
        let events = mem::take(&mut *self.events.lock());
        for (client, event) in events {
            let filesystem = self.options.name.clone();
            self.options.sink.publish(Event::Client { filesystem, client, event });
        }
    }

    fn end(&self, link: &Link) {
        self.served.end(&link.session);
        self.jobs.leave(link.session.id());
        link.pipe.close();
    }

    /// Lets a client in that has come as far as `received`.
    pub(super) fn welcome(
        &self,
        link: &Link,
        connection: &Arc<Connection>,
        received: u64,
    ) -> io::Result<()> {
        if link.session.is_over() {
            let gone = gone().encode();
            answer_with(connection, FrameKind::Refusal, &gone)?;
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (fs, rights) = (self.served.fs(), link.session.rights());
        let welcome = Welcome {
            session: link.session.id(),
            secret: link.secret,
            received: link.pipe.received(),
            patience_ms: self.options.patience.as_millis() as u32,
            filesystem: fs.map().uuid(),
            subvol: self.served.subvolume_of(&rights),
            seed: fs.map().name_seed(),
            read_only: fs.is_read_only() || rights.changing == Changing::Refused,
            start: self.start,
            now: self.served.now(),
            credit: match rights.changing {
                Changing::Allowed => self.served.credit(&link.session),
                Changing::Refused => 0,
            },
            identities: rights.identities,
            root: rights.root,
            eras: self.served.eras(),
        };
        answer_with(connection, FrameKind::Welcome, &welcome.encode())?;
        link.pipe.attach(connection, received)
    }

    /// What a session about the folder at `path` may do, if the peer may begin one.
    pub(super) fn admit(&self, peer: &exports::Peer, path: &[u8]) -> Result<Rights, Refusal> {
        let rights = self.options.exports.rights(path, peer);
        // Who may not mount it does not learn whether it is there.
        let fs = self.served.fs();
        let found = rights.and_then(|rights| Some((rights, fs.folder(path).ok()?)));
        let shown = String::from_utf8_lossy(path);
        let Some((rights, folder)) = found else {
            let text = format!("/{shown} is not exported to {}", peer.address.to_canonical());
            return Err(refusal(RefusalReason::Unauthorized, text));
        };
        if folder.subvol == fs.root().subvol {
            return Ok(Rights { root: folder.ino, ..rights });
        }
        match folder.ino == ROOT && fs.map().access(folder.subvol) == Some(Access::Writable) {
            true => Ok(Rights { subvolume: Some(folder.subvol), ..rights }),
            false => {
                let text = format!("/{shown} is within another subvolume, or in a snapshot");
                Err(refusal(RefusalReason::Other, text))
            }
        }
    }

    /// The session of a client that comes back, and how many messages of this server have arrived
    /// at the client.
    pub(super) fn resume(
        &self,
        (id, secret): (SessionId, u64),
        hello: &Hello,
        peer: &Peer,
    ) -> Result<(Arc<Link>, u64), Refusal> {
        let holder = peer.holder.as_ref();
        let received = if hello.start == self.start { hello.received } else { 0 };
        let mut links = self.links.lock();
        if let Some(link) = links.get(&id) {
            if link.secret != secret || link.holder.as_ref() != holder {
                return Err(gone());
            }
            *link.heard.lock() = Instant::now();
            return Ok((Arc::clone(link), received));
        }
        let credentials = self.served.remembered(id).ok_or_else(gone)?;
        if credentials.secret != secret || credentials.holder != written(holder) {
            return Err(gone());
        }
        let rights = self.admit(&peer.known(), &hello.path)?;
        let link = self.link(secret, holder.cloned(), |outbox| {
            let resumed = self.served.resume(id, hello.name.clone(), rights, outbox);
            resumed.map_err(unreadable)?.ok_or_else(gone)
        })?;
        links.insert(id, Arc::clone(&link));
        Ok((link, received))
    }

    /// A session with everything that belongs to it.
    fn link(
        &self,
        secret: u64,
        holder: Option<Holder>,
        begin: impl FnOnce(Arc<dyn served::Peer>) -> Result<Arc<Session>, Refusal>,
    ) -> Result<Arc<Link>, Refusal> {
        let (pipe, load) = (Pipe::new(), Arc::new(Load::default()));
        let tenure = self.options.tenure.clone();
        let outbox = Arc::new(Outbox::new(Arc::clone(&pipe), Arc::clone(&load), tenure));
        let session = begin(Arc::clone(&outbox) as Arc<dyn served::Peer>)?;
        self.jobs.enter(session.id(), &load);
        Ok(Arc::new(Link {
            session,
            secret,
            holder,
            pipe,
            load,
            outbox,
            reading: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            owing: Mutex::default(),
        }))
    }

    /// A new session.
    pub(super) fn begin(
        &self,
        name: String,
        rights: Rights,
        holder: Option<Holder>,
        address: SocketAddr,
    ) -> Result<Arc<Link>, Refusal> {
        let (id, secret) = (SessionId(draw()), draw());
        let mut links = self.links.lock();
        if links.len() >= SESSIONS_MAX {
            return Err(refusal(RefusalReason::Busy, "too many clients"));
        }
        let credentials = Credentials { secret, holder: written(holder.as_ref()) };
        let kept = (credentials, self.options.patience);
        let link = self.link(secret, holder, |outbox| match self.served.fs().is_read_only() {
            true => Ok(self.served.begin(id, name, rights, outbox)),
            false => {
                let begun = self.served.begin_remembered(id, name, rights, kept, outbox);
                begun.map_err(unreadable)
            }
        })?;
        links.insert(id, Arc::clone(&link));
        drop(links);
        let session = id.text();
        let address = address.to_string();
        self.note(&link.session, ClientEvent::Connected { session, address });
        Ok(link)
    }
}

/// A number that nobody can guess.
fn draw() -> u64 {
    u64::from_le_bytes(*random::bytes().first_chunk().expect("16 bytes hold 8"))
}

/// How a certificate's holder is noted.
fn written(holder: Option<&Holder>) -> Vec<u8> {
    let text = holder.map(|holder| format!("{} {}", holder.serial, holder.name));
    let mut bytes = text.unwrap_or_default().into_bytes();
    bytes.truncate(HOLDER_BYTES_MAX);
    bytes
}

fn unreadable(error: gabion_fs::Error) -> Refusal {
    let text = format!("the server cannot note its sessions: {}", chain(&error));
    refusal(RefusalReason::Busy, text)
}

fn gone() -> Refusal {
    refusal(RefusalReason::Gone, "the session has ended")
}
