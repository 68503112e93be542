//! A client of the link that says what no good client says, or of which there are many.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gabion_base::ids::Ino;
use gabion_link::message::{
    Answer, Call, CallId, ChangeNumber, Hello, Refusal, SessionId, ToClient, ToServer, Welcome,
};
use gabion_link::wire::{FrameKind, HEADER_BYTES, Header, encode_frame};
use gabion_map::FileId;
use gabion_tls::Session;
use gabion_tls::mutual::Dialer;

/// How long a server may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A call by the superuser, which need not wait for anything.
pub fn call_of(id: CallId, call: Call) -> ToServer {
    let caller = gabion_fs::Caller::superuser();
    ToServer::Call { id, caller, call, after: ChangeNumber(0) }
}

/// A connection, perhaps with a session.
pub struct Raw {
    pub socket: TcpStream,
    session: Option<Session>,
    pub root: FileId,
    /// The number of its session, with the secret.
    pub known_as: (SessionId, u64),
    sent: u64,
    received: u64,
}

impl Raw {
    /// Connects to HOST:PORT, and says nothing yet.
    pub fn connect(address: &str, dialer: Option<&Dialer>) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = dialer.map(|dialer| {
            let keys = dialer.connection().unwrap();
            Session::start(keys, &socket, Instant::now() + PATIENCE).unwrap()
        });
        let root = FileId::new(gabion_base::ids::SubvolId(0), Ino(0));
        let known_as = (SessionId(0), 0);
        Self { socket, session, root, known_as, sent: 0, received: 0 }
    }

    /// The same, with a session.
    pub fn greeted(address: &str, dialer: Option<&Dialer>, name: &str) -> Self {
        Self::connect(address, dialer).greet(name).unwrap()
    }

    /// Begins a session.
    pub fn greet(mut self, name: &str) -> io::Result<Self> {
        let welcome = self.hello(None, name)?.unwrap();
        self.root = FileId::new(welcome.subvol, Ino(1));
        self.known_as = (welcome.session, welcome.secret);
        Ok(self)
    }

    /// Says hello, in a session that there may have been before.
    pub fn hello(
        &self,
        session: Option<(SessionId, u64)>,
        name: &str,
    ) -> io::Result<Result<Welcome, Refusal>> {
        let (name, path) = (name.to_owned(), Vec::new());
        let hello = Hello { session, start: 0, received: 0, name, path };
        self.first(FrameKind::Hello, &hello.encode())?;
        let (header, payload) = self.frame()?;
        Ok(match header.kind {
            FrameKind::Welcome => Ok(Welcome::decode(&payload).unwrap()),
            _ => Err(Refusal::decode(&payload).unwrap()),
        })
    }

    /// Writes a first frame.
    pub fn first(&self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        self.write(&encode_frame(&Header::greeting(kind, payload), payload))
    }

    /// The certificate of the server's authority.
    pub fn authority(&self) -> Vec<u8> {
        self.session.as_ref().unwrap().shown_authority().unwrap()
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.session {
            Some(session) => session.write_parts(&self.socket, &mut [io::IoSlice::new(bytes)]),
            None => (&self.socket).write_all(bytes),
        }
    }

    fn read(&self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let count = match &self.session {
                Some(session) => session.read(&self.socket, into)?,
                None => (&self.socket).read(into)?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            into = &mut into[count..];
        }
        Ok(())
    }

    pub fn frame(&self) -> io::Result<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        self.read(&mut head)?;
        let header = Header::decode(&head).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.read(&mut payload)?;
        Ok((header, payload))
    }

    /// The next message as it goes over the wire.
    pub fn message(&mut self, message: &ToServer) -> Vec<u8> {
        self.sent += 1;
        let payload = message.encode();
        encode_frame(&Header::message(self.sent, self.received, &payload), &payload)
    }

    pub fn say(&mut self, message: &ToServer) -> io::Result<()> {
        let frame = self.message(message);
        self.write(&frame)
    }

    /// Asks and waits for the answer. Revocations are answered on the way.
    pub fn ask(&mut self, call: Call) -> Result<Answer, gabion_fs::Error> {
        let id = CallId(self.sent + 1);
        self.say(&call_of(id, call)).unwrap();
        loop {
            let (header, payload) = self.frame().unwrap();
            assert_eq!(header.kind, FrameKind::Message);
            self.received = header.number;
            match ToClient::decode(&payload).unwrap() {
                ToClient::Answer { id: of, result, .. } if of == id => return result,
                ToClient::Revoke { id, .. } => self.say(&ToServer::Released(vec![id])).unwrap(),
                _ => {}
            }
        }
    }
}
