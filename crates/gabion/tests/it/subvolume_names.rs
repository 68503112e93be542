//! Subvolumes that get other names and places.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use crate::served_snapshots::Site;
use crate::world::Folder;

/// Moves subvolumes about in the mount at `mnt`, which people call `name`, and looks at `seen`.
fn move_about(folder: &Folder, name: &str, mnt: &Path, seen: &Path) {
    let run = |words: &[&str]| folder.gabion(words).succeeded();
    let at = |path: &str| format!("{name}/{path}");
    fs::create_dir(mnt.join("dir")).unwrap();
    for path in ["a", "a/inner"] {
        run(&["subvolume", "create", &at(path)]);
        fs::write(mnt.join(path).join("file"), path).unwrap();
    }
    run(&["snapshot", "create", &at("a"), "one"]);
    assert!(fs::metadata(seen.join("dir/b")).is_err());
    run(&["subvolume", "rename", &at("a"), &at("dir/b")]);
    assert!(fs::metadata(seen.join("a")).is_err());
    assert_eq!(fs::read(seen.join("dir/b/file")).unwrap(), b"a");
    assert_eq!(fs::read(seen.join("dir/b/.snapshots/one/file")).unwrap(), b"a");
    // From one subvolume to another, and what stands in it with it.
    run(&["subvolume", "rename", &at("dir/b/inner"), &at("c")]);
    run(&["subvolume", "rename", &at("dir/b"), &at("c/d")]);
    assert!(fs::metadata(seen.join("dir/b")).is_err());
    assert_eq!(fs::read(seen.join("c/file")).unwrap(), b"a/inner");
    assert_eq!(fs::read(seen.join("c/d/file")).unwrap(), b"a");
    let listed = run(&["subvolume", "list", name]);
    let paths: Vec<&str> =
        listed.lines().map(|line| line.trim().rsplit("  ").next().unwrap()).collect();
    assert_eq!(paths, ["/c/d", "/c"]);
    let refused = |from: &str, to: &str, part: &str| {
        folder.gabion(&["subvolume", "rename", &at(from), &at(to)]).failed(1, &[part]);
    };
    refused("c", "c/d/c", "stand in itself");
    refused("c", "dir", "exists");
    refused("dir", "e", "/dir is not the root of a subvolume");
    let delete = |path: &str| folder.gabion(&["subvolume", "delete", "--yes", &at(path)]);
    delete("dir").failed(1, &["/dir is not the root of a subvolume"]);
    delete("absent").failed(1, &["no such file"]);
    let busy = fs::rename(mnt.join("c"), mnt.join("e")).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    assert_eq!(fs::read(seen.join("c/d/file")).unwrap(), b"a");
    fs::write(seen.join("c/d/file"), "changed").unwrap();
    assert_eq!(fs::read(mnt.join("c/d/file")).unwrap(), b"changed");
}

#[test]
fn a_subvolume_gets_another_name_and_place() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    move_about(&folder, "mnt", &mnt, &mnt);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.mount("ro");
    assert_eq!(fs::read(mnt.join("c/d/file")).unwrap(), b"changed");
    assert!(fs::metadata(mnt.join("a")).is_err());
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn a_subvolume_of_what_is_served_gets_another_name_at_every_mount() {
    let Some(site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    move_about(&site.folder, "a", &a, &b);
    site.finish(&["a", "b"]);
}
