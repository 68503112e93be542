//! Backups in an object store.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bucket::{Store, names};
use super::killed::kill_when;
use super::trees::{assert_same, noise, survey};
use super::{mount, planted, snapshots};
use crate::world::Folder;

const PLACE: &str = "s3://shelf/backups/home";

fn rows(store: &Store, folder: &Folder) -> Vec<Value> {
    let text = store.gabion(folder, &["backups", "--json", PLACE]).succeeded();
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

fn path_of(row: &Value) -> String {
    row["path"].as_str().unwrap().to_owned()
}

/// The folder of files that a stream's objects are.
fn files_of(store: &Store, row: &Value) -> PathBuf {
    store.file(path_of(row).strip_prefix("s3://shelf/").unwrap())
}

#[test]
fn a_bucket_keeps_a_chain_of_backups_that_restores_each_of_its_moments() {
    let Some(folder) = planted() else { return };
    let store = Store::start(&folder);
    let mnt = folder.join("mnt");
    let first = survey(&mnt);
    // The first is of everything, whatever is said.
    let text = store.gabion(&folder, &["backup", "--incremental", "mnt", PLACE]).succeeded();
    assert!(text.contains(PLACE), "{text}");
    let listings = &store.troubles.listings;
    assert_eq!(listings.swap(0, Ordering::Relaxed), 1, "a place may have many names");
    fs::rename(mnt.join("dir"), mnt.join("moved")).unwrap();
    File::options().write(true).open(mnt.join("large")).unwrap().write_all_at(&[1; 9], 77).unwrap();
    store.gabion(&folder, &["backup", "--incremental", "mnt", PLACE]).succeeded();
    assert_eq!(listings.load(Ordering::Relaxed), 1);
    let second = survey(&mnt);
    assert!(snapshots(&folder, "mnt").iter().all(|(_, held)| *held));

    let rows = rows(&store, &folder);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["complete"] == true), "{rows:?}");
    assert_eq!(rows[1]["base"], rows[0]["stream"]);
    let text = store.gabion(&folder, &["verify", PLACE]).succeeded();
    assert_eq!(text.lines().count(), 2, "{text}");
    for (row, wanted) in rows.iter().zip([&first, &second]) {
        let by_name = path_of(row);
        let restore = ["restore", "--to-directory", &by_name, "tree"];
        store.gabion(&folder, &restore).succeeded();
        assert_same(wanted, &folder.join("tree"));
        fs::remove_dir_all(folder.join("tree")).unwrap();
    }
    let one = ["restore", "--to-directory", "--only", "moved/its other name", PLACE, "one"];
    store.gabion(&folder, &one).succeeded();
    assert_eq!(fs::read(folder.join("one")).unwrap(), b"once");
    // A name of one's own, which can be had once. What is stored is a stream in parts.
    let own = "s3://shelf/own.gabion";
    store.gabion(&folder, &["backup", "mnt", own]).succeeded();
    store.gabion(&folder, &["backup", "mnt", own]).failed(1, &[own, "is there already"]);
    let files = store.file("own.gabion");
    assert_eq!(names(&files), ["00000000", "whole"]);
    fs::copy(files.join("00000000"), folder.join("as a file")).unwrap();
    folder.gabion(&["verify", "as a file"]).succeeded();
    store.gabion(&folder, &["verify", "s3://shelf/other.gabion"]).failed(1, &["no backup"]);
}

/// Starts a backup that does not get through, and kills it when so many parts are there.
fn kill_at(store: &Store, folder: &Folder, arguments: &[&str], parts: usize) {
    let home = store.file("backups/home");
    let there = || names(&home).iter().map(|name| names(&home.join(name)).len()).sum::<usize>();
    kill_when(&mut store.command(folder, arguments), || there() >= parts);
}

#[test]
fn a_backup_to_a_bucket_that_was_killed_goes_on_where_it_was() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    fs::write(mnt.join("large"), noise(2, 45 << 20)).unwrap();
    fs::write(mnt.join("small"), "small").unwrap();
    let wanted = survey(&mnt);
    let store = Store::start(&folder);
    fs::write(folder.join("key"), noise(4, 32)).unwrap();
    let backup = ["backup", "--key-file", "key", "mnt", PLACE];
    store.troubles.held.store(2, Ordering::Relaxed);
    kill_at(&store, &folder, &backup, 2);
    store.troubles.held.store(0, Ordering::Relaxed);
    let row = &rows(&store, &folder)[0];
    assert_eq!(row["complete"], false);
    let files = files_of(&store, row);
    // What was begun is nothing to restore from.
    let restore = ["restore", "--to-directory", "--key-file", "key", PLACE, "tree"];
    store.gabion(&folder, &restore).failed(1, &["there is no complete backup"]);
    fs::write(mnt.join("small"), "other bytes").unwrap();
    // A part that came before one that did not: it is sent once more, and so is what follows a
    // place where nobody goes on.
    let before = fs::read(files.join("00000000")).unwrap();
    fs::write(files.join("00000007"), "from somebody who was late").unwrap();
    let cut = File::options().write(true).open(files.join("00000001")).unwrap();
    cut.set_len(3 << 20).unwrap();
    let text = store.gabion(&folder, &backup).succeeded();
    assert!(text.contains("went on saving"), "{text}");
    assert_eq!(fs::read(files.join("00000000")).unwrap(), before, "it is not sent again");
    assert!(!files.join("00000007").exists());
    store.gabion(&folder, &["verify", "--key-file", "key", PLACE]).succeeded();
    store.gabion(&folder, &restore).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    assert_eq!(snapshots(&folder, "mnt").len(), 1);
    // Who writes a stream that another one goes on with finds that out, and does not say that it
    // is whole.
    let other = "s3://shelf/backups/home/other.gabion";
    store.troubles.rival.store(1, Ordering::Relaxed);
    let told = store.gabion(&folder, &["backup", "mnt", other]);
    told.failed(1, &["other.gabion/00000001", "another backup goes on", "run it again"]);
    assert!(!store.file("backups/home/other.gabion/whole").exists());
}

#[test]
fn damaged_objects_are_refused_with_the_place() {
    let Some(folder) = planted() else { return };
    let store = Store::start(&folder);
    store.gabion(&folder, &["backup", "mnt", PLACE]).succeeded();
    let row = &rows(&store, &folder)[0];
    let (path, files) = (path_of(row), files_of(&store, row));
    let part = files.join("00000000");
    let good = fs::read(&part).unwrap();
    let restore = ["restore", "--to-directory", PLACE, "tree"];
    let check = |code: i32, parts: &[&str]| {
        store.gabion(&folder, &["verify", PLACE]).failed(code, parts);
        store.gabion(&folder, &restore).failed(1, parts);
        assert!(!folder.join("tree").exists(), "nothing half restored looks whole");
    };
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&part, &bad).unwrap();
    check(4, &[&path, "damaged at byte", "segment"]);
    fs::write(&part, &good[..good.len() / 3]).unwrap();
    let should = format!("should have {}", good.len());
    for arguments in [&["verify", PLACE][..], &restore] {
        let part = format!("{path}/00000000");
        store.gabion(&folder, arguments).failed(1, &[&part, &should, "not what was stored"]);
    }
    assert!(!folder.join("tree").exists());
    fs::remove_file(&part).unwrap();
    store.gabion(&folder, &["verify", &path]).failed(1, &["00000000", "not there any more"]);
    fs::write(&part, &good).unwrap();
    store.gabion(&folder, &["verify", PLACE]).succeeded();
    let whole = files.join("whole");
    let mut bad = fs::read(&whole).unwrap();
    bad[33] ^= 1;
    fs::write(&whole, bad).unwrap();
    store.gabion(&folder, &["verify", &path]).failed(1, &["whole", "another checksum"]);
}

#[test]
fn what_a_store_refuses_is_told_with_what_can_be_done() {
    let folder = Folder::new();
    let store = Store::start(&folder);
    folder.image();
    let backup = ["backup", "disk.img", PLACE];
    let with = |name: &str, value: &str| {
        let mut command = store.command(&folder, &backup);
        folder.run(command.env(name, value))
    };
    with("AWS_ACCESS_KEY_ID", "AKIDOTHER").failed(1, &["access key", "AWS_ACCESS_KEY_ID"]);
    with("AWS_SECRET_ACCESS_KEY", "wrong").failed(1, &["secret key", "AWS_SECRET_ACCESS_KEY"]);
    with("AWS_MAX_ATTEMPTS", "none").failed(2, &["AWS_MAX_ATTEMPTS"]);
    let mut command = store.command(&folder, &backup);
    let without = command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    folder.run(without).failed(1, &["there are no keys", "AWS_ACCESS_KEY_ID"]);
    let missing = ["backup", "disk.img", "s3://nowhere/backups"];
    store.gabion(&folder, &missing).failed(1, &["there is no bucket nowhere", "AWS_ENDPOINT_URL"]);
    store.gabion(&folder, &["backup", "disk.img", "s3:///x"]).failed(1, &["there is no bucket"]);
    store.troubles.is_skewed.store(true, Ordering::Relaxed);
    store.gabion(&folder, &backup).failed(1, &["clock is wrong"]);
    store.troubles.is_skewed.store(false, Ordering::Relaxed);
    assert!(names(&store.file("backups")).is_empty(), "nothing is left of what did not begin");
    assert!(snapshots(&folder, "disk.img").is_empty());
    // A store that is busy for a moment is asked again; one that stays busy is not asked for ever.
    store.troubles.busy.store(3, Ordering::Relaxed);
    store.gabion(&folder, &backup).succeeded();
    assert_eq!(store.troubles.busy.load(Ordering::Relaxed), 0);
    store.troubles.busy.store(1000, Ordering::Relaxed);
    with("AWS_MAX_ATTEMPTS", "2").failed(1, &["too busy", "try again"]);
    store.troubles.busy.store(0, Ordering::Relaxed);
    store.troubles.is_gone.store(true, Ordering::Relaxed);
    with("AWS_MAX_ATTEMPTS", "2").failed(1, &["cannot list", "AWS_ENDPOINT_URL", "try again"]);
}

#[test]
fn a_backup_goes_on_when_the_network_has_come_back() {
    let Some(folder) = Folder::for_mounts() else { return };
    let store = Store::start(&folder);
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    fs::write(mnt.join("large"), noise(2, 40 << 20)).unwrap();
    let wanted = survey(&mnt);
    let backup = ["backup", "mnt", PLACE];
    store.troubles.held.store(1, Ordering::Relaxed);
    let mut command = store.command(&folder, &backup);
    let command = command.env("AWS_MAX_ATTEMPTS", "2").stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while names(&store.file("backups/home")).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    store.troubles.is_gone.store(true, Ordering::Relaxed);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot store") && told.contains("run it again to go on"), "{told}");
    store.troubles.is_gone.store(false, Ordering::Relaxed);
    store.troubles.held.store(0, Ordering::Relaxed);
    let text = store.gabion(&folder, &backup).succeeded();
    assert!(text.contains("went on saving"), "{text}");
    store.gabion(&folder, &["restore", "--to-directory", PLACE, "tree"]).succeeded();
    assert_same(&wanted, &folder.join("tree"));
}
