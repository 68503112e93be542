//! One side of a session on whatever connection it has just now.
//!
//! ```text
//!   send --> numbered, kept --> this thread writes, if the socket takes it all at once
//!                          '--> the flusher, a thread of the connection, writes what is left; at
//!                               a server the thread that watches the connection does
//!   send_soon --> the same, but that nothing is written before there is much, or something that
//!                 is in a hurry, or some time has passed
//! ```
//!
//! The socket has taken a frame when an encrypted connection has: then it must still be flushed.
//!
//! What was sent is kept until the other side has it. A new connection begins with what may have
//! been lost on the one before.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::stream::{Incoming, Outgoing, Payload};
use gabion_link::wire::{FrameKind, HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};

use super::connection::Connection;
use super::watch::WRITABLE;

/// What may wait for the other side, in bytes. Who lets more wait is not there any more.
const KEPT_MAX: usize = 256 << 20;
/// What is in no hurry is held back until something comes that is, or so much, or after so long.
const HELD_BYTES: usize = 64 << 10;
const HELD_TIME: Duration = Duration::from_micros(500);
/// How often the flusher looks for what was held back and followed by nothing.
const TICK: Duration = Duration::from_millis(2);
/// Frames that are written by one call at most.
const FRAMES_AT_ONCE: usize = 64;

/// One side of a session.
pub(super) struct Pipe {
    out: Mutex<Out>,
    more: Condvar,
    /// Messages that have arrived from the other side.
    received: AtomicU64,
}

#[derive(Default)]
struct Out {
    stream: Outgoing,
    connection: Option<Arc<Connection>>,
    /// Frames for the connection, the first of which was written up to `written`.
    waiting: VecDeque<Frame>,
    written: usize,
    /// Frames wait for others since then,
    held_since: Option<Instant>,
    /// with so many bytes.
    held: usize,
    /// The flusher looks after them.
    is_ticking: bool,
    /// The flusher is at it.
    is_flushing: bool,
}

/// Whether a message waits for others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    Now,
    Soon,
}

/// A message as it is sent.
#[derive(Clone)]
struct Frame {
    head: [u8; HEADER_BYTES],
    payload: Payload,
}

impl Frame {
    fn length(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// What is left after the first `written` bytes.
    fn rest(&self, written: usize) -> [IoSlice<'_>; 2] {
        let head = &self.head[written.min(HEADER_BYTES)..];
        let payload = &self.payload[written.saturating_sub(HEADER_BYTES)..];
        [IoSlice::new(head), IoSlice::new(payload)]
    }
}

impl Pipe {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { out: Mutex::default(), more: Condvar::new(), received: AtomicU64::new(0) })
    }

    /// Messages that have arrived.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Sends a message and gives its number. Does not wait.
    pub(super) fn send(&self, payload: Vec<u8>) -> u64 {
        self.push(payload, Haste::Now)
    }

    /// Sends a message, together with those that come after it. Only where there is a flusher.
    pub(super) fn send_soon(&self, payload: Vec<u8>) {
        self.push(payload, Haste::Soon);
    }

    fn push(&self, payload: Vec<u8>, haste: Haste) -> u64 {
        let payload: Payload = Arc::new(payload);
        let mut out = self.out.lock();
        let number = out.stream.push(Arc::clone(&payload));
        if out.stream.bytes() > KEPT_MAX {
            out.drop_connection();
        }
        if out.connection.is_none() {
            return number;
        }
        let frame = self.frame(number, &payload);
        let length = frame.length();
        out.waiting.push_back(frame);
        if out.is_flushing || haste == Haste::Soon && out.is_held(length) {
            if !out.is_flushing && !out.is_ticking {
                self.more.notify_all();
            }
            return number;
        }
        if !out.write_at_once() {
            out.is_flushing = true;
            match &out.connection {
                Some(connection) if connection.is_watched() => connection.want(WRITABLE),
                _ => {
                    self.more.notify_all();
                }
            }
        }
        number
    }

    fn frame(&self, number: u64, payload: &Payload) -> Frame {
        let head = Header::message(number, self.received(), payload).encode();
        Frame { head, payload: Arc::clone(payload) }
    }

    /// The number of the last message.
    pub(super) fn sent(&self) -> u64 {
        self.out.lock().stream.sent()
    }

    /// Goes on with another connection, of which the other side says that `received` messages had
    /// arrived before.
    pub(super) fn attach(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        received: u64,
    ) -> io::Result<()> {
        let mut out = self.out.lock();
        out.drop_connection();
        let again = out.stream.again(received).map_err(io::Error::other)?;
        out.waiting = again.iter().map(|(number, payload)| self.frame(*number, payload)).collect();
        out.connection = Some(Arc::clone(connection));
        if connection.is_watched() {
            out.is_flushing = !out.write_at_once();
            if out.is_flushing {
                connection.want(WRITABLE);
            }
            return Ok(());
        }
        out.is_flushing = true;
        drop(out);
        let (pipe, connection) = (Arc::clone(self), Arc::clone(connection));
        let flusher = thread::Builder::new().name("flusher".to_owned());
        flusher.spawn(move || pipe.flush(&connection))?;
        Ok(())
    }

    /// Begins again, in a new session.
    pub(super) fn reset(&self) {
        let mut out = self.out.lock();
        out.drop_connection();
        out.stream = Outgoing::default();
        self.received.store(0, Ordering::Release);
    }

    /// Closes the connection, if it is still this one.
    pub(super) fn detach(&self, connection: &Arc<Connection>) {
        let mut out = self.out.lock();
        if out.is_own(connection) {
            out.drop_connection();
        }
        drop(out);
        self.more.notify_all();
    }

    /// Closes whatever connection there is.
    pub(super) fn close(&self) {
        self.out.lock().drop_connection();
        self.more.notify_all();
    }

    /// Writes what the socket of a watched connection did not take at once.
    pub(super) fn go_on(&self, connection: &Arc<Connection>) {
        let mut out = self.out.lock();
        if !out.is_own(connection) {
            connection.unwant(WRITABLE);
        } else if out.write_at_once() {
            connection.unwant(WRITABLE);
            out.is_flushing = false;
        }
    }

    /// Writes what the socket did not take at once, until the connection is replaced.
    fn flush(&self, connection: &Arc<Connection>) {
        let mut out = self.out.lock();
        loop {
            if !out.is_own(connection) {
                return;
            }
            if !out.is_flushing && !out.is_ticking && out.held_since.is_none() {
                self.more.wait(&mut out);
                continue;
            }
            if !out.is_flushing {
                out.is_ticking = true;
                let is_tick = self.more.wait_for(&mut out, TICK).timed_out();
                if !out.is_own(connection) {
                    return;
                }
                if is_tick && !out.is_flushing {
                    out.is_ticking = out.held_since.is_some();
                    out.is_flushing = !out.write_at_once();
                }
                continue;
            }
            let frame = out.waiting.front().cloned();
            let written = out.written;
            drop(out);
            let outcome = match &frame {
                Some(frame) => connection.write_parts(&mut frame.rest(written)),
                // Bytes that were taken before.
                None => connection.write_parts(&mut []),
            };
            out = self.out.lock();
            if !out.is_own(connection) {
                return;
            }
            if outcome.is_err() {
                out.drop_connection();
                return;
            }
            if frame.is_some() {
                out.waiting.pop_front();
                out.written = 0;
            }
            out.is_flushing = !out.waiting.is_empty();
        }
    }

    /// Reads the next message that is new.
    pub(super) fn receive(&self, input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        let (header, payload) = read_frame(input, PAYLOAD_BYTES_MAX)?;
        self.accept(&header, payload)
    }

    /// Takes a message that was read, if it is new.
    pub(super) fn accept(&self, header: &Header, payload: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        if header.kind != FrameKind::Message {
            return Err(io::Error::other("a message was due"));
        }
        self.out.lock().stream.arrived(header.received).map_err(io::Error::other)?;
        let mut incoming = Incoming::at(self.received());
        let is_new = incoming.accept(header.number).map_err(io::Error::other)?;
        self.received.store(incoming.received(), Ordering::Release);
        Ok(is_new.then_some(payload))
    }

    /// How many messages the other side has, by its own word.
    pub(super) fn arrived(&self) -> u64 {
        self.out.lock().stream.arrived_so_far()
    }
}

impl Out {
    /// Whether it is the connection that is written to.
    fn is_own(&self, connection: &Arc<Connection>) -> bool {
        self.connection.as_ref().is_some_and(|own| Arc::ptr_eq(own, connection))
    }

    fn drop_connection(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.shutdown();
        }
        self.waiting.clear();
        self.written = 0;
        self.holds_nothing();
        self.is_ticking = false;
        self.is_flushing = false;
    }

    /// Whether a frame of `length` bytes, the last one, waits for others.
    fn is_held(&mut self, length: usize) -> bool {
        let now = Instant::now();
        let since = *self.held_since.get_or_insert(now);
        self.held += length;
        self.held < HELD_BYTES && now - since < HELD_TIME
    }

    fn holds_nothing(&mut self) {
        (self.held_since, self.held) = (None, 0);
    }

    /// Writes without waiting. Whether all is written.
    fn write_at_once(&mut self) -> bool {
        self.holds_nothing();
        let Some(connection) = self.connection.clone() else { return true };
        match self.write_some(&connection) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                // The reader of the connection notices, too, and does what is to be done.
                self.drop_connection();
                true
            }
        }
    }

    fn write_some(&mut self, connection: &Connection) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let mut parts = Vec::with_capacity(2 * self.waiting.len().min(FRAMES_AT_ONCE));
            let mut skipped = self.written;
            for frame in self.waiting.iter().take(FRAMES_AT_ONCE) {
                parts.extend(frame.rest(skipped));
                skipped = 0;
            }
            self.written += connection.write_some(&mut parts)?;
            while let Some(frame) = self.waiting.front()
                && self.written >= frame.length()
            {
                self.written -= frame.length();
                self.waiting.pop_front();
            }
        }
        connection.flush_some()
    }
}

/// Reads one frame whole, whose payload has at most `limit` bytes.
pub(super) fn read_frame(input: &mut impl Read, limit: usize) -> io::Result<(Header, Vec<u8>)> {
    let mut head = [0; HEADER_BYTES];
    input.read_exact(&mut head)?;
    let header = Header::decode(&head).map_err(io::Error::other)?;
    let length = header.length as usize;
    if length > limit {
        let text = format!("a frame of {length} bytes; {limit} are allowed here");
        return Err(io::Error::other(text));
    }
    let mut payload = Vec::with_capacity(length);
    input.take(header.length.into()).read_to_end(&mut payload)?;
    if payload.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    header.check_payload(&payload).map_err(io::Error::other)?;
    Ok((header, payload))
}
