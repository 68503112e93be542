//! Backups that come through a pipe.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::planted;
use super::trees::{assert_same, survey};
use crate::world::{Folder, GABION, Outcome};

/// Runs gabion with what `script` prints as its standard input.
#[track_caller]
fn piped(folder: &Folder, script: &str, arguments: &[&str]) -> Outcome {
    let mut source = Command::new("sh");
    source.args(["-c", script]).current_dir(folder.path()).stdout(Stdio::piped());
    let mut source = source.spawn().unwrap();
    let mut command = Command::new(GABION);
    command.args(arguments).env("GABION_STATE", folder.join("state")).current_dir(folder.path());
    command.stdin(source.stdout.take().unwrap());
    let output = command.output().unwrap();
    // Who writes is told that nobody reads any more.
    drop(command);
    source.wait().unwrap();
    Outcome {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status,
    }
}

/// Nothing is left in the folder but what is named.
#[track_caller]
fn assert_nothing_new(folder: &Folder, before: &[String]) {
    assert_eq!(crate::world::names(folder.path()), before);
}

#[test]
fn what_comes_through_a_pipe_is_restored_and_verified() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    folder.gabion(&["backup", "mnt", "one"]).succeeded();
    fs::rename(mnt.join("dir"), mnt.join("moved")).unwrap();
    folder.gabion(&["backup", "--incremental", "mnt", "two"]).succeeded();
    let large = File::options().write(true).open(mnt.join("large")).unwrap();
    large.write_all_at(&[5; 10_000], 1_000_000).unwrap();
    folder.gabion(&["backup", "--incremental", "mnt", "three"]).succeeded();
    let wanted = survey(&mnt);
    let before = crate::world::names(folder.path());

    let text = piped(&folder, "cat one", &["verify", "-"]).succeeded();
    assert!(text.starts_with("standard input: whole: "), "{text}");
    let text = piped(&folder, "cat one two three", &["verify", "-"]).succeeded();
    assert_eq!(text.lines().count(), 3, "{text}");
    let told = ["stream 2 builds upon", "did not come before"];
    piped(&folder, "cat one three", &["verify", "-"]).failed(4, &told);
    piped(&folder, "cat two", &["verify", "-"]).failed(4, &["standard input builds upon"]);
    piped(&folder, "true", &["verify", "-"]).failed(1, &["nothing came"]);
    piped(&folder, "echo no backup", &["verify", "-"]).failed(1, &["not a backup"]);

    // The order in which they come is no matter to who keeps them.
    let restore = ["restore", "--to-directory", "-", "tree"];
    piped(&folder, "cat three one two", &restore).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    fs::remove_dir_all(folder.join("tree")).unwrap();
    piped(&folder, "cat two one", &restore).succeeded();
    assert!(folder.join("tree/moved").is_dir());
    fs::remove_dir_all(folder.join("tree")).unwrap();
    // From a file nothing is copied.
    let script = format!("exec {GABION} restore --to-directory - tree < one");
    folder.run(Command::new("sh").args(["-c", &script])).succeeded();
    assert!(folder.join("tree/dir").is_dir());
    fs::remove_dir_all(folder.join("tree")).unwrap();
    assert_nothing_new(&folder, &before);
    // Refused before anything is read.
    piped(&folder, "cat one", &["restore", "-", "tree"]).failed(1, &["--to-directory"]);
    assert_nothing_new(&folder, &before);
}

#[test]
fn a_pipe_that_breaks_or_lies_is_refused_with_the_place_and_leaves_nothing() {
    let Some(folder) = planted() else { return };
    folder.gabion(&["backup", "mnt", "one"]).succeeded();
    let good = fs::read(folder.join("one")).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(folder.join("bad"), bad).unwrap();
    let before = crate::world::names(folder.path());
    let restore = ["restore", "--to-directory", "-", "tree"];
    for arguments in [&["verify", "-"][..], &restore] {
        let code = |code: i32| if arguments.len() == 2 { code } else { 1 };
        let damaged = ["standard input", "damaged at byte", "segment"];
        piped(&folder, "cat bad", arguments).failed(code(4), &damaged);
        let length = good.len() - 1;
        let short = format!("head -c {length} one");
        let told = ["standard input", "not complete", "ends at byte"];
        piped(&folder, &short, arguments).failed(code(4), &told);
        piped(&folder, "cat one; echo more", arguments)
            .failed(1, &["stream 2: it is not a backup"]);
    }
    assert_nothing_new(&folder, &before);
}

#[test]
fn a_pipe_needs_room_beside_what_is_made() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    fs::write(super::mount(&folder).join("noise"), super::trees::noise(8, 30 << 20)).unwrap();
    folder.gabion(&["backup", "mnt", "one"]).succeeded();
    folder.gabion(&["mkfs", "--size", "24M", "small.img"]).succeeded();
    fs::create_dir(folder.join("small")).unwrap();
    folder.gabion(&["mount", "small.img", "small"]).succeeded();
    let told = ["cannot keep what comes through the pipe", "Put it where there is room"];
    piped(&folder, "cat one", &["restore", "-", "small/tree"]).failed(1, &told);
    assert!(crate::world::names(&folder.join("small")).is_empty());
}
