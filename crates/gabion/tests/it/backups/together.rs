//! Backups that go to one place at the same time.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::killed::program;
use super::noise;
use crate::world::Folder;

#[test]
fn a_backup_leaves_another_one_alone_that_is_under_way() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("large"), noise(1, 20 << 20)).unwrap();
    fs::create_dir(folder.join("place")).unwrap();
    folder.gabion(&["backup", "mnt", "place"]).succeeded();
    // One that takes long, as the weekly one does, and one that has begun and ended meanwhile.
    let mut slow = program(&folder, &["backup", "--rate", "8M", "mnt", "place/full.gabion"]);
    let mut slow = slow.stdout(Stdio::null()).spawn().unwrap();
    let (begun, partial) = (Instant::now(), folder.join("place/full.gabion.partial"));
    while fs::metadata(&partial).map_or(0, |found| found.len()) < 1 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_child(&slow);
    kill_process(pid, Signal::STOP).unwrap();
    folder.gabion(&["backup", "--incremental", "mnt", "place"]).succeeded();
    kill_process(pid, Signal::CONT).unwrap();
    assert!(slow.wait().unwrap().success());
    folder.gabion(&["verify", "place"]).succeeded();
    // The next one has no use for the snapshots of those two.
    folder.gabion(&["backup", "--incremental", "mnt", "place"]).succeeded();
    let left = folder.gabion(&["snapshot", "list", "mnt"]).succeeded();
    assert_eq!(left.lines().count(), 1, "{left}");
}
