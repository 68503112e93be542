//! A file's items changed by an operation: cutting, punching, sharing, shifting, setting aside.
//!
//! All of it rests on [`LocalTxn::unmap`], which takes a range of whole blocks out of a file's
//! items: items inside go, items at its ends are trimmed, blocks are freed. What is put in place
//! afterwards never overlaps what is there.
//!
//! Invariants of a file's items, from one operation to the next:
//!
//! - no two pieces overlap ([`LocalTxn::pieces`] refuses a file where two do);
//! - the count of blocks in the FILE item is what the pieces occupy on disk;
//! - a run on disk belongs to one piece, or is shared and counted in the references.
//!
//! Accepted bytes that are not in extents yet lie over the items and are dropped by range. Bytes of
//! a single block that an operation makes itself ride in the journal until they are written.

mod holes;
mod lookup;
mod piece;
mod share;
mod shift;
mod size;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::Txg;

use crate::format::item::{Extent, FileData, Sharing};
use crate::format::journal::{DroppedRange, JournaledBytes, Run};
use crate::key::{FileId, Kind};
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Stop, Value};

pub(crate) use self::piece::Piece;
pub(crate) use self::size::LastBlock;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// The block after the last one that a file can have.
const FILE_BLOCKS_MAX: u64 = FILE_SIZE_MAX.div_ceil(BLOCK);
/// Items that are looked at in one step.
const SCAN_ITEMS: usize = 256;

impl LocalTxn<'_> {
    /// Takes blocks `from..to` out of a file's items. The file is locked exclusively.
    pub(crate) fn unmap(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        let mut freed = 0;
        let mut from_now = from;
        while from_now < to {
            let pieces = self.pieces(file, from_now, to, SCAN_ITEMS)?;
            let Some(last) = pieces.last() else { break };
            from_now = last.end();
            for piece in &pieces {
                freed += self.unmap_piece(file, piece, from, to)?;
            }
        }
        if freed > 0 {
            let mut extent = self.extent(file)?;
            extent.blocks = extent.blocks.saturating_sub(freed);
            self.put_extent(file, extent);
        }
        Ok(())
    }

    /// Takes blocks `from..to` out of one piece. Returns how many blocks it no longer occupies.
    fn unmap_piece(
        &mut self,
        file: FileId,
        piece: &Piece,
        from: u64,
        to: u64,
    ) -> Result<u64, Stop> {
        let (cut_from, cut_to) = (from.max(piece.block), to.min(piece.end()));
        if cut_from == piece.block {
            self.delete_piece(file, piece);
        } else {
            self.put_piece(file, &piece.cut(piece.block, cut_from));
        }
        if cut_to < piece.end() {
            self.put_piece(file, &piece.cut(cut_to, piece.end()));
        }
        let gone = piece.cut(cut_from, cut_to);
        if let Some((run, birth, sharing)) = gone.run() {
            self.free_run(file, run, birth, sharing)?;
        }
        Ok(gone.occupied())
    }

    /// Puts `piece` into a file whose blocks there are unmapped.
    pub(crate) fn map_piece(&mut self, file: FileId, piece: &Piece) -> Result<(), Stop> {
        self.put_piece(file, piece);
        let mut extent = self.extent(file)?;
        extent.blocks += piece.occupied();
        self.put_extent(file, extent);
        Ok(())
    }

    /// Puts `extent` in place of as many blocks that were set aside at `block`: they are the same
    /// blocks on disk, now written.
    pub(crate) fn replace_set_aside(
        &mut self,
        file: FileId,
        block: u64,
        extent: Extent,
    ) -> Result<(), Stop> {
        let end = block + extent.checksums.len() as u64;
        let piece = self.pieces(file, block, end, 1)?.pop().expect("the caller has just seen it");
        if piece.block < block {
            self.put_piece(file, &piece.cut(piece.block, block));
        }
        if end < piece.end() {
            self.put_piece(file, &piece.cut(end, piece.end()));
        }
        self.put_piece(file, &Piece { block, data: FileData::Extent(extent) });
        Ok(())
    }

    fn put_piece(&mut self, file: FileId, piece: &Piece) {
        let key = file.key(Kind::DATA, piece.block * BLOCK);
        self.changes.items.insert(key, Some(Value::from(piece.data.encode())));
    }

    fn delete_piece(&mut self, file: FileId, piece: &Piece) {
        self.changes.items.insert(file.key(Kind::DATA, piece.block * BLOCK), None);
    }

    fn free_run(
        &mut self,
        file: FileId,
        run: Run,
        birth: Txg,
        sharing: Sharing,
    ) -> Result<(), Stop> {
        let mut runs = vec![run];
        if sharing == Sharing::Shared {
            runs = self.drop_reference(file.subvol, run)?;
        }
        for run in runs {
            self.changes.free(file, run, birth);
        }
        Ok(())
    }

    /// Accepted bytes of blocks `from..to` are void, or are in items of this batch now.
    pub(crate) fn drop_accepted(&mut self, file: FileId, from: u64, to: u64) {
        let from = from * BLOCK;
        let to = to.saturating_mul(BLOCK);
        self.changes.batch.dropped.push(DroppedRange { file, from, to });
    }

    /// Replaces the bytes of one block, which ride in the journal until they are written.
    fn replace_block(&mut self, file: FileId, block: u64, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.changes.batch.bytes.push(JournaledBytes { file, offset: block * BLOCK, bytes });
        }
    }
}
