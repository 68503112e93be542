//! Accepted bytes become extents.
//!
//! 1. **Plan**: take the segments as they are now; neighbours within a stripe make one run.
//! 2. **Write**: allocate blocks, compute checksums, keep many writes in flight. No object is
//!    locked.
//! 3. **Map**: with the file locked, put extents for those blocks that nobody wrote over or cut off
//!    meanwhile; give the others back. One batch for each file.
//!
//! Small files skip 1 and 2: their bytes go into the item. Blocks that were set aside for the file
//! are written in place, with the file locked so that nobody frees them meanwhile; step 3 looks
//! whether they still are set aside.
//!
//! The size in the FILE item advances in step 3 to what the file's size was before step 1, once all
//! bytes below it are written, and not at all if the file was cut since. So it is always a size
//! that the file had. What a crash leaves behind the end, of a writeback that had not come so far,
//! is cleared when the file grows (`LocalTxn::clear_behind_end`).

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::checksum::crc32c;
use gabion_base::disk::{DiskRequest, Durability, Ticket};
use gabion_base::sync::MutexGuard;

use crate::alloc::Purpose;
use crate::error::MapError;
use crate::extents::Piece;
use crate::file::FileState;
use crate::file::dirty::{InJournal, STRIPE_BLOCKS, Segment};
use crate::format::item::{FileData, INLINE_LENGTH_MAX};
use crate::format::journal::Run;
use crate::journal::{Flushed, Position};
use crate::key::FileId;
use crate::map::LocalMap;
use crate::txn::{LockMode, Stop};
use crate::written::{Ranges, WrittenRun};

/// Bytes of one file that an fsync puts into the journal instead of writing extents: below this,
/// one write of the journal beats a write of data, a flush, and the journal's write.
const JOURNALED_BYTES_MAX: u64 = 64 * 1024;
/// Bytes that fsync puts into the journal stay below this part of the ring, and a commit is made
/// when those of cuts and holes come on top of that: a commit can always carry them over, and a
/// replay never needs much memory.
const JOURNALED_PART_OF_RING: u64 = 8;
/// Blocks (16 MiB) that are written before their files are mapped.
const BATCH_BLOCKS: u64 = 4096;
/// Files that are written together.
const BATCH_FILES: usize = 512;

/// A file whose accepted bytes are being written.
struct Flight<'a> {
    state: &'a Arc<FileState>,
    _one_at_a_time: MutexGuard<'a, ()>,
    size: u64,
    cuts: u64,
    segments: Vec<Segment>,
    /// Written to blocks that were allocated for it.
    runs: Vec<WrittenRun>,
    /// Written to blocks that were set aside for the file, in order.
    in_place: Vec<WrittenRun>,
    /// Whether all segments fit into this flight.
    whole: bool,
}

impl LocalMap {
    /// Puts all accepted bytes of a file into its items. They are not durable by that.
    pub fn flush_file(&self, file: FileId) -> Result<(), MapError> {
        let Some(state) = self.files.find(file) else { return Ok(()) };
        self.write_back(&[state])
    }

    /// Makes a file and all that completed before durable.
    pub fn sync_file(&self, file: FileId) -> Result<(), MapError> {
        self.check_writable()?;
        let unsettled = self.files.find(file).filter(|state| !state.is_settled());
        let position = match unsettled {
            None => self.journal.position(),
            Some(state) => match self.journal_bytes(&state)? {
                Some(position) => position,
                None => {
                    self.write_back(&[state])?;
                    self.journal.position()
                }
            },
        };
        match self.journal.flush(position) {
            Ok(Flushed::Durable) => Ok(()),
            Ok(Flushed::RingFull) => self.commit().map(drop),
            Err(failure) => {
                let failure = MapError::Disk(failure);
                self.stop(&failure);
                Err(failure)
            }
        }
    }

    /// Makes everything that completed before durable.
    pub fn sync(&self) -> Result<(), MapError> {
        self.check_writable()?;
        self.write_back_all(&|_| true)?;
        self.commit().map(drop)
    }

    /// Writes accepted bytes until half of what is allowed is left.
    pub fn write_back_some(&self) -> Result<(), MapError> {
        let enough = self.limits.dirty / 8;
        self.write_back_all(&|map| map.dirty_bytes() > enough)
    }

    /// Writes accepted bytes of all files as long as `go_on` says so.
    pub(crate) fn write_back_all(&self, go_on: &dyn Fn(&Self) -> bool) -> Result<(), MapError> {
        let mut files = self.files.unsettled();
        // By number: files made one after the other lie side by side on disk. And one order of
        // the writeback locks for all.
        files.sort_unstable_by_key(|state| state.file);
        let mut first_error = None;
        let mut rest = &files[..];
        while !rest.is_empty() && go_on(self) {
            let mut blocks = 0;
            let count = rest
                .iter()
                .take_while(|state| {
                    let fits = blocks < BATCH_BLOCKS;
                    blocks += state.dirty_blocks();
                    fits
                })
                .take(BATCH_FILES)
                .count();
            let (batch, others) = rest.split_at(count.max(1));
            rest = others;
            if let Err(error) = self.write_back(batch) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Writes the accepted bytes of `files`, which are in order.
    fn write_back(&self, files: &[Arc<FileState>]) -> Result<(), MapError> {
        let mut flights = Vec::with_capacity(files.len());
        for state in files {
            let guard = state.writeback.lock();
            flights.push(Flight::plan(state, guard));
        }
        // A file with more than a batch of bytes takes several rounds.
        loop {
            let outcome = self.write_runs(&mut flights);
            for flight in &mut flights {
                let mapped = if outcome.is_ok() { self.map_flight(flight) } else { Ok(()) };
                flight.in_place.clear();
                let returned = self.give_back(flight);
                mapped.and(returned)?;
            }
            outcome?;
            flights.retain(|flight| !flight.whole);
            if flights.is_empty() {
                return Ok(());
            }
            flights.iter_mut().for_each(Flight::take_segments);
        }
    }

    /// Step 2 for all flights: their writes are in flight together.
    fn write_runs(&self, flights: &mut [Flight<'_>]) -> Result<(), MapError> {
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

    /// Step 3 for one file.
    fn map_flight(&self, flight: &mut Flight<'_>) -> Result<(), MapError> {
        let state = flight.state;
        let file = state.file;
        let mapped = self.attempt(|txn| -> Result<(Vec<Ranges>, Ranges), Stop> {
            txn.ensure(file, LockMode::Exclusive)?;
            let birth = self.view.load().active.txg();
            let mut mapped = Vec::with_capacity(flight.runs.len());
            if flight.fits_inline() {
                txn.map_inline(state, &flight.segments)?;
            }
            for written in &flight.runs {
                mapped.push(txn.map_written(state, &flight.segments, written, birth)?);
            }
            let mut missed = Vec::new();
            for written in &flight.in_place {
                missed.extend(txn.map_in_place(state, &flight.segments, written)?);
            }
            if flight.whole && missed.is_empty() && state.cuts() == flight.cuts {
                let mut extent = txn.extent(file)?;
                if extent.size < flight.size {
                    extent.size = flight.size;
                    txn.put_extent(file, extent);
                }
            }
            txn.changes.unflushed = !flight.runs.is_empty() || !flight.in_place.is_empty();
            Ok((mapped, missed))
        });
        let (mapped, missed) = mapped.map_err(world)?;
        flight.whole &= missed.is_empty();
        for (written, mapped) in flight.runs.iter_mut().zip(mapped) {
            written.forget(&mapped, |run| self.alloc.give_back(run))?;
        }
        self.land(flight);
        self.settle_file(file);
        Ok(())
    }

    /// Gives back what was allocated and not mapped.
    fn give_back(&self, flight: &mut Flight<'_>) -> Result<(), MapError> {
        let returned = flight.runs.iter().try_for_each(|written| self.alloc.give_back(written.run));
        self.land(flight);
        returned
    }

    fn land(&self, flight: &mut Flight<'_>) {
        let blocks = flight.runs.drain(..).map(|written| u64::from(written.run.count)).sum();
        self.space.land(blocks);
    }

    fn settle_file(&self, file: FileId) {
        let mut wanted = crate::locks::Wanted::default();
        wanted.add(file, LockMode::Exclusive);
        let _held = crate::locks::Held::acquire(&self.locks, &wanted);
        self.files.leave(file);
    }

    /// What fsync may put into the journal before the next commit.
    pub(crate) fn journaled_bytes_max(&self) -> u64 {
        self.journal.ring_bytes() / JOURNALED_PART_OF_RING
    }

    /// Puts the accepted bytes of a file into the journal's buffer, if they are few. Returns the
    /// position that makes them durable.
    fn journal_bytes(&self, state: &Arc<FileState>) -> Result<Option<Position>, MapError> {
        let _one_at_a_time = state.writeback.lock();
        let file = state.file;
        let limit = self.journaled_bytes_max();
        self.attempt(|txn| -> Result<Option<Position>, Stop> {
            txn.ensure(file, LockMode::Exclusive)?;
            let mut segments = txn.accepted(file);
            segments.retain(|segment| segment.journaled != InJournal::Yes);
            let bytes: u64 = segments.iter().map(|part| part.slice.bytes().len() as u64).sum();
            let journaled = self.journaled_bytes.load(std::sync::atomic::Ordering::Acquire);
            if bytes > JOURNALED_BYTES_MAX || journaled + bytes > limit {
                return Ok(None);
            }
            let mut extent = txn.extent(file)?;
            if extent.size != state.size() {
                extent.size = state.size();
                txn.put_extent(file, extent);
            }
            let journaled = segments.into_iter().map(|segment| (Arc::clone(state), segment));
            txn.changes.journaled.extend(journaled);
            Ok(Some(self.journal.position()))
        })
        .map_err(world)
        // The batch was appended after the closure looked: the position now includes it.
        .map(|position| position.map(|_| self.journal.position()))
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

impl<'a> Flight<'a> {
    fn plan(state: &'a Arc<FileState>, guard: MutexGuard<'a, ()>) -> Self {
        let mut flight = Self {
            state,
            _one_at_a_time: guard,
            size: 0,
            cuts: 0,
            segments: Vec::new(),
            runs: Vec::new(),
            in_place: Vec::new(),
            whole: false,
        };
        flight.take_segments();
        flight
    }

    /// Looks at the file once more. The size is taken before the segments: all bytes below it are
    /// among them.
    fn take_segments(&mut self) {
        self.cuts = self.state.cuts();
        self.size = self.state.size();
        self.segments = self.state.dirty.all();
        let mut blocks = 0;
        let mut fits = |segment: &Segment| {
            blocks += segment.slice.count() as u64;
            blocks <= BATCH_BLOCKS
        };
        let count = self.segments.iter().map_while(|segment| fits(segment).then_some(())).count();
        self.whole = count == self.segments.len();
        self.segments.truncate(count);
    }

    /// The segments without what was written in place.
    fn elsewhere(&self) -> Vec<Segment> {
        let mut elsewhere = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            let mut at = segment.block;
            let first = self.in_place.partition_point(|written| written.end() <= at);
            for written in
                self.in_place[first..].iter().take_while(|written| written.block < segment.end())
            {
                if at < written.block {
                    elsewhere.push(segment.cut(at, written.block));
                }
                at = written.end();
            }
            if at < segment.end() {
                elsewhere.push(segment.cut(at, segment.end()));
            }
        }
        elsewhere
    }

    fn fits_inline(&self) -> bool {
        self.size <= INLINE_LENGTH_MAX as u64 && self.segments.iter().all(|s| s.end() == 1)
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

/// The failure of an operation that the driver ran to its end.
fn world(stop: Stop) -> MapError {
    match stop {
        Stop::Map(error) => error,
        Stop::Need { file, .. } => unreachable!("the driver locks {file:?} itself"),
    }
}
