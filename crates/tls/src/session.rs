//! One encrypted connection, read by one thread while others write.
//!
//! ```text
//!   reader   receive from the socket -> [ decrypt ]          -> plain bytes
//!   writer   plain bytes             -> [ encrypt ] -> send to the socket
//! ```
//!
//! What stands in brackets happens under one lock, which nobody holds while the socket makes him
//! wait. So a reader that waits for the peer does not keep anybody from writing, and the other way
//! round; deadlines are those of the socket.
//!
//! - Records must reach the socket in the order in which they were made: `sending` is held from one
//!   to the other.
//! - A reader may have something to send, such as the answer to a new key. It leaves that to the
//!   writer if there is one at the time, and never waits for it, as the peer might be waiting for
//!   this reader to read.

use std::io::{self, IoSlice, Read, Write};
use std::time::Instant;

use gabion_base::sync::Mutex;
use rustls::Connection;

/// What is received at once: some of the largest records.
const RECEIVED_BYTES: usize = 64 << 10;
/// Bytes that are encrypted before they are sent.
const ENCRYPTED_BYTES: usize = 256 << 10;

/// Encryption in both directions.
pub struct Session {
    connection: Mutex<Connection>,
    /// Records that were made and not yet sent.
    sending: Mutex<Vec<u8>>,
    receiving: Mutex<Received>,
}

/// Bytes of the socket that have not been looked at.
struct Received {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Why records cannot be understood.
fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("encryption: {error}"))
}

impl Session {
    /// Agrees with the peer on keys, before `deadline`.
    pub fn start<S>(
        mut connection: Connection,
        mut socket: S,
        deadline: Instant,
    ) -> io::Result<Self>
    where
        S: Read + Write + Copy,
    {
        connection.set_buffer_limit(None);
        loop {
            while connection.wants_write() {
                connection.write_tls(&mut socket)?;
            }
            if !connection.is_handshaking() {
                break;
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match connection.read_tls(&mut socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Err(error) = connection.process_new_packets() {
                // The peer is told why, if it still listens.
                let _ = connection.write_tls(&mut socket);
                return Err(broken(error));
            }
        }
        let buffer = vec![0; RECEIVED_BYTES].into_boxed_slice();
        Ok(Self {
            connection: Mutex::new(connection),
            sending: Mutex::default(),
            receiving: Mutex::new(Received { buffer, start: 0, end: 0 }),
        })
    }

    /// Reads plain bytes; none if the peer has ended in order.
    pub fn read<S>(&self, mut socket: S, into: &mut [u8]) -> io::Result<usize>
    where
        S: Read + Write + Copy,
    {
        let received = &mut *self.receiving.lock();
        loop {
            let mut connection = self.connection.lock();
            loop {
                match connection.reader().read(into) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
                if received.start == received.end {
                    break;
                }
                let mut rest = &received.buffer[received.start..received.end];
                received.start += connection.read_tls(&mut rest)?;
                connection.process_new_packets().map_err(broken)?;
            }
            let answers = connection.wants_write();
            drop(connection);
            if answers && let Some(mut sending) = self.sending.try_lock() {
                self.take_records(&mut sending)?;
                send(socket, &mut sending)?;
            }
            let count = socket.read(&mut received.buffer)?;
            (received.start, received.end) = (0, count);
            if count == 0 {
                self.connection.lock().read_tls(&mut io::empty())?;
            }
        }
    }

    /// Writes plain bytes, all of `parts` in order.
    pub fn write_parts<S>(&self, socket: S, mut parts: &mut [IoSlice<'_>]) -> io::Result<()>
    where
        S: Read + Write + Copy,
    {
        let mut sending = self.sending.lock();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let mut connection = self.connection.lock();
            let mut taken = 0;
            while !parts.is_empty() && taken < ENCRYPTED_BYTES {
                let first = parts[0].len();
                let written = match first > ENCRYPTED_BYTES {
                    true => connection.writer().write(&parts[0][..ENCRYPTED_BYTES])?,
                    false => connection.writer().write_vectored(parts)?,
                };
                taken += written;
                IoSlice::advance_slices(&mut parts, written);
            }
            while connection.wants_write() {
                connection.write_tls(&mut *sending)?;
            }
            drop(connection);
            send(socket, &mut sending)?;
        }
        Ok(())
    }

    fn take_records(&self, into: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.connection.lock();
        while connection.wants_write() {
            connection.write_tls(into)?;
        }
        Ok(())
    }
}

fn send<S: Write>(mut socket: S, records: &mut Vec<u8>) -> io::Result<()> {
    let sent = socket.write_all(records);
    records.clear();
    sent
}
