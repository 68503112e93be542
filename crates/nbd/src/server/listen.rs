//! Places where clients are waited for.
//!
//! A waiting listener is ended by dropping its [`Wake`]: the other end of a socket pair, which
//! then becomes readable.

use std::fs;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::address::Address;
use crate::stream::Stream;

/// How long a listener rests when the system has no descriptors or memory for a client.
const REST: Duration = Duration::from_millis(100);

/// After how long a client that has vanished is given up.
const VANISHING: Duration = Duration::from_secs(60);

/// Its end ends a listener's waiting.
pub(super) struct Wake {
    _open: UnixStream,
}

/// A wake and what it wakes.
pub(super) fn wake() -> io::Result<(Wake, UnixStream)> {
    let (open, woken) = UnixStream::pair()?;
    Ok((Wake { _open: open }, woken))
}

/// A place where clients are waited for.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, identity: Option<(u64, u64)> },
}

impl Listener {
    /// Listens at `address`; at port 0 the system chooses one. A socket in the file system that
    /// nobody listens at any more is replaced.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp { host, port } => {
                let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
                Socket::Tcp(TcpListener::bind(&addresses[..])?)
            }
            Address::Unix(path) => {
                let listener = bind_unix(path)?;
                Socket::Unix { listener, identity: identity(path), path: path.clone() }
            }
        };
        // A client that goes between the poll and the accept must not make the accept wait.
        match &socket {
            Socket::Tcp(listener) => listener.set_nonblocking(true)?,
            Socket::Unix { listener, .. } => listener.set_nonblocking(true)?,
        }
        Ok(Self(socket))
    }

    /// Where clients find it, with the port that the system has chosen.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &self.0 {
            Socket::Tcp(listener) => {
                let address = listener.local_addr()?;
                Address::Tcp { host: address.ip().to_string(), port: address.port() }
            }
            Socket::Unix { path, .. } => Address::Unix(path.clone()),
        })
    }

    /// The next client; nothing when it was woken.
    pub(super) fn accept(&self, woken: &UnixStream) -> Option<Stream> {
        loop {
            let listener: BorrowedFd<'_> = match &self.0 {
                Socket::Tcp(listener) => listener.as_fd(),
                Socket::Unix { listener, .. } => listener.as_fd(),
            };
            let mut ready =
                [PollFd::new(&listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
            if poll(&mut ready, None).is_err() {
                continue;
            }
            if !ready[1].revents().is_empty() {
                return None;
            }
            let accepted = match &self.0 {
                Socket::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(false)?;
                    Stream::tcp(stream, VANISHING)
                }),
                Socket::Unix { listener, .. } => listener.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(false)?;
                    Ok(Stream::unix(stream))
                }),
            };
            match accepted {
                Ok(stream) => return Some(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => thread::sleep(REST),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path, identity: own, .. } = &self.0 {
            // Somebody else may listen there by now.
            if own.is_some() && identity(path) == *own {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            let soon = Instant::now() + Duration::from_secs(1);
            let answer = Stream::connect(&Address::Unix(path.to_owned()), soon, VANISHING);
            let is_dead = matches!(&answer, Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused);
            if !(is_socket && is_dead) {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
