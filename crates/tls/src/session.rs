//! One encrypted connection, read by one thread while others write.
//!
//! ```text
//!   reader   receive from the socket -> [ decrypt ]          -> plain bytes
//!   writer   plain bytes             -> [ encrypt ] -> records -> send to the socket
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
//! - Records that the socket does not take stay, and go before all others. So sockets that never
//!   make anybody wait will do, too: what cannot be done now fails with `WouldBlock`.

use std::io::{self, IoSlice, Read, Write};
use std::time::Instant;

use gabion_base::sync::Mutex;
use rustls::Connection;
use thiserror::Error;

use crate::TlsError;
use crate::authority::Holder;

/// What is received at once: some of the largest records.
const RECEIVED_BYTES: usize = 64 << 10;
/// Bytes that are encrypted before they are sent.
const ENCRYPTED_BYTES: usize = 256 << 10;

/// Encryption in both directions.
pub struct Session {
    connection: Mutex<Connection>,
    sending: Mutex<Records>,
    receiving: Mutex<Received>,
}

/// Records that were made, of which the socket has taken some bytes.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    sent: usize,
}

impl Records {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Sends all, or as much as the socket takes.
    fn send<S: Write>(&mut self, mut socket: S) -> io::Result<()> {
        while !self.is_empty() {
            match socket.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }

    /// The same, where it is no failure that the socket takes no more just now.
    fn send_some<S: Write>(&mut self, socket: S) -> io::Result<()> {
        match self.send(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent,
        }
    }

    fn take_from(&mut self, connection: &mut Connection) -> io::Result<()> {
        while connection.wants_write() {
            connection.write_tls(&mut self.bytes)?;
        }
        Ok(())
    }
}

/// Bytes of the socket that have not been looked at.
struct Received {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Why two sides do not come together. It is what an [`io::Error`] of a session has inside.
#[derive(Debug, Error)]
#[error("encryption: {0}")]
pub struct Discord(#[source] rustls::Error);

impl Discord {
    /// Which one an error is, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether the peer's certificate is not by the right authority, or not for this use.
    pub fn is_distrust(&self) -> bool {
        matches!(self.0, rustls::Error::InvalidCertificate(_))
    }

    /// Whether the peer does not accept our certificate, or that we have none.
    pub fn is_distrusted(&self) -> bool {
        use rustls::AlertDescription as Alert;
        matches!(
            self.0,
            rustls::Error::AlertReceived(
                Alert::BadCertificate
                    | Alert::UnknownCA
                    | Alert::CertificateUnknown
                    | Alert::CertificateRequired
                    | Alert::CertificateExpired
                    | Alert::CertificateRevoked
                    | Alert::UnsupportedCertificate
                    | Alert::DecryptError
                    | Alert::AccessDenied
            )
        )
    }
}

/// Why records cannot be understood.
fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Discord(error))
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
        loop {
            while connection.wants_write() {
                connection.write_tls(&mut socket)?;
            }
            if !connection.is_handshaking() {
                return Ok(Self::begin(connection));
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
    }

    /// Leaves it to [`Session::read`] to agree with the peer on keys.
    pub fn begin(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        let buffer = vec![0; RECEIVED_BYTES].into_boxed_slice();
        Self {
            connection: Mutex::new(connection),
            sending: Mutex::default(),
            receiving: Mutex::new(Received { buffer, start: 0, end: 0 }),
        }
    }

    /// Whether there are no keys yet.
    pub fn is_handshaking(&self) -> bool {
        self.connection.lock().is_handshaking()
    }

    /// Whose certificate the peer has shown; nothing if it has shown none.
    pub fn holder(&self) -> Result<Option<Holder>, TlsError> {
        let connection = self.connection.lock();
        let first = connection.peer_certificates().and_then(|certificates| certificates.first());
        first.map(|certificate| Holder::of(certificate)).transpose()
    }

    /// The certificate behind the peer's own, if it has shown one: that of its authority.
    pub fn shown_authority(&self) -> Option<Vec<u8>> {
        let connection = self.connection.lock();
        Some(connection.peer_certificates()?.get(1)?.to_vec())
    }

    /// Reads plain bytes; none if the peer has ended in order.
    pub fn read<S>(&self, mut socket: S, into: &mut [u8]) -> io::Result<usize>
    where
        S: Read + Write + Copy,
    {
        let received = &mut *self.receiving.lock();
        loop {
            let mut connection = self.connection.lock();
            let read = received.decrypt(&mut connection, into);
            let answers = connection.wants_write();
            drop(connection);
            if answers && let Some(mut sending) = self.sending.try_lock() {
                sending.take_from(&mut self.connection.lock())?;
                match sending.send_some(socket) {
                    // Why nothing can be understood says more.
                    Err(error) if !matches!(read, Some(Err(_))) => return Err(error),
                    _ => {}
                }
            }
            if let Some(read) = read {
                return read;
            }
            let count = match socket.read(&mut received.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
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
        sending.send(socket)?;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let mut connection = self.connection.lock();
            encrypt(&mut connection, &mut parts)?;
            sending.take_from(&mut connection)?;
            drop(connection);
            sending.send(socket)?;
        }
        Ok(())
    }

    /// Takes some plain bytes, without waiting if the socket does not make anybody wait; fails with
    /// `WouldBlock` if what was taken before has not been sent. See [`Session::flush`].
    pub fn write_some<S>(&self, socket: S, mut parts: &mut [IoSlice<'_>]) -> io::Result<usize>
    where
        S: Read + Write + Copy,
    {
        let mut sending = self.sending.try_lock().ok_or(io::ErrorKind::WouldBlock)?;
        sending.send(socket)?;
        IoSlice::advance_slices(&mut parts, 0);
        let mut connection = self.connection.lock();
        let taken = encrypt(&mut connection, &mut parts)?;
        sending.take_from(&mut connection)?;
        drop(connection);
        sending.send_some(socket)?;
        Ok(taken)
    }

    /// Sends what was taken, and what a reader has left to be sent.
    pub fn flush<S>(&self, socket: S) -> io::Result<()>
    where
        S: Read + Write + Copy,
    {
        let mut sending = self.sending.try_lock().ok_or(io::ErrorKind::WouldBlock)?;
        sending.take_from(&mut self.connection.lock())?;
        sending.send(socket)
    }

    /// Says that nothing follows, if the socket takes that at once.
    pub fn close<S>(&self, socket: S)
    where
        S: Read + Write + Copy,
    {
        self.connection.lock().send_close_notify();
        // Who does not hear it sees that the socket closes.
        let _ = self.flush(socket);
    }
}

impl Received {
    /// Plain bytes, or none if there are too few to tell.
    fn decrypt(
        &mut self,
        connection: &mut Connection,
        into: &mut [u8],
    ) -> Option<io::Result<usize>> {
        loop {
            match connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Some(read),
            }
            if self.start == self.end {
                return None;
            }
            let mut rest = &self.buffer[self.start..self.end];
            match connection.read_tls(&mut rest) {
                Ok(count) => self.start += count,
                Err(error) => return Some(Err(error)),
            }
            if let Err(error) = connection.process_new_packets() {
                return Some(Err(broken(error)));
            }
        }
    }
}

/// Takes the first of `parts`, and says how many bytes that were.
fn encrypt(connection: &mut Connection, parts: &mut &mut [IoSlice<'_>]) -> io::Result<usize> {
    let mut taken = 0;
    while !parts.is_empty() && taken < ENCRYPTED_BYTES {
        let first = parts[0].len();
        let written = match first > ENCRYPTED_BYTES {
            true => connection.writer().write(&parts[0][..ENCRYPTED_BYTES])?,
            false => connection.writer().write_vectored(parts)?,
        };
        taken += written;
        IoSlice::advance_slices(parts, written);
    }
    Ok(taken)
}
