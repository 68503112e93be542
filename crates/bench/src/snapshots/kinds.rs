//! The filesystems whose snapshots are measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::systems::{Btrfs, Gabion, System, drop_caches, run, sync_of};

/// A mounted filesystem with snapshots. Dropping it unmounts it.
pub trait Kind {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// What snapshots are made of.
    fn root(&self) -> &Path;
    /// Makes a snapshot.
    fn snapshot(&self, name: &str) -> Result<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> Result<()>;
    /// Lets nothing be cached.
    fn forget(&mut self) -> Result<()>;
    /// Makes a snapshot and sends it to a file: everything, or what is different from the one
    /// before. Gives the length of that.
    fn send(&mut self, is_difference: bool) -> Result<u64>;
    /// Makes of all that was sent what it was in the end, beside the original.
    fn receive(&self) -> Result<()>;
}

/// Gabion.
pub struct OfGabion {
    system: Gabion,
    binary: PathBuf,
    streams: PathBuf,
}

impl OfGabion {
    pub fn new(scratch: &Path, mebibytes: u64, binary: PathBuf, streams: &Path) -> Result<Self> {
        fs::create_dir(scratch.join("gabion"))?;
        let streams = streams.join("gabion");
        fs::create_dir(&streams)?;
        let system = Gabion::new(scratch, mebibytes, binary.clone(), None)?;
        Ok(Self { system, binary, streams })
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new(&self.binary).args(arguments))
    }

    fn snapshots(&self, what: &[&str], name: &str) -> Result<()> {
        let root = self.root().to_string_lossy();
        self.run(&[&["snapshot"], what, &[&root, name]].concat())
    }
}

impl Kind for OfGabion {
    fn name(&self) -> &'static str {
        "gabion"
    }

    fn root(&self) -> &Path {
        self.system.root()
    }

    fn snapshot(&self, name: &str) -> Result<()> {
        self.snapshots(&["create"], name)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.snapshots(&["delete", "--yes"], name)
    }

    fn forget(&mut self) -> Result<()> {
        self.system.forget()
    }

    fn send(&mut self, is_difference: bool) -> Result<u64> {
        let before = length(&self.streams)?;
        let (root, streams) = (self.root().to_string_lossy(), self.streams.to_string_lossy());
        match is_difference {
            true => self.run(&["backup", "--incremental", &root, &streams])?,
            false => self.run(&["backup", &root, &streams])?,
        }
        Ok(length(&self.streams)? - before)
    }

    fn receive(&self) -> Result<()> {
        let (to, streams) = (self.root().join("received"), self.streams.to_string_lossy());
        self.run(&["restore", &streams, &to.to_string_lossy()])?;
        sync_of(self.root())
    }
}

/// btrfs.
pub struct OfBtrfs {
    system: Btrfs,
    root: PathBuf,
    streams: PathBuf,
}

impl OfBtrfs {
    /// Nothing if this machine has none.
    pub fn new(scratch: &Path, mebibytes: u64, streams: &Path) -> Result<Option<Self>> {
        let known = fs::read_to_string("/proc/filesystems")?;
        let program = Command::new("btrfs").arg("version").stdout(Stdio::null()).status();
        if !known.lines().any(|line| line.trim() == "btrfs") || program.is_err() {
            return Ok(None);
        }
        let system = Btrfs::new(scratch, "btrfs", mebibytes)?;
        let root = system.at("files");
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(&root))?;
        Ok(Some(Self { system, root, streams: streams.to_owned() }))
    }
}

impl Kind for OfBtrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn snapshot(&self, name: &str) -> Result<()> {
        let to = self.system.at(name);
        run(Command::new("btrfs").args(["subvolume", "snapshot", "-r"]).arg(&self.root).arg(to))
    }

    fn remove(&self, name: &str) -> Result<()> {
        run(Command::new("btrfs").args(["subvolume", "delete"]).arg(self.system.at(name)))
    }

    fn forget(&mut self) -> Result<()> {
        drop_caches()
    }

    fn send(&mut self, is_difference: bool) -> Result<u64> {
        let (name, path) = match is_difference {
            true => ("second", self.streams.join("btrfs.1")),
            false => ("first", self.streams.join("btrfs.0")),
        };
        self.snapshot(name)?;
        let mut send = Command::new("btrfs");
        send.args(["send", "-q", "-f"]).arg(&path);
        if is_difference {
            send.arg("-p").arg(self.system.at("first"));
        }
        run(send.arg(self.system.at(name)))?;
        Ok(fs::metadata(path)?.len())
    }

    fn receive(&self) -> Result<()> {
        let to = self.system.at("received");
        fs::create_dir(&to)?;
        for stream in ["btrfs.0", "btrfs.1"] {
            let mut receive = Command::new("btrfs");
            receive.args(["receive", "-q", "-f"]).arg(self.streams.join(stream));
            run(receive.arg(&to))?;
        }
        sync_of(&to)
    }
}

/// Bytes of the files in a folder.
fn length(folder: &Path) -> Result<u64> {
    let lengths = fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
    lengths.sum()
}
