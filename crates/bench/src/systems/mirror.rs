//! Gabion on a volume: a mirror of two targets of this machine, each with an image of its own.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::daemon::Daemon;
use super::distance::Distance;
use super::{System, drop_caches, full_image, run, sync_of};

/// A target that needs longer to listen is taken for broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a target that starts.
const PAUSE: Duration = Duration::from_millis(5);
/// The volume's name.
const VOLUME: &str = "bench";

/// Targets that are running. Dropping them ends them.
pub struct Targets {
    programs: Vec<Child>,
    _distances: Vec<Distance>,
}

impl Targets {
    /// Starts one for each image, which lie in `folder`; gives where they are. Each is as far away
    /// as is said.
    pub fn start(
        binary: &Path,
        folder: &Path,
        images: &[&str],
        one_way: Option<Duration>,
    ) -> Result<(Self, Vec<String>)> {
        let mut targets = Self { programs: Vec::new(), _distances: Vec::new() };
        let mut urls = Vec::new();
        for image in images {
            let socket = folder.join(format!("{image}.sock"));
            let mut command = Command::new(binary);
            command.args(["target", "--listen"]).arg(format!("unix:{}", socket.display()));
            command.arg(format!("{image}={}", folder.join(image).display()));
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
            targets.programs.push(child);
            let start = Instant::now();
            // That there is a socket does not mean yet that anybody listens.
            while UnixStream::connect(&socket).is_err() {
                if start.elapsed() > PATIENCE {
                    bail!("{command:?} does not listen");
                }
                thread::sleep(PAUSE);
            }
            let near = match one_way {
                Some(one_way) => {
                    let near = folder.join(format!("{image}.far"));
                    targets._distances.push(Distance::start(&near, &socket, one_way)?);
                    near
                }
                None => socket,
            };
            urls.push(format!("nbd+unix:///{image}?socket={}", near.display()));
        }
        Ok((targets, urls))
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        for target in &mut self.programs {
            let _ = target.kill();
            let _ = target.wait();
        }
    }
}

/// A Gabion mount of a mirror.
pub struct Mirror {
    // Before the targets, which it needs for its end.
    daemon: Option<Daemon>,
    _targets: Targets,
    binary: PathBuf,
    state: PathBuf,
    root: PathBuf,
    log: PathBuf,
}

impl Mirror {
    /// Makes and mounts it in `scratch`.
    pub fn new(scratch: &Path, mebibytes: u64, binary: PathBuf) -> Result<Self> {
        let images = ["mirror-a", "mirror-b"];
        for image in images {
            full_image(&scratch.join(image), mebibytes)?;
        }
        let state = scratch.join("state");
        let (targets, urls) = Targets::start(&binary, scratch, &images, None)?;
        let gabion = |arguments: &[&str]| {
            let mut command = Command::new(&binary);
            run(command.args(arguments).env("GABION_STATE", &state))
        };
        gabion(&["volume", "create", VOLUME, "--equal", "--mirror", &urls[0], &urls[1]])?;
        gabion(&["mkfs", VOLUME])?;
        let (root, log) = (scratch.join("mirror"), scratch.join("mirror.log"));
        let mut system = Self { daemon: None, _targets: targets, binary, state, root, log };
        system.start()?;
        Ok(system)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["mount", "--foreground", VOLUME]).arg(&self.root);
        command.env("GABION_STATE", &self.state);
        self.daemon = Some(Daemon::start(&mut command, &self.root, &self.log)?);
        Ok(())
    }
}

impl System for Mirror {
    fn name(&self) -> &'static str {
        "mirror"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn forget(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop()?;
        }
        drop_caches()?;
        self.start()
    }

    fn sync(&self) -> Result<()> {
        sync_of(&self.root)
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }
}

/// A volume that is offered by itself, for clients of NBD. Dropping it ends all of it.
pub struct Exported {
    child: Child,
    _targets: Targets,
}

impl Exported {
    /// Makes a volume of as many images as are given, whose targets are as far away as is said, and
    /// offers it at `socket`.
    pub fn start(
        binary: &Path,
        folder: &Path,
        images: &[&str],
        socket: &Path,
        one_way: Option<Duration>,
    ) -> Result<Self> {
        let state = folder.join("state");
        let _ = std::fs::remove_dir_all(&state);
        for image in images {
            // Whatever was there is another volume's.
            let file = File::options().write(true).open(folder.join(image))?;
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 3 << 20], 0)?;
            let _ = std::fs::remove_file(folder.join(format!("{image}.sock")));
        }
        let (targets, urls) = Targets::start(binary, folder, images, one_way)?;
        let mut create = Command::new(binary);
        create.args(["volume", "create", VOLUME, "--equal", "--mirror"]).args(&urls);
        run(create.env("GABION_STATE", &state))?;
        let mut command = Command::new(binary);
        command.args(["volume", "export", VOLUME, "--listen"]);
        command.arg(format!("unix:{}", socket.display())).env("GABION_STATE", &state);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, _targets: targets })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
