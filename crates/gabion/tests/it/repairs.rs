//! A filesystem on a mirror puts right what is wrong on one copy.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::world::Folder;

/// Where the filesystem begins in a member that is a file: behind its header and the bitmaps.
const DATA_START: u64 = 2 << 20;
const MEMBER_BYTES: u64 = 64 << 20;

/// Changes every block of the filesystem that is not zero, on the copy that `name` is.
fn spoil(folder: &Folder, name: &str) {
    let file = File::options().read(true).write(true).open(folder.join(name)).unwrap();
    let mut block = [0; 4096];
    for at in (DATA_START..MEMBER_BYTES).step_by(4096) {
        file.read_exact_at(&mut block, at).unwrap();
        if block != [0; 4096] {
            block[1000] ^= 0x10;
            file.write_all_at(&block, at).unwrap();
        }
    }
}

#[test]
fn a_copy_that_rots_is_read_past_and_put_right() {
    let Some(folder) = Folder::for_mounts() else { return };
    for name in ["a", "b"] {
        File::create(folder.join(name)).unwrap().set_len(MEMBER_BYTES).unwrap();
    }
    folder.gabion(&["volume", "create", "tank", "--equal", "--mirror", "a", "b"]).succeeded();
    folder.gabion(&["mkfs", "tank"]).succeeded();
    let mountpoint = folder.join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    folder.gabion(&["mount", "tank", "mnt"]).succeeded();
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
    for name in ["one", "two"] {
        fs::write(mountpoint.join(name), &content).unwrap();
    }
    folder.gabion(&["umount", "mnt"]).succeeded();
    spoil(&folder, "b");
    folder.gabion(&["mount", "tank", "mnt"]).succeeded();
    for name in ["one", "two"] {
        assert!(fs::read(mountpoint.join(name)).unwrap() == content, "{name}");
    }
    let scrubbed = folder.gabion(&["scrub", "mnt"]).succeeded();
    assert!(scrubbed.contains("put right: ") && scrubbed.contains("nothing damaged"), "{scrubbed}");
    let scrubbed = folder.gabion(&["scrub", "mnt"]).succeeded();
    assert!(!scrubbed.contains("put right"), "{scrubbed}");
    let events = folder.gabion(&["events", "--json", "--since", "1"]).succeeded();
    assert!(events.contains("block-checksum-repaired"), "{events}");
    folder.gabion(&["umount", "mnt"]).succeeded();
    // Everything that is in use is right on the copy that was spoilt, without the other one.
    let other = ["volume", "suspend", "tank", "a"];
    folder.gabion(&other).succeeded();
    folder.gabion(&["mount", "tank", "mnt"]).succeeded();
    let scrubbed = folder.gabion(&["scrub", "mnt"]).succeeded();
    assert!(scrubbed.contains("nothing damaged"), "{scrubbed}");
    for name in ["one", "two"] {
        assert!(fs::read(mountpoint.join(name)).unwrap() == content, "{name}");
    }
}
