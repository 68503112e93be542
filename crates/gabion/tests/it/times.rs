//! Times of reading on real mounts.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags};

use crate::shared::Shared;
use crate::world::Folder;

fn atime(path: &Path) -> (i64, i64) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.atime(), found.atime_nsec())
}

/// Reads a file of seven bytes, or a directory, and says whether that got it another time.
fn is_recorded(path: &Path, flags: OFlags) -> bool {
    let before = atime(path);
    let file = rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty()).unwrap();
    match path.is_dir() {
        true => assert!(Dir::read_from(&file).unwrap().count() >= 2),
        false => assert_eq!(rustix::io::read(&file, &mut [0; 8]).unwrap(), 7),
    }
    let after = atime(path);
    assert!(after >= before);
    after > before
}

fn plant(root: &Path) {
    for name in ["plain", "quiet", "last", "part"] {
        fs::write(root.join(name), "content").unwrap();
    }
    for name in ["dir", "quiet dir", "other dir"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    symlink("plain", root.join("link")).unwrap();
}

const READ: OFlags = OFlags::empty();

#[test]
fn what_is_read_gets_the_times_that_the_mount_wants() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("relatime");
    plant(&mnt);
    // What the kernel has in its memory it does not ask for.
    let mount = |options| {
        folder.gabion(&["umount", "mnt"]).succeeded();
        folder.mount(options);
    };
    let is_recorded = |name, flags| is_recorded(&mnt.join(name), flags);
    mount("relatime");
    assert!(!is_recorded("quiet", OFlags::NOATIME));
    assert!(!is_recorded("quiet dir", OFlags::NOATIME));
    assert!(is_recorded("plain", READ) && is_recorded("dir", READ));
    let before = atime(&mnt.join("link"));
    fs::read_link(mnt.join("link")).unwrap();
    assert!(atime(&mnt.join("link")) > before);
    // The kernel reads what is around a part of a page that is written.
    let before = atime(&mnt.join("part"));
    let part = File::options().write(true).open(mnt.join("part")).unwrap();
    part.write_all_at(b"T", 3).unwrap();
    part.sync_all().unwrap();
    drop(part);
    assert_eq!(atime(&mnt.join("part")), before);
    assert_eq!(fs::read(mnt.join("part")).unwrap(), b"conTent");
    mount("strictatime,nodiratime");
    assert!(is_recorded("plain", READ), "also if nothing has changed");
    assert!(!is_recorded("other dir", READ));
    mount("noatime");
    assert!(!is_recorded("quiet", READ) && !is_recorded("quiet dir", READ));
}

#[test]
fn mounts_of_a_server_record_reading_by_their_own_options() {
    let Some(shared) = Shared::new() else { return };
    let a = shared.mount("a");
    plant(&a);
    let (b, c) = (shared.mount("b"), shared.mount_with("c", "noatime"));
    assert!(!is_recorded(&c.join("plain"), READ) && !is_recorded(&c.join("dir"), READ));
    assert!(!is_recorded(&b.join("quiet"), OFlags::NOATIME));
    assert!(!is_recorded(&b.join("quiet dir"), OFlags::NOATIME));
    assert!(is_recorded(&b.join("plain"), READ) && is_recorded(&b.join("dir"), READ));
    assert!(is_recorded(&b.join("last"), READ));
    let told = ["plain", "dir", "last"].map(|name| atime(&b.join(name)));
    // The server has it at the latest when the mount is left.
    shared.folder.gabion(&["umount", "b"]).succeeded();
    let d = shared.mount_with("d", "ro,strictatime");
    assert_eq!(["plain", "dir", "last"].map(|name| atime(&d.join(name))), told);
    assert!(!is_recorded(&d.join("plain"), READ));
    shared.finish(&["a", "c", "d"]);
}
