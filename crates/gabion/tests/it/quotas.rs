//! Quotas of a mounted filesystem and of an image, as users meet them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{process, thread};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::Value;

use crate::world::{Folder, await_that};

const MIB: usize = 1 << 20;

#[track_caller]
fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> Errno {
    Errno::from_io_error(&outcome.unwrap_err()).unwrap()
}

/// The quota of the subvolume at `path` of what is mounted.
#[track_caller]
fn quota(folder: &Folder, path: &str) -> Value {
    let text = folder.gabion(&["quota", "list", "--json", "mnt"]).succeeded();
    let list: Value = serde_json::from_str(&text).unwrap();
    let quotas = list["quotas"].as_array().unwrap();
    quotas.iter().find(|quota| quota["path"] == path).cloned().unwrap_or(Value::Null)
}

/// Writes `count` MiB, one after the other, until one is refused; how many were not.
fn fill(path: &Path, count: usize) -> Result<usize, (usize, Errno)> {
    let file = File::create(path).map_err(|error| (0, Errno::from_io_error(&error).unwrap()))?;
    for index in 0..count {
        let written = file.write_all_at(&vec![1; MIB], (index * MIB) as u64);
        written.map_err(|error| (index, Errno::from_io_error(&error).unwrap()))?;
    }
    Ok(count)
}

#[test]
fn a_quota_is_a_limit_for_everybody_in_its_subvolume() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("writethrough");
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    let home = mnt.join("home");
    fs::write(home.join("early"), vec![1; 2 * MIB]).unwrap();
    let text = folder.gabion(&["quota", "set", "mnt/home", "8M"]).succeeded();
    assert!(text.contains("of 8 MiB"), "{text}");
    // 2 MiB are there already, and each object takes 4 KiB.
    assert_eq!(fill(&home.join("big"), 20), Err((5, Errno::DQUOT)));
    fs::write(mnt.join("elsewhere"), vec![1; 10 * MIB]).unwrap();
    // What is there can be overwritten, and a copy counts like what it is a copy of.
    let file = OpenOptions::new().write(true).open(home.join("big")).unwrap();
    file.write_all_at(&vec![2; 5 * MIB], 0).unwrap();
    assert_eq!(errno(fs::copy(home.join("early"), home.join("copy"))), Errno::DQUOT);
    let reserved = fallocate(&file, FallocateFlags::empty(), 0, 20 << 20);
    assert_eq!(reserved, Err(Errno::DQUOT));
    // What is removed gives room at once, also to what is kept open for a moment.
    fs::remove_file(home.join("early")).unwrap();
    fs::remove_file(home.join("copy")).unwrap();
    file.write_all_at(&vec![3; 2 * MIB], 5 << 20).unwrap();
    file.set_len(MIB as u64).unwrap();
    assert_eq!(fill(&home.join("again"), 6), Ok(6));
    drop(file);
    let now = quota(&folder, "/home");
    assert_eq!(now["limit_bytes"], 8 << 20);
    // The root, and two files.
    assert_eq!(now["used_bytes"], (7 << 20) + 3 * 4096);
    assert_eq!(now["used_objects"], 3);
    folder.gabion(&["quota", "set", "mnt/home", "none"]).succeeded();
    assert_eq!(fill(&home.join("free"), 20), Ok(20));
    assert_eq!(quota(&folder, "/home"), Value::Null);
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn objects_are_limited_and_df_shows_the_quota() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    let home = mnt.join("home");
    let all = statvfs(&mnt).unwrap();
    assert_eq!(statvfs(&home).unwrap().f_blocks, all.f_blocks);
    folder.gabion(&["quota", "set", "mnt/home", "10M", "--objects", "5"]).succeeded();
    for name in ["a", "b", "c"] {
        fs::write(home.join(name), "small").unwrap();
    }
    fs::create_dir(home.join("d")).unwrap();
    assert_eq!(errno(fs::create_dir(home.join("e"))), Errno::DQUOT);
    assert_eq!(errno(File::create(home.join("e"))), Errno::DQUOT);
    let told = statvfs(&home).unwrap();
    assert_eq!(told.f_blocks * told.f_frsize, 10 << 20);
    assert!(told.f_bavail < told.f_blocks && told.f_bavail > 2000, "{}", told.f_bavail);
    assert_eq!((told.f_files, told.f_ffree), (5, 0));
    assert_eq!(statvfs(&mnt).unwrap().f_blocks, all.f_blocks);
    // Another name is no other object.
    fs::hard_link(home.join("a"), home.join("e")).unwrap();
    fs::remove_file(home.join("b")).unwrap();
    fs::create_dir(home.join("f")).unwrap();
    folder.gabion(&["scrub", "mnt"]).succeeded();
}

#[test]
fn what_the_kernel_collects_is_refused_at_the_sync() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("writeback");
    folder.gabion(&["quota", "set", "mnt", "4M"]).succeeded();
    let mut file = File::create(mnt.join("file")).unwrap();
    let outcome = file.write_all(&vec![1; 8 * MIB]).and_then(|()| file.sync_all());
    let error = errno(outcome);
    assert!([Errno::DQUOT, Errno::NOSPC].contains(&error), "{error:?}");
    drop(file);
    // What was refused is not shown for long. Bytes behind it may have been accepted.
    let shown = || fs::read(mnt.join("file")).unwrap().iter().filter(|byte| **byte == 1).count();
    let began = Instant::now();
    while shown() > 4 << 20 {
        assert!(began.elapsed() < Duration::from_secs(60), "it is still shown");
        thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(mnt.join("file")).unwrap();
    let file = File::create(mnt.join("file")).unwrap();
    file.write_all_at(&vec![1; 3 * MIB], 0).unwrap();
    file.sync_all().unwrap();
}

/// Says that it is over when it is dropped.
struct Over<'f>(&'f AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_the_first_quota_write_says_that_it_is_used_up() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("old"), "before").unwrap();
    // Whoever comes while the mount is exchanged for another one waits for that.
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // However this ends: the other one would use it for ever.
        let over = Over(&is_over);
        let user = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                assert_eq!(fs::read(mnt.join("old")).unwrap(), b"before");
                assert_eq!(fs::read_dir(&mnt).unwrap().count(), 1);
                fs::write(mnt.join("new"), "x").unwrap();
                fs::remove_file(mnt.join("new")).unwrap();
                statvfs(&mnt).unwrap();
                // Most of the time nobody uses it, however slow the machine is.
                thread::sleep(2 * begun.elapsed());
            }
        });
        let told = folder.gabion(&["quota", "set", "mnt", "5M"]).succeeded();
        // It may have been in use each time that it was looked at.
        await_that(|| !collects_writes(&folder));
        drop(over);
        user.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(told.contains("of 5 MiB"), "{told}");
    });
    fs::remove_file(mnt.join("old")).unwrap();
    let write = |name: &str, mib: usize| {
        let file = File::options().write(true).create(true).truncate(false).open(mnt.join(name));
        file.unwrap().write_all(&vec![1; mib * MIB])
    };
    write("old", 3).unwrap();
    assert_eq!(errno(write("old", 6)), Errno::DQUOT);
    assert_eq!(errno(write("new", 2)), Errno::DQUOT);
}

#[test]
fn quotas_stay_and_can_be_set_where_nothing_is_mounted() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let text = folder.gabion(&["quota", "list", "disk.img"]).succeeded();
    assert!(text.contains("no quotas"), "{text}");
    folder.gabion(&["quota", "set", "disk.img", "6M"]).succeeded();
    let mnt = folder.mount("writethrough");
    assert_eq!(fill(&mnt.join("one"), 20), Err((5, Errno::DQUOT)));
    // What was synced is counted after its daemon was killed.
    File::open(mnt.join("one")).unwrap().sync_all().unwrap();
    folder.daemon().kill();
    folder.mount("writethrough");
    assert_eq!(quota(&folder, "/")["used_bytes"], (5 << 20) + 2 * 4096);
    assert_eq!(fill(&mnt.join("two"), 1), Err((0, Errno::DQUOT)));
    folder.gabion(&["snapshot", "create", "mnt", "full"]).succeeded();
    fs::remove_file(mnt.join("one")).unwrap();
    assert_eq!(fill(&mnt.join("two"), 5), Ok(5));
    folder.gabion(&["umount", "mnt"]).succeeded();
    let text = folder.gabion(&["quota", "list", "disk.img"]).succeeded();
    assert!(text.contains("5.01 MiB of 6 MiB"), "{text}");
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}

/// close(2) told the program, and nobody else has to hear of it.
#[test]
fn what_had_no_room_when_the_kernel_handed_it_over_stops_no_command() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("writeback");
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    folder.gabion(&["quota", "set", "mnt/home", "1M"]).succeeded();
    let overflow = |name: &str| {
        let file = File::create(mnt.join("home").join(name)).unwrap();
        file.write_all_at(&vec![1; 4 * MIB], 0).unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    };
    overflow("one");
    folder.gabion(&["quota", "set", "mnt/home", "2M"]).succeeded();
    overflow("two");
    folder.gabion(&["snapshot", "create", "mnt", "full"]).succeeded();
}

/// A kernel that looks names up again takes away what is mounted there.
#[test]
fn what_is_mounted_in_a_filesystem_stays_when_somebody_goes_over_a_quota() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("writeback");
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    folder.gabion(&["quota", "set", "mnt/home", "1M"]).succeeded();
    fs::create_dir(mnt.join("below")).unwrap();
    folder.gabion(&["mkfs", "--size", "64M", "other.img"]).succeeded();
    folder.gabion(&["mount", "other.img", "mnt/below"]).succeeded();
    fs::write(mnt.join("below/file"), "there").unwrap();
    for index in 0..20 {
        let file = File::create(mnt.join(format!("home/{index}"))).unwrap();
        file.write_all_at(&vec![1; 2 * MIB], 0).unwrap();
        file.sync_all().unwrap_err();
        assert_eq!(fs::read(mnt.join("below/file")).unwrap(), b"there");
    }
    folder.gabion(&["umount", "mnt/below"]).succeeded();
}

#[test]
fn what_can_have_no_quota_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::create_dir(mnt.join("dir")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    let set = |path: &str, size: &str| folder.gabion(&["quota", "set", path, size]);
    set("mnt/dir", "1G").failed(1, &["/dir is not the root of a subvolume", "subvolume create"]);
    set("mnt/.snapshots/one", "1G").failed(1, &["is a snapshot"]);
    set("mnt/absent", "1G").failed(1, &["absent"]);
    set("mnt", "much").failed(2, &["not a size"]);
    folder.gabion(&["quota", "list", "absent.img"]).failed(1, &["absent.img"]);
}

/// Whether the kernel of the mount does.
fn collects_writes(folder: &Folder) -> bool {
    let text = folder.gabion(&["quota", "list", "--json", "mnt"]).succeeded();
    serde_json::from_str::<Value>(&text).unwrap()["collects_writes"] == true
}

#[test]
fn a_mount_in_use_is_exchanged_once_nobody_uses_it() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let mut file = File::create(mnt.join("file")).unwrap();
    let told = folder.gabion(&["quota", "set", "mnt", "5M"]).succeeded();
    let user = format!("in use by process {}", process::id());
    assert!(told.contains(&user) && told.contains("Once nobody uses it"), "{told}");
    assert!(collects_writes(&folder));
    file.write_all(b"kept").unwrap();
    drop(file);
    await_that(|| !collects_writes(&folder));
    // Nothing of the other one is left, but for who listens to this one.
    let tasks = format!("/proc/{}/task", folder.daemon().pid.as_raw_nonzero());
    let is_control =
        |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "control\n");
    await_that(|| {
        let tasks = fs::read_dir(&tasks).unwrap();
        tasks.filter(|task| is_control(&task.as_ref().unwrap().path())).count() == 1
    });
    assert_eq!(fs::read(mnt.join("file")).unwrap(), b"kept");
    assert_eq!(fill(&mnt.join("file"), 6), Err((4, Errno::DQUOT)));
    folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn a_mount_that_is_unmounted_while_it_is_in_use_elsewhere_is_not_exchanged() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let other = folder.join("other");
    fs::create_dir(&other).unwrap();
    rustix::mount::mount_bind(&mnt, &other).unwrap();
    let told = folder.gabion(&["quota", "set", "mnt", "5M"]).succeeded();
    assert!(told.contains("in use by the mount at"), "{told}");
    let daemon = folder.daemon();
    rustix::mount::unmount(&mnt, UnmountFlags::empty()).unwrap();
    rustix::mount::unmount(&other, UnmountFlags::empty()).unwrap();
    daemon.await_end();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
}

/// Without that `cat /dev/zero > file` would never end.
#[test]
fn who_goes_on_writing_is_told_by_write_when_there_was_no_room() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "64M", "disk.img"]).succeeded();
    let mnt = folder.mount("writeback");
    for (limit, errno) in [(None, Errno::NOSPC), (Some("5M"), Errno::DQUOT)] {
        if let Some(limit) = limit {
            folder.gabion(&["quota", "set", "mnt", limit]).succeeded();
        }
        let path = mnt.join("file");
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).open(&path).unwrap();
        // The kernel has room for it, and does not ask, unless somebody syncs meanwhile.
        let early = (0..150).map(|_| file.write_all(&vec![1; MIB])).find(Result::is_err);
        let told = early.unwrap_or_else(|| {
            // Others have it hand over what it has.
            folder.gabion(&["quota", "list", "mnt"]).succeeded();
            let end = file.metadata().unwrap().len();
            assert_eq!(file.read_at(&mut [0; 10], end).unwrap(), 0, "who reads is told nothing");
            file.write_all(&[1; 10])
        });
        assert_eq!(self::errno(told), errno);
        drop(file);
        fs::remove_file(&path).unwrap();
        folder.gabion(&["quota", "list", "mnt"]).succeeded();
    }
    folder.gabion(&["quota", "set", "mnt", "none"]).succeeded();
    // Where there is room again it is not told later.
    let mut file = File::create(mnt.join("file")).unwrap();
    let _ = (0..100).map(|_| file.write_all(&vec![1; MIB])).find(Result::is_err);
    folder.gabion(&["quota", "list", "mnt"]).succeeded();
    file.set_len(0).unwrap();
    folder.gabion(&["quota", "list", "mnt"]).succeeded();
    file.write_at(b"once more", 0).unwrap();
    let _ = file.sync_all();
    file.write_at(b"and again", 0).unwrap();
    file.sync_all().unwrap();
}
