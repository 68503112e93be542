//! How a stream is kept where things are written once and as a whole, as in an object store.
//!
//! ```text
//!   NAME.gabion/00000000, NAME.gabion/00000001, ...   the stream, one part behind the other
//!   NAME.gabion/whole                                 written last: these are all
//! ```
//!
//! The last one says:
//!
//! ```text
//! magic      8   "GABIONPT"
//! version    2   1
//! zero       2
//! count      4   of parts
//! stream    16
//! lengths        count x u32, in bytes
//! checksum   8   CRC-64/NVME of all before it
//! ```
//!
//! Who writes lets a part end behind a RECORDS segment, so that every beginning of a stream that
//! has some parts is one that can be gone on with. Who reads needs only the lengths.

use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Put, Reader};

use super::header::StreamId;

const MAGIC: [u8; 8] = *b"GABIONPT";
const VERSION: u16 = 1;
/// Bytes before the lengths.
const HEAD: usize = 32;
/// The most parts that a stream may have: 256 TiB of the shortest that are written.
pub const PARTS_MAX: u32 = 1 << 24;
/// The name of what says that a stream is whole.
pub const WHOLE: &str = "whole";
/// The longest that it can be, in bytes.
pub const WHOLE_MAX: u64 = HEAD as u64 + 4 * PARTS_MAX as u64 + 8;
/// Digits of the name of a part.
const DIGITS: usize = 8;

/// What says that a stream is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Whose parts they are.
    pub stream: StreamId,
    /// How long each is, in bytes.
    pub lengths: Vec<u32>,
}

/// The name of a part.
pub fn part_name(number: u32) -> String {
    format!("{number:0DIGITS$}")
}

/// Which part has this name, if one has.
pub fn part_of_name(name: &str) -> Option<u32> {
    let is_number = name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    let number = name.parse().ok().filter(|_| is_number)?;
    (number < PARTS_MAX).then_some(number)
}

impl Parts {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.put_u16(VERSION);
        out.put_zeros(2);
        out.put_u32(self.lengths.len() as u32);
        out.extend_from_slice(&self.stream.0);
        for length in &self.lengths {
            out.put_u32(*length);
        }
        out.put_u64(crc64(&out));
        out
    }

    /// Decodes them.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (head, checksum) = bytes.split_last_chunk().ok_or(DecodeError::Short)?;
        let mut reader = Reader::new(head);
        if reader.array::<8>()? != MAGIC {
            return Err(DecodeError::Invalid("it says nothing of a stream"));
        }
        if reader.u16()? != VERSION {
            return Err(DecodeError::Invalid("the version of what says that a stream is whole"));
        }
        if crc64(head) != u64::from_le_bytes(*checksum) {
            return Err(DecodeError::Invalid("it has another checksum"));
        }
        reader.zeros(2)?;
        let count = reader.u32()?;
        let stream = StreamId(reader.array()?);
        if count > PARTS_MAX || reader.remaining() as u64 != 4 * u64::from(count) {
            return Err(DecodeError::Invalid("the number of parts"));
        }
        let lengths = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { stream, lengths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_by_their_numbers_and_nothing_else_is_one() {
        assert_eq!(part_name(7), "00000007");
        assert_eq!(part_of_name("00000007"), Some(7));
        for name in ["7", "0000000a", "+0000007", "99999999", "000000007", WHOLE, ""] {
            assert_eq!(part_of_name(name), None, "{name}");
        }
        assert_eq!(part_of_name(&part_name(PARTS_MAX - 1)), Some(PARTS_MAX - 1));
    }

    #[test]
    fn every_flipped_bit_and_every_lost_byte_is_found() {
        let parts = Parts { stream: StreamId([5; 16]), lengths: vec![1 << 24, 17] };
        let bytes = parts.encode();
        assert_eq!(Parts::decode(&bytes), Ok(parts));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Parts::decode(&bad).is_err(), "byte {at}");
            assert!(Parts::decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }
}
