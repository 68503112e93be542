//! A file's bytes read and accepted.
//!
//! A byte is, in this order: what was accepted last; what an extent holds, if the checksum of its
//! block agrees; zero.
//!
//! Accepting bytes makes whole blocks of them: where a write covers a block in part, the rest is
//! read first. The range is locked meanwhile, so that two writers of one block take turns.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::checksum::crc32c;
use gabion_base::disk::{Disk, DiskRequest};
use gabion_base::ids::BlockAddr;

use crate::copies;
use crate::error::MapError;
use crate::extents::LastBlock;
use crate::file::dirty::{InJournal, Segment};
use crate::format::item::{Extent, FileData};
use crate::key::FileId;
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Payload, Stop, Txn};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Pieces looked up at once: a read of 1 MiB of single blocks takes one step.
const PIECES_PER_STEP: usize = 256;

/// Blocks of a file that stand side by side on the device, too.
struct Stored {
    /// First block of the file.
    block: u64,
    /// First block on the device.
    addr: BlockAddr,
    /// Of each block.
    checksums: Vec<u32>,
}

impl Stored {
    fn request(&self) -> DiskRequest {
        DiskRequest::Read { addr: self.addr, count: self.checksums.len() }
    }

    /// Whether `extent` at `block` of the file goes on where this ends, on the device as well.
    fn ends_at(&self, block: u64, extent: &Extent) -> bool {
        let count = self.checksums.len() as u64;
        self.block + count == block && self.addr.plus(count) == extent.addr
    }

    /// Checks what was read, and reads again from other copies what is wrong.
    fn verify(&self, disk: &dyn Disk, file: FileId, bytes: &mut [u8]) -> Result<(), Stop> {
        let blocks = bytes.chunks_mut(BLOCK_SIZE).zip(&self.checksums).enumerate();
        for (index, (block, checksum)) in blocks {
            if crc32c(block) != *checksum {
                let offset = (self.block + index as u64) * BLOCK;
                let addr = self.addr.plus(index as u64);
                let wrong = || MapError::BadData { file, offset, addr };
                copies::right_copy(disk, addr, 1, wrong(), |found| {
                    if crc32c(found.bytes()) != *checksum {
                        return Err(wrong());
                    }
                    block.copy_from_slice(found.bytes());
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// The part of `into`, which is at `offset` of the file, for exactly these blocks; `None` if it
    /// has no room for all of them.
    fn place<'a>(&self, offset: u64, into: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let start = (self.block * BLOCK).checked_sub(offset)? as usize;
        into.get_mut(start..start + self.checksums.len() * BLOCK_SIZE)
    }
}

impl LocalTxn<'_> {
    /// Implements [`Txn::read`].
    pub(crate) fn read_bytes(
        &mut self,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize, Stop> {
        let state = self.state(file);
        let end = offset.saturating_add(into.len() as u64);
        let _range = state.as_ref().map(|state| state.ranges.lock(offset, end, LockMode::Shared));
        let size = self.file(file)?.size;
        if offset >= size {
            return Ok(0);
        }
        let length = (into.len() as u64).min(size - offset) as usize;
        // To the end of the last block if there is room: whole blocks need no buffer in between.
        let whole = into.len().min(length.next_multiple_of(BLOCK_SIZE));
        self.fill(file, offset, &mut into[..whole])?;
        Ok(length)
    }

    /// Fills `into` with the file's bytes from `offset`, whatever the size.
    pub(crate) fn fill(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> Result<(), Stop> {
        if into.is_empty() {
            return Ok(());
        }
        let (from, to) = (offset / BLOCK, (offset + into.len() as u64).div_ceil(BLOCK));
        // The file is locked, so no writeback moves accepted bytes into items meanwhile.
        let segments = self.state(file).map(|state| state.dirty.within(from, to));
        let segments = segments.unwrap_or_default();
        let mut at = from;
        for segment in &segments {
            if segment.block > at {
                self.fill_stored(file, at, segment.block, offset, into)?;
            }
            copy_blocks(segment.block, segment.slice.bytes(), offset, into);
            at = segment.end();
        }
        if at < to {
            self.fill_stored(file, at, to, offset, into)?;
        }
        Ok(())
    }

    /// Fills the part of `into` within blocks `from..to` from items. `offset` is that of `into`.
    fn fill_stored(
        &mut self,
        file: FileId,
        from: u64,
        to: u64,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Stop> {
        let mut at = from;
        while at < to {
            let pieces = self.pieces(file, at, to, PIECES_PER_STEP)?;
            let full = pieces.len() == PIECES_PER_STEP;
            let mut fetches: Vec<Stored> = Vec::new();
            for piece in pieces {
                if piece.block > at {
                    zero_blocks(at, piece.block, offset, into);
                }
                let part = piece.cut(piece.block.max(at), piece.end().min(to));
                at = part.end();
                match part.data {
                    FileData::Inline(bytes) => {
                        zero_blocks(part.block, at, offset, into);
                        copy_blocks(part.block, &bytes, offset, into);
                    }
                    FileData::Unwritten(_) => zero_blocks(part.block, at, offset, into),
                    FileData::Extent(extent) => match fetches.last_mut() {
                        Some(last) if last.ends_at(part.block, &extent) => {
                            last.checksums.extend(extent.checksums);
                        }
                        _ => {
                            let Extent { addr, checksums, .. } = extent;
                            fetches.push(Stored { block: part.block, addr, checksums });
                        }
                    },
                }
            }
            self.fetch(file, &fetches, offset, into)?;
            if !full {
                zero_blocks(at, to, offset, into);
                return Ok(());
            }
        }
        Ok(())
    }

    fn fetch(
        &self,
        file: FileId,
        fetches: &[Stored],
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), Stop> {
        let disk = &self.map.disk;
        // A single read stays on this thread, and needs no other memory than the reader's.
        if let [stored] = fetches
            && let Some(place) = stored.place(offset, into)
        {
            disk.read(stored.addr, place).map_err(MapError::from)?;
            return stored.verify(&**disk, file, place);
        }
        // Several are in flight together.
        let tickets: Vec<_> = fetches.iter().map(|stored| disk.submit(stored.request())).collect();
        for (stored, ticket) in fetches.iter().zip(tickets) {
            let blocks = ticket.wait().map_err(MapError::from)?;
            let mut blocks = blocks.expect("a read completes with blocks");
            stored.verify(&**disk, file, blocks.bytes_mut())?;
            copy_blocks(stored.block, blocks.bytes(), offset, into);
        }
        Ok(())
    }

    /// Implements [`Txn::write`].
    pub(crate) fn write_bytes(
        &mut self,
        file: FileId,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<(), Stop> {
        let length = payload.bytes().len() as u64;
        if length == 0 {
            return Ok(());
        }
        let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or(Stop::Map(MapError::TooLarge))?;
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        let known = self.state(file);
        if let Some(state) = &known {
            self.ensure_unfenced(state)?;
        }
        let map = self.map;
        let held = map.space.hold(last - first);
        self.ensure_room(file, first, last)?;
        let size = self.extent(file)?.size;
        let mut repaired = None;
        let size_now = known.as_ref().map_or(size, |state| state.size());
        if end > size_now && known.is_none_or(|state| !state.is_clear()) {
            // Alone: what another writer has accepted, but not counted yet, is not left over.
            self.ensure(file, LockMode::Exclusive)?;
            let begins_there = first == size_now / BLOCK;
            let last_block = if begins_there { LastBlock::Overwritten } else { LastBlock::Kept };
            repaired = self.clear_behind_end(file, size_now, last_block)?;
        }
        let state = self.map.files.enter(file, size);
        if let Some(bytes) = repaired {
            let slice = BlockSlice::new(Blocks::from_bytes(&bytes));
            map.space.promise(1);
            map.accept(&state, size_now / BLOCK, &slice, InJournal::No);
        }
        let _range = state.ranges.lock(first * BLOCK, last * BLOCK, LockMode::Exclusive);
        let slice = match payload {
            Payload::Shared { blocks, length }
                if offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK_SIZE) =>
            {
                blocks.part(0, length / BLOCK_SIZE)
            }
            payload => self.whole_blocks(file, offset, payload.bytes(), state.size())?,
        };
        self.charge(&state, first, last)?;
        self.held.touch(file);
        held.promise();
        map.accept(&state, first, &slice, InJournal::No);
        if end > size_now {
            state.set_clear();
        }
        state.grow(end);
        Ok(())
    }

    /// Stops unless there is space for the blocks of a write, which are held. Blocks that were set
    /// aside for the file need none: writeback uses them in place.
    fn ensure_room(&mut self, file: FileId, first: u64, last: u64) -> Result<(), Stop> {
        let Err(stop) = self.ensure_held(last - first) else { return Ok(()) };
        let mut at = first;
        while at < last {
            let Some(piece) = self.pieces(file, at, last, 1)?.pop() else { return Err(stop) };
            if piece.block > at || !self.is_set_aside(file, &piece) {
                return Err(stop);
            }
            at = piece.end();
        }
        self.forget_wants();
        Ok(())
    }

    /// The blocks that hold `bytes` at `offset`, with what the file has around them.
    fn whole_blocks(
        &mut self,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        size: u64,
    ) -> Result<BlockSlice, Stop> {
        let end = offset + bytes.len() as u64;
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        let mut blocks = Blocks::zeroed((last - first) as usize);
        let start = (offset - first * BLOCK) as usize;
        let all = blocks.bytes_mut();
        if start > 0 {
            self.fill(file, first * BLOCK, &mut all[..BLOCK_SIZE])?;
            let kept = size.saturating_sub(first * BLOCK).min(BLOCK) as usize;
            all[kept..BLOCK_SIZE].fill(0);
        }
        let tail_block = last - 1;
        let reads_tail = !end.is_multiple_of(BLOCK) && end < size;
        if reads_tail && (tail_block > first || start == 0) {
            let tail = all.len() - BLOCK_SIZE;
            self.fill(file, tail_block * BLOCK, &mut all[tail..])?;
        }
        all[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(BlockSlice::new(blocks))
    }

    /// The accepted bytes of a file, as they are now.
    pub(crate) fn accepted(&self, file: FileId) -> Vec<Segment> {
        self.state(file).map(|state| state.dirty.all()).unwrap_or_default()
    }
}

/// Copies `bytes`, which stand at block `block` of a file, into their part of `into`.
fn copy_blocks(block: u64, bytes: &[u8], offset: u64, into: &mut [u8]) {
    let (from, to) = (block * BLOCK, block * BLOCK + bytes.len() as u64);
    let (from_now, to_now) = (from.max(offset), to.min(offset + into.len() as u64));
    if from_now < to_now {
        into[(from_now - offset) as usize..(to_now - offset) as usize]
            .copy_from_slice(&bytes[(from_now - from) as usize..(to_now - from) as usize]);
    }
}

/// Zeros the part of `into` within blocks `from..to` of a file.
fn zero_blocks(from: u64, to: u64, offset: u64, into: &mut [u8]) {
    let (from, to) = (from.saturating_mul(BLOCK), to.saturating_mul(BLOCK));
    let (from, to) = (from.max(offset), to.min(offset + into.len() as u64));
    if from < to {
        into[(from - offset) as usize..(to - offset) as usize].fill(0);
    }
}
