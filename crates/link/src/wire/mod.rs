//! How the values of [`message`](crate::message) look as bytes.
//!
//! ```text
//!   frame    = header { length, checksum, kind, version, 0.., number, received } payload
//!   payload  = hello | welcome | refusal | message           as the header's kind says
//!            | application | admission
//!   message  = tag u8, the fields of its kind side by side
//!   option   = 0 | 1, the value
//!   list     = count u32, the elements
//!   bytes    = length u32, the bytes                          texts are UTF-8
//! ```
//!
//! Rules:
//!
//! - Integers are little-endian and of fixed width; nothing is aligned or padded but the header.
//! - Every choice is a number from a table in these files; 0 is in none of them.
//! - A value has one spelling: what decodes is encoded to the same bytes again, but for reasons of
//!   a refusal that are not known here.
//! - No count or length is believed before it was compared with a limit that has a name here or
//!   with what is left of the frame. A decoder gives a value or a reason and never panics.
//! - The long part of a message stands at its end, so that encoding copies it once.
//!
//! A field that is longer than its limit is the sender's own mistake: `encode` panics.
//! [`Call::check`](crate::message::Call::check) finds those that users can bring about. Texts for
//! people are cut instead.
//!
//! Each structure is one table of its fields and their layouts, from which both directions are
//! made; `docs/link.md` shows the tables to other implementations.

mod answer;
mod call;
mod errand;
mod error;
mod fields;
mod frame;
mod hello;
mod join;
mod layout;
mod rules;

use gabion_base::codec::{DecodeError, Reader};

pub use error::{failure, is_failure, said};
pub use frame::{FrameKind, HEADER_BYTES, Header, WireError, encode_frame};

use crate::message::{Answer, ToClient, ToServer};
use layout::Layout;

/// The version of everything said here. In 1, clients made no changes by themselves; in 2, what was
/// not durable was lost with the server; in 3, clients saw no snapshots and no subvolumes; in 4,
/// nobody was told what a backup has to read.
pub const VERSION: u16 = 5;
/// The features without which a peer would misunderstand us: a bit each. There are none yet.
pub const FEATURES: u64 = 0;
/// The first bytes of a hello and of a welcome.
pub const MAGIC: [u8; 8] = *b"GABIONLK";

/// The longest payload of a frame, in bytes. The longest write takes a quarter of it; what is
/// granted with a lease has to be cut to fit.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// The longest name of an object or of an extended attribute, in bytes; as in Linux.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes; as in Linux.
pub const TARGET_BYTES_MAX: usize = 4095;
/// The longest path of an errand, in bytes.
pub const PATH_BYTES_MAX: usize = 64 << 10;
/// The longest value of an extended attribute that the system call knows, in bytes.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Bytes in one write or read: the most that the kernel asks for at once, and some to spare.
pub const DATA_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Supplementary groups of a caller; as in Linux.
pub const GROUPS_MAX: usize = 65_536;
/// The longest text for people, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// The longest certificate, or request for one, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 4096;
/// The longest payload of a first frame from a client: who has not said yet who he is gets no more
/// memory than this.
pub const FIRST_BYTES_MAX: usize = 8 << 10;

/// The bytes of `value`.
fn encode<L: Layout>(value: &L::Value) -> Vec<u8> {
    let mut out = Vec::new();
    L::put(value, &mut out);
    out
}

/// The value that all of `bytes` stand for.
fn decode<L: Layout>(bytes: &[u8]) -> Result<L::Value, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = L::take(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

impl Answer {
    /// The bytes of an answer, as they are kept with what was done. Panics like
    /// [`ToClient::encode`].
    pub fn encode(&self) -> Vec<u8> {
        encode::<Self>(self)
    }

    /// The answer that `bytes` stand for.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode::<Self>(bytes)
    }
}

impl ToServer {
    /// The payload of a frame. Panics if a field is longer than its limit.
    pub fn encode(&self) -> Vec<u8> {
        encode::<Self>(self)
    }

    /// What a client's payload says.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        decode::<Self>(payload)
    }
}

impl ToClient {
    /// The payload of a frame. Panics if a field is longer than its limit, or if a grant's items
    /// are not in its range and in order.
    pub fn encode(&self) -> Vec<u8> {
        encode::<Self>(self)
    }

    /// What a server's payload says.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        decode::<Self>(payload)
    }
}
