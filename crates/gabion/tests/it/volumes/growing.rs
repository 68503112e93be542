//! Volumes that become longer below a mounted filesystem, and copies of inner mirrors.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use gabion_block::coordinator::Revision;
use rustix::fs::statvfs;
use rustix::process::{Pid, Signal, kill_process};

use super::stage::{HEADERS, Host, PATIENCE, SIZE, Stage};
use super::writing::Writer;
use crate::world::Running;

/// Length of a member's file that was made longer.
const LONGER: u64 = 112 << 20;

fn bytes(mountpoint: &Path) -> u64 {
    let space = statvfs(mountpoint).unwrap();
    space.f_blocks * space.f_frsize
}

impl Stage {
    fn lengthen(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.path(name)).unwrap();
        file.set_len(LONGER).unwrap();
    }
}

impl Host<'_> {
    fn volume_bytes(&self) -> u64 {
        self.volume("tank")["bytes"].as_u64().unwrap()
    }

    /// Has `gabion volume grow tank` and what else is given run while the daemon of `mnt` is
    /// stopped, until the record says what is wanted; then gives the daemon, which still is so.
    ///
    /// While it is, no process may be started here: a file that is open on its filesystem is closed
    /// in the new process by execve(2), and that waits for the daemon.
    #[track_caller]
    fn wish(&self, arguments: &[&str]) -> (Pid, Running) {
        let mut waiting = Command::new("/bin/sh");
        waiting.args(["-c", "read -r _ && exec \"$@\"", "sh"]);
        let command = self.command(&[&["volume", "grow", "tank"], arguments].concat());
        waiting.arg(command.get_program()).args(command.get_args());
        self.prepare(&mut waiting);
        let mut grow = Running(waiting.stdin(Stdio::piped()).spawn().unwrap());
        let daemon = self.daemon("mnt");
        let before = self.stop_between_calls(daemon);
        grow.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let changed = self.own_coordinator().changed("tank", before, PATIENCE).unwrap();
        changed.expect("what is wanted is in the record");
        (daemon, grow)
    }

    /// Stops a daemon while it does not have the coordinator's records locked; gives their state.
    fn stop_between_calls(&self, daemon: Pid) -> Revision {
        loop {
            kill_process(daemon, Signal::STOP).unwrap();
            if let Ok(stored) = self.own_coordinator().read("tank") {
                return stored.unwrap().revision;
            }
            kill_process(daemon, Signal::CONT).unwrap();
        }
    }
}

#[test]
fn a_mounted_filesystem_grows_with_the_targets_of_its_mirror() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let writer = Writer::start(&mountpoint);
    let (before, volume_before) = (bytes(&mountpoint), host.volume_bytes());
    let text = host.gabion(&["volume", "grow", "tank"]).succeeded();
    assert!(text.contains("no member has become longer"), "{text}");
    stage.lengthen("a.img");
    host.gabion(&["volume", "grow", "tank"]).succeeded();
    assert_eq!(host.volume_bytes(), volume_before, "the other one is as short as before");
    stage.lengthen("b.img");
    let text = host.gabion(&["volume", "grow", "tank", "-r"]).succeeded();
    assert!(text.contains("the volume grew from 45 MiB to 109 MiB"), "{text}");
    assert!(text.contains("the filesystem grew"), "{text}");
    assert_eq!(host.volume_bytes(), volume_before + LONGER - SIZE);
    assert!(bytes(&mountpoint) > before + (50 << 20), "{before} {}", bytes(&mountpoint));
    fs::write(mountpoint.join("large"), vec![9; 70 << 20]).unwrap();
    writer.await_more(5);
    let written = writer.finish();
    host.gabion(&["scrub", "mnt"]).succeeded();
    assert_eq!(host.copies(), ["in-sync", "in-sync"], "nobody was given up for it");
    host.unmount_equal();
    host.mount();
    written.check();
    assert_eq!(fs::read(mountpoint.join("large")).unwrap(), vec![9; 70 << 20]);
    host.unmount();
}

#[test]
fn a_mirror_is_appended_to_a_mounted_volume() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_targets, c) = (stage.mirror(), stage.target("c"));
    let (d, host) = (stage.disk("d.img"), stage.host());
    let mountpoint = host.mount();
    let writer = Writer::start(&mountpoint);
    let before = bytes(&mountpoint);
    let part = format!("mirror({},{})", c.uri, d.display());
    let grow = ["volume", "grow", "tank", &part, "--equal", "--resizefs"];
    host.gabion(&grow).succeeded();
    assert!(bytes(&mountpoint) > before + (40 << 20), "{before} {}", bytes(&mountpoint));
    host.gabion(&grow).failed(1, &["is a member of volume tank already"]);
    fs::write(mountpoint.join("large"), vec![9; 70 << 20]).unwrap();
    // Its copies are looked after as all others are.
    c.kill();
    host.await_event_that("member-stale", |event| {
        event["member"].as_str().unwrap().contains("c.sock")
    });
    writer.await_more(5);
    let _c = stage.target("c");
    host.await_event("volume-whole");
    writer.finish().check();
    host.unmount();
    host.mount();
    assert_eq!(fs::read(mountpoint.join("large")).unwrap(), vec![9; 70 << 20]);
    host.gabion(&["scrub", "mnt"]).succeeded();
    host.unmount();
}

#[test]
fn a_volume_whose_daemon_is_killed_before_it_grew_grows_when_it_is_mounted_again() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let before = host.volume_bytes();
    let writer = Writer::start(&mountpoint);
    writer.await_more(5);
    stage.lengthen("a.img");
    stage.lengthen("b.img");
    let (daemon, mut grow) = host.wish(&[]);
    kill_process(daemon, Signal::KILL).unwrap();
    let written = writer.finish_in_failure();
    host.mount();
    assert!(grow.0.wait().unwrap().success());
    written.check();
    host.await_copies(&["in-sync", "in-sync"]);
    assert_eq!(host.volume_bytes(), before + LONGER - SIZE);
    let text = host.gabion(&["grow", "mnt"]).succeeded();
    assert!(text.contains("the filesystem grew"), "{text}");
    host.unmount_equal();
}

#[test]
fn a_volume_that_nobody_uses_grows_by_the_command_itself() {
    let stage = Stage::new();
    let (_targets, c) = (stage.mirror(), stage.target("c"));
    let host = stage.host();
    let before = host.volume_bytes();
    stage.lengthen("a.img");
    stage.lengthen("b.img");
    let text = host.gabion(&["volume", "grow", "tank", &c.uri, "-r"]).succeeded();
    assert!(text.contains("the filesystem grew"), "{text}");
    let text = host.gabion(&["volume", "grow", "tank"]).succeeded();
    assert!(text.contains("no member has become longer"), "a part lies behind them: {text}");
    assert_eq!(host.volume_bytes(), before + SIZE - (2 << 20));
    let volume = host.volume("tank");
    assert!(volume["holder"].is_null() && volume["grows-to"].is_null(), "{volume}");
    let text = host.gabion(&["grow", "tank"]).succeeded();
    assert!(text.contains("as before"), "{text}");
}

#[test]
fn a_part_that_the_user_of_the_volume_cannot_reach_is_told_and_tried_again() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_targets, host) = (stage.mirror(), stage.host());
    let mountpoint = host.mount();
    let before = host.volume_bytes();
    let c = stage.target("c");
    let uri = c.uri.clone();
    let (daemon, mut grow) = host.wish(&[&uri]);
    c.kill();
    kill_process(daemon, Signal::CONT).unwrap();
    host.await_event("volume-not-grown");
    fs::write(mountpoint.join("file"), "goes on").unwrap();
    assert_eq!(host.volume_bytes(), before);
    let _c = stage.target("c");
    assert!(grow.0.wait().unwrap().success());
    assert!(host.volume_bytes() > before, "it was tried again");
    host.unmount();
}

#[test]
fn copies_of_inner_mirrors_come_and_go_while_the_volume_is_mounted() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = ["a", "b", "c", "d", "e", "f"].map(|name| stage.target(name));
    let [a, b, c, d, e, f] = ["a", "b", "c", "d", "e", "f"].map(|name| stage.uri(name));
    let host = stage.host();
    let parts = [format!("mirror({a},{b})"), format!("mirror({c},{d})")];
    let create = ["volume", "create", "tank", "--equal", "--stripe", &parts[0], &parts[1]];
    host.gabion(&create).succeeded();
    host.gabion(&["mkfs", "tank"]).succeeded();
    let writer = Writer::start(&host.mount());
    let volume = |arguments: &[&str]| host.gabion(&[&["volume"], arguments].concat());
    volume(&["add", "tank", &e]).failed(2, &["has 2 mirrors", "--beside"]);
    volume(&["add", "tank", &e, "--beside", &c]).succeeded();
    host.await_mirrors(&[&["in-sync", "in-sync"], &["in-sync", "in-sync", "in-sync"]]);
    writer.await_more(3);
    volume(&["remove", "tank", &c]).succeeded();
    host.await_mirrors(&[&["in-sync", "in-sync"], &["removed", "in-sync", "in-sync"]]);
    volume(&["replace", "tank", &a, &f]).succeeded();
    host.await_mirrors(&[&["removed", "in-sync", "in-sync"], &["removed", "in-sync", "in-sync"]]);
    volume(&["remove", "tank", &b]).succeeded();
    host.await_mirrors(&[&["removed", "removed", "in-sync"], &["removed", "in-sync", "in-sync"]]);
    volume(&["remove", "tank", &f]).failed(1, &["last copy of its mirror"]);
    writer.await_more(3);
    let written = writer.finish();
    host.unmount();
    stage.assert_equal("d.img", "e.img", HEADERS);
    host.mount();
    written.check();
    host.unmount();
}
