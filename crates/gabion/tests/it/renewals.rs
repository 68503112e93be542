//! Signals, and `gabion umount`, while a mount is exchanged for another one.
//!
//! Each is tried at moments that are spread over the time that an undisturbed exchange takes.
//! `GABION_SEEDS` says how many, instead of the usual few.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::world::{Daemon, Folder, GABION, Running, await_that, names};

/// Moments, if nothing else is said.
const MOMENTS: u32 = 8;
/// How long a daemon that was asked to end may need before it is asked once more.
const ONCE_MORE: Duration = Duration::from_secs(2);

/// What comes in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    Signal(Signal),
    /// `gabion umount`.
    Umount,
}

/// Starts `gabion quota set`, which has the mount exchanged.
fn set_quota(folder: &Folder) -> Running {
    let mut command = Command::new(GABION);
    command.args(["quota", "set", "mnt", "5M"]).env("GABION_STATE", folder.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(folder.join("told")).unwrap());
    Running(command.current_dir(folder.path()).spawn().unwrap())
}

fn quotas(folder: &Folder, subject: &str) -> Value {
    let text = folder.gabion(&["quota", "list", "--json", subject]).succeeded();
    serde_json::from_str(&text).unwrap()
}

/// Mounts the image without a quota, so that the first one has the mount exchanged, with something
/// in it that is not on the disk yet.
fn mount(folder: &Folder, text: &str) -> Daemon {
    folder.gabion(&["quota", "set", "disk.img", "none"]).succeeded();
    let mnt = folder.mount("");
    fs::write(mnt.join("synced"), text).unwrap();
    File::open(mnt.join("synced")).unwrap().sync_all().unwrap();
    fs::write(mnt.join("written"), text).unwrap();
    folder.daemon()
}

fn has_ended(daemon: &Daemon) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

/// What a command may tell that was cut off from its daemon, or that came too early.
#[track_caller]
fn assert_told(text: &str) {
    assert!(text.starts_with("gabion: ") && !text.contains("panicked"), "{text:?}");
}

fn try_at(folder: &Folder, comes: Comes, moment: Duration) {
    let text = format!("{comes:?} {moment:?}");
    let daemon = mount(folder, &text);
    let mut quota = set_quota(folder);
    thread::sleep(moment);
    match comes {
        Comes::Signal(signal) => {
            kill_process(daemon.pid, signal).unwrap();
            let begun = Instant::now();
            while signal == Signal::INT && !has_ended(&daemon) {
                // The command may just have used the mount.
                if begun.elapsed() > ONCE_MORE {
                    let _ = kill_process(daemon.pid, signal);
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Comes::Umount => loop {
            let outcome = folder.gabion(&["umount", "mnt"]);
            if outcome.status.success() {
                break;
            }
            // Somebody uses it for a moment, such as the other command.
            assert!(outcome.stderr.contains("busy"), "{text}: {outcome:?}");
        },
    }
    if comes == Comes::Umount {
        assert!(has_ended(&daemon), "{text}: it was said that it had ended");
    }
    await_that(|| has_ended(&daemon));
    let is_set = quota.0.wait().unwrap().success();
    if !is_set {
        assert_told(&fs::read_to_string(folder.join("told")).unwrap());
    }
    let mnt = folder.join("mnt");
    let is_killed = comes == Comes::Signal(Signal::KILL);
    if !is_killed {
        assert_eq!(folder.mountpoints(), [] as [&Path; 0], "{text}");
        assert_eq!(names(&mnt), [""; 0], "{text}: what is beneath was shown");
        folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    }
    // It may be mounted in any case, whatever a killed one has left.
    folder.mount("");
    let read = |name: &str| fs::read_to_string(mnt.join(name));
    assert_eq!(read("synced").unwrap(), text);
    if !is_killed {
        assert_eq!(read("written").unwrap(), text);
    }
    if is_set {
        assert_ne!(quotas(folder, "mnt")["quotas"], Value::Array(Vec::new()), "{text}");
    }
    folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(folder.mountpoints(), [] as [&Path; 0], "{text}");
}

fn try_often(comes: Comes) {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    mount(&folder, "undisturbed");
    let begun = Instant::now();
    assert!(set_quota(&folder).0.wait().unwrap().success());
    let takes = begun.elapsed();
    assert_eq!(quotas(&folder, "mnt")["collects_writes"], false, "it was not exchanged");
    folder.gabion(&["umount", "mnt"]).succeeded();
    let moments = std::env::var("GABION_SEEDS").ok().and_then(|text| text.parse().ok());
    let moments = moments.unwrap_or(MOMENTS);
    for moment in 0..moments {
        try_at(&folder, comes, takes * moment / moments);
    }
}

#[test]
fn a_mount_that_is_asked_to_end_while_it_is_exchanged_ends() {
    try_often(Comes::Signal(Signal::TERM));
}

#[test]
fn a_mount_that_is_interrupted_while_it_is_exchanged_ends() {
    try_often(Comes::Signal(Signal::INT));
}

#[test]
fn a_mount_whose_daemon_is_killed_while_it_is_exchanged_is_mounted_again() {
    try_often(Comes::Signal(Signal::KILL));
}

#[test]
fn a_mount_that_is_unmounted_while_it_is_exchanged_is_gone() {
    try_often(Comes::Umount);
}
