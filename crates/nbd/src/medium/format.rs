//! The header of a medium: one block, kept in two places.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "GABIONMD"
//!      8     4  version (1)
//!     12     4  place: 0 or 1, which is also the block where it stands
//!     16    16  the medium's UUID
//!     32     8  sequence: each header that is written has one more than the one before
//!     40     8  epoch; 0 as long as nobody has taken one
//!     48     8  first block of the data (256)
//!     56     4  length of the holder's text
//!     60     4  reserved, zero
//!     64  1024  holder of the epoch, UTF-8, zero-padded
//!   1088  3000  reserved, zero
//!   4088     8  CRC-64/NVME of all before
//! ```
//!
//! The valid header with the greater sequence counts. A new one is written over the older one, so
//! a torn write leaves the newer, and when it is durable once more over the other place. The rest
//! of the first MiB is zero.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::Uuid;

/// First bytes of every header.
pub const MAGIC: &[u8; 8] = b"GABIONMD";
/// The version that this program writes.
pub const VERSION: u32 = 1;
/// Where the data begins: at 1 MiB, which keeps the alignment of whatever is below.
pub const DATA_START: u64 = 256;
/// The places of the header.
pub const PLACES: u32 = 2;
/// The longest text of a holder, in bytes: a host's name and a few words.
pub const HOLDER_BYTES_MAX: usize = 1024;

const RESERVED_AT: usize = 64 + HOLDER_BYTES_MAX;
const CHECKSUM_AT: usize = BLOCK_SIZE - 8;

/// A decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The medium's identity.
    pub uuid: Uuid,
    /// Which header this is.
    pub sequence: u64,
    /// The highest epoch that was taken; 0 if none.
    pub epoch: u64,
    /// Who took it; empty if nobody did.
    pub holder: String,
}

/// Why a block is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It is something else.
    Foreign,
    /// It is intact, but only a program of this version knows what it means.
    Version(u32),
    /// It was one once.
    Damaged(DecodeError),
}

impl From<DecodeError> for HeaderError {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(error)
    }
}

impl Header {
    /// The place that this header belongs to: each time the other one.
    pub fn place(&self) -> u32 {
        (self.sequence % u64::from(PLACES)) as u32
    }

    /// The block as it stands at its place.
    pub fn encode(&self) -> Blocks {
        assert!(self.holder.len() <= HOLDER_BYTES_MAX, "a holder of {} bytes", self.holder.len());
        let mut out = Vec::with_capacity(BLOCK_SIZE);
        out.extend_from_slice(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(self.place());
        out.extend_from_slice(&self.uuid.0);
        out.put_u64(self.sequence);
        out.put_u64(self.epoch);
        out.put_u64(DATA_START);
        out.put_u32(self.holder.len() as u32);
        out.put_u32(0);
        out.extend_from_slice(self.holder.as_bytes());
        out.put_zeros(CHECKSUM_AT - out.len());
        let checksum = crc64(&out);
        out.put_u64(checksum);
        Blocks::from_bytes(&out)
    }

    /// Decodes the block that was read from `place`.
    pub fn decode(bytes: &[u8], place: u32) -> Result<Self, HeaderError> {
        let mut reader = Reader::new(bytes.get(..BLOCK_SIZE).ok_or(DecodeError::Short)?);
        if reader.bytes(8)? != MAGIC {
            return Err(HeaderError::Foreign);
        }
        if crc64(&bytes[..CHECKSUM_AT]).to_le_bytes() != bytes[CHECKSUM_AT..BLOCK_SIZE] {
            return Err(DecodeError::Invalid("checksum").into());
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let stands_at = reader.u32()?;
        let uuid = Uuid(reader.array()?);
        let (sequence, epoch) = (reader.u64()?, reader.u64()?);
        if reader.u64()? != DATA_START {
            return Err(DecodeError::Invalid("first block of the data").into());
        }
        let length = reader.u32()? as usize;
        reader.zeros(4)?;
        let room = reader.bytes(HOLDER_BYTES_MAX)?;
        let (text, padding) = room.split_at_checked(length).ok_or(DecodeError::Short)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::Invalid("reserved bytes").into());
        }
        let text = std::str::from_utf8(text).map_err(|_| DecodeError::Invalid("holder"))?;
        reader.zeros(CHECKSUM_AT - RESERVED_AT)?;
        let header = Self { uuid, sequence, epoch, holder: text.to_owned() };
        if stands_at != place || header.place() != place {
            return Err(DecodeError::Invalid("place").into());
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let uuid = Uuid([0x11; 16]);
        Header { uuid, sequence: 5, epoch: 7, holder: "node a".to_owned() }
    }

    #[test]
    fn a_header_has_these_bytes_for_ever() {
        let mut golden = vec![0; BLOCK_SIZE];
        golden[..8].copy_from_slice(b"GABIONMD");
        golden[8] = 1;
        golden[12] = 1;
        golden[16..32].fill(0x11);
        golden[32] = 5;
        golden[40] = 7;
        golden[49] = 1;
        golden[56] = 6;
        golden[64..70].copy_from_slice(b"node a");
        golden[4088..].copy_from_slice(&[121, 226, 223, 156, 196, 67, 134, 111]);
        assert!(header().encode().bytes() == golden);
        assert_eq!(Header::decode(&golden, 1), Ok(header()));
    }

    #[test]
    fn what_is_no_header_says_why() {
        let good = header().encode();
        let decode = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = good.bytes().to_vec();
            change(&mut bytes);
            let checksum = crc64(&bytes[..CHECKSUM_AT]).to_le_bytes();
            bytes[CHECKSUM_AT..].copy_from_slice(&checksum);
            Header::decode(&bytes, 1)
        };
        let damaged = |what| Err(HeaderError::Damaged(DecodeError::Invalid(what)));
        assert_eq!(decode(&|_| {}), Ok(header()));
        assert_eq!(decode(&|bytes| bytes[0] = 0), Err(HeaderError::Foreign));
        assert_eq!(decode(&|bytes| bytes[8] = 2), Err(HeaderError::Version(2)));
        assert_eq!(decode(&|bytes| bytes[12] = 0), damaged("place"));
        assert_eq!(decode(&|bytes| bytes[32] = 6), damaged("place"));
        assert_eq!(decode(&|bytes| bytes[50] = 1), damaged("first block of the data"));
        assert_eq!(decode(&|bytes| bytes[57] = 5), Err(DecodeError::Short.into()));
        assert_eq!(decode(&|bytes| bytes[64] = 0xff), damaged("holder"));
        assert_eq!(decode(&|bytes| bytes[70] = 1), damaged("reserved bytes"));
        assert_eq!(decode(&|bytes| bytes[4087] = 1), damaged("reserved bytes"));
        let mut torn = good.bytes().to_vec();
        torn[40] = 9;
        assert_eq!(Header::decode(&torn, 1), damaged("checksum"));
        assert_eq!(Header::decode(good.bytes(), 0), damaged("place"));
    }

    proptest! {
        #[test]
        fn any_header_survives_the_way(
            sequence: u64, epoch: u64, holder in "\\PC{0,60}", uuid: [u8; 16]
        ) {
            let header = Header { uuid: Uuid(uuid), sequence, epoch, holder };
            let block = header.encode();
            prop_assert_eq!(Header::decode(block.bytes(), header.place()), Ok(header));
        }
    }
}
