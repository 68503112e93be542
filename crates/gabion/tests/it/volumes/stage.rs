//! Targets, hosts and mounts of one test, and waiting for what must come.
//!
//! ```text
//! FOLDER/NAME.img, NAME.sock    what a target offers, and where
//!       /state                  what the machine knows: records of volumes, events
//!       /mnt                    the mountpoint
//! ```
//!
//! At the end, however it comes, daemons are killed first, then mounts and files go.
//!
//! Nothing here waits for time to pass. Whoever waits is woken by what it waits for:
//!
//! | for                         | woken by                                       |
//! |-----------------------------|------------------------------------------------|
//! | an event                    | its multicast                                  |
//! | the states of copies        | the coordinator, when the record has changed   |
//! | a mount                     | the kernel, when its list of mounts has changed |
//! | a program                   | its end, or a line that it prints when ready   |

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gabion_block::coordinator::{Coordinator, Revision};
use gabion_host::events::{Follower, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::world::{Folder, GABION, Outcome, Running};

/// Length of a member's file.
pub const SIZE: u64 = 48 << 20;
/// Bytes at the head of a target's file that are its own and the member's headers.
pub const HEADERS: usize = 2 << 20;
/// How long to wait for what must come: far longer than anything takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, and looks again whenever `wait` returns. That is given how
/// long it may take.
#[track_caller]
fn await_some<T>(
    what: &str,
    mut look: impl FnMut() -> Option<T>,
    mut wait: impl FnMut(Duration),
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let left = PATIENCE.saturating_sub(began.elapsed());
        assert!(!left.is_zero(), "{what} does not come");
        wait(left);
    }
}

/// A machine, as far as the program can tell: what it knows of volumes is in a folder of its own.
pub struct Host<'a> {
    stage: &'a Stage,
    state: PathBuf,
    coordinator: Option<String>,
}

/// Everything that belongs to one test.
pub struct Stage {
    pub folder: Folder,
    /// Daemons of mounts.
    daemons: Mutex<Vec<OwnedFd>>,
}

impl Stage {
    pub fn new() -> Self {
        Self { folder: Folder::new(), daemons: Mutex::default() }
    }

    /// One with mounts; nothing where mounting is not possible.
    pub fn for_mounts() -> Option<Self> {
        Some(Self { folder: Folder::for_mounts()?, daemons: Mutex::default() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The path as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The usual machine.
    pub fn host(&self) -> Host<'_> {
        self.host_with("state", None)
    }

    /// A machine with what it knows in `state`, and a coordinator that is not its own.
    pub fn host_with(&self, state: &str, coordinator: Option<String>) -> Host<'_> {
        Host { stage: self, state: self.path(state), coordinator }
    }

    /// Makes an empty file for a member, in place of what is there.
    pub fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        path
    }

    /// Starts a target of `NAME.img`, which is made if it is missing.
    #[track_caller]
    pub fn target(&self, name: &str) -> Target {
        let image = format!("{name}.img");
        if !self.path(&image).exists() {
            self.disk(&image);
        }
        let mut command = Command::new(GABION);
        command.args([
            "target",
            "--listen",
            &format!("unix:{}", self.text(&format!("{name}.sock"))),
        ]);
        command.arg(format!("{name}={image}"));
        self.start_target(command)
    }

    /// Starts a program that prints the URI of its export when it is ready.
    #[track_caller]
    pub fn start_target(&self, mut command: Command) -> Target {
        let mut running = self.start(command.stdout(Stdio::piped()));
        let stdout = running.0.stdout.take().unwrap();
        let uri = BufReader::new(stdout).lines().next().expect("a target that starts").unwrap();
        Target { running, uri }
    }

    /// Starts a program that goes with the test.
    pub fn start(&self, command: &mut Command) -> Running {
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("GABION_STATE", self.path("state"));
        Running(command.spawn().unwrap())
    }

    /// The URI of what [`Stage::target`] offers.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.text(&format!("{name}.sock")))
    }

    /// Two targets, `a` and `b`, and a mirror `tank` of them with a filesystem.
    #[track_caller]
    pub fn mirror(&self) -> (Target, Target) {
        let targets = (self.target("a"), self.target("b"));
        self.host().make_mirror("tank", [&self.uri("a"), &self.uri("b")]);
        targets
    }

    /// A mirror `tank` of the files `a.img` and `b.img` with a filesystem.
    #[track_caller]
    pub fn mirror_of_files(&self) {
        let [a, b] = ["a.img", "b.img"].map(|name| self.disk(name));
        self.host().make_mirror("tank", [a.to_str().unwrap(), b.to_str().unwrap()]);
    }

    /// Waits until something is mounted at `name`.
    #[track_caller]
    pub fn await_mount(&self, name: &str) {
        // It is told of what comes after it was opened.
        let list = File::open("/proc/thread-self/mountinfo").unwrap();
        let is_there = || self.folder.mountpoints().contains(&self.path(name)).then_some(());
        await_some(&format!("the mount at {name}"), is_there, |left| {
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
            poll(&mut [PollFd::new(&list, PollFlags::PRI)], Some(&left)).unwrap();
        });
    }

    /// Asserts that the disks of two members hold the same behind their headers.
    #[track_caller]
    pub fn assert_equal(&self, one: &str, other: &str, headers: usize) {
        let [one_bytes, other_bytes] = [one, other].map(|name| fs::read(self.path(name)).unwrap());
        assert_eq!(one_bytes.len(), other_bytes.len());
        // At once, as byte for byte takes long where nothing is optimised.
        if one_bytes[headers..] != other_bytes[headers..] {
            let differs = |at: &usize| one_bytes[*at] != other_bytes[*at];
            let first = (headers..one_bytes.len()).find(differs);
            panic!("{one} and {other} differ at byte {first:?}");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for daemon in self.daemons.get_mut().unwrap() {
            // It may have ended.
            let _ = pidfd_send_signal(&*daemon, Signal::KILL);
        }
    }
}

/// A process that offers a disk.
pub struct Target {
    pub running: Running,
    pub uri: String,
}

impl Target {
    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.running.0.kill().unwrap();
        self.running.0.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }
}

impl Host<'_> {
    /// A command on this machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(GABION);
        self.prepare(command.args(arguments));
        command
    }

    /// Has a program run on this machine.
    pub fn prepare(&self, command: &mut Command) {
        command.env("GABION_STATE", &self.state);
        command.current_dir(self.stage.folder.path()).stdin(Stdio::null());
        if let Some(coordinator) = &self.coordinator {
            command.env("GABION_COORDINATOR", coordinator);
        }
    }

    /// The coordinator of this machine.
    pub fn own_coordinator(&self) -> Arc<dyn Coordinator> {
        let own = self.state.join("coordinator").to_str().unwrap().to_owned();
        gabion_coordinator::open(self.coordinator.as_ref().unwrap_or(&own)).unwrap()
    }

    /// Runs gabion to its end.
    #[track_caller]
    pub fn gabion(&self, arguments: &[&str]) -> Outcome {
        let output = self.command(arguments).output().unwrap();
        Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status,
        }
    }

    /// Makes a mirror of two empty disks, with a filesystem.
    #[track_caller]
    pub fn make_mirror(&self, name: &str, [one, other]: [&str; 2]) {
        self.gabion(&["volume", "create", name, "--equal", "--mirror", one, other]).succeeded();
        self.gabion(&["mkfs", name]).succeeded();
    }

    /// Mounts `tank` at `mnt`. Nothing is committed unless somebody asks for it.
    #[track_caller]
    pub fn mount(&self) -> PathBuf {
        self.mount_of("tank", "mnt")
    }

    #[track_caller]
    pub fn mount_of(&self, volume: &str, name: &str) -> PathBuf {
        let mountpoint = self.stage.path(name);
        let _ = fs::create_dir(&mountpoint);
        self.gabion(&["mount", "-o", "commit=300", volume, name]).succeeded();
        let daemon = self.daemon(name);
        let daemon = pidfd_open(daemon, PidfdFlags::empty()).unwrap();
        self.stage.daemons.lock().unwrap().push(daemon);
        mountpoint
    }

    /// The process that serves a mountpoint.
    #[track_caller]
    pub fn daemon(&self, name: &str) -> Pid {
        let status = self.gabion(&["status", "--json", name]).succeeded();
        let status: Value = serde_json::from_str(&status).unwrap();
        Pid::from_raw(status["mount"]["pid"].as_i64().unwrap() as i32).unwrap()
    }

    /// Ends the daemon of `mnt` as a crash would.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let pid = self.daemon("mnt");
        let end = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let mut ends = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ends, None).unwrap();
    }

    #[track_caller]
    pub fn unmount(&self) {
        self.gabion(&["umount", "mnt"]).succeeded();
    }

    /// The same, after which the disks of the targets `a` and `b` hold the same.
    #[track_caller]
    pub fn unmount_equal(&self) {
        self.unmount();
        self.stage.assert_equal("a.img", "b.img", HEADERS);
    }

    /// What is known of a volume.
    #[track_caller]
    pub fn volume(&self, name: &str) -> Value {
        let text = self.gabion(&["volume", "status", name, "--json"]).succeeded();
        serde_json::from_str(&text).unwrap()
    }

    /// The states of the copies of `tank`.
    #[track_caller]
    pub fn copies(&self) -> Vec<String> {
        let volume = self.volume("tank");
        let copies = volume["mirrors"][0]["copies"].as_array().unwrap().iter();
        copies.map(|copy| copy["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until the copies of `tank` are in these states.
    #[track_caller]
    pub fn await_copies(&self, states: &[&str]) {
        self.await_mirrors(&[states]);
    }

    /// Waits until the copies of these mirrors of `tank`, the first ones, are in these states.
    #[track_caller]
    pub fn await_mirrors(&self, mirrors: &[&[&str]]) {
        let is_so = |volume: &Value| {
            let found = volume["mirrors"].as_array().unwrap().iter();
            found.zip(mirrors).all(|(found, wanted)| {
                let found = found["copies"].as_array().unwrap().iter();
                found.map(|copy| copy["state"].as_str().unwrap()).eq(wanted.iter().copied())
            })
        };
        self.await_volume(&format!("{mirrors:?}"), is_so);
    }

    /// Waits until what is known of `tank` is so.
    #[track_caller]
    pub fn await_volume(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let coordinator = self.own_coordinator();
        let (mut known, mut found) = (Revision::ABSENT, Value::Null);
        let began = Instant::now();
        while found.is_null() || !is_so(&found) {
            let left = PATIENCE.saturating_sub(began.elapsed());
            assert!(!left.is_zero(), "{what} does not come, only {found:#}");
            // It is in the record. While that is the same there is nothing new to see.
            if let Some(stored) = coordinator.changed("tank", known, left).unwrap() {
                known = stored.revision;
                found = self.volume("tank");
            }
        }
    }

    /// What has happened, the newest last.
    pub fn events(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.state.join("events/log.jsonl")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an event of this name.
    #[track_caller]
    pub fn await_event(&self, name: &str) -> Value {
        self.await_event_that(name, |_| true)
    }

    /// Waits for an event of this name for which `is_it` is true; the last one if there are more.
    #[track_caller]
    pub fn await_event_that(&self, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        // Before the first look, so that nothing falls in between.
        let mut follower = Follower::open(&self.state.join("events"), Start::Now).unwrap();
        let is_it = |event: &Value| event["event"] == name && is_it(event);
        let last = || self.events().into_iter().rfind(is_it);
        await_some(name, last, |left| follower.wait(left).unwrap())
    }
}

/// Runs a program to its end; gives what it printed.
#[track_caller]
pub fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
