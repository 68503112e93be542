//! A tree of source files under git: unpacked on one mount, looked at again there, and looked at
//! for the first time on the other one.
//!
//! The tree is made anew for each run and is the same in every run.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Findings, Supplies};
use crate::figures::{Metric, Sample, Unit};
use crate::random::Random;
use crate::systems::run;
use crate::systems::shared::Shared;
use crate::workloads::tree::{read, walk};

/// Files of a directory.
const SIBLINGS: usize = 12;
/// Of each so many directories, one is not below the one before.
const BRANCHING: usize = 5;
/// Passes that are measured together, at least.
const PASSES: u32 = 3;

const UNPACK: Metric = Metric::of("untar + sync, files", Unit::PerSecond);
const WALK: Metric = Metric::of("walk + stat again, entries", Unit::PerSecond);
const READ: Metric = Metric::of("read a tree again", Unit::MebibytesPerSecond);
const FIND: Metric = Metric::of("find again", Unit::Milliseconds);
const STATUS: Metric = Metric::of("git status again", Unit::Milliseconds);
const WALK_COLD: Metric = Metric::of("walk + stat on the other, cold", Unit::PerSecond);
const READ_COLD: Metric = Metric::of("read a tree on the other, cold", Unit::MebibytesPerSecond);
/// What each workload finds.
pub const UNPACKED: &[Metric] = &[UNPACK];
pub const WARM: &[Metric] = &[WALK, READ];
pub const PROGRAMS: &[Metric] = &[FIND, STATUS];
pub const COLD: &[Metric] = &[WALK_COLD, READ_COLD];

/// A tree as a tar file.
pub struct Tree {
    tar: PathBuf,
    /// Number of files of the sources.
    pub files: usize,
    /// All bytes of all files, those of git too.
    pub bytes: u64,
}

impl Tree {
    /// Makes one of so many files.
    pub fn make(scratch: &Path, files: usize) -> Result<Self> {
        let (top, tar) = (scratch.join("tree"), scratch.join("tree.tar"));
        write_sources(&top, files)?;
        git(&top, &["init", "--quiet", "--template=", "--initial-branch=main"])?;
        git(&top, &["add", "--all"])?;
        let who = ["-c", "user.name=Bench", "-c", "user.email=bench@localhost"];
        git(&top, &[&who[..], &["commit", "--quiet", "--message", "All of it"]].concat())?;
        git(&top, &["repack", "-a", "-d", "--quiet"])?;
        let mut pack = Command::new("tar");
        pack.args(["--sort=name", "--mtime=@1700000000", "--owner=0", "--group=0", "-cf"]);
        run(pack.arg(&tar).arg("-C").arg(&top).arg("."))?;
        let bytes = read(&top)?;
        fs::remove_dir_all(&top)?;
        Ok(Self { tar, files, bytes })
    }

    fn unpack(&self, to: &Path) -> Result<()> {
        fs::create_dir(to)?;
        run(Command::new("tar").arg("-xf").arg(&self.tar).arg("-C").arg(to))
    }
}

/// Files with the lengths of sources: most are short, a few are long.
fn write_sources(top: &Path, files: usize) -> Result<()> {
    let mut random = Random::new(1);
    let mut directory = top.to_owned();
    for number in 0..files {
        if number % SIBLINGS == 0 {
            let place = number / SIBLINGS;
            directory = match place % BRANCHING {
                0 => top.join(format!("part-{place:03}")),
                _ => directory.join(format!("module-{place:03}")),
            };
            fs::create_dir_all(&directory)?;
        }
        let lines = match random.below(100) {
            0..70 => 10 + random.below(150),
            70..98 => 160 + random.below(500),
            _ => 2000 + random.below(4000),
        };
        let mut file = std::io::BufWriter::new(File::create(
            directory.join(format!("source-{number:05}.rs")),
        )?);
        for line in 0..lines {
            writeln!(file, "    let value_{line} = {:08x};", random.below(1 << 32))?;
        }
        file.flush()?;
    }
    Ok(())
}

/// Runs git on a tree, as it is without anybody's own settings.
fn git(top: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.arg("-C").arg(top).args(arguments);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    run(&mut command)
}

/// The tree on both mounts, unpacked if it is not there.
fn existing(system: &mut dyn Shared, supplies: &Supplies) -> Result<[PathBuf; 2]> {
    let places = system.roots().map(|root| root.join("tree"));
    if !places[0].exists() {
        supplies.tree.unpack(&places[0])?;
        system.sync()?;
    }
    Ok(places)
}

/// Unpacks the tree and waits until it is on disk.
pub fn unpack(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let place = system.roots()[0].join("tree");
    if place.exists() {
        fs::remove_dir_all(&place)?;
        system.sync()?;
    }
    // Of whatever its last reader left in the cache.
    std::io::copy(&mut File::open(&supplies.tree.tar)?, &mut std::io::sink())?;
    let start = Instant::now();
    supplies.tree.unpack(&place)?;
    let seconds = start.elapsed().as_secs_f64() + system.timed_sync()?;
    Ok(Findings::of([UNPACK.sample(supplies.tree.files as f64, seconds)]))
}

/// Seconds of one pass, of as many as are worth measuring, after one that is not measured.
fn again(supplies: &Supplies, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    pass()?;
    let (start, mut passes) = (Instant::now(), 0);
    while passes < PASSES || start.elapsed() < supplies.duration / 4 {
        pass()?;
        passes += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(passes))
}

/// Walks and reads a tree on the mount where that was done before.
pub fn warm(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [place, _] = existing(system, supplies)?;
    let count = walk(&place)?;
    let walked = again(supplies, || walk(&place).map(drop))?;
    let expected = supplies.tree.bytes;
    let seconds = again(supplies, || {
        let bytes = read(&place)?;
        ensure!(bytes == expected, "{bytes} bytes were read of {expected}");
        Ok(())
    })?;
    let samples = [WALK.sample(count as f64, walked), read_rate(READ, supplies, seconds)];
    Ok(Findings::of(samples))
}

/// What programs do that look for what has changed.
pub fn programs(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [place, _] = existing(system, supplies)?;
    // Of what cannot be told by names alone.
    let find = || run(Command::new("find").arg(&place).args(["-size", "+1000M"]));
    let found = again(supplies, find)?;
    // The first one reads all files, because the index is another machine's.
    let status = again(supplies, || git(&place, &["status", "--porcelain"]))?;
    Ok(Findings::of([FIND.value(found * 1e3), STATUS.value(status * 1e3)]))
}

/// Walks and reads a tree on the second mount, which was just mounted.
pub fn cold(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [_, place] = existing(system, supplies)?;
    system.forget()?;
    let start = Instant::now();
    let count = walk(&place)?;
    let walked = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let bytes = read(&place)?;
    let seconds = start.elapsed().as_secs_f64();
    let expected = supplies.tree.bytes;
    ensure!(bytes == expected, "{bytes} bytes were read of {expected}");
    let walked = WALK_COLD.sample(count as f64, walked);
    Ok(Findings::of([walked, read_rate(READ_COLD, supplies, seconds)]))
}

fn read_rate(metric: Metric, supplies: &Supplies, seconds: f64) -> Sample {
    metric.sample(supplies.tree.bytes as f64 / f64::from(1 << 20), seconds)
}
