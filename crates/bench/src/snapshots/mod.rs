//! Snapshots: what they cost programs that write meanwhile, and what it takes to make and remove
//! them and to save what is different; beside btrfs, if it is there.
//!
//! Both filesystems have many small files, on images on one disk. A load of some threads works on
//! them, first by itself and then with a snapshot each second; how long each operation takes is
//! kept ([`load`]). Then nobody writes, and snapshots are made and removed one by one. In the end
//! each hundredth file is written anew, and what both snapshots have is sent: everything, and what
//! is different; and received again, to the same filesystem.

mod kinds;
mod load;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use self::kinds::{Kind, OfBtrfs, OfGabion};
use crate::args::{self, Size};
use crate::random::Random;
use crate::systems::{Scratch, sync_of};
use crate::table::Table;

/// Files in one directory.
const PER_DIRECTORY: u64 = 100;
/// Of so many files one is changed.
const CHANGED: u64 = 100;
/// The longest file, in bytes.
const LONGEST: u64 = 4000;
/// Snapshots that are made while nobody writes.
const AT_REST: u32 = 10;

/// How much is done.
struct Scale {
    files: u64,
    image: u64,
    load: Duration,
}

/// Runs the command.
pub fn run(args: &args::Snapshots) -> Result<()> {
    let scale = match args.size {
        Size::Full => Scale { files: 100_000, image: 3072, load: Duration::from_secs(20) },
        Size::Small => Scale { files: 1_000, image: 256, load: Duration::from_secs(2) },
    };
    let scratch = Scratch::new(&args.dir)?;
    let streams = Streams::new(&args.streams)?;
    let binary = match &args.gabion {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gabion"),
    };
    let gabion = OfGabion::new(scratch.path(), scale.image, binary, &streams.0)?;
    let mut kinds: Vec<Box<dyn Kind>> = vec![Box::new(gabion)];
    match OfBtrfs::new(scratch.path(), scale.image, &streams.0)? {
        Some(btrfs) => kinds.push(Box::new(btrfs)),
        None => eprintln!("left out: btrfs (package btrfs-progs, and a kernel that has it)"),
    }
    for kind in &kinds {
        fill(kind.root(), scale.files)?;
        sync_of(kind.root())?;
    }
    println!("{} files, {} threads that write", scale.files, load::THREADS);
    print!("{}", under_load(&mut kinds, &scale)?.text());
    println!();
    print!("{}", at_rest(&mut kinds, &scale)?.text());
    Ok(())
}

/// How long operations take, and snapshots meanwhile.
fn under_load(kinds: &mut [Box<dyn Kind>], scale: &Scale) -> Result<Table> {
    let headings =
        ["", "operations", "median", "99 %", "99.9 %", "longest", "snapshots", "longest"];
    let mut table = Table::new(&headings);
    for with_snapshots in [false, true] {
        for kind in kinds.iter_mut() {
            let name =
                format!("{}{}", kind.name(), if with_snapshots { ", snapshots" } else { "" });
            let files = scale.files;
            let (latencies, made) = load::run(kind.root(), files, scale.load, || {
                if !with_snapshots {
                    return Ok(None);
                }
                let begun = Instant::now();
                kind.snapshot("during")?;
                let took = begun.elapsed();
                kind.remove("during")?;
                Ok(Some(took))
            })?;
            let rate = latencies.len() as f64 / scale.load.as_secs_f64();
            let mut row = vec![name, format!("{rate:.0}/s")];
            let part = |of: f64| latencies[((latencies.len() - 1) as f64 * of) as usize];
            row.extend([0.5, 0.99, 0.999, 1.0].map(|of| milliseconds(part(of))));
            if let Some(longest) = made.iter().max() {
                row.extend([made.len().to_string(), milliseconds(*longest)]);
            }
            table.row(row);
            sync_of(kind.root())?;
        }
    }
    Ok(table)
}

/// How long snapshots take while nobody writes, and what they have in common and not.
fn at_rest(kinds: &mut [Box<dyn Kind>], scale: &Scale) -> Result<Table> {
    let headings =
        ["", "made", "longest", "removed", "longest", "all sent", "", "1 % sent", "", "received"];
    let mut table = Table::new(&headings);
    for kind in kinds {
        let mut row = vec![kind.name().to_owned()];
        let names: Vec<String> = (0..AT_REST).map(|number| format!("rest-{number}")).collect();
        let mut made = timed(&names, |name| kind.snapshot(name))?;
        let mut removed = timed(&names, |name| kind.remove(name))?;
        for times in [&mut made, &mut removed] {
            times.sort();
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            row.extend([milliseconds(median), milliseconds(longest)]);
        }
        for round in 0..2 {
            if round > 0 {
                touch(kind.root(), scale.files)?;
            }
            sync_of(kind.root())?;
            kind.forget()?;
            let begun = Instant::now();
            let bytes = kind.send(round > 0)?;
            let took = begun.elapsed();
            row.extend([seconds(took), mebibytes(bytes)]);
        }
        let begun = Instant::now();
        kind.receive()?;
        row.push(seconds(begun.elapsed()));
        table.row(row);
    }
    Ok(table)
}

fn timed(names: &[String], mut run: impl FnMut(&str) -> Result<()>) -> Result<Vec<Duration>> {
    let time = |name: &String| {
        let begun = Instant::now();
        run(name)?;
        Ok(begun.elapsed())
    };
    names.iter().map(time).collect()
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The file with this number.
fn path_of(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{}/{number}", number / PER_DIRECTORY))
}

fn fill(root: &Path, files: u64) -> Result<()> {
    let mut random = Random::new(1);
    for number in 0..files {
        let path = path_of(root, number);
        if number % PER_DIRECTORY == 0 {
            fs::create_dir(path.parent().expect("it is in a directory"))?;
        }
        fs::write(path, bytes(&mut random))?;
    }
    Ok(())
}

fn touch(root: &Path, files: u64) -> Result<()> {
    let mut random = Random::new(2);
    for number in (0..files).step_by(CHANGED as usize) {
        fs::write(path_of(root, number), bytes(&mut random))?;
    }
    Ok(())
}

/// Bytes of a file, which do not pack.
fn bytes(random: &mut Random) -> Vec<u8> {
    (0..1 + random.below(LONGEST)).map(|_| random.below(256) as u8).collect()
}

/// A folder for streams that goes in the end.
struct Streams(PathBuf);

impl Streams {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("gabion-bench-streams.{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
