//! Backups and restorations that are killed go on, and are not taken for whole before.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::shared_places::made;
use super::trees::{assert_same, noise, survey};
use super::{backups, mount, snapshots};
use crate::world::{Folder, GABION, GLANCE};

/// Starts a backup, and kills it when it has come so far.
pub fn kill_when(command: &mut Command, has_come: impl Fn() -> bool) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !has_come() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never got so far");
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The program, in a folder.
pub fn program(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(GABION);
    command.args(arguments).env("GABION_STATE", folder.join("state")).current_dir(folder.path());
    command
}

/// Starts a backup that is slow, and kills it when its file is so long.
pub fn kill_at(folder: &Folder, arguments: &[&str], partial: &Path, length: u64) {
    let is_there = || fs::metadata(partial).map_or(0, |found| found.len()) >= length;
    kill_when(&mut program(folder, arguments), is_there);
}

#[test]
fn a_backup_that_was_killed_goes_on_where_it_was() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    fs::write(mnt.join("first"), noise(1, 10 << 20)).unwrap();
    fs::write(mnt.join("large"), noise(2, 50 << 20)).unwrap();
    fs::write(mnt.join("sparse"), noise(3, 1000)).unwrap();
    let wanted = survey(&mnt);
    fs::write(folder.join("key"), noise(4, 32)).unwrap();
    let slow = ["backup", "--rate", "8M", "--key-file", "key", "mnt", "full.gabion"];
    let partial = folder.join("full.gabion.partial");
    // In the middle of the large file. Only one can go on with it at a time.
    kill_at(&folder, &slow, &partial, 28 << 20);
    let file = File::open(&partial).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    folder.gabion(&slow).failed(1, &["another backup is writing to", "full.gabion.partial"]);
    drop(file);
    let row = &backups(&folder, "full.gabion.partial")[0];
    assert_eq!(row["complete"], false);
    let refused = ["restore", "--to-directory", "--key-file", "key", "full.gabion.partial", "no"];
    folder.gabion(&refused).failed(1, &["not complete"]);
    // What is saved is what was there when it began.
    fs::write(mnt.join("first"), "other bytes").unwrap();
    let length = fs::metadata(&partial).unwrap().len();
    kill_at(&folder, &slow, &partial, length + (4 << 20));
    let text = folder.gabion(&["backup", "--key-file", "key", "mnt", "full.gabion"]).succeeded();
    assert!(text.contains("went on saving"), "{text}");
    assert!(!partial.exists());
    folder.gabion(&["verify", "--key-file", "key", "full.gabion"]).succeeded();
    let restore = ["restore", "--to-directory", "--key-file", "key", "full.gabion", "tree"];
    folder.gabion(&restore).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    assert_eq!(snapshots(&folder, "mnt").len(), 1);
}

#[test]
fn a_restoration_that_was_killed_goes_on_and_is_never_taken_for_whole() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    for number in 0..40 {
        fs::write(mnt.join(format!("{number}")), noise(number, 1 << 20)).unwrap();
    }
    fs::hard_link(mnt.join("7"), mnt.join("seven")).unwrap();
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let id = backups(&folder, "full.gabion")[0]["stream"].as_str().unwrap()[..8].to_owned();
    let scratch = folder.join(&format!(".tree.restoring-{id}"));
    let restore = ["restore", "--to-directory", "full.gabion", "tree"];
    let mut child = Command::new(GABION).args(restore).current_dir(folder.path()).spawn().unwrap();
    let begun = Instant::now();
    let mut killed = false;
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        if made(&scratch) > 10 {
            child.kill().unwrap();
            killed = true;
        }
        std::thread::sleep(GLANCE);
    }
    if killed {
        assert!(!folder.join("tree").exists());
        folder.gabion(&restore).succeeded();
    }
    assert!(!scratch.exists());
    assert_same(&wanted, &folder.join("tree"));
}
