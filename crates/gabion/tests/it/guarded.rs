//! What tests start goes with them, even when they are killed.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::world::Folder;

#[test]
fn what_a_killed_test_has_left_is_taken_away() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("commit=300");
    std::fs::write(mountpoint.join("file"), "never synced").unwrap();
    let daemon = folder.daemon();
    rustix::process::kill_process(daemon.pid, Signal::STOP).unwrap();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guard/keeper.sh");
    let mut keeper = Command::new("/bin/sh");
    keeper.arg(script).arg(gone.id().to_string()).arg(folder.path()).stdin(Stdio::null());
    assert!(keeper.status().unwrap().success());
    assert!(folder.mountpoints().is_empty());
    daemon.await_end();
    assert!(!folder.path().exists());
}
