//! What is mounted is saved from its image, or through its mount where that cannot be read; and an
//! image that is not mounted is restored to.

use std::fs;

use super::{assert_same, mount, planted, survey};
use crate::world::Folder;

/// Messages that the daemon of `mnt` has had from its kernel, and some more system calls.
fn system_calls(folder: &Folder) -> u64 {
    let pid = folder.daemon().pid.as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn a_mount_is_saved_past_itself_or_through_itself() {
    let Some(folder) = planted() else { return };
    let mnt = folder.join("mnt");
    fs::create_dir(mnt.join("many")).unwrap();
    for number in 0..500 {
        fs::write(mnt.join(format!("many/{number}")), vec![7; number]).unwrap();
    }
    folder.gabion(&["subvolume", "create", "mnt/inner"]).succeeded();
    fs::write(mnt.join("inner/file"), "in no backup but its own").unwrap();
    let cost = |to: &str| {
        let before = system_calls(&folder);
        folder.gabion(&["backup", "--incremental", "mnt", to]).succeeded();
        system_calls(&folder) - before
    };
    for place in ["past", "through"] {
        fs::create_dir(folder.join(place)).unwrap();
    }
    let past = cost("past/");
    // What the daemon has open is not there any more by that name.
    fs::rename(folder.join("disk.img"), folder.join("moved.img")).unwrap();
    let through = cost("through/");
    assert!(past < 500 && through > 1500, "{past} and {through}");
    // Each way goes on with what the other one has begun.
    fs::write(mnt.join("many/7"), "changed").unwrap();
    fs::remove_file(mnt.join("many/8")).unwrap();
    fs::rename(mnt.join("many/9"), mnt.join("dir/moved")).unwrap();
    cost("past/");
    fs::rename(folder.join("moved.img"), folder.join("disk.img")).unwrap();
    cost("through/");
    let mut wanted = survey(&mnt);
    wanted.retain(|path, _| !path.starts_with("inner"));
    for place in ["past", "through"] {
        folder.gabion(&["verify", place]).succeeded();
        let to = format!("{place}-restored");
        folder.gabion(&["restore", "--to-directory", place, &to]).succeeded();
        let found = survey(&folder.join(&to));
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    }
    let at = super::other(&folder);
    for place in ["past", "through"] {
        folder.gabion(&["restore", place, &format!("other/{place}")]).succeeded();
        assert_same(&wanted, &at.join(place));
    }
    folder.gabion(&["umount", "mnt"]).succeeded();
    mount(&folder);
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn a_backup_is_restored_to_an_image_that_nobody_has_in_use() {
    let Some(folder) = planted() else { return };
    let wanted = survey(&folder.join("mnt"));
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    folder.gabion(&["mkfs", "--size", "256M", "other.img"]).succeeded();
    let restore = |more: &[&str]| folder.gabion(&[&["restore", "full.gabion"], more].concat());
    let text = restore(&["other.img:/", "--only", "dir"]).succeeded();
    assert!(text.starts_with("other.img:/: restored"), "{text}");
    restore(&["other.img:/"]).failed(1, &["other.img:/ is not empty"]);
    restore(&["other.img:/absent/tree"]).failed(1, &["other.img:/absent", "No such file"]);
    restore(&["other.img:/tree"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "other.img"]).succeeded();
    // It is nowhere any more.
    assert_eq!(folder.mountpoints(), [folder.join("mnt")]);
    let at = folder.join("other");
    fs::create_dir(&at).unwrap();
    folder.gabion(&["mount", "other.img", "other"]).succeeded();
    assert_same(&wanted, &at.join("tree"));
    // Who has it mounted has it made there.
    restore(&["other.img:/again"]).succeeded();
    assert_same(&wanted, &at.join("again"));
    // A whole filesystem may be as large as it is.
    folder.gabion(&["umount", "other"]).succeeded();
    folder.gabion(&["mkfs", "--force", "--size", "256M", "other.img"]).succeeded();
    restore(&["other.img:/"]).succeeded();
    folder.gabion(&["mount", "other.img", "other"]).succeeded();
    assert_same(&wanted, &at);
}
