//! Images that the formats' own programs have made, as far as they are installed.

use std::fs::File;
use std::process::{Command, Stdio};

use gabion_host::file_disk::create_image;
use gabion_host::signature::{identify, wipe};

use crate::temp::{TempDir, start};

const UUID: &str = "01234567-89ab-4def-8123-456789abcdef";

/// Program and arguments, size in MiB; name, label and identity to be found.
type Case =
    (&'static [&'static str], u64, &'static str, Option<&'static str>, Option<&'static str>);

const CASES: &[Case] = &[
    (&["mkfs.ext2", "-q", "-L", "label", "-U", UUID], 8, "ext2", Some("label"), Some(UUID)),
    (&["mkfs.ext3", "-q", "-L", "label", "-U", UUID], 8, "ext3", Some("label"), Some(UUID)),
    (&["mkfs.ext4", "-q", "-L", "label", "-U", UUID], 8, "ext4", Some("label"), Some(UUID)),
    (&["mkswap", "-L", "label", "-U", UUID], 8, "swap", Some("label"), Some(UUID)),
    (&["mkfs.xfs", "-q", "-L", "label"], 320, "xfs", Some("label"), None),
    (&["mkfs.btrfs", "-q", "-L", "label", "-U", UUID], 128, "btrfs", Some("label"), Some(UUID)),
    (&["mkfs.vfat", "-F", "32", "-n", "LABEL"], 64, "vfat", Some("LABEL"), None),
    (&["mkfs.vfat", "-F", "16", "-n", "LABEL"], 16, "vfat", Some("LABEL"), None),
    (&["mkfs.exfat"], 16, "exfat", None, None),
    (&["mkfs.ntfs", "-q", "-F", "-f"], 16, "ntfs", None, None),
    (&["mkfs.f2fs", "-q"], 128, "f2fs", None, None),
    (&["mkfs.nilfs2", "-q", "-L", "label"], 256, "nilfs2", Some("label"), None),
    (&["mkfs.jfs", "-q", "-L", "label"], 32, "jfs", Some("label"), None),
    (&["mkfs.reiserfs", "-q", "-f", "-f", "-l", "label"], 64, "reiserfs", Some("label"), None),
    (&["mkfs.ocfs2", "-q", "-F", "-M", "local"], 256, "ocfs2", None, None),
    (&["mkfs.gfs2", "-q", "-O", "-p", "lock_nolock"], 128, "gfs2", None, None),
    (&["sgdisk", "-n", "1:2048:4095"], 8, "GPT partition table", None, None),
];

#[test]
fn formats_are_known_by_what_their_own_programs_make() {
    let folder = TempDir::for_starting();
    for (number, (command, mib, name, label, uuid)) in CASES.iter().enumerate() {
        let path = folder.join(&format!("image-{number}"));
        create_image(&path, mib << 20).unwrap();
        let mut program = Command::new(command[0]);
        program
            .args(&command[1..])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let made = start(&mut program).and_then(|mut child| child.wait());
        if !made.is_ok_and(|status| status.success()) {
            // Not installed, or not this version.
            eprintln!("{command:?} is left out");
            continue;
        }
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let found = identify(&file).unwrap().unwrap_or_else(|| panic!("nothing by {command:?}"));
        assert_eq!(found.name, *name, "{command:?}");
        if label.is_some() {
            assert_eq!(found.label.as_deref(), *label, "{command:?}");
        }
        if uuid.is_some() {
            assert_eq!(found.uuid.as_deref(), *uuid, "{command:?}");
        }
        wipe(&file).unwrap();
        assert_eq!(identify(&file).unwrap(), None, "{command:?}");
    }
}
