//! `gabion up`: the first thing that anybody tries.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdout, Command, Stdio};

use rustix::process::Signal;

use crate::world::{Folder, GABION, Running};

/// Starts it and waits until it says that the mount is there. Gives the lines up to that.
fn up(folder: &Folder, arguments: &[&str]) -> (Running, BufReader<ChildStdout>, String) {
    let mut child = Command::new(GABION)
        .arg("up")
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let running = Running(child);
    let mut text = String::new();
    while !text.contains("Ctrl-C") {
        assert_ne!(lines.read_line(&mut text).unwrap(), 0, "it ended after {text:?}");
    }
    (running, lines, text)
}

/// Presses Ctrl-C, waits for the end, and gives what else was said.
fn interrupt(mut running: Running, mut lines: BufReader<ChildStdout>) -> String {
    running.signal(Signal::INT);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    if let Some(mut errors) = running.0.stderr.take() {
        errors.read_to_string(&mut rest).unwrap();
    }
    let status = running.0.wait().unwrap();
    assert!(status.success(), "{status}: {rest}");
    rest
}

#[test]
fn up_makes_mounts_and_unmounts_on_ctrl_c() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &[]);
    assert!(said.contains("Made a filesystem in gabion-data/gabion.img"), "{said}");
    assert!(said.contains("grow to 64 GiB") && said.contains("at gabion-mnt"), "{said}");
    fs::write(folder.join("gabion-mnt/file"), "kept").unwrap();
    let rest = interrupt(running, lines);
    assert!(rest.contains("gabion status gabion-mnt") && rest.contains("Unmounted"), "{rest}");
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
    // The second time there is nothing to make.
    let (running, lines, said) = up(&folder, &[]);
    assert!(!said.contains("Made"), "{said}");
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt/file")).unwrap(), "kept");
    interrupt(running, lines);
}

#[test]
fn up_takes_other_places_and_sizes() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &["--data", "d", "--size", "1G", "m"]);
    assert!(said.contains("d/gabion.img") && said.contains("1 GiB"), "{said}");
    assert_eq!(fs::metadata(folder.join("d/gabion.img")).unwrap().len(), 1 << 30);
    assert_eq!(folder.mountpoints(), [folder.join("m")]);
    interrupt(running, lines);
}

#[test]
fn up_does_not_tear_a_busy_mount_from_its_user() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (mut running, lines, _) = up(&folder, &["--size", "1G"]);
    let file = fs::File::create(folder.join("gabion-mnt/open")).unwrap();
    let errors = running.0.stderr.take().unwrap();
    running.signal(Signal::INT);
    let mut said = String::new();
    BufReader::new(errors).read_line(&mut said).unwrap();
    let me = format!("in use by process {}", std::process::id());
    assert!(said.contains(&me) && said.contains("Ctrl-C again"), "{said}");
    fs::write(folder.join("gabion-mnt/still"), "there").unwrap();
    drop(file);
    interrupt(running, lines);
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
}

#[test]
fn up_comes_back_after_it_was_killed() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (mut running, _lines, _) = up(&folder, &["--size", "1G"]);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    assert_eq!(folder.mountpoints().len(), 1, "a dead mount is left");
    let (running, lines, _) = up(&folder, &["--size", "1G"]);
    assert_eq!(folder.mountpoints().len(), 1);
    interrupt(running, lines);
}
