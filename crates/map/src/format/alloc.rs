//! The pages of the allocation map.
//!
//! ```text
//! bitmap page    32,768 bits, one a block of its group, least significant bit first; 1 = in use
//!
//! table page     offset size  field
//!                     0    4  magic "GBAT"
//!                     4    1  level (1 = lists bitmap pages)
//!                     5    3  reserved, zero
//!                     8    8  transaction group that wrote it
//!                    16 4080  255 references
//!
//! reference      offset size  field
//!                     0    4  free blocks below it
//!                     4    1  which copy is current: 1 = never written (all free but for the fixed
//!                             structures), 2 = copy A, 3 = copy B
//!                     5    1  reserved, zero
//!                     6    2  free clusters of four aligned blocks (of a bitmap page; else 0)
//!                     8    8  CRC-64/NVME of UUID, address (u64) and the page; 0 if never written
//! ```
//!
//! A bitmap page has no room for a header: the UUID and the address that its checksum covers
//! recognise a misplaced one. A commit writes the copy that the last commit does not reference.

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, Txg, Uuid};

use crate::layout::TABLE_ENTRIES;

const MAGIC: u32 = u32::from_le_bytes(*b"GBAT");
const _: () = assert!(16 + TABLE_ENTRIES as usize * PageRef::LENGTH == BLOCK_SIZE);

/// Which of a page's two places holds its current content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCopy {
    /// Neither: the page is as at the making of the filesystem.
    #[default]
    Unwritten,
    /// The first.
    A,
    /// The second.
    B,
}

/// What a table page or the superblock knows of a page below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRef {
    /// Free blocks below it.
    pub free: u32,
    /// Free clusters of four aligned blocks, if it is a bitmap page.
    pub clusters: u16,
    /// Where its content is.
    pub copy: PageCopy,
    /// Its checksum.
    pub checksum: u64,
}

impl PageRef {
    /// Bytes of an encoded reference.
    pub const LENGTH: usize = 16;

    /// Where the current copy stands, if the page was ever written; copy A is at `a`.
    pub fn current(&self, a: BlockAddr) -> Option<BlockAddr> {
        match self.copy {
            PageCopy::Unwritten => None,
            PageCopy::A => Some(a),
            PageCopy::B => Some(a.plus(1)),
        }
    }

    /// The copy that the next commit writes, and where it stands.
    pub fn next_copy(&self, a: BlockAddr) -> (PageCopy, BlockAddr) {
        match self.copy {
            PageCopy::A => (PageCopy::B, a.plus(1)),
            PageCopy::B | PageCopy::Unwritten => (PageCopy::A, a),
        }
    }

    /// Appends the reference.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.free);
        out.put_u8(match self.copy {
            PageCopy::Unwritten => 1,
            PageCopy::A => 2,
            PageCopy::B => 3,
        });
        out.put_u8(0);
        out.put_u16(self.clusters);
        out.put_u64(self.checksum);
    }

    /// Reads a reference.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let free = reader.u32()?;
        let copy = match reader.u8()? {
            1 => PageCopy::Unwritten,
            2 => PageCopy::A,
            3 => PageCopy::B,
            _ => return Err(DecodeError::Invalid("copy of a page")),
        };
        reader.zeros(1)?;
        Ok(Self { free, copy, clusters: reader.u16()?, checksum: reader.u64()? })
    }
}

/// The checksum of a page at `addr`.
pub fn page_checksum(uuid: Uuid, addr: BlockAddr, page: &[u8]) -> u64 {
    crc64_of(&[&uuid.0, &addr.0.to_le_bytes(), page])
}

/// Encodes a table page of `level` out of exactly the references it has children.
pub fn encode_table(level: u8, txg: Txg, children: &[PageRef]) -> Vec<u8> {
    assert!(children.len() <= TABLE_ENTRIES as usize, "{} references", children.len());
    let mut out = Vec::with_capacity(BLOCK_SIZE);
    out.put_u32(MAGIC);
    out.put_u8(level);
    out.put_zeros(3);
    out.put_u64(txg.0);
    for child in children {
        child.encode(&mut out);
    }
    out.put_zeros(BLOCK_SIZE - out.len());
    out
}

/// Decodes a table page that must be of `level` and have `count` children.
pub fn decode_table(page: &[u8], level: u8, count: usize) -> Result<Vec<PageRef>, DecodeError> {
    let mut reader = Reader::new(page);
    if reader.u32()? != MAGIC {
        return Err(DecodeError::Invalid("magic"));
    }
    if reader.u8()? != level {
        return Err(DecodeError::Invalid("level"));
    }
    reader.zeros(3)?;
    reader.u64()?;
    (0..count.min(TABLE_ENTRIES as usize)).map(|_| PageRef::decode(&mut reader)).collect()
}
