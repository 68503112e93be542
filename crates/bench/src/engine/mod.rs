//! The engine in this process beside ext4's system calls.
//!
//! Each round and thread makes a directory of files, writes a block to each, looks each up and
//! removes each; and overwrites one file block by block. Everything is on disk before a phase
//! begins, so a phase is not slowed by what an earlier one left behind. ext4 is used from one
//! thread; Gabion from one and from two, in different directories, and in different halves of
//! one file.
//!
//! Two threads on a machine that others use, too, get less than twice the time of one. The first
//! row shows how much: arithmetic that shares nothing. Processor time tells contention from
//! noise: `us` is what an operation costs of it. "By cpu" says from that how much more two threads
//! would do on two free cores, if they never waited; how often an operation waited is counted.

mod calls;
mod crowd;
mod local;

use std::hint::black_box;

use anyhow::Result;

use self::calls::Calls;
use self::crowd::{Lap, lap};
use self::local::Local;
use crate::args;
use crate::figures::{Figures, Metric};
use crate::random::Random;
use crate::systems::{Ext4, Scratch, System, full_image};
use crate::table::{Table, rate, verdict};

/// Bytes of a write.
pub const BLOCK: usize = 4096;
/// Blocks of the file that is overwritten (32 MiB): less than what may wait in memory.
const FILE_BLOCKS: usize = 8192;
/// Steps of each thread in the row that shows what the machine has to give.
const ARITHMETIC_STEPS: usize = 20_000_000;
/// Length of an image in MiB.
const IMAGE: u64 = 2048;
/// The least ratio of two threads to one that is aimed at.
const SCALING: f64 = 1.7;

const ARITHMETIC: Metric = Metric::operations("(arithmetic)");
const CREATE: Metric = Metric::operations("create").of_ext4(1.0);
const WRITE: Metric = Metric::operations("write 4 KiB to a new file").of_ext4(1.0);
const LOOKUP: Metric = Metric::operations("lookup").of_ext4(1.0);
const UNLINK: Metric = Metric::operations("unlink").of_ext4(1.0);
const OVERWRITE: Metric = Metric::operations("overwrite 4 KiB of one file").of_ext4(1.0);
const FILL: Metric = Metric::operations("create + write 4 KiB, all + sync").of_ext4(1.0);

/// Columns of rates by the clock, by the number of threads.
const RATES: [&str; 2] = ["one thread", "two threads"];
const EXT4: &str = "ext4";

/// What both do. Directories are numbered, files have names.
pub trait Subject: Sync {
    /// A directory.
    type Directory: Sync;
    /// An open file.
    type File: Send + Sync;

    /// Makes a directory below the root.
    fn make_directory(&self, name: &str) -> Result<Self::Directory>;
    /// Makes a file that is not there and opens it.
    fn create(&self, directory: &Self::Directory, name: &str) -> Result<Self::File>;
    /// Closes it and forgets it.
    fn close(&self, file: Self::File);
    /// Writes a block.
    fn write(&self, file: &Self::File, offset: u64, block: &[u8]) -> Result<()>;
    /// Finds a file's attributes by its name.
    fn lookup(&self, directory: &Self::Directory, name: &str) -> Result<()>;
    /// Removes a file's name.
    fn unlink(&self, directory: &Self::Directory, name: &str) -> Result<()>;
    /// Returns when everything is on disk.
    fn sync(&self) -> Result<()>;
}

/// Runs the command.
pub fn run(args: &args::Engine) -> Result<()> {
    let scratch = Scratch::new(&args.dir)?;
    let image = scratch.path().join("engine.img");
    full_image(&image, IMAGE)?;
    let engine = Local::open(&image)?;
    let [mut clock, mut work, mut waits] = [(); 3].map(|()| Figures::default());
    let ext4 = if args.alone { None } else { Some(Ext4::new(scratch.path(), IMAGE)?) };
    let calls = ext4.as_ref().map(|ext4| Calls::new(ext4.root())).transpose()?;
    for round in 0..args.rounds {
        let mut add = |system, metric: Metric, count: usize, lap: Lap| {
            clock.add(system, round, metric.sample(count as f64, lap.seconds));
            work.add(system, round, metric.sample(count as f64, lap.cpu_seconds));
            // Rates again: never none, so that medians exist.
            waits.add(system, round, metric.sample(count as f64, lap.waits as f64 + 1e-9));
        };
        if let Some(calls) = &calls {
            let label = format!("e{round}");
            let mut add = |metric, count, lap| add(EXT4, metric, count, lap);
            Run { subject: calls, label, threads: 1, args, add: &mut add }.all()?;
        }
        for threads in [1, 2] {
            let label = format!("g{round}.{threads}");
            let mut add = |metric, count, lap| add(RATES[threads - 1], metric, count, lap);
            Run { subject: &engine, label, threads, args, add: &mut add }.all()?;
        }
    }
    print!("{}", report(&clock, &work, &waits));
    Ok(())
}

fn report(clock: &Figures, work: &Figures, waits: &Figures) -> String {
    let [one, two] = RATES;
    let mut table = Table::new(&[
        "engine", EXT4, one, two, "one/ext4", "two/one", "by cpu", "ext4 us", "one us", "two us",
        "waits", "of two",
    ]);
    for metric in clock.metrics() {
        let inverse = |figures: &Figures, system, scale: f64| match figures.rate(metric, system) {
            Some(rate) => format!("{:.2}", scale / rate),
            None => "-".to_owned(),
        };
        let by_cpu = work.ratio(metric, two, one).map(|ratio| 2.0 * ratio);
        table.row(vec![
            metric.name.to_owned(),
            rate(clock.rate(metric, EXT4), metric.unit),
            rate(clock.rate(metric, one), metric.unit),
            rate(clock.rate(metric, two), metric.unit),
            verdict(clock.ratio(metric, one, EXT4), metric.to_ext4),
            verdict(clock.ratio(metric, two, one), None),
            verdict(by_cpu, metric.to_ext4.map(|_| SCALING)),
            inverse(work, EXT4, 1e6),
            inverse(work, one, 1e6),
            inverse(work, two, 1e6),
            inverse(waits, one, 1.0),
            inverse(waits, two, 1.0),
        ]);
    }
    table.text()
}

/// One round of one subject with a number of threads.
struct Run<'a, S: Subject> {
    subject: &'a S,
    /// Tells this run's directories from others'.
    label: String,
    threads: usize,
    args: &'a args::Engine,
    add: &'a mut dyn FnMut(Metric, usize, Lap),
}

impl<S: Subject> Run<'_, S> {
    fn all(&mut self) -> Result<()> {
        self.arithmetic()?;
        if self.wants("names") {
            self.names()?;
        }
        if self.wants("overwrite") {
            self.overwrite()?;
        }
        if self.wants("fill") {
            self.fill()?;
        }
        Ok(())
    }

    fn wants(&self, phase: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|name| name == phase)
    }

    fn directories(&self, purpose: &str) -> Result<Vec<S::Directory>> {
        let name = |thread| format!("{}.{purpose}.{thread}", self.label);
        let make = |thread| self.subject.make_directory(&name(thread));
        let made = (0..self.threads).map(make).collect::<Result<_>>()?;
        self.subject.sync()?;
        Ok(made)
    }

    fn file_names(&self) -> Vec<String> {
        (0..self.args.files).map(|index| format!("file-{index:06}")).collect()
    }

    fn arithmetic(&mut self) -> Result<()> {
        let (lap, _) = lap("arithmetic", self.threads, |_| {
            let mut random = Random::new(1);
            for _ in 0..ARITHMETIC_STEPS {
                black_box(random.below(1000));
            }
            Ok(())
        })?;
        (self.add)(ARITHMETIC, ARITHMETIC_STEPS * self.threads, lap);
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        let (subject, threads) = (self.subject, self.threads);
        let (names, dirs) = (self.file_names(), self.directories("names")?);
        let total = names.len() * threads;
        let block = [0x5a; BLOCK];
        let (time, files) = lap("create", threads, |thread| {
            names.iter().map(|name| subject.create(&dirs[thread], name)).collect()
        })?;
        (self.add)(CREATE, total, time);
        subject.sync()?;
        let (time, _) = lap("write", threads, |thread| {
            let files: &Vec<S::File> = &files[thread];
            files.iter().try_for_each(|file| subject.write(file, 0, &block))
        })?;
        (self.add)(WRITE, total, time);
        subject.sync()?;
        let (time, _) = lap("lookup", threads, |thread| {
            names.iter().try_for_each(|name| subject.lookup(&dirs[thread], name))
        })?;
        (self.add)(LOOKUP, total, time);
        files.into_iter().flatten().for_each(|file| subject.close(file));
        let (time, _) = lap("unlink", threads, |thread| {
            names.iter().try_for_each(|name| subject.unlink(&dirs[thread], name))
        })?;
        (self.add)(UNLINK, total, time);
        subject.sync()
    }

    fn overwrite(&mut self) -> Result<()> {
        let (subject, threads) = (self.subject, self.threads);
        let dirs = self.directories("bytes")?;
        let file = subject.create(&dirs[0], "file")?;
        let block = [0xa5; BLOCK];
        let overwrite = |from: usize, to: usize| {
            (from..to).try_for_each(|at| subject.write(&file, (at * BLOCK) as u64, &block))
        };
        overwrite(0, FILE_BLOCKS)?;
        subject.sync()?;
        let part = FILE_BLOCKS / threads;
        let (time, _) =
            lap("overwrite", threads, |thread| overwrite(thread * part, (thread + 1) * part))?;
        (self.add)(OVERWRITE, FILE_BLOCKS, time);
        subject.sync()?;
        subject.close(file);
        subject.unlink(&dirs[0], "file")
    }

    fn fill(&mut self) -> Result<()> {
        let (subject, threads) = (self.subject, self.threads);
        let (names, dirs) = (self.file_names(), self.directories("fill")?);
        let block = [0x55; BLOCK];
        let (mut time, _) = lap("fill", threads, |thread| {
            names.iter().try_for_each(|name| {
                let file = subject.create(&dirs[thread], name)?;
                subject.write(&file, 0, &block)?;
                subject.close(file);
                Ok(())
            })
        })?;
        let (sync, _) = lap("sync", 1, |_| subject.sync())?;
        time.seconds += sync.seconds;
        time.cpu_seconds += sync.cpu_seconds;
        time.waits += sync.waits;
        (self.add)(FILL, names.len() * threads, time);
        Ok(())
    }
}
