//! Folders, programs and mounts of a test, which go with it however it ends.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_host::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::guard::{Guard, mounts_below};

/// The program under test.
pub const GABION: &str = env!("CARGO_BIN_EXE_gabion");

/// How long a test may take. It is killed after three minutes.
const LIMIT: Duration = Duration::from_secs(150);

/// What a program that has ended leaves.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub status: ExitStatus,
}

impl Outcome {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Asserts success; gives standard output.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }

    /// Asserts an exit code and that the message on standard error has all these parts.
    #[track_caller]
    pub fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:#?}");
        }
    }
}

/// A folder for one test. On its end everything below it is unmounted, each filesystem in it must
/// use the blocks that its files need and no other, and all is removed.
pub struct Folder {
    path: PathBuf,
    guard: Option<Guard>,
    is_damaged: AtomicBool,
}

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-it-{}-{number}", std::process::id());
        // Without symbolic links, as the kernel lists mountpoints.
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self { path, guard: None, is_damaged: AtomicBool::new(false) }
    }

    /// A folder for a test with mounts; nothing where mounting is not possible.
    pub fn for_mounts() -> Option<Self> {
        let possible = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
        if !possible {
            eprintln!("left out: needs root and /dev/fuse");
        }
        possible.then(|| {
            let mut folder = Self::new();
            folder.guard = Some(Guard::of(folder.path(), LIMIT));
            folder
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Runs gabion in this folder, to its end.
    #[track_caller]
    pub fn gabion<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome {
        self.run(Command::new(GABION).args(arguments))
    }

    /// Runs any program in this folder, to its end.
    #[track_caller]
    pub fn run(&self, command: &mut Command) -> Outcome {
        // Volumes and events of a test are its own.
        command.env("GABION_STATE", self.join("state"));
        let output = command.current_dir(&self.path).stdin(Stdio::null()).output().unwrap();
        Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status,
        }
    }

    /// Makes an authority and a certificate for localhost by it, in the folder `pki`.
    pub fn certify(&self) {
        let pki = self.join("pki");
        fs::create_dir(&pki).unwrap();
        fs::write(pki.join("extensions"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
        let commands = [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN=authority -keyout pki/ca-key.pem -out pki/ca-cert.pem",
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -subj /CN=localhost -keyout pki/server-key.pem -out pki/request.pem",
            "x509 -req -in pki/request.pem -CA pki/ca-cert.pem -CAkey pki/ca-key.pem -days 2 \
             -CAcreateserial -extfile pki/extensions -out pki/server-cert.pem",
        ];
        for command in commands {
            self.run(Command::new("openssl").args(command.split_whitespace())).succeeded();
        }
        for file in ["cert", "key"] {
            let [from, to] =
                ["server", "client"].map(|role| pki.join(format!("{role}-{file}.pem")));
            fs::copy(from, to).unwrap();
        }
    }

    /// Makes the image `disk.img` with a filesystem.
    #[track_caller]
    pub fn image(&self) -> PathBuf {
        self.gabion(&["mkfs", "--size", "64M", "disk.img"]).succeeded();
        self.join("disk.img")
    }

    /// Mounts `disk.img` at `mnt`, with options.
    #[track_caller]
    pub fn mount(&self, options: &str) -> PathBuf {
        let mountpoint = self.join("mnt");
        let _ = fs::create_dir(&mountpoint);
        self.gabion(&["mount", "-o", options, "disk.img", "mnt"]).succeeded();
        mountpoint
    }

    /// The status of something, decoded.
    #[track_caller]
    pub fn status(&self, subject: &str) -> Value {
        let text = self.gabion(&["status", "--json", subject]).succeeded();
        serde_json::from_str(&text).unwrap()
    }

    /// The daemon that serves `mnt`.
    #[track_caller]
    pub fn daemon(&self) -> Daemon {
        let status = self.status("mnt");
        let pid = status["mount"]["pid"].as_i64().unwrap();
        Daemon { pid: Pid::from_raw(pid as i32).unwrap() }
    }

    /// Mountpoints below this folder, the uppermost last.
    pub fn mountpoints(&self) -> Vec<PathBuf> {
        mounts_below(&self.path)
    }
}

impl Folder {
    /// A filesystem is going to be damaged, and is not to be looked at in the end.
    pub fn damages(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// Compares what each filesystem in the folder uses with what it needs.
    fn audit(&self) {
        for mountpoint in self.mountpoints().iter().rev() {
            self.run(Command::new(GABION).arg("umount").arg(mountpoint));
        }
        for name in names(&self.path).iter().filter(|name| name.ends_with(".img")) {
            if self.gabion(&["inspect", name, "superblock"]).status.success() {
                self.gabion(&["scrub", "--allocation", name]).succeeded();
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let is_well = !self.is_damaged.load(Ordering::Relaxed) && !std::thread::panicking();
        if is_well && self.guard.is_some() && self.path.exists() {
            self.audit();
        }
        for mountpoint in self.mountpoints().iter().rev() {
            // Aborts the connection, too, so that the daemon ends whatever it is doing.
            let _ = Command::new("umount").args(["-f", "-l"]).arg(mountpoint).status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A daemon in the background.
pub struct Daemon {
    pub pid: Pid,
}

impl Daemon {
    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(self) {
        let end = self.end().unwrap();
        kill_process(self.pid, Signal::KILL).unwrap();
        await_end(&end);
    }

    /// Waits until it is gone.
    pub fn await_end(self) {
        if let Ok(end) = self.end() {
            await_end(&end);
        }
    }

    fn end(&self) -> rustix::io::Result<OwnedFd> {
        rustix::process::pidfd_open(self.pid, rustix::process::PidfdFlags::empty())
    }
}

fn await_end(end: &OwnedFd) {
    let mut ends = [rustix::event::PollFd::new(end, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ends, None).unwrap();
}

/// A program that runs beside the test and is killed with it.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Stops it, and waits until all of its threads have stopped, which takes a moment.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.0.id());
        let is_stopped = |stat: &str| stat.rsplit_once(") ").unwrap().1.starts_with('T');
        while !fs::read_dir(&tasks).unwrap().all(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat"));
            stat.is_ok_and(|stat| is_stopped(&stat))
        }) {
            thread::sleep(GLANCE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it rests between two looks at what is near, and at what a program has to be asked for.
/// Who looks all the time keeps those from their work that it waits for.
pub const GLANCE: Duration = Duration::from_millis(1);
const REST: Duration = Duration::from_millis(20);

/// Waits until something is so.
#[track_caller]
pub fn await_that(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it does not become so");
        thread::sleep(GLANCE);
    }
}

/// Rests before a program is asked once more.
pub fn rest() {
    thread::sleep(REST);
}

/// Waits until the clock that the kernel takes times of files from has gone on.
#[track_caller]
pub fn await_tick() {
    let before = clock::coarse_now();
    await_that(|| clock::coarse_now() != before);
}
