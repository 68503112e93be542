//! libfuse's passthrough over ext4: what FUSE costs if the daemon has nothing to do.
//!
//! `passthrough_ll` finds an inode by walking a list of all that the kernel knows, so that it
//! becomes slower with their number. `passthrough_hp` does not, but is not among the examples that
//! Debian installs; it can be given on the command line. Both let the kernel cache everything
//! for a day and write through.
//!
//! syncfs(2) on its mount does not reach the daemon: the ext4 below is synced as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::daemon::Daemon;
use super::image::LoopMount;
use super::{System, drop_caches, run, sync_of};

/// Where Debian's libfuse3-dev puts its examples.
const EXAMPLE: &str = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c";

/// A passthrough mount over ext4 on an image of its own.
pub struct Passthrough {
    // Before what it is mounted over.
    daemon: Option<Daemon>,
    below: LoopMount,
    binary: PathBuf,
    root: PathBuf,
    log: PathBuf,
}

/// Compiles `passthrough_ll` into `scratch`.
pub fn compile(scratch: &Path) -> Result<PathBuf> {
    let binary = scratch.join("passthrough_ll");
    let flags = Command::new("pkg-config")
        .args(["fuse3", "--cflags", "--libs"])
        .output()
        .context("cannot run pkg-config (packages pkg-config, libfuse3-dev, gcc)")?;
    let flags = String::from_utf8(flags.stdout)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-w", EXAMPLE, "-o"]).arg(&binary).args(flags.split_whitespace());
    run(&mut gcc).context("packages pkg-config, libfuse3-dev and gcc are needed")?;
    Ok(binary)
}

impl Passthrough {
    /// Makes and mounts it in `scratch`.
    pub fn new(scratch: &Path, mebibytes: u64, binary: PathBuf) -> Result<Self> {
        // It holds a descriptor for every inode that the kernel knows.
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
        let image = scratch.join("below.img");
        let below = LoopMount::new(image, mebibytes, scratch.join("below"))?;
        let root = scratch.join("passthrough");
        let log = scratch.join("passthrough.log");
        let mut system = Self { daemon: None, below, binary, root, log };
        system.start()?;
        Ok(system)
    }

    fn start(&mut self) -> Result<()> {
        let source = self.below.mountpoint();
        let mut command = Command::new(&self.binary);
        if self.binary.to_string_lossy().ends_with("_hp") {
            command.arg(source).arg(&self.root);
        } else {
            let options = format!("source={},cache=always,xattr", source.display());
            command.args(["-f", "-o", &options, "-o", "allow_other,default_permissions"]);
            command.arg(&self.root);
        }
        self.daemon = Some(Daemon::start(&mut command, &self.root, &self.log)?);
        Ok(())
    }
}

impl System for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn forget(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop()?;
        }
        self.below.unmount()?;
        drop_caches()?;
        self.below.mount()?;
        self.start()
    }

    fn sync(&self) -> Result<()> {
        sync_of(&self.root)?;
        sync_of(self.below.mountpoint())
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }
}
