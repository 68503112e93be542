//! Making filesystems, and looking at them unmounted.

use std::fs;
use std::process::Command;

use crate::world::Folder;

const UUID: &str = "01234567-89ab-4def-8123-456789abcdef";

#[test]
fn mkfs_makes_a_sparse_image_with_label_and_uuid() {
    let folder = Folder::new();
    let made = ["mkfs", "--size", "10G", "--label", "shelf", "--uuid", UUID, "disk.img"];
    let text = folder.gabion(&made).succeeded();
    assert_eq!(text, format!("disk.img: made a Gabion filesystem of 10 GiB, {UUID}\n"));
    let metadata = fs::metadata(folder.join("disk.img")).unwrap();
    assert_eq!(metadata.len(), 10 << 30);
    let occupied = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(occupied < 64 << 20, "{occupied} bytes");
    let status = folder.status("disk.img");
    assert_eq!(status["uuid"], UUID);
    assert_eq!(status["label"], "shelf");
    assert_eq!(status["mount"], serde_json::Value::Null);
    let total = status["total_bytes"].as_u64().unwrap();
    assert!((9 << 30..10 << 30).contains(&total), "{total}");
    assert_eq!(
        status["available_bytes"].as_u64().unwrap() + status["used_bytes"].as_u64().unwrap(),
        total
    );
}

#[test]
fn mkfs_refuses_to_overwrite_ext4_unless_forced() {
    let folder = Folder::new();
    let image = folder.join("disk.img");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let ext4 = folder.run(Command::new("mkfs.ext4").args(["-q", "-L", "photos"]).arg(&image));
    ext4.succeeded();
    let before = fs::read(&image).unwrap();
    let refused = folder.gabion(&["mkfs", "disk.img"]);
    refused.failed(1, &["ext4", "photos", "gabion mkfs --force disk.img"]);
    assert!(before == fs::read(&image).unwrap(), "a refusal changes nothing");
    folder.gabion(&["mkfs", "--force", "disk.img"]).succeeded();
    folder.status("disk.img");
}

#[test]
fn mkfs_refuses_to_overwrite_a_gabion_filesystem() {
    let folder = Folder::new();
    folder.gabion(&["mkfs", "--size", "64M", "--uuid", UUID, "disk.img"]).succeeded();
    let refused = folder.gabion(&["mkfs", "disk.img"]);
    refused.failed(1, &["Gabion filesystem", UUID, "--force"]);
    // Nor is an image made longer before it is looked at.
    folder.gabion(&["mkfs", "--size", "128M", "disk.img"]).failed(1, &[UUID]);
    assert_eq!(fs::metadata(folder.join("disk.img")).unwrap().len(), 64 << 20);
    folder.gabion(&["mkfs", "--force", "disk.img"]).succeeded();
    assert_ne!(folder.status("disk.img")["uuid"], UUID);
}

#[test]
fn mkfs_says_what_is_missing() {
    let folder = Folder::new();
    folder.gabion(&["mkfs", "disk.img"]).failed(1, &["disk.img does not exist", "--size"]);
    folder.gabion(&["mkfs", "--size", "1M", "disk.img"]).failed(1, &["1024 KiB", "16 MiB"]);
    assert!(!folder.join("disk.img").exists(), "a failure makes no image");
    folder.gabion(&["mkfs", "."]).failed(1, &["neither a regular file nor a block device"]);
    folder.gabion(&["mkfs", "--size", "lots", "disk.img"]).failed(2, &["lots", "64M"]);
    let uuid = ["mkfs", "--size", "64M", "--uuid", "seven", "other.img"];
    folder.gabion(&uuid).failed(2, &["seven", "UUID"]);
    let label = "x".repeat(65);
    let label = ["mkfs", "--size", "64M", "--label", &label, "other.img"];
    folder.gabion(&label).failed(2, &["label", "65", "64"]);
    folder.gabion(&["frobnicate"]).failed(2, &["frobnicate"]);
}

#[test]
fn a_filesystem_can_be_shorter_than_its_disk() {
    let folder = Folder::new();
    let image = fs::File::create(folder.join("disk.img")).unwrap();
    image.set_len(256 << 20).unwrap();
    let total = |size: &str| {
        folder.gabion(&["mkfs", "--force", "--size", size, "disk.img"]).succeeded();
        folder.gabion(&["snapshot", "create", "disk.img", "one"]).succeeded();
        folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
        folder.status("disk.img")["total_bytes"].as_u64().unwrap() >> 20
    };
    assert!((50..64).contains(&total("64M")));
    assert!((220..256).contains(&total("256M")));
    assert!((20..32).contains(&total("32M")));
    assert_eq!(image.metadata().unwrap().len(), 256 << 20);
    folder.gabion(&["grow", "disk.img"]).succeeded();
    assert!(folder.status("disk.img")["total_bytes"].as_u64().unwrap() > 220 << 20);
}

#[test]
fn a_filesystem_is_not_made_shorter_than_was_asked_for() {
    let folder = Folder::new();
    fs::File::create(folder.join("member.img")).unwrap().set_len(64 << 20).unwrap();
    folder.gabion(&["volume", "create", "pond", "--linear", "member.img"]).succeeded();
    folder.gabion(&["mkfs", "--size", "1T", "pond"]).failed(1, &["pond has", "only, not 1 TiB"]);
    folder.gabion(&["mkfs", "--size", "32M", "pond"]).succeeded();
}

#[test]
fn an_image_becomes_longer_when_it_is_made_anew_with_a_size() {
    let folder = Folder::new();
    folder.image();
    folder.gabion(&["mkfs", "--force", "--size", "128M", "disk.img"]).succeeded();
    assert_eq!(fs::metadata(folder.join("disk.img")).unwrap().len(), 128 << 20);
    assert!(folder.status("disk.img")["total_bytes"].as_u64().unwrap() > 100 << 20);
}

#[test]
fn inspect_shows_each_structure_of_a_new_filesystem() {
    let folder = Folder::new();
    folder.gabion(&["mkfs", "--size", "64M", "--uuid", UUID, "disk.img"]).succeeded();
    let show = |arguments: &[&str]| {
        let all = [&["inspect", "disk.img"], arguments].concat();
        folder.gabion(&all).succeeded()
    };
    let superblock = show(&[]);
    assert_eq!(superblock, show(&["superblock"]));
    for line in [&format!("uuid {UUID}")[..], "blocks 16384", "label \"\"", "next-subvolume 2"] {
        assert!(superblock.lines().any(|found| found == line), "{line} is not in {superblock}");
    }
    let tree = show(&["tree"]);
    assert!(tree.starts_with("forest\n  node at "), "{tree}");
    assert!(tree.contains("\nsubvolume 1: 1 nodes"), "{tree}");
    let root = show(&["inode", "1"]);
    assert!(root.starts_with("INODE@0 mode 040755 links 2 owner 0:0"), "{root}");
    assert_eq!(root.lines().count(), 1);
    let absent = folder.gabion(&["inspect", "disk.img", "inode", "77"]);
    absent.failed(1, &["disk.img: ", "has no inode 77", "sync"]);
    let alloc = show(&["alloc"]);
    assert!(alloc.contains("\ngroup 0: 16384 blocks, bitmap at "), "{alloc}");
    let journal = show(&["journal"]);
    assert!(journal.starts_with("ring at ") && journal.contains(", 0 batches\n"), "{journal}");
}

#[test]
fn what_cannot_be_shown_to_its_end_ends_quietly() {
    let folder = Folder::new();
    folder.image();
    for arguments in ["inspect disk.img tree", "status disk.img", "scrub --json disk.img"] {
        let mut command = Command::new("bash");
        let script = format!("set -o pipefail; \"$0\" {arguments} | true");
        let outcome = folder.run(command.args(["-c", &script]).arg(crate::world::GABION));
        assert_eq!(outcome.stderr, "", "{arguments}");
        outcome.succeeded();
    }
}
