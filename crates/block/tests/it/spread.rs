//! Disks that are made of several are one disk to whoever uses them.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{
    Completion, Disk, DiskError, DiskRequest, DiskResult, Durability, MemDisk, Repair, Ticket,
};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;
use gabion_base::window::Window;
use gabion_block::spread::{Linear, Stripe};
use proptest::prelude::*;

fn memory(blocks: u64) -> Arc<dyn Disk> {
    Arc::new(MemDisk::new(blocks))
}

fn linear(disks: Vec<Arc<dyn Disk>>) -> Linear {
    Linear::new("linear".into(), disks)
}

fn stripe(chunk_blocks: u64, disks: Vec<Arc<dyn Disk>>) -> Stripe {
    Stripe::new("stripe".into(), chunk_blocks, disks)
}

/// Does nothing until it is told to, and then what came last first.
struct Late {
    disk: MemDisk,
    held: Mutex<Vec<(Completion, DiskResult)>>,
    refusal: Option<DiskError>,
}

impl Late {
    fn new(blocks: u64, refusal: Option<DiskError>) -> Arc<Self> {
        Arc::new(Self { disk: MemDisk::new(blocks), held: Mutex::new(Vec::new()), refusal })
    }

    fn let_go(&self) -> usize {
        let held = std::mem::take(&mut *self.held.lock());
        let count = held.len();
        for (completion, outcome) in held.into_iter().rev() {
            completion.complete(outcome);
        }
        count
    }
}

impl Disk for Late {
    fn name(&self) -> Arc<str> {
        "late".into()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let outcome = match &self.refusal {
            Some(error) => Err(error.clone()),
            None => self.disk.submit(request).wait(),
        };
        let (ticket, completion) = Ticket::pair();
        self.held.lock().push((completion, outcome));
        ticket
    }

    fn copies(&self) -> usize {
        3
    }

    fn submit_copy(&self, copy: usize, _: BlockAddr, count: usize) -> Ticket {
        Ticket::ready(Ok(Some(bytes(count as u64, copy as u8))))
    }

    fn repair_copy(
        &self,
        _: usize,
        addr: BlockAddr,
        _: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        self.disk.write(addr, good, Durability::Fua)?;
        Ok(Repair::Repaired)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, Vec<u64>),
    Zero(u64, u64),
    Flush,
    Append(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..200_u64, 0..60_u64).prop_map(|(addr, count)| Step::Read(addr, count)),
        4 => (0..200_u64, prop::collection::vec(1..20_u64, 0..4))
            .prop_map(|(addr, parts)| Step::Write(addr, parts)),
        2 => (0..200_u64, 0..60_u64).prop_map(|(addr, count)| Step::Zero(addr, count)),
        1 => Just(Step::Flush),
        1 => (0..20_u64).prop_map(Step::Append),
    ]
}

fn bytes(count: u64, stamp: u8) -> Blocks {
    let mut blocks = Blocks::zeroed(count as usize);
    for (index, block) in blocks.bytes_mut().chunks_mut(BLOCK_SIZE).enumerate() {
        block.fill(stamp.wrapping_add(index as u8));
    }
    blocks
}

/// Does `request` on the flat disk and on the one that is tried, if it is within both.
fn both(flat: &MemDisk, tried: &dyn Disk, request: &DiskRequest) {
    let found = tried.submit(request.clone()).wait();
    let Err(error) = request.check(&tried.name(), tried.blocks()) else {
        let expected = flat.submit(request.clone()).wait().unwrap();
        let (found, expected) = (found.unwrap(), expected.as_ref().map(Blocks::bytes));
        assert!(found.as_ref().map(Blocks::bytes) == expected, "{request:?}");
        return;
    };
    assert_eq!(found.unwrap_err().to_string(), error.to_string());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_it_is_made_of_it_is_one_disk(
        chunk in 1..6_u64,
        lengths in prop::collection::vec(0..30_u64, 1..5),
        after in prop::collection::vec(0..30_u64, 0..4),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let flat = MemDisk::new(400);
        let turns = stripe(chunk, lengths.into_iter().map(memory).collect());
        let parts = after.into_iter().map(memory);
        let turns = std::iter::once(Arc::new(turns) as Arc<dyn Disk>);
        let tried = linear(turns.chain(parts).collect());
        for (stamp, step) in steps.into_iter().enumerate() {
            let request = match step {
                Step::Read(addr, count) => {
                    DiskRequest::Read { addr: BlockAddr(addr), count: count as usize }
                }
                Step::Write(addr, parts) => DiskRequest::Write {
                    addr: BlockAddr(addr),
                    parts: parts
                        .into_iter()
                        .map(|count| BlockSlice::new(bytes(count, stamp as u8)))
                        .collect(),
                    durability: Durability::Cached,
                },
                Step::Zero(addr, count) => {
                    DiskRequest::WriteZeroes { addr: BlockAddr(addr), count }
                }
                Step::Flush => DiskRequest::Flush,
                Step::Append(count) => {
                    let before = tried.blocks();
                    tried.append(memory(count));
                    prop_assert_eq!(tried.blocks(), before + count);
                    continue;
                }
            };
            both(&flat, &tried, &request);
        }
        let count = tried.blocks() as usize;
        both(&flat, &tried, &DiskRequest::Read { addr: BlockAddr(0), count });
    }
}

#[test]
fn each_part_gets_one_request_however_many_chunks_it_has_of_it() {
    let parts: Vec<_> = (0..3).map(|_| Late::new(40, None)).collect();
    let tried = stripe(4, parts.iter().map(|part| part.clone() as Arc<dyn Disk>).collect());
    assert_eq!(tried.blocks(), 120);
    let write = DiskRequest::Write {
        addr: BlockAddr(1),
        parts: vec![BlockSlice::new(bytes(100, 1))],
        durability: Durability::Fua,
    };
    let written = tried.submit(write);
    assert_eq!(parts.iter().rev().map(|part| part.let_go()).collect::<Vec<_>>(), [1, 1, 1]);
    written.wait().unwrap();
    let read = tried.submit(DiskRequest::Read { addr: BlockAddr(1), count: 100 });
    assert_eq!(parts.iter().rev().map(|part| part.let_go()).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(read.wait().unwrap().unwrap().bytes() == bytes(100, 1).bytes());
}

#[test]
fn a_request_fails_once_all_pieces_have_ended_and_a_fence_goes_first() {
    let gone = DiskError::Io {
        device: "late".into(),
        operation: "flush",
        addr: BlockAddr(0),
        source: Arc::new(std::io::ErrorKind::NotConnected.into()),
    };
    let fenced = DiskError::Fenced {
        device: "late".into(),
        operation: "flush",
        reason: "another host has it".into(),
    };
    let parts = [Late::new(4, Some(gone)), Late::new(4, Some(fenced)), Late::new(4, None)];
    let tried = linear(parts.iter().map(|part| part.clone() as Arc<dyn Disk>).collect());
    let ended = Arc::new(Mutex::new(None));
    let told = Arc::clone(&ended);
    tried.submit(DiskRequest::Flush).then(move |outcome| *told.lock() = Some(outcome));
    parts[0].let_go();
    parts[1].let_go();
    assert!(ended.lock().is_none(), "one piece is under way");
    parts[2].let_go();
    let outcome = ended.lock().take();
    assert!(matches!(outcome, Some(Err(DiskError::Fenced { .. }))), "{outcome:?}");
}

#[test]
fn copies_are_those_of_the_part_that_has_the_block() {
    let late = Late::new(4, None);
    let tried = linear(vec![memory(4), Arc::new(stripe(2, vec![memory(4), late.clone()]))]);
    assert_eq!(tried.copies(), 3);
    let mut block = [9; BLOCK_SIZE];
    tried.read_copy(2, BlockAddr(0), &mut block).unwrap();
    assert_eq!(block[0], 0, "there is only one");
    tried.read_copy(2, BlockAddr(4 + 6), &mut block).unwrap();
    assert_eq!(block[0], 2);
    let mut all = [9; 12 * BLOCK_SIZE];
    tried.read_copy(2, BlockAddr(0), &mut all).unwrap();
    let firsts: Vec<_> = all.chunks(BLOCK_SIZE).map(|block| block[0]).collect();
    assert_eq!(firsts, [0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 4, 5]);
    let good = BlockSlice::new(bytes(1, 7));
    let repair = |copy, addr| tried.repair_copy(copy, BlockAddr(addr), &block, good.clone());
    assert_eq!(repair(1, 0).unwrap(), Repair::Impossible);
    assert_eq!(repair(1, 4 + 7).unwrap(), Repair::Repaired);
    late.disk.read(BlockAddr(3), &mut block).unwrap();
    assert_eq!(block[0], 7);
    tried.read_copy(0, BlockAddr(12), &mut block).unwrap_err();
}

#[test]
fn stripes_and_the_last_part_of_a_line_grow_with_their_parts() {
    let parts = [0, 1].map(|_| Arc::new(Window::new(memory(100), 0, 4)));
    let striped = stripe(2, parts.iter().map(|part| part.clone() as Arc<dyn Disk>).collect());
    let tried = linear(vec![memory(4), Arc::new(striped)]);
    assert_eq!(tried.blocks(), 4 + 8);
    parts[0].lengthen(8);
    assert_eq!(tried.blocks(), 4 + 8, "the other one is as short as before");
    parts[1].lengthen(6);
    assert_eq!(tried.blocks(), 4 + 12);
    tried.write(BlockAddr(15), BlockSlice::new(bytes(1, 5)), Durability::Cached).unwrap();
    // What has another one behind it stays as it is.
    tried.append(memory(3));
    parts.iter().for_each(|part| part.lengthen(20));
    assert_eq!((tried.blocks(), tried.count()), (4 + 12 + 3, 3));
    let mut block = [0; BLOCK_SIZE];
    tried.read(BlockAddr(15), &mut block).unwrap();
    assert_eq!(block[0], 5);
}
