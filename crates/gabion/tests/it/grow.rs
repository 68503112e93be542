//! Filesystems that grow with their disks, in use and not.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::statvfs;

use crate::world::Folder;

/// Writes to `name` until there is no space. Returns how many bytes are in it.
fn fill(mountpoint: &Path, name: &str) -> u64 {
    let mut file = File::create(mountpoint.join(name)).unwrap();
    let mut written = 0;
    let refused = loop {
        // The kernel takes bytes before it asks for their place.
        match file.write_all(&vec![7; 256 << 10]).and_then(|()| file.sync_data()) {
            Ok(()) => written += 256 << 10,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    file.set_len(written).unwrap();
    file.sync_all().unwrap();
    written
}

fn bytes(mountpoint: &Path) -> (u64, u64) {
    let space = statvfs(mountpoint).unwrap();
    (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)
}

#[test]
fn a_full_filesystem_grows_in_use_and_goes_on_writing() {
    let Some(folder) = Folder::for_mounts() else { return };
    let image = folder.image();
    let mountpoint = folder.mount("");
    let before = fill(&mountpoint, "one");
    let (total, _) = bytes(&mountpoint);
    let text = folder.gabion(&["grow", "--to", "192M", "mnt"]).succeeded();
    assert!(text.contains("grew from 64 MiB to 192 MiB; it can reach 31.9 GiB"), "{text}");
    assert_eq!(fs::metadata(&image).unwrap().len(), 192 << 20);
    let (grown, available) = bytes(&mountpoint);
    // But for the reserve's thirty-second of what was added, and the new group's bitmap.
    let added = (128 << 20) - (128 << 20) / 32;
    assert!(grown - total == added || grown - total == added - 8192, "{total} {grown}");
    assert!(available > 100 << 20, "{available}");
    let more = fill(&mountpoint, "two");
    assert!(more > 110 << 20, "{more} bytes");
    folder.gabion(&["scrub", "mnt"]).succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "disk.img"]).succeeded();
    let mountpoint = folder.mount("");
    assert_eq!(bytes(&mountpoint).0, grown);
    for (name, length) in [("one", before), ("two", more)] {
        let found = fs::read(mountpoint.join(name)).unwrap();
        assert!(found.len() as u64 == length && found.iter().all(|byte| *byte == 7), "{name}");
    }
    assert_eq!(folder.status("mnt")["total_bytes"].as_u64(), Some(grown));
}

#[test]
fn what_is_not_mounted_grows_too_to_what_is_asked_or_there() {
    let folder = Folder::new();
    let image = folder.image();
    folder.gabion(&["grow", "--to", "96M", "disk.img"]).succeeded();
    assert_eq!(fs::metadata(&image).unwrap().len(), 96 << 20);
    let same = folder.gabion(&["grow", "disk.img"]).succeeded();
    assert!(same.contains("has 96 MiB as before"), "{same}");
    File::options().write(true).open(&image).unwrap().set_len(200 << 20).unwrap();
    let text = folder.gabion(&["grow", "disk.img"]).succeeded();
    assert!(text.contains("grew from 96 MiB to 200 MiB"), "{text}");
    let total = folder.status("disk.img")["total_bytes"].as_u64().unwrap();
    assert!((190 << 20..200 << 20).contains(&total), "{total}");
    folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn what_cannot_be_is_refused_and_the_image_stays_as_it_is() {
    let folder = Folder::new();
    let image = folder.image();
    folder
        .gabion(&["grow", "--to", "32M", "disk.img"])
        .failed(1, &["disk.img", "cannot", "shorter"]);
    folder.gabion(&["grow", "--to", "1T", "disk.img"]).failed(1, &["reach 8355840", "grow it to"]);
    folder.gabion(&["grow", "--to", "much", "disk.img"]).failed(2, &["much"]);
    folder.gabion(&["grow", "absent.img"]).failed(1, &["absent.img"]);
    folder.gabion(&["grow", "."]).failed(1, &["mounted"]);
    assert_eq!(fs::metadata(&image).unwrap().len(), 64 << 20);
    folder.gabion(&["grow", "--to", "80M", "disk.img"]).succeeded();
    // The disk lost what it had got.
    File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    folder.gabion(&["scrub", "disk.img"]).failed(1, &["has 16384 blocks", "needs 20480"]);
}

#[test]
fn a_read_only_mount_does_not_grow() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("ro");
    folder.gabion(&["grow", "--to", "80M", "mnt"]).failed(1, &["read-only"]);
    assert_eq!(fs::metadata(folder.join("disk.img")).unwrap().len(), 64 << 20);
}

#[test]
fn a_filesystem_in_use_is_found_by_its_image_too() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    fs::write(mountpoint.join("file"), "kept").unwrap();
    folder.gabion(&["grow", "--to", "100M", "disk.img"]).succeeded();
    fs::write(mountpoint.join("more"), vec![1; 70 << 20]).unwrap();
    folder.daemon().kill();
    let mountpoint = folder.mount("");
    assert!(bytes(&mountpoint).0 > 90 << 20);
    folder.gabion(&["scrub", "mnt"]).succeeded();
}
