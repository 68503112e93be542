//! A FUSE daemon in the foreground.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::run;

/// A daemon that needs longer to start or to end is taken for broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a daemon that starts or ends.
const PAUSE: Duration = Duration::from_millis(5);

/// A daemon and its mount. Dropping it unmounts it and ends the daemon.
pub struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon and waits until it has mounted. What it says goes to `log`.
    pub fn start(command: &mut Command, mountpoint: &Path, log: &Path) -> Result<Self> {
        fs::create_dir_all(mountpoint)?;
        let output = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let (mountpoint, log) = (mountpoint.to_owned(), log.to_owned());
        let mut daemon = Self { child, mountpoint, log };
        let start = Instant::now();
        while !is_mounted(&daemon.mountpoint)? {
            if daemon.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let said = fs::read_to_string(&daemon.log).unwrap_or_default();
                bail!("{command:?} did not mount: {}", said.trim());
            }
            thread::sleep(PAUSE);
        }
        Ok(daemon)
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes << 10)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Unmounts and waits for the daemon's end.
    pub fn stop(&mut self) -> Result<()> {
        if is_mounted(&self.mountpoint)? {
            run(Command::new("umount").arg(&self.mountpoint))?;
        }
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                bail!("the daemon of {} does not end", self.mountpoint.display());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mountpoint));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn is_mounted(mountpoint: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = mountpoint.to_string_lossy();
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*path)))
}
