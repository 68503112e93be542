//! A connected socket of either kind, encrypted or not, used by several threads at once.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gabion_tls::Session;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use crate::address::Address;

/// Questions to a quiet peer, within its patience, whether it is there.
const KEEPALIVE_COUNT: u32 = 3;
/// How often such a question is asked at most: the system counts in whole seconds.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A connected socket, encrypted or not.
pub(crate) struct Stream {
    socket: Socket,
    /// Set once, in the handshake, before other threads use the stream.
    tls: OnceLock<Session>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects before `deadline`. The system may take longer to look up a host's name. For
    /// `vanishing`, see [`Stream::tcp`].
    pub(crate) fn connect(
        address: &Address,
        deadline: Instant,
        vanishing: Duration,
    ) -> io::Result<Self> {
        match address {
            Address::Unix(path) => connect_unix(path).map(Self::unix),
            Address::Tcp { host, port } => {
                let mut failure = io::Error::other("the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let patience = deadline.saturating_duration_since(Instant::now());
                    if patience.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => return Self::tcp(stream, vanishing),
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }

    /// Small messages go at once. A peer that has vanished, with its machine or with the network,
    /// ends the connection after about `vanishing`, whether or not anything is under way; one that
    /// is merely slow does not.
    pub(crate) fn tcp(stream: TcpStream, vanishing: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Longer than days is not possible, and not different from for ever.
        let vanishing = vanishing.clamp(KEEPALIVE_INTERVAL_MIN, Duration::from_secs(86_400));
        let interval = (vanishing / (KEEPALIVE_COUNT + 1)).max(KEEPALIVE_INTERVAL_MIN);
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, interval)?;
        sockopt::set_tcp_keepintvl(&stream, interval)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
        sockopt::set_tcp_user_timeout(&stream, vanishing.as_millis() as u32)?;
        Ok(Self { socket: Socket::Tcp(stream), tls: OnceLock::new() })
    }

    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self { socket: Socket::Unix(stream), tls: OnceLock::new() }
    }

    /// Encrypts all that follows. Nobody else may use the stream meanwhile, and nothing may have
    /// been read from it that was not asked for.
    pub(crate) fn start_tls(
        &self,
        connection: gabion_tls::Connection,
        deadline: Instant,
    ) -> io::Result<()> {
        let session = Session::start(connection, &self.socket, deadline)?;
        assert!(self.tls.set(session).is_ok(), "a stream is encrypted once");
        Ok(())
    }

    /// Who is at the other end, for people.
    pub(crate) fn peer(&self) -> String {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |peer| peer.to_string())
            }
            Socket::Unix(_) => "a client of this machine".to_owned(),
        }
    }

    /// How long one call may wait for the peer.
    pub(crate) fn set_patience(
        &self,
        reading: Option<Duration>,
        writing: Option<Duration>,
    ) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(reading)?;
                stream.set_write_timeout(writing)
            }
            Socket::Unix(stream) => {
                stream.set_read_timeout(reading)?;
                stream.set_write_timeout(writing)
            }
        }
    }

    /// Ends calls in progress and to come, in all threads.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // Fails only if the peer has closed it before.
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Writes all of `parts`, in order.
    pub(crate) fn write_parts(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        if let Some(session) = self.tls.get() {
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
}

impl Read for &Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            Some(session) => session.read(&self.socket, into),
            None => (&self.socket).read(into),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(into),
            Socket::Unix(stream) => (&*stream).read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(from),
            Socket::Unix(stream) => (&*stream).write(from),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write_vectored(parts),
            Socket::Unix(stream) => (&*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects without ever waiting for a server that accepts nothing: a full queue is an error.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether a call ended because its patience did.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
