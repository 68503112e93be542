//! `gabion up`: the first thing that anybody tries.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

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
    let copies = "a copy in each of gabion-data/a.img and gabion-data/b.img";
    assert!(said.contains("Made a filesystem") && said.contains(copies), "{said}");
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
    assert!(said.contains("d/a.img") && said.contains("1 GiB"), "{said}");
    assert_eq!(folder.mountpoints(), [folder.join("m")]);
    interrupt(running, lines);
}

#[test]
fn up_keeps_a_single_copy_if_asked_to() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &["--single", "--size", "1G"]);
    assert!(said.contains("gabion-data/gabion.img") && said.contains("1 GiB"), "{said}");
    assert_eq!(fs::metadata(folder.join("gabion-data/gabion.img")).unwrap().len(), 1 << 30);
    fs::write(folder.join("gabion-mnt/file"), "kept").unwrap();
    interrupt(running, lines);
    // What is there already is used.
    let (running, lines, said) = up(&folder, &[]);
    assert!(!said.contains("Made"), "{said}");
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt/file")).unwrap(), "kept");
    interrupt(running, lines);
}

#[test]
fn up_goes_on_when_a_target_is_killed_and_brings_it_back() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &["--size", "1G"]);
    let target = said.split("processes ").nth(1).unwrap().split(' ').next().unwrap();
    let target = Pid::from_raw(target.parse().unwrap()).unwrap();
    kill_process(target, Signal::KILL).unwrap();
    write_durably(&folder.join("gabion-mnt/file"));
    let volume = |wanted: &str| loop {
        let mut status = Command::new(GABION);
        status.args(["volume", "status", "--json", "up"]);
        status.env("GABION_STATE", folder.join("gabion-data/state"));
        let output = status.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        if text.contains(wanted) {
            return;
        }
    };
    volume("\"health\": \"whole\"");
    interrupt(running, lines);
    let image = |name| fs::File::open(folder.join("gabion-data").join(name)).unwrap();
    let (a, b) = (image("a.img"), image("b.img"));
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    // Behind the heads of target and member.
    for at in (2..1027).map(|number: u64| number << 20) {
        a.read_exact_at(&mut left, at).unwrap();
        b.read_exact_at(&mut right, at).unwrap();
        assert!(left == right, "they differ between {at} and the next MiB");
    }
}

fn write_durably(path: &std::path::Path) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(b"there").unwrap();
    file.sync_all().unwrap();
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
