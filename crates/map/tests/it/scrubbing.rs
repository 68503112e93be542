//! Scrubs of a device with two copies: what they put right, and how they read.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, MemDisk, Repair, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;
use gabion_map::scrub::{Report, scrub};

use crate::local::{file, format_on, open, write};

const BLOCKS: u64 = 16 << 10;
/// The longest read of a scrub, as a number of blocks.
const RUN_BLOCKS: usize = 256;

/// Two disks with the same on both, which note what is read of their copies.
struct Pair {
    disks: [MemDisk; 2],
    /// Blocks that cannot be read, by copy.
    unreadable: Mutex<BTreeSet<(usize, u64)>>,
    reads: Arc<Mutex<Reads>>,
}

#[derive(Clone, Copy, Default)]
struct Reads {
    count: usize,
    longest: usize,
    blocks_in_flight: usize,
    most_in_flight: usize,
}

impl Pair {
    fn new() -> Arc<Self> {
        let disks = [0, 1].map(|_| MemDisk::new(BLOCKS));
        Arc::new(Self { disks, unreadable: Mutex::default(), reads: Arc::default() })
    }

    fn find(&self, content: &[u8]) -> u64 {
        let image = self.disks[0].image();
        image.chunks(BLOCK_SIZE).position(|block| block == content).expect("it was written") as u64
    }

    fn spoil(&self, copy: usize, addr: u64) {
        let bad = BlockSlice::new(Blocks::from_bytes(&[0xee; BLOCK_SIZE]));
        self.disks[copy].write(BlockAddr(addr), bad, Durability::Cached).unwrap();
    }

    fn failed(&self, addr: BlockAddr) -> DiskError {
        let source = Arc::new(io::Error::other("a bad sector"));
        DiskError::Io { device: self.name(), operation: "read", addr, source }
    }
}

impl Disk for Pair {
    fn name(&self) -> Arc<str> {
        "pair".into()
    }

    fn blocks(&self) -> u64 {
        BLOCKS
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let DiskRequest::Read { addr, count } = request {
            return self.submit_copy(0, addr, count);
        }
        drop(self.disks[1].submit(request.clone()));
        self.disks[0].submit(request)
    }

    fn copies(&self) -> usize {
        2
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        let mut reads = self.reads.lock();
        reads.count += 1;
        reads.longest = reads.longest.max(count);
        reads.blocks_in_flight += count;
        reads.most_in_flight = reads.most_in_flight.max(reads.blocks_in_flight);
        let range = (copy, addr.0)..(copy, addr.0 + count as u64);
        let outcome = match self.unreadable.lock().range(range).next() {
            Some((_, bad)) => Err(self.failed(BlockAddr(*bad))),
            None => self.disks[copy].submit(DiskRequest::Read { addr, count }).wait(),
        };
        let reads = Arc::clone(&self.reads);
        Ticket::deferred(move || {
            reads.lock().blocks_in_flight -= count;
            outcome
        })
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        let mut found = vec![0; BLOCK_SIZE];
        self.disks[copy].read(addr, &mut found)?;
        assert_eq!(found, bad, "it is what was found");
        self.disks[copy].write(addr, good, Durability::Fua)?;
        Ok(Repair::Repaired)
    }
}

/// A block like no other.
fn content(number: usize) -> Vec<u8> {
    (number as u64 + 1).to_le_bytes().repeat(BLOCK_SIZE / 8)
}

/// Scrubs a filesystem with a file of `blocks` blocks after `damage` was done.
fn scrubbed(pair: &Arc<Pair>, blocks: usize, damage: impl FnOnce()) -> Report {
    let disk = Arc::clone(pair) as Arc<dyn Disk>;
    format_on(&disk);
    let map = open(&disk);
    let bytes: Vec<u8> = (0..blocks).flat_map(content).collect();
    for (index, part) in bytes.chunks(1 << 20).enumerate() {
        write(&map, file(10), (index << 20) as u64, part).expect("there is room");
    }
    map.sync().expect("a working disk");
    damage();
    *pair.reads.lock() = Reads::default();
    scrub(&map, &mut |_| ControlFlow::Continue(())).expect("readable")
}

#[test]
fn a_scrub_has_many_reads_in_flight_and_not_without_a_bound() {
    let pair = Pair::new();
    let blocks = 24 << 8;
    let report = scrubbed(&pair, blocks, || ());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.progress.data_bytes, (blocks * BLOCK_SIZE) as u64);
    let Reads { count, longest, blocks_in_flight, most_in_flight } = *pair.reads.lock();
    assert_eq!(blocks_in_flight, 0, "all were waited for");
    assert_eq!(longest, RUN_BLOCKS);
    assert!(count < 2 * 2 * blocks / RUN_BLOCKS, "{count} reads");
    // Of both copies.
    let in_flight = 2 * (4 * RUN_BLOCKS)..2 * (10 * RUN_BLOCKS);
    assert!(in_flight.contains(&most_in_flight), "{most_in_flight} blocks");
}

#[test]
fn a_scrub_puts_each_copy_right_that_can_be_and_names_the_rest() {
    let pair = Pair::new();
    let place = |number: usize| pair.find(&content(number));
    let (first, second, none, silent, gone) = (3, 77, 150, 300, 500);
    let report = scrubbed(&pair, 600, || {
        pair.spoil(0, place(first));
        pair.spoil(1, place(second));
        // Beside one that cannot be read, which must not hide it.
        pair.spoil(1, place(silent) + 1);
        pair.unreadable.lock().insert((1, place(silent)));
        let lost = place(gone);
        pair.unreadable.lock().extend([(0, lost), (1, lost)]);
        let (both, lost) = (place(none), place(none + 1));
        pair.spoil(0, both);
        pair.spoil(1, both);
        pair.spoil(0, lost);
        pair.unreadable.lock().insert((1, lost));
    });
    assert_eq!(report.mended, 3);
    let found = report.findings.iter().map(|finding| finding.error.to_string());
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|text| text.contains("a bad sector")), "{found:?}");
    let images = pair.disks.each_ref().map(MemDisk::image);
    for addr in [first, second, silent + 1].map(place) {
        let at = addr as usize * BLOCK_SIZE;
        assert!(images[0][at..at + BLOCK_SIZE] == images[1][at..at + BLOCK_SIZE], "{addr}");
    }
}
