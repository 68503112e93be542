//! Gabion keeps its promises: answers, and what is left after crashes.

use std::env;
use std::sync::Arc;

use gabion_base::rng::Rng;
use gabion_map::format::subvolume::Most;

use gabion_sim::crash::CrashPlan;
use gabion_sim::disk::SimDisk;
use gabion_sim::faults::{Faults, Odds};
use gabion_sim::history::Room;
use gabion_sim::model::Model;
use gabion_sim::op::Op;
use gabion_sim::trial::{Engine, Failure, Reason, Trial, compare, shrink};
use gabion_sim::workload::{Profile, Workload};

use crate::engine::Gabion;
use crate::seeds::seeds;

/// Runs that a failing seed is worth.
const ATTEMPTS: usize = 300;

/// Cuts the operations of a failing seed to what matters, if it is the one that is looked at.
fn explain(
    seed: u64,
    ops: &[Op],
    failure: &Failure,
    fails: impl Fn(&[Op]) -> Option<Failure>,
) -> ! {
    if env::var("GABION_SEED").is_ok() {
        let fewest = shrink(ops, ATTEMPTS, |ops| fails(ops).is_some());
        for op in &fewest {
            eprintln!("{op:?}");
        }
        if let Some(failure) = fails(&fewest) {
            eprintln!("{} operations: {failure}", fewest.len());
        }
    }
    panic!("seed {seed}: {failure}");
}

fn answers(seed: u64, ops: &[Op]) -> Result<(), Failure> {
    let engine = Gabion::of_seed(seed);
    let disk = Arc::new(SimDisk::new(16_384));
    engine.format(disk.clone()).map_err(Reason::Engine)?;
    let mut mounted = engine.mount(disk).map_err(Reason::Engine)?;
    compare(&mut mounted, ops)?;
    Ok(engine.unmount(mounted).map_err(Reason::Engine)?)
}

#[test]
fn it_answers_what_the_model_answers() {
    for seed in seeds(3) {
        let ops = Workload::generate(seed, Profile::ANSWERS, 1500);
        if let Err(failure) = answers(seed, &ops) {
            explain(seed, &ops, &failure, |ops| answers(seed, ops).err());
        }
    }
}

fn run(seed: u64, trial: &Trial, engine: &Gabion) {
    let started = std::time::Instant::now();
    match trial.run(engine) {
        Err(failure) => explain(seed, &trial.ops, &failure, |ops| {
            Trial { ops: ops.to_vec(), ..trial.clone() }.run(engine).err()
        }),
        Ok(summary) if env::var("GABION_SEEDS").is_ok() => {
            eprintln!("seed {seed}: {summary:?} in {:?}", started.elapsed());
        }
        Ok(_) => {}
    }
}

/// A trial of `seed`: what is done, on which disk, with what going on beside it.
fn trial(seed: u64) -> (Trial, Gabion) {
    let mut rng = Rng::new(seed);
    let (ops, one_of) = match rng.below(16) {
        0..=5 => (Workload::generate(seed, Profile::CRASHES, 200), 8),
        6..=10 => (Workload::generate(seed, Profile::SYNCS, 200), 10),
        // So long that the journal's ring is used several times.
        11 | 12 => (Workload::generate(seed, Profile::SYNCS, 1000), 60),
        13 => (Workload::generate(seed, Profile::LARGE, 60), 12),
        _ => (populated(seed, 150), 40),
    };
    let one_of = if env::var("GABION_THOROUGH").is_ok() { 1 } else { one_of };
    let plan = match one_of {
        1 => CrashPlan::thorough(seed),
        _ => CrashPlan { one_of, ..CrashPlan::quick(seed) },
    };
    let blocks = 4096 << rng.below(3);
    let trial = Trial {
        plan,
        recovery_crashed_of: 30,
        second_life_of: 30,
        second_life: 50,
        ..Trial::of(seed, ops, blocks)
    };
    (trial, Gabion::of_seed(rng.next_u64()))
}

fn populated(seed: u64, count: usize) -> Vec<Op> {
    let mut ops = Workload::population();
    let mut model = Model::new();
    for op in &ops {
        model.apply(op).expect("there is nothing in the way");
    }
    ops.extend(Workload::continuing(seed, Profile::MANY, model).take(count));
    ops
}

#[test]
fn it_keeps_its_promises_after_crashes() {
    for seed in seeds(6) {
        let (trial, engine) = trial(seed);
        run(seed, &trial, &engine);
    }
}

#[test]
fn it_keeps_its_promises_on_a_full_disk() {
    for seed in seeds(3) {
        let (trial, engine) = trial(seed);
        let ops = Workload::generate(seed, Profile::FULL, 150);
        let plan = CrashPlan { one_of: trial.plan.one_of.min(8), ..trial.plan };
        let trial = Trial { ops, plan, room: Room::Scarce, blocks: 4096, ..trial };
        let free_blocks = 10 + Rng::new(!seed).below(60);
        run(seed, &trial, &engine.with_free_blocks(free_blocks));
    }
}

#[test]
fn it_keeps_its_promises_within_a_quota() {
    for seed in seeds(4) {
        let (trial, engine) = trial(seed);
        let ops = Workload::generate(seed, Profile::FULL, 150);
        let plan = CrashPlan { one_of: trial.plan.one_of.min(8), ..trial.plan };
        let trial = Trial { ops, plan, room: Room::Scarce, ..trial };
        let mut rng = Rng::new(!seed);
        let objects = rng.chance(1, 2).then(|| 3 + rng.below(20));
        let quota = Most { blocks: Some(10 + rng.below(60)), objects };
        run(seed, &trial, &engine.with_quota(quota));
    }
}

#[test]
fn it_keeps_its_promises_when_the_disk_fails() {
    for seed in seeds(3) {
        let (trial, engine) = trial(seed);
        let mut rng = Rng::new(seed.wrapping_mul(77));
        let odds = |rng: &mut Rng| Odds([0, 30_000, 200_000][rng.below(3) as usize]);
        let (write_error, flush_error) = (odds(&mut rng), odds(&mut rng));
        let faults = Faults { seed, write_error, flush_error, ..Faults::default() };
        let after = rng.below(trial.ops.len() as u64) as usize;
        run(seed, &Trial { breakdown: Some((after, faults)), ..trial }, &engine);
    }
}

/// Lengths whose ends lie to those of groups in every way that makes a difference: the old tail
/// and the new one overlap, lie over a group's bitmap page, or on both sides of a group's start;
/// there are new groups, without and with a block to use.
const GROWTHS: [&[u64]; 8] = [
    &[4096, 4099],
    &[4096, 8192, 8200],
    &[4096, 40_000],
    &[32_767, 32_770],
    &[32_768, 40_000],
    &[32_775, 32_778, 32_779],
    &[32_776, 65_540],
    &[32_779, 33_000],
];

/// A trial in which the filesystem grows once or twice while everything goes on.
fn growing(seed: u64) -> (Trial, Gabion) {
    let (trial, engine) = trial(seed);
    let mut rng = Rng::new(seed ^ 0x9e37);
    let lengths = GROWTHS[seed as usize % GROWTHS.len()];
    let ops = Workload::generate(seed, Profile::CRASHES, 50);
    let mut before = 0;
    let growth = lengths[1..].iter().map(|blocks| {
        before += 3 + rng.below(20) as usize;
        (before, *blocks)
    });
    let growth = growth.collect();
    (Trial { ops, growth, blocks: lengths[0], ..trial }, engine)
}

#[test]
fn it_keeps_its_promises_when_it_grows() {
    for seed in seeds(GROWTHS.len() as u64) {
        let (trial, engine) = growing(seed);
        run(seed, &trial, &engine);
    }
}

#[test]
fn it_keeps_its_promises_when_it_grows_because_it_is_full() {
    for seed in seeds(3) {
        let (trial, engine) = growing(seed);
        let ops = Workload::generate(seed, Profile::FULL, 80);
        let (blocks, growth) = (4096, vec![(40, 4096 + 200 * (seed % 64).max(1))]);
        let trial = Trial { ops, blocks, growth, room: Room::Scarce, ..trial };
        let free_blocks = 10 + Rng::new(!seed).below(60);
        run(seed, &trial, &engine.with_free_blocks(free_blocks));
    }
}

#[test]
fn every_crash_of_a_growth_leaves_the_old_length_or_the_new_one() {
    for (seed, lengths) in (0..).zip(GROWTHS) {
        let ops = Workload::generate(seed, Profile::SYNCS, 12);
        let growth = vec![(2, lengths[1])];
        let plan = match env::var("GABION_THOROUGH") {
            Ok(_) => CrashPlan::thorough(seed),
            Err(_) => CrashPlan::quick(seed),
        };
        let (afterwards, recovery_crashed_of) = (2, 0);
        let blocks = lengths[0];
        let trial =
            Trial { plan, growth, afterwards, recovery_crashed_of, ..Trial::of(seed, ops, blocks) };
        // With commits between the operations, or beside them.
        run(seed, &trial, &Gabion::of_seed(5 + seed % 2));
    }
}
