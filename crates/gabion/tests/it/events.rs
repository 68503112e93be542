//! `gabion events`, and the document that lists all events.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gabion_base::event::{Event, FilesystemEvent, MemberEvent, Sink, VolumeEvent};
use gabion_host::events::Publisher;
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Folder, GABION, Outcome, Running, rest};

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn degraded(working: u64) -> Event {
    let event = VolumeEvent::Degraded { working, members: 2 };
    Event::Volume { volume: "tank".to_owned(), event }
}

fn whole() -> Event {
    let event = VolumeEvent::Whole { members: 2 };
    Event::Volume { volume: "tank".to_owned(), event }
}

fn state(folder: &Folder) -> PathBuf {
    folder.join("state")
}

fn publisher(folder: &Folder) -> Publisher {
    Publisher::start(&state(folder).join("events"), "gabion test").unwrap()
}

fn command(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(GABION);
    command.arg("events").args(arguments).env("GABION_STATE", state(folder)).env("TZ", "UTC");
    command
}

fn events(folder: &Folder, arguments: &[&str]) -> Outcome {
    folder.run(&mut command(folder, arguments))
}

fn numbers(lines: &str) -> Vec<u64> {
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.map(|value| value["sequence"].as_u64().unwrap()).collect()
}

#[test]
fn events_are_told_with_what_they_mean_and_what_to_do() {
    let folder = Folder::new();
    assert_eq!(events(&folder, &[]).succeeded(), "");
    let publisher = publisher(&folder);
    publisher.publish(degraded(1));
    publisher.publish(whole());
    drop(publisher);
    let text = events(&folder, &[]).succeeded();
    let lines: Vec<_> = text.lines().map(|line| line[19..].trim()).collect();
    let wanted = [
        "warning   volume tank: 1 of 2 members are in sync",
        "All data is there, with fewer copies.",
        "See to the members that are missing; they catch up by themselves.",
        "note      volume tank: all 2 members are in sync",
    ];
    assert_eq!(lines, wanted, "{text}");
    let json = events(&folder, &["--json"]).succeeded();
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    for (key, value) in [
        ("event", "volume-degraded"),
        ("severity", "warning"),
        ("object", "volume tank"),
        ("volume", "tank"),
        ("program", "gabion test"),
    ] {
        assert_eq!(first[key], value, "{first}");
    }
    assert_eq!(first["working"], 1);
    assert!(first["time"].as_str().unwrap().ends_with('Z'), "{first}");
}

#[test]
fn events_begin_where_they_are_asked_to() {
    let folder = Folder::new();
    let publisher = publisher(&folder);
    (0..5).for_each(|working| publisher.publish(degraded(working)));
    drop(publisher);
    let since = |text: &str| numbers(&events(&folder, &["--json", "--since", text]).succeeded());
    assert_eq!(since("4"), [4, 5]);
    assert_eq!(since("1h"), [1, 2, 3, 4, 5]);
    assert_eq!(since("9999-01-01"), [0; 0]);
    events(&folder, &["--since", "yesterday"]).failed(2, &["--since", "a span like 2h"]);
}

#[test]
fn events_are_followed_until_ctrl_c() {
    let folder = Folder::new();
    let publisher = publisher(&folder);
    publisher.publish(degraded(1));
    let follow = ["--follow", "--json", "--since", "1"];
    let child = command(&folder, &follow).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut next = || numbers(&lines.next().unwrap().unwrap());
    assert_eq!(next(), [1]);
    for number in 2..10 {
        publisher.publish(degraded(1));
        assert_eq!(next(), [number]);
    }
    running.signal(Signal::INT);
    assert!(running.0.wait().unwrap().success());
    assert!(lines.next().is_none());
}

#[test]
fn a_follower_ends_when_nobody_reads_any_more() {
    let folder = Folder::new();
    let publisher = publisher(&folder);
    publisher.publish(degraded(1));
    let follow = ["--follow", "--json", "--since", "1"];
    let child = command(&folder, &follow).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    publisher.publish(degraded(1));
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn a_filesystem_that_cannot_write_any_more_is_an_event() {
    let Some(folder) = Folder::for_mounts() else { return };
    for name in ["small", "mnt"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    // A sparse image can grow beyond what is below it.
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=24M", "small"]).arg(folder.join("small"));
    folder.run(&mut mount).succeeded();
    folder.gabion(&["mkfs", "--size", "64M", "small/disk.img"]).succeeded();
    folder.gabion(&["mount", "-o", "commit=1", "small/disk.img", "mnt"]).succeeded();
    let file = File::create(folder.join("mnt/file")).unwrap();
    file.write_all_at(&vec![1; 32 << 20], 0).unwrap();
    file.sync_all().unwrap_err();
    // Bytes that cannot be written are tried again; what describes the files is not.
    drop(file);
    std::fs::remove_file(folder.join("mnt/file")).unwrap();
    let told = || events(&folder, &["--json"]).succeeded();
    let began = Instant::now();
    while !told().contains("filesystem-stopped-writing") {
        assert!(began.elapsed() < PATIENCE, "{}", told());
        // Something that a commit has to write.
        let _ = File::create(folder.join("mnt/other"));
        rest();
    }
    assert!(folder.status("mnt")["problem"].is_string());
    folder.gabion(&["umount", "mnt"]).failed(1, &["not all of it could be written"]);
    assert_eq!(told().matches("filesystem-stopped-writing").count(), 1);
}

#[test]
fn an_image_that_has_outgrown_its_disk_is_told_of_and_goes_on_when_there_is_room() {
    let Some(folder) = Folder::for_mounts() else { return };
    for name in ["small", "mnt"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let below = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "small"]).arg(folder.join("small"));
        folder.run(&mut mount).succeeded();
    };
    below("size=24M");
    let bytes: Vec<u8> = (0..32 << 20).map(|at: u32| (at >> 12) as u8).collect();
    folder.gabion(&["mkfs", "--size", "64M", "small/disk.img"]).succeeded();
    // It is the bytes that find no room: no commit begins while they are being written.
    folder.gabion(&["mount", "-o", "commit=4", "small/disk.img", "mnt"]).succeeded();
    let file = File::create(folder.join("mnt/file")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap_err();
    let told = || events(&folder, &["--json"]).succeeded();
    let await_event = |name: &str| {
        let began = Instant::now();
        while !told().contains(name) {
            assert!(began.elapsed() < PATIENCE, "{}", told());
            rest();
        }
    };
    await_event("filesystem-writes-refused");
    let status = folder.status("mnt");
    assert!(status["problem"].as_str().unwrap().contains("No space left"), "{status:#}");
    assert_eq!(status["tried_again"], true);
    let text = folder.gabion(&["status", "mnt"]).succeeded();
    assert!(text.contains("CANNOT WRITE AT PRESENT"), "{text}");
    below("remount,size=80M");
    await_event("filesystem-writes-again");
    assert_eq!(folder.status("mnt")["problem"], Value::Null);
    assert_eq!(told().matches("filesystem-writes-refused").count(), 1);
    file.sync_all().unwrap();
    drop(file);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["mount", "small/disk.img", "mnt"]).succeeded();
    assert!(std::fs::read(folder.join("mnt/file")).unwrap() == bytes, "it is not what was written");
}

#[test]
fn what_happens_elsewhere_is_not_shown() {
    let (folder, other) = (Folder::new(), Folder::new());
    let publishers = [publisher(&folder), publisher(&other)];
    let event = FilesystemEvent::StoppedWriting { reason: "the disk is gone".to_owned() };
    publishers[1].publish(Event::Filesystem { filesystem: "/mnt".to_owned(), event });
    let event = MemberEvent::Stale { reason: "no answer".to_owned() };
    let (volume, member) = ("tank".to_owned(), "b".to_owned());
    publishers[0].publish(Event::Member { volume, member, event });
    drop(publishers);
    let text = events(&folder, &[]).succeeded();
    assert!(text.contains("member b of volume tank: stale: no answer"), "{text}");
    assert!(!text.contains("/mnt"), "{text}");
}

/// The table as it is to stand in the document.
fn table() -> String {
    let mut table =
        String::from("| event | severity | tells | means | to do |\n|---|---|---|---|---|\n");
    for event in Event::examples() {
        let (name, severity) = (event.name(), event.severity());
        let (meaning, next) = (event.meaning(), event.next_step());
        let told = event.to_string().replace('<', "\\<");
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {severity} | {told} | {meaning} | {next} |");
    }
    table
}

/// To write the table anew: run this test with `GABION_REWRITE` set.
#[test]
fn the_document_lists_all_events() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/events.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let start = document.find("| event |").expect("there is a table");
    let end = document[start..].find("\n\n").map_or(document.len(), |end| start + end + 1);
    let wanted = format!("{}{}{}", &document[..start], table(), &document[end..]);
    if std::env::var_os("GABION_REWRITE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(document == wanted, "docs/events.md lacks something; wanted:\n{}", table());
    }
}
