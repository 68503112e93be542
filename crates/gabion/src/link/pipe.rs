//! One side of a session on whatever connection it has just now.
//!
//! ```text
//!   send --> numbered, kept --> this thread writes, if the socket takes it all at once
//!                          '--> the flusher, a thread of the connection, writes what is left; at
//!                               a server the thread that watches the connection does
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

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::stream::{Incoming, Outgoing, Payload};
use gabion_link::wire::{FrameKind, HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};

use super::connection::Connection;
use super::watch::WRITABLE;

/// What may wait for the other side, in bytes. Who lets more wait is not there any more.
const KEPT_MAX: usize = 256 << 20;

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
    /// The flusher is at it.
    is_flushing: bool,
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
        let payload: Payload = Arc::new(payload);
        let mut out = self.out.lock();
        let number = out.stream.push(Arc::clone(&payload));
        if out.stream.bytes() > KEPT_MAX {
            out.drop_connection();
        }
        if out.connection.is_some() {
            let frame = self.frame(number, &payload);
            out.waiting.push_back(frame);
            if !out.is_flushing && !out.write_at_once() {
                out.is_flushing = true;
                match &out.connection {
                    Some(connection) if connection.is_watched() => connection.want(WRITABLE),
                    _ => {
                        self.more.notify_all();
                    }
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
            if !out.is_flushing {
                self.more.wait(&mut out);
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
        self.is_flushing = false;
    }

    /// Writes without waiting. Whether all is written.
    fn write_at_once(&mut self) -> bool {
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
        while let Some(frame) = self.waiting.front() {
            self.written += connection.write_some(&mut frame.rest(self.written))?;
            if self.written == frame.length() {
                self.waiting.pop_front();
                self.written = 0;
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
