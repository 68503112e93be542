//! Subvolumes, clones, quotas and schedules of what nobody has in use.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use gabion_host::file_disk::{FileDisk, OpenMode};
use serde_json::Value;

use crate::served_snapshots::Site;
use crate::volumes::stage::Stage;
use crate::world::{Folder, names};

/// How long a client may go on from what it knows.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command line in the folder, and looks at the map of blocks in use after it.
#[track_caller]
fn run(folder: &Folder, command: &str) -> String {
    let done = folder.gabion(&words(command)).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    done
}

#[track_caller]
fn fails(folder: &Folder, command: &str, parts: &[&str]) {
    folder.gabion(&words(command)).failed(1, parts);
}

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

#[test]
fn subvolumes_of_an_image_are_made_cloned_moved_limited_and_removed() {
    let folder = Folder::new();
    folder.image();
    let run = |command: &str| run(&folder, command);
    let text = run("subvolume create disk.img:/home");
    assert_eq!(text, "disk.img:/home: made a subvolume\n");
    run("subvolume create disk.img:/home/ann");
    run("snapshot create disk.img:/home one");
    run("snapshot create disk.img one");
    run("clone disk.img:/home/.snapshots/one disk.img:/shelf");
    run("clone disk.img:/.snapshots/one disk.img:/home/all");
    run("subvolume rename disk.img:/home/all disk.img:/shelf/all");
    let text = run("subvolume list disk.img");
    let paths: Vec<&str> =
        text.lines().map(|line| line.trim().rsplit("  ").next().unwrap()).collect();
    assert_eq!(paths, ["/home", "/home/ann", "/shelf", "/shelf/all"]);
    let text = run("quota set disk.img:/shelf 6M --objects 9");
    assert!(text.starts_with("disk.img: /shelf: 4 KiB of 6 MiB, 1 of 9 objects"), "{text}");
    assert!(run("quota list disk.img").contains("/shelf"));
    run("snapshot schedule disk.img:/home daily=7");
    let told: Value =
        serde_json::from_str(&run("snapshot schedule disk.img:/home --json")).unwrap();
    assert_eq!(told["daily"], 7);
    assert!(run("snapshot schedule disk.img").contains("no snapshots are made by themselves"));
    // What cannot be removed is still there.
    fails(&folder, "snapshot delete --yes disk.img:/home one", &["one", "clones"]);
    fails(&folder, "subvolume delete disk.img:/shelf --yes", &["another subvolume"]);
    folder.gabion(&["subvolume", "delete", "disk.img:/home"]).failed(2, &["--yes"]);
    assert_eq!(run("subvolume list disk.img").lines().count(), 4);
    for path in ["shelf/all", "shelf", "home/ann", "home"] {
        run(&format!("subvolume delete disk.img:/{path} --yes"));
    }
    assert_eq!(run("subvolume list disk.img"), "");
    assert_eq!(run("snapshot list disk.img").lines().count(), 1);
}

#[test]
fn what_is_done_to_an_image_is_there_when_it_is_mounted() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let run = |command: &str| folder.gabion(&words(command)).succeeded();
    let mnt = folder.mount("");
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("dir/file"), vec![1; 5 << 20]).unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    run("snapshot create disk.img one");
    let used = folder.status("disk.img")["used_bytes"].as_u64().unwrap();
    run("clone disk.img:/.snapshots/one disk.img:/dir/clone");
    let more = folder.status("disk.img")["used_bytes"].as_u64().unwrap() - used;
    assert!(more < 1 << 20, "a clone shares what it has: {more}");
    run("subvolume create disk.img:/dir/home");
    run("scrub --allocation disk.img");
    folder.mount("");
    assert_eq!(names(&mnt.join("dir")), ["clone", "file", "home"]);
    assert_eq!(fs::read(mnt.join("dir/clone/dir/file")).unwrap(), vec![1; 5 << 20]);
    fs::write(mnt.join("dir/home/letter"), "dear").unwrap();
    // In use its daemon does it, also by the name of the image.
    run("snapshot create disk.img:/dir/home two");
    run("clone disk.img:/dir/home/.snapshots/two mnt/again");
    assert_eq!(fs::read(mnt.join("again/letter")).unwrap(), b"dear");
    run("quota set disk.img:/again 1M");
    assert!(run("quota list mnt").contains("/again"));
    run("subvolume rename disk.img:/again disk.img:/dir/again");
    assert!(!mnt.join("again").exists());
    fs::create_dir(folder.join("backups")).unwrap();
    run("backup disk.img:/dir/home backups");
    fs::write(mnt.join("dir/home/more"), "more").unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    run("backup --incremental disk.img:/dir/home backups");
    folder.gabion(&["restore", "--to-directory", "backups", "restored"]).succeeded();
    assert_eq!(names(&folder.join("restored")), ["letter", "more"]);
    run("scrub --allocation disk.img");
}

#[test]
fn what_an_image_has_not_is_named_and_who_has_it_in_use() {
    let folder = Folder::new();
    let image = folder.image();
    let fails = |command: &str, parts: &[&str]| fails(&folder, command, parts);
    folder.gabion(&["subvolume", "create", "disk.img:/home"]).succeeded();
    fails("subvolume create disk.img:/home", &["disk.img: /home: the name exists"]);
    fails("subvolume create disk.img:/absent/home", &["/absent/home: no such file"]);
    fails("subvolume create disk.img:/home/../more", &["has \"..\" in it"]);
    fails("subvolume create disk.img", &["a whole filesystem", "TARGET:/PATH"]);
    fails("subvolume rename disk.img:/home disk.img:/home/in", &["stand in itself"]);
    fails("subvolume delete disk.img:/absent --yes", &["/absent: no such file"]);
    fails("snapshot create disk.img:/absent one", &["/absent", "no such file"]);
    fails("quota set disk.img:/absent 1G", &["/absent"]);
    fails("clone disk.img:/home disk.img:/shelf", &["/home to /shelf: it is no snapshot"]);
    fails("clone disk.img:/.snapshots/one disk.img:/shelf", &["/.snapshots/one: no such file"]);
    fails("subvolume list absent.img:/home", &["absent.img:/home is neither in a mounted"]);
    folder.gabion(&["mkfs", "--size", "64M", "other.img"]).succeeded();
    fails("subvolume rename disk.img:/home other.img:/home", &["not in one mount or image"]);
    // The longest name of a target that is there counts.
    fs::create_dir(folder.join("disk.img:")).unwrap();
    fs::rename(folder.join("other.img"), folder.join("disk.img:/other.img")).unwrap();
    folder.gabion(&["subvolume", "create", "disk.img:/other.img:/home"]).succeeded();
    let found = folder.gabion(&["subvolume", "list", "disk.img:/other.img"]).succeeded();
    assert!(found.ends_with("/home\n"), "{found}");
    let _held = FileDisk::open(&image, OpenMode::ReadWrite).unwrap();
    let me = format!("in use by process {}", std::process::id());
    for command in [
        "subvolume create disk.img:/more",
        "subvolume rename disk.img:/home disk.img:/more",
        "subvolume delete disk.img:/home --yes",
        "subvolume list disk.img",
        "clone disk.img:/.snapshots/one disk.img:/more",
        "snapshot schedule disk.img:/home daily=1",
        "quota set disk.img:/home 1G",
        "undelete disk.img:/home/file",
        "undelete --list disk.img:/home/file",
    ] {
        fails(command, &["cannot open disk.img", &me]);
    }
}

#[test]
fn who_had_it_from_a_server_sees_what_was_done_and_loses_nothing() {
    let Some(mut site) = Site::new() else { return };
    let mnt = site.mount("", "a");
    assert_eq!(names(&mnt), [""; 0]);
    // Nobody but this client has it by then.
    fs::write(mnt.join("file"), "kept").unwrap();
    site.restart_after(|folder| {
        run(folder, "subvolume create disk.img:/home");
    });
    let began = Instant::now();
    while names(&mnt) != ["file", "home"] {
        assert!(began.elapsed() < PATIENCE, "{:?}", names(&mnt));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fs::read(mnt.join("file")).unwrap(), b"kept");
    fs::write(mnt.join("home/letter"), "dear").unwrap();
    site.finish(&["a"]);
}

#[test]
fn what_a_volume_has_is_told_and_changed_without_a_mount() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.mirror_of_files();
    let host = stage.host();
    let run = |command: &str| host.gabion(&words(command)).succeeded();
    run("subvolume create tank:/home");
    run("snapshot create tank:/home one");
    run("clone tank:/home/.snapshots/one tank:/shelf");
    run("quota set tank:/shelf 6M");
    assert!(run("subvolume list tank").ends_with("/shelf\n"));
    host.gabion(&["subvolume", "create", "tank:/shelf"]).failed(1, &["tank", "exists"]);
    host.mount();
    run("scrub --allocation tank");
    assert!(run("quota list tank").contains("/shelf: 4 KiB of 6 MiB"));
    assert_eq!(names(&stage.path("mnt")), ["home", "shelf"]);
    host.unmount();
}
