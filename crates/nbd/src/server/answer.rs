//! Answers, up to the bytes that are sent.
//!
//! | request               | simple replies        | structured replies                      |
//! |-----------------------|-----------------------|-----------------------------------------|
//! | a read                | simple, then the data | data; or a hole, if all of it is zeros  |
//! | block status          | (is not admitted)     | status                                  |
//! | anything else         | simple                | simple                                  |
//! | what has failed       | simple                | error, with words                       |
//!
//! Every answer is one message: a chunk that is the last of its reply.

use std::ops::Range;

use super::execute::{Outcome, Refusal, span};
use super::export::Replies;
use super::handshake::ALLOCATION_ID;
use super::pool::Buffer;
use crate::wire::reply;
use crate::wire::request::Request;

/// An answer to a request.
pub(super) struct Answer {
    head: Vec<u8>,
    /// Memory, and the part of it that is sent.
    data: Option<(Buffer, Range<usize>)>,
}

impl Answer {
    /// What a request is answered that was done, or was refused, or has failed.
    pub(super) fn new(request: &Request, done: Result<Outcome, Refusal>, replies: Replies) -> Self {
        let cookie = request.cookie;
        let structured = replies == Replies::Structured;
        match done {
            Ok(Outcome::Read(buffer)) => {
                let (_, _, within) = span(request);
                let range = within..within + request.length as usize;
                if !structured {
                    return Self::with_data(&reply::simple(None, cookie), buffer, range);
                }
                if is_zero(&buffer.bytes()[range.clone()]) {
                    return Self::plain(&reply::hole(cookie, request.offset, request.length));
                }
                let head = reply::data_head(cookie, request.offset, request.length);
                Self::with_data(&head, buffer, range)
            }
            Ok(Outcome::Status(descriptors)) => {
                Self::plain(&reply::status(cookie, ALLOCATION_ID, &descriptors))
            }
            Ok(Outcome::Done) => Self::plain(&reply::simple(None, cookie)),
            Err(refusal) if structured => {
                Self::plain(&reply::failure(cookie, refusal.code, &refusal.reason))
            }
            Err(refusal) => Self::plain(&reply::simple(Some(refusal.code), cookie)),
        }
    }

    fn plain(head: &[u8]) -> Self {
        Self { head: head.to_vec(), data: None }
    }

    fn with_data(head: &[u8], buffer: Buffer, range: Range<usize>) -> Self {
        Self { head: head.to_vec(), data: Some((buffer, range)) }
    }

    /// What is sent, in two pieces.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        let data = self.data.as_ref();
        [&self.head, data.map_or(&[], |(buffer, range)| &buffer.bytes()[range.clone()])]
    }
}

/// Whether all bytes are zero; compares with itself, which is as fast as copying.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}
