//! The first words on a connection.
//!
//! ```text
//!   hello, welcome    "GABIONLK"  version u16  features u64  fields of this version
//!   refusal           code u16  text                         the same in every version
//! ```
//!
//! Version and features are looked at before the fields: those of another version may be others. A
//! refusal can be read by clients of every version, as it tells them why theirs is not spoken.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::time::Timestamp;
use gabion_fs::Trust;

use super::fields::{Target, Text};
use super::frame::WireError;
use super::layout::{Layout, numbered, record};
use super::{FEATURES, MAGIC, VERSION, decode, encode};
use crate::identities::{Identities, Squash};
use crate::message::{Era, Hello, Refusal, RefusalReason, SessionId, Welcome};

record!(Hello {
    session: Option<(SessionId, u64)>,
    start: u64,
    received: u64,
    name: Text,
    path: Target,
});

record!(Welcome {
    session: SessionId,
    secret: u64,
    received: u64,
    patience_ms: u32,
    filesystem: Uuid,
    subvol: SubvolId,
    seed: u64,
    read_only: bool,
    start: u64,
    now: Timestamp,
    credit: u64,
    identities: Identities,
    root: Ino,
    eras: Vec<Era>,
});

record!(Era { subvol: SubvolId, chain: SubvolId });

numbered!(Squash, "which callers are mapped", { Nobody = 1, Root = 2, All = 3 });
record!(Identities { trust: Trust, squash: Squash, uid: u32, gid: u32 });

record!(Refusal { reason: RefusalReason, text: Text });

/// Numbers that later versions may add become `Other`: the text says the rest.
impl Layout for RefusalReason {
    type Value = Self;
    const BYTES_MIN: usize = 2;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u16(match value {
            Self::Version => 1,
            Self::Unauthorized => 2,
            Self::Gone => 3,
            Self::Busy => 4,
            Self::Other => 5,
        });
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match reader.u16()? {
            0 => return Err(DecodeError::Invalid("the reason of a refusal")),
            1 => Self::Version,
            2 => Self::Unauthorized,
            3 => Self::Gone,
            4 => Self::Busy,
            _ => Self::Other,
        })
    }
}

/// What both sides begin with, and the fields of `value`.
pub(super) fn introduce<L: Layout>(value: &L::Value) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u16(VERSION);
    out.put_u64(FEATURES);
    L::put(value, &mut out);
    out
}

/// The fields, if the other side can be understood.
pub(super) fn understand<L: Layout>(payload: &[u8]) -> Result<L::Value, WireError> {
    let mut reader = Reader::new(payload);
    if reader.array()? != MAGIC {
        return Err(WireError::Foreign);
    }
    let (version, features) = (reader.u16()?, reader.u64()?);
    if version != VERSION {
        return Err(WireError::Version { found: version });
    }
    match features & !FEATURES {
        0 => Ok(decode::<L>(reader.rest())?),
        bits => Err(WireError::UnknownFeatures { bits }),
    }
}

impl Hello {
    /// The payload of a frame.
    pub fn encode(&self) -> Vec<u8> {
        introduce::<Self>(self)
    }

    /// What a client's first payload says.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        understand::<Self>(payload)
    }
}

impl Welcome {
    /// The payload of a frame.
    pub fn encode(&self) -> Vec<u8> {
        introduce::<Self>(self)
    }

    /// What a server's first payload says.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        understand::<Self>(payload)
    }
}

impl Refusal {
    /// The payload of a frame.
    pub fn encode(&self) -> Vec<u8> {
        encode::<Self>(self)
    }

    /// Why a server does not let the client in.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        decode::<Self>(payload)
    }
}

/// What a server answers to words that it does not understand.
impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        let reason = match error {
            WireError::Version { .. } | WireError::UnknownFeatures { .. } => RefusalReason::Version,
            _ => RefusalReason::Other,
        };
        Self { reason, text: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Hello =
        Hello { session: None, start: 0, received: 0, name: String::new(), path: Vec::new() };

    /// A hello with `bytes` at `at`, and nothing behind what every version has.
    fn hello_of_others(at: usize, bytes: &[u8]) -> Result<Hello, WireError> {
        let mut payload = HELLO.encode()[..18].to_vec();
        payload[at..at + bytes.len()].copy_from_slice(bytes);
        Hello::decode(&payload)
    }

    #[test]
    fn another_version_is_refused_before_its_fields_are_read() {
        assert_eq!(hello_of_others(8, &[1]), Err(WireError::Version { found: 1 }));
        let bits = 1 << 63;
        assert_eq!(hello_of_others(17, &[0x80]), Err(WireError::UnknownFeatures { bits }));
        assert_eq!(hello_of_others(0, b"?"), Err(WireError::Foreign));
        let refusal = Refusal::from(WireError::UnknownFeatures { bits });
        assert_eq!(refusal.reason, RefusalReason::Version);
        assert!(refusal.text.contains("0x8000000000000000"), "{}", refusal.text);
    }

    #[test]
    fn a_refusal_of_a_later_version_is_understood() {
        let mut payload = Refusal { reason: RefusalReason::Busy, text: "full".into() }.encode();
        payload[0] = 200;
        let refusal = Refusal { reason: RefusalReason::Other, text: "full".into() };
        assert_eq!(Refusal::decode(&payload), Ok(refusal));
    }
}
