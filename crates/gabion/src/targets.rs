//! The two targets of `gabion up`: processes of this machine, each with an image of its own.
//!
//! They stand for disks of other machines, and can be killed like those. Whoever ends is started
//! again. They end with the process that has started them, however that ends.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gabion_base::checksum::crc64;
use rustix::process::{Pid, Signal, kill_process};

use crate::control::folder;
use crate::failure::{Failure, Result};

/// How long a target that has ended stays away. Then it is also seen that somebody killed it.
const PAUSE: Duration = Duration::from_secs(1);

/// Targets that are running.
pub struct Targets {
    all: Vec<Target>,
}

struct Target {
    socket: PathBuf,
    process: Arc<AtomicI32>,
    ending: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Targets {
    /// What the targets and their images are called.
    pub const NAMES: [&str; 2] = ["a", "b"];

    /// Starts a target for each image in `data`, and waits until they can be used.
    pub fn start(data: &Path) -> Result<Self> {
        let mut targets = Self { all: Vec::new() };
        for name in Self::NAMES {
            let started = Target::start(data, name);
            targets.all.push(started.map_err(|error| {
                Failure::of(format!("cannot start a target for {name}.img"), &error)
            })?);
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
        [0, 1].map(|index| self.all[index].process.load(Ordering::Acquire))
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        for target in &self.all {
            target.ending.store(true, Ordering::Release);
            target.terminate();
        }
        for target in &mut self.all {
            if let Some(keeper) = target.keeper.take() {
                // It has no reason to panic, and there is nothing left to be done for it.
                let _ = keeper.join();
            }
        }
    }
}

impl Target {
    fn start(data: &Path, name: &'static str) -> std::io::Result<Self> {
        let data = data.canonicalize()?;
        // Names of sockets are short, and folders need not be.
        let number = crc64(data.as_os_str().as_encoded_bytes());
        let socket = folder::own()?.join(format!("up-{number:016x}-{name}.sock"));
        let image = data.join(format!("{name}.img"));
        let child = spawn(name, &image, &socket)?;
        let process = Arc::new(AtomicI32::new(child.id() as i32));
        let ending = Arc::new(AtomicBool::new(false));
        let mut target = Self { socket: socket.clone(), process, ending, keeper: None };
        let (process, ending) = (Arc::clone(&target.process), Arc::clone(&target.ending));
        let keep = move || keep(child, name, &image, &socket, &process, &ending);
        target.keeper = Some(thread::Builder::new().name(format!("target {name}")).spawn(keep)?);
        Ok(target)
    }

    fn terminate(&self) {
        if let Some(process) = Pid::from_raw(self.process.load(Ordering::Acquire)) {
            // Gone already is as good.
            let _ = kill_process(process, Signal::TERM);
        }
    }
}

/// Starts a target that has ended again, until it is to end.
fn keep(
    mut child: Child,
    name: &str,
    image: &Path,
    socket: &Path,
    process: &AtomicI32,
    ending: &AtomicBool,
) {
    loop {
        let status = child.wait();
        process.store(0, Ordering::Release);
        if ending.load(Ordering::Acquire) {
            return;
        }
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        eprintln!("gabion: target {name} has ended ({how}); it is started again");
        child = loop {
            thread::sleep(PAUSE);
            if ending.load(Ordering::Acquire) {
                return;
            }
            match spawn(name, image, socket) {
                Ok(child) => break child,
                Err(error) => eprintln!("gabion: cannot start target {name}: {error}"),
            }
        };
        process.store(child.id() as i32, Ordering::Release);
        if ending.load(Ordering::Acquire) {
            // Nobody has seen its number.
            let _ = child.kill();
        }
    }
}

fn spawn(name: &str, image: &Path, socket: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["target", "--with-parent", "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .arg(format!("{name}={}", image.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C is for who has the filesystem mounted, and needs the targets to end in order.
        .process_group(0);
    let mut child = command.spawn()?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.is_empty() {
        let status = child.wait()?;
        return Err(std::io::Error::other(format!("it has ended: {status}")));
    }
    Ok(child)
}
