//! Bytes of large files.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::Supplies;
use crate::figures::{Metric, Sample};
use crate::random::Random;
use crate::systems::System;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Length of the file that is used in random order.
const RANDOM_LENGTH: u64 = 256 * MIB;
/// Random writes before the fsync.
const RANDOM_WRITES: u64 = 16_384;
/// Random reads of a file that is cached, and of one that is not.
const RANDOM_READS: [u64; 2] = [150_000, 2_000];
/// Length of the file that is used in its order while it is cached.
const CACHED_LENGTH: u64 = 64 * MIB;
/// Times that it is read: once is over too soon to be measured.
const CACHED_READS: u64 = 8;

const STREAM_WRITE: Metric = Metric::bytes("write 1 GiB + fsync").of_ext4(0.8);
const STREAM_READ: Metric = Metric::bytes("read 1 GiB, cold").of_ext4(0.8);
const RANDOM_WRITE: Metric = Metric::operations("random 4 KiB writes, fsync at end").of_ext4(1.0);
const RANDOM_WARM: Metric = Metric::operations("random 4 KiB reads, warm");
const RANDOM_COLD: Metric = Metric::operations("random 4 KiB reads, cold");
const WRITE_SMALL: Metric = Metric::bytes("write by 4 KiB, no fsync");
const WRITE_LARGE: Metric = Metric::bytes("write by 1 MiB, no fsync");
const READ_SMALL: Metric = Metric::bytes("read by 4 KiB, warm");
const READ_LARGE: Metric = Metric::bytes("read by 1 MiB, warm");

/// Seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn write_all(file: &File, length: u64, step: u64) -> Result<()> {
    let buffer: Vec<u8> = (0..step).map(|index| (index / 7) as u8).collect();
    for at in 0..length / step {
        file.write_all_at(&buffer, at * step)?;
    }
    Ok(())
}

fn read_all(file: &File, length: u64, step: u64) -> Result<()> {
    let mut buffer = vec![0; step as usize];
    for at in 0..length / step {
        file.read_exact_at(&mut buffer, at * step)?;
    }
    Ok(())
}

/// A large file, written from nothing, made durable, and read when nobody has it cached.
pub fn stream(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let path = system.root().join("stream");
    let length = supplies.stream * MIB;
    if path.exists() {
        fs::remove_file(&path)?;
        system.sync()?;
    }
    let wrote = timed(|| {
        let file = File::create(&path)?;
        write_all(&file, length, MIB)?;
        Ok(file.sync_all()?)
    })?;
    system.forget()?;
    let read = timed(|| read_all(&File::open(&path)?, length, MIB))?;
    fs::remove_file(&path)?;
    let mebibytes = supplies.stream as f64;
    Ok(vec![STREAM_WRITE.sample(mebibytes, wrote), STREAM_READ.sample(mebibytes, read)])
}

/// The file for random order, made if it is not there.
fn random_file(system: &mut dyn System) -> Result<PathBuf> {
    let path = system.root().join("random");
    if !path.exists() {
        let file = File::create(&path)?;
        write_all(&file, RANDOM_LENGTH, MIB)?;
        file.sync_all()?;
    }
    Ok(path)
}

/// Writes here and there, made durable together.
pub fn random_writes(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let path = random_file(system)?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut random = Random::new(7);
    let buffer = [0xa7; 4 * KIB as usize];
    let seconds = timed(|| {
        for _ in 0..RANDOM_WRITES {
            let block = random.below(RANDOM_LENGTH / (4 * KIB));
            file.write_all_at(&buffer, block * 4 * KIB)?;
        }
        Ok(file.sync_all()?)
    })?;
    Ok(vec![RANDOM_WRITE.sample(RANDOM_WRITES as f64, seconds)])
}

/// Reads here and there, of a file in the cache and of one that is not.
pub fn random_reads(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let path = random_file(system)?;
    let reads = |file: &File, count: u64, seed: u64| {
        let mut random = Random::new(seed);
        let mut buffer = [0; 4 * KIB as usize];
        timed(|| {
            for _ in 0..count {
                let block = random.below(RANDOM_LENGTH / (4 * KIB));
                file.read_exact_at(&mut buffer, block * 4 * KIB)?;
            }
            Ok(())
        })
    };
    let [warm_count, cold_count] = RANDOM_READS;
    let file = File::open(&path)?;
    read_all(&file, RANDOM_LENGTH, MIB)?;
    let warm = reads(&file, warm_count, 11)?;
    drop(file);
    system.forget()?;
    let cold = reads(&File::open(&path)?, cold_count, 13)?;
    Ok(vec![
        RANDOM_WARM.sample(warm_count as f64, warm),
        RANDOM_COLD.sample(cold_count as f64, cold),
    ])
}

/// Writes and reads that need not touch the disk.
pub fn cached(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let path = system.root().join("cached");
    let mut samples = Vec::new();
    let mebibytes = (CACHED_LENGTH / MIB) as f64;
    for (step, write, read) in [(4 * KIB, WRITE_SMALL, READ_SMALL), (MIB, WRITE_LARGE, READ_LARGE)]
    {
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        samples.push(write.sample(mebibytes, timed(|| write_all(&file, CACHED_LENGTH, step))?));
        system.sync()?;
        read_all(&file, CACHED_LENGTH, step)?;
        let read_often =
            || (0..CACHED_READS).try_for_each(|_| read_all(&file, CACHED_LENGTH, step));
        samples.push(read.sample(mebibytes * CACHED_READS as f64, timed(read_often)?));
        drop(file);
        fs::remove_file(&path)?;
        system.sync()?;
    }
    Ok(samples)
}
