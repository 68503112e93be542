//! The header of a member: whose it is, and who has had the volume open.
//!
//! Kept twice, in blocks 0 and 1 of the member; the newer one that decodes counts, so that a header
//! that was torn while it was written leaves the one before. The member's data begins at
//! [`MEMBER_DATA_START`].
//!
//! ```text
//!   0  magic      8    "GABIONMB"
//!   8  version    u16
//!  10  zeros      6
//!  16  volume     16
//!  32  member     16
//!  48  sequence   u64  the newer of two headers has the higher one
//!  56  checksum   u64  CRC-64/NVME of the block with these eight bytes as zeros
//!  64  blocks     u64  length of the member, with its headers
//!  72  count      u64  of the openings that follow, oldest first, at most 32
//!  80  openings   96 each: epoch u64, nonce u64, seconds i64, length of the holder u64, holder 64
//! ```

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::Uuid;

use crate::epoch::{Epoch, HOLDER_BYTES_MAX, OPENINGS_MAX, Opening};

const MAGIC: &[u8; 8] = b"GABIONMB";
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 56;
const CHECKSUM_END: usize = 64;

/// First block of a member that is not its header's.
pub const MEMBER_DATA_START: u64 = 256;

/// Whether a block is, or was, a header, of whatever version.
pub fn is_header(block: &[u8]) -> bool {
    block.starts_with(MAGIC)
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume that it belongs to.
    pub volume: Uuid,
    /// Which member it is.
    pub member: Uuid,
    /// Counts the headers that were written.
    pub sequence: u64,
    /// The member's length.
    pub blocks: u64,
    /// The latest openings of the volume that this member took part in, oldest first.
    pub openings: Vec<Opening>,
}

impl Header {
    /// The header as a block.
    pub fn encode(&self) -> Blocks {
        assert!(self.openings.len() <= OPENINGS_MAX, "{} openings", self.openings.len());
        let mut bytes = Vec::with_capacity(BLOCK_SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.put_u16(VERSION);
        bytes.put_zeros(6);
        bytes.extend_from_slice(&self.volume.0);
        bytes.extend_from_slice(&self.member.0);
        bytes.put_u64(self.sequence);
        bytes.put_u64(0);
        bytes.put_u64(self.blocks);
        bytes.put_u64(self.openings.len() as u64);
        for opening in &self.openings {
            let holder = opening.holder.as_bytes();
            bytes.put_u64(opening.epoch.0);
            bytes.put_u64(opening.nonce);
            bytes.put_u64(opening.seconds as u64);
            bytes.put_u64(holder.len() as u64);
            bytes.extend_from_slice(holder);
            bytes.put_zeros(HOLDER_BYTES_MAX - holder.len());
        }
        bytes.put_zeros(BLOCK_SIZE - bytes.len());
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_END].copy_from_slice(&checksum.to_le_bytes());
        Blocks::from_bytes(&bytes)
    }

    /// The header in a block.
    pub fn decode(block: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(block);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Invalid("magic"));
        }
        if reader.u16()? != VERSION {
            return Err(DecodeError::Invalid("version"));
        }
        reader.zeros(6)?;
        let volume = Uuid(reader.array()?);
        let member = Uuid(reader.array()?);
        let sequence = reader.u64()?;
        if reader.u64()? != checksum(block) {
            return Err(DecodeError::Invalid("checksum"));
        }
        let blocks = reader.u64()?;
        let count = reader.u64()?;
        if count > OPENINGS_MAX as u64 {
            return Err(DecodeError::Invalid("count of openings"));
        }
        let openings = (0..count).map(|_| opening(&mut reader)).collect::<Result<_, _>>()?;
        reader.zeros(reader.remaining())?;
        Ok(Self { volume, member, sequence, blocks, openings })
    }

    /// The newer of the headers in a member's first two blocks, if there is one.
    pub fn newest(blocks: &[u8]) -> Option<Self> {
        let headers = blocks.chunks(BLOCK_SIZE).take(2).flat_map(Self::decode);
        headers.max_by_key(|header| header.sequence)
    }

    /// Which of the first two blocks this header is to be written to.
    pub fn place(&self) -> u64 {
        self.sequence % 2
    }
}

fn opening(reader: &mut Reader<'_>) -> Result<Opening, DecodeError> {
    let epoch = Epoch(reader.u64()?);
    let nonce = reader.u64()?;
    let seconds = reader.u64()? as i64;
    let length = reader.u64()?;
    let holder = reader.bytes(HOLDER_BYTES_MAX)?;
    let (holder, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| holder.split_at_checked(length))
        .ok_or(DecodeError::Invalid("length of a holder"))?;
    Reader::new(rest).zeros(rest.len())?;
    let holder = str::from_utf8(holder).map_err(|_| DecodeError::Invalid("holder"))?.to_owned();
    Ok(Opening { epoch, nonce, seconds, holder })
}

fn checksum(block: &[u8]) -> u64 {
    let (head, rest) = block.split_at(CHECKSUM_AT.min(block.len()));
    crc64_of(&[head, &[0; 8], rest.get(CHECKSUM_END - CHECKSUM_AT..).unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u64) -> Header {
        let opening = |epoch| Opening {
            epoch: Epoch(epoch),
            nonce: epoch * 3,
            seconds: -1,
            holder: "host, process 7".to_owned(),
        };
        Header {
            volume: Uuid([1; 16]),
            member: Uuid([2; 16]),
            sequence,
            blocks: 1 << 20,
            openings: (1..=OPENINGS_MAX as u64).map(opening).collect(),
        }
    }

    #[test]
    fn headers_round_trip_and_no_changed_bit_is_believed() {
        let block = header(9).encode();
        assert_eq!(block.count(), 1);
        assert_eq!(Header::decode(block.bytes()), Ok(header(9)));
        for bit in (0..BLOCK_SIZE * 8).step_by(61) {
            let mut changed = block.clone();
            changed.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            Header::decode(changed.bytes()).unwrap_err();
        }
        for length in [0, 8, 50, 60, 100, 4095] {
            Header::decode(&block.bytes()[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_torn_header_leaves_the_one_before() {
        let mut both = Blocks::zeroed(2);
        for sequence in [4, 5] {
            let header = header(sequence);
            let start = header.place() as usize * BLOCK_SIZE;
            both.bytes_mut()[start..start + BLOCK_SIZE].copy_from_slice(header.encode().bytes());
        }
        assert_eq!(Header::newest(both.bytes()).unwrap().sequence, 5);
        both.bytes_mut()[BLOCK_SIZE + 2000] ^= 1;
        assert_eq!(Header::newest(both.bytes()).unwrap().sequence, 4);
        assert_eq!(Header::newest(&[0; 2 * BLOCK_SIZE]), None);
    }
}
