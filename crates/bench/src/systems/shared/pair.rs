//! Two clients of the same servers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Shared;
use super::program::{eventually, last_words};
use crate::systems::daemon::Daemon;
use crate::systems::{drop_caches, sync_of};

/// What clients may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// Whatever they keep unless told otherwise.
    Default,
    /// Nothing.
    Off,
}

/// What mounts need.
pub trait Servers {
    /// The command that mounts the filesystem and stays in the foreground.
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command;

    /// Whether all that its client did is written when fsync(2) of a directory returns. Where it is
    /// not, only unmounting tells clients to write everything.
    fn is_synced_by_fsync(&self) -> bool;

    /// Returns when all that clients handed over is on the disk.
    fn sync(&self) -> Result<()>;

    /// Where its server says what goes wrong, if there is one place.
    fn log(&self) -> Option<PathBuf> {
        None
    }

    /// Forgets what can be forgotten while there are no clients.
    fn forget(&self) -> Result<()>;
}

/// A filesystem that is mounted twice.
pub struct Pair {
    name: &'static str,
    caches: Caches,
    // Before the servers, which they need for their end.
    clients: Vec<Daemon>,
    servers: Rc<dyn Servers>,
    mountpoints: [PathBuf; 2],
    /// Below the mountpoints: two pairs can be of one filesystem.
    roots: [PathBuf; 2],
    log: PathBuf,
}

impl Pair {
    /// Mounts it in `scratch`, and returns when it can be written to.
    pub fn new(
        scratch: &Path,
        name: &'static str,
        servers: Rc<dyn Servers>,
        caches: Caches,
    ) -> Result<Self> {
        let mountpoints = ["a", "b"].map(|mount| scratch.join(format!("{name}.{mount}")));
        let roots = mountpoints.each_ref().map(|mountpoint| mountpoint.join(name));
        let log = scratch.join(format!("{name}.log"));
        let mut pair = Self { name, caches, clients: Vec::new(), servers, mountpoints, roots, log };
        pair.mount()?;
        // There may be no server yet that takes data.
        eventually(|| pair.try_out()).with_context(|| format!("{name} cannot be written to"))?;
        Ok(pair)
    }

    /// The whole filesystem, on the first mount.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoints[0]
    }

    /// The first mount makes the directory, and the second one writes to it.
    fn try_out(&self) -> Result<()> {
        fs::create_dir_all(&self.roots[0])?;
        let file = self.roots[1].join("tried-out");
        fs::write(&file, "out")?;
        File::open(&file)?.sync_all()?;
        Ok(fs::remove_file(&file)?)
    }

    fn mount(&mut self) -> Result<()> {
        for mountpoint in &self.mountpoints {
            let mut command = self.servers.client(self.caches, mountpoint);
            self.clients.push(Daemon::start(&mut command, mountpoint, &self.log)?);
        }
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        for mut client in self.clients.drain(..) {
            client.stop()?;
        }
        Ok(())
    }
}

impl Shared for Pair {
    fn name(&self) -> &'static str {
        self.name
    }

    fn roots(&self) -> [&Path; 2] {
        self.roots.each_ref().map(PathBuf::as_path)
    }

    fn forget(&mut self) -> Result<()> {
        self.unmount()?;
        self.servers.sync()?;
        self.servers.forget()?;
        drop_caches()?;
        self.mount()
    }

    fn sync(&mut self) -> Result<()> {
        self.timed_sync().map(drop)
    }

    fn last_words(&self) -> String {
        let servers = self.servers.log().map(|log| last_words(&log)).unwrap_or_default();
        format!("its clients said: {}\nits server said: {servers}", last_words(&self.log))
    }

    fn timed_sync(&mut self) -> Result<f64> {
        for client in &mut self.clients {
            ensure!(!client.has_ended()?, "a client of {} has ended by itself", self.name);
        }
        let start = Instant::now();
        if self.servers.is_synced_by_fsync() {
            for root in &self.roots {
                // The kernel's pages; most clients never hear of it.
                sync_of(root)?;
                // Some clients cannot sync a directory, and have nothing that they would have to.
                let _ = File::open(root)?.sync_all();
            }
        } else {
            self.unmount()?;
        }
        self.servers.sync()?;
        let seconds = start.elapsed().as_secs_f64();
        if self.clients.is_empty() {
            self.mount()?;
        }
        Ok(seconds)
    }
}
