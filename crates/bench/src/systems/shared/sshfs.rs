//! sshfs: OpenSSH's file transfer, over an sshd of our own.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::Program;
use crate::systems::image::LoopMount;
use crate::systems::{run, sync_of};

/// Where sshd listens.
const PORT: u16 = 2222;

/// An SSH server.
pub struct Sshfs {
    _server: Program,
    ground: LoopMount,
    key: PathBuf,
}

impl Sshfs {
    /// Starts it, with a filesystem in `scratch`.
    pub fn start(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let folder = scratch.join("sshfs");
        fs::create_dir(&folder)?;
        let image = folder.join("image");
        let ground = LoopMount::new(image, mebibytes, folder.join("ground"))?;
        // Where the part of the server goes that has no privileges.
        fs::create_dir_all("/run/sshd")?;
        let [key, host] = ["key", "host"].map(|name| folder.join(name));
        for path in [&key, &host] {
            let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
            run(Command::new("ssh-keygen").args(keygen).arg(path))?;
        }
        let settings = folder.join("sshd.conf");
        let text = format!(
            "Port {PORT}\nListenAddress {ADDRESS}\nHostKey {}\nAuthorizedKeysFile {}\n\
             PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n\
             Subsystem sftp /usr/lib/openssh/sftp-server\n",
            host.display(),
            key.with_extension("pub").display(),
        );
        fs::write(&settings, text)?;
        // It starts itself again for each connection, by its whole path.
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&settings);
        let mut server = Program::start(&mut command, &folder.join("sshd.log"))?;
        server.wait_until(|| TcpStream::connect((ADDRESS, PORT)).is_ok())?;
        Ok(Self { _server: server, ground, key })
    }
}

impl Servers for Sshfs {
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new("sshfs");
        // Nobody's own settings, and no questions.
        command.args(["-f", "-F", "/dev/null", "-o", "StrictHostKeyChecking=no,BatchMode=yes"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null,LogLevel=ERROR"]);
        command.arg("-o").arg(format!("IdentityFile={},Port={PORT}", self.key.display()));
        if caches == Caches::Off {
            // Writes are answered before the server has them, otherwise.
            command.args(["-o", "sshfs_sync,dir_cache=no,direct_io"]);
            command.args(["-o", "attr_timeout=0,entry_timeout=0"]);
        }
        command.arg(format!("root@{ADDRESS}:{}", self.ground.mountpoint().display()));
        command.arg(mountpoint);
        command
    }

    fn is_synced_by_fsync(&self) -> bool {
        true
    }

    fn sync(&self) -> Result<()> {
        sync_of(self.ground.mountpoint())
    }

    fn forget(&self) -> Result<()> {
        // What the server has is in the kernel's cache.
        Ok(())
    }
}
