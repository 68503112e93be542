//! A directory for everything that a run makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The type of tmpfs by statfs(2).
const TMPFS: i64 = 0x0102_1994;
/// How long processes that were killed may need to be gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// A new directory that goes when it is dropped.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one in `parent`, which must be on a disk.
    pub fn new(parent: &Path) -> Result<Self> {
        let shown = parent.display();
        let kind = rustix::fs::statfs(parent).with_context(|| format!("no directory {shown}"))?;
        if kind.f_type as i64 == TMPFS {
            bail!("{shown} is in memory: give a directory on a disk by --dir or --data");
        }
        let parent = fs::canonicalize(parent)?;
        for number in 0.. {
            let path = parent.join(format!("gabion-bench.{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(format!("cannot write to {shown}")),
            }
        }
        unreachable!("there are more numbers than directories")
    }

    /// Removes it when those who write to it are being killed: they may not be gone yet.
    pub fn remove_patiently(self) {
        let start = Instant::now();
        while fs::remove_dir_all(&self.path).is_err() && start.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is mounted in it must not be emptied with it.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounts.contains(&*self.path.to_string_lossy()) {
            eprintln!("something is still mounted below {}: it stays", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
