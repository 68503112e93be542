//! `gabion serve` on an image, and `gabion mount` of what it serves.

use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::Program;
use crate::systems::{full_image, run};

/// Where it listens.
const PORT: u16 = 7777;

/// A server of Gabion.
pub struct Gabion {
    binary: PathBuf,
    image: PathBuf,
    state: PathBuf,
    log: PathBuf,
    server: RefCell<Option<Program>>,
    /// Times that it was started.
    starts: Cell<u32>,
}

impl Gabion {
    /// Makes a filesystem in `scratch` and serves it.
    pub fn start(scratch: &Path, mebibytes: u64, binary: PathBuf) -> Result<Self> {
        let image = scratch.join("gabion.img");
        full_image(&image, mebibytes)?;
        run(Command::new(&binary).arg("mkfs").arg(&image))?;
        let (state, log) = (scratch.join("state"), scratch.join("gabion-serve.log"));
        let (server, starts) = (RefCell::new(None), Cell::new(0));
        let gabion = Self { binary, image, state, log, server, starts };
        gabion.serve()?;
        Ok(gabion)
    }

    fn serve(&self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        // In a network of its own nobody else can reach it.
        command.args(["serve", "--insecure", "--listen", &format!("{ADDRESS}:{PORT}")]);
        // A server that starts again changes nothing until sessions that it does not know of have
        // ended. Here there are none, so each start is the first one in a folder of its own.
        let start = self.starts.replace(self.starts.get() + 1);
        command.arg(&self.image).env("GABION_STATE", self.state.join(start.to_string()));
        let mut server = Program::start(&mut command, &self.log)?;
        server.wait_until(|| TcpStream::connect((ADDRESS, PORT)).is_ok())?;
        *self.server.borrow_mut() = Some(server);
        Ok(())
    }
}

impl Servers for Gabion {
    fn client(&self, _: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["mount", "--foreground", &format!("gabion://{ADDRESS}:{PORT}/")]);
        command.arg(mountpoint).env("GABION_STATE", &self.state);
        command
    }

    fn is_synced_by_fsync(&self) -> bool {
        true
    }

    fn sync(&self) -> Result<()> {
        // fsync(2) at a client has done it.
        Ok(())
    }

    fn log(&self) -> Option<PathBuf> {
        Some(self.log.clone())
    }

    fn forget(&self) -> Result<()> {
        if let Some(mut server) = self.server.borrow_mut().take() {
            server.stop()?;
        }
        self.serve()
    }
}
