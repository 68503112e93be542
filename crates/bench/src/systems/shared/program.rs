//! Other people's servers, in the foreground.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// What needs longer to become ready is taken for broken.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a server may need for an orderly end.
const END: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A server that runs. Dropping it ends it.
pub struct Program {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Program {
    /// Starts it. What it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Waits until `is_ready`, as long as the program lives.
    pub fn wait_until(&mut self, is_ready: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_ready() {
            let has_ended = self.child.try_wait()?.is_some();
            if has_ended || start.elapsed() > PATIENCE {
                let state = if has_ended { "has ended" } else { "does not become ready" };
                bail!("{} {state}: {}", self.name, self.last_words());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Asks it to end, and waits for that.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > END {
                bail!("{} does not end", self.name);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        last_words(&self.log)
    }
}

/// The end of what a program said.
pub fn last_words(log: &Path) -> String {
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a program that talks to servers to its successful end: without them it may have none.
pub fn run_in_time(command: &mut Command) -> Result<()> {
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} does not end");
        }
        thread::sleep(PAUSE);
    }
    // It says so little that a pipe holds it.
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(())
}

/// Tries until something works, and else gives the last reason.
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(PAUSE * 5),
        }
    }
}

/// Whether a program can be started.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where servers are, which not everybody's path has.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|folder| folder.join(program).is_file())
}
