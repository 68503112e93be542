//! Places that have no room for what is saved or restored, and two who write to one place.
//!
//! A mount whose kernel collects writes takes all of them, and says later that there was no room.
//! Until it is mounted again its kernel shows bytes that are stored nowhere.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use super::noise;
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
