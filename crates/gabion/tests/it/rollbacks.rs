//! Rolling back what programs use meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::world::{Folder, names};

/// The files of a tree and their bytes, but for what is in `.snapshots`.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![String::new()];
    while let Some(at) = rest.pop() {
        for name in names(&root.join(&at)) {
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            match fs::metadata(root.join(&path)).unwrap().is_dir() {
                true => rest.push(path),
                false => drop(found.insert(path.clone(), fs::read(root.join(&path)).unwrap())),
            }
        }
    }
    found
}

fn roll_back(folder: &Folder, of: &str, to: &str) -> String {
    let text = folder.gabion(&["snapshot", "rollback", of, to]).succeeded();
    let kept = text.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert!(kept.starts_with("before-rollback-"), "{text}");
    kept
}

/// Ends what goes on beside a test, also if that fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a program that has a file open is told.
fn is_outlived(error: &std::io::Error) -> bool {
    let told = error.raw_os_error();
    [rustix::io::Errno::STALE, rustix::io::Errno::IO]
        .map(|it| Some(it.raw_os_error()))
        .contains(&told)
}

#[test]
fn a_mount_is_rolled_back_while_programs_use_it() {
    for options in ["", "writethrough"] {
        let Some(folder) = Folder::for_mounts() else { return };
        folder.image();
        let mnt = folder.mount(options);
        fs::create_dir(mnt.join("dir")).unwrap();
        fs::write(mnt.join("dir/gone"), "gone").unwrap();
        fs::write(mnt.join("short"), "short").unwrap();
        fs::write(mnt.join("long"), vec![7; 300_000]).unwrap();
        let was = files(&mnt);
        folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
        let mut grown = File::options().append(true).open(mnt.join("short")).unwrap();
        fs::remove_dir_all(mnt.join("dir")).unwrap();
        fs::write(mnt.join("long"), "cut").unwrap();
        fs::write(mnt.join("new"), "new").unwrap();
        let mut reader = File::open(mnt.join("long")).unwrap();
        // The kernel still has these bytes, and knows that there is no such name.
        grown.write_all(&[8; 100_000]).unwrap();
        assert!(fs::metadata(mnt.join("dir/gone")).is_err());
        let kept = roll_back(&folder, "mnt", "one");
        assert_eq!(files(&mnt), was);
        assert_eq!(fs::metadata(mnt.join("long")).unwrap().len(), 300_000);
        // Whoever had something open is told, and changes nothing.
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(is_outlived(&error), "{error}");
        let error = grown.write_all(b"more").and_then(|()| grown.sync_all()).unwrap_err();
        assert!(is_outlived(&error), "{error}");
        drop((reader, grown));
        assert_eq!(files(&mnt), was);
        let kept = mnt.join(".snapshots").join(kept);
        let mut changed = b"short".to_vec();
        changed.extend([8; 100_000]);
        assert_eq!(fs::read(kept.join("short")).unwrap(), changed);
        assert_eq!(names(&kept), ["long", "new", "short"]);
        // It goes on, and forth again.
        fs::write(mnt.join("short"), "once more").unwrap();
        fs::write(mnt.join("new"), "another").unwrap();
        let mine = files(&mnt);
        let name = kept.file_name().unwrap().to_str().unwrap();
        let last = roll_back(&folder, "mnt", name);
        assert_eq!(names(&mnt), ["long", "new", "short"]);
        assert_eq!(files(&mnt.join(".snapshots").join(&last)), mine);
        folder.gabion(&["umount", "mnt"]).succeeded();
        folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
        folder.mount("ro");
        assert_eq!(fs::read(mnt.join("short")).unwrap(), changed);
        assert_eq!(files(&mnt.join(".snapshots/one")), was);
    }
}

#[test]
fn a_subvolume_is_rolled_back_and_the_rest_goes_on() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    folder.gabion(&["subvolume", "create", "mnt/sub"]).succeeded();
    fs::write(mnt.join("sub/file"), "1").unwrap();
    folder.gabion(&["snapshot", "create", "mnt/sub", "one"]).succeeded();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::write(mnt.join("sub/file"), "two").unwrap();
    let beside = File::create(mnt.join("beside")).unwrap();
    roll_back(&folder, "mnt/sub", "one");
    assert_eq!(fs::read(mnt.join("sub/file")).unwrap(), b"1");
    beside.write_all_at(b"goes on", 0).unwrap();
    beside.sync_all().unwrap();
    assert_eq!(fs::read(mnt.join("beside")).unwrap(), b"goes on");
    // A rollback takes no subvolume's name away, and leaves what is in it alone.
    folder.gabion(&["subvolume", "create", "mnt/later"]).succeeded();
    let refused = "the subvolume \"later\" stands in it and has no name in one";
    folder.gabion(&["snapshot", "rollback", "mnt", "one"]).failed(1, &[refused]);
    folder.gabion(&["subvolume", "delete", "--yes", "mnt/later"]).succeeded();
    fs::write(mnt.join("sub/file"), "three").unwrap();
    roll_back(&folder, "mnt", "one");
    assert!(fs::metadata(mnt.join("beside")).is_err());
    assert_eq!(fs::read(mnt.join("sub/file")).unwrap(), b"three");
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

/// The kernel would take it away, and whoever writes there would write into the folder below.
#[test]
fn nothing_is_rolled_back_in_which_something_is_mounted() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    folder.gabion(&["mkfs", "--size", "64M", "other.img"]).succeeded();
    for sub in ["mnt/one", "mnt/two"] {
        folder.gabion(&["subvolume", "create", sub]).succeeded();
        folder.gabion(&["snapshot", "create", sub, "first"]).succeeded();
        fs::write(folder.join(sub).join("later"), "").unwrap();
    }
    folder.gabion(&["snapshot", "create", "mnt", "first"]).succeeded();
    fs::create_dir(mnt.join("one/below")).unwrap();
    folder.gabion(&["mount", "other.img", "mnt/one/below"]).succeeded();
    fs::write(mnt.join("one/below/file"), "there").unwrap();
    let inside = mnt.join("one/below").canonicalize().unwrap();
    let told = format!("{} is mounted in it: unmount that first", inside.display());
    for of in ["mnt", "mnt/one"] {
        folder.gabion(&["snapshot", "rollback", of, "first"]).failed(1, &[&told]);
    }
    // Elsewhere it does no harm.
    roll_back(&folder, "mnt/two", "first");
    assert_eq!(names(&mnt.join("two")), [""; 0]);
    assert_eq!(fs::read(mnt.join("one/below/file")).unwrap(), b"there");
    folder.gabion(&["umount", "mnt/one/below"]).succeeded();
    roll_back(&folder, "mnt/one", "first");
    assert_eq!(names(&mnt.join("one")), [""; 0]);
}

#[test]
fn rollbacks_beside_writers_leave_what_the_snapshot_has() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    for number in 0..20 {
        fs::write(mnt.join(format!("{number}")), vec![number; 10_000]).unwrap();
    }
    let was = files(&mnt);
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for byte in 100..103 {
            let (mnt, stop) = (&mnt, &stop);
            // Whatever goes wrong is right: what they have open is taken from them.
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for number in 0..20 {
                        let file = File::options().write(true).open(mnt.join(format!("{number}")));
                        let Ok(file) = file else { continue };
                        let _ = file.write_all_at(&[byte; 5000], 3000);
                        let _ = fs::rename(mnt.join(format!("{number}")), mnt.join("moved"));
                        let _ = fs::write(mnt.join(format!("new-{byte}")), [byte; 9000]);
                        let _ = file.sync_all();
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        for _ in 0..4 {
            roll_back(&folder, "mnt", "one");
        }
    });
    roll_back(&folder, "mnt", "one");
    assert_eq!(files(&mnt), was);
    assert_eq!(files(&mnt.join(".snapshots/one")), was);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}
