//! Bringing back from snapshots what is gone.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr,
    lsetxattr, mknodat, utimensat,
};
use serde_json::Value;

use crate::backups::shared_places::stopped_when;
use crate::served_snapshots::Site;
use crate::volumes::stage::Stage;
use crate::world::{Folder, GABION, Running, await_that, names};

fn age(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: 1_600_000_000 + seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// What can be seen of each object of a tree, by its path from there.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    let mut linked: BTreeMap<u64, usize> = BTreeMap::new();
    while let Some(path) = rest.pop() {
        let it = fs::symlink_metadata(&path).unwrap();
        let content = match () {
            () if it.is_dir() => {
                rest.extend(names(&path).into_iter().rev().map(|name| path.join(name)));
                String::new()
            }
            () if it.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () if it.is_file() => {
                let bytes = fs::read(&path).unwrap();
                format!(
                    "{} {:x}",
                    bytes.len(),
                    bytes.iter().fold(0_u64, |sum, byte| {
                        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
                    })
                )
            }
            () => format!("{}", it.rdev()),
        };
        let group = match it.nlink() > 1 && !it.is_dir() {
            true => {
                let next = linked.len();
                Some(*linked.entry(it.ino()).or_insert(next))
            }
            false => None,
        };
        let attributes = ["user.note", "system.posix_acl_access", "system.posix_acl_default"];
        let attributes = attributes.map(|name| xattr(&path, name));
        let text = format!(
            "{:o} {} {} {} {} {} {group:?} {attributes:?} {content}",
            it.mode(),
            it.uid(),
            it.gid(),
            it.nlink(),
            it.mtime(),
            it.mtime_nsec(),
        );
        found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
    }
    found
}

/// user::rwx, user:1000:r, group::r, mask::r, other::-
fn acl() -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        &2_u32.to_le_bytes(),
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 232, 3, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ];
    parts.concat()
}

/// A tree with one of everything.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("letters/old")).unwrap();
    fs::write(root.join("letters/one"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("letters/one"), root.join("letters/old/other name")).unwrap();
    fs::write(root.join("letters/small"), "small").unwrap();
    lsetxattr(root.join("letters/small"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        lsetxattr(root.join("letters/old"), name, &acl(), XattrFlags::empty()).unwrap();
    }
    let holes = File::create(root.join("letters/holes")).unwrap();
    holes.write_all_at(b"far", 10 << 20).unwrap();
    holes.set_len(20 << 20).unwrap();
    symlink("one", root.join("letters/link")).unwrap();
    mknodat(CWD, root.join("letters/pipe"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    let zero = rustix::fs::makedev(1, 5);
    let device = root.join("letters/zero");
    mknodat(CWD, device, FileType::CharacterDevice, Mode::from(0o604), zero).unwrap();
    let small = root.join("letters/small");
    let (uid, gid) = (Some(Uid::from_raw(1234)), Some(Gid::from_raw(4321)));
    chownat(CWD, &small, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    fs::set_permissions(&small, Permissions::from_mode(0o4751)).unwrap();
    for (index, path) in ["link", "one", "small", "holes", "pipe", "old", ""].iter().enumerate() {
        age(&root.join("letters").join(path), index as i64);
    }
}

#[test]
fn a_tree_comes_back_whole_from_the_newest_snapshot_that_has_it() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let dir = mnt.join("home");
    fs::create_dir(&dir).unwrap();
    plant(&dir);
    fs::set_permissions(&dir, Permissions::from_mode(0o710)).unwrap();
    age(&dir, 99);
    let was = seen(&dir);
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::write(dir.join("letters/small"), "changed").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "two"]).succeeded();
    fs::remove_dir_all(dir.join("letters")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "three"]).succeeded();
    // The newest that has it.
    let text = folder.gabion(&["undelete", "mnt/home/letters/small"]).succeeded();
    assert!(text.contains("from the snapshot two"), "{text}");
    assert_eq!(fs::read(dir.join("letters/small")).unwrap(), b"changed");
    assert_eq!(names(&dir.join("letters")), ["small"], "nothing else comes with it");
    fs::remove_dir_all(&dir).unwrap();
    // All of it, from where it is told, with the folder above.
    folder.gabion(&["undelete", "--from", "one", "mnt/home/letters"]).succeeded();
    assert_eq!(seen(&dir), was);
    let holes = fs::metadata(dir.join("letters/holes")).unwrap();
    assert!(holes.blocks() < 100, "{}", holes.blocks());
    assert!(fs::symlink_metadata(dir.join("letters/pipe")).unwrap().file_type().is_fifo());
    // And the root's own.
    fs::remove_dir_all(&dir).unwrap();
    folder.gabion(&["undelete", "--from", "one", "mnt/home"]).succeeded();
    assert_eq!(seen(&dir), was);
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn what_is_deeper_than_a_path_can_be_comes_back() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    let shell = |end: &str| {
        let script = format!(
            "mkdir -p mnt/deep; cd mnt/deep; for i in $(seq 50); do d=$(printf '%0200d' $i); \
             mkdir -p $d; cd $d; done; {end}"
        );
        folder.run(Command::new("bash").args(["-ec", &script])).succeeded()
    };
    shell("echo there > file; ln file second; ln -s file link");
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    folder.run(Command::new("rm").args(["-r", "mnt/deep"])).succeeded();
    folder.gabion(&["undelete", "mnt/deep"]).succeeded();
    assert_eq!(shell("cat link; stat -c %h second"), "there\n2\n");
}

#[test]
fn what_is_there_is_never_overwritten() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    for name in ["one", "two"] {
        fs::write(mnt.join("file"), name).unwrap();
        folder.gabion(&["snapshot", "create", "mnt", name]).succeeded();
    }
    fs::write(mnt.join("file"), "now").unwrap();
    let undelete = |words: &[&str]| folder.gabion(&[&["undelete"], words].concat());
    undelete(&["mnt/file"]).failed(1, &["is there, and stays as it is", "--to", "two, one"]);
    undelete(&["mnt/file", "--to", "mnt/file"]).failed(1, &["stays as it is"]);
    assert_eq!(fs::read(mnt.join("file")).unwrap(), b"now");
    undelete(&["mnt/file", "--to", "mnt/older"]).succeeded();
    undelete(&["mnt/file", "--from", "one", "--to", "mnt/oldest"]).succeeded();
    let read = |name: &str| fs::read_to_string(mnt.join(name)).unwrap();
    assert_eq!([read("file"), read("older"), read("oldest")], ["now", "two", "one"]);
    undelete(&["mnt/file", "--to", "mnt/absent/file"]).failed(1, &["Nothing was restored"]);
    assert_eq!(names(&mnt), ["file", "older", "oldest"]);
    // Nor is anything left of what fails half way.
    folder.gabion(&["quota", "set", "mnt", "none", "--objects", "6"]).succeeded();
    fs::create_dir(mnt.join("dir")).unwrap();
    for name in ["a", "b"] {
        fs::write(mnt.join("dir").join(name), name).unwrap_or_default();
    }
    folder.gabion(&["snapshot", "create", "mnt", "three"]).succeeded();
    folder.gabion(&["quota", "set", "mnt", "none", "--objects", "7"]).succeeded();
    undelete(&["mnt/dir", "--to", "mnt/copy"]).failed(1, &["Nothing was restored"]);
    assert_eq!(names(&mnt), ["dir", "file", "older", "oldest"]);
}

#[test]
fn choices_are_listed_and_what_cannot_be_found_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let undelete = |words: &[&str]| folder.gabion(&[&["undelete"], words].concat());
    undelete(&["mnt/file"]).failed(1, &["has no snapshots"]);
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    fs::write(mnt.join("home/file"), "content").unwrap();
    for name in ["one", "two"] {
        folder.gabion(&["snapshot", "create", "mnt/home", name]).succeeded();
    }
    fs::remove_file(mnt.join("home/file")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt/home", "three"]).succeeded();
    let text = undelete(&["--list", "mnt/home/file"]).succeeded();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("two  a file of 7 B, modified 20"), "{text}");
    assert!(lines[1].starts_with("one  ") && lines.len() == 2, "{text}");
    let text = undelete(&["--list", "--json", "mnt/home/file"]).succeeded();
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&rows[0]["snapshot"], &rows[0]["bytes"]), (&"two".into(), &7.into()));
    undelete(&["mnt/home/other"]).failed(1, &["no snapshot of", "of 3 in all"]);
    undelete(&["--from", "three", "mnt/home/file"]).failed(1, &["has no", "two, one"]);
    undelete(&["--from", "four", "mnt/home/file"]).failed(1, &["\"four\" has no"]);
    undelete(&["mnt/home/.snapshots/one/file"]).failed(1, &["in a snapshot itself"]);
    undelete(&["absent/../mnt/file"]).failed(1, &["absent/..", "No such file"]);
    undelete(&["/etc/passwd"]).failed(1, &["not in a mounted Gabion filesystem"]);
    undelete(&["mnt/"]).failed(1, &["/mnt is a filesystem itself", "snapshot rollback"]);
    let parts = ["Nothing was restored", "same filesystem", "cp -a", ".snapshots/two/file"];
    undelete(&["mnt/home/file", "--to", "plain"]).failed(1, &parts);
    undelete(&["--list", "--to", "x", "mnt/file"]).failed(2, &["--to"]);
    undelete(&["mnt/home/file"]).succeeded();
    assert_eq!(fs::read(mnt.join("home/file")).unwrap(), b"content");
}

#[test]
fn what_is_gone_comes_back_at_a_mount_of_what_is_served() {
    let Some(site) = Site::new() else { return };
    let mnt = site.mount("", "a");
    fs::create_dir(mnt.join("letters")).unwrap();
    // Names there come in no order, and the newest is meant all the same.
    let snapshots: Vec<_> = (0..9).map(|number| format!("snapshot-{number}")).collect();
    for name in &snapshots {
        fs::write(mnt.join("letters/old"), name).unwrap();
        site.folder.gabion(&["snapshot", "create", "a", name]).succeeded();
    }
    fs::remove_dir_all(mnt.join("letters")).unwrap();
    let listed = site.folder.gabion(&["undelete", "--list", "a/letters/old"]).succeeded();
    let listed: Vec<_> = listed.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert!(listed.iter().eq(snapshots.iter().rev()), "{listed:?}");
    site.folder.gabion(&["undelete", "a/letters"]).succeeded();
    assert_eq!(fs::read_to_string(mnt.join("letters/old")).unwrap(), snapshots[8]);
    site.finish(&["a"]);
}

#[test]
fn a_tree_comes_back_whole_from_what_nobody_has_in_use() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let undelete = |words: &[&str]| folder.gabion(&[&["undelete"], words].concat());
    folder.gabion(&["subvolume", "create", "disk.img:/sub"]).succeeded();
    let mnt = folder.mount("");
    let dir = mnt.join("sub/home");
    fs::create_dir(&dir).unwrap();
    plant(&dir);
    fs::set_permissions(&dir, Permissions::from_mode(0o710)).unwrap();
    age(&dir, 99);
    let was = seen(&dir);
    folder.gabion(&["snapshot", "create", "mnt/sub", "one"]).succeeded();
    fs::write(dir.join("letters/small"), "changed").unwrap();
    folder.gabion(&["snapshot", "create", "disk.img:/sub", "two"]).succeeded();
    fs::remove_dir_all(&dir).unwrap();
    let listed = ["letters", "letters/small", "letters/link", "letters/pipe"].map(|path| {
        let listed = undelete(&["--list", &format!("mnt/sub/home/{path}")]).succeeded();
        (format!("disk.img:/sub/home/{path}"), listed)
    });
    folder.gabion(&["umount", "mnt"]).succeeded();
    // The same choices.
    for (path, wanted) in listed {
        assert_eq!(undelete(&["--list", &path]).succeeded(), wanted);
    }
    let text = undelete(&["--list", "--json", "disk.img:/sub/home/letters/one"]).succeeded();
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(rows[1]["path"], "disk.img:/sub/.snapshots/one/home/letters/one");
    assert_eq!((&rows[1]["kind"], &rows[1]["bytes"]), (&"file".into(), &300_000.into()));
    // The same restore, with the folder above.
    let text = undelete(&["--from", "one", "disk.img:/sub/home/letters"]).succeeded();
    assert!(text.starts_with("disk.img:/sub/home/letters: restored from the snapshot one, a fo"));
    let to = ["disk.img:/sub/home/letters/small", "--to", "disk.img:/sub/newest"];
    assert!(undelete(&to).succeeded().contains("from the snapshot two"));
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    folder.mount("");
    assert_eq!(seen(&dir), was);
    let holes = fs::metadata(dir.join("letters/holes")).unwrap();
    assert!(holes.blocks() < 100, "{}", holes.blocks());
    assert_eq!(fs::read(mnt.join("sub/newest")).unwrap(), b"changed");
    // By the name of the image where it is mounted, too.
    fs::remove_dir_all(&dir).unwrap();
    undelete(&["--from", "one", "disk.img:/sub/home", "--to", "disk.img:/sub/again"]).succeeded();
    assert_eq!(seen(&mnt.join("sub/again")), was);
}

#[test]
fn what_fails_leaves_what_nobody_has_in_use_as_it_was() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let undelete = |words: &[&str]| folder.gabion(&[&["undelete"], words].concat());
    undelete(&["disk.img:/file"]).failed(1, &["disk.img:/ has no snapshots"]);
    let mnt = folder.mount("");
    fs::create_dir_all(mnt.join("dir/in")).unwrap();
    for name in ["a", "b"] {
        fs::write(mnt.join("dir").join(name), name).unwrap();
        fs::write(mnt.join("dir/in").join(name), vec![1; 1 << 20]).unwrap();
    }
    symlink("dir", mnt.join("link")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::write(mnt.join("dir/a"), "now").unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    undelete(&["disk.img:/dir/a"]).failed(1, &["disk.img:/dir/a is there, and stays", "one"]);
    undelete(&["disk.img:/dir/a", "--to", "disk.img:/dir/b"]).failed(1, &["/dir/b is there"]);
    let absent = ["disk.img:/dir", "--to", "disk.img:/absent/dir"];
    undelete(&absent).failed(1, &["cannot restore disk.img:/absent/dir", "Nothing was restored"]);
    undelete(&["disk.img:/other"])
        .failed(1, &["no snapshot of disk.img:/ has", "snapshot list disk.img:/"]);
    undelete(&["disk.img:/link/a"]).failed(1, &["no snapshot of", "of 1 in all"]);
    undelete(&["--from", "two", "disk.img:/dir/a"]).failed(1, &["has no disk.img:/dir/a", "one"]);
    undelete(&["disk.img:/.snapshots/one/dir"]).failed(1, &["in a snapshot itself"]);
    undelete(&["disk.img:/"]).failed(1, &["is a whole filesystem"]);
    undelete(&["disk.img:/dir/../dir"]).failed(1, &[".."]);
    undelete(&["disk.img:/dir", "--to", "copy"]).failed(1, &["copy is neither"]);
    // Half way there is no room for it.
    folder.gabion(&["quota", "set", "disk.img", "none", "--objects", "11"]).succeeded();
    let copy = ["disk.img:/dir", "--to", "disk.img:/copy"];
    undelete(&copy).failed(1, &["cannot restore disk.img:/copy", "quota", "Nothing was restored"]);
    let quota = folder.gabion(&["quota", "list", "disk.img"]).succeeded();
    assert!(quota.contains("8 of 11 objects"), "{quota}");
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    folder.mount("");
    assert_eq!(names(&mnt), ["dir", "link"]);
    assert_eq!(fs::read(mnt.join("dir/a")).unwrap(), b"now");
}

#[test]
fn nothing_is_left_of_what_its_folder_cannot_be_given_back_for() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let shared = folder.mount("").join("shared");
    fs::create_dir_all(shared.join("dir")).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    fs::write(shared.join("dir/file"), "content").unwrap();
    let nobody = (Some(Uid::from_raw(65_534)), Some(Gid::from_raw(65_534)));
    chownat(CWD, shared.join("dir/file"), nobody.0, nobody.1, AtFlags::empty()).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::remove_dir_all(shared.join("dir")).unwrap();
    // The folder was root's.
    let mut command = Command::new(GABION);
    command.arg("undelete").arg(shared.join("dir/file")).uid(65_534).gid(65_534);
    let done = command.env("GABION_STATE", folder.join("state")).output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(told.contains("shared/dir: Operation not permitted"), "{told}");
    assert!(told.contains("Nothing was restored"), "{told}");
    assert_eq!(names(&shared), [""; 0]);
}

#[test]
fn what_comes_back_has_no_acl_of_the_folder_that_it_comes_to() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let file = mnt.join("dir/file");
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(&file, "content").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    lsetxattr(mnt.join("dir"), "system.posix_acl_default", &acl(), XattrFlags::empty()).unwrap();
    let check = |path: &Path| {
        assert_eq!(xattr(path, "system.posix_acl_access"), None, "{}", path.display());
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o640);
    };
    folder.gabion(&["undelete", "mnt/dir/file", "--to", "mnt/dir/mounted"]).succeeded();
    check(&mnt.join("dir/mounted"));
    folder.gabion(&["umount", "mnt"]).succeeded();
    let to = "disk.img:/dir/unused";
    folder.gabion(&["undelete", "disk.img:/dir/file", "--to", to]).succeeded();
    folder.mount("");
    check(&mnt.join("dir/unused"));
}

#[test]
fn what_comes_back_without_its_server_stands_beside_what_clients_have_done() {
    let Some(mut site) = Site::new() else { return };
    let mnt = site.mount("", "a");
    fs::create_dir(mnt.join("letters")).unwrap();
    for index in 0..40 {
        fs::write(mnt.join(format!("letters/{index}")), "dear").unwrap();
    }
    site.folder.gabion(&["snapshot", "create", "a", "one"]).succeeded();
    fs::remove_dir_all(mnt.join("letters")).unwrap();
    fs::write(mnt.join("open"), vec![7; 100_000]).unwrap();
    let open = File::open(mnt.join("open")).unwrap();
    fs::remove_file(mnt.join("open")).unwrap();
    File::open(&mnt).unwrap().sync_all().unwrap();
    let next = "Mount it";
    site.folder.gabion(&["undelete", "disk.img:/letters"]).failed(1, &["is served", next]);
    // Only this client has them by then, with numbers that it has got since the last commit.
    let other = site.mount("", "b");
    for index in 0..40 {
        fs::write(other.join(format!("new{index}")), format!("{index}")).unwrap();
    }
    site.restart_after(|folder| {
        folder.gabion(&["undelete", "disk.img:/letters"]).succeeded();
        folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    });
    for index in 0..40 {
        let read = fs::read_to_string(other.join(format!("new{index}"))).unwrap();
        assert_eq!(read, format!("{index}"));
        assert_eq!(fs::read(mnt.join(format!("letters/{index}"))).unwrap(), b"dear");
    }
    let mut bytes = vec![0; 100_000];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, vec![7; 100_000]);
    drop(open);
    assert_eq!(names(&mnt).len(), 41);
    site.finish(&["a", "b"]);
}

#[test]
fn what_is_gone_comes_back_on_a_volume_that_nobody_has_in_use() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.mirror_of_files();
    let host = stage.host();
    host.mount();
    let letter = stage.path("mnt/letter");
    fs::write(&letter, "dear").unwrap();
    host.gabion(&["snapshot", "create", "tank", "one"]).succeeded();
    fs::remove_file(&letter).unwrap();
    host.unmount();
    host.gabion(&["undelete", "--list", "tank:/letter"]).succeeded();
    host.gabion(&["undelete", "tank:/letter"]).succeeded();
    host.gabion(&["undelete", "tank:/letter"]).failed(1, &["tank:/letter is there"]);
    host.mount();
    assert_eq!(fs::read(&letter).unwrap(), b"dear");
    host.gabion(&["scrub", "--allocation", "tank"]).succeeded();
    host.unmount();
}

/// The only folder in which something is made that is not finished.
fn unfinished(dir: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    names.into_iter().find(|path| path.display().to_string().contains(".undelete-"))
}

#[test]
fn who_is_killed_goes_on_where_he_was() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let dir = mnt.join("home");
    fs::create_dir(&dir).unwrap();
    plant(&dir);
    let many = dir.join("letters");
    for number in 0..300 {
        fs::write(many.join(format!("{number}")), format!("{number}")).unwrap();
        if number % 3 == 0 {
            fs::hard_link(many.join(format!("{number}")), many.join(format!("{number}-"))).unwrap();
        }
    }
    for path in [&many, &dir] {
        fs::set_permissions(path, Permissions::from_mode(0o710)).unwrap();
        age(path, 7);
    }
    let was = seen(&dir);
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::remove_dir_all(&dir).unwrap();
    let mut command = Command::new(GABION);
    command.args(["undelete", "mnt/home/letters"]).current_dir(folder.path());
    let mut first = Running(command.spawn().unwrap());
    let copied = || unfinished(&mnt).map(|path| path.join("home/letters"));
    let is_far = |path: PathBuf| fs::read_dir(path).is_ok_and(|names| names.count() >= 40);
    await_that(|| copied().is_some_and(is_far));
    // Nobody does the same at the same time.
    let busy = "is just being restored by somebody else";
    folder.gabion(&["undelete", "mnt/home/letters"]).failed(1, &["mnt/home/letters", busy]);
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let begun = unfinished(&mnt).expect("it was not so fast");
    // Nor does anybody go on in a folder in which others could have changed something.
    let allow = |mode| fs::set_permissions(&begun, Permissions::from_mode(mode)).unwrap();
    allow(0o777);
    let foreign = "it is there, and others could have changed";
    folder.gabion(&["undelete", "mnt/home/letters"]).failed(1, &[foreign]);
    allow(0o700);
    let inode = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
    let begun = copied().unwrap();
    let whole: Vec<_> = names(&begun).into_iter().take(30).collect();
    let kept: Vec<_> = whole.iter().map(|name| inode(begun.join(name))).collect();
    assert!(!dir.exists(), "it comes whole or not at all");
    folder.gabion(&["undelete", "mnt/home/letters"]).succeeded();
    assert_eq!(seen(&dir), was);
    // All but the last one that had been begun were whole.
    let again = whole.iter().map(|name| inode(many.join(name)));
    let others = again.zip(&kept).filter(|(again, kept)| again != *kept).count();
    assert!(others <= 1, "{others} of 30 were made again");
    assert!(unfinished(&mnt).is_none());
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn who_may_write_where_it_comes_back_leads_nobody_elsewhere() {
    let Some(folder) = Folder::for_mounts() else { return };
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder.image();
    let mnt = folder.mount("");
    let letters = mnt.join("shared/home/letters");
    fs::create_dir_all(&letters).unwrap();
    fs::set_permissions(mnt.join("shared"), Permissions::from_mode(0o777)).unwrap();
    for number in 0..300 {
        fs::write(letters.join(format!("{number}")), format!("{number}")).unwrap();
    }
    // What is not whole is nobody's business, whatever it will be.
    fs::set_permissions(&letters, Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(mnt.join("outside")).unwrap();
    let was = seen(&mnt.join("shared/home"));
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::remove_dir_all(mnt.join("shared/home")).unwrap();
    let as_other = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-euc", &format!("cd mnt/shared; {script}")]).uid(65_534).gid(65_534);
        folder.run(&mut command).succeeded();
    };
    let undelete = ["undelete", "mnt/shared/home/letters"];
    let begun = || unfinished(&mnt.join("shared"));
    let is_far = || {
        let path = begun().map(|path| path.join("home/letters"));
        path.and_then(|path| fs::read_dir(path).ok()).is_some_and(|names| names.count() >= 40)
    };
    let mut running = stopped_when(&folder, &undelete, is_far);
    let scratch = begun().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    as_other(&format!("! ls {scratch} 2>/dev/null; test ! -e home"));
    as_other(&format!("mv {scratch} away; ln -s ../outside {scratch}"));
    running.signal(rustix::process::Signal::CONT);
    assert!(running.0.wait().unwrap().success());
    assert_eq!(seen(&mnt.join("shared/home")), was);
    assert_eq!(names(&mnt.join("shared/away")), [""; 0]);
    // It is led nowhere either by what was there before it.
    fs::remove_dir_all(mnt.join("shared/home")).unwrap();
    let link = format!("ln -s ../outside {scratch}");
    let open = format!("mkdir -m 777 {scratch}; ln -s ../../outside {scratch}/home");
    let closed = format!("mkdir -m 700 {scratch}");
    for planting in [link, open, closed] {
        as_other(&format!("rm -r {scratch}; {planting}"));
        folder.gabion(&undelete).failed(1, &["others could have changed", &scratch]);
    }
    as_other(&format!("rm -r {scratch}"));
    folder.gabion(&undelete).succeeded();
    assert_eq!(seen(&mnt.join("shared/home")), was);
    assert_eq!(names(&mnt.join("shared")), ["away", "home"]);
    assert_eq!(names(&mnt.join("outside")), [""; 0]);
}
