//! The values of the items that the map keeps itself.
//!
//! ```text
//! FILE        size u64, blocks u64
//!
//! DATA        tag u8 = 1 (inline), then the file's first bytes; zeros follow up to a block
//!             tag u8 = 2 (extent), compression u8 = 1 (none), flags u8 (bit 0: may be shared),
//!               zero u8, count u32 (blocks), address u64, birth u64, count x CRC-32C u32
//!             tag u8 = 3 (unwritten extent: space set aside, reads as zeros), the same without
//!               checksums
//!
//! REFERENCE   count u32 (blocks), more u32: owners of each of the blocks beyond the first
//!
//! SUBVOLUME   see [`crate::format::subvolume`]
//!
//! DEAD        count u32 (blocks), owners u32 (how often the run died), birth u64
//!
//! FREED       count u32 (blocks)
//! ```
//!
//! An extent is whole blocks of one file, contiguous on disk, at most 256 of them. Each block has
//! its own checksum in the item, so any part of an extent can be read, replaced and freed without
//! its neighbours. `birth` is the transaction group in which the blocks were written first; whoever
//! shares them later has the same birth, so it tells which snapshots can need them.

use gabion_base::BLOCK_SIZE;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, Txg};

pub use crate::format::subvolume::{Access, SubvolRecord};
use crate::layout::{BLOCKS_MAX, GROUP_BLOCKS};
use crate::txn::{FILE_SIZE_MAX, FileExtent};

/// The longest extent, in blocks (1 MiB): its item still fits a node fifteen times.
pub const EXTENT_BLOCKS_MAX: usize = 256;
/// The longest unwritten extent, in blocks: it has no checksums to carry.
pub const UNWRITTEN_BLOCKS_MAX: u32 = 32_768;
/// The longest file that is kept inside its item, in bytes: about half a block, where an extent
/// of a whole block plus its item would take more space and one more read.
pub const INLINE_LENGTH_MAX: usize = 2048;

const TAG_INLINE: u8 = 1;
const TAG_EXTENT: u8 = 2;
const TAG_UNWRITTEN: u8 = 3;
const COMPRESSION_NONE: u8 = 1;
const FLAG_SHARED: u8 = 1;

/// Whether other references to an extent's blocks may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This is the only reference within the filesystem's live trees.
    Sole,
    /// There may be others: the REFERENCE items know.
    Shared,
}

/// A run of blocks on disk that holds a part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub addr: BlockAddr,
    /// When the blocks were written first.
    pub birth: Txg,
    /// Whether other references may exist.
    pub sharing: Sharing,
    /// CRC-32C of each block.
    pub checksums: Vec<u32>,
}

/// Space set aside that reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// First block.
    pub addr: BlockAddr,
    /// When the blocks were written first.
    pub birth: Txg,
    /// Whether other references may exist.
    pub sharing: Sharing,
    /// Number of blocks.
    pub count: u32,
}

/// A DATA item's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileData {
    /// The file's first bytes; zeros follow up to a block.
    Inline(Vec<u8>),
    /// Written blocks.
    Extent(Extent),
    /// Blocks set aside.
    Unwritten(Unwritten),
}

impl FileData {
    /// The encoded value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Inline(bytes) => {
                out.put_u8(TAG_INLINE);
                out.extend_from_slice(bytes);
            }
            Self::Extent(extent) => {
                out.reserve(24 + 4 * extent.checksums.len());
                let count = extent.checksums.len() as u32;
                encode_run(&mut out, TAG_EXTENT, extent.sharing, count, extent.addr, extent.birth);
                for checksum in &extent.checksums {
                    out.put_u32(*checksum);
                }
            }
            Self::Unwritten(run) => {
                encode_run(&mut out, TAG_UNWRITTEN, run.sharing, run.count, run.addr, run.birth);
            }
        }
        out
    }

    /// Decodes a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u8()?;
        if tag == TAG_INLINE {
            if reader.remaining() > INLINE_LENGTH_MAX {
                return Err(DecodeError::Invalid("length of inline bytes"));
            }
            return Ok(Self::Inline(reader.rest().to_vec()));
        }
        if reader.u8()? != COMPRESSION_NONE {
            return Err(DecodeError::Invalid("compression"));
        }
        let sharing = match reader.u8()? {
            0 => Sharing::Sole,
            FLAG_SHARED => Sharing::Shared,
            _ => return Err(DecodeError::Invalid("flags of an extent")),
        };
        reader.zeros(1)?;
        let count = reader.u32()?;
        let addr = BlockAddr(reader.u64()?);
        if addr.0 == 0 || addr.0 >= BLOCKS_MAX {
            return Err(DecodeError::Invalid("address of an extent"));
        }
        let birth = Txg(reader.u64()?);
        let data = match tag {
            TAG_EXTENT => {
                if count == 0 || count as usize > EXTENT_BLOCKS_MAX {
                    return Err(DecodeError::Invalid("length of an extent"));
                }
                let checksums = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
                Self::Extent(Extent { addr, birth, sharing, checksums })
            }
            TAG_UNWRITTEN => {
                if count == 0 || count > UNWRITTEN_BLOCKS_MAX {
                    return Err(DecodeError::Invalid("length of an unwritten extent"));
                }
                Self::Unwritten(Unwritten { addr, birth, sharing, count })
            }
            _ => return Err(DecodeError::Invalid("tag of file data")),
        };
        reader.finish()?;
        Ok(data)
    }
}

fn encode_run(
    out: &mut Vec<u8>,
    tag: u8,
    sharing: Sharing,
    count: u32,
    addr: BlockAddr,
    birth: Txg,
) {
    out.put_u8(tag);
    out.put_u8(COMPRESSION_NONE);
    out.put_u8(match sharing {
        Sharing::Sole => 0,
        Sharing::Shared => FLAG_SHARED,
    });
    out.put_u8(0);
    out.put_u32(count);
    out.put_u64(addr.0);
    out.put_u64(birth.0);
}

/// Encodes a FILE item's value.
pub fn encode_file(file: FileExtent) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.put_u64(file.size);
    out.put_u64(file.blocks);
    out
}

/// Decodes a FILE item's value.
pub fn decode_file(bytes: &[u8]) -> Result<FileExtent, DecodeError> {
    let mut reader = Reader::new(bytes);
    let file = FileExtent { size: reader.u64()?, blocks: reader.u64()? };
    reader.finish()?;
    if file.size > FILE_SIZE_MAX {
        return Err(DecodeError::Invalid("size of a file"));
    }
    if file.blocks > FILE_SIZE_MAX.div_ceil(BLOCK_SIZE as u64) {
        return Err(DecodeError::Invalid("number of a file's blocks"));
    }
    Ok(file)
}

/// A REFERENCE item's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Blocks.
    pub count: u32,
    /// Owners of each beyond the first.
    pub more: u32,
}

impl Reference {
    /// The encoded value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        out.put_u32(self.count);
        out.put_u32(self.more);
        out
    }

    /// Decodes a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let reference = Self { count: reader.u32()?, more: reader.u32()? };
        reader.finish()?;
        if reference.count == 0 || reference.more == 0 {
            return Err(DecodeError::Invalid("an empty reference"));
        }
        Ok(reference)
    }
}

/// A DEAD item's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Blocks.
    pub count: u32,
    /// How many references to the run died.
    pub owners: u32,
    /// Birth of the newest of them.
    pub birth: Txg,
}

impl Dead {
    /// The encoded value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        out.put_u32(self.count);
        out.put_u32(self.owners);
        out.put_u64(self.birth.0);
        out
    }

    /// Decodes a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let dead = Self { count: reader.u32()?, owners: reader.u32()?, birth: Txg(reader.u64()?) };
        reader.finish()?;
        if dead.count == 0 || u64::from(dead.count) > GROUP_BLOCKS || dead.owners == 0 {
            return Err(DecodeError::Invalid("a dead run"));
        }
        Ok(dead)
    }
}

/// Encodes a FREED item's value: so many blocks, at least one.
pub fn encode_freed(count: u32) -> Vec<u8> {
    count.to_le_bytes().to_vec()
}

/// Decodes a FREED item's value.
pub fn decode_freed(bytes: &[u8]) -> Result<u32, DecodeError> {
    let mut reader = Reader::new(bytes);
    let count = reader.u32()?;
    reader.finish()?;
    if count == 0 || u64::from(count) > GROUP_BLOCKS {
        return Err(DecodeError::Invalid("a run that was freed"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: std::fmt::Debug>(result: Result<T, DecodeError>) -> &'static str {
        match result {
            Err(DecodeError::Invalid(reason)) => reason,
            other => panic!("not invalid but {other:?}"),
        }
    }

    #[test]
    fn extents_past_any_device_are_refused() {
        let encoded = |addr| {
            let checksums = vec![1, 2];
            let (addr, birth, sharing) = (BlockAddr(addr), Txg(1), Sharing::Sole);
            FileData::Extent(Extent { addr, birth, sharing, checksums }).encode()
        };
        assert!(FileData::decode(&encoded(9)).is_ok());
        for addr in [0, BLOCKS_MAX, u64::MAX] {
            assert_eq!(reason(FileData::decode(&encoded(addr))), "address of an extent");
        }
    }

    #[test]
    fn files_of_impossible_size_are_refused() {
        let decode = |size, blocks| decode_file(&encode_file(FileExtent { size, blocks }));
        assert!(decode(FILE_SIZE_MAX, 1 << 51).is_ok());
        assert_eq!(reason(decode(FILE_SIZE_MAX + 1, 0)), "size of a file");
        assert_eq!(reason(decode(0, (1 << 51) + 1)), "number of a file's blocks");
    }

    #[test]
    fn dead_runs_are_within_a_group() {
        let decode = |count, owners| Dead::decode(&Dead { count, owners, birth: Txg(1) }.encode());
        assert!(decode(32_768, 1).is_ok());
        for (count, owners) in [(0, 1), (32_769, 1), (u32::MAX, 1), (1, 0)] {
            assert_eq!(reason(decode(count, owners)), "a dead run");
        }
    }
}
