//! What lies behind a range moves down over it, or up to make room.
//!
//! ```text
//!   collapse   | a | b | c | d |   ->   | a | d |            b and c are unmapped, d moves down
//!   insert     | a | d |           ->   | a |   |   | d |    d moves up
//! ```
//!
//! Blocks on disk stay where they are: only keys change. All pieces behind the range are taken out
//! before one is put back, so that none is in another's way. Ranges are of whole blocks; an extent
//! that lies across the place is divided.

use crate::error::MapError;
use crate::extents::{BLOCK, FILE_BLOCKS_MAX, Piece};
use crate::format::item::FileData;
use crate::key::FileId;
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Stop, Txn};

impl LocalTxn<'_> {
    /// Implements [`Txn::collapse`].
    pub(crate) fn collapse_range(
        &mut self,
        file: FileId,
        offset: u64,
        length: u64,
    ) -> Result<(), Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        self.ensure_settled(file)?;
        let size = self.file(file)?.size;
        let (from, to) = (offset / BLOCK, (offset + length) / BLOCK);
        self.unmap(file, from, to)?;
        self.shift(file, to, -((to - from) as i64))?;
        self.finish_shift(file, size - length)
    }

    /// Implements [`Txn::insert`].
    pub(crate) fn insert_range(
        &mut self,
        file: FileId,
        offset: u64,
        length: u64,
    ) -> Result<(), Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        self.ensure_settled(file)?;
        let size = self.file(file)?.size;
        let end = size.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or(Stop::Map(MapError::TooLarge))?;
        self.require_space()?;
        let from = offset / BLOCK;
        // An extent that lies across the place is divided first.
        if let Some(piece) = self.pieces(file, from, from + 1, 1)?.pop()
            && piece.block < from
        {
            self.put_piece(file, &piece.cut(piece.block, from));
            self.put_piece(file, &piece.cut(from, piece.end()));
        }
        self.shift(file, from, (length / BLOCK) as i64)?;
        self.finish_shift(file, end)
    }

    /// Moves all pieces from block `from` on by `by` blocks. Nothing is in their way.
    fn shift(&mut self, file: FileId, from: u64, by: i64) -> Result<(), Stop> {
        let pieces = self.pieces(file, from, FILE_BLOCKS_MAX, usize::MAX)?;
        for piece in &pieces {
            self.delete_piece(file, piece);
        }
        for piece in pieces {
            let block = piece.block.strict_add_signed(by);
            // Blocks that were set aside past the end may have no room to move to.
            if block + (piece.end() - piece.block) > FILE_BLOCKS_MAX {
                return Err(Stop::Map(MapError::TooLarge));
            }
            match piece.data {
                // Inline bytes stand at the head of a file only.
                FileData::Inline(bytes) if block > 0 => self.replace_block(file, block, bytes),
                data => self.put_piece(file, &Piece { block, data }),
            }
        }
        Ok(())
    }

    fn finish_shift(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        let mut extent = self.extent(file)?;
        extent.size = size;
        self.put_extent(file, extent);
        self.changes.sizes.push((file, size));
        Ok(())
    }
}
