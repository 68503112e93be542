//! GlusterFS: two volumes of one brick each, one with the translators of its defaults, and one
//! without those that cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::ADDRESS;
use super::pair::{Caches, Servers};
use super::program::{Program, eventually, run_in_time};
use crate::systems::image::LoopMount;
use crate::systems::sync_of;

/// A volume's translators in its clients that keep something.
const CACHES: [&str; 7] = [
    "performance.write-behind",
    "performance.quick-read",
    "performance.io-cache",
    "performance.read-ahead",
    "performance.stat-prefetch",
    "performance.readdir-ahead",
    "performance.open-behind",
];

/// The servers of GlusterFS.
pub struct Gluster {
    // Before the daemon, which stops the bricks.
    volumes: Vec<Volume>,
    _daemon: Program,
    ground: LoopMount,
    folder: PathBuf,
}

/// A volume that is started. Dropping it stops it.
struct Volume {
    name: &'static str,
    folder: PathBuf,
}

impl Gluster {
    /// Makes both volumes in `scratch` and starts them.
    pub fn start(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let folder = scratch.join("gluster");
        fs::create_dir(&folder)?;
        let image = folder.join("image");
        let ground = LoopMount::new(image, mebibytes, folder.join("ground"))?;
        for path in ["/run/gluster", "/var/log/glusterfs/bricks"] {
            fs::create_dir_all(path)?;
        }
        let settings = folder.join("glusterd.vol");
        fs::write(&settings, daemon_settings(&folder))?;
        let mut command = Command::new("glusterd");
        command.arg("-N").arg("-f").arg(&settings).arg("-p").arg(folder.join("pid"));
        command.arg("-l").arg(folder.join("glusterd.log")).args(["-L", "WARNING"]);
        let daemon = Program::start(&mut command, &folder.join("glusterd.out"))?;
        let mut gluster = Self { volumes: Vec::new(), _daemon: daemon, ground, folder };
        eventually(|| run_in_time(gluster.command().args(["volume", "list"])))?;
        for caches in [Caches::Default, Caches::Off] {
            gluster.add(caches)?;
        }
        Ok(gluster)
    }

    fn command(&self) -> Command {
        command(&self.folder)
    }

    fn add(&mut self, caches: Caches) -> Result<()> {
        let name = volume_name(caches);
        let brick = format!("{ADDRESS}:{}", self.ground.mountpoint().join(name).display());
        let create = ["volume", "create", name, &brick, "force"];
        run_in_time(self.command().args(create))?;
        if caches == Caches::Off {
            for translator in CACHES {
                run_in_time(self.command().args(["volume", "set", name, translator, "off"]))?;
            }
        }
        run_in_time(self.command().args(["volume", "start", name]))?;
        self.volumes.push(Volume { name, folder: self.folder.clone() });
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let stop = run_in_time(command(&self.folder).args(["volume", "stop", self.name, "force"]));
        if let Err(error) = stop {
            eprintln!("{error:#}");
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("gluster");
    command.arg("--mode=script");
    command.arg(format!("--glusterd-sock={}", folder.join("socket").display()));
    command
}

const fn volume_name(caches: Caches) -> &'static str {
    match caches {
        Caches::Default => "cached",
        Caches::Off => "uncached",
    }
}

/// The daemon's volume file.
fn daemon_settings(folder: &Path) -> String {
    let mut text = "volume management\ntype mgmt/glusterd\n".to_owned();
    for (option, value) in [
        ("working-directory", folder.join("state").display().to_string()),
        ("run-directory", folder.join("run").display().to_string()),
        ("glusterd-sockfile", folder.join("socket").display().to_string()),
        ("transport-type", "socket".to_owned()),
        ("transport.socket.bind-address", ADDRESS.to_owned()),
        ("base-port", "49152".to_owned()),
        ("max-port", "60999".to_owned()),
    ] {
        text += &format!("option {option} {value}\n");
    }
    text + "end-volume\n"
}

impl Servers for Gluster {
    fn client(&self, caches: Caches, mountpoint: &Path) -> Command {
        let mut command = Command::new("glusterfs");
        command.arg("-N").arg(format!("--volfile-server={ADDRESS}"));
        command.arg(format!("--volfile-id={}", volume_name(caches)));
        command.arg("-l").arg(self.folder.join("client.log"));
        if caches == Caches::Off {
            let nothing = ["--direct-io-mode=enable", "--attribute-timeout=0", "--entry-timeout=0"];
            command.args(nothing);
        }
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
        // What bricks have is in the kernel's cache.
        Ok(())
    }
}
