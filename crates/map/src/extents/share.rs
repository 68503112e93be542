//! One range of blocks in two files, or twice in one.
//!
//! 1. What the target has there is unmapped. Within one file that may divide an extent of the
//!    source, so the source is looked up only then.
//! 2. Each extent of the source is marked as shared, whole; the part in the range gets a
//!    reference, and a piece in the target.
//!
//! Only extents are shared. Inline bytes are copied, by way of the journal; blocks that were set
//! aside stay the source's, and the target has a hole there, which reads the same.

use crate::error::MapError;
use crate::extents::{BLOCK, Piece};
use crate::format::item::FileData;
use crate::key::FileId;
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Stop, Txn};

impl LocalTxn<'_> {
    /// Implements [`Txn::share`].
    pub(crate) fn share_range(
        &mut self,
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
    ) -> Result<(), Stop> {
        assert!(source_offset.is_multiple_of(BLOCK) && target_offset.is_multiple_of(BLOCK));
        self.ensure(source, LockMode::Exclusive)?;
        self.ensure(target, LockMode::Exclusive)?;
        self.ensure_settled(source)?;
        self.ensure_settled(target)?;
        let end = target_offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or(Stop::Map(MapError::TooLarge))?;
        self.require_space()?;
        let (from, to) = (source_offset / BLOCK, (source_offset + length).div_ceil(BLOCK));
        let shift = |block: u64| block - from + target_offset / BLOCK;
        let size = self.file(target)?.size;
        if end > size {
            self.grow_from(target, size)?;
        }
        self.unmap(target, shift(from), shift(to))?;
        // Looked up only now: within one file that may have divided an extent of the source.
        let pieces = self.pieces(source, from, to, usize::MAX)?;
        for piece in pieces {
            let part = match piece.data {
                FileData::Unwritten(_) => continue,
                FileData::Inline(bytes) => {
                    self.ensure_space(1)?;
                    self.replace_block(target, shift(piece.block), bytes);
                    continue;
                }
                FileData::Extent(_) => {
                    let part = piece.cut(from.max(piece.block), to.min(piece.end()));
                    self.put_piece(source, &piece.shared());
                    part.shared()
                }
            };
            let (run, ..) = part.run().expect("an extent is on disk");
            self.add_reference(source.subvol, run)?;
            let mapped = Piece { block: shift(part.block), data: part.data };
            self.map_piece(target, &mapped)?;
        }
        let mut extent = self.extent(target)?;
        if end > extent.size {
            extent.size = end;
            self.put_extent(target, extent);
            self.changes.sizes.push((target, end));
        }
        Ok(())
    }
}
