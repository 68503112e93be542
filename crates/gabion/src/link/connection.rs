//! A connected socket, encrypted or not: read by one thread, written by others.
//!
//! A client has a thread that waits for what can be read. At a server a thread watches many.
//!
//! There are two ways to write. One waits until the socket has taken everything; the other never
//! waits, takes what can be taken, and fails with `WouldBlock` if that is nothing. What an
//! encrypted connection has taken may still have to be sent: see [`Connection::flush_some`].

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};

use gabion_tls::Session;
use rustix::event::epoll::EventFlags;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

use super::watch::Watch;

/// Neither waits nor raises a signal.
const AT_ONCE: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A connected socket.
pub(super) struct Connection {
    socket: TcpStream,
    encryption: Option<Session>,
    /// How a thread watches it that has many to watch; its socket then makes nobody wait.
    watch: Option<Watch>,
}

impl Connection {
    pub(super) fn plain(socket: TcpStream) -> Self {
        Self { socket, encryption: None, watch: None }
    }

    pub(super) fn encrypted(socket: TcpStream, session: Session) -> Self {
        Self { socket, encryption: Some(session), watch: None }
    }

    pub(super) fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Whether a thread watches it, and goes on with what could not be written.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// Has the thread that watches it look for these, too.
    pub(super) fn want(&self, flags: EventFlags) {
        if let Some(watch) = &self.watch {
            watch.want(&self.socket, flags);
        }
    }

    /// The other way round.
    pub(super) fn unwant(&self, flags: EventFlags) {
        if let Some(watch) = &self.watch {
            watch.unwant(&self.socket, flags);
        }
    }

    /// Nobody reads it any more.
    pub(super) fn end(&self) {
        self.shutdown();
        if let Some(watch) = &self.watch {
            watch.end(&self.socket);
        }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn encryption(&self) -> Option<&Session> {
        self.encryption.as_ref()
    }

    /// Writes all of `parts`.
    pub(super) fn write_parts(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        if let Some(session) = &self.encryption {
            return session.write_parts(&self.socket, parts);
        }
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match (&self.socket).write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes some of `parts` without waiting.
    pub(super) fn write_some(&self, parts: &mut [IoSlice<'_>]) -> io::Result<usize> {
        match &self.encryption {
            Some(session) => session.write_some(Impatient(&self.socket), parts),
            None => {
                let mut nothing = SendAncillaryBuffer::default();
                let sent = rustix::io::retry_on_intr(|| {
                    sendmsg(&self.socket, parts, &mut nothing, AT_ONCE)
                });
                Ok(sent?)
            }
        }
    }

    /// Sends what was taken, without waiting.
    pub(super) fn flush_some(&self) -> io::Result<()> {
        match &self.encryption {
            Some(session) => session.flush(Impatient(&self.socket)),
            None => Ok(()),
        }
    }

    /// Says that nothing follows. What the other side has sent can still be read.
    pub(super) fn finish(&self) {
        if let Some(session) = &self.encryption {
            session.close(Impatient(&self.socket));
        }
        // Fails only if the peer has closed it before.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends calls in progress and to come, in all threads.
    pub(super) fn shutdown(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Read for &Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.encryption {
            Some(session) => session.read(&self.socket, into),
            None => (&self.socket).read(into),
        }
    }
}

/// A socket whose writers do not wait, whatever its readers do.
#[derive(Clone, Copy)]
struct Impatient<'a>(&'a TcpStream);

impl Read for Impatient<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl Write for Impatient<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| send(self.0, from, AT_ONCE))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
