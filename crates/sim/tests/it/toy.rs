//! The whole trial on an engine of a hundred lines, honest and with bugs that only a crash shows.
//!
//! The toy knows the operations of its trial beforehand. All that it keeps on disk is how many of
//! them are durable; mounting runs that many on a model. The number fills a block, so that a torn
//! block is recognised.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Durability};
use gabion_base::ids::BlockAddr;
use gabion_sim::model::Model;
use gabion_sim::op::{Errno, Op, Outcome, Target};
use gabion_sim::tree::{System, Tree};
use gabion_sim::trial::{Engine, Failure, Reason, Summary, Trial, compare, shrink};
use gabion_sim::workload::{Profile, Workload};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A sync does not wait for the disk.
    NoFlush,
    /// A sync flushes the disk before the number is written.
    NoWait,
    /// The number is written over the last one.
    InPlace,
    /// A sync of a file by a path is taken for nothing.
    PathsForgotten,
    /// Unmounting keeps nothing.
    LazyUnmount,
    /// Recovery writes where the newest number is, and does not wait.
    CarelessRecovery,
}

struct Toy {
    ops: Vec<Op>,
    bug: Bug,
}

struct Mounted {
    disk: Arc<dyn Disk>,
    bug: Bug,
    model: Model,
    count: u64,
    /// Where the next number goes.
    next: u64,
}

fn read(disk: &dyn Disk, addr: u64) -> Option<u64> {
    let mut block = Blocks::zeroed(1);
    disk.read(BlockAddr(addr), block.bytes_mut()).ok()?;
    let mut words = block.bytes().chunks(8).map(|word| word.try_into().expect("8 bytes"));
    let first = words.next().map(u64::from_le_bytes)?;
    words.all(|word| u64::from_le_bytes(word) == first).then_some(first)
}

fn block(count: u64) -> BlockSlice {
    let bytes: Vec<u8> = (0..BLOCK_SIZE / 8).flat_map(|_| count.to_le_bytes()).collect();
    BlockSlice::new(Blocks::from_bytes(&bytes))
}

fn write(disk: &dyn Disk, addr: u64, count: u64, durability: Durability) {
    disk.write(BlockAddr(addr), block(count), durability).expect("a healthy disk");
}

impl Engine for Toy {
    type Mounted = Mounted;

    fn format(&self, _disk: Arc<dyn Disk>) -> Result<(), String> {
        Ok(())
    }

    fn mount(&self, disk: Arc<dyn Disk>) -> Result<Mounted, String> {
        let slots = [read(&*disk, 0), read(&*disk, 1)];
        let count = slots.into_iter().max().flatten().ok_or("no number is whole")?;
        let newest = u64::from(slots[1] == Some(count));
        let next = if self.bug == Bug::InPlace { 0 } else { 1 - newest };
        if self.bug == Bug::CarelessRecovery {
            write(&*disk, newest, 0, Durability::Cached);
            write(&*disk, newest, count, Durability::Cached);
        }
        let mut model = Model::new();
        for op in &self.ops[..count as usize] {
            let _ = model.apply(op);
        }
        model.close_all();
        Ok(Mounted { disk, bug: self.bug, model, count, next })
    }

    fn unmount(&self, mut mounted: Mounted) -> Result<(), String> {
        // What is done after a recovery the toy cannot keep: it does not know those operations.
        if mounted.count == self.ops.len() as u64 && self.bug != Bug::LazyUnmount {
            mounted.keep();
        }
        Ok(())
    }
}

impl System for Mounted {
    fn apply(&mut self, op: &Op) -> Outcome {
        let outcome = self.model.apply(op);
        self.count += 1;
        let synced = match op {
            Op::Sync => true,
            Op::Fsync { object } => {
                let path = matches!(object, Target::Path(_));
                outcome.is_ok() && !(path && self.bug == Bug::PathsForgotten)
            }
            // Something is written now and then, as an engine does under pressure.
            _ => {
                if self.count.is_multiple_of(5) {
                    self.disk.flush().expect("healthy");
                    write(&*self.disk, self.next, self.count, Durability::Cached);
                    self.disk.flush().expect("healthy");
                    self.turn();
                }
                false
            }
        };
        if synced {
            self.keep();
        }
        outcome
    }

    fn dump(&mut self) -> Result<Tree, Errno> {
        System::dump(&mut self.model)
    }
}

impl Mounted {
    fn keep(&mut self) {
        if self.bug == Bug::NoWait {
            let parts = vec![block(self.count)];
            let (addr, durability) = (BlockAddr(self.next), Durability::Cached);
            let write = self.disk.submit(DiskRequest::Write { addr, parts, durability });
            self.disk.flush().expect("healthy");
            write.wait().expect("healthy");
            return self.turn();
        }
        write(&*self.disk, self.next, self.count, Durability::Cached);
        if self.bug != Bug::NoFlush {
            self.disk.flush().expect("healthy");
        }
        self.turn();
    }

    fn turn(&mut self) {
        if self.bug != Bug::InPlace {
            self.next = 1 - self.next;
        }
    }
}

/// The last operations are not among those that the toy writes down by itself.
fn run(bug: Bug, seed: u64) -> Result<Summary, Failure> {
    let trial = Trial { recovery_crashed_of: 3, ..Trial::quick(seed, 92, 16) };
    trial.run(&Toy { ops: trial.ops.clone(), bug })
}

#[test]
fn an_honest_engine_passes() {
    for seed in 1..=2 {
        let summary = run(Bug::None, seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(summary.crashes > 60, "{summary:?}");
        assert!(summary.recovery_crashes > 15, "{summary:?}");
    }
}

/// Each bug is caught by one of a few seeds.
fn caught(bug: Bug) -> Failure {
    (1..=5).find_map(|seed| run(bug, seed).err()).expect("the bug is caught")
}

#[test]
fn a_sync_without_a_flush_is_caught() {
    let failure = caught(Bug::NoFlush);
    assert!(matches!(failure.reason, Reason::Promise(_)), "{failure}");
}

#[test]
fn a_flush_that_does_not_wait_for_the_write_is_caught() {
    let failure = caught(Bug::NoWait);
    assert!(matches!(failure.reason, Reason::Promise(_)), "{failure}");
}

#[test]
fn a_block_that_is_torn_in_place_is_caught() {
    let failure = caught(Bug::InPlace);
    assert!(failure.crashes[0].contains("Torn"), "{failure}");
}

#[test]
fn a_sync_that_is_skipped_is_caught() {
    let failure = caught(Bug::PathsForgotten);
    assert!(matches!(failure.reason, Reason::Promise(_)), "{failure}");
}

#[test]
fn an_unmount_that_keeps_nothing_is_caught() {
    let failure = caught(Bug::LazyUnmount);
    assert!(matches!(failure.reason, Reason::Promise(_)), "{failure}");
}

#[test]
fn a_crash_during_recovery_is_tried() {
    let failure = caught(Bug::CarelessRecovery);
    assert_eq!(failure.crashes.len(), 2, "{failure}");
}

#[test]
fn a_failing_sequence_is_cut_to_what_matters() {
    let ops = Workload::generate(1, Profile::CRASHES, 120);
    let fails = |ops: &[Op]| {
        let trial = Trial { ops: ops.to_vec(), recovery_crashed_of: 0, ..Trial::quick(1, 0, 16) };
        trial.run(&Toy { ops: ops.to_vec(), bug: Bug::NoFlush }).is_err()
    };
    let fewest = shrink(&ops, 100, fails);
    assert!(fails(&fewest) && fewest.len() <= 8, "{fewest:?}");
}

#[test]
fn a_system_without_a_disk_is_compared_with_the_model() {
    let ops = Workload::generate(3, Profile::ANSWERS, 300);
    assert!(compare(&mut Model::new(), &ops).is_ok());
    struct Liar(Model);
    impl System for Liar {
        fn apply(&mut self, op: &Op) -> Outcome {
            let outcome = self.0.apply(op);
            match op {
                Op::Rmdir { .. } => outcome.map_err(|_| Errno::EBUSY),
                _ => outcome,
            }
        }
        fn dump(&mut self) -> Result<Tree, Errno> {
            System::dump(&mut self.0)
        }
    }
    let failure = compare(&mut Liar(Model::new()), &ops).expect_err("it lies");
    assert!(failure.to_string().contains("EBUSY"), "{failure}");
}
