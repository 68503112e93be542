//! The server's side of the handshake, without sockets.
//!
//! ```text
//!   ClientFlags -> OptionHead -> OptionData -> OptionHead -> ... -> Go(session) | End
//!                            \-> Skip ------/
//! ```
//!
//! The machine says how many bytes it needs next ([`Handshake::needs`], never more than
//! [`OPTION_BYTES_MAX`]) and is given exactly those. So nothing of the transmission that follows
//! the handshake is ever taken for a part of it.
//!
//! The one thing that waits for a disk is the claim of an epoch, before the answer to `GO`.
//!
//! Each `SET_META_CONTEXT` replaces the choice before it; it counts only for the export that was
//! named in it.

use std::sync::Arc;

use super::entry::{Entry, Intent, enter};
use super::export::{BLOCK_SIZES, Export, Exports, Permission, Replies};
use crate::medium::Grant;
use crate::wire::name::split;
use crate::wire::option::{
    ClientOption, Information, MetaQuery, OPTION_BYTES, OptionHead, context_data, kind, put_reply,
    reply, server_data,
};
use crate::wire::{
    BASE_ALLOCATION, EXPORT_NAME_PADDING, GREETING_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC,
    OPTION_SKIP_BYTES_MAX, OPTIONS_MAX, handshake_flag,
};

/// The number of `base:allocation` in replies.
pub const ALLOCATION_ID: u32 = 1;

/// What a client and a server have agreed on.
#[derive(Clone)]
pub struct Session {
    /// What the client uses.
    pub export: Arc<Export>,
    /// What people call it.
    pub client: Arc<str>,
    /// What it may do there.
    pub permission: Permission,
    /// What its writes are worth to a medium.
    pub grant: Grant,
    /// How it is answered.
    pub replies: Replies,
    /// Whether it may ask for the status of blocks.
    pub contexts: Contexts,
}

/// The metadata contexts in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contexts {
    /// None.
    None,
    /// `base:allocation`.
    Allocation,
}

/// What happens next.
pub enum Step {
    /// More bytes are needed.
    More,
    /// All that follows is encrypted, after what was to be sent has been sent.
    StartTls,
    /// The transmission begins.
    Go(Session),
    /// The connection ends, after what was to be sent has been sent.
    End(&'static str),
}

/// Whether the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// It is not, and cannot be.
    Unavailable,
    /// It must be before anything else.
    Required,
    /// It is.
    Active,
}

/// Whether new clients are welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// They are.
    Open,
    /// The server is about to end.
    Closing,
}

enum State {
    ClientFlags,
    OptionHead,
    OptionData(OptionHead),
    Skip { kind: u32, left: u32 },
}

/// A handshake in progress.
pub struct Handshake<'a> {
    exports: &'a Exports,
    client: Arc<str>,
    state: State,
    options: usize,
    pads_export_name: bool,
    encryption: Encryption,
    replies: Replies,
    contexts: Option<(String, Contexts)>,
}

impl<'a> Handshake<'a> {
    /// Begins one with `client`, as people call it; the greeting is appended to `out`.
    pub fn new(
        exports: &'a Exports,
        client: Arc<str>,
        encryption: Encryption,
        out: &mut Vec<u8>,
    ) -> Self {
        out.extend(GREETING_MAGIC.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        out.extend(flags.to_be_bytes());
        Self {
            exports,
            client,
            state: State::ClientFlags,
            options: 0,
            pads_export_name: true,
            encryption,
            replies: Replies::Simple,
            contexts: None,
        }
    }

    /// How many bytes are needed next.
    pub fn needs(&self) -> usize {
        match &self.state {
            State::ClientFlags => 4,
            State::OptionHead => OPTION_BYTES,
            State::OptionData(head) => head.length as usize,
            State::Skip { left, .. } => (*left).min(OPTION_BYTES_MAX) as usize,
        }
    }

    /// Takes exactly as many bytes as are needed, and appends to `out` what is to be sent.
    pub fn take(&mut self, bytes: &[u8], welcome: Welcome, out: &mut Vec<u8>) -> Step {
        assert_eq!(bytes.len(), self.needs(), "the bytes that are needed");
        match std::mem::replace(&mut self.state, State::OptionHead) {
            State::ClientFlags => self.client_flags(bytes),
            State::OptionHead => {
                let Some(head) = bytes.try_into().ok().map(OptionHead::decode) else {
                    return Step::End("an option is too short");
                };
                match head {
                    Ok(head) => self.option_head(head, welcome, out),
                    Err(_) => Step::End("what was sent is no option"),
                }
            }
            State::OptionData(head) => self.option(head.kind, bytes, welcome, out),
            State::Skip { kind, left } => {
                let left = left - bytes.len() as u32;
                if left > 0 {
                    self.state = State::Skip { kind, left };
                } else {
                    put_reply(out, kind, reply::ERR_TOO_BIG, b"the option is too long");
                }
                Step::More
            }
        }
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Step {
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        let flags = bytes.try_into().map_or(u32::MAX, u32::from_be_bytes);
        if flags & !known != 0 {
            return Step::End("the client sets flags that are not known");
        }
        self.pads_export_name = flags & u32::from(handshake_flag::NO_ZEROES) == 0;
        Step::More
    }

    fn option_head(&mut self, head: OptionHead, welcome: Welcome, out: &mut Vec<u8>) -> Step {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Step::End("the client haggles without end");
        }
        if head.length == 0 {
            return self.option(head.kind, &[], welcome, out);
        }
        if head.length <= OPTION_BYTES_MAX {
            self.state = State::OptionData(head);
            return Step::More;
        }
        // This one has no reply by which it could be refused.
        if head.length > OPTION_SKIP_BYTES_MAX || head.kind == kind::EXPORT_NAME {
            return Step::End("an option is far too long");
        }
        self.state = State::Skip { kind: head.kind, left: head.length };
        Step::More
    }

    fn option(&mut self, number: u32, data: &[u8], welcome: Welcome, out: &mut Vec<u8>) -> Step {
        let allowed = matches!(number, kind::STARTTLS | kind::ABORT);
        if self.encryption == Encryption::Required && !allowed {
            if number == kind::EXPORT_NAME {
                return Step::End("the client does not encrypt");
            }
            put_reply(out, number, reply::ERR_TLS_REQUIRED, b"only with encryption");
            return Step::More;
        }
        let option = match ClientOption::decode(number, data) {
            Ok(option) => option,
            Err(_) if number == kind::EXPORT_NAME => {
                return Step::End("an export has no such name");
            }
            Err(fault) => {
                if number == kind::SET_META_CONTEXT {
                    self.contexts = None;
                }
                put_reply(out, number, fault.reply, fault.reason.as_bytes());
                return Step::More;
            }
        };
        if welcome == Welcome::Closing && option != ClientOption::Abort {
            if matches!(option, ClientOption::ExportName(_)) {
                return Step::End("the server is about to end");
            }
            put_reply(out, number, reply::ERR_SHUTDOWN, b"the server is about to end");
            return Step::More;
        }
        match option {
            ClientOption::ExportName(name) => return self.export_name(name, out),
            ClientOption::Abort => {
                put_reply(out, number, reply::ACK, &[]);
                return Step::End("the client goes");
            }
            ClientOption::List => {
                for name in self.exports.names() {
                    put_reply(out, number, reply::SERVER, &server_data(name));
                }
                put_reply(out, number, reply::ACK, &[]);
            }
            ClientOption::StartTls => return self.start_tls(out),
            ClientOption::Info(name) => {
                self.describe(number, name, Intent::Look, out);
            }
            ClientOption::Go(name) => {
                if let Some(entry) = self.describe(number, name, Intent::Use, out) {
                    return Step::Go(self.session(entry, name));
                }
            }
            ClientOption::StructuredReply => {
                self.replies = Replies::Structured;
                put_reply(out, number, reply::ACK, &[]);
            }
            ClientOption::ListMetaContext(query) => self.list_contexts(&query, out),
            ClientOption::SetMetaContext(query) => self.set_contexts(&query, out),
            ClientOption::Unknown => {
                put_reply(out, number, reply::ERR_UNSUPPORTED, b"the option is not known");
            }
        }
        Step::More
    }

    fn start_tls(&mut self, out: &mut Vec<u8>) -> Step {
        let (reply, reason): (_, &[u8]) = match self.encryption {
            Encryption::Unavailable => (reply::ERR_POLICY, b"encryption is not available here"),
            Encryption::Active => (reply::ERR_INVALID, b"the connection is encrypted already"),
            Encryption::Required => {
                put_reply(out, kind::STARTTLS, reply::ACK, &[]);
                self.encryption = Encryption::Active;
                return Step::StartTls;
            }
        };
        put_reply(out, kind::STARTTLS, reply, reason);
        Step::More
    }

    fn export_name(&self, name: &str, out: &mut Vec<u8>) -> Step {
        let Ok(entry) = enter(self.exports, name, Intent::Use, &self.client) else {
            return Step::End("the client may not use such an export");
        };
        let facts = entry.export.facts(self.replies, entry.permission);
        out.extend(facts.bytes.to_be_bytes());
        out.extend(facts.flags.to_be_bytes());
        if self.pads_export_name {
            out.extend([0; EXPORT_NAME_PADDING]);
        }
        Step::Go(self.session(entry, name))
    }

    /// Answers `INFO` and `GO`; gives the way in if there is one.
    fn describe(
        &self,
        number: u32,
        name: &str,
        intent: Intent,
        out: &mut Vec<u8>,
    ) -> Option<Entry> {
        let entry = match enter(self.exports, name, intent, &self.client) {
            Ok(entry) => entry,
            Err(no) => {
                put_reply(out, number, no.reply, no.reason.as_bytes());
                return None;
            }
        };
        let facts = Information::Export(entry.export.facts(self.replies, entry.permission));
        put_reply(out, number, reply::INFO, &facts.encode());
        let sizes = Information::BlockSize(BLOCK_SIZES);
        put_reply(out, number, reply::INFO, &sizes.encode());
        if let Some(text) = entry.description() {
            put_reply(out, number, reply::INFO, &Information::Description(&text).encode());
        }
        put_reply(out, number, reply::ACK, &[]);
        Some(entry)
    }

    fn session(&self, entry: Entry, name: &str) -> Session {
        let chosen = self.contexts.as_ref().filter(|(for_name, _)| for_name == name);
        let contexts = chosen.map_or(Contexts::None, |(_, contexts)| *contexts);
        let Entry { export, permission, grant } = entry;
        let client = Arc::clone(&self.client);
        Session { export, client, permission, grant, replies: self.replies, contexts }
    }

    fn list_contexts(&self, query: &MetaQuery<'_>, out: &mut Vec<u8>) {
        let number = kind::LIST_META_CONTEXT;
        if !self.may_query(number, query, out) {
            return;
        }
        let wanted = |query: &&str| matches!(*query, "base:" | BASE_ALLOCATION);
        if query.queries.is_empty() || query.queries.iter().any(wanted) {
            put_reply(out, number, reply::META_CONTEXT, &context_data(0, BASE_ALLOCATION));
        }
        put_reply(out, number, reply::ACK, &[]);
    }

    fn set_contexts(&mut self, query: &MetaQuery<'_>, out: &mut Vec<u8>) {
        let number = kind::SET_META_CONTEXT;
        self.contexts = None;
        if !self.may_query(number, query, out) {
            return;
        }
        if query.queries.contains(&BASE_ALLOCATION) {
            self.contexts = Some((query.export.to_owned(), Contexts::Allocation));
            let data = context_data(ALLOCATION_ID, BASE_ALLOCATION);
            put_reply(out, number, reply::META_CONTEXT, &data);
        }
        put_reply(out, number, reply::ACK, &[]);
    }

    fn may_query(&self, number: u32, query: &MetaQuery<'_>, out: &mut Vec<u8>) -> bool {
        if self.replies != Replies::Structured {
            let reason = b"structured replies must be agreed on first";
            put_reply(out, number, reply::ERR_INVALID, reason);
            return false;
        }
        if self.exports.find(split(query.export).0).is_none() {
            put_reply(out, number, reply::ERR_UNKNOWN, b"there is no such export");
            return false;
        }
        true
    }
}
