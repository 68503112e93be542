//! Mount and process namespaces of our own.
//!
//! The program starts itself once more under unshare(1): when that process ends, however it ends,
//! the kernel ends every process in the namespace, unmounts everything and, as loop devices are
//! attached with the flag for it, detaches those. Guards still end things in order where nothing
//! goes wrong; this is for panics, Ctrl-C and kill.
//!
//! Whoever starts other people's daemons is [`supervise`]d besides: a process outside waits, kills
//! everything if it is asked to stop, and can then remove what is left on the disk. Inside, there
//! is a network of our own, too, where nobody else can reach daemons that let everybody in, and
//! where every port is free.

use std::env;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gabion_host::signals::{Signals, Wake};
use rustix::process::{Pid, Signal, kill_process};

/// Set in the process inside.
const INSIDE: &str = "GABION_BENCH_INSIDE";
/// Set in a supervised one: the folder for everything that it makes.
const FOLDER: &str = "GABION_BENCH_FOLDER";
/// How long a process inside may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a process inside.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns in a process inside the namespaces.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let error = inside(&[])?.exec();
    Err(error).context("cannot run unshare (package util-linux)")
}

/// The folder of the supervised process that this is, if it is one.
pub fn folder() -> Option<PathBuf> {
    // Whoever is the first process may end all others, and nobody else may.
    let is_first = process::id() == 1;
    env::var_os(FOLDER).filter(|_| is_first).map(PathBuf::from)
}

/// Runs this program inside, with a network of its own, and gives its exit code. Nothing of it
/// runs any more when this returns.
pub fn supervise(folder: &Path) -> Result<i32> {
    let mut command = inside(&["--net"])?;
    // Its input ends with this process, and it with its input; see `end_with_input`.
    let child = command.env(FOLDER, folder).stdin(Stdio::piped()).spawn();
    let mut child = child.context("cannot run unshare (package util-linux)")?;
    // Only now: it would inherit the mask, and so would all that it starts.
    let signals = Signals::block().context("cannot wait for signals")?;
    let waker = signals.waker();
    let asked = thread::spawn(move || signals.wait());
    loop {
        if let Some(status) = child.try_wait()? {
            let _ = waker.wake();
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if asked.is_finished() {
            break;
        }
        thread::sleep(PAUSE);
    }
    end(&mut child)?;
    let wake = asked.join().expect("waiting for a signal does not panic")?;
    let signal = match wake {
        Wake::Interrupt => 2,
        Wake::Terminate => 15,
        Wake::HangUp | Wake::Woken => 1,
    };
    eprintln!("stopped");
    Ok(128 + signal)
}

/// Sees to it that nothing inside, where this process is the first one, outlives the one outside.
pub fn end_with_input() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        // The kernel does so when this process is gone; but a thread of it may wait for a mount
        // that hangs, until that mount's daemon is gone.
        if process::id() == 1 {
            kill_all();
        }
        process::exit(1);
    });
}

/// Kills every process that can be seen from here, but for this one.
fn kill_all() {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().parse().ok();
        if let Some(pid) = number.filter(|pid| *pid > 1).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Lets go of what others have mounted on FUSE or loop devices: they cannot end it as long as it is
/// mounted here, too. What holds one of `ours` stays.
pub fn leave_others(ours: &[&Path]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let (left, right) =
            line.split_once(" - ").context("a line of mountinfo has no separator")?;
        let mountpoint = Path::new(left.split(' ').nth(4).unwrap_or_default());
        let mut kind_and_source = right.split(' ');
        let kind = kind_and_source.next().unwrap_or_default();
        let source = kind_and_source.next().unwrap_or_default();
        let is_theirs = kind.starts_with("fuse.") || kind.starts_with("fuseblk");
        let is_theirs = is_theirs || kind == "fuse" || source.starts_with("/dev/loop");
        if is_theirs && !ours.iter().any(|path| path.starts_with(mountpoint)) {
            // It may have gone by itself.
            let _ = Command::new("umount").arg("--lazy").arg(mountpoint).output();
        }
    }
    Ok(())
}

/// Has it end; the kernel then kills what is in its namespaces.
fn end(unshare: &mut Child) -> Result<()> {
    drop(unshare.stdin.take());
    let start = Instant::now();
    while unshare.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            unshare.kill()?;
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A command that runs this program inside.
fn inside(more: &[&str]) -> Result<Command> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it mounts filesystems and drops the kernel's caches");
    }
    let program = env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .args(more)
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1");
    Ok(command)
}
