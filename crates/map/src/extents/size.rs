//! A file's end moves, or the file ends.
//!
//! - **Down**: what lies past the new end goes, accepted or not; of the block that the end is in,
//!   the rest becomes zeros. So whatever a file grows over later reads as zeros.
//! - **Up**: nothing is put in place, but what a crash may have left behind the old end goes first.
//! - **Away**: a bounded number of pieces in each step, so that no batch is as large as a file.
//!
//! The size in the FILE item is one that a crash may leave. As long as accepted bytes are not
//! recorded, it must not pass them, and follows with their writeback.

use crate::error::MapError;
use crate::extents::{BLOCK, FILE_BLOCKS_MAX, Piece, SCAN_ITEMS};
use crate::format::item::FileData;
use crate::key::{FileId, Kind};
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Removal, Stop, Txn};

/// Extents that one step of a removal frees: a bounded batch of some 20 KiB.
const REMOVE_ITEMS: usize = 512;

/// What becomes of a file's last block when the file grows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastBlock {
    /// It stays as it is.
    Kept,
    /// A write begins in it, and will put zeros behind the end itself.
    Overwritten,
}

impl LocalTxn<'_> {
    /// Implements [`Txn::set_size`].
    pub(crate) fn resize(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        if size > FILE_SIZE_MAX {
            return Err(Stop::Map(MapError::TooLarge));
        }
        self.ensure(file, LockMode::Exclusive)?;
        if let Some(state) = self.state(file) {
            self.ensure_unfenced(&state)?;
        }
        let before = self.file(file)?.size;
        if size < before {
            self.cut(file, size)?;
        } else if size > before {
            self.grow_from(file, before)?;
        }
        // The item's size must not pass bytes that a crash could lose: writeback will put it then.
        let recorded = self.state(file).is_none_or(|state| state.is_recorded());
        let mut extent = self.extent(file)?;
        let item_size = if recorded { size } else { size.min(extent.size) };
        if item_size != extent.size {
            extent.size = item_size;
            self.put_extent(file, extent);
        }
        if size != before {
            self.changes.sizes.push((file, size));
        }
        Ok(())
    }

    /// Removes what a crash may have left behind the end of a file that is about to grow from
    /// `size`: a writeback puts extents into items before the size follows. What its last block
    /// should be is returned if that has such bytes.
    pub(crate) fn clear_behind_end(
        &mut self,
        file: FileId,
        size: u64,
        last_block: LastBlock,
    ) -> Result<Option<Vec<u8>>, Stop> {
        let end = size.div_ceil(BLOCK);
        let mut at = end;
        while at < FILE_BLOCKS_MAX {
            let pieces = self.pieces(file, at, FILE_BLOCKS_MAX, SCAN_ITEMS)?;
            let Some(last) = pieces.last() else { break };
            at = last.end();
            for piece in pieces {
                if !matches!(piece.data, FileData::Unwritten(_)) {
                    self.unmap(file, piece.block.max(end), piece.end())?;
                }
            }
        }
        let length = (size % BLOCK) as usize;
        if length == 0 || last_block == LastBlock::Overwritten {
            return Ok(None);
        }
        let stored = self.stored_block(file, size / BLOCK)?;
        let behind = |bytes: &Vec<u8>| bytes[length..].iter().any(|byte| *byte != 0);
        Ok(stored.filter(behind).map(|mut bytes| {
            bytes.truncate(length);
            bytes
        }))
    }

    pub(super) fn grow_from(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        if let Some(bytes) = self.clear_behind_end(file, size, LastBlock::Kept)? {
            self.replace_block(file, size / BLOCK, bytes);
        }
        Ok(())
    }

    fn cut(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        let kept = size.div_ceil(BLOCK);
        if !size.is_multiple_of(BLOCK) {
            self.ensure_settled(file)?;
            let block = size / BLOCK;
            let tail = (size % BLOCK) as usize;
            if let Some(mut bytes) = self.stored_block(file, block)? {
                // Inline bytes stay inline: they may only become fewer.
                match self.pieces(file, block, block + 1, 1)?.pop() {
                    Some(Piece { data: FileData::Inline(mut bytes), .. }) => {
                        bytes.truncate(tail);
                        self.put_piece(file, &Piece { block: 0, data: FileData::Inline(bytes) });
                    }
                    _ => {
                        bytes.truncate(tail);
                        self.replace_block(file, block, bytes);
                    }
                }
            }
        }
        self.unmap(file, kept, FILE_BLOCKS_MAX)?;
        self.drop_accepted(file, kept, u64::MAX);
        Ok(())
    }

    /// Implements [`Txn::remove_bytes`].
    pub(crate) fn remove_extents(&mut self, file: FileId) -> Result<Removal, Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        self.drop_accepted(file, 0, u64::MAX);
        let pieces = self.pieces(file, 0, FILE_BLOCKS_MAX, REMOVE_ITEMS)?;
        for piece in &pieces {
            self.delete_piece(file, piece);
            if let Some((run, birth, sharing)) = piece.run() {
                self.free_run(file, run, birth, sharing)?;
            }
        }
        self.changes.sizes.push((file, 0));
        if pieces.len() == REMOVE_ITEMS {
            let mut extent = self.extent(file)?;
            extent.size = 0;
            let gone: u64 = pieces.iter().map(Piece::occupied).sum();
            extent.blocks = extent.blocks.saturating_sub(gone);
            self.put_extent(file, extent);
            return Ok(Removal::Partial);
        }
        self.changes.items.insert(file.key(Kind::FILE, 0), None);
        Ok(Removal::Complete)
    }
}
