//! Mount and process namespaces of our own.
//!
//! The program starts itself once more under unshare(1): when that process ends, however it ends,
//! the kernel ends every process in the namespace, unmounts everything and, as loop devices are
//! attached with the flag for it, detaches those. Guards still end things in order where nothing
//! goes wrong; this is for panics, Ctrl-C and kill.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Set in the process inside.
const INSIDE: &str = "GABION_BENCH_INSIDE";

/// Returns in a process inside the namespaces.
pub fn enter() -> Result<()> {
    let only_words = env::args().skip(1).any(|arg| ["-h", "--help", "help"].contains(&&*arg));
    if only_words || env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it mounts filesystems and drops the kernel's caches");
    }
    let program = env::current_exe().context("cannot find this program")?;
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot run unshare (package util-linux)")
}
