//! A page of a bitmap.
//!
//! ```text
//!   0  magic      8   "GABIONBM"
//!   8  version    u16
//!  10  slot       u16
//!  12  page       u32
//!  16  mirror     16  the mirror's identity
//!  32  region     u64 blocks that a bit stands for
//!  40  zeros      16
//!  56  checksum   u64 CRC-64/NVME of the block with these eight bytes as zeros
//!  64  bits       4032 bytes, the lowest bit of the first byte first
//! ```
//!
//! A page that does not decode stands for all its bits being set: more is copied than needed, and
//! nothing is forgotten.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::Uuid;

const MAGIC: &[u8; 8] = b"GABIONBM";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 64;
const CHECKSUM_AT: usize = 56;

/// Bits in a page.
pub const PAGE_BITS: usize = (BLOCK_SIZE - HEAD_BYTES) * 8;
/// Words of 64 bits in a page.
pub const PAGE_WORDS: usize = PAGE_BITS / 64;

/// The bits of a page.
pub type Bits = [u64; PAGE_WORDS];

/// What a page must say of itself to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageIdentity {
    /// The mirror's identity.
    pub mirror: Uuid,
    /// The number of the slot.
    pub slot: u16,
    /// The number of the page within the slot.
    pub page: u32,
    /// Blocks that a bit stands for.
    pub region_blocks: u64,
}

impl PageIdentity {
    /// The page as a block.
    pub fn encode(&self, bits: &Bits) -> Blocks {
        let mut bytes = Vec::with_capacity(BLOCK_SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.put_u16(VERSION);
        bytes.put_u16(self.slot);
        bytes.put_u32(self.page);
        bytes.extend_from_slice(&self.mirror.0);
        bytes.put_u64(self.region_blocks);
        bytes.put_zeros(HEAD_BYTES - bytes.len());
        bits.iter().for_each(|word| bytes.put_u64(*word));
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
        Blocks::from_bytes(&bytes)
    }

    /// The bits of a block that is this page.
    pub fn decode(&self, block: &[u8]) -> Result<Box<Bits>, DecodeError> {
        let mut reader = Reader::new(block);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Invalid("magic"));
        }
        if reader.u16()? != VERSION {
            return Err(DecodeError::Invalid("version"));
        }
        let slot = reader.u16()?;
        let page = reader.u32()?;
        let mirror = Uuid(reader.array()?);
        let region_blocks = reader.u64()?;
        if (Self { mirror, slot, page, region_blocks }) != *self {
            return Err(DecodeError::Invalid("identity"));
        }
        reader.zeros(CHECKSUM_AT - 40)?;
        if reader.u64()? != checksum(block) {
            return Err(DecodeError::Invalid("checksum"));
        }
        let mut bits = Box::new([0; PAGE_WORDS]);
        for word in bits.iter_mut() {
            *word = reader.u64()?;
        }
        reader.finish()?;
        Ok(bits)
    }
}

fn checksum(block: &[u8]) -> u64 {
    crc64_of(&[&block[..CHECKSUM_AT], &[0; 8], &block[HEAD_BYTES..]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_trip_and_no_changed_bit_is_believed() {
        let identity =
            PageIdentity { mirror: Uuid([7; 16]), slot: 3, page: 2, region_blocks: 1024 };
        let mut bits = [0; PAGE_WORDS];
        (bits[0], bits[PAGE_WORDS - 1]) = (1, 1 << 63);
        let block = identity.encode(&bits);
        assert_eq!(block.count(), 1);
        assert_eq!(*identity.decode(block.bytes()).unwrap(), bits);
        for bit in (0..BLOCK_SIZE * 8).step_by(97) {
            let mut torn = block.clone();
            torn.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            identity.decode(torn.bytes()).unwrap_err();
        }
        let elsewhere = PageIdentity { page: 1, ..identity };
        elsewhere.decode(block.bytes()).unwrap_err();
        identity.decode(&block.bytes()[..100]).unwrap_err();
    }
}
