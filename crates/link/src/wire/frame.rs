//! Frames: what stands around every payload.
//!
//! ```text
//!   0        4          8     9        10      16       24         32
//!   [ length ][ checksum ][ kind ][ version ][ zeros ][ number ][ received ]  payload
//!     of the payload       1 hello    1               of this     highest that has arrived
//!              CRC-32C     2 welcome                  message     from the other side
//!              of the      3 refusal                  from 1,
//!              payload     4 message                  else 0
//!                          5 application
//!                          6 admission
//! ```
//!
//! Only messages have numbers; `received` of other frames is sent as 0 and means nothing.

use gabion_base::checksum::crc32c;
use gabion_base::codec::{DecodeError, Put, Reader};
use thiserror::Error;

use super::layout::{Layout, numbered};
use super::{PAYLOAD_BYTES_MAX, VERSION};

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 32;

/// The version of the frame itself.
const FRAME_VERSION: u8 = 1;
const RESERVED_BYTES: usize = 6;

/// Why a frame, a hello or a welcome was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// It begins like something else.
    #[error("this is not the protocol of Gabion's links")]
    Foreign,
    /// It speaks another version.
    #[error("the other side speaks version {found}; here it is version {VERSION}")]
    Version {
        /// The other side's.
        found: u16,
    },
    /// It uses features that are not known here.
    #[error("the other side needs the unknown features {bits:#x}; a newer gabion is needed here")]
    UnknownFeatures {
        /// The unknown ones.
        bits: u64,
    },
    /// It claims to be longer than anything that is said.
    #[error("a frame of {length} bytes; {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: u32,
    },
    /// The payload was damaged on its way.
    #[error("a payload has the checksum {found:#010x} instead of {expected:#010x}")]
    Checksum {
        /// As the header has it.
        expected: u32,
        /// As the payload has it.
        found: u32,
    },
    /// A field cannot be what it is.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A client's [`Hello`](crate::message::Hello).
    Hello,
    /// A server's [`Welcome`](crate::message::Welcome).
    Welcome,
    /// A server's [`Refusal`](crate::message::Refusal).
    Refusal,
    /// A numbered message: [`ToServer`](crate::message::ToServer) or
    /// [`ToClient`](crate::message::ToClient).
    Message,
    /// A client's [`Application`](crate::join::Application).
    Application,
    /// A server's [`Admission`](crate::join::Admission).
    Admission,
}

numbered!(FrameKind, "the kind of a frame", {
    Hello = 1,
    Welcome = 2,
    Refusal = 3,
    Message = 4,
    Application = 5,
    Admission = 6,
});

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: u32,
    /// CRC-32C of the payload.
    pub checksum: u32,
    /// What the payload is.
    pub kind: FrameKind,
    /// The message's number in its direction of the session, from 1; 0 if it is no message.
    pub number: u64,
    /// The highest number that has arrived from the other side. Of messages only.
    pub received: u64,
}

impl Header {
    /// The header of a message. Panics if `payload` is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn message(number: u64, received: u64, payload: &[u8]) -> Self {
        Self { number, received, ..Self::greeting(FrameKind::Message, payload) }
    }

    /// The header of a frame without a number. Panics if `payload` is longer than
    /// [`PAYLOAD_BYTES_MAX`].
    pub fn greeting(kind: FrameKind, payload: &[u8]) -> Self {
        let length = payload.len();
        assert!(length <= PAYLOAD_BYTES_MAX, "{length} of at most {PAYLOAD_BYTES_MAX} bytes");
        let checksum = crc32c(payload);
        Self { length: length as u32, checksum, kind, number: 0, received: 0 }
    }

    /// The bytes on the wire. The payload follows them; it need not be copied for that.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put_u32(self.length);
        out.put_u32(self.checksum);
        FrameKind::put(&self.kind, &mut out);
        out.put_u8(FRAME_VERSION);
        out.put_zeros(RESERVED_BYTES);
        out.put_u64(self.number);
        out.put_u64(self.received);
        out.try_into().expect("the fields fill the header")
    }

    /// What a header says. Its length may be believed: it was compared with
    /// [`PAYLOAD_BYTES_MAX`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (length, checksum) = (reader.u32()?, reader.u32()?);
        // The version says what the rest means.
        let (kind, version) = (reader.bytes(1)?, reader.u8()?);
        if version != FRAME_VERSION {
            return Err(WireError::Version { found: version.into() });
        }
        let kind = FrameKind::take(&mut Reader::new(kind))?;
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(WireError::TooLong { length });
        }
        reader.zeros(RESERVED_BYTES)?;
        let (number, received) = (reader.u64()?, reader.u64()?);
        reader.finish()?;
        if (kind == FrameKind::Message) != (number != 0) {
            return Err(DecodeError::Invalid("the number of a message").into());
        }
        Ok(Self { length, checksum, kind, number, received })
    }

    /// Fails unless `payload` is the one that the header was made for.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), WireError> {
        if payload.len() != self.length as usize {
            return Err(DecodeError::Short.into());
        }
        let (expected, found) = (self.checksum, crc32c(payload));
        match found == expected {
            true => Ok(()),
            false => Err(WireError::Checksum { expected, found }),
        }
    }
}

/// Header and payload side by side. Who can send two buffers at once need not copy the payload:
/// see [`Header::encode`].
pub fn encode_frame(header: &Header, payload: &[u8]) -> Vec<u8> {
    assert_eq!(header.length as usize, payload.len(), "the header is of this payload");
    [&header.encode()[..], payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(at: usize, bytes: &[u8]) -> Result<Header, WireError> {
        let mut header = Header::message(7, 3, b"payload").encode();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Header::decode(&header)
    }

    #[test]
    fn a_header_is_believed_only_as_a_whole() {
        let invalid = |field| Err(WireError::Decode(DecodeError::Invalid(field)));
        let (most, more) = (PAYLOAD_BYTES_MAX as u32, PAYLOAD_BYTES_MAX as u32 + 1);
        assert_eq!(with(0, &most.to_le_bytes()).map(|header| header.length), Ok(most));
        assert_eq!(with(0, &more.to_le_bytes()), Err(WireError::TooLong { length: more }));
        assert_eq!(with(8, &[0]), invalid("the kind of a frame"));
        assert_eq!(with(8, &[7]), invalid("the kind of a frame"));
        assert_eq!(with(9, &[2]), Err(WireError::Version { found: 2 }));
        assert_eq!(with(15, &[1]), invalid("reserved bytes"));
        assert_eq!(with(16, &[0; 8]), invalid("the number of a message"));
        assert_eq!(with(8, &[1]), invalid("the number of a message"));
    }

    #[test]
    fn a_payload_that_was_damaged_or_cut_is_noticed() {
        let header = Header::greeting(FrameKind::Hello, b"payload");
        assert_eq!(header.check_payload(b"payload"), Ok(()));
        let noticed = header.check_payload(b"paypoad");
        assert!(matches!(noticed, Err(WireError::Checksum { .. })), "{noticed:?}");
        assert_eq!(header.check_payload(b"payloa"), Err(DecodeError::Short.into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_a_reason(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn a_frame_is_taken_apart_again(
            number in 1..u64::MAX,
            received: u64,
            payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let header = Header::message(number, received, &payload);
            let frame = encode_frame(&header, &payload);
            let (head, rest) = frame.split_first_chunk().expect("there is a header");
            prop_assert_eq!(Header::decode(head), Ok(header));
            prop_assert_eq!(header.check_payload(rest), Ok(()));
        }
    }
}
