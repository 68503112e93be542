//! mount(8), umount(8) and fstab, through a helper program named `mount.gabion`.
//!
//! mount(8) looks for it in `/sbin` only. So the commands run in a mount namespace of their own, in
//! which a folder with the helper lies over `/usr/sbin`; nothing of that is seen outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::world::{Folder, GABION, Outcome};

/// Runs a shell script in which mount(8) knows the type `gabion`.
fn script(folder: &Folder, text: &str) -> Outcome {
    fs::create_dir_all(folder.join("sbin")).unwrap();
    let _ = symlink(GABION, folder.join("sbin/mount.gabion"));
    let prepared = "set -e\n\
        mount -t overlay -o lowerdir=$PWD/sbin:/usr/sbin none /usr/sbin || exit 77\n";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    folder.run(command.arg(format!("{prepared}{text}")))
}

fn is_impossible(outcome: &Outcome) -> bool {
    let impossible = outcome.code() == Some(77);
    if impossible {
        eprintln!("left out: no overlay over /usr/sbin: {}", outcome.stderr);
    }
    impossible
}

#[test]
fn mount8_mounts_and_umount8_unmounts() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    fs::create_dir(folder.join("mnt")).unwrap();
    let text = "mount -t gabion -o noatime,cache=32M,x-systemd.automount $PWD/disk.img $PWD/mnt\n\
        echo kept >mnt/file\n\
        grep \" $PWD/mnt \" /proc/self/mounts\n\
        umount $PWD/mnt\n";
    let outcome = script(&folder, text);
    if is_impossible(&outcome) {
        return;
    }
    let mounted = outcome.succeeded();
    assert!(mounted.contains("gabion") && mounted.contains("noatime"), "{mounted}");
    let mountpoint = folder.mount("ro");
    assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), "kept\n");
}

#[test]
fn an_fstab_line_is_all_that_mount8_needs() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    fs::create_dir(folder.join("mnt")).unwrap();
    let text = "echo \"$PWD/disk.img $PWD/mnt gabion noauto,nofail,_netdev,nosuid 0 0\" >fstab\n\
        mount -T fstab $PWD/mnt\n\
        grep \" $PWD/mnt \" /proc/self/mounts\n\
        umount $PWD/mnt\n";
    let outcome = script(&folder, text);
    if is_impossible(&outcome) {
        return;
    }
    let mounted = outcome.succeeded();
    assert!(mounted.contains("nosuid"), "{mounted}");
}

#[test]
fn the_helper_fails_with_the_codes_that_mount8_expects() {
    let folder = Folder::new();
    fs::create_dir(folder.join("mnt")).unwrap();
    fs::write(folder.join("garbage.img"), vec![7; 20 << 20]).unwrap();
    symlink(GABION, folder.join("mount.gabion")).unwrap();
    let helper =
        |arguments: &[&str]| folder.run(Command::new(folder.join("mount.gabion")).args(arguments));
    helper(&["missing.img", "mnt", "-o", "rw"]).failed(32, &["missing.img"]);
    helper(&["missing.img"]).failed(1, &["Usage: mount.gabion"]);
    helper(&["missing.img", "mnt", "-o", "sped"]).failed(1, &["\"sped\""]);
    helper(&["missing.img", "mnt", "-f"]).succeeded();
    if rustix::process::geteuid().is_root() {
        helper(&["garbage.img", "mnt", "-n", "-s"]).failed(32, &["holds no Gabion filesystem"]);
    }
}
