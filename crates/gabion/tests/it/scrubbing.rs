//! Scrubs, with and without something to find.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::world::{Folder, Outcome};

/// The report out of a scrub's lines of JSON.
fn report(outcome: &Outcome) -> Value {
    let last = outcome.stdout.lines().last().unwrap();
    let mut reply: Value = serde_json::from_str(last).unwrap();
    reply["report"].take()
}

#[test]
fn a_mounted_filesystem_is_scrubbed_by_its_daemon() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mountpoint = folder.mount("");
    fs::write(mountpoint.join("file"), vec![1; 5 << 20]).unwrap();
    rustix::fs::sync();
    let text = folder.gabion(&["scrub", "mnt"]).succeeded();
    assert!(text.contains("compared with their checksums") && text.contains("nothing damaged"));
    let scrubbed = folder.gabion(&["scrub", "--json", "mnt"]);
    let report = report(&scrubbed);
    assert!(report["checked_bytes"].as_u64().unwrap() >= 5 << 20, "{report:#}");
    assert_eq!(report["findings"], Value::Array(Vec::new()));
    assert_eq!(report["stopped"], false);
    scrubbed.succeeded();
}

#[test]
fn one_flipped_bit_is_found_and_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.damages();
    let image = folder.image();
    let mountpoint = folder.mount("");
    fs::write(mountpoint.join("file"), vec![1; 100_000]).unwrap();
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mountpoint.join("file")).unwrap());
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "disk.img"]).succeeded();
    let items = folder.gabion(&["inspect", "disk.img", "inode", &ino.to_string()]).succeeded();
    let extent = items.split("extent at ").nth(1).unwrap();
    let block: u64 = extent.split(' ').next().unwrap().parse().unwrap();
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * 4096 + 77).unwrap();
    file.write_all_at(&[byte[0] ^ 4], block * 4096 + 77).unwrap();
    let scrubbed = folder.gabion(&["scrub", "--json", "disk.img"]);
    let found = &report(&scrubbed)["findings"];
    assert_eq!(found.as_array().unwrap().len(), 1, "{found:#}");
    assert_eq!(found[0]["inode"], ino);
    scrubbed.failed(4, &["1 places are damaged"]);
    // Mounted, the same, and the bytes are refused rather than given wrongly.
    folder.mount("ro");
    folder.gabion(&["scrub", "mnt"]).failed(4, &["damaged"]);
    let refused = fs::read(mountpoint.join("file")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
}
