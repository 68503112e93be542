//! The client's side of the handshake, and what came out of it.
//!
//! Steps: 1. greeting and flags; 2. encrypt if the URI says so; 3. ask for structured replies;
//! 4. `GO`, with the block sizes; or `EXPORT_NAME` if the server does not know `GO`.

use std::io::{self, IoSlice, Read};
use std::time::Instant;

use gabion_base::BLOCK_SIZE;
use gabion_base::codec::DecodeError;
use gabion_tls::client_connection;

use super::Epoch;
use crate::address::{Uri, UriTls};
use crate::server::Replies;
use crate::stream::Stream;
use crate::wire::fields::Fields;
use crate::wire::name::{Claim, Medium};
use crate::wire::option::{
    ExportFacts, Information, OPTION_REPLY_BYTES, OptionReplyHead, go_data, info, kind, option,
    reply,
};
use crate::wire::{
    EXPORT_NAME_PADDING, GREETING_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC, OPTIONS_MAX,
    PAYLOAD_BYTES_MAX, export_flag, handshake_flag,
};

/// What a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// Length in bytes.
    pub(super) bytes: u64,
    /// Bits of [`export_flag`].
    pub(super) flags: u16,
    /// Bytes of data in one request, at least a block if the export is usable.
    pub(super) maximum: u32,
    /// How it answers.
    pub(super) replies: Replies,
    /// What it tells about the medium, if there is one.
    pub(super) medium: Option<Medium>,
}

/// Why there is no connection.
pub(super) enum NoConnection {
    /// It may be possible another time.
    Failed(io::Error),
    /// The server does not let this client write, in its words, and never will.
    Fenced(String),
}

impl From<io::Error> for NoConnection {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Terms {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Why this cannot be a disk.
    pub(super) fn unusable(&self, epoch: Option<&Epoch>) -> Option<&'static str> {
        if self.maximum < BLOCK_SIZE as u32 {
            return Some("it does not take requests of 4096 bytes");
        }
        let durable = self.has(export_flag::SEND_FLUSH) && self.has(export_flag::SEND_FUA);
        if !durable && !self.has(export_flag::READ_ONLY) {
            return Some("it cannot make writes durable: it knows no FLUSH or no FUA");
        }
        let holds = |epoch: &Epoch| {
            let medium = self.medium.as_ref();
            medium.is_some_and(|m| m.epoch == epoch.number && m.holder == epoch.holder)
        };
        if epoch.is_some_and(|epoch| !holds(epoch)) {
            return Some("it does not confirm the epoch: it is no medium of gabion target's");
        }
        None
    }

    /// Why this cannot stand in for what was connected `before`.
    pub(super) fn is_less_than(&self, before: &Self) -> Option<&'static str> {
        if self.bytes < before.bytes {
            return Some("the export is shorter than before");
        }
        let needed = before.flags & !(export_flag::SEND_DF | export_flag::CAN_MULTI_CONN);
        if self.flags & needed != needed || self.maximum < before.maximum {
            return Some("the export can do less than before");
        }
        let identity = |terms: &Self| terms.medium.as_ref().map(|medium| medium.uuid);
        if identity(self) != identity(before) {
            return Some("the export is another medium than before");
        }
        if self.has(export_flag::READ_ONLY) && !before.has(export_flag::READ_ONLY) {
            return Some("the export has become read-only");
        }
        None
    }
}

pub(super) fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server breaks the protocol: {what}"))
}

pub(super) fn undecodable(error: DecodeError) -> io::Error {
    strange(&error.to_string())
}

fn refused(head: &OptionReplyHead, words: &[u8]) -> io::Error {
    let reason = match head.reply {
        reply::ERR_UNKNOWN => "there is no such export",
        reply::ERR_TLS_REQUIRED => "it wants encryption",
        reply::ERR_POLICY => "it is not allowed",
        reply::ERR_PLATFORM => "it cannot do that",
        reply::ERR_SHUTDOWN => "it is about to end",
        reply::ERR_BLOCK_SIZE_REQUIRED => "it does not accept this client's block sizes",
        _ => "it does not accept the option",
    };
    let words = String::from_utf8_lossy(words);
    let text = match &*words {
        words if words.is_empty() || words == reason => format!("the server refuses: {reason}"),
        words => format!("the server refuses: {reason} ({words})"),
    };
    io::Error::other(text)
}

/// Agrees with the server on an export. How long each step may take is the stream's patience.
pub(super) fn agree(
    stream: &Stream,
    uri: &Uri,
    claim: Option<Claim>,
    deadline: Instant,
) -> Result<Terms, NoConnection> {
    let mut greeting = [0; 18];
    read(stream, &mut greeting)?;
    let mut fields = Fields::new(&greeting);
    let magics = (fields.u64().map_err(undecodable)?, fields.u64().map_err(undecodable)?);
    let offered = fields.u16().map_err(undecodable)?;
    if magics.0 != GREETING_MAGIC {
        return Err(strange("this is no NBD server").into());
    }
    if magics.1 != OPTION_MAGIC || offered & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(strange("it is too old, it knows no newstyle-fixed handshake").into());
    }
    let flags = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    send(stream, &u32::from(flags).to_be_bytes())?;
    let mut words = Vec::new();
    if let Some(tls) = &uri.tls {
        start_tls(stream, uri, tls, deadline, &mut words)?;
    }
    send(stream, &option(kind::STRUCTURED_REPLY, &[]))?;
    let head = reply_to(stream, kind::STRUCTURED_REPLY, &mut words)?;
    let replies = match head.reply {
        reply::ACK => Replies::Structured,
        // Whatever follows would be refused likewise.
        reply::ERR_TLS_REQUIRED => return Err(refused(&head, &words).into()),
        number if number & reply::ERROR != 0 => Replies::Simple,
        _ => return Err(strange("it answers an option that was not sent").into()),
    };
    let export = &uri.export;
    let name = claim.as_ref().map_or_else(|| export.clone(), |claim| claim.name(export));
    let wishes = [info::BLOCK_SIZE, info::DESCRIPTION];
    send(stream, &option(kind::GO, &go_data(&name, &wishes)))?;
    let (mut facts, mut maximum, mut medium) = (None, PAYLOAD_BYTES_MAX, None);
    for _ in 0..OPTIONS_MAX {
        let head = reply_to(stream, kind::GO, &mut words)?;
        match head.reply {
            reply::INFO => match Information::decode(&words).map_err(undecodable)? {
                Information::Export(export) => facts = Some(export),
                Information::BlockSize(sizes) if sizes.minimum as usize > BLOCK_SIZE => maximum = 0,
                Information::BlockSize(sizes) => maximum = sizes.maximum.min(PAYLOAD_BYTES_MAX),
                Information::Description(text) => medium = Medium::of_description(text),
                Information::Other => {}
            },
            reply::ACK => {
                let facts = facts.ok_or_else(|| strange("it does not say how long it is"))?;
                let ExportFacts { bytes, flags } = facts;
                return Ok(Terms { bytes, flags, maximum, replies, medium });
            }
            reply::ERR_UNSUPPORTED => return Ok(export_name(stream, &name, flags, replies)?),
            reply::ERR_POLICY if claim.is_some() => {
                return Err(NoConnection::Fenced(String::from_utf8_lossy(&words).into_owned()));
            }
            number if number & reply::ERROR != 0 => return Err(refused(&head, &words).into()),
            _ => return Err(strange("it answers an option that was not sent").into()),
        }
    }
    Err(strange("it answers an option without end").into())
}

/// Encrypts all that follows, or fails: there is no way back to plain bytes.
fn start_tls(
    stream: &Stream,
    uri: &Uri,
    tls: &UriTls,
    deadline: Instant,
    words: &mut Vec<u8>,
) -> io::Result<()> {
    let Some(folder) = &tls.certificates else {
        return Err(io::Error::other("?tls-certificates=DIR must name the folder of certificates"));
    };
    let connection = client_connection(folder, uri.tls_name())?;
    send(stream, &option(kind::STARTTLS, &[]))?;
    let head = reply_to(stream, kind::STARTTLS, words)?;
    match head.reply {
        reply::ACK => stream.start_tls(connection, deadline),
        _ => Err(io::Error::other("the server does not encrypt")),
    }
}

/// What old servers understand: they end the connection instead of refusing.
fn export_name(stream: &Stream, export: &str, flags: u16, replies: Replies) -> io::Result<Terms> {
    send(stream, &option(kind::EXPORT_NAME, export.as_bytes()))?;
    let mut answer = [0; 10];
    read(stream, &mut answer)?;
    let mut fields = Fields::new(&answer);
    let bytes = fields.u64().map_err(undecodable)?;
    let abilities = fields.u16().map_err(undecodable)?;
    if flags & handshake_flag::NO_ZEROES == 0 {
        read(stream, &mut [0; EXPORT_NAME_PADDING])?;
    }
    Ok(Terms { bytes, flags: abilities, maximum: PAYLOAD_BYTES_MAX, replies, medium: None })
}

fn reply_to(stream: &Stream, kind: u32, data: &mut Vec<u8>) -> io::Result<OptionReplyHead> {
    let mut head = [0; OPTION_REPLY_BYTES];
    read(stream, &mut head)?;
    let head = OptionReplyHead::decode(&head).map_err(undecodable)?;
    if head.option != kind {
        return Err(strange("it answers an option that was not sent"));
    }
    if head.length > OPTION_BYTES_MAX {
        return Err(strange("its answer to an option is too long"));
    }
    data.resize(head.length as usize, 0);
    read(stream, data)?;
    Ok(head)
}

fn read(mut stream: &Stream, into: &mut [u8]) -> io::Result<()> {
    stream.read_exact(into)
}

fn send(stream: &Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_parts(&mut [IoSlice::new(bytes)])
}
