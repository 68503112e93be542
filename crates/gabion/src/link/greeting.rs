//! Who has connected, and whether he gets in.
//!
//! ```text
//!   first bytes    of TLS, if there is an authority  -->  agree on keys
//!                  of a frame                        -->  if that is allowed
//!   first frame    hello, with a certificate that counts, or without encryption  -->  session
//!                  application, encrypted            -->  admission, and the end
//! ```
//!
//! The first bytes tell which it is: a record of TLS begins with 22, 3, and 1 to 4; a first frame
//! with its length, whose third byte is 0.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use gabion_host::clock;
use gabion_link::join::Application;
use gabion_link::message::{Hello, Refusal, RefusalReason};
use gabion_link::wire::{FIRST_BYTES_MAX, FrameKind, Header, encode_frame};
use gabion_tls::authority::Holder;
use gabion_tls::mutual::Acceptor;

use super::connection::Connection;
use super::server::{Link, Shared};
use crate::exports;
use crate::trust::Trust;

/// As many bytes as it takes to see whether somebody wants to encrypt.
pub(super) const FIRST_BYTES: usize = 3;
const _: () = assert!(FIRST_BYTES_MAX < 1 << 16, "the third byte of a first frame is 0");

/// Where a connection comes from.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) is_encrypted: bool,
    /// Whose certificate it has shown.
    pub(super) holder: Option<Holder>,
}

impl Peer {
    /// As exports know it.
    pub(super) fn known(&self) -> exports::Peer {
        let certificate = self.holder.as_ref().map(|holder| holder.name.clone());
        exports::Peer { address: self.address.ip(), certificate }
    }
}

/// How to go on after the first bytes.
pub(super) enum Opening {
    Encrypted(Acceptor),
    Plain,
    /// Nobody here speaks like that.
    Refused(Refusal),
}

/// What follows from a first frame.
pub(super) enum Answer {
    /// This frame, and the end of the connection.
    Last(FrameKind, Vec<u8>),
    /// The session goes on, of which so many messages have arrived at the client.
    Session(Arc<Link>, u64),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Last(FrameKind::Refusal, refusal.encode())
    }
}

pub(super) fn refusal(reason: RefusalReason, text: impl Into<String>) -> Refusal {
    Refusal { reason, text: text.into() }
}

/// Writes the first, and perhaps the last, frame to a client.
pub(super) fn answer_with(
    connection: &Connection,
    kind: FrameKind,
    payload: &[u8],
) -> io::Result<()> {
    let frame = encode_frame(&Header::greeting(kind, payload), payload);
    connection.write_parts(&mut [IoSlice::new(&frame)])
}

impl Shared {
    /// What the first bytes of a connection want.
    pub(super) fn open(&self, first: [u8; FIRST_BYTES]) -> Opening {
        let acceptor = self.options.trust.acceptor();
        match (first, acceptor) {
            ([22, 3, 1..=4], Some(acceptor)) => Opening::Encrypted(acceptor),
            ([22, 3, 1..=4], None) => {
                let text = "this server does not encrypt";
                Opening::Refused(refusal(RefusalReason::Other, text))
            }
            _ if self.options.plain => Opening::Plain,
            _ => Opening::Refused(refusal(
                RefusalReason::Unauthorized,
                "only machines that have joined get in",
            )),
        }
    }

    /// What follows from a client's first frame.
    pub(super) fn answer(&self, peer: Peer, header: &Header, payload: &[u8]) -> Answer {
        let answered = match header.kind {
            _ if !self.is_certain() => Err(refusal(
                RefusalReason::Busy,
                "it is not certain that this server has the filesystem still",
            )),
            FrameKind::Hello => self.answer_hello(peer, payload),
            FrameKind::Application => self.answer_application(&peer, payload),
            _ => Err(refusal(RefusalReason::Other, "a hello was due")),
        };
        answered.unwrap_or_else(Answer::from)
    }

    fn answer_hello(&self, peer: Peer, payload: &[u8]) -> Result<Answer, Refusal> {
        let hello = Hello::decode(payload).map_err(Refusal::from)?;
        if peer.is_encrypted && peer.holder.is_none() {
            let text = "this machine has no certificate: it has to be invited";
            return Err(refusal(RefusalReason::Unauthorized, text));
        }
        self.check(peer.holder.as_ref())?;
        let (link, received) = match hello.session {
            None => {
                let rights = self.admit(&peer.known(), &hello.path)?;
                (self.begin(hello.name, rights, peer.holder.clone(), peer.address)?, 0)
            }
            Some(session) => self.resume(session, &hello, &peer)?,
        };
        // Whoever takes a certificate back ends the sessions that he finds after that.
        if let Err(refusal) = self.check(peer.holder.as_ref()) {
            self.forget(&link);
            return Err(refusal);
        }
        Ok(Answer::Session(link, received))
    }

    /// Whether a certificate counts.
    fn check(&self, holder: Option<&Holder>) -> Result<(), Refusal> {
        match holder {
            Some(holder) if !self.options.trust.admits(holder) => {
                let text = format!(
                    "the certificate of {} was taken back: the machine has to be invited again",
                    holder.name
                );
                Err(refusal(RefusalReason::Unauthorized, text))
            }
            _ => Ok(()),
        }
    }

    fn answer_application(&self, peer: &Peer, payload: &[u8]) -> Result<Answer, Refusal> {
        let unauthorized = |text: String| refusal(RefusalReason::Unauthorized, text);
        let application = Application::decode(payload).map_err(Refusal::from)?;
        let Trust::Members(membership) = &*self.options.trust else {
            return Err(unauthorized("certificates are not made here".to_owned()));
        };
        if !peer.is_encrypted {
            return Err(unauthorized("a secret is not to be told without encryption".to_owned()));
        }
        let now = Instant::now();
        if !self.gate.may_try(peer.address.ip(), now) {
            let text = "too many invitations from there were not good: try again in a minute";
            return Err(refusal(RefusalReason::Busy, text));
        }
        let admitted = membership.admit(clock::now(), &application);
        match &admitted {
            Ok(_) => eprintln!("gabion: a machine has joined from {}", peer.address.ip()),
            Err(error) => eprintln!("gabion: {} was not let in: {error}", peer.address.ip()),
        }
        let admission = admitted.map_err(|error| {
            if error.is_wrong_secret() {
                self.gate.was_wrong(peer.address.ip(), now);
            }
            unauthorized(error.to_string())
        })?;
        Ok(Answer::Last(FrameKind::Admission, admission.encode()))
    }
}
