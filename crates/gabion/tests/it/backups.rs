//! Backups and restorations of mounted filesystems and of images, as users meet them.

mod beside;
#[cfg(feature = "s3")]
mod bucket;
mod choosing;
mod elsewhere;
mod full;
mod killed;
#[cfg(feature = "s3")]
mod objects;
mod pipes;
mod random;
mod served;
pub mod shared_places;
mod together;
mod trees;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use self::trees::{assert_same, noise, plant, see, share, survey};
use crate::world::{Folder, GABION};

/// Pieces of files are shared by blocks of this size.
const BLOCK: usize = 4096;

/// Runs a program of the system.
#[track_caller]
fn run(folder: &Folder, program: &str, arguments: &[&str]) -> String {
    folder.run(Command::new(program).args(arguments)).succeeded()
}

/// Mounts `disk.img` at `mnt` so that the kernel keeps no times back: those that it has not told
/// are in no snapshot.
fn mount(folder: &Folder) -> PathBuf {
    folder.mount("writethrough")
}

/// A mount with some of everything, at `mnt`.
fn planted() -> Option<Folder> {
    let folder = Folder::for_mounts()?;
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    mount(&folder);
    plant(&folder, "mnt");
    share(&folder.join("mnt"));
    Some(folder)
}

/// Mounts a new filesystem at `other`.
fn other(folder: &Folder) -> PathBuf {
    let at = folder.join("other");
    fs::create_dir(&at).unwrap();
    folder.gabion(&["mkfs", "--size", "256M", "other.img"]).succeeded();
    folder.gabion(&["mount", "other.img", "other"]).succeeded();
    at
}

fn backups(folder: &Folder, from: &str) -> Vec<Value> {
    let text = folder.gabion(&["backups", "--json", from]).succeeded();
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

fn snapshots(folder: &Folder, subject: &str) -> Vec<(String, bool)> {
    let text = folder.gabion(&["snapshot", "list", "--json", subject]).succeeded();
    let value: Value = serde_json::from_str(&text).unwrap();
    let rows = value["snapshots"].as_array().unwrap().iter();
    let row =
        |row: &Value| (row["name"].as_str().unwrap().to_owned(), row["held"].as_bool().unwrap());
    rows.map(row).collect()
}

#[test]
fn a_restored_tree_is_equal_on_gabion_and_on_any_filesystem() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    let wanted = survey(&mnt);
    let text = folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    assert!(text.contains("full.gabion"), "{text}");
    // What comes later is in no backup.
    fs::write(mnt.join("later"), "later").unwrap();
    fs::remove_dir_all(mnt.join("dir")).unwrap();
    folder.gabion(&["verify", "full.gabion"]).succeeded();

    let at = other(&folder);
    folder.gabion(&["restore", "full.gabion", "other/tree"]).succeeded();
    assert_same(&wanted, &at.join("tree"));
    // The two files that share their blocks do so again.
    let used = folder.status("other")["used_bytes"].as_u64().unwrap();
    assert!(used < 2 * 3_000_000, "{used} bytes are in use");
    fs::rename(at.join("tree"), at.join("moved")).unwrap();
    folder.gabion(&["restore", "full.gabion", "other/moved"]).failed(1, &["is not empty"]);
    fs::remove_dir_all(at.join("moved")).unwrap();
    // Into a filesystem that is empty, as its root.
    folder.gabion(&["restore", "full.gabion", "other"]).succeeded();
    assert_same(&wanted, &at);
    folder.gabion(&["scrub", "--allocation", "other"]).succeeded();

    folder.gabion(&["restore", "full.gabion", "plain"]).failed(1, &["plain", "--to-directory"]);
    assert!(!folder.join("plain").exists());
    folder.gabion(&["restore", "--to-directory", "full.gabion", "plain"]).succeeded();
    let mut plain = survey(&folder.join("plain"));
    // A directory there has no blocks of its own to compare.
    assert_eq!(plain.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    plain.retain(|path, seen| wanted[path] != *seen);
    assert!(plain.is_empty(), "{plain:?}");
}

#[test]
fn what_is_restored_inherits_nothing_of_the_directory_that_it_goes_to() {
    let Some(folder) = planted() else { return };
    let wanted = survey(&folder.join("mnt"));
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let at = other(&folder);
    let gives = |name: &str| {
        run(&folder, "mkdir", &["-m", "2777", &format!("other/{name}")]);
        run(&folder, "chgrp", &["4711", &format!("other/{name}")]);
        run(&folder, "setfacl", &["-d", "-m", "u:77:rwx,g:78:rwx", &format!("other/{name}")]);
    };
    gives("beside");
    folder.gabion(&["restore", "full.gabion", "other/beside/tree"]).succeeded();
    assert_same(&wanted, &at.join("beside/tree"));
    gives("within");
    folder.gabion(&["restore", "full.gabion", "other/within"]).succeeded();
    assert_same(&wanted, &at.join("within"));
    folder.gabion(&["restore", "--only", "large", "full.gabion", "other/beside/one"]).succeeded();
    let see = |path: &Path| see(path, &mut BTreeMap::new(), Path::new("one"));
    assert_eq!(see(&at.join("beside/one")), see(&folder.join("mnt/large")));
}

#[test]
fn a_chain_of_differences_restores_each_of_its_moments() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    fs::create_dir(folder.join("store")).unwrap();
    // Of what went there before nobody knows.
    let nothing = "no backup of";
    folder.gabion(&["backup", "--incremental", "mnt", "-"]).failed(1, &[nothing]);
    let save = |incremental: bool| {
        let option: &[&str] = if incremental { &["--incremental"] } else { &[] };
        folder.gabion(&[&["backup", "mnt", "store"], option].concat()).succeeded();
        survey(&mnt)
    };
    // The first is of everything, whatever is said.
    let mut moments = vec![save(true)];
    assert_eq!(backups(&folder, "store")[0]["base"], Value::Null);
    // Some blocks in the middle, a hole where bytes were, and a longer and a shorter file.
    let large = File::options().write(true).open(mnt.join("large")).unwrap();
    large.write_all_at(&noise(5, 3 * BLOCK), 40 * BLOCK as u64).unwrap();
    run(&folder, "fallocate", &["-p", "-o", "409600", "-l", "81920", "mnt/large"]);
    File::options().append(true).open(mnt.join("shared")).unwrap().write_all(&[3; 10]).unwrap();
    File::options().write(true).open(mnt.join("sparse")).unwrap().set_len(6000).unwrap();
    moments.push(save(true));
    let rows = backups(&folder, "store");
    assert!(rows[1]["bytes"].as_u64().unwrap() < 100_000, "{rows:?}");
    // Names: exchanged, moved, removed, made again as something else.
    fs::rename(mnt.join("dir/below"), mnt.join("above")).unwrap();
    fs::rename(mnt.join("linked"), mnt.join("above/linked")).unwrap();
    fs::remove_file(mnt.join("dir/its other name")).unwrap();
    fs::remove_file(mnt.join("dangling")).unwrap();
    fs::create_dir(mnt.join("dangling")).unwrap();
    fs::write(mnt.join("dangling/new"), noise(6, 10_000)).unwrap();
    fs::hard_link(mnt.join("dangling/new"), mnt.join("new too")).unwrap();
    run(&folder, "setfattr", &["-x", "user.key", "mnt/large"]);
    fs::set_permissions(mnt.join("fifo"), fs::Permissions::from_mode(0o640)).unwrap();
    moments.push(save(true));
    // And nothing at all.
    moments.push(save(true));
    // Files grow through holes, and a directory with all below it goes.
    File::options().write(true).open(mnt.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    fs::remove_dir_all(mnt.join("above")).unwrap();
    moments.push(save(true));

    let held = snapshots(&folder, "mnt");
    assert!(held.len() == 1 && held[0].1, "only the last one is kept: {held:?}");
    folder.gabion(&["verify", "store"]).succeeded();
    other(&folder);
    let rows = backups(&folder, "store");
    assert_eq!(rows.len(), moments.len());
    for (row, wanted) in rows.iter().zip(&moments) {
        let at = &row["stream"].as_str().unwrap()[..8];
        let to = format!("other/{at}");
        folder.gabion(&["restore", "--at", at, "store", &to]).succeeded();
        assert_same(wanted, &folder.join(&to));
        fs::remove_dir_all(folder.join(&to)).unwrap();
    }
    // By the name of a file, too.
    let path = rows[2]["path"].as_str().unwrap();
    folder.gabion(&["restore", path, "other/third"]).succeeded();
    assert_same(&moments[2], &folder.join("other/third"));
    folder.gabion(&["restore", "--only", "dangling/new", "store", "other/one"]).succeeded();
    assert_eq!(fs::read(folder.join("other/one")).unwrap(), noise(6, 10_000));
    let missing = ["restore", "--only", "dangling/old", "store", "other/two"];
    folder.gabion(&missing).failed(1, &["the backup has no dangling/old"]);
    // Without one in the middle, what comes later cannot be restored, and says which is missing.
    fs::remove_file(folder.join(rows[2]["path"].as_str().unwrap())).unwrap();
    let id = rows[2]["stream"].as_str().unwrap();
    folder.gabion(&["restore", "store", "other/two"]).failed(1, &[id, "not there"]);
    folder.gabion(&["verify", "store"]).failed(4, &["2 backups cannot be restored"]);
    folder.gabion(&["backup", "--incremental", "mnt", "store"]).failed(1, &[id, "not there"]);
    assert!(!folder.join("other/two").exists());
}

#[test]
fn an_image_is_saved_as_its_mount_would_be() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    fs::create_dir(folder.join("store")).unwrap();
    let wanted = survey(&mnt);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["backup", "disk.img", "store"]).succeeded();
    mount(&folder);
    let large = File::options().write(true).open(mnt.join("large")).unwrap();
    large.write_all_at(&[1; 10], 1_000_000).unwrap();
    drop(large);
    fs::rename(mnt.join("dir"), mnt.join("moved")).unwrap();
    // A chain goes on whoever has the filesystem in use.
    folder.gabion(&["backup", "--incremental", "mnt", "store"]).succeeded();
    let changed = survey(&mnt);
    fs::write(mnt.join("moved/more"), "more").unwrap();
    let more = survey(&mnt);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["backup", "--incremental", "disk.img", "store"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    other(&folder);
    for (row, wanted) in backups(&folder, "store").iter().zip([&wanted, &changed, &more]) {
        let at = row["stream"].as_str().unwrap();
        folder.gabion(&["restore", "--at", at, "store", "other/tree"]).succeeded();
        assert_same(wanted, &folder.join("other/tree"));
        fs::remove_dir_all(folder.join("other/tree")).unwrap();
    }
}

#[test]
fn a_subvolume_is_saved_by_itself() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    folder.gabion(&["subvolume", "create", "mnt/dir/sub"]).succeeded();
    fs::write(mnt.join("dir/sub/file"), "in the subvolume").unwrap();
    fs::create_dir(folder.join("store")).unwrap();
    folder.gabion(&["subvolume", "create", "mnt/dir/sub/inner"]).succeeded();
    let said = folder.gabion(&["backup", "mnt/dir/sub", "store"]).succeeded();
    let left_out =
        |path: &str| format!("the subvolume {path} is not in it, and is saved by itself");
    assert!(said.contains(&left_out("inner")) && said.lines().count() == 2, "{said}");
    folder.gabion(&["subvolume", "delete", "--yes", "mnt/dir/sub/inner"]).succeeded();
    fs::write(mnt.join("dir/sub/file"), "changed").unwrap();
    folder.gabion(&["backup", "--incremental", "mnt/dir/sub", "store"]).succeeded();
    folder.gabion(&["restore", "--to-directory", "store", "sub"]).succeeded();
    assert_eq!(survey(&folder.join("sub")).len(), 2);
    assert_eq!(fs::read(folder.join("sub/file")).unwrap(), b"changed");
    // What it is in is saved without it, which is said.
    let said = folder.gabion(&["backup", "mnt", "whole"]).succeeded();
    assert!(said.contains(&left_out("dir/sub")), "{said}");
    folder.gabion(&["restore", "--to-directory", "whole", "tree"]).succeeded();
    assert!(folder.join("tree/dir/below/deep").is_dir());
    assert!(!folder.join("tree/dir/sub").exists());
    folder.gabion(&["backup", "mnt/dir", "no"]).failed(1, &["dir"]);
    folder.gabion(&["umount", "mnt"]).succeeded();
    let said = folder.gabion(&["backup", "disk.img", "unused"]).succeeded();
    assert!(said.contains(&left_out("dir/sub")), "{said}");
    let said = folder.gabion(&["backup", "disk.img:/dir/sub", "part"]).succeeded();
    assert!(!said.contains("is not in it"), "{said}");
}

#[test]
fn a_tree_that_is_deeper_than_a_path_can_be_is_saved_and_restored() {
    let Some(folder) = planted() else { return };
    let along = "for i in $(seq 50); do cd $(printf '%0200d' $i)";
    let shell = |script: String| folder.run(Command::new("bash").args(["-ec", &script]));
    let make = along.replace("cd ", "mkdir $(printf '%0200d' $i); cd ");
    shell(format!("cd mnt; {make}; done; echo there > file; ln file second")).succeeded();
    folder.gabion(&["backup", "mnt", "store"]).succeeded();
    folder.gabion(&["restore", "--to-directory", "store", "tree"]).succeeded();
    folder.gabion(&["restore", "store", "mnt/tree"]).succeeded();
    for top in ["tree", "mnt/tree"] {
        let text = shell(format!("cd {top}; {along}; done; cat second; stat -c %h file"));
        assert_eq!(text.succeeded(), "there\n2\n", "{top}");
    }
}

#[test]
fn what_nobody_can_go_on_with_is_removed_and_nothing_else() {
    let Some(folder) = planted() else { return };
    folder.gabion(&["subvolume", "create", "mnt/dir/sub"]).succeeded();
    fs::write(folder.join("mnt/dir/sub/file"), "in the subvolume").unwrap();
    fs::create_dir(folder.join("store")).unwrap();
    folder.gabion(&["backup", "mnt/dir/sub", "store"]).succeeded();
    let whole = backups(&folder, "store")[0]["path"].as_str().unwrap().to_owned();
    let partial = folder.join(&format!("{whole}.partial"));
    fs::rename(folder.join(&whole), &partial).unwrap();
    let length = fs::metadata(&partial).unwrap().len();
    File::options().write(true).open(&partial).unwrap().set_len(length - 1).unwrap();
    // It is another subvolume's, and has its snapshot there.
    folder.gabion(&["backup", "mnt", "store"]).succeeded();
    folder.gabion(&["backup", "--incremental", "mnt", "store"]).succeeded();
    assert!(partial.exists());
    let (name, _) = snapshots(&folder, "mnt/dir/sub").pop().unwrap();
    folder.gabion(&["snapshot", "release", "mnt/dir/sub", &name]).succeeded();
    folder.gabion(&["snapshot", "delete", "--yes", "mnt/dir/sub", &name]).succeeded();
    folder.gabion(&["backup", "mnt/dir/sub", "store"]).succeeded();
    assert!(!partial.exists());
    assert_eq!(backups(&folder, "store").len(), 3);
}

#[test]
fn a_pipe_takes_a_backup_and_its_differences() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    let save = |option: &str, to: &str| {
        let mut command = Command::new(GABION);
        command.args(["backup", option, "mnt", "-"]).env("GABION_STATE", folder.join("state"));
        let file = File::create(folder.join(to)).unwrap();
        let status = command.current_dir(folder.path()).stdout(file).status().unwrap();
        assert!(status.success());
    };
    save("--rate=1G", "one");
    fs::write(mnt.join("large"), "short now").unwrap();
    save("--incremental", "two");
    let wanted = survey(&mnt);
    folder.gabion(&["restore", "--to-directory", "two", "tree"]).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    // Nobody reads: there is no backup, and nothing is kept for one.
    let before = snapshots(&folder, "mnt");
    let mut child = Command::new(GABION)
        .args(["backup", "mnt", "-"])
        .env("GABION_STATE", folder.join("state"))
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(!child.wait().unwrap().success());
    assert_eq!(snapshots(&folder, "mnt"), before);
}

#[test]
fn damaged_and_foreign_files_are_refused_with_the_place() {
    let Some(folder) = planted() else { return };
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let good = fs::read(folder.join("full.gabion")).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(folder.join("bad"), &bad).unwrap();
    folder.gabion(&["verify", "bad"]).failed(4, &["damaged at byte", "segment"]);
    folder.gabion(&["restore", "--to-directory", "bad", "tree"]).failed(1, &["damaged at byte"]);
    assert!(!folder.join("tree").exists(), "nothing half restored looks whole");
    fs::write(folder.join("short"), &good[..good.len() - 1]).unwrap();
    let short = ["restore", "--to-directory", "short", "tree"];
    folder.gabion(&short).failed(1, &["short", "not complete"]);
    fs::write(folder.join("text"), "some text that is no backup").unwrap();
    folder.gabion(&["verify", "text"]).failed(1, &["text", "not a backup"]);
    folder.gabion(&["backup", "mnt", "full.gabion"]).failed(1, &["is there already"]);
    folder.gabion(&["backup", "mnt", "ftp://host/prefix"]).failed(1, &["no place that is known"]);
    fs::write(folder.join("key"), "too short").unwrap();
    let key = ["backup", "--key-file", "key", "mnt", "sealed"];
    folder.gabion(&key).failed(1, &["fewer than 32 bytes"]);
}

#[test]
fn a_passphrase_opens_what_it_has_closed() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    fs::create_dir(folder.join("store")).unwrap();
    fs::write(folder.join("phrase"), "correct horse battery staple\n").unwrap();
    fs::write(folder.join("other phrase"), "correct house battery staple\n").unwrap();
    let phrase = ["--passphrase-file", "phrase"];
    folder.gabion(&[&["backup", "mnt", "store"], &phrase[..]].concat()).succeeded();
    fs::write(mnt.join("more"), "more").unwrap();
    let more = ["backup", "--incremental", "mnt", "store"];
    // A chain has one secret: what could not be restored with it is not begun, and leaves nothing.
    let wrong = ["--passphrase-file", "other phrase"];
    let left = || {
        let snapshots = folder.gabion(&["snapshot", "list", "mnt"]).succeeded();
        (crate::world::names(&folder.join("store")), snapshots)
    };
    let before = left();
    folder.gabion(&more).failed(1, &["--passphrase-file"]);
    folder.gabion(&[&more, &wrong[..]].concat()).failed(1, &["does not open it"]);
    assert_eq!(left(), before);
    folder.gabion(&[&more, &phrase[..]].concat()).succeeded();
    let wanted = survey(&mnt);
    let restore = ["restore", "--to-directory", "store", "tree"];
    folder.gabion(&restore).failed(1, &["--passphrase-file"]);
    folder.gabion(&[&restore, &wrong[..]].concat()).failed(1, &["does not open it"]);
    // A lacking secret is no damage.
    folder.gabion(&["verify", "store"]).failed(1, &["--passphrase-file", "2 backups could not be"]);
    let outcome = folder.gabion(&[&["verify", "store"], &wrong[..]].concat());
    outcome.failed(1, &["does not open it", "could not be read"]);
    folder.gabion(&[&["verify", "store"], &phrase[..]].concat()).succeeded();
    folder.gabion(&[&restore, &phrase[..]].concat()).succeeded();
    assert_same(&wanted, &folder.join("tree"));
}
