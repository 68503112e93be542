//! One DATA item: a run of blocks of a file, and what is there.
//!
//! ```text
//!   inline     the bytes themselves, at the head of a file, instead of its first block
//!   extent     blocks on disk, a checksum of each
//!   unwritten  blocks on disk that were set aside: they read as zeros
//! ```
//!
//! An item is at the offset of its first byte, a multiple of the block size, and ends within the
//! largest file. Whatever is cut out of a piece is a piece again, but for inline bytes, which
//! stay whole.

use gabion_base::codec::DecodeError;
use gabion_base::ids::Txg;

use crate::error::MapError;
use crate::extents::{BLOCK, FILE_BLOCKS_MAX};
use crate::format::item::{Extent, FileData, Sharing, Unwritten};
use crate::format::journal::Run;
use crate::key::Key;
use crate::txn::FILE_SIZE_MAX;

/// A DATA item, decoded.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Offset in the file, in blocks.
    pub(crate) block: u64,
    /// What is there.
    pub(crate) data: FileData,
}

impl Piece {
    /// Decodes an item, which must be where such an item can be.
    pub(crate) fn decode(key: Key, value: &[u8]) -> Result<Self, MapError> {
        let bad = |source| MapError::BadItem { key, source };
        let invalid = |reason| Err(bad(DecodeError::Invalid(reason)));
        let data = FileData::decode(value).map_err(bad)?;
        let aligned = key.at.is_multiple_of(BLOCK) && key.at <= FILE_SIZE_MAX;
        if !aligned || (key.at != 0 && matches!(data, FileData::Inline(_))) {
            return invalid("offset of file data");
        }
        let piece = Self { block: key.at / BLOCK, data };
        if piece.end() > FILE_BLOCKS_MAX { invalid("length of file data") } else { Ok(piece) }
    }

    /// The block after the last. Inline bytes count as one block.
    pub(crate) fn end(&self) -> u64 {
        self.block
            + match &self.data {
                FileData::Inline(_) => 1,
                FileData::Extent(extent) => extent.checksums.len() as u64,
                FileData::Unwritten(run) => u64::from(run.count),
            }
    }

    /// Blocks it occupies on disk.
    pub(super) fn occupied(&self) -> u64 {
        match &self.data {
            FileData::Inline(_) => 0,
            FileData::Extent(_) | FileData::Unwritten(_) => self.end() - self.block,
        }
    }

    /// The part within blocks `from..to`. Inline bytes cannot be divided.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Self {
        let skip = from - self.block;
        let count = to - from;
        let data = match &self.data {
            FileData::Inline(bytes) => FileData::Inline(bytes.clone()),
            FileData::Extent(extent) => FileData::Extent(Extent {
                addr: extent.addr.plus(skip),
                checksums: extent.checksums[skip as usize..(skip + count) as usize].to_vec(),
                ..*extent
            }),
            FileData::Unwritten(run) => FileData::Unwritten(Unwritten {
                addr: run.addr.plus(skip),
                count: count as u32,
                ..*run
            }),
        };
        Self { block: from, data }
    }

    /// The blocks on disk, when they were written, and whether others may use them.
    pub(crate) fn run(&self) -> Option<(Run, Txg, Sharing)> {
        match &self.data {
            FileData::Inline(_) => None,
            FileData::Extent(extent) => {
                let run = Run { addr: extent.addr, count: extent.checksums.len() as u32 };
                Some((run, extent.birth, extent.sharing))
            }
            FileData::Unwritten(run) => {
                Some((Run { addr: run.addr, count: run.count }, run.birth, run.sharing))
            }
        }
    }

    pub(super) fn shared(mut self) -> Self {
        match &mut self.data {
            FileData::Inline(_) => {}
            FileData::Extent(extent) => extent.sharing = Sharing::Shared,
            FileData::Unwritten(run) => run.sharing = Sharing::Shared,
        }
        self
    }
}
