//! What a file has where: its pieces, the gaps between them, and the bytes of a block.
//!
//! Two layers answer together: items say what extents hold, and the accepted bytes of the file,
//! which are newer, lie over them. Blocks that were set aside hold no bytes, but they are no gap.
//!
//! Searches look at a bounded number of items in each step, so that they need no more memory in a
//! file of many pieces than in a file of few.

use gabion_base::BLOCK_SIZE;
use gabion_base::codec::DecodeError;

use crate::error::MapError;
use crate::extents::{BLOCK, Piece, SCAN_ITEMS};
use crate::format::item::FileData;
use crate::key::{FileId, Kind};
use crate::transaction::LocalTxn;
use crate::txn::{LockMode, SeekTarget, Stop, Txn};

impl LocalTxn<'_> {
    /// At most `limit` pieces of a file that overlap blocks `from..to`, whole and in order.
    pub(crate) fn pieces(
        &mut self,
        file: FileId,
        from: u64,
        to: u64,
        limit: usize,
    ) -> Result<Vec<Piece>, Stop> {
        let key = |block: u64| file.key(Kind::DATA, block.saturating_mul(BLOCK));
        let mut pieces = Vec::new();
        if let Some((first, value)) = self.last(key(0), key(from))? {
            let piece = Piece::decode(first, &value)?;
            if piece.end() > from {
                pieces.push(piece);
            }
        }
        if from + 1 < to && limit > pieces.len() {
            let more = self.scan(key(from + 1), key(to - 1), limit - pieces.len())?;
            for (key, value) in more {
                pieces.push(Piece::decode(key, &value)?);
            }
        }
        for pair in pieces.windows(2) {
            if pair[0].end() > pair[1].block {
                return Err(Stop::Map(MapError::BadItem {
                    key: key(pair[1].block),
                    source: DecodeError::Invalid("overlap of file data"),
                }));
            }
        }
        Ok(pieces)
    }

    /// Ranges of blocks within `from..to` that no item covers.
    pub(super) fn gaps(
        &mut self,
        file: FileId,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, u64)>, Stop> {
        let mut gaps = Vec::new();
        let mut at = from;
        while at < to {
            let pieces = self.pieces(file, at, to, SCAN_ITEMS)?;
            let full = pieces.len() == SCAN_ITEMS;
            for piece in pieces {
                if piece.block > at {
                    gaps.push((at, piece.block));
                }
                at = at.max(piece.end());
            }
            if !full {
                if at < to {
                    gaps.push((at, to));
                }
                break;
            }
        }
        Ok(gaps)
    }

    /// The bytes of a block, or `None` if nothing is stored there.
    pub(super) fn stored_block(
        &mut self,
        file: FileId,
        block: u64,
    ) -> Result<Option<Vec<u8>>, Stop> {
        let dirty = self.state(file).and_then(|state| state.dirty.at(block));
        let pieces = self.pieces(file, block, block + 1, 1)?;
        let stored = pieces.iter().any(|piece| !matches!(piece.data, FileData::Unwritten(_)));
        if dirty.is_none() && !stored {
            return Ok(None);
        }
        let mut bytes = vec![0; BLOCK_SIZE];
        self.fill(file, block * BLOCK, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Implements [`Txn::seek`].
    pub(crate) fn seek_range(
        &mut self,
        file: FileId,
        offset: u64,
        target: SeekTarget,
    ) -> Result<Option<u64>, Stop> {
        self.ensure(file, LockMode::Shared)?;
        let size = self.file(file)?.size;
        let end = size.div_ceil(BLOCK);
        let mut at = offset / BLOCK;
        while at < end {
            let (data_from, data_to) = match self.next_stored(file, at, end)? {
                Some(range) => range,
                None => (end, end),
            };
            match target {
                SeekTarget::Data if data_from < end => {
                    return Ok(Some(offset.max(data_from * BLOCK)));
                }
                SeekTarget::Data => return Ok(None),
                SeekTarget::Hole if data_from > at => return Ok(Some(offset.max(at * BLOCK))),
                SeekTarget::Hole => at = data_to,
            }
        }
        Ok(match target {
            SeekTarget::Data => None,
            SeekTarget::Hole => Some(size),
        })
    }

    /// The next range of blocks at or after `at` that holds bytes.
    fn next_stored(&mut self, file: FileId, at: u64, end: u64) -> Result<Option<(u64, u64)>, Stop> {
        let mut from = at;
        let mut best: Option<(u64, u64)> = None;
        while from < end {
            let pieces = self.pieces(file, from, end, 16)?;
            let Some(last) = pieces.last() else { break };
            from = last.end();
            let mut stored =
                pieces.iter().filter(|piece| !matches!(piece.data, FileData::Unwritten(_)));
            if let Some(piece) = stored.next() {
                best = Some((piece.block.max(at), piece.end()));
                break;
            }
        }
        if let Some(state) = self.state(file)
            && let Some(segment) = state.dirty.within(at, end).first()
        {
            let dirty = (segment.block, segment.end());
            if best.is_none_or(|best| dirty.0 <= best.0) {
                best = Some(dirty);
            }
        }
        Ok(best)
    }
}
