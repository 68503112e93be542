//! A file's items changed by an operation: cutting, punching, sharing, shifting, setting aside.
//!
//! All of it rests on [`LocalTxn::unmap`], which takes a range of whole blocks out of a file's
//! items: items inside go, items at its ends are trimmed, blocks are freed. What is put in place
//! afterwards never overlaps what is there.
//!
//! Accepted bytes that are not in extents yet lie over the items and are dropped by range.

use gabion_base::BLOCK_SIZE;
use gabion_base::codec::DecodeError;
use gabion_base::ids::Txg;

use crate::alloc::Purpose;
use crate::error::MapError;
use crate::format::item::{Extent, FileData, Sharing, UNWRITTEN_BLOCKS_MAX, Unwritten};
use crate::format::journal::{DroppedRange, JournaledBytes, Run};
use crate::key::{FileId, Key, Kind};
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Removal, SeekTarget, Stop, Txn, Value};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// The block after the last one that a file can have.
const FILE_BLOCKS_MAX: u64 = FILE_SIZE_MAX.div_ceil(BLOCK);
/// Items that are looked at in one step.
const SCAN_ITEMS: usize = 256;
/// Extents that one step of a removal frees: a bounded batch of some 20 KiB.
const REMOVE_ITEMS: usize = 512;

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
    fn occupied(&self) -> u64 {
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

    fn shared(mut self) -> Self {
        match &mut self.data {
            FileData::Inline(_) => {}
            FileData::Extent(extent) => extent.sharing = Sharing::Shared,
            FileData::Unwritten(run) => run.sharing = Sharing::Shared,
        }
        self
    }
}

/// What becomes of a file's last block when the file grows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastBlock {
    /// It stays as it is.
    Kept,
    /// A write begins in it, and will put zeros behind the end itself.
    Overwritten,
}

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

    fn put_piece(&mut self, file: FileId, piece: &Piece) {
        let key = file.key(Kind::DATA, piece.block * BLOCK);
        self.changes.items.insert(key, Some(Value::from(piece.data.encode())));
    }

    fn delete_piece(&mut self, file: FileId, piece: &Piece) {
        self.changes.items.insert(file.key(Kind::DATA, piece.block * BLOCK), None);
    }

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

    /// Puts `piece` into a file whose blocks there are unmapped.
    pub(crate) fn map_piece(&mut self, file: FileId, piece: &Piece) -> Result<(), Stop> {
        self.put_piece(file, piece);
        let mut extent = self.extent(file)?;
        extent.blocks += piece.occupied();
        self.put_extent(file, extent);
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

    /// Implements [`Txn::set_size`].
    pub(crate) fn resize(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        if size > FILE_SIZE_MAX {
            return Err(Stop::Map(MapError::TooLarge));
        }
        self.ensure(file, LockMode::Exclusive)?;
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

    fn grow_from(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
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

    /// Implements [`Txn::punch`].
    pub(crate) fn punch_hole(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        let size = self.file(file)?.size;
        let to = to.min(FILE_SIZE_MAX);
        if from >= to {
            return Ok(());
        }
        // Whole blocks go; parts of blocks at the ends are overwritten with zeros.
        let (first, last) = (from.div_ceil(BLOCK), to / BLOCK);
        // Everything up to the end of the file includes the rest of its last block.
        let last = if to >= size { to.div_ceil(BLOCK) } else { last };
        if !from.is_multiple_of(BLOCK) && from < size {
            self.zero_within(file, from, to.min(first * BLOCK))?;
        }
        if last >= first && last * BLOCK < to {
            self.zero_within(file, last * BLOCK, to)?;
        }
        if first < last {
            self.unmap(file, first, last)?;
            self.drop_accepted(file, first, last);
        }
        Ok(())
    }

    /// Zeros bytes `from..to` of one block, if anything is stored there.
    fn zero_within(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure_settled(file)?;
        let block = from / BLOCK;
        let Some(mut bytes) = self.stored_block(file, block)? else { return Ok(()) };
        let (from, to) = ((from - block * BLOCK) as usize, (to - block * BLOCK) as usize);
        bytes[from..to].fill(0);
        self.replace_block(file, block, bytes);
        Ok(())
    }

    /// The bytes of a block, or `None` if nothing is stored there.
    fn stored_block(&mut self, file: FileId, block: u64) -> Result<Option<Vec<u8>>, Stop> {
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

    /// Implements [`Txn::allocate`].
    pub(crate) fn set_aside(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        if to > FILE_SIZE_MAX {
            return Err(Stop::Map(MapError::TooLarge));
        }
        self.map.check_changeable(file.subvol)?;
        self.ensure(file, LockMode::Exclusive)?;
        let (from, to) = (from / BLOCK, to.div_ceil(BLOCK));
        let gaps = self.gaps(file, from, to)?;
        let missing = gaps.iter().map(|gap| gap.1 - gap.0).sum();
        self.ensure_space(missing)?;
        let birth = self.map.view.load().active.txg();
        for (from, to) in gaps {
            let mut at = from;
            while at < to {
                let count = (to - at).min(u64::from(UNWRITTEN_BLOCKS_MAX)) as u32;
                let purpose = Purpose::Data { count, hint: file.ino.0 };
                let run = self.map.alloc.allocate(purpose)?;
                self.changes.set_aside.push(run);
                self.changes.batch.allocated.push(run);
                let sharing = Sharing::Sole;
                let data = Unwritten { addr: run.addr, birth, sharing, count: run.count };
                let piece = Piece { block: at, data: FileData::Unwritten(data) };
                self.map_piece(file, &piece)?;
                at += u64::from(run.count);
            }
        }
        Ok(())
    }

    /// Ranges of blocks within `from..to` that no item covers.
    fn gaps(&mut self, file: FileId, from: u64, to: u64) -> Result<Vec<(u64, u64)>, Stop> {
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
