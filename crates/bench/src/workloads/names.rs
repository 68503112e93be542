//! Operations on names and attributes, one kind after the other on the same files.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use rustix::fs::{
    AtFlags, Mode, OFlags, XattrFlags, chmodat, fstat, linkat, mkdirat, open, openat, renameat,
    statat, symlinkat, unlinkat,
};
use rustix::fs::{getxattr, setxattr};

use super::Supplies;
use crate::figures::{Metric, Sample};
use crate::systems::System;

/// Files that each operation is done to.
const COUNT: usize = 1000;
/// Entries of the directory that is listed.
const LARGE: usize = 10_000;
/// Times that it is listed.
const LISTINGS: usize = 3;

const MKDIR: Metric = Metric::operations("mkdir");
const CREATE: Metric = Metric::operations("create + close");
const STAT: Metric = Metric::operations("stat, warm");
const FSTAT: Metric = Metric::operations("fstat of an open file");
const MISSING: Metric = Metric::operations("stat of what is absent");
const OPEN: Metric = Metric::operations("open + close");
const CHMOD: Metric = Metric::operations("chmod");
const SETXATTR: Metric = Metric::operations("setxattr");
const GETXATTR: Metric = Metric::operations("getxattr");
const SYMLINK: Metric = Metric::operations("symlink");
const LINK: Metric = Metric::operations("link");
const RENAME: Metric = Metric::operations("rename");
const UNLINK: Metric = Metric::operations("unlink");
const RMDIR: Metric = Metric::operations("rmdir");
const STAT_COLD: Metric = Metric::operations("stat, cold");
const READDIR: Metric = Metric::operations("readdir of 10,000 entries, again");

/// Passes over the files where nothing changes: one would be over before it can be measured.
const PASSES: usize = 10;

/// Does each operation to all files.
struct Row {
    directory: OwnedFd,
    samples: Vec<Sample>,
}

impl Row {
    /// Once.
    fn each(
        &mut self,
        metric: Metric,
        operation: impl Fn(&OwnedFd, &str, &str) -> Result<()>,
    ) -> Result<()> {
        self.repeat(1, metric, operation)
    }

    fn repeat(
        &mut self,
        passes: usize,
        metric: Metric,
        operation: impl Fn(&OwnedFd, &str, &str) -> Result<()>,
    ) -> Result<()> {
        let prefix = |prefix: &str| (0..COUNT).map(|n| format!("{prefix}{n:05}")).collect();
        let (files, others): (Vec<String>, Vec<String>) = (prefix("file-"), prefix("other-"));
        let start = Instant::now();
        for _ in 0..passes {
            for (file, other) in files.iter().zip(&others) {
                operation(&self.directory, file, other)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        self.samples.push(metric.sample((COUNT * passes) as f64, seconds));
        Ok(())
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    Ok(open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn create(directory: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::from_raw_mode(0o644))?)
}

/// Every operation on names and attributes.
pub fn change(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let top = system.root().join("names");
    fs::create_dir(&top)?;
    let mut row = Row { directory: open_directory(&top)?, samples: Vec::new() };
    let nothing = AtFlags::empty();
    let path = |name: &str| top.join(name);
    row.each(MKDIR, |dir, _, other| Ok(mkdirat(dir, other, Mode::from_raw_mode(0o755))?))?;
    row.each(RMDIR, |dir, _, other| Ok(unlinkat(dir, other, AtFlags::REMOVEDIR)?))?;
    row.each(CREATE, |dir, file, _| create(dir, file).map(drop))?;
    row.repeat(PASSES, STAT, |dir, file, _| Ok(statat(dir, file, nothing).map(drop)?))?;
    row.repeat(PASSES, MISSING, |dir, _, other| {
        ensure!(statat(dir, other, nothing).is_err(), "{other} should not be there");
        Ok(())
    })?;
    let opened = openat(&row.directory, "file-00000", OFlags::RDONLY, Mode::empty())?;
    row.repeat(PASSES, FSTAT, |_, _, _| Ok(fstat(&opened).map(drop)?))?;
    row.repeat(PASSES, OPEN, |dir, file, _| {
        Ok(openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop)?)
    })?;
    row.each(CHMOD, |dir, file, _| Ok(chmodat(dir, file, Mode::from_raw_mode(0o600), nothing)?))?;
    row.each(SETXATTR, |_, file, _| {
        Ok(setxattr(path(file), "user.bench", b"a value", XattrFlags::empty())?)
    })?;
    row.repeat(PASSES, GETXATTR, |_, file, _| {
        let length = getxattr(path(file), "user.bench", &mut [0_u8; 64])?;
        ensure!(length == 7, "the value has {length} bytes");
        Ok(())
    })?;
    row.each(LINK, |dir, file, other| Ok(linkat(dir, file, dir, other, nothing)?))?;
    row.each(UNLINK, |dir, _, other| Ok(unlinkat(dir, other, nothing)?))?;
    row.each(SYMLINK, |dir, file, other| Ok(symlinkat(file, dir, other)?))?;
    row.each(RENAME, |dir, file, other| Ok(renameat(dir, file, dir, other)?))?;
    drop(opened);
    fs::remove_dir_all(&top)?;
    Ok(row.samples)
}

/// A large directory, made if it is not there.
fn large_directory(system: &mut dyn System) -> Result<std::path::PathBuf> {
    let top = system.root().join("large");
    if !top.exists() {
        fs::create_dir(&top)?;
        let directory = open_directory(&top)?;
        for number in 0..LARGE {
            create(&directory, &format!("a-name-of-usual-length-{number:06}"))?;
        }
        system.sync()?;
    }
    Ok(top)
}

/// Attributes that nobody has cached, in a directory that nobody has read.
pub fn cold(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let top = large_directory(system)?;
    system.forget()?;
    let directory = open_directory(&top)?;
    let start = Instant::now();
    for number in (0..LARGE).step_by(LARGE / COUNT) {
        let name = format!("a-name-of-usual-length-{number:06}");
        statat(&directory, &*name, AtFlags::empty())?;
    }
    Ok(vec![STAT_COLD.sample(COUNT as f64, start.elapsed().as_secs_f64())])
}

/// Names of a large directory.
pub fn list(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    let top = large_directory(system)?;
    let listing = || -> Result<usize> {
        fs::read_dir(&top)?.try_fold(0, |count, entry| entry.map(|_| count + 1).map_err(Into::into))
    };
    ensure!(listing()? == LARGE, "the directory has {LARGE} entries");
    let start = Instant::now();
    for _ in 0..LISTINGS {
        listing()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(vec![READDIR.sample((LARGE * LISTINGS) as f64, seconds)])
}
