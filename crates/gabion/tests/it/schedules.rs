//! Snapshots that are made by themselves, as users meet them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{Folder, Running, names};

/// How long a daemon may take to make what is due.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until so many snapshots are there, as the kernel sees it.
#[track_caller]
fn await_count(dir: &Path, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let found = names(dir);
        if found.len() == count {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{found:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mount_makes_the_snapshots_of_its_schedules() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let all = mnt.join(".snapshots");
    assert_eq!(names(&all), [""; 0]);
    let schedule = |words: &[&str]| folder.gabion(&[&["snapshot", "schedule"], words].concat());
    let text = schedule(&["mnt"]).succeeded();
    assert!(text.contains("no snapshots are made by themselves"), "{text}");
    let text = schedule(&["mnt", "daily=7", "weekly=4"]).succeeded();
    assert!(text.ends_with("daily=7 weekly=4\n"), "{text}");
    let made = await_count(&all, 2);
    assert!(made[0].starts_with("daily-20") && made[0].ends_with("T00:00Z"), "{made:?}");
    assert!(made[1].starts_with("weekly-20"), "{made:?}");
    fs::metadata(all.join(&made[0])).unwrap();
    // A subvolume has one of its own.
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    schedule(&["mnt/home", "monthly=1"]).succeeded();
    let made = await_count(&mnt.join("home/.snapshots"), 1);
    assert!(made[0].starts_with("monthly-20") && made[0].contains("-01T00:00Z"), "{made:?}");
    schedule(&["mnt/home", "none"]).succeeded();
    schedule(&["mnt", "yearly=3"]).failed(2, &["yearly"]);
    schedule(&["mnt", "none", "daily=3"]).failed(2, &["none goes with no other class"]);
    folder.gabion(&["umount", "mnt"]).succeeded();
    // What is not in use can be asked, and told, too; the next mount does it.
    let text = schedule(&["disk.img", "--json"]).succeeded();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&told["daily"], &told["weekly"], &told["hourly"]),
        (&7.into(), &4.into(), &0.into())
    );
    schedule(&["disk.img", "monthly=2"]).succeeded();
    folder.mount("");
    await_count(&all, 3);
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

/// The kernel has it, and would keep it for half a minute.
#[test]
fn a_snapshot_of_a_schedule_has_what_programs_had_written_before() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("writeback");
    // Nobody else has it open: to close it would hand it over.
    let script = "import sys\nfile = open('mnt/file', 'wb', 0)\nfile.write(b'7' * 2**20)\n\
                  print(flush=True)\nsys.stdin.read()";
    let mut python = Command::new("python3");
    python.args(["-c", script]).current_dir(folder.path());
    let child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut writer = Running(child);
    writer.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    folder.gabion(&["snapshot", "schedule", "mnt", "daily=7"]).succeeded();
    let all = mnt.join(".snapshots");
    let made = await_count(&all, 1);
    let found = fs::read(all.join(&made[0]).join("file")).unwrap();
    assert!(found == vec![b'7'; 1 << 20], "{} bytes", found.len());
    drop(writer);
    folder.gabion(&["umount", "mnt"]).succeeded();
}
