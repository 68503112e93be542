//! A connected socket of either kind, used by several threads at once.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use crate::address::Address;

/// Questions to a quiet peer, within its patience, whether it is there.
const KEEPALIVE_COUNT: u32 = 3;
/// How often such a question is asked at most: the system counts in whole seconds.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Stream {
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
            Address::Unix(path) => connect_unix(path).map(Self::Unix),
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
        Ok(Self::Tcp(stream))
    }

    /// How long one call may wait for the peer.
    pub(crate) fn set_patience(
        &self,
        reading: Option<Duration>,
        writing: Option<Duration>,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(reading)?;
                stream.set_write_timeout(writing)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(reading)?;
                stream.set_write_timeout(writing)
            }
        }
    }

    /// Ends calls in progress and to come, in all threads.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // Fails only if the peer has closed it before.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Writes all of `parts`, in order.
    pub(crate) fn write_parts(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let written = match self {
                Self::Tcp(stream) => (&*stream).write_vectored(parts),
                Self::Unix(stream) => (&*stream).write_vectored(parts),
            };
            match written {
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
        match self {
            Stream::Tcp(stream) => (&*stream).read(into),
            Stream::Unix(stream) => (&*stream).read(into),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(from),
            Stream::Unix(stream) => (&*stream).write(from),
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
