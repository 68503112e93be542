//! A server's end of a connection, from its first byte to its last, without waiting.
//!
//! ```text
//!   silent   -- first bytes -->  strange  -- first frame -->  known   messages of a session
//!                    |              |  keys, hello
//!                    |              '-- admission, refusal --.
//!                    '-- refusal ----------------------------+-->  leaving   until it is read
//! ```
//!
//! One thread advances it whenever its socket has something to read, or takes something that could
//! not be written before. Other threads write to it, too (see `pipe`), and have it read again when
//! a session has room for more calls (see `load`).

use std::io::{self, Read};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_link::message::{ToClient, ToServer};
use gabion_link::wire::{FIRST_BYTES_MAX, FrameKind, Header, PAYLOAD_BYTES_MAX};

use super::assembly::Assembly;
use super::connection::Connection;
use super::gate::Stranger;
use super::greeting::{Answer, FIRST_BYTES, Opening, Peer, answer_with};
use super::server::{Link, Shared};
use super::watch::{WRITABLE, Watch};

/// How long a connection may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that was refused may take to hear it. A connection that is closed with
/// something unread takes back what was written.
const LEAVING_PATIENCE: Duration = Duration::from_secs(2);
/// What is read of a connection before others have their turn.
const TURN_BYTES: usize = 1 << 20;

/// A connection.
pub(super) struct Conversation {
    /// No other has it.
    number: u64,
    address: SocketAddr,
    /// When it has to be further than it is.
    deadline: Option<Instant>,
    assembly: Assembly,
    state: State,
}

enum State {
    Silent { socket: TcpStream, watch: Watch, stranger: Stranger },
    Strange { connection: Arc<Connection>, _stranger: Stranger },
    Known { connection: Arc<Connection>, link: Arc<Link> },
    Leaving(Arc<Connection>),
    Ended,
}

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Over,
}

impl Conversation {
    pub(super) fn new(
        number: u64,
        address: SocketAddr,
        (socket, watch): (TcpStream, Watch),
        stranger: Stranger,
    ) -> Self {
        Self {
            number,
            address,
            deadline: Some(Instant::now() + GREETING_PATIENCE),
            assembly: Assembly::default(),
            state: State::Silent { socket, watch, stranger },
        }
    }

    /// Whether it has taken longer than it may.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline < now)
    }

    /// Goes on as far as is possible now. `scratch` is for what is read.
    pub(super) fn advance(
        &mut self,
        shared: &Shared,
        scratch: &mut [u8],
        has_hung_up: bool,
    ) -> Progress {
        loop {
            let step = match &self.state {
                State::Silent { .. } => self.open(shared),
                State::Strange { .. } => self.greet(shared, scratch),
                State::Known { connection, link } => {
                    let (connection, link) = (Arc::clone(connection), Arc::clone(link));
                    link.pipe.go_on(&connection);
                    self.listen(shared, &connection, &link, scratch)
                }
                State::Leaving(connection) => match connection.socket().read(scratch) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read.map(|_| Step::Again),
                },
                State::Ended => return Progress::Over,
            };
            match step {
                Ok(Step::Again) => {}
                // Nothing tells when somebody who has hung up can be read again.
                Ok(Step::Pause) if has_hung_up => return Progress::Over,
                Ok(Step::Rest | Step::Pause) => return Progress::Open,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Over,
            }
        }
    }

    /// Looks at the first bytes.
    fn open(&mut self, shared: &Shared) -> io::Result<Step> {
        let State::Silent { socket, .. } = &self.state else { return Ok(Step::Again) };
        let mut first = [0; FIRST_BYTES];
        // They come together, or from somebody who is up to something.
        if socket.peek(&mut first)? < FIRST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let opening = shared.open(first);
        let State::Silent { socket, watch, stranger } = mem::replace(&mut self.state, State::Ended)
        else {
            return Ok(Step::Again);
        };
        let connection = match &opening {
            Opening::Encrypted(acceptor) => {
                let session = gabion_tls::Session::begin(acceptor.connection()?);
                Connection::encrypted(socket, session)
            }
            Opening::Plain | Opening::Refused(_) => Connection::plain(socket),
        };
        let connection = Arc::new(connection.watched(watch));
        match opening {
            Opening::Refused(refusal) => {
                self.leave_with(&connection, FrameKind::Refusal, &refusal.encode());
            }
            _ => self.state = State::Strange { connection, _stranger: stranger },
        }
        Ok(Step::Again)
    }

    /// Agrees on keys, and looks at the first frame.
    fn greet(&mut self, shared: &Shared, scratch: &mut [u8]) -> io::Result<Step> {
        let State::Strange { connection, .. } = &self.state else { return Ok(Step::Again) };
        let connection = Arc::clone(connection);
        let count = match (&*connection).read(scratch) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // The client is told why there are no keys, and may still have to read that.
                self.leave(&connection);
                return Ok(Step::Again);
            }
            read => read?,
        };
        let mut bytes = &scratch[..count];
        let Some((header, payload)) = self.assembly.take(&mut bytes, FIRST_BYTES_MAX)? else {
            return Ok(Step::Again);
        };
        if !bytes.is_empty() {
            return Err(io::Error::other("something follows before there is an answer"));
        }
        let encryption = connection.encryption();
        let holder = encryption.map(|session| session.holder().map_err(io::Error::other));
        let peer = Peer {
            address: self.address,
            is_encrypted: encryption.is_some(),
            holder: holder.transpose()?.flatten(),
        };
        match shared.answer(peer, &header, &payload) {
            Answer::Last(kind, payload) => self.leave_with(&connection, kind, &payload),
            Answer::Session(link, received) => {
                // Whatever has come on the connection before is taken first, to its end.
                link.pipe.close();
                let mut reading = link.reading.lock();
                *reading = self.number;
                // While nobody else can: of two connections the later one has both directions.
                shared.welcome(&link, &connection, received)?;
                link.load.is_read_from(&connection);
                drop(reading);
                self.deadline = None;
                self.state = State::Known { connection, link };
            }
        }
        Ok(Step::Again)
    }

    fn leave_with(&mut self, connection: &Arc<Connection>, kind: FrameKind, payload: &[u8]) {
        // Who does not hear it sees that the connection closes.
        let _ = answer_with(connection, kind, payload);
        self.leave(connection);
    }

    fn leave(&mut self, connection: &Arc<Connection>) {
        connection.finish();
        self.deadline = Some(Instant::now() + LEAVING_PATIENCE);
        self.state = State::Leaving(Arc::clone(connection));
    }

    /// Takes messages of a session.
    fn listen(
        &mut self,
        shared: &Shared,
        connection: &Connection,
        link: &Arc<Link>,
        scratch: &mut [u8],
    ) -> io::Result<Step> {
        let reading = link.reading.lock();
        let mut left = TURN_BYTES;
        while *reading == self.number && !link.session.is_over() {
            if link.load.is_to_pause() {
                return Ok(Step::Pause);
            }
            if left == 0 {
                // Whatever is read already is told of by nobody else.
                connection.want(WRITABLE);
                return Ok(Step::Rest);
            }
            let count = (&*connection).read(scratch)?;
            if count == 0 {
                break;
            }
            left = left.saturating_sub(count);
            *link.heard.lock() = Instant::now();
            let mut bytes = &scratch[..count];
            shared.together(|| {
                while let Some((header, payload)) =
                    self.assembly.take(&mut bytes, PAYLOAD_BYTES_MAX)?
                {
                    take_message(shared, link, &header, payload)?;
                }
                Ok::<_, io::Error>(())
            })?;
            if count < scratch.len() && connection.encryption().is_none() {
                // That was all: it is told when there is more.
                return Ok(Step::Rest);
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// The connection ends here.
    pub(super) fn end(mut self) {
        match mem::replace(&mut self.state, State::Ended) {
            State::Silent { socket, watch, .. } => watch.end(&socket),
            State::Strange { connection, .. } | State::Leaving(connection) => connection.end(),
            State::Known { connection, link } => {
                link.pipe.detach(&connection);
                connection.end();
            }
            State::Ended => {}
        }
    }
}

/// What a step has come to.
enum Step {
    /// There may be another one at once.
    Again,
    /// Something has to happen before.
    Rest,
    /// Others have to be done with what was read.
    Pause,
}

/// Takes one message of a session; fails if nothing more is to be taken.
fn take_message(
    shared: &Shared,
    link: &Arc<Link>,
    header: &Header,
    payload: Vec<u8>,
) -> io::Result<()> {
    let Some(payload) = link.pipe.accept(header, payload)? else { return Ok(()) };
    let length = payload.len();
    let complain = |what: String| {
        eprintln!("gabion: the client {}: {what}", link.session.name());
        Err(io::Error::other(what))
    };
    match ToServer::decode(&payload) {
        Ok(ToServer::Goodbye) => {
            shared.left(link);
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        Ok(ToServer::Ping) => {
            // In this order: what had arrived before confirms the session.
            let received = link.pipe.received();
            if shared.is_certain() {
                link.pipe.send(ToClient::Pong { received, now: shared.served.now() }.encode());
            }
            Ok(())
        }
        Ok(ToServer::Call { id, .. }) if !link.load.asked(id, length) => {
            complain(format!("two calls have the number {}", id.0))
        }
        Ok(ToServer::Change(change)) if !link.load.changed(change.number, length) => {
            complain(format!("change {} is not the next one", change.number.0))
        }
        Ok(message) => {
            let is_little = match &message {
                ToServer::Call { .. } | ToServer::Change(_) => true,
                ToServer::Done { .. } => link.load.said_again(length),
                _ => link.load.noted(length, link.session.is_behind()),
            };
            if !is_little {
                shared.give_up(link, "too much waits for its turn");
                return complain("too much waits for its turn".to_owned());
            }
            shared.receive(&link.session, message);
            Ok(())
        }
        Err(error) => complain(error.to_string()),
    }
}
