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

#[test]
fn a_backup_leaves_what_somebody_has_put_in_its_place_meanwhile() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("large"), noise(1, 20 << 20)).unwrap();
    let mut slow = program(&folder, &["backup", "--rate", "8M", "mnt", "full.gabion"]);
    let slow = slow.stderr(Stdio::piped()).spawn().unwrap();
    let (begun, partial) = (Instant::now(), folder.join("full.gabion.partial"));
    while !partial.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::write(folder.join("full.gabion"), "somebody's").unwrap();
    let done = slow.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && said.contains("full.gabion: File exists"), "{said}");
    assert_eq!(fs::read_to_string(folder.join("full.gabion")).unwrap(), "somebody's");
    // It is saved, and only has to get its name.
    fs::remove_file(folder.join("full.gabion")).unwrap();
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    folder.gabion(&["verify", "full.gabion"]).succeeded();
}
