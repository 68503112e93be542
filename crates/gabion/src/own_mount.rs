//! A mount that a command makes for itself, of a filesystem that nobody has in use.
//!
//! It is in a folder that only its user can enter, and served by a process that ends with this one:
//! when the command is killed, it is unmounted in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use crate::control::folder;
use crate::failure::{Failure, Result};
use crate::supervisor::{Supervised, Until};
use crate::volumes::Place;

/// What the names of the folders begin with, before the number of the process.
const PREFIX: &str = "of-";

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
