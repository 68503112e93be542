//! `gabion up`: the first thing that anybody tries.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Daemon, Folder, GABION, Running, names, rest};

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts it and waits until it says that the mount is there. Gives the lines up to that.
fn up(folder: &Folder, arguments: &[&str]) -> (Running, BufReader<ChildStdout>, String) {
    up_by(folder, Command::new(GABION).arg("up").args(arguments))
}

/// The same by another command.
fn up_by(folder: &Folder, command: &mut Command) -> (Running, BufReader<ChildStdout>, String) {
    let mut child = command
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

/// The number of a process, which stands behind these words.
fn process(said: &str, behind: &str) -> Pid {
    let number = said.split(behind).nth(1).unwrap().split([' ', '.', '\n']).next().unwrap();
    Pid::from_raw(number.parse().unwrap()).unwrap()
}

/// The second target.
fn target(said: &str) -> Pid {
    let targets = said.split("processes ").nth(1).unwrap();
    process(targets, " and ")
}

/// What a command prints that is about the volume.
#[track_caller]
fn of_volume(folder: &Folder, arguments: &[&str]) -> String {
    let mut command = Command::new(GABION);
    command.args(arguments).current_dir(folder.path());
    let output = command.env("GABION_STATE", folder.join("gabion-data/state")).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a command prints something.
#[track_caller]
fn await_volume(folder: &Folder, arguments: &[&str], wanted: impl Fn(&str) -> bool) -> String {
    let began = Instant::now();
    loop {
        let text = of_volume(folder, arguments);
        if wanted(&text) {
            return text;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        rest();
    }
}

/// The daemon of a mount.
fn daemon(folder: &Folder, name: &str) -> Pid {
    let pid = folder.status(name)["mount"]["pid"].as_i64().unwrap();
    Pid::from_raw(pid as i32).unwrap()
}

#[test]
fn up_makes_mounts_and_unmounts_on_ctrl_c() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &[]);
    let copies = "a copy in each of gabion-data/a.img and gabion-data/b.img";
    assert!(said.contains("Made a filesystem") && said.contains(copies), "{said}");
    assert!(said.contains("grow to 64 GiB"), "{said}");
    assert!(said.contains("at gabion-mnt and gabion-mnt-2. Ctrl-C unmounts both."), "{said}");
    assert_eq!(folder.mountpoints(), ["gabion-mnt", "gabion-mnt-2"].map(|name| folder.join(name)));
    fs::write(folder.join("gabion-mnt/file"), "kept").unwrap();
    let rest = interrupt(running, lines);
    assert!(rest.contains("gabion status gabion-mnt-2") && rest.contains("Unmounted"), "{rest}");
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
    assert_eq!(folder.mountpoints(), [folder.join("m"), folder.join("m-2")]);
    interrupt(running, lines);
    let (running, lines, said) = up(&folder, &["--data", "d", "--mounts", "1", "m/"]);
    assert!(said.contains("at m. Ctrl-C unmounts it."), "{said}");
    assert_eq!(folder.mountpoints(), [folder.join("m")]);
    interrupt(running, lines);
    let (running, lines, said) = up(&folder, &["--data", "d", "--mounts", "3", "m"]);
    assert!(said.contains("at m, m-2 and m-3. Ctrl-C unmounts all."), "{said}");
    assert_eq!(folder.mountpoints().len(), 3);
    interrupt(running, lines);
    folder.gabion(&["up", "--single", "--mounts", "2"]).failed(2, &["cannot be used with"]);
    folder.gabion(&["up", "--mounts", "0"]).failed(2, &["--mounts"]);
    // What cannot be mounted at the second place is not left mounted at the first one.
    fs::remove_dir(folder.join("m-2")).unwrap();
    fs::write(folder.join("m-2"), "no folder").unwrap();
    folder.gabion(&["up", "--data", "d", "m"]).failed(1, &["m-2", "is not a directory"]);
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
}

#[test]
fn what_up_says_can_be_tried_shows_that_mounts_see_each_other_and_that_a_target_is_done_without() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, mut lines, said) = up(&folder, &["--size", "1G"]);
    let mut script = String::new();
    while !script.contains("gabion events") {
        assert_ne!(lines.read_line(&mut script).unwrap(), 0, "{script}");
    }
    let script = script.split("Try in another terminal, in this folder:\n").nth(1).unwrap();
    let output = Command::new("sh").args(["-ec", script]).current_dir(folder.path()).output();
    let output = output.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{script}: {output:?}");
    // In the order of the commands.
    let uri = said.split("serves it at ").nth(1).unwrap().split(',').next().unwrap();
    let mut rest = &*shown;
    for wanted in ["hello\n", "\nfuse.h\n", "gabion-mnt-2: Gabion filesystem, mounted", uri] {
        rest = rest.split_once(wanted).unwrap_or_else(|| panic!("no {wanted} in {shown}")).1;
    }
    for wanted in ["/gabion-mnt\n", "attributes", "nothing damaged", "volume up: opened"] {
        rest = rest.split_once(wanted).unwrap_or_else(|| panic!("no {wanted} in {shown}")).1;
    }
    let events = ["events", "--since", "1"];
    await_volume(&folder, &events, |text| text.contains("stale"));
    await_volume(&folder, &events, |text| text.contains("the resync is finished"));
    // And the other way.
    fs::write(folder.join("gabion-mnt-2/file"), "hello back").unwrap();
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt/file")).unwrap(), "hello back");
    // Asked at a mount, it is said where it is scrubbed.
    folder.gabion(&["scrub", "gabion-mnt"]).failed(1, &[uri, "gabion scrub TARGET"]);
    interrupt(running, lines);
}

#[test]
fn up_brings_back_a_server_and_a_mount_that_were_killed() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &["--size", "1G"]);
    write_durably(&folder.join("gabion-mnt/file"));
    let server = process(&said, "Process ");
    kill_process(server, Signal::KILL).unwrap();
    // Whoever asked just then may get an error, and nobody has to mount again.
    let served = |text: &str| text.contains("2 clients") && !text.contains(&server.to_string());
    let began = Instant::now();
    loop {
        let mut status = Command::new(GABION);
        status.args(["status", "up"]).env("GABION_STATE", folder.join("gabion-data/state"));
        let output = status.output().unwrap();
        if output.status.success() && served(&String::from_utf8_lossy(&output.stdout)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{output:?}");
        rest();
    }
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt-2/file")).unwrap(), "there");
    let killed = daemon(&folder, "gabion-mnt-2");
    kill_process(killed, Signal::KILL).unwrap();
    write_durably(&folder.join("gabion-mnt/other"));
    let began = Instant::now();
    while fs::read_to_string(folder.join("gabion-mnt-2/other")).is_err() {
        assert!(began.elapsed() < PATIENCE, "the mount is not made again");
        rest();
    }
    assert_ne!(daemon(&folder, "gabion-mnt-2"), killed);
    // Who is unmounted by somebody else stays so, and the other one goes on.
    folder.gabion(&["umount", "gabion-mnt-2"]).succeeded();
    fs::write(folder.join("gabion-mnt/third"), "alone").unwrap();
    assert_eq!(folder.mountpoints(), [folder.join("gabion-mnt")]);
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
fn up_makes_no_single_copy_beside_two() {
    let Some(folder) = Folder::for_mounts() else { return };
    fs::create_dir(folder.join("gabion-data")).unwrap();
    fs::write(folder.join("gabion-data/a.img"), "").unwrap();
    folder.gabion(&["up", "--single"]).failed(1, &["two copies", "--single", "--data"]);
    assert!(!folder.join("gabion-data/gabion.img").exists());
}

#[test]
fn up_works_for_who_lets_his_group_write_what_he_makes() {
    let Some(folder) = Folder::for_mounts() else { return };
    let script = "umask 002; exec \"$0\" up --size 1G --mounts 1";
    let (running, lines, _) = up_by(&folder, Command::new("sh").args(["-c", script, GABION]));
    interrupt(running, lines);
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("gabion-data"), mode("gabion-data/state")), (0o755, 0o700));
}

#[test]
fn up_writes_over_nothing_that_others_have_put_links_to() {
    let Some(folder) = Folder::for_mounts() else { return };
    let data = folder.join("gabion-data");
    fs::create_dir(&data).unwrap();
    fs::write(folder.join("other"), [7; 1 << 20]).unwrap();
    symlink("../other", data.join("a.img")).unwrap();
    let refused = || {
        let parts = ["gabion-data is not a folder that only you write to", "chmod go-w", "--data"];
        folder.gabion(&["up", "--size", "1G"]).failed(1, &parts);
        fs::rename(data.join("a.img"), data.join("gabion.img")).unwrap();
        folder.gabion(&["up", "--single", "--size", "1G"]).failed(1, &parts);
        fs::rename(data.join("gabion.img"), data.join("a.img")).unwrap();
        assert!(fs::read(folder.join("other")).unwrap() == [7; 1 << 20]);
    };
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
    refused();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&data, Some(65_534), Some(65_534)).unwrap();
    refused();
}

#[test]
fn up_goes_on_when_a_target_is_killed_and_brings_it_back() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (running, lines, said) = up(&folder, &["--size", "1G"]);
    kill_process(target(&said), Signal::KILL).unwrap();
    write_durably(&folder.join("gabion-mnt/file"));
    let status = ["volume", "status", "--json", "up"];
    await_volume(&folder, &status, |text| text.contains("\"health\": \"whole\""));
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
    // The other one was not in use.
    let began = Instant::now();
    while folder.mountpoints() != [folder.join("gabion-mnt")] {
        assert!(began.elapsed() < PATIENCE, "{:?}", folder.mountpoints());
        rest();
    }
    drop(file);
    interrupt(running, lines);
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
}

#[test]
fn up_comes_back_after_it_was_killed() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (mut running, _lines, said) = up(&folder, &["--size", "1G"]);
    write_durably(&folder.join("gabion-mnt/file"));
    let mut processes = vec![process(&said, "processes "), target(&said)];
    processes.push(process(&said, "Process "));
    processes.extend(["gabion-mnt", "gabion-mnt-2"].map(|name| daemon(&folder, name)));
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    // All that it had started ends with it.
    for process in processes {
        Daemon { pid: process }.await_end();
    }
    assert_eq!(folder.mountpoints().len(), 2, "dead mounts are left");
    let (running, lines, _) = up(&folder, &["--size", "1G"]);
    assert_eq!(folder.mountpoints().len(), 2);
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt-2/file")).unwrap(), "there");
    fs::write(folder.join("gabion-mnt/file"), "changed").unwrap();
    assert_eq!(fs::read_to_string(folder.join("gabion-mnt-2/file")).unwrap(), "changed");
    interrupt(running, lines);
}

#[test]
fn what_cannot_be_made_leaves_nothing_in_the_way() {
    let Some(folder) = Folder::for_mounts() else { return };
    for arguments in [&["up", "--size", "1M"][..], &["up", "--size", "1M", "--single"]] {
        folder.gabion(arguments).failed(1, &["1 MiB cannot be the size", "at least 16 MiB"]);
    }
    fs::write(folder.join("gabion-mnt-2"), "content").unwrap();
    folder.gabion(&["up"]).failed(1, &["gabion-mnt-2 is not a directory", "gabion up MOUNTPOINT"]);
    assert_eq!(names(folder.path()), ["gabion-mnt-2"]);
    fs::remove_file(folder.join("gabion-mnt-2")).unwrap();
    let (running, lines, _) = up(&folder, &["--size", "16M"]);
    fs::write(folder.join("gabion-mnt/file"), "content").unwrap();
    interrupt(running, lines);
}
