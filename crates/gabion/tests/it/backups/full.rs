//! Places that have no room for what is saved or restored, and two who write to one place.
//!
//! A mount whose kernel collects writes takes all of them, and says later that there was no room.
//! Until it is mounted again its kernel shows bytes that are stored nowhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use super::shared_places::{made, many, stopped_when};
use super::trees::assert_same;
use super::{noise, run};
use crate::world::{Folder, names};

/// A file that the small filesystem has no room for, in bytes.
const LARGE: usize = 40 << 20;

/// A filesystem at `mnt` with a large file in it, and a smaller filesystem at `small`.
fn two(folder: &Folder) -> (PathBuf, PathBuf) {
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("large"), noise(1, LARGE)).unwrap();
    fs::write(mnt.join("little"), noise(2, 100_000)).unwrap();
    folder.gabion(&["mkfs", "--size", "32M", "small.img"]).succeeded();
    let small = folder.join("small");
    fs::create_dir(&small).unwrap();
    folder.gabion(&["mount", "small.img", "small"]).succeeded();
    (mnt, small)
}

/// Makes room on the small one, and has its kernel forget what it has in memory.
fn enlarge(folder: &Folder) {
    folder.gabion(&["umount", "small"]).succeeded();
    File::options().write(true).open(folder.join("small.img")).unwrap().set_len(96 << 20).unwrap();
    folder.gabion(&["grow", "small.img"]).succeeded();
    folder.gabion(&["mount", "small.img", "small"]).succeeded();
}

#[test]
fn what_a_full_filesystem_had_no_room_for_is_never_taken_for_restored() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (mnt, small) = two(&folder);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    // Twice: the second time everything looks as if it had been made.
    for _ in 0..2 {
        let parts = ["large", "No space left", "Make room"];
        folder.gabion(&["restore", "full.gabion", "small/tree"]).failed(1, &parts);
        assert!(!small.join("tree").exists());
    }
    enlarge(&folder);
    folder.gabion(&["restore", "full.gabion", "small/tree"]).succeeded();
    folder.gabion(&["umount", "small"]).succeeded();
    folder.gabion(&["mount", "small.img", "small"]).succeeded();
    for name in ["large", "little"] {
        let (was, is) = (fs::read(mnt.join(name)), fs::read(small.join("tree").join(name)));
        assert!(was.unwrap() == is.unwrap(), "{name}");
    }
    assert_eq!(names(&small), ["tree"]);
}

#[test]
fn what_a_full_filesystem_had_no_room_for_is_saved_once_more() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (_, small) = two(&folder);
    for _ in 0..2 {
        folder.gabion(&["backup", "mnt", "small/b.gabion"]).failed(1, &["No space left"]);
        assert_eq!(names(&small), ["b.gabion.partial"]);
    }
    enlarge(&folder);
    let said = folder.gabion(&["backup", "mnt", "small/b.gabion"]).succeeded();
    assert!(said.contains("went on saving"), "{said}");
    folder.gabion(&["umount", "small"]).succeeded();
    folder.gabion(&["mount", "small.img", "small"]).succeeded();
    folder.gabion(&["verify", "small/b.gabion"]).succeeded();
}

#[test]
fn two_do_not_restore_to_one_place() {
    let Some(folder) = Folder::for_mounts() else { return };
    let (mnt, small) = two(&folder);
    fs::remove_file(mnt.join("large")).unwrap();
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let listed = folder.gabion(&["backups", "full.gabion"]).succeeded();
    let scratch = small.join(format!(".tree.restoring-{}", &listed[..8]));
    fs::DirBuilder::new().mode(0o700).create(&scratch).unwrap();
    let other = File::open(&scratch).unwrap();
    rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
    let parts = ["another restoration", ".tree.restoring-", "Wait until it is done"];
    folder.gabion(&["restore", "full.gabion", "small/tree"]).failed(1, &parts);
    assert_eq!(names(&scratch), [""; 0]);
    // What becomes something else has a place of its own.
    let only = ["restore", "--only", "little", "full.gabion", "small/tree"];
    let outcome = folder.gabion(&only);
    assert!(outcome.stderr.contains(".tree.restoring-"), "{outcome:?}");
    outcome.succeeded();
    assert_eq!(names(&scratch), [""; 0]);
    assert!(fs::read(small.join("tree")).unwrap() == noise(2, 100_000));
    fs::remove_file(small.join("tree")).unwrap();
    drop(other);
    folder.gabion(&["restore", "full.gabion", "small/tree"]).succeeded();
    assert!(fs::read(small.join("tree/little")).unwrap() == noise(2, 100_000));
    assert_eq!(names(&small), ["tree"], "nothing is left");
}

/// A filesystem of another kind at `plain`, whose disk takes less than it is long: what is written
/// to it fails when the kernel writes it back.
struct Short<'f>(&'f Folder);

impl<'f> Short<'f> {
    fn new(folder: &'f Folder) -> Self {
        for name in ["room", "plain"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        run(folder, "mount", &["-t", "tmpfs", "-o", "size=24M", "none", "room"]);
        // The first part, with what tells of files, is there.
        run(folder, "fallocate", &["-l", "8M", "room/disk"]);
        run(folder, "truncate", &["-s", "96M", "room/disk"]);
        let options = ["-q", "-O", "^has_journal", "-N", "128", "-E", "lazy_itable_init=0"];
        run(folder, "mkfs.ext4", &[&options[..], &["room/disk"]].concat());
        let short = Self(folder);
        short.mount();
        short
    }

    fn mount(&self) {
        run(self.0, "mount", &["-o", "loop", "room/disk", "plain"]);
    }

    /// Makes room on its disk.
    fn enlarge(&self) {
        run(self.0, "mount", &["-o", "remount,size=120M", "room"]);
    }

    /// Has the kernel forget what it has in memory, and compares what is on the disk.
    fn has(&self, tree: &str, wanted: &BTreeMap<PathBuf, String>) {
        run(self.0, "umount", &["plain"]);
        self.mount();
        assert_same(wanted, &self.0.join("plain").join(tree));
    }
}

const TO_PLAIN: [&str; 4] = ["restore", "--to-directory", "full.gabion", "plain/tree"];

#[test]
fn what_another_filesystem_could_not_write_in_the_end_is_removed() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 40);
    let short = Short::new(&folder);
    let parts = ["not all of", ".tree.restoring-", "could be written", "is removed: run it again"];
    // Twice: nothing is taken for whole.
    for _ in 0..2 {
        folder.gabion(&TO_PLAIN).failed(1, &parts);
        let [scratch] = &left(&folder)[..] else { panic!("{:?}", left(&folder)) };
        assert_eq!(names(&folder.join("plain").join(scratch)), [""; 0]);
    }
    short.enlarge();
    folder.gabion(&TO_PLAIN).succeeded();
    short.has("tree", &wanted);
    assert_eq!(left(&folder), ["tree"]);
}

#[test]
fn what_another_filesystem_could_not_write_of_what_was_killed_is_made_again() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 40);
    let short = Short::new(&folder);
    let scratch = || left(&folder).pop().map(|name| folder.join("plain").join(name));
    let mut running =
        stopped_when(&folder, &TO_PLAIN, || scratch().is_some_and(|path| made(&path) > 35));
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let scratch = scratch().unwrap();
    let tree = scratch.join(&names(&scratch)[0]);
    let written = names(&tree).into_iter().map(|name| File::open(tree.join(name)).unwrap());
    // Nobody hears of it, but who asks for all files at once.
    let failed = written.filter(|file| file.sync_all().is_err()).count();
    assert!(failed > 0, "there was room for all");
    short.enlarge();
    folder.gabion(&TO_PLAIN).succeeded();
    short.has("tree", &wanted);
    assert_eq!(left(&folder), ["tree"]);
}

/// What is at `plain`.
fn left(folder: &Folder) -> Vec<String> {
    let mut names = names(&folder.join("plain"));
    names.retain(|name| name != "lost+found");
    names
}
