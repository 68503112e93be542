//! MooseFS: a master with all names in memory, and a chunk server.
//!
//! By default neither flushes the disk for fsync(2); here both do. Removed files would be kept for
//! a day, and are not.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::{Program, eventually, run_in_time};
use crate::systems::image::LoopMount;
use crate::systems::sync_of;

/// Where both listen for clients.
const MASTER_PORT: u16 = 9421;
const CHUNKS_PORT: u16 = 9422;
/// What the master starts with if there is nothing yet.
const NO_METADATA: &str = "MFSM NEW";

/// The servers of MooseFS.
pub struct MooseFs {
    _chunks: Program,
    _master: Program,
    ground: LoopMount,
}

impl MooseFs {
    /// Makes a filesystem in `scratch` and starts its servers.
    pub fn start(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let folder = scratch.join("moosefs");
        fs::create_dir(&folder)?;
        let image = folder.join("image");
        let ground = LoopMount::new(image, mebibytes, folder.join("ground"))?;
        let on_ground = |name: &str| ground.mountpoint().join(name);
        for name in ["master", "chunks", "disk"] {
            fs::create_dir(on_ground(name))?;
        }
        fs::write(on_ground("master/metadata.mfs"), NO_METADATA)?;
        let exports = folder.join("exports");
        fs::write(&exports, "* / rw,alldirs,maproot=0\n")?;
        let topology = folder.join("topology");
        fs::write(&topology, "")?;
        let disks = folder.join("disks");
        fs::write(&disks, format!("{}\n", on_ground("disk").display()))?;
        let common = "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\nLOCK_MEMORY = 0\n";
        let master = folder.join("master.cfg");
        let mut text = common.to_owned();
        for (key, value) in [
            ("DATA_PATH", &on_ground("master")),
            ("EXPORTS_FILENAME", &exports),
            ("TOPOLOGY_FILENAME", &topology),
        ] {
            text += &format!("{key} = {}\n", value.display());
        }
        // Each change is in the log, and the log on the disk, before it is answered.
        text += "CHANGELOG_SAVE_MODE = 2\n";
        fs::write(&master, text)?;
        let chunks = folder.join("chunks.cfg");
        let mut text = common.to_owned();
        text += &format!("DATA_PATH = {}\n", on_ground("chunks").display());
        text += &format!("HDD_CONF_FILENAME = {}\n", disks.display());
        text += &format!("MASTER_HOST = {ADDRESS}\nCSSERV_LISTEN_HOST = {ADDRESS}\n");
        text += "HDD_LEAVE_SPACE_DEFAULT = 16MiB\nHDD_FSYNC_BEFORE_CLOSE = 1\n";
        fs::write(&chunks, text)?;
        let server = |name: &str, settings: &Path, port: u16| -> Result<Program> {
            let mut command = Command::new(name);
            command.arg("-f").arg("-c").arg(settings).arg("start");
            let mut server = Program::start(&mut command, &folder.join(format!("{name}.log")))?;
            // Before, it cannot be asked to end either.
            server.wait_until(|| TcpStream::connect((ADDRESS, port)).is_ok())?;
            Ok(server)
        };
        let master = server("mfsmaster", &master, MASTER_PORT)?;
        let chunks = server("mfschunkserver", &chunks, CHUNKS_PORT)?;
        Ok(Self { _chunks: chunks, _master: master, ground })
    }

    /// Lets removed files go at once, from now on. Needs a mount.
    pub fn empty_trash(mountpoint: &Path) -> Result<()> {
        eventually(|| {
            run_in_time(Command::new("mfssettrashtime").args(["-r", "0"]).arg(mountpoint))
        })
    }
}

impl Servers for MooseFs {
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new("mfsmount");
        let mut options = "mfsnice=0".to_owned();
        if caches == Caches::Off {
            options += ",mfscachemode=DIRECT,mfsattrcacheto=0,mfsentrycacheto=0";
            options += ",mfsdirentrycacheto=0,mfsxattrcacheto=0,mfssymlinkcacheto=0";
        }
        command.args(["-f", "-H", ADDRESS, "-o", &options]).arg(mountpoint);
        command
    }

    fn is_synced_by_fsync(&self) -> bool {
        true
    }

    fn sync(&self) -> Result<()> {
        sync_of(self.ground.mountpoint())
    }

    fn forget(&self) -> Result<()> {
        // The master's names are never anywhere but in its memory.
        Ok(())
    }
}
