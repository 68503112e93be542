//! Step 2: bytes go to blocks.
//!
//! - What was set aside for the file is written in place, in the file's stripes, with the file
//!   locked.
//! - All else gets new blocks. Segments side by side within a stripe make one extent, as long as
//!   the allocator gives a run so long.
//! - Runs that follow one another on disk become one request, also of different files, and all
//!   requests of a round are in flight together.
//!
//! When something fails nothing more is begun, but what was submitted is waited for: its blocks are
//! given back afterwards, and nobody may write to them then.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::checksum::crc32c;
use gabion_base::disk::{DiskRequest, Durability, Ticket};

use crate::alloc::Purpose;
use crate::error::MapError;
use crate::extents::Piece;
use crate::file::dirty::{STRIPE_BLOCKS, Segment};
use crate::format::item::FileData;
use crate::format::journal::Run;
use crate::map::LocalMap;
use crate::txn::{LockMode, Stop};
use crate::writeback::plan::Flight;
use crate::writeback::world;
use crate::written::WrittenRun;

impl LocalMap {
    /// Step 2 for all flights: their writes are in flight together.
    pub(super) fn write_runs(&self, flights: &mut [Flight<'_>]) -> Result<(), MapError> {
        let mut writes = Writes { map: self, pending: None, tickets: Vec::new() };
        let mut outcome = Ok(());
        for flight in flights.iter_mut() {
            if outcome.is_ok() && !flight.fits_inline() {
                outcome = self.write_flight(flight, &mut writes);
            }
        }
        let waited = writes.finish();
        outcome.and(waited)
    }

    fn write_flight(
        &self,
        flight: &mut Flight<'_>,
        writes: &mut Writes<'_>,
    ) -> Result<(), MapError> {
        let file = flight.state.file;
        if self.has_set_aside(flight)? {
            self.write_in_place(flight)?;
        }
        let elsewhere = flight.elsewhere();
        let mut rest = &elsewhere[..];
        while let Some(first) = rest.first() {
            // Segments side by side within a stripe become one extent.
            let mut end = first.end();
            let stripe = first.block / STRIPE_BLOCKS;
            let joins = |segment: &&Segment, end: &mut u64| {
                let joins = segment.block == *end && segment.block / STRIPE_BLOCKS == stripe;
                if joins {
                    *end = segment.end();
                }
                joins
            };
            let count = 1 + rest[1..].iter().take_while(|segment| joins(segment, &mut end)).count();
            let (run, others) = rest.split_at(count);
            rest = others;
            let mut block = first.block;
            while block < end {
                let purpose = Purpose::Data { count: (end - block) as u32, hint: file.ino.0 };
                let allocated = self.alloc.allocate(purpose)?;
                self.space.take_off(u64::from(allocated.count));
                let to = block + u64::from(allocated.count);
                let parts = parts_within(run, block, to);
                let checksums =
                    parts.iter().flat_map(|part| part.bytes().chunks(BLOCK_SIZE)).map(crc32c);
                let checksums = checksums.collect();
                flight.runs.push(WrittenRun { block, run: allocated, checksums });
                writes.add(allocated, parts)?;
                block = to;
            }
        }
        Ok(())
    }

    /// Whether any of a flight's blocks were set aside for the file.
    fn has_set_aside(&self, flight: &Flight<'_>) -> Result<bool, MapError> {
        let file = flight.state.file;
        self.attempt(|txn| -> Result<bool, Stop> {
            for segment in &flight.segments {
                let pieces = txn.pieces(file, segment.block, segment.end(), usize::MAX)?;
                if pieces.iter().any(|piece| txn.is_set_aside(file, piece)) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .map_err(world)
    }

    /// Writes those blocks of a flight that were set aside for the file, in place. Until their item
    /// says that they are written, nobody reads them.
    fn write_in_place(&self, flight: &mut Flight<'_>) -> Result<(), MapError> {
        let state = flight.state;
        let file = state.file;
        for segment in &flight.segments {
            let written = self.attempt(|txn| -> Result<Vec<WrittenRun>, Stop> {
                txn.ensure(file, LockMode::Exclusive)?;
                let mut written = Vec::new();
                for (from, to) in state.dirty.unchanged(segment) {
                    for piece in txn.pieces(file, from, to, usize::MAX)? {
                        if txn.is_set_aside(file, &piece) {
                            let (from, to) = (from.max(piece.block), to.min(piece.end()));
                            self.write_piece(segment, &piece.cut(from, to), &mut written)?;
                        }
                    }
                }
                Ok(written)
            });
            flight.in_place.extend(written.map_err(world)?);
        }
        Ok(())
    }

    /// Writes a piece that was set aside, of which `segment` has the bytes. The file is locked.
    fn write_piece(
        &self,
        segment: &Segment,
        piece: &Piece,
        written: &mut Vec<WrittenRun>,
    ) -> Result<(), MapError> {
        let FileData::Unwritten(run) = &piece.data else {
            unreachable!("only blocks that were set aside are written in place")
        };
        // Nothing but the item has said so far that these blocks are the file's.
        self.alloc.check_in_use(Run { addr: run.addr, count: run.count })?;
        let mut block = piece.block;
        while block < piece.end() {
            // An extent stays within its stripe.
            let end = piece.end().min((block / STRIPE_BLOCKS + 1) * STRIPE_BLOCKS);
            let count = end - block;
            let slice = segment.slice.part((block - segment.block) as usize, count as usize);
            let run = Run { addr: run.addr.plus(block - piece.block), count: count as u32 };
            let checksums = slice.bytes().chunks(BLOCK_SIZE).map(crc32c).collect();
            self.disk.write(run.addr, slice, Durability::Cached)?;
            written.push(WrittenRun { block, run, checksums });
            block = end;
        }
        Ok(())
    }
}

/// Writes in flight. Runs that follow one another on disk become one request.
struct Writes<'a> {
    map: &'a LocalMap,
    pending: Option<(Run, Vec<BlockSlice>)>,
    tickets: Vec<Ticket>,
}

impl Writes<'_> {
    fn add(&mut self, run: Run, parts: Vec<BlockSlice>) -> Result<(), MapError> {
        if let Some((last, pending)) = &mut self.pending
            && last.addr.plus(u64::from(last.count)) == run.addr
            && u64::from(last.count) < STRIPE_BLOCKS
        {
            last.count += run.count;
            pending.extend(parts);
            return Ok(());
        }
        self.submit();
        self.pending = Some((run, parts));
        Ok(())
    }

    fn submit(&mut self) {
        if let Some((run, parts)) = self.pending.take() {
            let durability = Durability::Cached;
            let request = DiskRequest::Write { addr: run.addr, parts, durability };
            self.tickets.push(self.map.disk.submit(request));
        }
    }

    /// Waits for all, also when one has failed: their blocks are given back afterwards.
    fn finish(mut self) -> Result<(), MapError> {
        self.submit();
        let mut outcome = Ok(());
        for ticket in self.tickets {
            if let Err(failure) = ticket.wait() {
                outcome = Err(MapError::Disk(failure));
            }
        }
        outcome
    }
}

/// The parts of `segments`, which are side by side, within blocks `from..to`.
fn parts_within(segments: &[Segment], from: u64, to: u64) -> Vec<BlockSlice> {
    let first = segments.partition_point(|segment| segment.end() <= from);
    let within = segments[first..].iter().take_while(|segment| segment.block < to);
    within
        .map(|segment| {
            let (start, end) = (segment.block.max(from), segment.end().min(to));
            segment.slice.part((start - segment.block) as usize, (end - start) as usize)
        })
        .collect()
}
