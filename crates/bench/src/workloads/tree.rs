//! A tree of real files: unpacked, walked, read, removed.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Supplies;
use crate::figures::{Metric, Sample};
use crate::systems::{System, run};

/// A smaller tree says little.
const FILES_MIN: usize = 1000;
/// Of a larger one the first files are taken, by name.
const FILES_MAX: usize = 6000;
/// Bytes read at once, as cat(1) and grep(1) do roughly.
const READ: usize = 128 << 10;
/// Warm passes that are measured together.
const PASSES: usize = 3;

const UNPACK: Metric = Metric::operations("untar + sync, files").of_ext4(0.5);
const WALK: Metric = Metric::operations("walk + stat, warm").of_ext4(0.9);
/// FUSE's kernel side asks for a directory's attributes once more after the first listing.
const WALK_AGAIN: Metric = Metric::operations("walk + stat, settled").of_ext4(0.9);
const READ_WARM: Metric = Metric::bytes("read a tree, warm").of_ext4(0.9);
const WALK_COLD: Metric = Metric::operations("walk + stat, cold");
const READ_COLD: Metric = Metric::bytes("read a tree, cold");
const REMOVE: Metric = Metric::operations("remove a tree + sync, files");

/// A tree as a tar file, which is in the page cache.
pub struct Tree {
    tar: PathBuf,
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Tree {
    /// Packs the files below `source`; those of Cargo's registry if none is given.
    pub fn pack(source: Option<&Path>, scratch: &Path) -> Result<Self> {
        let source = match source {
            Some(source) => source.to_owned(),
            None => cargo_sources()?,
        };
        let mut found = Vec::new();
        list(&source, &mut found)
            .with_context(|| format!("cannot list {}: give another --tree", source.display()))?;
        found.sort();
        found.truncate(FILES_MAX);
        if found.len() < FILES_MIN {
            let (count, path) = (found.len(), source.display());
            bail!("{path} has only {count} files: name a tree of {FILES_MIN} by --tree");
        }
        let (names, tar) = (scratch.join("tree.names"), scratch.join("tree.tar"));
        let mut text = Vec::new();
        let mut bytes = 0;
        for path in &found {
            bytes += path.metadata()?.len();
            let name = path.strip_prefix(&source).expect("it was listed there");
            text.extend_from_slice(name.as_os_str().as_encoded_bytes());
            text.push(0);
        }
        File::create(&names)?.write_all(&text)?;
        run(Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&source)
            .args(["--null", "--verbatim-files-from", "-T"])
            .arg(&names))?;
        Ok(Self { tar, files: found.len(), bytes })
    }

    fn unpack(&self, to: &Path) -> Result<()> {
        fs::create_dir(to)?;
        run(Command::new("tar").arg("-xf").arg(&self.tar).arg("-C").arg(to))
    }
}

fn cargo_sources() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    Ok(home.context("no home directory: name a tree by --tree")?.join("registry/src"))
}

/// All regular files below `top`.
fn list(top: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(())
}

fn place(system: &dyn System) -> PathBuf {
    system.root().join("tree")
}

/// The tree, unpacked if it is not there.
fn existing(system: &mut dyn System, supplies: &Supplies) -> Result<PathBuf> {
    let place = place(system);
    if !place.exists() {
        supplies.tree.unpack(&place)?;
        system.sync()?;
    }
    Ok(place)
}

/// Unpacks the tree and waits until it is on disk.
pub fn unpack(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let place = place(system);
    if place.exists() {
        fs::remove_dir_all(&place)?;
        system.sync()?;
    }
    // Of whatever the tar's last reader left in the cache.
    std::io::copy(&mut File::open(&supplies.tree.tar)?, &mut std::io::sink())?;
    let start = Instant::now();
    supplies.tree.unpack(&place)?;
    system.sync()?;
    Ok(vec![UNPACK.sample(supplies.tree.files as f64, start.elapsed().as_secs_f64())])
}

/// Looks at every entry, as `find -ls` does, and says how many there are.
pub fn walk(top: &Path) -> Result<usize> {
    let mut count = 0;
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            count += 1;
            // By a system call of its own relative to the directory.
            if entry.metadata()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(count)
}

/// Reads every file and says how many bytes there were.
pub fn read(top: &Path) -> Result<u64> {
    let mut files = Vec::new();
    list(top, &mut files)?;
    let mut buffer = vec![0; READ];
    let mut total = 0;
    for path in &files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => total += length as u64,
            }
        }
    }
    Ok(total)
}

fn check_length(length: u64, supplies: &Supplies) -> Result<()> {
    if length != supplies.tree.bytes {
        bail!("{length} bytes were read of {}", supplies.tree.bytes);
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Walks a tree that was walked before.
pub fn walk_warm(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let place = existing(system, supplies)?;
    let count = walk(&place)?;
    let passes = |metric: Metric| -> Result<Sample> {
        let start = Instant::now();
        for _ in 0..PASSES {
            walk(&place)?;
        }
        Ok(metric.sample((count * PASSES) as f64, start.elapsed().as_secs_f64()))
    };
    Ok(vec![passes(WALK)?, passes(WALK_AGAIN)?])
}

/// Reads a tree that was read before.
pub fn read_warm(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let place = existing(system, supplies)?;
    let length = read(&place)?;
    check_length(length, supplies)?;
    let start = Instant::now();
    for _ in 0..PASSES {
        read(&place)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(vec![READ_WARM.sample(mebibytes(length) * PASSES as f64, seconds)])
}

/// Walks and then reads a tree of which nothing is cached.
pub fn cold(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let place = existing(system, supplies)?;
    system.forget()?;
    let start = Instant::now();
    let count = walk(&place)?;
    let walked = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let length = read(&place)?;
    let seconds = start.elapsed().as_secs_f64();
    check_length(length, supplies)?;
    Ok(vec![WALK_COLD.sample(count as f64, walked), READ_COLD.sample(mebibytes(length), seconds)])
}

/// Removes the tree and waits until that is on disk.
pub fn remove(system: &mut dyn System, supplies: &Supplies) -> Result<Vec<Sample>> {
    let place = existing(system, supplies)?;
    let start = Instant::now();
    fs::remove_dir_all(&place)?;
    system.sync()?;
    Ok(vec![REMOVE.sample(supplies.tree.files as f64, start.elapsed().as_secs_f64())])
}
