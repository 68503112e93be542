//! Restorations to what is in the way, to what others have prepared, and to filesystems that do not
//! take all of a tree.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::killed::program;
use super::trees::{assert_same, noise, survey};
use super::{backups, mount, other, run};
use crate::world::{Folder, GABION, GLANCE, Outcome, names};

/// A user who is not root.
const NOBODY: u32 = 65534;

/// The trees in a folder that are not complete.
fn unfinished(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| name.contains(".restoring-")).collect()
}

#[test]
fn what_was_begun_of_a_part_is_not_taken_for_a_part_of_the_whole() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    fs::create_dir(mnt.join("part")).unwrap();
    for number in 0..40 {
        fs::write(mnt.join(format!("part/{number}")), noise(number, 200_000)).unwrap();
    }
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let at = other(&folder);
    let restore = |more: &[&str]| {
        folder.gabion(&[&["restore"], more, &["full.gabion", "other/tree"]].concat())
    };
    folder.gabion(&["quota", "set", "other", "2M"]).succeeded();
    restore(&["--only", "part"]).failed(1, &["exceeded", "run it again"]);
    assert_eq!(unfinished(&at).len(), 1);
    folder.gabion(&["quota", "set", "other", "none"]).succeeded();
    restore(&[]).succeeded();
    assert_same(&wanted, &at.join("tree"));
    // Who wants the part goes on with it.
    fs::rename(at.join("tree"), at.join("whole")).unwrap();
    restore(&["--only", "part"]).succeeded();
    assert_same(&survey(&mnt.join("part")), &at.join("tree"));
    assert_eq!(unfinished(&at), Vec::<String>::new());
}

#[test]
fn who_goes_on_finds_links_of_what_was_made_once_more() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = mount(&folder);
    fs::write(mnt.join("one"), noise(1, 5000)).unwrap();
    fs::hard_link(mnt.join("one"), mnt.join("two")).unwrap();
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    // As one leaves it that has linked what did not get its time.
    let stream = backups(&folder, "full.gabion")[0]["stream"].as_str().unwrap().to_owned();
    let scratch = folder.join(&format!(".tree.restoring-{}", &stream[..8]));
    let tree = scratch.join(format!("{stream}-{}", fs::metadata(&mnt).unwrap().ino()));
    for dir in [&scratch, &tree] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(tree.join("one"), noise(1, 5000)).unwrap();
    fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
    folder.gabion(&["restore", "--to-directory", "full.gabion", "tree"]).succeeded();
    assert_same(&wanted, &folder.join("tree"));
}

#[test]
fn what_is_in_the_way_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = mount(&folder);
    fs::create_dir(mnt.join("lost+found")).unwrap();
    fs::write(mnt.join("lost+found/found"), "found").unwrap();
    fs::write(mnt.join("file"), "content").unwrap();
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let restore = |to: &str| folder.gabion(&["restore", "--to-directory", "full.gabion", to]);
    let parts = ["mnt/file is there already", "mnt/file:/PATH"];
    folder.gabion(&["restore", "full.gabion", "mnt/file"]).failed(1, &parts);
    let parts = ["mnt/file is no directory"];
    folder.gabion(&["restore", "full.gabion", "mnt/file/tree"]).failed(1, &parts);
    // The root of a new filesystem, and of one that fsck(8) has mended.
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(root.join("lost+found/#12"), "").unwrap();
    restore("root").failed(1, &["root/lost+found is in the way", "Empty it"]);
    assert_eq!(unfinished(&root), Vec::<String>::new());
    fs::remove_file(root.join("lost+found/#12")).unwrap();
    restore("root").succeeded();
    assert_same(&wanted, &root);
}

/// Restores as a user who is not root, to `home/tree`.
fn restore_as_nobody(folder: &Folder) -> Option<Outcome> {
    let prepared = "command -v setpriv >/dev/null || exit 77; \
        mkdir home && cp \"$0\" home/gabion && chown 65534 home && chmod 755 . && cd home && \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \
        ./gabion restore --to-directory ../full.gabion tree";
    let outcome = folder.run(Command::new("sh").args(["-c", prepared, GABION]));
    (outcome.code() != Some(77)).then_some(outcome)
}

#[test]
fn what_an_ordinary_user_cannot_give_is_told_and_the_rest_is_restored() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = mount(&folder);
    fs::write(mnt.join("program"), noise(1, 5000)).unwrap();
    fs::write(mnt.join("plain"), "plain").unwrap();
    run(&folder, "chmod", &["4755", "mnt/program"]);
    run(&folder, "mknod", &["mnt/device", "c", "1", "3"]);
    fs::hard_link(mnt.join("device"), mnt.join("again")).unwrap();
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let Some(outcome) = restore_as_nobody(&folder) else { return };
    let said = outcome.stderr.clone();
    outcome.succeeded();
    let parts = ["3 owners", "1 set of permissions", "1 hard link", "1 special file"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    let tree = folder.join("home/tree");
    assert_eq!(names(&tree), ["plain", "program"]);
    let program = fs::metadata(tree.join("program")).unwrap();
    // What root gave to run as root does not run as whoever has restored it.
    assert_eq!((program.uid(), program.mode() & 0o7777), (NOBODY, 0o755));
    assert_eq!(fs::read(tree.join("program")).unwrap(), noise(1, 5000));
    // Of root nothing is lost.
    let outcome = folder.gabion(&["restore", "--to-directory", "full.gabion", "tree"]);
    assert_eq!(outcome.stderr, "");
    assert_same(&survey(&mnt), &folder.join("tree"));
}

#[test]
fn times_and_attributes_that_a_filesystem_has_no_room_for_are_told() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = mount(&folder);
    fs::write(mnt.join("file"), "content").unwrap();
    fs::write(mnt.join("even"), "content").unwrap();
    for path in ["mnt/file", "mnt/even", "mnt"] {
        run(&folder, "touch", &["-d", "2020-01-01T00:00:00Z", path]);
    }
    // Whole seconds are all that those with small inodes have, and 4 KiB for all attributes.
    run(&folder, "touch", &["-d", "2020-01-01T00:00:00.5Z", "mnt/file"]);
    for name in ["user.one", "user.two"] {
        let value = [b'v'; 3000];
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(mnt.join("even"), name, &value, flags).unwrap();
    }
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let at = folder.join("plain");
    fs::create_dir(&at).unwrap();
    let prepared = "truncate -s 64M plain.disk && mkfs.ext4 -q -b 4096 -I 128 plain.disk && \
        mount -o loop plain.disk plain";
    if folder.run(Command::new("sh").args(["-c", prepared])).code() != Some(0) {
        eprintln!("left out: needs mkfs.ext4 and a loop device");
        return;
    }
    let outcome = folder.gabion(&["restore", "--to-directory", "full.gabion", "plain/tree"]);
    let said = outcome.stderr.clone();
    outcome.succeeded();
    assert!(said.contains("does not take: 1 time, 1 extended attribute\n"), "{said}");
    assert_eq!(fs::read_to_string(at.join("tree/file")).unwrap(), "content");
}

/// Starts a restoration to what nobody has in use, and waits until it has that mounted.
fn begun(folder: &Folder) -> Child {
    let mut command = program(folder, &["restore", "full.gabion", "other.img:/tree"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mountpoint = format!("/of-{} ", child.id());
    let begun = Instant::now();
    while !fs::read_to_string("/proc/thread-self/mounts").unwrap().contains(&mountpoint) {
        assert!(begun.elapsed() < Duration::from_secs(120), "it is never mounted");
        std::thread::sleep(GLANCE);
    }
    child
}

#[test]
fn who_is_killed_with_what_nobody_has_in_use_is_followed_at_once_and_who_is_not_by_nobody() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = mount(&folder);
    for number in 0..20 {
        fs::write(mnt.join(format!("{number}")), noise(number, 1 << 20)).unwrap();
    }
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    folder.gabion(&["mkfs", "--size", "64M", "other.img"]).succeeded();
    let again = || folder.gabion(&["restore", "full.gabion", "other.img:/tree"]);
    let mut child = begun(&folder);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    again().failed(1, &["other.img is in use by another restoration", "Wait until it is done"]);
    child.kill().unwrap();
    child.wait().unwrap();
    again().succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["mount", "other.img", "mnt"]).succeeded();
    assert_same(&wanted, &mnt.join("tree"));
}
