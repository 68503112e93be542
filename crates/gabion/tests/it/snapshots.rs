//! Snapshots of a mounted filesystem and of an image, as users meet them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::rollbacks::Stop;
use crate::world::{Folder, GABION, GLANCE, names};

fn errno<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> Option<i32> {
    outcome.unwrap_err().raw_os_error()
}

#[test]
fn a_snapshot_of_a_mount_has_what_programs_wrote_before_and_nothing_later() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::create_dir(mnt.join("dir")).unwrap();
    // Not closed: the kernel still has the bytes.
    let mut file = File::create(mnt.join("dir/file")).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    fs::set_permissions(mnt.join("dir"), fs::Permissions::from_mode(0o750)).unwrap();
    let text = folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    assert!(text.contains("made the snapshot one"), "{text}");
    file.write_all(&[2; 100_000]).unwrap();
    drop(file);
    fs::write(mnt.join("later"), "later").unwrap();
    let one = mnt.join(".snapshots/one");
    assert_eq!(names(&one), ["dir"]);
    assert_eq!(fs::read(one.join("dir/file")).unwrap(), [1; 100_000]);
    assert_eq!(fs::metadata(one.join("dir")).unwrap().mode() & 0o777, 0o750);
    assert_eq!(fs::metadata(mnt.join("dir/file")).unwrap().len(), 200_000);
    assert_eq!(names(&mnt), ["dir", "later"], "no listing shows the snapshots");
    // It is still there when the filesystem is mounted again.
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.mount("ro");
    assert_eq!(fs::read(one.join("dir/file")).unwrap(), [1; 100_000]);
    assert_eq!(names(&mnt.join(".snapshots")), ["one"]);
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
}

#[test]
fn the_folder_of_snapshots_lists_itself_as_any_other_does() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    let listed = folder.run(Command::new("ls").args(["-a", "mnt/.snapshots"])).succeeded();
    assert_eq!(listed, ".\n..\none\n");
}

#[test]
fn why_a_snapshot_cannot_be_removed_is_told() {
    let folder = Folder::new();
    folder.image();
    let fails = |words: &str, parts: &[&str]| {
        folder.gabion(&words.split(' ').collect::<Vec<_>>()).failed(1, parts);
    };
    let run = |words: &str| folder.gabion(&words.split(' ').collect::<Vec<_>>()).succeeded();
    for name in ["one", "two"] {
        run(&format!("snapshot create disk.img {name}"));
    }
    run("snapshot rollback disk.img one");
    fails("snapshot delete --yes disk.img one", &["was rolled back to"]);
    run("clone disk.img:/.snapshots/two disk.img:/work");
    fails("snapshot delete --yes disk.img two", &["has clones; remove them first"]);
    fails("snapshot delete --yes disk.img three", &["no snapshot \"three\""]);
    fails("snapshot create disk.img:/.snapshots/two x", &["is a snapshot, which has none"]);
    fails("subvolume create disk.img:/.snapshots/x", &["nothing can be made in a snapshot"]);
    fails("snapshot list disk.img:/absent", &["/absent: no such file"]);
    let nowhere = ["absent/folder/volume", "absent/folder: No such file"];
    fails("subvolume create absent/folder/volume", &nowhere);
}

#[test]
fn many_commands_at_a_time_wait_for_each_other() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    let start = |number: u32| {
        let mut command = Command::new(crate::world::GABION);
        command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
        command.args(["snapshot", "create", "mnt", &format!("s{number}")]);
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let commands: Vec<_> = (0..48).map(start).collect();
    for mut command in commands {
        assert!(command.wait().unwrap().success());
    }
    let listed = folder.gabion(&["snapshot", "list", "mnt"]).succeeded();
    assert_eq!(listed.lines().count(), 48, "{listed}");
}

#[test]
fn the_kernel_sees_snapshots_come_and_go() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let all = mnt.join(".snapshots");
    // It may remember what is not there, too.
    assert_eq!(fs::metadata(all.join("one")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(names(&all), [""; 0]);
    for name in ["one", "two"] {
        folder.gabion(&["snapshot", "create", "mnt", name]).succeeded();
        assert!(fs::metadata(all.join(name)).unwrap().is_dir());
    }
    assert_eq!(names(&all), ["one", "two"]);
    fs::write(mnt.join("file"), vec![5; 20 << 20]).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "three"]).succeeded();
    fs::remove_file(mnt.join("file")).unwrap();
    let text = folder.gabion(&["snapshot", "delete", "--yes", "mnt", "one", "three"]).succeeded();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(names(&all), ["two"]);
    assert_eq!(fs::metadata(all.join("three")).unwrap_err().kind(), ErrorKind::NotFound);
    // The space comes back by itself, or at the latest when somebody needs it.
    fs::write(mnt.join("file"), vec![6; 40 << 20]).unwrap();
    File::open(mnt.join("file")).unwrap().sync_all().unwrap();
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}

#[test]
fn programs_cannot_change_a_snapshot() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("file"), "as it was").unwrap();
    fs::create_dir(mnt.join("dir")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    let one = mnt.join(".snapshots/one");
    let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
    assert_eq!(errno(fs::write(one.join("file"), "x")), read_only);
    assert_eq!(errno(File::create(one.join("new"))), read_only);
    assert_eq!(errno(fs::create_dir(one.join("new"))), read_only);
    assert_eq!(errno(fs::remove_file(one.join("file"))), read_only);
    assert_eq!(errno(fs::remove_dir(one.join("dir"))), read_only);
    let other = fs::Permissions::from_mode(0o600);
    assert_eq!(errno(fs::set_permissions(one.join("file"), other)), read_only);
    let elsewhere = Some(rustix::io::Errno::XDEV.raw_os_error());
    assert_eq!(errno(fs::hard_link(one.join("file"), mnt.join("link"))), elsewhere);
    assert_eq!(errno(fs::rename(one.join("file"), mnt.join("moved"))), elsewhere);
    for made in [fs::create_dir(mnt.join(".snapshots/two")), fs::remove_dir(&one)] {
        assert_eq!(errno(made), read_only);
    }
    let exists = Some(rustix::io::Errno::EXIST.raw_os_error());
    assert_eq!(errno(fs::create_dir(mnt.join(".snapshots"))), exists);
    assert_eq!(fs::read(one.join("file")).unwrap(), b"as it was");
    // What can be read can be copied out.
    fs::copy(one.join("file"), mnt.join("copy")).unwrap();
    assert_eq!(fs::read(mnt.join("copy")).unwrap(), b"as it was");
}

#[test]
fn bytes_that_a_program_could_write_into_a_snapshot_are_refused_and_shown_to_nobody() {
    for options in ["", "writethrough"] {
        let Some(folder) = Folder::for_mounts() else { return };
        folder.image();
        let mnt = folder.mount(options);
        fs::write(mnt.join("file"), vec![1; 10_000]).unwrap();
        folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
        let path = mnt.join(".snapshots/one/file");
        assert_eq!(fs::read(&path).unwrap(), [1; 10_000]);
        for append in [false, true] {
            // The kernel opens it by itself, and does not know better.
            let mut file = File::options().read(true).write(!append).append(append).open(&path);
            let file = file.as_mut().unwrap();
            let written = file.write_all(&[2; 5000]).and_then(|()| file.sync_all());
            assert!(written.is_err());
        }
        // Once it was refused and closed, the kernel shows what is there.
        let begun = std::time::Instant::now();
        loop {
            let found = fs::read(&path).unwrap();
            if found == [1; 10_000] && fs::metadata(&path).unwrap().len() == 10_000 {
                break;
            }
            assert!(begun.elapsed().as_secs() < 30, "{} bytes", found.len());
            thread::sleep(GLANCE);
        }
        folder.gabion(&["umount", "mnt"]).succeeded();
    }
}

#[test]
fn tools_that_walk_a_tree_take_no_two_files_for_one() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::create_dir_all(mnt.join("a/b")).unwrap();
    for (name, bytes) in [("a/one", "1"), ("a/b/two", "22"), ("three", "333")] {
        fs::write(mnt.join(name), bytes).unwrap();
    }
    for name in ["first", "second"] {
        folder.gabion(&["snapshot", "create", "mnt", name]).succeeded();
    }
    let mut numbers = BTreeSet::new();
    let mut count = 0;
    let mut ahead = vec![mnt.clone(), mnt.join(".snapshots")];
    while let Some(path) = ahead.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        numbers.insert((found.dev(), found.ino()));
        count += 1;
        if found.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let ino = std::os::unix::fs::DirEntryExt::ino(&entry);
                assert_eq!(ino, fs::symlink_metadata(entry.path()).unwrap().ino());
                ahead.push(entry.path());
            }
        }
    }
    assert_eq!((numbers.len(), count), (19, 19));
    // tar leaves out what it takes for a second name.
    folder
        .run(Command::new("tar").args(["-C", "mnt/.snapshots", "-cf", "all.tar", "."]))
        .succeeded();
    let text = folder.run(Command::new("tar").args(["-tvf", "all.tar"])).succeeded();
    assert!(!text.contains("link to"), "{text}");
    folder
        .run(Command::new("diff").args(["-r", "mnt/.snapshots/first", "mnt/.snapshots/second"]))
        .succeeded();
    folder.run(Command::new("find").args(["mnt/.snapshots", "-name", "two"])).succeeded();
}

#[test]
fn snapshots_are_listed_compared_held_and_refused_by_name() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("kept"), "1").unwrap();
    fs::write(mnt.join("gone"), "2").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "monday"]).succeeded();
    fs::remove_file(mnt.join("gone")).unwrap();
    fs::write(mnt.join("kept"), "more").unwrap();
    fs::rename(mnt.join("kept"), mnt.join("renamed")).unwrap();
    fs::create_dir(mnt.join("new")).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "tuesday"]).succeeded();
    let text = folder.gabion(&["snapshot", "diff", "mnt", "monday", "tuesday"]).succeeded();
    assert_eq!(text, "- gone\n+ new\nM renamed\nR kept -> renamed\n");
    let arguments = ["snapshot", "diff", "mnt", "monday", "tuesday", "--json"];
    let changes: Value = serde_json::from_str(&folder.gabion(&arguments).succeeded()).unwrap();
    assert_eq!(changes[3]["from"], "kept");
    let list = |subject: &str| -> Value {
        let text = folder.gabion(&["snapshot", "list", subject, "--json"]).succeeded();
        serde_json::from_str(&text).unwrap()
    };
    folder.gabion(&["snapshot", "hold", "mnt", "monday"]).succeeded();
    assert_eq!(list("mnt")["snapshots"][0]["held"], true);
    folder
        .gabion(&["snapshot", "delete", "--yes", "mnt", "monday"])
        .failed(1, &["held", "release"]);
    folder
        .gabion(&["snapshot", "delete", "--yes", "mnt", "friday"])
        .failed(1, &["no snapshot \"friday\""]);
    folder.gabion(&["snapshot", "create", "mnt", "monday"]).failed(1, &["monday", "already"]);
    folder.gabion(&["snapshot", "create", "mnt", "a/b"]).failed(1, &["a/b", "slash"]);
    folder.gabion(&["snapshot", "release", "mnt", "monday"]).succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
    let text = folder.gabion(&["snapshot", "list", "disk.img"]).succeeded();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(list("disk.img")["snapshots"][1]["name"], "tuesday");
}

#[test]
fn a_rollback_brings_back_what_was_and_keeps_what_is() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("file"), "good").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "good"]).succeeded();
    fs::write(mnt.join("file"), "bad").unwrap();
    fs::write(mnt.join("more"), "bad").unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    let text = folder.gabion(&["snapshot", "rollback", "disk.img", "good"]).succeeded();
    assert!(text.contains("rolled back to good; what it was is the snapshot before-"), "{text}");
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    folder.mount("");
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "good");
    assert_eq!(names(&mnt), ["file"]);
    let all = names(&mnt.join(".snapshots"));
    assert_eq!(all.len(), 2, "{all:?}");
    let before = mnt.join(".snapshots").join(&all[0]);
    assert_eq!(fs::read_to_string(before.join("more")).unwrap(), "bad");
    // It goes on from there.
    fs::write(mnt.join("file"), "better").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "better"]).succeeded();
    folder.gabion(&["snapshot", "delete", "--yes", "mnt", &all[0]]).succeeded();
    folder
        .gabion(&["snapshot", "delete", "--yes", "mnt", "good"])
        .failed(1, &["good", "rolled back to"]);
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}

#[test]
fn a_snapshot_survives_its_daemon_and_a_removal_goes_on_after_it() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    for number in 0..6 {
        fs::write(mnt.join("file"), vec![number; 3 << 20]).unwrap();
        let name = format!("{number}");
        folder.gabion(&["snapshot", "create", "mnt", &name]).succeeded();
    }
    folder.gabion(&["snapshot", "delete", "--yes", "mnt", "0", "1", "3", "4"]).succeeded();
    folder.daemon().kill();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.mount("");
    assert_eq!(names(&mnt.join(".snapshots")), ["2", "5"]);
    for number in [2_u8, 5] {
        let file = mnt.join(format!(".snapshots/{number}/file"));
        assert_eq!(fs::read(file).unwrap(), vec![number; 3 << 20]);
    }
    fs::write(mnt.join("file"), vec![9; 30 << 20]).unwrap();
    File::open(mnt.join("file")).unwrap().sync_all().unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}

#[test]
fn clones_and_subvolumes_are_directories_of_a_mount() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("file"), vec![1; 10 << 20]).unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    let available = |folder: &Folder| folder.status("mnt")["available_bytes"].as_u64().unwrap();
    let before = available(&folder);
    // The kernel may know that there is nothing.
    assert!(!mnt.join("work").exists());
    folder.gabion(&["clone", "mnt/.snapshots/one", "mnt/work"]).succeeded();
    assert!(before - available(&folder) < 1 << 20, "a clone shares what it has");
    let work = mnt.join("work");
    assert_eq!(fs::read(work.join("file")).unwrap(), vec![1; 10 << 20]);
    fs::write(work.join("file"), "the clone's").unwrap();
    fs::write(work.join("more"), "more").unwrap();
    assert_eq!(fs::read(mnt.join("file")).unwrap(), vec![1; 10 << 20]);
    assert_eq!(names(&mnt), ["file", "work"]);
    let errno_of = |error: rustix::io::Errno| Some(error.raw_os_error());
    assert_eq!(
        errno(fs::rename(work.join("more"), mnt.join("more"))),
        errno_of(rustix::io::Errno::XDEV)
    );
    assert_eq!(errno(fs::remove_dir(&work)), errno_of(rustix::io::Errno::BUSY));
    folder.gabion(&["snapshot", "create", "mnt/work", "inner"]).succeeded();
    assert_eq!(fs::read_to_string(work.join(".snapshots/inner/more")).unwrap(), "more");
    folder.gabion(&["subvolume", "create", "mnt/sub"]).succeeded();
    fs::write(mnt.join("sub/file"), "in the subvolume").unwrap();
    folder.gabion(&["subvolume", "create", "mnt/sub"]).failed(1, &["exists"]);
    folder.gabion(&["snapshot", "create", "mnt/sub/file", "x"]).failed(1, &[]);
    folder.gabion(&["snapshot", "delete", "--yes", "mnt", "one"]).failed(1, &["one", "clones"]);
    let text = folder.gabion(&["subvolume", "list", "mnt"]).succeeded();
    assert!(text.contains("/work") && text.contains("/sub"), "{text}");
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.mount("");
    assert_eq!(fs::read_to_string(work.join("file")).unwrap(), "the clone's");
    assert_eq!(fs::read_to_string(mnt.join("sub/file")).unwrap(), "in the subvolume");
    folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
    folder.gabion(&["subvolume", "delete", "mnt/work"]).failed(2, &["--yes"]);
    folder.gabion(&["subvolume", "delete", "mnt/work", "--yes"]).succeeded();
    folder.gabion(&["snapshot", "delete", "--yes", "mnt", "one"]).succeeded();
    assert_eq!(names(&mnt), ["file", "sub"]);
    assert!(!work.exists());
    fs::create_dir(&work).unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
}

/// A program appends all the time, and another one has its bytes handed over while they come.
#[test]
fn a_snapshot_has_all_that_was_appended_before_it_and_nothing_that_came_later() {
    const RECORD: usize = 3000;
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let path = mnt.join("log");
    File::create(&path).unwrap();
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        let (done, stop, path) = (&done, &stop, &path);
        scope.spawn(move || {
            let mut file = File::options().append(true).open(path).unwrap();
            for number in 1_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                file.write_all(&number.to_le_bytes().repeat(RECORD / 8)).unwrap();
                done.store(number, Ordering::SeqCst);
                if number.is_multiple_of(4) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        scope.spawn(move || {
            let file = File::open(path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.sync_data().unwrap();
            }
        });
        for round in 0..8 {
            let (name, before) = (format!("s{round}"), done.load(Ordering::SeqCst));
            folder.gabion(&["snapshot", "create", "mnt", &name]).succeeded();
            let after = done.load(Ordering::SeqCst) + 1;
            let found = fs::read(mnt.join(".snapshots").join(&name).join("log")).unwrap();
            let records = found.chunks(RECORD).zip(1_u64..);
            let is_whole = |bytes: &[u8], number: u64| {
                bytes.iter().zip(number.to_le_bytes().iter().cycle()).all(|(a, b)| a == b)
            };
            let whole = records.take_while(|(bytes, number)| is_whole(bytes, *number));
            let whole = whole.last().map_or(0, |(bytes, number)| match bytes.len() {
                RECORD => number,
                _ => number - 1,
            });
            assert!(whole >= before, "{name} has {whole} of {before} records");
            let length = found.len().div_ceil(RECORD) as u64;
            assert!(length <= after, "{name} has {length} records of {after}");
        }
    });
}

#[test]
fn what_nothing_brings_back_is_asked_about_first() {
    let folder = Folder::new();
    folder.image();
    for name in ["one", "two"] {
        folder.gabion(&["snapshot", "create", "disk.img", name]).succeeded();
    }
    folder.gabion(&["subvolume", "create", "disk.img:/home"]).succeeded();
    let left = || folder.gabion(&["snapshot", "list", "disk.img"]).succeeded().lines().count();
    // Where nobody can be asked.
    let of = ["snapshot", "delete", "disk.img", "one", "two"];
    folder.gabion(&of).failed(2, &["would be removed: one, two", "say --yes"]);
    // At a terminal: what is typed is the answer.
    let answered = |answer: &str, words: &str| {
        let line = format!("echo {answer} | script -qec '{GABION} {words}' /dev/null");
        folder.run(Command::new("sh").args(["-c", &line]))
    };
    for answer in ["n", "\"\"", "yesterday"] {
        let outcome = answered(answer, "snapshot delete disk.img one");
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(outcome.stdout.contains("nothing was done"), "{outcome:?}");
    }
    assert_eq!(left(), 2);
    let text = answered("y", "snapshot delete disk.img one").succeeded();
    assert!(text.contains("the snapshot one of disk.img would be removed"), "{text}");
    assert!(text.contains("removed the snapshot one"), "{text}");
    assert_eq!(left(), 1);
    let text = answered("YES", "subvolume delete disk.img:/home").succeeded();
    assert!(text.contains("with all that is in it"), "{text}");
    folder.gabion(&["subvolume", "create", "disk.img:/home"]).succeeded();
}

#[test]
fn a_snapshot_of_a_subvolume_is_told_by_where_it_is_and_is_no_subvolume() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    folder.mount("");
    folder.gabion(&["subvolume", "create", "mnt/home"]).succeeded();
    for subject in ["mnt/home", "disk.img:/home"] {
        let name = subject.len().to_string();
        let said = folder.gabion(&["snapshot", "create", subject, &name]).succeeded();
        assert!(said.ends_with(&format!("it is at home/.snapshots/{name}\n")), "{said}");
        let path = format!("{subject}/.snapshots/{name}");
        let parts = [&*path, "is a snapshot, and no subvolume", "gabion snapshot delete"];
        folder.gabion(&["subvolume", "delete", &path, "--yes"]).failed(1, &parts);
    }
    let said = folder.gabion(&["snapshot", "create", "mnt", "all"]).succeeded();
    assert!(said.ends_with("it is at .snapshots/all\n"), "{said}");
}
