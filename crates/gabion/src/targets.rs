//! The two targets of `gabion up`: processes of this machine, each with an image of its own.
//!
//! They stand for disks of other machines, and can be killed like those. Whoever ends is started
//! again. They end with the process that has started them, however that ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use gabion_base::checksum::crc64;

use crate::control::folder;
use crate::failure::{Failure, Result};
use crate::supervisor::{Supervised, Until};

/// Targets that are running.
pub struct Targets {
    all: Vec<Target>,
}

struct Target {
    socket: PathBuf,
    process: Supervised,
}

impl Targets {
    /// What the targets and their images are called.
    pub const NAMES: [&str; 2] = ["a", "b"];

    /// Starts a target for each image in `data`, and waits until they can be used.
    pub fn start(data: &Path) -> Result<Self> {
        let mut targets = Self { all: Vec::new() };
        for name in Self::NAMES {
            targets.all.push(Target::start(data, name)?);
        }
        Ok(targets)
    }

    /// Where they are.
    pub fn urls(&self) -> Vec<String> {
        let url = |(target, name): (&Target, &str)| {
            format!("nbd+unix:///{name}?socket={}", target.socket.display())
        };
        self.all.iter().zip(Self::NAMES).map(url).collect()
    }

    /// The numbers of their processes.
    pub fn processes(&self) -> [i32; 2] {
        [0, 1].map(|index| self.all[index].process.process())
    }
}

impl Target {
    fn start(data: &Path, name: &'static str) -> Result<Self> {
        let what = format!("target {name}");
        let cannot = |error| Failure::of(format!("cannot start {what}"), &error);
        let data = data.canonicalize().map_err(cannot)?;
        // Names of sockets are short, and folders need not be.
        let number = crc64(data.as_os_str().as_encoded_bytes());
        let socket = folder::own().map_err(cannot)?.join(format!("up-{number:016x}-{name}.sock"));
        let program = std::env::current_exe().map_err(cannot)?;
        let listen = format!("unix:{}", socket.display());
        let offer = format!("{name}={}", data.join(format!("{name}.img")).display());
        let command = move |_: &str| {
            let mut command = Command::new(&program);
            command.args(["target", "--with-parent", "--listen", &listen, &offer]);
            command
        };
        Ok(Self { socket, process: Supervised::start(what, Until::Asked, command, None)? })
    }
}
