//! Other people's programs: found or named with what installs them, run, and never left behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::guard::waiting;
use crate::site::is_long;

/// Seconds after which a program is killed: more than any needs. By then the mounts of a test that
/// hangs are cut.
const DEADLINE_SECONDS: u32 = 300;
/// The same in long runs.
const DEADLINE_SECONDS_LONG: u32 = 900;

/// A command that cannot run for ever. Panics with what installs the program if it is not there.
pub fn program(name: &str, package: &str) -> Command {
    assert!(is_installed(name), "{name} is missing: apt-get install -y {package}");
    bounded(Path::new(name))
}

/// A command for the Python script of this name beside the tests.
pub fn script(name: &str) -> Command {
    // Not the first one in the path: what stands there may be a slow wrapper.
    let mut command = program("/usr/bin/python3", "python3");
    // One that a signal ends says where it was.
    command.env("PYTHONFAULTHANDLER", "1");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/scripts").join(name));
    command
}

/// A program from the registry of crates. It is compiled once and kept beside the build.
pub fn crate_program(name: &str, version: &str) -> Command {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tools");
    let path = root.join("bin").join(name);
    // Several tests may want it at once, and cargo removes what another one has just built.
    fs::create_dir_all(&root).unwrap();
    let only_one = File::create(root.join("lock")).unwrap();
    only_one.lock().unwrap();
    let mut install = Command::new(env!("CARGO"));
    install.args(["install", "--quiet", "--locked", "--debug", "--root"]).arg(&root);
    install.args([name, "--version", version]);
    // The tools stay when the workspace's own target directory is another one.
    install.env("CARGO_TARGET_DIR", root.join("target"));
    run(&mut install);
    bounded(&path)
}

fn bounded(path: &Path) -> Command {
    let mut command = Command::new("timeout");
    let seconds = if is_long() { DEADLINE_SECONDS_LONG } else { DEADLINE_SECONDS };
    command.args(["--signal=KILL", &seconds.to_string()]).arg(path);
    command
}

fn is_installed(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    candidates.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    candidates.iter().any(|folder| folder.join(name).is_file())
}

/// Runs to the end; gives what it printed. Panics with everything it printed if it failed.
pub fn run(command: &mut Command) -> String {
    let (success, text) = attempt(command);
    assert!(success, "{command:?} failed:\n{text}");
    text
}

/// Runs to the end; gives whether it succeeded, and what it printed.
pub fn attempt(command: &mut Command) -> (bool, String) {
    command.stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text += &format!("{}\n{}\n", String::from_utf8_lossy(&output.stderr), output.status);
        if output.status.signal() == Some(Signal::KILL.as_raw()) {
            text += &waiting();
        }
    }
    (output.status.success(), text)
}

/// A program in the background, killed with all its children when dropped.
pub struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it. It is not heard when it complains: some are made to fail.
    pub fn start_unheard(command: &mut Command) -> Self {
        Self::start(command.stderr(Stdio::null()))
    }

    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = BufReader::new(child.stdout.take().expect("it was asked for"));
        Self { child, lines }
    }

    /// The next line that it prints; `None` when it prints no more.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).expect("programs here print text");
        // What a killed program did not finish to print does not count.
        (count > 0 && line.ends_with('\n')).then(|| line.trim_end().to_owned())
    }

    /// All lines that are still to come.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.line()).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it with its children.
    pub fn kill(&mut self) {
        let pid = Pid::from_child(&self.child);
        // It may be gone already.
        let _ = kill_process_group(pid, Signal::KILL);
    }

    /// Waits for its end; gives whether it succeeded.
    pub fn wait(self) -> bool {
        self.end().success()
    }

    /// Waits for its end; gives how it ended.
    pub fn end(mut self) -> ExitStatus {
        let mut rest = Vec::new();
        self.lines.read_to_end(&mut rest).expect("a pipe can be read");
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
