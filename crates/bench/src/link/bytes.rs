//! Bytes of files: a long one, small durable appends, and one that two mounts write together.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::agent::{Agent, open};
use super::{Findings, Supplies};
use crate::figures::{Metric, Unit};
use crate::systems::shared::Shared;

const MIB: u64 = 1 << 20;
/// What is written and read at once, but for appends.
const STEP: usize = 1 << 20;
/// Bytes of an append.
const APPEND: usize = 4096;

const WRITE: Metric = Metric::of("write a large file + fsync", Unit::MebibytesPerSecond);
const READ: Metric = Metric::of("read it on the other mount, cold", Unit::MebibytesPerSecond);
const MEDIAN: Metric = Metric::of("append 4 KiB + fsync, median", Unit::Microseconds);
const MEAN: Metric = Metric::of("append 4 KiB + fsync, mean", Unit::Microseconds);
const ALONE: Metric = Metric::of("write a file on one mount + fsync", Unit::MebibytesPerSecond);
const TOGETHER: Metric = Metric::of("write its halves on two + fsync", Unit::MebibytesPerSecond);
const SCALING: Metric = Metric::of("two mounts to one", Unit::Times);
/// What each workload finds.
pub const STREAM: &[Metric] = &[WRITE, READ];
pub const APPENDS: &[Metric] = &[MEDIAN, MEAN];
pub const HALVES: &[Metric] = &[ALONE, TOGETHER, SCALING];

/// The bytes at an offset that is a multiple of [`STEP`]: no two steps are alike.
fn pattern(offset: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..STEP).map(|index| (index / 7) as u8).collect();
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes
}

/// Writes a part of a file and syncs it.
pub fn write_part(file: &File, offset: u64, length: u64) -> Result<()> {
    let mut bytes = pattern(offset);
    for at in (offset..offset + length).step_by(STEP) {
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        file.write_all_at(&bytes, at)?;
    }
    Ok(file.sync_all()?)
}

/// Reads a whole file; with `is_compared`, each byte must be that of the pattern.
fn read_whole(path: &Path, length: u64, is_compared: bool) -> Result<()> {
    let file = File::open(path)?;
    let mut bytes = vec![0; STEP];
    for at in (0..length).step_by(STEP) {
        file.read_exact_at(&mut bytes, at)?;
        ensure!(!is_compared || bytes == pattern(at), "wrong bytes at {at}");
    }
    Ok(())
}

/// A large file, written on the first mount and read on the second one, which was just mounted.
pub fn stream(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [a, b] = system.roots().map(|root| root.join("stream"));
    let length = supplies.stream * MIB;
    let start = Instant::now();
    write_part(&File::create(&a)?, 0, length)?;
    let wrote = start.elapsed().as_secs_f64();
    system.forget()?;
    let start = Instant::now();
    read_whole(&b, length, false)?;
    let read = start.elapsed().as_secs_f64();
    read_whole(&b, length, true)?;
    fs::remove_file(&a)?;
    let mebibytes = supplies.stream as f64;
    Ok(Findings::of([WRITE.sample(mebibytes, wrote), READ.sample(mebibytes, read)]))
}

/// Small appends, each made durable.
pub fn appends(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let path = system.roots()[0].join("log");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut times = Vec::with_capacity(supplies.appends);
    for number in 0..supplies.appends {
        let block = [number as u8; APPEND];
        let start = Instant::now();
        file.write_all(&block)?;
        file.sync_all()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    drop(file);
    fs::remove_file(&path)?;
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    times.sort_by(f64::total_cmp);
    Ok(Findings::of([MEDIAN.value(times[times.len() / 2]), MEAN.value(mean)]))
}

/// One file, written by one mount, and then another one by both at the same time.
pub fn halves(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [a, b] = system.roots().map(|root| root.join("halves"));
    let length = supplies.halves * MIB;
    let start = Instant::now();
    write_part(&File::create(&a)?, 0, length)?;
    let alone = start.elapsed().as_secs_f64();
    fs::remove_file(&a)?;
    system.sync()?;
    File::create(&a)?;
    let file = open(&a)?;
    let mut agent = Agent::start(&b)?;
    let half = length / 2;
    let start = Instant::now();
    agent.tell(&format!("write {half} {half}"))?;
    write_part(&file, 0, half)?;
    agent.answer()?;
    let together = start.elapsed().as_secs_f64();
    drop((agent, file));
    system.forget()?;
    if let Err(error) = read_whole(&b, length, true) {
        return Ok(Findings::note(format!("of two writers' halves: {error:#}")));
    }
    fs::remove_file(&a)?;
    let mebibytes = supplies.halves as f64;
    Ok(Findings::of([
        ALONE.sample(mebibytes, alone),
        TOGETHER.sample(mebibytes, together),
        SCALING.value(alone / together),
    ]))
}
