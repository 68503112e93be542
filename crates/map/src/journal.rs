//! The journal: what makes operations durable between two commits.
//!
//! Every batch is appended to a buffer in memory, in the order in which operations completed.
//! Nobody who does not ask for durability ever waits for it: if a commit comes first, the buffer is
//! dropped. [`Journal::flush`] writes the buffer as units (see [`crate::format::journal`]) with one
//! FUA write; callers that come meanwhile share the next one (group commit).
//!
//! Extents are referenced by batches only after their blocks were written, but those may still be
//! in the device's cache: a flush of the journal flushes the device first if there are any.
//!
//! A commit divides the buffer in two:
//!
//! 1. [`Journal::divide`], at the freeze: batches before it belong to commit N, those after it to
//!    N + 1. A unit never holds both. Until N is durable, a flush writes both parts in order, so
//!    that commit N - 1 plus the journal is always a prefix of what happened.
//! 2. [`Journal::seal`], right before the superblock: nothing more is written until N is durable.
//!    Batches before the division that nobody had flushed are dropped; a number that is skipped
//!    keeps a replay on top of commit N - 1 from going on behind the gap. Says where replay would
//!    start.
//! 3. [`Journal::unseal`], after the superblock: the ring up to the start can be overwritten.
//!
//! Invariants: units stand in the ring in sequence, each carrying the checksum of the one before;
//! `used` blocks from the last durable start to `head` are never overwritten, and never all of
//! the ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::buffer::BlockSlice;
use gabion_base::codec::DecodeError;
use gabion_base::codec::Reader;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{CachePadded, Condvar, Mutex, MutexGuard};

use crate::copies;
use crate::error::MapError;
use crate::format::journal::{
    Batch, UnitId, decode_unit, decode_unit_length, encode_unit, unit_blocks,
};
use crate::format::superblock::JournalStart;
use crate::layout::Layout;

/// A unit is closed when its payload reaches this many bytes: large enough for full bandwidth,
/// small enough for the smallest ring.
const UNIT_PAYLOAD: usize = 128 * 1024;

/// How far the journal has grown, in bytes since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All up to the position asked for is durable.
    Durable,
    /// The ring has no room: only a commit can make it durable.
    RingFull,
}

/// Whether blocks that a batch begins to reference may still be in the device's volatile cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOnDisk {
    /// No: there are none, or they were flushed.
    Flushed,
    /// Yes: the device must be flushed before the batch may be durable.
    Unflushed,
}

/// The journal of one filesystem.
pub struct Journal {
    disk: Arc<dyn Disk>,
    uuid: Uuid,
    start: BlockAddr,
    blocks: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes of all chunks, so that memory can be watched without the lock.
    waiting: CachePadded<AtomicU64>,
}

struct State {
    /// Where the next unit goes.
    next: JournalStart,
    used: u64,
    chunks: VecDeque<Chunk>,
    appended: u64,
    durable: u64,
    boundary: Option<Boundary>,
    data: DataOnDisk,
    phase: Phase,
    failure: Option<DiskError>,
}

/// Batches that will make one unit.
struct Chunk {
    payload: Vec<u8>,
    end: u64,
    closed: bool,
}

/// The division between the batches of commit N and later ones.
struct Boundary {
    at: u64,
    start: Option<JournalStart>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Writing,
    Sealed,
}

impl Journal {
    /// The journal of a filesystem, going on at `next`; the ring must hold nothing that is needed.
    pub fn new(disk: Arc<dyn Disk>, uuid: Uuid, layout: &Layout, next: JournalStart) -> Self {
        let state = State {
            next,
            used: 0,
            chunks: VecDeque::new(),
            appended: 0,
            durable: 0,
            boundary: None,
            data: DataOnDisk::Flushed,
            phase: Phase::Idle,
            failure: None,
        };
        Self {
            disk,
            uuid,
            start: layout.journal,
            blocks: layout.journal_blocks,
            state: Mutex::new(state),
            changed: Condvar::new(),
            waiting: CachePadded::default(),
        }
    }

    /// The journal of a filesystem that was replayed from `start` up to `next`: what stands
    /// between is needed until the next commit.
    pub fn resume(
        disk: Arc<dyn Disk>,
        uuid: Uuid,
        layout: &Layout,
        start: JournalStart,
        next: JournalStart,
    ) -> Self {
        let journal = Self::new(disk, uuid, layout, next);
        let used = (next.position + journal.blocks - start.position) % journal.blocks;
        journal.state.lock().used = used;
        journal
    }

    /// Length of the ring in bytes.
    pub fn ring_bytes(&self) -> u64 {
        self.blocks * gabion_base::BLOCK_SIZE as u64
    }

    /// Appends a batch to the buffer. Returns the position that makes it durable.
    pub fn append(&self, batch: &Batch, data: DataOnDisk) -> Position {
        let mut encoded = Vec::new();
        batch.encode(&mut encoded);
        let mut state = self.state.lock();
        let state = &mut *state;
        if data == DataOnDisk::Unflushed {
            state.data = data;
        }
        let full = |chunk: &Chunk| chunk.closed || chunk.payload.len() >= UNIT_PAYLOAD;
        if state.chunks.back().is_none_or(full) {
            state.chunks.push_back(Chunk { payload: Vec::new(), end: 0, closed: false });
        }
        let chunk = state.chunks.back_mut().expect("just pushed");
        chunk.payload.extend_from_slice(&encoded);
        let length = encoded.len() as u64;
        self.waiting.fetch_add(length, Ordering::Relaxed);
        state.appended += length;
        chunk.end = state.appended;
        Position(state.appended)
    }

    /// The position that makes everything appended so far durable.
    pub fn position(&self) -> Position {
        Position(self.state.lock().appended)
    }

    /// Bytes that wait in memory.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Makes everything up to `upto` durable.
    pub fn flush(&self, upto: Position) -> Result<Flushed, DiskError> {
        let mut state = self.state.lock();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.durable >= upto.0 {
                return Ok(Flushed::Durable);
            }
            if state.phase != Phase::Idle {
                self.changed.wait(&mut state);
                continue;
            }
            let chunks = state.chunks.len();
            if self.write_chunks(&mut state, chunks, Durability::Fua)? == Flushed::RingFull {
                return Ok(Flushed::RingFull);
            }
        }
    }

    /// Batches from here on belong to the next commit. Called while nobody appends.
    pub fn divide(&self) {
        let mut state = self.state.lock();
        assert!(state.boundary.is_none(), "one commit at a time");
        state.close_chunk();
        state.boundary = Some(Boundary { at: state.appended, start: None });
    }

    /// What was appended so far shall be on disk when the journal has been sealed.
    pub fn require_before_seal(&self) -> Position {
        let mut state = self.state.lock();
        state.close_chunk();
        Position(state.appended)
    }

    /// Stops writing until [`Journal::unseal`], drops what commit N holds anyway, and writes what
    /// `require_before_seal` asked for (not flushed: the commit's own flush covers it). Returns
    /// where a replay on top of commit N starts.
    ///
    /// Fails with [`MapError::NoSpace`] if the ring does not hold what is required.
    pub fn seal(&self, required: Position) -> Result<JournalStart, MapError> {
        let mut state = self.state.lock();
        while state.phase != Phase::Idle {
            self.changed.wait(&mut state);
        }
        if let Some(failure) = &state.failure {
            return Err(failure.clone().into());
        }
        let boundary = state.boundary.as_ref().expect("divided before");
        let at = boundary.at;
        let started = boundary.start;
        while let Some(chunk) = state.chunks.pop_front_if(|chunk| chunk.end <= at) {
            self.forget(&chunk);
        }
        let count = state.chunks.iter().filter(|chunk| chunk.end <= required.0).count();
        if count > 0 && started.is_none() {
            // Until commit N is durable, nothing may follow what was just dropped.
            state.next.sequence += 1;
        }
        let start = started.unwrap_or(state.next);
        if count > 0 {
            let written = self.write_chunks(&mut state, count, Durability::Cached)?;
            if written == Flushed::RingFull {
                return Err(MapError::NoSpace);
            }
        }
        state.phase = Phase::Sealed;
        Ok(start)
    }

    /// Commit N is durable, and with it all before the division and all that `seal` wrote.
    pub fn unseal(&self, start: JournalStart, required: Position) {
        let mut state = self.state.lock();
        assert!(state.phase == Phase::Sealed, "sealed before");
        let boundary = state.boundary.take().expect("divided before");
        state.durable = state.durable.max(boundary.at).max(required.0.min(state.appended));
        state.used = (state.next.position + self.blocks - start.position) % self.blocks;
        state.phase = Phase::Idle;
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing can be made durable any more.
    pub fn fail(&self, failure: DiskError) {
        let mut state = self.state.lock();
        state.failure.get_or_insert(failure);
        if state.phase == Phase::Sealed {
            state.phase = Phase::Idle;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn forget(&self, chunk: &Chunk) {
        self.waiting.fetch_sub(chunk.payload.len() as u64, Ordering::Relaxed);
    }

    /// Writes the first `count` chunks as units. The lock is released while the disk works.
    fn write_chunks(
        &self,
        state: &mut MutexGuard<'_, State>,
        count: usize,
        durability: Durability,
    ) -> Result<Flushed, DiskError> {
        if state.chunks.is_empty() {
            // All that is waited for was written by others, but not yet by this caller's order.
            assert!(state.durable >= state.appended, "appended bytes are in chunks");
            return Ok(Flushed::Durable);
        }
        let mut next = state.next;
        let mut used = state.used;
        let mut places = Vec::with_capacity(count);
        for chunk in state.chunks.iter().take(count) {
            let blocks = unit_blocks(chunk.payload.len());
            let wrap = next.position + blocks > self.blocks;
            used += blocks + if wrap { self.blocks - next.position } else { 0 };
            let position = if wrap { 0 } else { next.position };
            places.push(position);
            next.position = position + blocks;
        }
        if used >= self.blocks {
            return Ok(Flushed::RingFull);
        }
        let chunks: Vec<Chunk> = state.chunks.drain(..count).collect();
        chunks.iter().for_each(|chunk| self.forget(chunk));
        let mut next = state.next;
        let mut writes: Vec<(u64, Vec<BlockSlice>)> = Vec::new();
        let mut boundary_start = None;
        let boundary = state.boundary.as_ref();
        for (chunk, position) in chunks.iter().zip(places) {
            if boundary_start.is_none()
                && boundary.is_some_and(|b| b.start.is_none() && chunk.end > b.at)
            {
                boundary_start = Some(JournalStart { position: next.position, ..next });
            }
            let (sequence, previous) = (next.sequence, next.previous);
            let id = UnitId { uuid: self.uuid, position, sequence, previous };
            let (unit, checksum) = encode_unit(&id, &chunk.payload);
            let blocks = unit.count() as u64;
            match writes.last_mut() {
                Some((_, parts)) if position == next.position => parts.push(BlockSlice::new(unit)),
                _ => writes.push((position, vec![BlockSlice::new(unit)])),
            }
            next = JournalStart {
                position: position + blocks,
                sequence: sequence + 1,
                previous: checksum,
            };
        }
        if let Some(boundary) = state.boundary.as_mut()
            && boundary_start.is_some()
        {
            boundary.start = boundary_start;
        }
        state.phase = Phase::Writing;
        let data = match durability {
            Durability::Fua => std::mem::replace(&mut state.data, DataOnDisk::Flushed),
            Durability::Cached => DataOnDisk::Flushed,
        };
        let outcome = MutexGuard::unlocked(state, || {
            if data == DataOnDisk::Unflushed {
                self.disk.flush()?;
            }
            let submit = |(position, parts)| {
                let addr = self.start.plus(position);
                self.disk.submit(DiskRequest::Write { addr, parts, durability })
            };
            let tickets: Vec<_> = writes.into_iter().map(submit).collect();
            tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))
        });
        state.phase = Phase::Idle;
        let result = match outcome {
            Ok(()) => {
                state.next = next;
                state.used = used;
                if durability == Durability::Fua {
                    let end = chunks.last().map_or(0, |chunk| chunk.end);
                    state.durable = state.durable.max(end);
                }
                Ok(Flushed::Durable)
            }
            Err(failure) => {
                state.failure.get_or_insert(failure.clone());
                Err(failure)
            }
        };
        self.changed.notify_all();
        result
    }
}

impl State {
    fn close_chunk(&mut self) {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.closed = true;
        }
    }
}

/// Reads the units from `start` on and hands each batch to `apply`, in order. Returns where the
/// next unit goes. A unit that is torn, older or damaged ends the journal: it was never
/// acknowledged, or everything before it was made durable by the commit.
pub fn replay(
    disk: &dyn Disk,
    uuid: Uuid,
    layout: &Layout,
    start: JournalStart,
    mut apply: impl FnMut(Batch) -> Result<(), MapError>,
) -> Result<JournalStart, MapError> {
    let mut next = start;
    loop {
        let mut found = None;
        for position in [next.position, 0] {
            let id = UnitId { uuid, position, sequence: next.sequence, previous: next.previous };
            found = read_unit(disk, layout, &id)?;
            if found.is_some() || next.position == 0 {
                break;
            }
        }
        let Some((position, blocks, length)) = found else { return Ok(next) };
        let (payload, checksum) =
            decode_unit(blocks.bytes(), length).expect("the unit was checked when it was read");
        let addr = layout.journal.plus(position);
        let mut reader = Reader::new(payload);
        while reader.remaining() > 0 {
            let batch = Batch::decode(&mut reader).map_err(|_| MapError::Corrupt {
                structure: "journal unit",
                addr,
                reason: "a batch in it cannot be decoded",
            })?;
            apply(batch)?;
        }
        next = JournalStart {
            position: position + blocks.count() as u64,
            sequence: next.sequence.wrapping_add(1),
            previous: checksum,
        };
    }
}

/// The unit `id`, if it stands whole at its position.
fn read_unit(
    disk: &dyn Disk,
    layout: &Layout,
    id: &UnitId,
) -> Result<Option<(u64, BlockSlice, usize)>, MapError> {
    if id.position >= layout.journal_blocks {
        return Ok(None);
    }
    let addr = layout.journal.plus(id.position);
    // Where the journal ends no copy has a unit; where it goes on one copy is enough.
    let left = layout.journal_blocks - id.position;
    let read = copies::read_right(disk, addr, 1, |head| {
        let length = decode_unit_length(head.bytes(), id)?;
        match unit_blocks(length) {
            count if count <= left => Ok((length, count as usize)),
            _ => Err(NoUnit::Undecodable),
        }
    });
    let read = read.and_then(|(length, count)| {
        copies::read_right(disk, addr, count, |unit| {
            decode_unit(unit.bytes(), length)?;
            Ok((id.position, unit.clone(), length))
        })
    });
    match read {
        Ok(unit) => Ok(Some(unit)),
        Err(NoUnit::Undecodable) => Ok(None),
        Err(NoUnit::Disk(error)) => Err(error.into()),
    }
}

/// Why a unit cannot be had.
enum NoUnit {
    Undecodable,
    Disk(DiskError),
}

impl From<DiskError> for NoUnit {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<DecodeError> for NoUnit {
    fn from(_: DecodeError) -> Self {
        Self::Undecodable
    }
}
