//! A client's first words, on a new connection to a server.

use std::io::{self, IoSlice};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use gabion_link::join::{Admission, Application};
use gabion_link::message::{Hello, Refusal, RefusalReason, Welcome};
use gabion_link::wire::{FIRST_BYTES_MAX, FrameKind, Header, encode_frame};
use gabion_tls::mutual::Dialer;
use gabion_tls::{Discord, Session, TlsError};
use thiserror::Error;

use super::connection::Connection;
use super::pipe::read_frame;
use crate::trust::identity::Protection;

/// How long connecting, agreeing on keys and greeting may take, each.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why there is no session.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// The server.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The server does not want us.
    #[error("{address} refuses: {}", refusal.text)]
    Refused {
        /// The server.
        address: String,
        /// Its words.
        refusal: Refusal,
    },
    /// It is not the server that was meant.
    #[error("{address} is not the server that it should be: its certificate is by somebody else")]
    Impostor {
        /// Who answers there.
        address: String,
    },
    /// It does not know us.
    #[error("{address} does not accept the certificate of this machine")]
    Distrusted {
        /// The server.
        address: String,
    },
    /// It does not encrypt, or not as we do.
    #[error("{address} does not encrypt: {source}")]
    Unencrypted {
        /// The server.
        address: String,
        /// What it did instead.
        source: io::Error,
    },
    /// Our certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// None of several servers can be reached.
    #[error("{}", said_by_all(.0))]
    Nobody(Vec<ConnectError>),
}

fn said_by_all(errors: &[ConnectError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ConnectError {
    /// Whether it will be the same for a while.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => matches!(
                refusal.reason,
                RefusalReason::Unauthorized | RefusalReason::Version | RefusalReason::Other
            ),
            Self::Impostor { .. } | Self::Distrusted { .. } | Self::Unencrypted { .. } => true,
            Self::Tls(_) => true,
            Self::Unreachable { .. } | Self::Thread(_) | Self::Nobody(_) => false,
        }
    }

    /// What all of several servers have come to: what one has said goes before that others cannot
    /// be reached, as those may only be waiting for their turn.
    pub(super) fn all(mut errors: Vec<Self>) -> Self {
        let is_said = |error: &Self| !matches!(error, Self::Unreachable { .. });
        match errors.iter().position(is_said) {
            Some(at) => errors.swap_remove(at),
            None if errors.len() == 1 => errors.remove(0),
            None => Self::Nobody(errors),
        }
    }

    fn of(address: &str, source: io::Error) -> Self {
        let address = address.to_owned();
        match Discord::of(&source) {
            Some(discord) if discord.is_distrust() => Self::Impostor { address },
            Some(discord) if discord.is_distrusted() => Self::Distrusted { address },
            Some(_) => Self::Unencrypted { address, source },
            None => Self::Unreachable { address, source },
        }
    }
}

/// Connects to HOST:PORT and says hello.
pub(super) fn greet(
    address: &str,
    protection: &Protection,
    hello: &Hello,
) -> Result<(Connection, Welcome), ConnectError> {
    let dialer = protection.dialer(address)?;
    let connection = dial(address, dialer.as_ref())?;
    let payload = say(address, &connection, FrameKind::Hello, &hello.encode(), FrameKind::Welcome)?;
    let welcome = Welcome::decode(&payload);
    match welcome {
        Ok(welcome) => Ok((connection, welcome)),
        Err(error) => Err(ConnectError::of(address, io::Error::other(error))),
    }
}

/// Connects to HOST:PORT with an invitation, and asks to be let in. Gives what the server answers,
/// and the certificate of its authority.
pub fn apply(
    address: &str,
    dialer: &Dialer,
    application: &Application,
) -> Result<(Admission, Vec<u8>), ConnectError> {
    let connection = dial(address, Some(dialer))?;
    let authority = connection.encryption().and_then(Session::shown_authority);
    let authority = authority.ok_or_else(|| ConnectError::Impostor { address: address.into() })?;
    let (says, due) = (FrameKind::Application, FrameKind::Admission);
    let payload = say(address, &connection, says, &application.encode(), due)?;
    match Admission::decode(&payload) {
        Ok(admission) => Ok((admission, authority)),
        Err(error) => Err(ConnectError::of(address, io::Error::other(error))),
    }
}

/// A connection with keys, if it is to have some.
fn dial(address: &str, dialer: Option<&Dialer>) -> Result<Connection, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { address: address.to_owned(), source };
    let socket = connect(address).map_err(unreachable)?;
    let Some(dialer) = dialer else { return Ok(Connection::plain(socket)) };
    let keys = dialer.connection().map_err(unreachable)?;
    match Session::start(keys, &socket, Instant::now() + PATIENCE) {
        Ok(session) => Ok(Connection::encrypted(socket, session)),
        // Who does not encrypt makes nothing of our first words.
        Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            Err(ConnectError::Unencrypted { address: address.to_owned(), source })
        }
        Err(error) => Err(ConnectError::of(address, error)),
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Says something, and waits for what is due.
fn say(
    address: &str,
    connection: &Connection,
    kind: FrameKind,
    payload: &[u8],
    due: FrameKind,
) -> Result<Vec<u8>, ConnectError> {
    let converse = || {
        let frame = encode_frame(&Header::greeting(kind, payload), payload);
        connection.write_parts(&mut [IoSlice::new(&frame)])?;
        read_frame(&mut &*connection, FIRST_BYTES_MAX)
    };
    let outcome = converse().and_then(|(header, payload)| match header.kind {
        kind if kind == due => Ok(Ok(payload)),
        FrameKind::Refusal => Ok(Err(Refusal::decode(&payload).map_err(io::Error::other)?)),
        _ => Err(io::Error::other("it says something else than what is due")),
    });
    match outcome {
        Ok(Ok(payload)) => Ok(payload),
        Ok(Err(refusal)) => Err(ConnectError::Refused { address: address.to_owned(), refusal }),
        Err(error) => Err(ConnectError::of(address, error)),
    }
}
