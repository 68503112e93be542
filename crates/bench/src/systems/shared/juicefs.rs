//! JuiceFS: names in Redis, bytes in files below a folder.
//!
//! Redis writes each change to its log, and the log to the disk, before it answers. Clients keep
//! blocks in memory instead of in a folder of their own, so that mounting anew forgets them. The
//! kernel's pages of open files cannot be turned off.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::Program;
use crate::systems::image::LoopMount;
use crate::systems::{run, sync_of};

/// Where Redis listens.
const PORT: u16 = 6379;

/// The database of JuiceFS, and where its bytes are.
pub struct JuiceFs {
    _database: Program,
    ground: LoopMount,
}

impl JuiceFs {
    /// Makes a filesystem in `scratch`.
    pub fn start(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let folder = scratch.join("juicefs");
        fs::create_dir(&folder)?;
        let image = folder.join("image");
        let ground = LoopMount::new(image, mebibytes, folder.join("ground"))?;
        let [names, bytes] = ["names", "bytes"].map(|name| ground.mountpoint().join(name));
        fs::create_dir(&names)?;
        fs::create_dir(&bytes)?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", ADDRESS, "--port", &PORT.to_string(), "--protected-mode", "no"]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir"]);
        command.arg(&names);
        let mut database = Program::start(&mut command, &folder.join("redis.log"))?;
        database.wait_until(|| TcpStream::connect((ADDRESS, PORT)).is_ok())?;
        // Removed files would be kept for a day.
        let mut format = Command::new("juicefs");
        format.args(["format", "--storage", "file", "--trash-days", "0", "--bucket"]);
        format.arg(format!("{}/", bytes.display())).arg(url()).arg("bench");
        run(format.env("HOME", &folder))?;
        Ok(Self { _database: database, ground })
    }
}

fn url() -> String {
    format!("redis://{ADDRESS}:{PORT}/1")
}

impl Servers for JuiceFs {
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new("juicefs");
        command.args(["mount", "--no-syslog", "--no-usage-report", "--backup-meta", "0"]);
        let kept = if caches == Caches::Off { "0" } else { "256M" };
        command.args(["--cache-dir", "memory", "--cache-size", kept]);
        if caches == Caches::Off {
            command.args(["--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0"]);
        }
        command.arg(url()).arg(mountpoint);
        command
    }

    fn is_synced_by_fsync(&self) -> bool {
        true
    }

    fn sync(&self) -> Result<()> {
        sync_of(self.ground.mountpoint())
    }

    fn forget(&self) -> Result<()> {
        // The database's names are never anywhere but in its memory.
        Ok(())
    }
}
