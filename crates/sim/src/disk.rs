//! A disk in memory with a volatile cache, that remembers all that was done to it.
//!
//! A request begins when it is submitted and completes when its ticket is waited for; whoever goes
//! on without waiting is treated as unkindly as a real disk may treat them:
//!
//! - a write begins: from now on a crash may leave any of its blocks. It completes: reads see it,
//!   and a flush that is submitted from now on makes it stable;
//! - a flush completes: what had completed when it was submitted is stable. A write with FUA is
//!   stable when it completes;
//! - a request whose ticket is dropped never completes. It may have happened or not, for ever;
//! - a write over another one that has not completed is a bug of the engine, and panics;
//! - a discarded block reads as [`DISCARDED`] from then on: the seam allows anything, and this is
//!   no valid content of anything.
//!
//! Every begin and every completion is an [`Event`] of the log. What would have survived a crash at
//! any moment follows from the log alone, see [`crate::crash`]: a workload runs once, however many
//! crashes are tried.
//!
//! A disk may have room behind its end, and be lengthened into it ([`SimDisk::lengthen`]). The log
//! does not tell of lengths: whoever makes a crash decides how long the disk is afterwards.
//!
//! The log has no end; [`SimDisk::restart_log`] forgets it and takes what is there as stable.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::rng::Rng;
use gabion_base::sync::Mutex;

use crate::faults::Faults;
use crate::image::Image;

/// Each byte of a discarded block.
pub const DISCARDED: u8 = 0xd5;

const EIO: i32 = 5;

/// Something that happened to the content of a disk or to its durability.
#[derive(Clone, Debug)]
pub enum Event {
    /// Blocks began to be written, side by side.
    Write {
        /// First block.
        addr: BlockAddr,
        /// The blocks, in the buffers that they came in.
        parts: Vec<BlockSlice>,
        /// Whether they are stable on completion.
        durability: Durability,
    },
    /// Blocks began to be given up.
    Discard {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
    /// Blocks began to be set to zeros, in the cache.
    WriteZeroes {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
    /// One of the above completed.
    Completed {
        /// Position of the event by which it began.
        begun: usize,
    },
    /// A flush completed: what had completed when it was submitted became stable.
    Flushed {
        /// Length of the log when it was submitted.
        begun: usize,
    },
}

impl Event {
    /// The blocks that the event puts in place, in order.
    pub fn blocks(&self) -> Vec<(BlockAddr, BlockSlice)> {
        match self {
            Self::Completed { .. } | Self::Flushed { .. } => Vec::new(),
            Self::Write { addr, parts, .. } => {
                let blocks =
                    parts.iter().flat_map(|part| (0..part.count()).map(|at| part.part(at, 1)));
                (addr.0..).map(BlockAddr).zip(blocks).collect()
            }
            Self::Discard { addr, count } => filled(*addr, *count, DISCARDED),
            Self::WriteZeroes { addr, count } => filled(*addr, *count, 0),
        }
    }
}

fn filled(addr: BlockAddr, count: u64, byte: u8) -> Vec<(BlockAddr, BlockSlice)> {
    let block = BlockSlice::new(Blocks::from_bytes(&[byte; BLOCK_SIZE]));
    (0..count).map(|index| (addr.plus(index), block.clone())).collect()
}

/// What was on a disk when its log began, and the log.
#[derive(Clone)]
pub struct Recording {
    /// The disk before the first event, all of it stable.
    pub before: Image,
    /// What happened since.
    pub events: Vec<Event>,
}

struct State {
    recording: Recording,
    cached: Image,
    /// First block and number of blocks of what has begun and not completed, by position.
    in_flight: BTreeMap<usize, (BlockAddr, u64)>,
    faults: Faults,
    rng: Rng,
}

struct Shared {
    name: Arc<str>,
    state: Mutex<State>,
}

/// The simulated disk.
pub struct SimDisk {
    blocks: AtomicU64,
    shared: Arc<Shared>,
}

/// Whether a request's outcome is to be success.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Failed,
}

impl SimDisk {
    /// A healthy disk of `blocks` blocks of zeros.
    pub fn new(blocks: u64) -> Self {
        Self::from_image(Image::zeroed(blocks))
    }

    /// A healthy disk that holds `image`, all of it stable.
    pub fn from_image(image: Image) -> Self {
        let blocks = image.blocks();
        let recording = Recording { before: image.clone(), events: Vec::new() };
        let faults = Faults::default();
        let rng = Rng::new(faults.seed);
        let in_flight = BTreeMap::new();
        let state = State { recording, cached: image, in_flight, faults, rng };
        let shared = Shared { name: Arc::from("simulated"), state: Mutex::new(state) };
        Self { blocks: AtomicU64::new(blocks), shared: Arc::new(shared) }
    }

    /// The same disk, of which only the first `blocks` blocks are there.
    #[must_use]
    pub fn cut_to(self, blocks: u64) -> Self {
        let room = self.blocks();
        assert!(blocks <= room, "{blocks} of {room} blocks");
        self.blocks.store(blocks, Ordering::Release);
        self
    }

    /// From now on the disk has `blocks` blocks: more than before, and no more than it has room
    /// for.
    pub fn lengthen(&self, blocks: u64) {
        let room = self.shared.state.lock().cached.blocks();
        assert!((self.blocks()..=room).contains(&blocks), "{blocks} of {room} blocks");
        self.blocks.store(blocks, Ordering::Release);
    }

    /// From now on these things go wrong.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.shared.state.lock();
        state.rng = Rng::new(faults.seed);
        state.faults = faults;
    }

    /// Number of events so far: the moment "now" on the disk's own time line.
    pub fn position(&self) -> usize {
        self.shared.state.lock().recording.events.len()
    }

    /// What happened so far.
    pub fn recording(&self) -> Recording {
        self.shared.state.lock().recording.clone()
    }

    /// Forgets the log; what the disk holds now counts as stable. Nothing may be in flight.
    pub fn restart_log(&self) {
        let mut state = self.shared.state.lock();
        assert!(state.in_flight.is_empty(), "{:?} are in flight", state.in_flight);
        state.recording = Recording { before: state.cached.clone(), events: Vec::new() };
    }

    /// What the disk holds now, the cache included.
    pub fn image(&self) -> Image {
        self.shared.state.lock().cached.clone()
    }

    /// Flips bit `bit` of what the block at `addr` holds now. The log does not know, so neither
    /// do the crashes that follow from it.
    pub fn rot(&self, addr: BlockAddr, bit: usize) {
        let mut state = self.shared.state.lock();
        let mut block = state.cached.read(addr, 1);
        block.bytes_mut()[bit / 8 % BLOCK_SIZE] ^= 1 << (bit % 8);
        state.cached.put(addr, BlockSlice::new(block));
    }

    /// A ticket that does `complete` when it is waited for.
    fn deferred(
        &self,
        operation: &'static str,
        addr: BlockAddr,
        complete: impl FnOnce(&mut State) -> (Verdict, Option<Blocks>) + Send + 'static,
    ) -> Ticket {
        let shared = Arc::clone(&self.shared);
        Ticket::deferred(move || match complete(&mut shared.state.lock()) {
            (Verdict::Good, read) => Ok(read),
            (Verdict::Failed, _) => Err(shared.error(operation, addr)),
        })
    }
}

impl Shared {
    fn error(&self, operation: &'static str, addr: BlockAddr) -> DiskError {
        let source = Arc::new(io::Error::from_raw_os_error(EIO));
        DiskError::Io { device: Arc::clone(&self.name), operation, addr, source }
    }
}

impl State {
    /// Logs that `event`, for which `extent` was asked, has begun. Returns its position.
    fn begin(&mut self, event: Event, extent: (BlockAddr, u64)) -> usize {
        let (addr, count) = extent;
        let overlaps = |(_, other): &(&usize, &(BlockAddr, u64))| {
            addr.0 < other.0.0 + other.1 && other.0.0 < addr.0 + count
        };
        let overlapped = self.in_flight.iter().find(overlaps);
        assert!(
            overlapped.is_none(),
            "{count} blocks at {addr} overlap what nobody has waited for: {overlapped:?}"
        );
        let position = self.recording.events.len();
        self.in_flight.insert(position, extent);
        self.recording.events.push(event);
        position
    }

    fn complete(&mut self, begun: usize) {
        self.in_flight.remove(&begun);
        for (addr, block) in self.recording.events[begun].blocks() {
            self.cached.put(addr, block);
        }
        self.recording.events.push(Event::Completed { begun });
    }

    fn read(&mut self, addr: BlockAddr, count: usize) -> (Verdict, Option<Blocks>) {
        let bad = self.faults.unreadable.range(addr..addr.plus(count as u64)).next().is_some();
        if bad || self.faults.read_error.happens(&mut self.rng) {
            return (Verdict::Failed, None);
        }
        let mut read = self.cached.read(addr, count);
        if count > 0 && self.faults.rotten_read.happens(&mut self.rng) {
            let bit = self.rng.below(8 * (count * BLOCK_SIZE) as u64) as usize;
            read.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        }
        (Verdict::Good, Some(read))
    }

    fn flush(&mut self, begun: usize) -> (Verdict, Option<Blocks>) {
        if self.faults.flush_error.happens(&mut self.rng) {
            return (Verdict::Failed, None);
        }
        self.recording.events.push(Event::Flushed { begun });
        (Verdict::Good, None)
    }

    /// Begins a write. Says what is to complete, if anything, and what to tell of it.
    fn write(
        &mut self,
        addr: BlockAddr,
        parts: Vec<BlockSlice>,
        durability: Durability,
    ) -> (Option<usize>, Verdict) {
        let count: u64 = parts.iter().map(|part| part.count() as u64).sum();
        if self.faults.write_error.happens(&mut self.rng) {
            let kept = self.rng.below(count + 1) as usize;
            let parts = parts.iter().flat_map(|part| (0..part.count()).map(|at| part.part(at, 1)));
            let parts: Vec<_> = parts.take(kept).collect();
            let event = Event::Write { addr, parts, durability: Durability::Cached };
            return (Some(self.begin(event, (addr, count))), Verdict::Failed);
        }
        if self.faults.lost_write.happens(&mut self.rng) {
            return (None, Verdict::Good);
        }
        let mut elsewhere = addr;
        if self.faults.misdirected_write.happens(&mut self.rng) {
            elsewhere = BlockAddr(self.rng.below(self.cached.blocks() - count + 1));
        }
        let event = Event::Write { addr: elsewhere, parts, durability };
        (Some(self.begin(event, (addr, count))), Verdict::Good)
    }
}

impl Disk for SimDisk {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.shared.name, self.blocks()) {
            return Ticket::ready(Err(error));
        }
        let (operation, extent) = (request.operation(), request.extent());
        let mut state = self.shared.state.lock();
        let (begun, verdict) = match request {
            DiskRequest::Read { addr, count } => {
                return self.deferred(operation, addr, move |state| state.read(addr, count));
            }
            DiskRequest::Flush => {
                let begun = state.recording.events.len();
                return self.deferred(operation, extent.0, move |state| state.flush(begun));
            }
            DiskRequest::Write { addr, parts, durability } => state.write(addr, parts, durability),
            DiskRequest::Discard { addr, count } => {
                (Some(state.begin(Event::Discard { addr, count }, extent)), Verdict::Good)
            }
            DiskRequest::WriteZeroes { addr, count } => {
                (Some(state.begin(Event::WriteZeroes { addr, count }, extent)), Verdict::Good)
            }
        };
        drop(state);
        self.deferred(operation, extent.0, move |state| {
            begun.into_iter().for_each(|begun| state.complete(begun));
            (verdict, None)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Odds;

    fn block(byte: u8) -> BlockSlice {
        BlockSlice::new(Blocks::from_bytes(&[byte; BLOCK_SIZE]))
    }

    fn first_byte(disk: &SimDisk, addr: u64) -> u8 {
        let mut into = Blocks::zeroed(1);
        disk.read(BlockAddr(addr), into.bytes_mut()).expect("a healthy disk reads");
        into.bytes()[0]
    }

    #[test]
    fn the_log_shares_the_buffers_that_were_written() {
        let disk = SimDisk::new(8);
        let written = block(7);
        disk.write(BlockAddr(3), written.clone(), Durability::Cached).expect("healthy");
        let Event::Write { parts, .. } = &disk.recording().events[0] else {
            panic!("a write is logged as one");
        };
        assert!(parts[0].same(&written));
        assert_eq!(first_byte(&disk, 3), 7);
    }

    #[test]
    fn a_request_completes_when_it_is_waited_for() {
        let disk = SimDisk::new(8);
        let write = |addr, byte| {
            let (parts, durability) = (vec![block(byte)], Durability::Cached);
            disk.submit(DiskRequest::Write { addr: BlockAddr(addr), parts, durability })
        };
        let (one, two) = (write(1, 1), write(2, 2));
        assert_eq!(first_byte(&disk, 1), 0, "nobody has waited for it");
        one.wait().expect("healthy");
        drop(two);
        assert_eq!((first_byte(&disk, 1), first_byte(&disk, 2)), (1, 0));
        let events = disk.recording().events;
        assert!(matches!(events[2..], [Event::Completed { begun: 0 }]), "{events:?}");
    }

    #[test]
    #[should_panic(expected = "overlap what nobody has waited for")]
    fn writing_over_a_write_that_is_in_flight_is_refused() {
        let disk = SimDisk::new(8);
        let write = |addr, count| {
            let parts = vec![BlockSlice::new(Blocks::zeroed(count))];
            let durability = Durability::Cached;
            disk.submit(DiskRequest::Write { addr: BlockAddr(addr), parts, durability })
        };
        let first = write(1, 2);
        drop(write(2, 1));
        first.wait().expect("healthy");
    }

    #[test]
    fn requests_past_the_end_are_refused() {
        let disk = SimDisk::new(8);
        assert!(disk.write(BlockAddr(8), block(1), Durability::Fua).is_err());
        assert!(disk.read(BlockAddr(u64::MAX), &mut [0; BLOCK_SIZE]).is_err());
        assert_eq!(disk.position(), 0);
    }

    #[test]
    fn a_disk_that_is_lengthened_has_more_blocks() {
        let disk = SimDisk::new(8).cut_to(4);
        let write = |addr| disk.write(BlockAddr(addr), block(5), Durability::Fua);
        assert!(write(3).is_ok() && write(4).is_err());
        disk.lengthen(8);
        assert!(write(7).is_ok() && write(8).is_err());
    }

    #[test]
    fn a_discarded_block_does_not_read_as_what_it_was() {
        let disk = SimDisk::new(8);
        disk.write(BlockAddr(1), block(9), Durability::Fua).expect("healthy");
        let discard = DiskRequest::Discard { addr: BlockAddr(1), count: 1 };
        disk.submit(discard).wait().expect("healthy");
        assert_eq!(first_byte(&disk, 1), DISCARDED);
        disk.submit(DiskRequest::WriteZeroes { addr: BlockAddr(0), count: 2 })
            .wait()
            .expect("healthy");
        assert_eq!(first_byte(&disk, 1), 0);
    }

    #[test]
    fn each_fault_does_what_its_row_says() {
        let disk = SimDisk::new(64);
        let write = |byte| disk.write(BlockAddr(1), block(byte), Durability::Cached);
        write(1).expect("healthy");

        disk.set_faults(Faults { lost_write: Odds::ALWAYS, ..Faults::default() });
        write(2).expect("a lost write is acknowledged");
        assert_eq!(first_byte(&disk, 1), 1);

        disk.set_faults(Faults { misdirected_write: Odds::ALWAYS, seed: 4, ..Faults::default() });
        write(3).expect("a misdirected write is acknowledged");
        assert_eq!(first_byte(&disk, 1), 1);
        assert!((0..64).any(|addr| first_byte(&disk, addr) == 3));

        disk.set_faults(Faults { write_error: Odds::ALWAYS, ..Faults::default() });
        assert!(write(4).is_err());
        disk.set_faults(Faults { flush_error: Odds::ALWAYS, ..Faults::default() });
        assert!(disk.flush().is_err());
        disk.set_faults(Faults { read_error: Odds::ALWAYS, ..Faults::default() });
        assert!(disk.read(BlockAddr(1), &mut [0; BLOCK_SIZE]).is_err());
        let unreadable = [BlockAddr(2)].into();
        disk.set_faults(Faults { unreadable, ..Faults::default() });
        assert!(disk.read(BlockAddr(1), &mut [0; 2 * BLOCK_SIZE]).is_err());
        assert!(disk.read(BlockAddr(3), &mut [0; 2 * BLOCK_SIZE]).is_ok());

        disk.set_faults(Faults { rotten_read: Odds::ALWAYS, ..Faults::default() });
        let mut into = Blocks::zeroed(1);
        disk.read(BlockAddr(9), into.bytes_mut()).expect("rot is silent");
        assert_eq!(into.bytes().iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        disk.set_faults(Faults::default());
        disk.rot(BlockAddr(9), 3);
        assert_eq!(first_byte(&disk, 9), 8);
    }
}
