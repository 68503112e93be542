//! One filesystem, its server and several mounts of it, which stand for machines. All of it goes at
//! the end, whatever happens.
//!
//! ```text
//! /var/tmp/gabion-real/<process>-<name>/image         the filesystem
//!                                      /m0 /m1 ...    where it is mounted
//!                                      /beside        for what must not be on it
//!                                      /state         what programs keep, all of them
//! ```
//!
//! On a network each of them is in a network namespace of its own, which nobody else sees:
//!
//! ```text
//!   server  10.77.0.1  br0 -- v0 ==== e0  10.77.0.10  machine 0
//!                         '-- v1 ==== e0  10.77.0.11  machine 1
//! ```
//!
//! A namespace lives as long as the shell in it, and with it its links.
//!
//! With `GABION_REAL_ON=ext4` all mounts are one ext4, which tests the tests that kill and cut
//! nobody.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::guard::Guard;
use crate::program::{Running, program, run};
use crate::site::{
    Kind, clear, gabion, guard, kill_all, make_ext4, make_folder, processes_below,
    program_under_test,
};

/// How long something may take that has to come, on a busy machine. Sessions end in a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How long who waits for it rests between two looks, so that those can work who do it.
pub const GLANCE: Duration = Duration::from_millis(2);

/// Where server and mounts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All in the tests' own network namespace, at its loopback address.
    Loopback,
    /// Each in a network namespace of its own.
    Network,
}

/// How a filesystem is shared.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Where.
    pub place: Place,
    /// How many mounts there are.
    pub machines: usize,
    /// How long an operation waits for the server, in seconds.
    pub deadline: u64,
    /// How long a machine may be silent, in seconds.
    pub session: u64,
}

/// A filesystem with its server and its mounts.
pub struct Cluster {
    kind: Kind,
    folder: PathBuf,
    roots: Vec<PathBuf>,
    setup: Setup,
    uri: String,
    // In the order in which they have to go.
    server: Option<Running>,
    network: Option<Network>,
    _guard: Guard,
}

impl Cluster {
    /// Makes a filesystem, and mounts it so many times.
    pub fn new(name: &str, place: Place, machines: usize) -> Self {
        Self::with(name, Setup { place, machines, deadline: 60, session: 3 })
    }

    /// The same in other ways.
    pub fn with(name: &str, setup: Setup) -> Self {
        let Setup { place, machines, .. } = setup;
        let (kind, folder) = (Kind::chosen(), make_folder(name));
        let guard = guard(&folder);
        let network =
            (kind == Kind::Gabion && place == Place::Network).then(|| Network::new(machines));
        let roots: Vec<_> = (0..machines).map(|number| folder.join(format!("m{number}"))).collect();
        roots.iter().for_each(|root| fs::create_dir_all(root).unwrap());
        let (server, uri) = (None, String::new());
        let mut cluster = Self { kind, folder, roots, setup, uri, server, network, _guard: guard };
        cluster.make();
        (0..machines).for_each(|machine| cluster.mount(machine));
        cluster
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// What is kept in it survives the programs.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn make(&mut self) {
        if self.kind == Kind::Ext4 {
            return make_ext4(&self.image(), crate::GIB);
        }
        run(gabion("mkfs").args(["--size", "1G"]).arg(self.image()));
        self.start_server();
    }

    /// Starts the server, where it was before.
    pub fn start_server(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let listen = match (&self.network, self.uri.strip_prefix("gabion://")) {
            (_, Some(address)) => address.trim_end_matches('/'),
            (Some(_), None) => "10.77.0.1:0",
            (None, None) => "127.0.0.1:0",
        };
        let mut command = match &self.network {
            Some(network) => network.server.command(),
            None => Command::new("env"),
        };
        command.arg(program_under_test()).args(["serve", "--insecure", "--listen", listen]);
        command.args(["--session-seconds", &self.setup.session.to_string()]).arg(self.image());
        let mut server = Running::start(command.env("GABION_STATE", self.state()));
        let uri = server.line().expect("the server says where it is");
        assert!(self.uri.is_empty() || self.uri == uri, "{uri}");
        self.uri = uri;
        self.server = Some(server);
    }

    /// Kills the server as a crash would.
    pub fn kill_server(&mut self) {
        kill_all(&processes_below(&self.image()));
        self.server = None;
    }

    /// Mounts a machine's mount, which it does not have just now.
    pub fn mount(&self, machine: usize) {
        let root = &self.roots[machine];
        if self.kind == Kind::Ext4 {
            let mut mount = program("mount", "mount");
            match machine {
                0 => mount.args(["-o", "loop"]).arg(self.image()),
                _ => mount.arg("--bind").arg(&self.roots[0]),
            };
            run(mount.arg(root));
            return;
        }
        let mut command = match &self.network {
            Some(network) => network.machines[machine].command(),
            None => Command::new("env"),
        };
        let deadline = format!("deadline={}", self.setup.deadline);
        command.args(["timeout", "--signal=KILL", "200"]).arg(program_under_test());
        command.env("GABION_STATE", self.state());
        run(command.args(["mount", "-o", &deadline, &self.uri]).arg(root));
    }

    /// Unmounts a machine's mount, or takes it away if its daemon is dead.
    pub fn unmount(&self, machine: usize) {
        let mut unmount = match self.kind {
            Kind::Gabion => gabion("umount"),
            Kind::Ext4 => program("umount", "mount"),
        };
        run(unmount.arg(&self.roots[machine]));
    }

    /// Kills the daemon of a machine's mount.
    pub fn kill_mount(&self, machine: usize) {
        let pids = processes_below(&self.roots[machine]);
        assert!(!pids.is_empty(), "there is no daemon to kill");
        kill_all(&pids);
    }

    /// Cuts a machine off.
    pub fn cut(&self, machine: usize) {
        self.set_link(machine, "down");
    }

    /// Lets a machine that was cut off come back.
    pub fn mend(&self, machine: usize) {
        self.set_link(machine, "up");
    }

    fn set_link(&self, machine: usize, state: &str) {
        let network = self.network.as_ref().expect("only a network can be cut");
        network.machines[machine].run(&format!("ip link set e0 {state}"));
    }

    /// Whether servers and mounts can be killed here.
    pub fn is_gabion(&self) -> bool {
        self.kind == Kind::Gabion
    }

    /// How many mounts there are.
    pub fn machines(&self) -> usize {
        self.roots.len()
    }

    /// Where a machine has it mounted.
    pub fn root(&self, machine: usize) -> &Path {
        &self.roots[machine]
    }

    /// A path at a machine's mount.
    pub fn path(&self, machine: usize, name: &str) -> PathBuf {
        self.roots[machine].join(name)
    }

    /// A path on the disk that holds the image.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.join("beside").join(name)
    }

    /// Ends all in order, and checks that all is well.
    pub fn finish(mut self) {
        (0..self.machines()).rev().for_each(|machine| self.unmount(machine));
        if self.kind == Kind::Ext4 {
            return;
        }
        let server = self.server.take().expect("the server runs");
        server.signal(Signal::TERM);
        assert!(server.wait(), "the server did not end in order");
        run(gabion("scrub").arg(self.image()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        clear(&self.folder);
    }
}

/// Sets a flag at the end, however that comes: threads that wait for it end, too.
pub struct AtEnd<'a>(pub &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A network of namespaces.
struct Network {
    server: Namespace,
    machines: Vec<Namespace>,
}

impl Network {
    fn new(machines: usize) -> Self {
        let machines = (0..machines).map(|_| Namespace::new()).collect();
        let network = Self { server: Namespace::new(), machines };
        network.server.run("ip link set lo up");
        network.server.run("ip link add br0 type bridge");
        network.server.run("ip address add 10.77.0.1/24 dev br0");
        network.server.run("ip link set br0 up");
        for (number, machine) in network.machines.iter().enumerate() {
            let (pid, server) = (machine.shell.id(), &network.server);
            server.run(&format!("ip link add v{number} type veth peer name e0 netns {pid}"));
            server.run(&format!("ip link set v{number} master br0 up"));
            machine.run("ip link set lo up");
            machine.run(&format!("ip address add 10.77.0.{}/24 dev e0", 10 + number));
            machine.run("ip link set e0 up");
        }
        network
    }
}

/// A network namespace, and a shell in it that runs what it is told, line by line. It ends when
/// nobody can tell it anything any more.
///
/// A process that is started by a test first closes its copies of what the test has open. On a
/// mount that is cut off this takes as long as any operation there. The shell has nothing open.
struct Namespace {
    shell: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "while read -r line; do $line && echo done; done"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let ask = shell.stdin.take().unwrap();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        let namespace = Self { shell, pipes: Mutex::new((ask, answers)) };
        // Before that it may not have its namespace.
        namespace.run("true");
        namespace
    }

    /// Runs a command in it.
    #[track_caller]
    fn run(&self, line: &str) {
        let mut pipes = self.pipes.lock().unwrap();
        let (ask, answers) = &mut *pipes;
        writeln!(ask, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{line}");
    }

    /// A command in it, and in everybody's mount namespace.
    fn command(&self) -> Command {
        let mut command = program("nsenter", "util-linux");
        command.arg(format!("--net=/proc/{}/ns/net", self.shell.id()));
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
