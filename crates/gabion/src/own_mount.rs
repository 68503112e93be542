//! A mount that a command makes for itself, of a filesystem that nobody has in use.
//!
//! It is in a folder that only its user can enter, and served by a process that ends with this one:
//! when the command is killed, it is unmounted in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::folder;
use crate::failure::{Failure, Result};
use crate::mounts;
use crate::supervisor::{Supervised, Until};
use crate::volumes::Place;

/// What the names of the folders begin with, before the number of the process.
const PREFIX: &str = "of-";

/// How long one whose command was killed is waited for: it writes what it has.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it is gone.
const GLANCE: Duration = Duration::from_millis(20);

/// Such a mount, until it is ended or dropped.
pub struct OwnMount {
    mountpoint: PathBuf,
    daemon: Option<Supervised>,
}

impl OwnMount {
    /// Mounts what is at `place`.
    pub fn start(place: &Place) -> Result<Self> {
        let name = place.name();
        let cannot = |error| Failure::of(format!("cannot mount {name}"), &error);
        let target = match place.volume {
            Some(_) => PathBuf::from(&name),
            None => place.path.canonicalize().map_err(cannot)?,
        };
        let folder = folder::own().map_err(cannot)?;
        clean(&folder);
        let mountpoint = folder.join(format!("{PREFIX}{}", process::id()));
        let program = std::env::current_exe().map_err(cannot)?;
        fs::create_dir(&mountpoint).map_err(cannot)?;
        let mut mount = Self { mountpoint, daemon: None };
        let at = mount.mountpoint.clone();
        let command = move |_: &str| {
            let mut command = Command::new(&program);
            command.args(["mount", "--foreground", "--with-parent", "-o", "noatime", "--"]);
            command.args([&target, &at]);
            command
        };
        let what = format!("the mount of {name}");
        mount.daemon = Some(Supervised::start(what, Until::Done, command, None)?);
        Ok(mount)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts it. Fails if not all could be written.
    pub fn end(mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Supervised::end)
    }
}

/// The process of the command that has made the mount at `mountpoint` for itself; nothing if no
/// command has.
pub fn maker(mountpoint: &Path) -> Option<u32> {
    let folder = folder::own().ok().filter(|folder| mountpoint.parent() == Some(folder));
    let name = folder.and(mountpoint.file_name())?.to_str()?;
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Waits until the mount of a command that was killed is gone. Fails if there is the process of one
/// that uses what people call `name`.
pub fn await_end(mountpoint: &Path, name: &str) -> Result<()> {
    let begun = Instant::now();
    while let Some(process) = maker(mountpoint)
        && mounts::at(mountpoint)?.is_some()
    {
        if Path::new("/proc").join(process.to_string()).exists() {
            let what = format!("{name} is in use by another restoration, process {process}");
            return Err(Failure::new(what).next("Wait until it is done, or stop it."));
        }
        if begun.elapsed() > PATIENCE {
            let what = format!("{name} is in use by a restoration that was killed");
            return Err(Failure::new(what).next("Wait until it has written what it has."));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// Takes away the folders of processes that were killed. Those that are still mounted stay.
fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| {
            process == process::id().to_string() || !Path::new("/proc").join(process).exists()
        }) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        drop(self.daemon.take());
        // If it is not empty it is still mounted, which was told.
        let _ = fs::remove_dir(&self.mountpoint);
    }
}
