//! One client: its handshake, and then many of its requests at a time.
//!
//! Threads take turns at reading. Whoever has the turn reads one request with its data, passes the
//! turn on, does the request on its own stack, answers, and queues for the turn again:
//!
//! ```text
//!   turn (one thread at a time)       no turn                    writer (one at a time)
//!   read request, wait for room  ->   check, call the disk  ->   reply
//! ```
//!
//! No request is handed from thread to thread, so a lone request costs no more than a loop would.
//! A thread is added when the turn finds nobody else waiting for it, up to [`THREADS_MAX`].
//!
//! Where the disk is about as fast as a switch of threads ([`QUICK`]), such as memory, that is for
//! nothing: small reads and writes are then done with the turn, one after the other, and answered
//! together as soon as the client has sent no more. How fast it is shows in what was done before;
//! a single request that takes long ends it.
//!
//! Bounds: [`IN_FLIGHT_BYTES_MAX`] of data and [`THREADS_MAX`] requests for each client; beyond
//! them nothing more is read from it. A client that takes no reply, or stops in the middle of a
//! request, for [`STALL`] is disconnected. Between requests it may be silent for ever.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};

use super::execute::{Refusal, admit, execute, span};
use super::export::{Exports, Replies};
use super::handshake::{ALLOCATION_ID, Encryption, Handshake, Session, Step, Welcome};
use super::pool::{Buffer, Pool};
use crate::stream::{Stream, is_timeout};
use crate::tls::ServerTls;
use crate::wire::error::ErrorCode;
use crate::wire::request::{Command, REQUEST_BYTES, Request};
use crate::wire::{PAYLOAD_SKIP_BYTES_MAX, command_flag, reply};

/// Requests of one client that are done at the same time.
const THREADS_MAX: usize = 16;
/// Data of one client's requests that is in memory: room for two of the largest.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// How long a client may stop in the middle of something.
const STALL: Duration = Duration::from_secs(30);
/// How long a client may haggle.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Mean time of small requests below which they are done with the turn: what it costs to wake a
/// thread and to have it take the turn, which was measured at 5 to 50 us.
const QUICK: Duration = Duration::from_micros(20);
/// Data of a small request.
const SMALL_BYTES: u32 = 16 << 10;
/// Replies that are held back until there are no more requests to be read.
const HELD_BACK_BYTES: usize = 64 << 10;
/// What is read at once, for many small requests.
const INPUT_BYTES: usize = 64 << 10;

/// A client that is connected.
pub(super) struct Connection {
    stream: Stream,
    tls: Option<ServerTls>,
    closing: AtomicBool,
}

/// What the threads of a connection share.
struct Transmission<'a> {
    connection: &'a Connection,
    session: Session,
    turn: Mutex<Turn>,
    writer: Mutex<()>,
    room: Mutex<Room>,
    freed: Condvar,
    pool: Arc<Pool>,
    /// Mean time of each kind of small request in nanoseconds; the last one counts an eighth.
    paces: [AtomicU64; 2],
}

/// Kinds of small requests, which take about the same time each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Small {
    /// It moves a few blocks.
    Moving = 0,
    /// It waits until something is on stable storage.
    Durable = 1,
}

struct Turn {
    input: Input,
    /// Replies that are held back; nothing while nobody has the turn.
    output: Vec<u8>,
    ended: bool,
}

struct Room {
    /// Bytes of data in memory.
    bytes: usize,
    threads: usize,
    /// Threads that wait for the turn.
    waiting: usize,
}

/// A request with its data, out of the stream.
struct Job {
    request: Request,
    verdict: Result<Command, Refusal>,
    data: Option<Buffer>,
    /// Bytes it has of the room.
    bytes: usize,
}

impl Connection {
    /// A client that must encrypt if there is `tls`.
    pub(super) fn new(stream: Stream, tls: Option<ServerTls>) -> Self {
        Self { stream, tls, closing: AtomicBool::new(false) }
    }

    /// No new requests: what is in flight is answered, then the connection ends.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.stream.shutdown(Shutdown::Read);
    }

    /// Ends the connection now, whatever is in flight.
    pub(super) fn abort(&self) {
        self.stream.shutdown(Shutdown::Both);
    }

    fn welcome(&self) -> Welcome {
        match self.closing.load(Ordering::Acquire) {
            true => Welcome::Closing,
            false => Welcome::Open,
        }
    }

    /// Serves the client to its end, on this thread and others.
    pub(super) fn serve(&self, exports: &Exports) {
        let session = self
            .stream
            .set_patience(Some(STALL), Some(STALL))
            .and_then(|()| self.handshake(exports));
        if let Ok(Some(session)) = session {
            self.transmit(session);
        }
        self.abort();
    }

    fn handshake(&self, exports: &Exports) -> io::Result<Option<Session>> {
        let deadline = Instant::now() + HANDSHAKE;
        let mut out = Vec::new();
        let encryption = match self.tls {
            Some(_) => Encryption::Required,
            None => Encryption::Unavailable,
        };
        let mut handshake = Handshake::new(exports, encryption, &mut out);
        let mut bytes = Vec::new();
        loop {
            self.stream.write_parts(&mut [IoSlice::new(&out)])?;
            out.clear();
            // Bounded by the machine, which checks lengths before it needs them.
            bytes.resize(handshake.needs(), 0);
            let mut filled = 0;
            while filled < bytes.len() {
                if Instant::now() > deadline {
                    return Ok(None);
                }
                match (&self.stream).read(&mut bytes[filled..]) {
                    Ok(0) => return Ok(None),
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            let step = handshake.take(&bytes, self.welcome(), &mut out);
            if let Step::More = step {
                continue;
            }
            self.stream.write_parts(&mut [IoSlice::new(&out)])?;
            out.clear();
            match (step, &self.tls) {
                (Step::Go(session), _) => return Ok(Some(session)),
                (Step::StartTls, Some(tls)) => {
                    self.stream.start_tls(tls.connection()?, deadline)?;
                }
                _ => return Ok(None),
            }
        }
    }

    fn transmit(&self, session: Session) {
        let transmission = Transmission {
            connection: self,
            session,
            turn: Mutex::new(Turn { input: Input::new(), output: Vec::new(), ended: false }),
            writer: Mutex::new(()),
            room: Mutex::new(Room { bytes: 0, threads: 1, waiting: 0 }),
            freed: Condvar::new(),
            pool: Arc::default(),
            paces: [(); 2].map(|()| AtomicU64::new(16 * QUICK.as_nanos() as u64)),
        };
        // Ends when all threads have, hence when all that was in flight is done.
        thread::scope(|scope| transmission.work(scope));
    }
}

impl Transmission<'_> {
    /// The life of each thread of a connection.
    fn work<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        loop {
            self.room.lock().waiting += 1;
            let mut turn = self.turn.lock();
            self.room.lock().waiting -= 1;
            if turn.ended {
                return;
            }
            let Some(job) = self.next(&mut turn) else {
                turn.ended = true;
                return;
            };
            let answered = self.work_off(&mut turn, job);
            drop(turn);
            let answered = answered.and_then(|left| {
                let Some(job) = left else { return Ok(()) };
                self.add_thread(scope);
                let bytes = job.bytes;
                let answered = self.send(&self.done(job));
                self.leave_room(bytes);
                answered
            });
            if answered.is_err() {
                // Nobody takes replies any more, so nothing more must be read.
                self.connection.abort();
            }
        }
    }

    /// Does what is quick, up to the last request that has been read. Gives what is not.
    fn work_off(&self, turn: &mut Turn, mut job: Job) -> io::Result<Option<Job>> {
        while self.is_quick(&job) {
            let bytes = job.bytes;
            self.done(job).put(&mut turn.output);
            self.leave_room(bytes);
            if turn.output.len() > HELD_BACK_BYTES || !turn.input.has_request() {
                return self.send_output(turn).map(|()| None);
            }
            job = match self.next(turn) {
                Some(job) => job,
                None => {
                    turn.ended = true;
                    return self.send_output(turn).map(|()| None);
                }
            };
        }
        self.send_output(turn).map(|()| Some(job))
    }

    fn is_quick(&self, job: &Job) -> bool {
        let quick = QUICK.as_nanos() as u64;
        job.small().is_some_and(|kind| self.paces[kind as usize].load(Ordering::Relaxed) < quick)
    }

    fn send_output(&self, turn: &mut Turn) -> io::Result<()> {
        if turn.output.is_empty() {
            return Ok(());
        }
        let _writer = self.writer.lock();
        let sent = self.connection.stream.write_parts(&mut [IoSlice::new(&turn.output)]);
        turn.output.clear();
        sent
    }

    /// Somebody must be reading while this thread works.
    fn add_thread<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        let mut room = self.room.lock();
        if room.waiting == 0 && room.threads < THREADS_MAX {
            let thread = thread::Builder::new().name("nbd client".into());
            // Without another thread this one does, a little slower.
            if thread.spawn_scoped(scope, || self.work(scope)).is_ok() {
                room.threads += 1;
            }
        }
    }

    /// The next request; nothing if there will be none.
    fn next(&self, turn: &mut Turn) -> Option<Job> {
        let stream = &self.connection.stream;
        let mut head = [0; REQUEST_BYTES];
        if !turn.input.fill_or_end(stream, &mut head).ok()? {
            return None;
        }
        let request = Request::decode(&head).ok()?;
        let verdict = match self.connection.welcome() {
            Welcome::Open => admit(&request, &self.session),
            Welcome::Closing => {
                Err(Refusal::new(ErrorCode::Shutdown, "the server is about to end"))
            }
        };
        let command = Command::of(request.command);
        if command == Some(Command::Disconnect) {
            return None;
        }
        let mut job = Job { request, verdict, data: None, bytes: 0 };
        match (command, &job.verdict) {
            (Some(Command::Write), Ok(_)) => {
                let (_, count, within) = span(&request);
                job.bytes = request.length as usize;
                self.take_room(job.bytes);
                let mut buffer = self.pool.take(count);
                let into = &mut buffer.bytes_mut()[within..within + request.length as usize];
                let filled = turn.input.fill(stream, into);
                job.data = Some(buffer);
                if filled.is_err() {
                    self.leave_room(job.bytes);
                    return None;
                }
            }
            (Some(Command::Write), Err(_)) if request.length <= PAYLOAD_SKIP_BYTES_MAX => {
                turn.input.skip(stream, request.length as usize).ok()?;
            }
            // Its data would have to be read, and is too much.
            (Some(Command::Write), Err(_)) => return None,
            (Some(Command::Read), Ok(_)) => {
                job.bytes = request.length as usize;
                self.take_room(job.bytes);
            }
            _ => {}
        }
        Some(job)
    }

    fn take_room(&self, bytes: usize) {
        let mut room = self.room.lock();
        while room.bytes > 0 && room.bytes + bytes > IN_FLIGHT_BYTES_MAX {
            self.freed.wait(&mut room);
        }
        room.bytes += bytes;
    }

    fn leave_room(&self, bytes: usize) {
        if bytes > 0 {
            self.room.lock().bytes -= bytes;
            // Only who has the turn waits.
            self.freed.notify_one();
        }
    }

    /// Does a request.
    fn done(&self, job: Job) -> Reply {
        let small = job.small();
        let Job { request, verdict, data, .. } = job;
        let start = Instant::now();
        let done = verdict.and_then(|command| {
            let read = execute(command, &request, data, &self.session, &self.pool)?;
            Ok((command, read))
        });
        if let Some(kind) = small {
            let took = start.elapsed().as_nanos() as u64;
            let pace = &self.paces[kind as usize];
            let before = pace.load(Ordering::Relaxed);
            // Somebody else's measurement may be lost, which does not matter.
            pace.store(before - before / 8 + took / 8, Ordering::Relaxed);
        }
        let cookie = request.cookie;
        let structured = self.session.replies == Replies::Structured;
        match done {
            Ok((_, Some(buffer))) => {
                let (_, _, within) = span(&request);
                let range = within..within + request.length as usize;
                if !structured {
                    return Reply::with_data(&reply::simple(None, cookie), buffer, range);
                }
                if is_zero(&buffer.bytes()[range.clone()]) {
                    return Reply::plain(&reply::hole(cookie, request.offset, request.length));
                }
                let head = reply::data_head(cookie, request.offset, request.length);
                Reply::with_data(&head, buffer, range)
            }
            Ok((Command::BlockStatus, None)) => {
                Reply::plain(&reply::status(cookie, ALLOCATION_ID, request.length))
            }
            Ok((_, None)) => Reply::plain(&reply::simple(None, cookie)),
            Err(refusal) if structured => {
                Reply::plain(&reply::failure(cookie, refusal.code, &refusal.reason))
            }
            Err(refusal) => Reply::plain(&reply::simple(Some(refusal.code), cookie)),
        }
    }

    fn send(&self, reply: &Reply) -> io::Result<()> {
        let mut slices = [IoSlice::new(&reply.head), IoSlice::new(reply.data_bytes())];
        let _writer = self.writer.lock();
        self.connection.stream.write_parts(&mut slices)
    }
}

impl Job {
    /// What kind of small request it is, if it is one.
    fn small(&self) -> Option<Small> {
        let durable = self.request.flags & command_flag::FUA != 0;
        match self.verdict {
            Ok(Command::Flush) => Some(Small::Durable),
            Ok(Command::Read | Command::Write) if self.request.length > SMALL_BYTES => None,
            Ok(Command::Write) if durable => Some(Small::Durable),
            Ok(Command::Read | Command::Write) => Some(Small::Moving),
            _ => None,
        }
    }
}

/// An answer to a request.
struct Reply {
    head: Vec<u8>,
    /// Memory, and the part of it that is sent.
    data: Option<(Buffer, Range<usize>)>,
}

impl Reply {
    fn plain(head: &[u8]) -> Self {
        Self { head: head.to_vec(), data: None }
    }

    fn with_data(head: &[u8], buffer: Buffer, range: Range<usize>) -> Self {
        Self { head: head.to_vec(), data: Some((buffer, range)) }
    }

    fn data_bytes(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |(buffer, range)| &buffer.bytes()[range.clone()])
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(self.data_bytes());
    }
}

/// Whether all bytes are zero; compares with itself, which is as fast as copying.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

/// What was read and not yet used.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { buffer: vec![0; INPUT_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Whether a request can be read without waiting for the client; not so its data.
    fn has_request(&self) -> bool {
        self.end - self.start >= REQUEST_BYTES
    }

    /// Fills `into`; false if the client has ended before its first byte.
    fn fill_or_end(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<bool> {
        while self.start == self.end {
            match self.refill(stream) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                // Nothing to say for a while.
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.fill(stream, into)?;
        Ok(true)
    }

    /// Fills `into`, of which the client may not stop in the middle for long.
    fn fill(&mut self, stream: &Stream, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            if self.start == self.end && into.len() >= INPUT_BYTES {
                let read = retried(|| {
                    let mut stream = stream;
                    stream.read(into)
                })?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                into = &mut into[read..];
                continue;
            }
            if self.start == self.end && self.refill(stream)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let length = into.len().min(self.end - self.start);
            let (head, rest) = into.split_at_mut(length);
            head.copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            into = rest;
        }
        Ok(())
    }

    fn skip(&mut self, stream: &Stream, mut length: usize) -> io::Result<()> {
        while length > 0 {
            if self.start == self.end && self.refill(stream)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = length.min(self.end - self.start);
            self.start += step;
            length -= step;
        }
        Ok(())
    }

    fn refill(&mut self, mut stream: &Stream) -> io::Result<usize> {
        let read = retried(|| stream.read(&mut self.buffer))?;
        (self.start, self.end) = (0, read);
        Ok(read)
    }
}

fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
