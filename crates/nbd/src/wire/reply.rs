//! Replies: simple ones, and the chunks of structured ones.
//!
//! Both begin with 16 bytes, of which the magic number says which it is; a chunk has 4 more, the
//! length of its payload. A data chunk's payload is an offset and then the data, which is why
//! [`DATA_HEAD_BYTES`] covers both.

use gabion_base::codec::DecodeError;

use super::error::ErrorCode;
use super::fields::{Fields, array, text};
use super::{SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC};

/// Bytes that every reply begins with.
pub const REPLY_BYTES: usize = 16;
/// Bytes of a chunk without its payload.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of a data chunk without its data.
pub const DATA_HEAD_BYTES: usize = CHUNK_BYTES + 8;
/// The longest payload of a chunk that carries no data of the export: 2^16 extents. The standard
/// allows more, but whoever asks about 32 MiB at a time gets no more than this.
pub const SMALL_PAYLOAD_BYTES_MAX: u32 = 4 + 8 * (1 << 16);

/// The chunk is the last of its reply.
pub const FLAG_DONE: u16 = 1;
/// Bit of all kinds of chunks that are errors.
const KIND_ERROR: u16 = 1 << 15;

/// Kinds of chunks.
pub mod chunk {
    /// Nothing but the end.
    pub const NONE: u16 = 0;
    /// Data of a read.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros of a read.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with their status.
    pub const BLOCK_STATUS: u16 = 5;
    /// The request has failed.
    pub const ERROR: u16 = super::KIND_ERROR + 1;
    /// The request has failed at an offset.
    pub const ERROR_OFFSET: u16 = super::KIND_ERROR + 2;
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// All of a simple reply but the data of a read.
    Simple {
        /// Error number, or 0.
        error: u32,
        /// Whose reply it is.
        cookie: u64,
    },
    /// A chunk; the length of its payload follows.
    Chunk {
        /// [`FLAG_DONE`] and what others may have defined.
        flags: u16,
        /// One of [`chunk`].
        kind: u16,
        /// Whose reply it is.
        cookie: u64,
    },
}

impl ReplyHead {
    /// Fails if the magic number is neither of the two.
    pub fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        match fields.u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple { error: fields.u32()?, cookie: fields.u64()? }),
            STRUCTURED_REPLY_MAGIC => {
                Ok(Self::Chunk { flags: fields.u16()?, kind: fields.u16()?, cookie: fields.u64()? })
            }
            _ => Err(DecodeError::Invalid("the magic number of a reply")),
        }
    }
}

/// A simple reply without data.
pub fn simple(error: Option<ErrorCode>, cookie: u64) -> [u8; REPLY_BYTES] {
    let error = error.map_or(0, ErrorCode::number);
    array(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()])
}

/// A chunk without its payload of `length` bytes.
pub fn chunk_head(flags: u16, kind: u16, cookie: u64, length: u32) -> [u8; CHUNK_BYTES] {
    array(&[
        &STRUCTURED_REPLY_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ])
}

/// The last chunk of a read, up to its `length` bytes of data.
pub fn data_head(cookie: u64, offset: u64, length: u32) -> [u8; DATA_HEAD_BYTES] {
    let head = chunk_head(FLAG_DONE, chunk::OFFSET_DATA, cookie, length + 8);
    array(&[&head, &offset.to_be_bytes()])
}

/// The last chunk of a read of zeros.
pub fn hole(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = chunk_head(FLAG_DONE, chunk::OFFSET_HOLE, cookie, 12);
    [&head[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// The last chunk of a request that failed, with words for people.
pub fn failure(cookie: u64, code: ErrorCode, message: &str) -> Vec<u8> {
    let end = message.floor_char_boundary(STRING_BYTES_MAX.min(message.len()));
    let message = &message.as_bytes()[..end];
    let length = 6 + message.len() as u32;
    let head = chunk_head(FLAG_DONE, chunk::ERROR, cookie, length);
    let words = (message.len() as u16).to_be_bytes();
    [&head[..], &code.number().to_be_bytes(), &words, message].concat()
}

/// Bytes side by side with the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Number of bytes, not 0.
    pub length: u32,
    /// Whether they are known to be zeros and may take no space; else nothing is known of them.
    pub is_hole: bool,
}

/// Flags of a descriptor of `base:allocation` that is a hole: `HOLE` and `ZERO`.
const HOLE_FLAGS: u32 = 1 | 1 << 1;

/// The last chunk of a block status: one descriptor at least, side by side.
pub fn status(cookie: u64, context: u32, descriptors: &[Descriptor]) -> Vec<u8> {
    let length = 4 + 8 * descriptors.len() as u32;
    let mut chunk = chunk_head(FLAG_DONE, chunk::BLOCK_STATUS, cookie, length).to_vec();
    chunk.extend(context.to_be_bytes());
    for descriptor in descriptors {
        let flags = if descriptor.is_hole { HOLE_FLAGS } else { 0 };
        chunk.extend(descriptor.length.to_be_bytes());
        chunk.extend(flags.to_be_bytes());
    }
    chunk
}

/// The payload of a chunk that carries no data of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Nothing.
    None,
    /// Zeros.
    Hole {
        /// First byte.
        offset: u64,
        /// Number of bytes, not 0.
        length: u32,
    },
    /// The request has failed.
    Error {
        /// Why.
        code: ErrorCode,
        /// In words; may be empty.
        message: &'a str,
        /// Where, if that is known.
        offset: Option<u64>,
    },
    /// Extents with their status, which nobody here asks for.
    Status,
}

/// Whether a kind of chunk is an error.
pub fn is_error(kind: u16) -> bool {
    kind & KIND_ERROR != 0
}

impl<'a> Payload<'a> {
    /// Fails if the payload is not one of its kind. Unknown errors are errors all the same.
    pub fn decode(kind: u16, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let payload = match kind {
            chunk::NONE => Self::None,
            chunk::OFFSET_HOLE => {
                let (offset, length) = (fields.u64()?, fields.u32()?);
                if length == 0 {
                    return Err(DecodeError::Invalid("a hole of no bytes"));
                }
                Self::Hole { offset, length }
            }
            chunk::BLOCK_STATUS => {
                fields.u32()?;
                let extents = fields.rest();
                if extents.is_empty() || !extents.len().is_multiple_of(8) {
                    return Err(DecodeError::Invalid("the length of a block status"));
                }
                Self::Status
            }
            kind if is_error(kind) => {
                let number = fields.u32()?;
                let length = usize::from(fields.u16()?);
                let message = text(fields.bytes(length)?, "the message of an error")?;
                let offset = match kind {
                    chunk::ERROR_OFFSET => Some(fields.u64()?),
                    _ => None,
                };
                if kind != chunk::ERROR && kind != chunk::ERROR_OFFSET {
                    fields.rest();
                }
                if number == 0 {
                    return Err(DecodeError::Invalid("an error of number 0"));
                }
                Self::Error { code: ErrorCode::of(number), message, offset }
            }
            _ => return Err(DecodeError::Invalid("the kind of a chunk")),
        };
        fields.finish()?;
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_have_the_bytes_of_the_standard() {
        let golden = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(simple(Some(ErrorCode::Invalid), 9), golden);
        let golden = [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 2, 8, 0, 0, 0, 0, 0,
            0, 0x10, 0,
        ];
        assert_eq!(data_head(9, 4096, 512), golden);
        let golden = [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5,
            0, 2, b'n', b'o',
        ];
        assert_eq!(failure(9, ErrorCode::Io, "no"), golden);
        let golden = [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 20, 0, 0, 0, 1, 0,
            0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 3,
        ];
        let descriptors = [(512, false), (4096, true)];
        let descriptors = descriptors.map(|(length, is_hole)| Descriptor { length, is_hole });
        assert_eq!(status(9, 1, &descriptors), golden);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let decode = |bytes: &[u8]| {
            let head = ReplyHead::decode(bytes[..REPLY_BYTES].try_into().unwrap()).unwrap();
            let ReplyHead::Chunk { kind, cookie: 7, flags: FLAG_DONE } = head else {
                panic!("{head:?}")
            };
            kind
        };
        let zeros = hole(7, 512, 1024);
        let payload = Payload::decode(decode(&zeros), &zeros[CHUNK_BYTES..]);
        assert_eq!(payload, Ok(Payload::Hole { offset: 512, length: 1024 }));
        let broken = failure(7, ErrorCode::NoSpace, "full");
        let payload = Payload::decode(decode(&broken), &broken[CHUNK_BYTES..]);
        let wanted = Payload::Error { code: ErrorCode::NoSpace, message: "full", offset: None };
        assert_eq!(payload, Ok(wanted));
    }

    #[test]
    fn an_error_with_an_offset_is_understood() {
        let payload = [0, 0, 0, 5, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 2, 0];
        let wanted = Payload::Error { code: ErrorCode::Io, message: "x", offset: Some(512) };
        assert_eq!(Payload::decode(chunk::ERROR_OFFSET, &payload), Ok(wanted));
    }

    proptest! {
        #[test]
        fn any_payload_is_a_value_or_a_reason(
            kind: u16, bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = Payload::decode(kind, &bytes);
        }
    }
}
