//! One client: its handshake, and then its requests ([`super::transmission`]).
//!
//! A client that takes no reply, or stops in the middle of something, for [`STALL`] is
//! disconnected, and so is one whose handshake takes longer than [`HANDSHAKE`]. Between requests it
//! may be silent for ever.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gabion_base::event::TargetEvent;
use gabion_tls::ServerTls;

use super::export::{Export, Exports, Permission};
use super::handshake::{Encryption, Handshake, Session, Step, Welcome};
use super::transmission::Transmission;
use crate::stream::Stream;

/// How long a client may stop in the middle of something.
const STALL: Duration = Duration::from_secs(30);
/// How long a client may haggle.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// A client of which administrators are told that it has come, and at the end that it is gone.
struct Told(Option<(Arc<Export>, Arc<str>, u64)>);

impl Told {
    fn begin(session: &Session) -> Self {
        if session.permission == Permission::ReadOnly {
            return Self(None);
        }
        let epoch = session.grant.epoch();
        let holder = match &session.export.medium {
            Some(medium) if epoch > 0 => medium.epoch().1,
            _ => String::new(),
        };
        let client = session.client.to_string();
        session.export.tell(TargetEvent::ClientConnected { client, epoch, holder });
        Self(Some((Arc::clone(&session.export), Arc::clone(&session.client), epoch)))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some((export, client, epoch)) = &self.0 {
            let (client, epoch) = (client.to_string(), *epoch);
            export.tell(TargetEvent::ClientLeft { client, epoch });
        }
    }
}

/// A client that is connected.
pub(super) struct Connection {
    stream: Stream,
    tls: Option<ServerTls>,
    closing: AtomicBool,
}

impl Connection {
    /// A client that must encrypt if there is `tls`.
    pub(super) fn new(stream: Stream, tls: Option<ServerTls>) -> Self {
        Self { stream, tls, closing: AtomicBool::new(false) }
    }

    /// No new requests: what is in flight is answered, then the connection ends.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.stream.shutdown(Shutdown::Read);
    }

    /// Ends the connection now, whatever is in flight.
    pub(super) fn abort(&self) {
        self.stream.shutdown(Shutdown::Both);
    }

    fn welcome(&self) -> Welcome {
        match self.closing.load(Ordering::Acquire) {
            true => Welcome::Closing,
            false => Welcome::Open,
        }
    }

    /// Serves the client to its end, on this thread and others.
    pub(super) fn serve(&self, exports: &Exports) {
        let session = self
            .stream
            .set_patience(Some(STALL), Some(STALL))
            .and_then(|()| self.handshake(exports));
        if let Ok(Some(session)) = session {
            let told = Told::begin(&session);
            Transmission::new(&self.stream, &self.closing, session).run();
            drop(told);
        }
        self.abort();
    }

    fn handshake(&self, exports: &Exports) -> io::Result<Option<Session>> {
        let deadline = Instant::now() + HANDSHAKE;
        let mut out = Vec::new();
        let encryption = match self.tls {
            Some(_) => Encryption::Required,
            None => Encryption::Unavailable,
        };
        let client = self.stream.peer().into();
        let mut handshake = Handshake::new(exports, client, encryption, &mut out);
        let mut bytes = Vec::new();
        loop {
            self.stream.write_parts(&mut [IoSlice::new(&out)])?;
            out.clear();
            // Bounded by the machine, which checks lengths before it needs them.
            bytes.resize(handshake.needs(), 0);
            let mut filled = 0;
            while filled < bytes.len() {
                if Instant::now() > deadline {
                    return Ok(None);
                }
                match (&self.stream).read(&mut bytes[filled..]) {
                    Ok(0) => return Ok(None),
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            let step = handshake.take(&bytes, self.welcome(), &mut out);
            if let Step::More = step {
                continue;
            }
            self.stream.write_parts(&mut [IoSlice::new(&out)])?;
            out.clear();
            match (step, &self.tls) {
                (Step::Go(session), _) => return Ok(Some(session)),
                (Step::StartTls, Some(tls)) => {
                    self.stream.start_tls(tls.connection()?, deadline)?;
                }
                _ => return Ok(None),
            }
        }
    }
}
