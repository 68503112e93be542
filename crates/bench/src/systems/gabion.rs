//! Gabion: its binary, on an image file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::daemon::Daemon;
use super::{System, drop_caches, full_image, run, sync_of};

/// A Gabion mount of an image of its own.
pub struct Gabion {
    daemon: Option<Daemon>,
    binary: PathBuf,
    options: Option<String>,
    image: PathBuf,
    root: PathBuf,
    log: PathBuf,
    /// Of daemons that have ended.
    peak_memory: u64,
}

impl Gabion {
    /// Makes and mounts it in `scratch`.
    pub fn new(
        scratch: &Path,
        mebibytes: u64,
        binary: PathBuf,
        options: Option<String>,
    ) -> Result<Self> {
        let image = scratch.join("gabion.img");
        full_image(&image, mebibytes)?;
        run(Command::new(&binary).arg("mkfs").arg(&image))?;
        let (root, log) = (scratch.join("gabion"), scratch.join("gabion.log"));
        let mut system = Self { daemon: None, binary, options, image, root, log, peak_memory: 0 };
        system.start()?;
        Ok(system)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["mount", "--foreground"]);
        if let Some(options) = &self.options {
            command.args(["-o", options]);
        }
        command.arg(&self.image).arg(&self.root);
        self.daemon = Some(Daemon::start(&mut command, &self.root, &self.log)?);
        Ok(())
    }
}

impl System for Gabion {
    fn name(&self) -> &'static str {
        "gabion"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn forget(&mut self) -> Result<()> {
        self.peak_memory = self.peak_memory().unwrap_or(0);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop()?;
        }
        drop_caches()?;
        self.start()
    }

    fn sync(&self) -> Result<()> {
        sync_of(&self.root)
    }

    fn peak_memory(&self) -> Option<u64> {
        let now = self.daemon.as_ref().and_then(Daemon::peak_memory).unwrap_or(0);
        Some(now.max(self.peak_memory))
    }
}
