//! Mounting, unmounting, and what daemons that were killed leave behind.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use gabion_fuse::mountinfo::find;
use rustix::process::{Signal, kill_process};

use crate::volumes::stage::Stage;
use crate::world::{Folder, GABION, Outcome, Running, await_that};

fn write_durably(path: std::path::PathBuf, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_mount_answers_when_the_command_returns_and_keeps_its_files() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("noatime");
    fs::create_dir(mountpoint.join("shelf")).unwrap();
    fs::write(mountpoint.join("shelf/book"), "once upon a time").unwrap();
    let status = folder.status("mnt");
    assert_eq!(status["mount"]["access"], "rw");
    assert_eq!(status["mount"]["mountpoint"], mountpoint.to_str().unwrap());
    assert_eq!(status["target"], folder.join("disk.img").to_str().unwrap());
    // The image stands for its mount.
    assert_eq!(folder.status("disk.img")["mount"]["pid"], status["mount"]["pid"]);
    folder.gabion(&["umount", "mnt"]).succeeded();
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
    assert!(!mountpoint.join("shelf").exists());
    // The disk is free at once.
    let mountpoint = folder.mount("ro");
    assert_eq!(fs::read_to_string(mountpoint.join("shelf/book")).unwrap(), "once upon a time");
    folder.gabion(&["umount", "mnt"]).succeeded();
}

/// Who was told by the kernel, and not by the command, may come as early.
#[test]
fn a_mount_appears_when_its_daemon_listens() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.folder.image();
    fs::create_dir(stage.path("mnt")).unwrap();
    let mut command = Command::new(GABION);
    let mut mount = stage.start(command.args(["mount", "--foreground", "disk.img", "mnt"]));
    stage.await_mount("mnt");
    let (major, minor) = find(&stage.path("mnt")).unwrap().unwrap().device;
    let listening = UnixStream::connect(format!("/run/gabion/{major}-{minor}.sock"));
    mount.signal(Signal::INT);
    assert!(mount.0.wait().unwrap().success());
    listening.unwrap();
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("ro");
    let refused = fs::write(mountpoint.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(folder.status("mnt")["mount"]["access"], "ro");
}

#[test]
fn a_mount_that_fails_says_why_and_leaves_nothing() {
    let Some(folder) = Folder::for_mounts() else { return };
    fs::create_dir(folder.join("mnt")).unwrap();
    fs::write(folder.join("disk.img"), vec![7; 20 << 20]).unwrap();
    let mount = |arguments: &[&str]| folder.gabion(&[&["mount"], arguments].concat());
    mount(&["disk.img", "mnt"]).failed(1, &["disk.img", "mnt", "holds no Gabion filesystem"]);
    mount(&["--foreground", "disk.img", "mnt"]).failed(1, &["holds no Gabion filesystem"]);
    mount(&["missing.img", "mnt"]).failed(1, &["missing.img", "No such file"]);
    fs::remove_file(folder.join("disk.img")).unwrap();
    folder.image();
    mount(&["disk.img", "missing"]).failed(1, &["missing", "No such file"]);
    mount(&["disk.img", "disk.img"]).failed(1, &["not a directory"]);
    mount(&["-o", "sped", "disk.img", "mnt"]).failed(2, &["\"sped\"", "noatime"]);
    mount(&["-o", "cache=1M", "disk.img", "mnt"]).failed(2, &["cache=1M", "16M"]);
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
    folder.mount("");
}

#[test]
fn a_mount_is_known_by_a_symbolic_link_to_its_mountpoint() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    fs::create_dir(folder.join("mnt")).unwrap();
    for (link, leads_to) in [("link", "mnt"), ("second", "link"), ("circle", "circle")] {
        std::os::unix::fs::symlink(leads_to, folder.join(link)).unwrap();
    }
    folder.gabion(&["mount", "disk.img", "second"]).succeeded();
    assert_eq!(folder.mountpoints(), [folder.join("mnt")]);
    let status = folder.status("second");
    assert_eq!(status["mount"]["mountpoint"], folder.join("mnt").to_str().unwrap());
    folder.gabion(&["mount", "disk.img", "link"]).failed(1, &["link is a mountpoint already"]);
    folder.gabion(&["umount", "circle"]).failed(1, &["nothing is mounted at circle"]);
    folder.gabion(&["umount", "link"]).succeeded();
    assert!(folder.mountpoints().is_empty());
}

#[test]
fn a_mount_below_another_one_that_is_to_go_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    fs::create_dir(mountpoint.join("below")).unwrap();
    folder.gabion(&["mkfs", "--size", "64M", "other.img"]).succeeded();
    folder.gabion(&["mount", "other.img", "mnt/below"]).succeeded();
    let below = mountpoint.join("below");
    folder.gabion(&["umount", "mnt"]).failed(1, &["busy", below.to_str().unwrap()]);
    folder.gabion(&["umount", "mnt/below"]).succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn a_second_mount_of_an_image_is_refused_with_who_has_it() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    fs::create_dir(folder.join("other")).unwrap();
    let pid = folder.daemon().pid.as_raw_nonzero().to_string();
    let mountpoint = mountpoint.to_str().unwrap();
    let in_use = |outcome: Outcome| outcome.failed(1, &["disk.img", "in use", &pid, mountpoint]);
    in_use(folder.gabion(&["mount", "disk.img", "other"]));
    in_use(folder.gabion(&["mkfs", "--force", "disk.img"]));
    let taken = folder.gabion(&["mount", "disk.img", "mnt"]);
    taken.failed(1, &["mnt is a mountpoint already", "gabion umount mnt"]);
    assert_eq!(folder.mountpoints().len(), 1);
}

#[test]
fn a_busy_mount_stays_and_its_user_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    let open = File::create(mountpoint.join("open")).unwrap();
    let me = format!("process {}", std::process::id());
    folder.gabion(&["umount", "mnt"]).failed(1, &["cannot unmount", "busy", &me]);
    fs::write(mountpoint.join("still"), "there").unwrap();
    drop(open);
    folder.gabion(&["umount", "mnt"]).succeeded();
}

/// A process that has what is mounted now in a namespace of its own. It ends with the pipe that it
/// reads from.
fn in_another_namespace() -> Running {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", "echo ready; read -r _"]);
    unshare.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut elsewhere = Running(unshare.spawn().unwrap());
    let mut said = String::new();
    BufReader::new(elsewhere.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    elsewhere
}

#[test]
fn a_mount_that_lives_on_in_another_namespace_is_told_of() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    let daemon = folder.daemon();
    let elsewhere = in_another_namespace();
    let process = elsewhere.0.id();
    let outcome = folder.gabion(&["umount", "mnt"]);
    let name = format!("process {process} (sh)");
    outcome.failed(1, &["unmounted here", &name, "namespace", "goes on there"]);
    let again = folder.gabion(&["mount", "disk.img", "mnt"]);
    again.failed(1, &["cannot mount", "disk.img", &name, "mount namespace of its own"]);
    drop(elsewhere);
    daemon.await_end();
    folder.mount("");
}

#[test]
fn a_second_interrupt_says_who_has_the_mount_in_another_namespace() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let mut program = Command::new(GABION);
    program.args(["mount", "--foreground", "disk.img", "mnt"]).current_dir(folder.path());
    let mut program = Running(program.stderr(Stdio::piped()).spawn().unwrap());
    await_that(|| !folder.mountpoints().is_empty());
    fs::write(mountpoint.join("file"), "content").unwrap();
    let elsewhere = in_another_namespace();
    let process = elsewhere.0.id();
    program.signal(Signal::INT);
    await_that(|| folder.mountpoints().is_empty());
    program.signal(Signal::INT);
    let mut said = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains(&format!("process {process} (sh)")), "{said}");
    assert!(said.contains("mount namespace of its own") && !said.contains("open"), "{said}");
    assert_eq!(program.0.wait().unwrap().code(), Some(1));
    drop(elsewhere);
    folder.mount("");
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"content");
}

#[test]
fn umount_tells_if_it_cannot_await_the_daemon() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("rw");
    let daemon = folder.daemon();
    fs::write(mountpoint.join("file"), "content").unwrap();
    let device = mountpoint.metadata().unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::remove_file(format!("/run/gabion/{major}-{minor}.sock")).unwrap();
    let outcome = folder.gabion(&["umount", "mnt"]);
    outcome.failed(1, &["is unmounted, but", "not be awaited", "No such file", "gabion.log"]);
    assert_eq!(folder.mountpoints(), [] as [std::path::PathBuf; 0]);
    daemon.await_end();
    folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn umount_does_not_wait_for_a_daemon_that_was_stopped() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    let pid = folder.daemon().pid;
    kill_process(pid, Signal::STOP).unwrap();
    let outcome = folder.gabion(&["umount", "mnt"]);
    kill_process(pid, Signal::CONT).unwrap();
    let process = format!("process {}", pid.as_raw_nonzero());
    outcome.failed(1, &["does not answer", "not unmounted", &process]);
    assert_eq!(folder.mountpoints(), [mountpoint]);
    folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn umount_names_what_is_not_its_own() {
    let folder = Folder::new();
    folder.gabion(&["umount", "."]).failed(1, &["nothing is mounted at ."]);
    folder.gabion(&["umount", "/proc"]).failed(1, &["not a Gabion mount", "umount /proc"]);
}

#[test]
fn what_was_synced_survives_kill_9_and_the_next_mount_cleans_up() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    write_durably(mountpoint.join("kept"), b"by fsync");
    folder.daemon().kill();
    let dead = fs::metadata(mountpoint.join("kept")).unwrap_err();
    assert_eq!(dead.kind(), io::ErrorKind::NotConnected);
    let gone = folder.gabion(&["status", "mnt"]);
    gone.failed(1, &["the daemon of", "is gone", "gabion umount"]);
    folder.mount("");
    assert_eq!(folder.mountpoints().len(), 1);
    assert_eq!(fs::read(mountpoint.join("kept")).unwrap(), b"by fsync");
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn umount_and_a_mount_elsewhere_clean_up_after_kill_9() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    folder.daemon().kill();
    let cleaned = folder.gabion(&["umount", "mnt"]);
    assert!(cleaned.stderr.contains("gone already"), "{cleaned:?}");
    cleaned.succeeded();
    assert!(folder.mountpoints().is_empty(), "{:?}", folder.mountpoints());
    folder.mount("");
    folder.daemon().kill();
    fs::create_dir(folder.join("other")).unwrap();
    folder.gabion(&["mount", "disk.img", "other"]).succeeded();
    assert_eq!(folder.mountpoints(), [folder.join("other")]);
}

#[test]
fn sync_of_everything_reaches_the_daemon() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    // No commit by itself within the test.
    let mountpoint = folder.mount("commit=300");
    if folder.status("mnt")["mount"]["sync_reaches_daemon"] != true {
        eprintln!("left out: no loop device can be had");
        return;
    }
    fs::write(mountpoint.join("kept"), vec![5; 1 << 20]).unwrap();
    rustix::fs::sync();
    folder.daemon().kill();
    folder.mount("");
    assert_eq!(fs::read(mountpoint.join("kept")).unwrap(), vec![5; 1 << 20]);
}

#[test]
fn the_ordinary_umount_leaves_everything_on_the_disk() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("commit=300");
    fs::write(mountpoint.join("file"), vec![3; 3 << 20]).unwrap();
    folder.run(Command::new("umount").arg("mnt")).succeeded();
    // The next mount waits for the daemon, if it has not ended yet.
    folder.mount("");
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), vec![3; 3 << 20]);
}

#[test]
fn status_lists_every_mount() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    // Fails if another test has a dead mount just now, but lists the others.
    let all = folder.gabion(&["status", "--json"]).stdout;
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let ours = folder.join("mnt");
    let mut mountpoints = all.as_array().unwrap().iter().map(|one| &one["mount"]["mountpoint"]);
    assert!(mountpoints.any(|found| found == ours.to_str().unwrap()), "{all:#}");
    let text = folder.gabion(&["status", "mnt"]).succeeded();
    assert!(text.starts_with(&format!("{}: Gabion filesystem, mounted\n", ours.display())));
}

#[test]
fn a_small_cache_keeps_the_daemon_small() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "1G", "disk.img"]).succeeded();
    let mountpoint = folder.mount("cache=16M");
    for number in 0..6 {
        fs::write(mountpoint.join(format!("large-{number}")), vec![number; 16 << 20]).unwrap();
    }
    for number in 0..1000 {
        fs::write(mountpoint.join(format!("small-{number}")), [1; 100]).unwrap();
    }
    let status = folder.status("mnt");
    let resident = status["mount"]["resident_bytes"].as_u64().unwrap();
    assert!(resident < 64 << 20, "{resident} bytes of memory are in use");
    assert_eq!(fs::read(mountpoint.join("large-5")).unwrap(), vec![5; 16 << 20]);
}
