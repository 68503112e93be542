//! A disk in memory with a volatile cache, that remembers all that was done to it.
//!
//! Every request completes before [`Disk::submit`] returns, so the order of requests is the order
//! of the log:
//!
//! - a write goes to the cache, and to the log as the shared buffer that it came in;
//! - a flush, or a write with FUA, is an [`Event`] like any other: what would have survived a
//!   crash at any moment follows from the log alone, see [`crate::crash`]. So a workload runs
//!   once, however many crashes are tried;
//! - reads see the cache;
//! - a discarded block reads as [`DISCARDED`] from then on: the seam allows anything, and this is
//!   no valid content of anything.
//!
//! The log has no end; [`SimDisk::restart_log`] forgets it and takes what is there as stable.

use std::io;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, DiskResult, Durability, Ticket};
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
    /// Blocks were written, side by side.
    Write {
        /// First block.
        addr: BlockAddr,
        /// The blocks, in the buffers that they came in.
        parts: Vec<BlockSlice>,
        /// Whether they were stable on completion.
        durability: Durability,
    },
    /// All writes so far became stable.
    Flush,
    /// Blocks were given up.
    Discard {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
    /// Blocks were set to zeros, in the cache.
    WriteZeroes {
        /// First block.
        addr: BlockAddr,
        /// Number of blocks.
        count: u64,
    },
}

impl Event {
    /// The blocks that the event puts in place, in order.
    pub fn blocks(&self) -> Vec<(BlockAddr, BlockSlice)> {
        match self {
            Self::Flush => Vec::new(),
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
    faults: Faults,
    rng: Rng,
}

/// The simulated disk.
pub struct SimDisk {
    name: Arc<str>,
    blocks: u64,
    state: Mutex<State>,
}

impl SimDisk {
    /// A healthy disk of `blocks` blocks of zeros.
    pub fn new(blocks: u64) -> Self {
        Self::from_image(Image::zeroed(blocks))
    }

    /// A healthy disk that holds `image`, all of it stable.
    pub fn from_image(image: Image) -> Self {
        let recording = Recording { before: image.clone(), events: Vec::new() };
        let faults = Faults::default();
        let rng = Rng::new(faults.seed);
        let blocks = image.blocks();
        let state = Mutex::new(State { recording, cached: image, faults, rng });
        Self { name: Arc::from("simulated"), blocks, state }
    }

    /// From now on these things go wrong.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state.lock();
        state.rng = Rng::new(faults.seed);
        state.faults = faults;
    }

    /// Number of events so far: the moment "now" on the disk's own time line.
    pub fn position(&self) -> usize {
        self.state.lock().recording.events.len()
    }

    /// What happened so far.
    pub fn recording(&self) -> Recording {
        self.state.lock().recording.clone()
    }

    /// Forgets the log; what the disk holds now counts as stable.
    pub fn restart_log(&self) {
        let mut state = self.state.lock();
        state.recording = Recording { before: state.cached.clone(), events: Vec::new() };
    }

    /// What the disk holds now, the cache included.
    pub fn image(&self) -> Image {
        self.state.lock().cached.clone()
    }

    /// Flips bit `bit` of what the block at `addr` holds now. The log does not know, so neither
    /// do the crashes that follow from it.
    pub fn rot(&self, addr: BlockAddr, bit: usize) {
        let mut state = self.state.lock();
        let mut block = state.cached.read(addr, 1);
        block.bytes_mut()[bit / 8 % BLOCK_SIZE] ^= 1 << (bit % 8);
        state.cached.put(addr, BlockSlice::new(block));
    }

    fn error(&self, operation: &'static str, addr: BlockAddr) -> DiskError {
        let source = Arc::new(io::Error::from_raw_os_error(EIO));
        DiskError::Io { device: Arc::clone(&self.name), operation, addr, source }
    }
}

impl State {
    fn record(&mut self, event: Event) {
        for (addr, block) in event.blocks() {
            self.cached.put(addr, block);
        }
        self.recording.events.push(event);
    }

    /// The blocks, or `None` for a read error.
    fn read(&mut self, addr: BlockAddr, count: usize) -> Option<Blocks> {
        let bad = self.faults.unreadable.range(addr..addr.plus(count as u64)).next().is_some();
        if bad || self.faults.read_error.happens(&mut self.rng) {
            return None;
        }
        let mut read = self.cached.read(addr, count);
        if count > 0 && self.faults.rotten_read.happens(&mut self.rng) {
            let bit = self.rng.below(8 * (count * BLOCK_SIZE) as u64) as usize;
            read.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        }
        Some(read)
    }

    /// Whether the write is to be acknowledged.
    fn write(&mut self, addr: BlockAddr, parts: Vec<BlockSlice>, durability: Durability) -> bool {
        let count: u64 = parts.iter().map(|part| part.count() as u64).sum();
        if self.faults.write_error.happens(&mut self.rng) {
            let kept = self.rng.below(count + 1) as usize;
            let parts = parts.iter().flat_map(|part| (0..part.count()).map(|at| part.part(at, 1)));
            let parts: Vec<_> = parts.take(kept).collect();
            self.record(Event::Write { addr, parts, durability: Durability::Cached });
            return false;
        }
        if self.faults.lost_write.happens(&mut self.rng) {
            return true;
        }
        let mut addr = addr;
        if self.faults.misdirected_write.happens(&mut self.rng) {
            addr = BlockAddr(self.rng.below(self.cached.blocks() - count + 1));
        }
        self.record(Event::Write { addr, parts, durability });
        true
    }
}

impl Disk for SimDisk {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.name, self.blocks) {
            return Ticket::ready(Err(error));
        }
        let (operation, (first, _)) = (request.operation(), request.extent());
        let mut state = self.state.lock();
        let outcome: Option<DiskResult> = match request {
            DiskRequest::Read { addr, count } => state.read(addr, count).map(|read| Ok(Some(read))),
            DiskRequest::Write { addr, parts, durability } => {
                state.write(addr, parts, durability).then_some(Ok(None))
            }
            DiskRequest::Flush => {
                let State { faults, rng, .. } = &mut *state;
                if faults.flush_error.happens(rng) {
                    None
                } else {
                    state.record(Event::Flush);
                    Some(Ok(None))
                }
            }
            DiskRequest::Discard { addr, count } => {
                state.record(Event::Discard { addr, count });
                Some(Ok(None))
            }
            DiskRequest::WriteZeroes { addr, count } => {
                state.record(Event::WriteZeroes { addr, count });
                Some(Ok(None))
            }
        };
        Ticket::ready(outcome.unwrap_or_else(|| Err(self.error(operation, first))))
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
        disk.read(BlockAddr(addr), &mut into).expect("a healthy disk reads");
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
    fn requests_past_the_end_are_refused() {
        let disk = SimDisk::new(8);
        assert!(disk.write(BlockAddr(8), block(1), Durability::Fua).is_err());
        assert!(disk.read(BlockAddr(u64::MAX), &mut Blocks::zeroed(1)).is_err());
        assert_eq!(disk.position(), 0);
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
        assert!(disk.read(BlockAddr(1), &mut Blocks::zeroed(1)).is_err());
        let unreadable = [BlockAddr(2)].into();
        disk.set_faults(Faults { unreadable, ..Faults::default() });
        assert!(disk.read(BlockAddr(1), &mut Blocks::zeroed(2)).is_err());
        assert!(disk.read(BlockAddr(3), &mut Blocks::zeroed(2)).is_ok());

        disk.set_faults(Faults { rotten_read: Odds::ALWAYS, ..Faults::default() });
        let mut into = Blocks::zeroed(1);
        disk.read(BlockAddr(9), &mut into).expect("rot is silent");
        assert_eq!(into.bytes().iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        disk.set_faults(Faults::default());
        disk.rot(BlockAddr(9), 3);
        assert_eq!(first_byte(&disk, 9), 8);
    }
}
