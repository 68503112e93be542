//! An export of any NBD server as a [`Disk`], which survives the loss of its connection.
//!
//! ```text
//!   submit     table: add -> outbox -> send, on the caller's thread -> ticket
//!   link       connect -> replay -> read replies: table: remove     -> tickets, again and again
//!   deadline   table: remove what is too old, and cut the connection off
//! ```
//!
//! Requests that are submitted in a [batch] are sent together, and replies that have come together
//! are a batch of answers.
//!
//! - **Connection lost**: the link connects again, waiting a little longer each time, and
//!   everything unanswered is sent again, as often as needed until its deadline. Blocks can be
//!   written twice without harm.
//! - **Server lost**: writes that it has acknowledged and not yet flushed may have gone with it.
//!   They are kept here until a flush covers them, and are written again, in their order and before
//!   anything else, to whatever server answers next: a flush that succeeds means what it says.
//!   What is kept is bounded; beyond half of the bound the client flushes by itself.
//! - **Peer silent**: a request that is unanswered at its deadline fails, and the connection with
//!   it. The others are sent again on the next one.
//! - **Nobody there**: when there has been no connection for [`ClientOptions::lost_patience`],
//!   requests fail without waiting for their deadline, until there is one again.
//! - **Server longer**: what a later connection offers more can be used from then on; see
//!   [`Disk::remeasure`].
//! - **Fenced**: a client that holds an epoch of a [medium](crate::medium) and is told that
//!   somebody else has taken a higher one fails every request from then on, and does not connect
//!   again.
//! - **Peer strange**: what is not the protocol ends the connection; the reason is in the error of
//!   whatever fails because of it.
//!
//! A write that has failed by its deadline may still happen. A server must make writes durable when
//! asked, or it is refused unless it is read-only.

mod handshake;
mod link;
mod replies;
mod table;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::batch;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Ticket};
use gabion_base::sync::{Condvar, Mutex, MutexGuard};
use thiserror::Error;

pub use crate::wire::name::Medium;

use self::handshake::{NoConnection, Terms};
use self::table::{Gather, Pending, Table, pieces};
use crate::address::Uri;
use crate::stream::Stream;
use crate::wire::name::Claim;
use crate::wire::request::{Command, REQUEST_BYTES, Request};
use crate::wire::{command_flag, export_flag};

/// How a client behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long a request may take, reconnecting and all.
    pub deadline: Duration,
    /// After how long without a connection requests fail before their deadline.
    pub lost_patience: Duration,
    /// What to claim of a medium, for whoever must be the only writer. A server that keeps no
    /// epochs is refused then.
    pub epoch: Option<Epoch>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        let deadline = Duration::from_secs(30);
        Self { deadline, lost_patience: deadline, epoch: None }
    }
}

/// The right to be the only writer; see [`crate::medium`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its number, from 1 on. Somebody else sees to it that no two openings have the same.
    pub number: u64,
    /// Who holds it: 1 to 1024 bytes, different for every opening, and telling to people.
    pub holder: String,
}

/// Why an export cannot be used as a disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no connection to it.
    #[error("cannot connect to {uri}: {source}")]
    Unreachable {
        /// The export.
        uri: Box<Uri>,
        /// The system's reason, or the server's.
        source: io::Error,
    },
    /// It cannot be what a disk must be.
    #[error("cannot use {uri}: {reason}")]
    Unusable {
        /// The export.
        uri: Box<Uri>,
        /// What it lacks.
        reason: &'static str,
    },
    /// It belongs to somebody else, or cannot belong to anybody.
    #[error("cannot take {uri}: {reason}")]
    Fenced {
        /// The export.
        uri: Box<Uri>,
        /// The server's words.
        reason: String,
    },
    /// The system has no thread for it.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// A connected export.
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    uri: Uri,
    name: Arc<str>,
    options: ClientOptions,
    /// What the first connection offered; later ones must not offer less.
    terms: Terms,
    /// Length in bytes; later connections may offer more.
    bytes: AtomicU64,
    state: Mutex<State>,
    /// The state of the link, or the room in the log, has changed.
    changed: Condvar,
}

struct State {
    link: Link,
    table: Table,
    /// Threads that wait for room in the log.
    waiting: usize,
}

enum Link {
    Up(Arc<Connected>),
    Down {
        since: Instant,
        reason: String,
    },
    /// For ever.
    Fenced {
        reason: Arc<str>,
    },
    Closed,
}

/// One connection, from its handshake to its loss.
struct Connected {
    stream: Stream,
    terms: Terms,
    writer: Mutex<()>,
    /// Requests that are in the table and not sent yet. Who has the writer sends all of them.
    outbox: Mutex<Vec<(u64, DiskRequest)>>,
}

impl Client {
    /// Connects, and fails at once if that is not possible.
    pub fn open(uri: &Uri, options: ClientOptions) -> Result<Self, OpenError> {
        let named = || Box::new(uri.clone());
        let unusable = |reason| OpenError::Unusable { uri: named(), reason };
        let mut numbers = options.epoch.iter().map(|epoch| epoch.claim(0));
        if numbers.any(|claim| !claim.is_possible(&uri.export)) {
            return Err(unusable("the epoch is 0, or the name or its holder's is too long"));
        }
        let connected = link::connect(uri, &options).map_err(|error| match error {
            NoConnection::Failed(source) => OpenError::Unreachable { uri: named(), source },
            NoConnection::Fenced(reason) => OpenError::Fenced { uri: named(), reason },
        })?;
        let terms = connected.terms.clone();
        if let Some(reason) = terms.unusable(options.epoch.as_ref()) {
            return Err(unusable(reason));
        }
        let connected = Arc::new(connected);
        let link = Link::Up(Arc::clone(&connected));
        let shared = Arc::new(Shared {
            uri: uri.clone(),
            name: uri.to_string().into(),
            options,
            bytes: AtomicU64::new(terms.bytes),
            terms,
            state: Mutex::new(State { link, table: Table::default(), waiting: 0 }),
            changed: Condvar::new(),
        });
        let client = Self { shared };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(OpenError::Thread)
        };
        // They end by themselves when the client is dropped, which does not wait for them.
        let shared = Arc::clone(&client.shared);
        start("nbd link", Box::new(move || link::run(&shared, connected)))?;
        let shared = Arc::clone(&client.shared);
        start("nbd deadline", Box::new(move || shared.watch_deadlines()))?;
        Ok(client)
    }

    /// Whether the server refuses to write.
    pub fn is_read_only(&self) -> bool {
        self.shared.terms.has(export_flag::READ_ONLY)
    }

    /// What the server tells about the medium behind the export, as of when it was opened; nothing
    /// if it is no medium of Gabion's.
    pub fn medium(&self) -> Option<&Medium> {
        self.shared.terms.medium.as_ref()
    }

    /// Length in bytes, before it is rounded down to whole blocks.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Acquire)
    }
}

impl Disk for Client {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    fn blocks(&self) -> u64 {
        self.bytes() / BLOCK_SIZE as u64
    }

    /// Asks on a connection of its own. If the export is longer, this one is made anew, as a server
    /// may hold a client to the length that it was told at the beginning.
    fn remeasure(&self) -> Result<u64, DiskError> {
        let shared = &self.shared;
        let failed = |source| shared.failure(&DiskRequest::Flush, source);
        let plain = ClientOptions { epoch: None, ..shared.options.clone() };
        let told = link::connect(&shared.uri, &plain).map_err(|error| match error {
            NoConnection::Failed(error) => failed(error),
            NoConnection::Fenced(reason) => failed(io::Error::other(reason)),
        })?;
        if told.terms.bytes > self.bytes() {
            shared.connect_again();
        }
        Ok(self.blocks())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.shared.name, self.blocks()) {
            return Ticket::ready(Err(error));
        }
        let pieces = pieces(request, &self.shared.terms);
        let (ticket, gather) = Gather::start(pieces.len());
        for (index, piece) in pieces.into_iter().enumerate() {
            self.shared.submit(piece, Arc::clone(&gather), index);
        }
        ticket
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Link::Up(connected) = &state.link {
            // Only if nobody is in the middle of sending something else.
            if let Some(_writer) = connected.writer.try_lock() {
                let farewell = Request {
                    flags: 0,
                    command: Command::Disconnect.number(),
                    cookie: 0,
                    offset: 0,
                    length: 0,
                };
                let _ = connected.stream.set_patience(None, Some(Duration::from_millis(1)));
                let _ = connected.stream.write_parts(&mut [IoSlice::new(&farewell.encode())]);
            }
            connected.stream.shutdown(Shutdown::Both);
        }
        state.link = Link::Closed;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.shared.name)
    }
}

impl Shared {
    /// Enters a piece of a request into the table and sends it if there is a connection.
    fn submit(&self, request: DiskRequest, gather: Arc<Gather>, index: usize) {
        let since = Instant::now();
        let deadline = since + self.options.deadline;
        let mut state = self.state.lock();
        if is_write(&request) {
            let until = |state: &State| self.hopeless_from(state).unwrap_or(deadline).min(deadline);
            while !state.table.has_room() && Instant::now() < until(&state) {
                MutexGuard::unlocked(&mut state, batch::settle);
                self.flush_by_itself(&mut state);
                if !state.table.own_flush {
                    // It was answered before anybody could wait for that.
                    continue;
                }
                let until = until(&state);
                state.waiting += 1;
                self.changed.wait_until(&mut state, until);
                state.waiting -= 1;
            }
        }
        let full = is_write(&request) && !state.table.has_room();
        if full || self.is_hopeless(&state) {
            let error = self.overdue(&state, &request, since);
            drop(state);
            return gather.complete(index, Err(error));
        }
        let pending = Pending { request: request.clone(), gather, index, since, deadline };
        let cookie = state.table.add(pending);
        let connected = match &state.link {
            Link::Up(connected) => Some(Arc::clone(connected)),
            Link::Down { .. } | Link::Fenced { .. } | Link::Closed => None,
        };
        if state.table.wants_flush() {
            self.flush_by_itself(&mut state);
        }
        drop(state);
        if let Some(connected) = connected {
            connected.outbox.lock().push((cookie, request));
            batch::put_off(connected);
        }
    }

    /// Has the connection replaced by a new one, and waits for that as long as a request may wait
    /// for a connection. What is under way is sent again.
    fn connect_again(&self) {
        let mut state = self.state.lock();
        let Link::Up(old) = &state.link else { return };
        let old = Arc::clone(old);
        old.stream.shutdown(Shutdown::Both);
        let until = Instant::now() + self.options.lost_patience.min(self.options.deadline);
        let is_over = |state: &State| match &state.link {
            Link::Up(connected) => !Arc::ptr_eq(connected, &old),
            Link::Down { .. } => false,
            Link::Fenced { .. } | Link::Closed => true,
        };
        while !is_over(&state) && Instant::now() < until {
            self.changed.wait_until(&mut state, until);
        }
    }

    /// Starts a flush that nobody waits for, so that what is kept can be let go.
    fn flush_by_itself(&self, state: &mut MutexGuard<'_, State>) {
        if state.table.own_flush {
            return;
        }
        state.table.own_flush = true;
        let (_, gather) = Gather::start(1);
        let since = Instant::now();
        let deadline = since + self.options.deadline;
        let request = DiskRequest::Flush;
        let cookie = state.table.add(Pending { request, gather, index: 0, since, deadline });
        if let Link::Up(connected) = &state.link {
            let connected = Arc::clone(connected);
            MutexGuard::unlocked(state, || {
                let _ = connected.send(cookie, &DiskRequest::Flush);
            });
        }
    }

    /// Since when, or from when on, requests fail whatever their deadline is.
    fn hopeless_from(&self, state: &State) -> Option<Instant> {
        match &state.link {
            Link::Up(_) => None,
            Link::Down { since, .. } => since.checked_add(self.options.lost_patience),
            Link::Fenced { .. } | Link::Closed => Some(Instant::now()),
        }
    }

    fn is_hopeless(&self, state: &State) -> bool {
        self.hopeless_from(state).is_some_and(|from| from <= Instant::now())
    }

    /// Fails what is overdue, until the client is closed or fenced; then fails all that is left.
    fn watch_deadlines(&self) {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let ended = matches!(state.link, Link::Closed | Link::Fenced { .. });
            let limit = if self.is_hopeless(&state) { None } else { Some(now) };
            let overdue = state.table.take_overdue(limit);
            if !overdue.is_empty() {
                let failed: Vec<_> = overdue
                    .into_iter()
                    .map(|pending| {
                        let error = self.overdue(&state, &pending.request, pending.since);
                        (pending, error)
                    })
                    .collect();
                if let Link::Up(connected) = &state.link {
                    // Whatever it says now, it could not be told whose answer it is.
                    connected.stream.shutdown(Shutdown::Both);
                }
                MutexGuard::unlocked(&mut state, || {
                    for (pending, error) in failed {
                        pending.gather.complete(pending.index, Err(error));
                    }
                    self.changed.notify_all();
                });
                continue;
            }
            if ended {
                return;
            }
            // Whatever is submitted while this waits is due later than this.
            let next = state.table.first_deadline().unwrap_or(now + self.options.deadline);
            let lost = self.hopeless_from(&state).filter(|from| *from > now);
            let next = lost.unwrap_or(next).min(next);
            self.changed.wait_until(&mut state, next);
        }
    }

    /// Says what did not happen, where, and since when.
    fn overdue(&self, state: &State, request: &DiskRequest, since: Instant) -> DiskError {
        let seconds = since.elapsed().as_secs_f32();
        let reason = match &state.link {
            Link::Up(_) => format!("connected, but without an answer for {seconds:.1} s"),
            Link::Down { since, reason } => {
                let down = since.elapsed().as_secs_f32();
                format!("no answer for {seconds:.1} s, no connection for {down:.1} s: {reason}")
            }
            Link::Fenced { reason } => {
                return DiskError::Fenced {
                    device: Arc::clone(&self.name),
                    operation: request.operation(),
                    reason: Arc::clone(reason),
                };
            }
            Link::Closed => "the disk was closed".to_owned(),
        };
        self.failure(request, io::Error::new(io::ErrorKind::TimedOut, reason))
    }

    fn failure(&self, request: &DiskRequest, source: io::Error) -> DiskError {
        DiskError::Io {
            device: Arc::clone(&self.name),
            operation: request.operation(),
            addr: request.extent().0,
            source: Arc::new(source),
        }
    }
}

impl Epoch {
    fn claim(&self, connection: u64) -> Claim {
        Claim { epoch: self.number, holder: self.holder.clone(), connection }
    }
}

fn is_write(request: &DiskRequest) -> bool {
    !matches!(request, DiskRequest::Read { .. } | DiskRequest::Flush)
}

impl Connected {
    /// Sends a request with its data. Waits for the peer, at most until the deadline of whatever
    /// is the oldest, because the connection is cut off then.
    fn send(&self, cookie: u64, request: &DiskRequest) -> io::Result<()> {
        let _writer = self.writer.lock();
        self.write(&[(cookie, request)])
    }

    /// Writes requests side by side.
    fn write(&self, requests: &[(u64, &DiskRequest)]) -> io::Result<()> {
        let heads: Vec<_> = requests.iter().map(|(cookie, it)| head(*cookie, it)).collect();
        let mut parts = Vec::with_capacity(2 * heads.len());
        for (head, (_, request)) in heads.iter().zip(requests) {
            parts.push(IoSlice::new(head));
            if let DiskRequest::Write { parts: data, .. } = request {
                parts.extend(data.iter().map(|part| IoSlice::new(part.bytes())));
            }
        }
        self.stream.write_parts(&mut parts)
    }
}

impl batch::Work for Connected {
    /// Sends what is in the outbox.
    fn run(&self) {
        let _writer = self.writer.lock();
        let requests = std::mem::take(&mut *self.outbox.lock());
        let requests: Vec<_> = requests.iter().map(|(cookie, it)| (*cookie, it)).collect();
        // If that fails the link finds out, and sends them again.
        let _ = self.write(&requests);
    }
}

/// What stands before the data of a request.
fn head(cookie: u64, request: &DiskRequest) -> [u8; REQUEST_BYTES] {
    let (addr, count) = request.extent();
    let (command, flags) = match request {
        DiskRequest::Read { .. } => (Command::Read, 0),
        DiskRequest::Write { durability: Durability::Cached, .. } => (Command::Write, 0),
        DiskRequest::Write { durability: Durability::Fua, .. } => {
            (Command::Write, command_flag::FUA)
        }
        DiskRequest::Flush => (Command::Flush, 0),
        DiskRequest::Discard { .. } => (Command::Trim, 0),
        // Zeros that take their space: whoever wants it back discards.
        DiskRequest::WriteZeroes { .. } => (Command::WriteZeroes, command_flag::NO_HOLE),
    };
    let length = (count * BLOCK_SIZE as u64) as u32;
    let command = command.number();
    Request { flags, command, cookie, offset: addr.byte_offset(), length }.encode()
}
