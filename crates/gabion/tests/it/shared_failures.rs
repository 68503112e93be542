//! Mounts of one filesystem whose server, or another of whose clients, dies, hangs, or is away.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;

use crate::shared::{Shared, Stopped};

#[test]
fn a_server_that_is_killed_and_comes_back_has_all_that_its_clients_were_answered() {
    let Some(mut shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("file"), "kept").unwrap();
    File::open(a.join("file")).unwrap().sync_all().unwrap();
    fs::read(b.join("file")).unwrap();
    let mut unsynced = File::create(a.join("unsynced")).unwrap();
    for line in 0..300 {
        writeln!(unsynced, "{line}").unwrap();
    }
    fs::create_dir(a.join("folder")).unwrap();
    for number in 0..300 {
        fs::write(a.join(format!("folder/{number}")), number.to_string()).unwrap();
    }
    fs::rename(a.join("folder/7"), a.join("folder/seven")).unwrap();
    fs::remove_file(a.join("folder/8")).unwrap();
    // Of both, and one after the other.
    let mut both = File::options().append(true).create(true).open(b.join("both")).unwrap();
    let mut too = File::options().append(true).open(a.join("both")).unwrap();
    for line in 0..20 {
        writeln!(both, "b{line}").unwrap();
        writeln!(too, "a{line}").unwrap();
    }
    // Open, and without a name.
    let mut nameless = File::options();
    let mut nameless =
        nameless.write(true).read(true).create_new(true).open(a.join("gone")).unwrap();
    nameless.write_all(b"still here").unwrap();
    fs::remove_file(a.join("gone")).unwrap();
    let modified = fs::metadata(a.join("unsynced")).unwrap().modified().unwrap();
    shared.restart();
    unsynced.write_all(b"after\n").unwrap();
    unsynced.sync_all().unwrap();
    assert!(fs::metadata(b.join("unsynced")).unwrap().modified().unwrap() >= modified);
    let lines = fs::read_to_string(b.join("unsynced")).unwrap();
    assert_eq!(lines.lines().count(), 301);
    assert!(lines.ends_with("299\nafter\n"));
    let mut names: Vec<_> = fs::read_dir(b.join("folder")).unwrap().map(|e| e.unwrap()).collect();
    names.retain(|name| !name.file_name().to_str().unwrap().starts_with("seven"));
    assert_eq!(names.len(), 298);
    for name in names {
        let said = fs::read_to_string(name.path()).unwrap();
        assert_eq!(said, name.file_name().to_str().unwrap());
    }
    assert_eq!(fs::read_to_string(b.join("folder/seven")).unwrap(), "7");
    let expected: String = (0..20).map(|line| format!("b{line}\na{line}\n")).collect();
    assert_eq!(fs::read_to_string(a.join("both")).unwrap(), expected);
    let mut said = String::new();
    nameless.rewind().unwrap();
    nameless.read_to_string(&mut said).unwrap();
    assert_eq!(said, "still here");
    fs::write(a.join("other"), "new").unwrap();
    assert_eq!(fs::read_to_string(b.join("file")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(b.join("other")).unwrap(), "new");
    drop((unsynced, both, too, nameless));
    shared.finish(&["a", "b"]);
}

#[test]
fn what_is_locked_stays_locked_when_the_server_is_killed_and_comes_back() {
    let Some(mut shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let names = ["alone", "wanted"];
    let open = |path: PathBuf| File::options().read(true).write(true).open(path).unwrap();
    let [alone, wanted] = names.map(|name| {
        fs::write(a.join(name), "locked").unwrap();
        open(a.join(name))
    });
    let theirs = names.map(|name| open(b.join(name)));
    let refused = |file: &File| {
        let flocked = flock(file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(flocked, Err(Errno::WOULDBLOCK));
        let locked = fcntl_lock(file, FlockOperation::NonBlockingLockExclusive);
        assert!(matches!(locked, Err(Errno::AGAIN | Errno::ACCESS)), "{locked:?}");
    };
    // Of the first file the server knows the first lock only, and not that others are gone.
    for file in [&alone, &wanted] {
        for _ in 0..3 {
            flock(file, FlockOperation::LockExclusive).unwrap();
            fcntl_lock(file, FlockOperation::LockExclusive).unwrap();
            flock(file, FlockOperation::Unlock).unwrap();
        }
        flock(file, FlockOperation::LockExclusive).unwrap();
    }
    refused(&theirs[1]);
    shared.restart();
    theirs.iter().for_each(refused);
    flock(&alone, FlockOperation::Unlock).unwrap();
    fcntl_lock(&wanted, FlockOperation::Unlock).unwrap();
    flock(&theirs[0], FlockOperation::NonBlockingLockExclusive).unwrap();
    fcntl_lock(&theirs[1], FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((alone, wanted, theirs));
    shared.finish(&["a", "b"]);
}

/// A server that starts again has forgotten who has leases. Whoever has not come back yet shows
/// what it has cached, until its session has ended by its own clock.
#[test]
fn nothing_is_changed_after_a_start_while_others_may_still_show_what_was() {
    let Some(mut shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("file"), "old").unwrap();
    File::open(a.join("file")).unwrap().sync_all().unwrap();
    assert_eq!(b.join("file").metadata().unwrap().len(), 3);
    // This one does not notice the restart for a while.
    let stopped = Stopped::new(shared.daemon("b"));
    let began = Instant::now();
    shared.restart();
    fs::write(a.join("file"), "newer").unwrap();
    // Its session lasts 3 s by its clock, and a margin of 2 s is added to that.
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    drop(stopped);
    assert_eq!(fs::read_to_string(b.join("file")).unwrap(), "newer");
    shared.finish(&["a", "b"]);
}

#[test]
fn a_client_that_is_killed_holds_nobody_up_for_longer_than_its_session() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("file"), "x").unwrap();
    let pid = shared.daemon("b");
    fs::read(b.join("file")).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let began = Instant::now();
    fs::write(a.join("file"), "y").unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // The dead mount is taken away by the next one.
    shared.folder.gabion(&["umount", "b"]).succeeded();
    shared.folder.gabion(&["mount", &shared.uri, "b"]).succeeded();
    assert_eq!(fs::read_to_string(b.join("file")).unwrap(), "y");
    shared.finish(&["a", "b"]);
}

#[test]
fn a_server_that_hangs_holds_nobody_up_for_longer_than_the_deadline() {
    let Some(shared) = Shared::new() else { return };
    let mount = shared.mount_with("a", "deadline=5");
    fs::write(mount.join("file"), "x").unwrap();
    // The session may end meanwhile.
    File::open(mount.join("file")).unwrap().sync_all().unwrap();
    shared.server.freeze();
    let began = Instant::now();
    // What is done under leases needs nobody, until it shall be durable.
    let mut other = File::create(mount.join("other")).unwrap();
    other.write_all(b"y").unwrap();
    let failed = other.sync_all().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    drop(other);
    // What is asked before a mount is left is answered from memory.
    rustix::fs::statvfs(&mount).unwrap();
    assert!(mount.metadata().unwrap().is_dir());
    shared.server.signal(Signal::CONT);
    // The session may have ended meanwhile; then there is a new one.
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "x");
    shared.server.freeze();
    let began = Instant::now();
    shared.folder.gabion(&["umount", "a"]).succeeded();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    shared.server.signal(Signal::CONT);
    shared.finish(&[]);
}

#[test]
fn what_is_lost_when_a_mount_is_left_without_its_server_is_kept_and_told() {
    let Some(shared) = Shared::new() else { return };
    let mount = shared.mount_with("a", "deadline=5");
    let mut file = File::create(mount.join("file")).unwrap();
    file.write_all(b"first").unwrap();
    file.sync_all().unwrap();
    shared.server.freeze();
    file.write_all(b" second").unwrap();
    let inode = file.metadata().unwrap().ino();
    drop(file);
    // It is unmounted all the same, whether or not its session has ended before.
    shared.folder.gabion(&["umount", "a"]);
    assert!(shared.folder.mountpoints().is_empty());
    let events = shared.folder.gabion(&["events", "--json"]).succeeded();
    let event = events.lines().find(|line| line.contains("client-changes-lost"));
    let event: Value = serde_json::from_str(event.expect("it is told")).unwrap();
    assert_eq!((&event["bytes"], &event["kept"]), (&7.into(), &7.into()), "{event}");
    let lost = PathBuf::from(event["folder"].as_str().unwrap());
    assert_eq!(lost.parent(), Some(&*shared.folder.join("state")));
    assert_eq!(fs::read(lost.join(format!("inode-{inode}"))).unwrap(), b"\0\0\0\0\0 second");
    let text = fs::read_to_string(lost.join("changes.txt")).unwrap();
    assert!(text.contains("wrote 7 bytes at 5 of \"/file\""), "{text}");
    shared.server.signal(Signal::CONT);
    shared.finish(&[]);
}
