//! Snapshots, clones and subvolumes of a filesystem that is served, from its server and its mounts.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gabion_base::rng::Rng;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::rollbacks::Stop;
use crate::world::{Folder, GABION, Running, names};

/// A served filesystem with its mounts.
pub struct Site {
    server: Running,
    uri: String,
    pub folder: Folder,
}

impl Site {
    pub fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// Served with these options.
    pub fn with(options: &[&str]) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let (server, uri) = serve(&folder, "127.0.0.1:0", options);
        Some(Self { server, uri, folder })
    }

    pub fn mount(&self, path: &str, name: &str) -> PathBuf {
        let mountpoint = self.folder.join(name);
        fs::create_dir(&mountpoint).unwrap();
        let uri = format!("{}{path}", self.uri);
        self.folder.gabion(&["mount", "-o", "deadline=60", &uri, name]).succeeded();
        mountpoint
    }

    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        self.folder.gabion(&command.split(' ').collect::<Vec<_>>()).succeeded()
    }

    #[track_caller]
    pub fn fails(&self, command: &str, parts: &[&str]) {
        self.folder.gabion(&command.split(' ').collect::<Vec<_>>()).failed(1, parts);
    }

    /// The names of the snapshots, as somebody lists them.
    #[track_caller]
    pub fn snapshots(&self, subject: &str) -> Vec<String> {
        let listed = self.run(&format!("snapshot list {subject}"));
        listed.lines().map(|line| line.split("  ").nth(1).unwrap().to_owned()).collect()
    }

    /// The server dies, and another one takes its place.
    fn restart(&mut self) {
        self.restart_after(|_| {});
    }

    /// The same, and something is done in between.
    pub fn restart_after(&mut self, act: impl FnOnce(&Folder)) {
        self.server.signal(Signal::KILL);
        let _ = self.server.0.wait();
        act(&self.folder);
        let address = self.uri.trim_start_matches("gabion://").trim_end_matches('/');
        let (server, uri) = serve(&self.folder, address, &[]);
        assert_eq!(uri, self.uri);
        self.server = server;
    }

    /// All that was written is well.
    pub fn finish(mut self, mounts: &[&str]) {
        for name in mounts {
            self.folder.gabion(&["umount", name]).succeeded();
        }
        self.server.signal(Signal::TERM);
        assert!(self.server.0.wait().unwrap().success());
        self.folder.gabion(&["scrub", "--allocation", "disk.img"]).succeeded();
    }
}

fn serve(folder: &Folder, address: &str, options: &[&str]) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--session-seconds", "3", "--listen", address]);
    command.args(options);
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("gabion://"), "{line:?}");
    (server, line.trim_end().to_owned())
}

#[test]
fn snapshots_of_what_is_served_are_made_shown_and_removed_at_the_server_and_at_mounts() {
    let Some(site) = Site::new() else { return };
    let (a, _) = (site.mount("", "a"), site.mount("", "b"));
    fs::write(a.join("file"), "one").unwrap();
    assert!(site.run("snapshot create disk.img first").contains(".snapshots/first"));
    fs::write(a.join("file"), "two").unwrap();
    fs::write(a.join("more"), "").unwrap();
    site.run("snapshot create b second");
    for subject in ["disk.img", "a", "b"] {
        assert_eq!(site.snapshots(subject), ["first", "second"]);
        assert_eq!(site.run(&format!("snapshot diff {subject} first second")), "M file\n+ more\n");
    }
    site.run("snapshot hold a first");
    site.fails("snapshot delete --yes b first", &["\"first\" is held"]);
    site.run("snapshot release disk.img first");
    site.fails("snapshot create a second", &["already"]);
    site.run("snapshot delete --yes b first");
    assert_eq!(site.snapshots("a"), ["second"]);
    site.finish(&["a", "b"]);
}

#[test]
fn who_is_not_trusted_with_all_of_it_makes_no_snapshots() {
    for (export, path, refusal) in [
        ("/:ro", "", "exported read-only"),
        ("/:root_squash", "", "root is squashed"),
        ("/", "sub", "only a folder of it is mounted"),
    ] {
        let Some(site) = Site::with(&["--export", export]) else { return };
        if path == "sub" {
            fs::create_dir(site.mount("", "all").join("sub")).unwrap();
            site.run("umount all");
        }
        site.run("snapshot create disk.img one");
        site.mount(path, "a");
        site.fails("snapshot create a two", &[refusal]);
        site.fails("snapshot delete --yes a one", &[refusal]);
        if path.is_empty() {
            assert_eq!(site.snapshots("a"), ["one"]);
        }
        assert_eq!(site.snapshots("disk.img"), ["one"]);
        site.finish(&["a"]);
    }
}

#[test]
fn every_mount_reads_what_snapshots_have_and_nobody_changes_it() {
    let Some(site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(a.join("dir/file"), "one").unwrap();
    site.run("snapshot create a first");
    fs::write(a.join("dir/file"), "two").unwrap();
    fs::remove_file(b.join("dir/file")).unwrap();
    for mount in [&a, &b] {
        assert_eq!(names(mount), ["dir"], "no listing shows the snapshots");
        assert_eq!(names(&mount.join(".snapshots")), ["first"]);
        let old = mount.join(".snapshots/first/dir");
        assert_eq!(names(&old), ["file"]);
        assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "one");
        // Also by the pages of the kernel.
        assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "one");
        let refused = [
            fs::write(old.join("new"), ""),
            fs::write(old.join("file"), "three"),
            fs::remove_file(old.join("file")),
            fs::create_dir(mount.join(".snapshots/second")),
        ];
        for outcome in refused {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        }
        let moved = fs::rename(old.join("file"), mount.join("dir/file"));
        assert_eq!(moved.unwrap_err().kind(), ErrorKind::CrossesDevices);
        fs::hard_link(old.join("file"), mount.join("dir/file")).unwrap_err();
    }
    // No two objects have one number.
    let number = |path: PathBuf| path.metadata().unwrap().ino();
    assert_ne!(number(a.join("dir")), number(a.join(".snapshots/first/dir")));
    assert_eq!(number(a.join(".snapshots/first/dir")), number(b.join(".snapshots/first/dir")));
    // What is open of a snapshot that goes is gone.
    let mut open = File::open(b.join(".snapshots/first/dir/file")).unwrap();
    site.run("snapshot create b second");
    site.run("snapshot delete --yes a first");
    for mount in [&a, &b] {
        assert_eq!(names(&mount.join(".snapshots")), ["second"]);
        let gone = fs::metadata(mount.join(".snapshots/first/dir"));
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let mut text = String::new();
    let gone = open.read_to_string(&mut text).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::STALE.raw_os_error()), "{gone}");
    drop(open);
    site.finish(&["a", "b"]);
}

#[test]
fn a_mount_is_saved_with_what_was_not_synced_and_then_what_has_changed() {
    const PAGE: u64 = 8192;
    let Some(site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    fs::create_dir(a.join("folder")).unwrap();
    fs::write(a.join("folder/file"), "content").unwrap();
    let out = site.folder.join("out");
    fs::create_dir(&out).unwrap();
    site.run("backup a out");
    site.run("restore --to-directory out back");
    assert_eq!(fs::read_to_string(site.folder.join("back/folder/file")).unwrap(), "content");
    // It does not pack.
    let mut wanted = vec![0; 64 * PAGE as usize];
    Rng::new(1).fill(&mut wanted);
    fs::write(a.join("large"), &wanted).unwrap();
    site.run("backup --incremental a out");
    // Another machine changes some, and any mount can save the difference.
    let large = File::options().write(true).open(b.join("large")).unwrap();
    large.write_all_at(&[9; PAGE as usize], 5 * PAGE).unwrap();
    drop(large);
    wanted[5 * PAGE as usize..6 * PAGE as usize].fill(9);
    fs::rename(b.join("folder"), b.join("renamed")).unwrap();
    fs::write(b.join("renamed/new"), "new").unwrap();
    fs::write(a.join("renamed/file"), "changed").unwrap();
    site.run("backup --incremental b out");
    let length = |name: &String| fs::metadata(out.join(name)).unwrap().len();
    let mut stored: Vec<u64> = names(&out).iter().map(length).collect();
    stored.sort_unstable();
    assert!(stored[1] < 64 * PAGE / 4 && stored[2] > 64 * PAGE / 2, "{stored:?}");
    assert_eq!(site.snapshots("a").len(), 1, "the last one is kept");
    site.run("restore --to-directory out last");
    let last = site.folder.join("last");
    assert!(fs::read(last.join("large")).unwrap() == wanted);
    assert_eq!(names(&last), ["large", "renamed"]);
    assert_eq!(fs::read_to_string(last.join("renamed/file")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(last.join("renamed/new")).unwrap(), "new");
    site.finish(&["a", "b"]);
}

#[test]
fn clones_and_subvolumes_are_folders_of_every_mount() {
    let Some(site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    fs::create_dir(a.join("dir")).unwrap();
    fs::write(a.join("dir/file"), "one").unwrap();
    site.run("snapshot create a first");
    assert_eq!(fs::metadata(b.join("clone")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(site.run("clone b/.snapshots/first b/clone").contains("made a clone"));
    site.run("subvolume create a/dir/sub");
    for mount in [&a, &b] {
        assert_eq!(names(mount), ["clone", "dir"]);
        assert_eq!(names(&mount.join("dir")), ["file", "sub"]);
        assert_eq!(fs::read_to_string(mount.join("clone/dir/file")).unwrap(), "one");
    }
    fs::write(b.join("clone/dir/file"), "changed").unwrap();
    fs::write(a.join("clone/dir/more"), "new").unwrap();
    fs::rename(a.join("clone/dir/more"), a.join("clone/more")).unwrap();
    assert_eq!(fs::read_to_string(a.join("clone/dir/file")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(b.join("clone/more")).unwrap(), "new");
    assert_eq!(fs::read_to_string(b.join("dir/file")).unwrap(), "one");
    let out = fs::rename(a.join("clone/more"), a.join("more")).unwrap_err();
    assert_eq!(out.kind(), ErrorKind::CrossesDevices);
    for subject in ["a", "b"] {
        let listed = site.run(&format!("subvolume list {subject}"));
        let paths: Vec<_> = listed.lines().map(|line| line.split("  ").last().unwrap()).collect();
        assert_eq!(paths, ["/clone", "/dir/sub"]);
    }
    site.run("snapshot create a/clone inner");
    assert_eq!(fs::read_to_string(b.join("clone/.snapshots/inner/more")).unwrap(), "new");
    fs::remove_dir(b.join("dir/sub")).unwrap_err();
    site.fails("snapshot delete --yes a first", &["has clones"]);
    site.run("subvolume delete --yes b/clone");
    site.run("subvolume delete --yes a/dir/sub");
    for mount in [&a, &b] {
        assert_eq!(names(mount), ["dir"]);
        assert_eq!(names(&mount.join("dir")), ["file"]);
    }
    site.run("snapshot delete --yes b first");
    site.finish(&["a", "b"]);
}

#[test]
fn what_a_program_was_told_is_in_the_snapshot_also_at_another_mount() {
    let Some(site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    let is_over = AtomicBool::new(false);
    let (told, heard) = std::sync::mpsc::sync_channel::<u64>(1000);
    let write = |path: &Path, number: u64| {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        file.write_all_at(format!("{number:08}").as_bytes(), 0).unwrap();
    };
    let number = |path: PathBuf| fs::read_to_string(path).unwrap().parse::<u64>().unwrap();
    write(&a.join("x"), 0);
    write(&b.join("y"), 0);
    thread::scope(|scope| {
        let (a, b, is_over) = (&a, &b, &is_over);
        scope.spawn(move || {
            for number in 1.. {
                write(&a.join("x"), number);
                // Nobody else needs this one: the server learns of it when it is told to.
                fs::write(a.join(format!("of-a-{}", number % 50)), "own").unwrap();
                if is_over.load(Ordering::Relaxed) || told.send(number).is_err() {
                    return;
                }
            }
        });
        scope.spawn(move || {
            while let Ok(number) = heard.recv() {
                write(&b.join("y"), number);
            }
        });
        for round in 0..10 {
            let name = format!("s{round}");
            let before = fs::read_to_string(a.join("x")).unwrap().parse::<u64>().unwrap();
            let subject = ["a", "b", "disk.img"][round % 3];
            site.run(&format!("snapshot create {subject} {name}"));
            let old = |file: &str| number(a.join(format!(".snapshots/{name}/{file}")));
            let (x, y) = (old("x"), old("y"));
            assert!(before <= x && y <= x, "{before} was written before; {x}, and {y} after it");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    site.finish(&["a", "b"]);
}

#[test]
fn a_server_that_is_killed_in_the_midst_of_a_snapshot_has_made_it_whole_or_not_yet() {
    let Some(mut site) = Site::new() else { return };
    let a = site.mount("", "a");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (log, is_over) = (a.join("log"), &is_over);
        let writer = scope.spawn(move || {
            let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                log.write_all(format!("{number}\n").as_bytes()).unwrap();
            }
            number
        });
        for round in 0..6_u64 {
            let name = format!("s{round}");
            let mut command = Command::new(GABION);
            command.args(["snapshot", "create", "a", &name]).current_dir(site.folder.path());
            command.env("GABION_STATE", site.folder.join("state")).stdout(Stdio::null());
            let mut command = Running(command.spawn().unwrap());
            // Sooner and later in the course of it.
            thread::sleep(Duration::from_millis(round * 7));
            site.restart();
            assert!(command.0.wait().unwrap().success(), "its client asks the next server");
        }
        is_over.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap();
        assert_eq!(lines(&a.join("log")), written, "nothing is lost, or there twice");
    });
    let made: Vec<_> = (0..6).map(|round| format!("s{round}")).collect();
    assert_eq!(site.snapshots("a"), made);
    let mut before = 0;
    for name in &made {
        let log = a.join(format!(".snapshots/{name}/log"));
        let count = if log.exists() { lines(&log) } else { 0 };
        assert!(count >= before, "{name} has {count} lines, one before has {before}");
        before = count;
    }
    site.finish(&["a"]);
}

/// How many lines a file has, which are the numbers from 1 on.
#[track_caller]
fn lines(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap();
    for (line, number) in text.lines().zip(1_u64..) {
        assert_eq!(line, number.to_string(), "{}", log.display());
    }
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
    text.lines().count() as u64
}

#[test]
fn what_is_served_is_rolled_back_for_all_of_its_mounts() {
    let Some(mut site) = Site::new() else { return };
    let (a, b) = (site.mount("", "a"), site.mount("", "b"));
    fs::write(a.join("file"), "as it was").unwrap();
    fs::create_dir(a.join("dir")).unwrap();
    site.run("subvolume create a/sub");
    fs::write(a.join("sub/file"), "beside").unwrap();
    site.run("snapshot create a one");
    // What the server has not heard of yet, and what kernels keep.
    fs::write(a.join("file"), "changed at one").unwrap();
    fs::write(b.join("new"), "new at the other").unwrap();
    fs::remove_dir(b.join("dir")).unwrap();
    let mut old = File::open(b.join("file")).unwrap();
    let writer = OpenOptions::new().write(true).open(a.join("new")).unwrap();
    writer.write_all_at(b"NEW", 0).unwrap();
    assert!(fs::metadata(a.join("dir")).is_err());
    let text = site.run("snapshot rollback b one");
    let kept = text.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(site.snapshots("a"), ["one", &kept]);
    for mnt in [&a, &b] {
        assert_eq!(fs::read(mnt.join("file")).unwrap(), b"as it was");
        assert_eq!(names(mnt), ["dir", "file", "sub"]);
        assert!(fs::metadata(mnt.join("new")).is_err());
        assert_eq!(fs::read(mnt.join("sub/file")).unwrap(), b"beside");
        let kept = mnt.join(".snapshots").join(&kept);
        assert_eq!(fs::read(kept.join("file")).unwrap(), b"changed at one");
        assert_eq!(fs::read(kept.join("new")).unwrap(), b"NEW at the other");
    }
    let outlived = [Errno::STALE, Errno::IO].map(|errno| Some(errno.raw_os_error()));
    let read = old.read(&mut [0; 10]).unwrap_err().raw_os_error();
    let written = writer.write_all_at(b"x", 0).and_then(|()| writer.sync_all());
    let written = written.unwrap_err().raw_os_error();
    assert!(outlived.contains(&read) && outlived.contains(&written), "{read:?} {written:?}");
    drop((old, writer));
    // It goes on, also with a server that knows nothing of that, and back again from the server.
    fs::write(b.join("file"), "once more").unwrap();
    assert_eq!(fs::read(a.join("file")).unwrap(), b"once more");
    File::open(b.join("file")).unwrap().sync_all().unwrap();
    site.restart();
    assert_eq!(fs::read(a.join("file")).unwrap(), b"once more");
    // What is synced is done, and before that everybody has come back.
    fs::write(a.join("file"), "and once more").unwrap();
    File::open(a.join("file")).unwrap().sync_all().unwrap();
    site.run(&format!("snapshot rollback disk.img {kept}"));
    for mnt in [&a, &b] {
        assert_eq!(names(mnt), ["file", "new", "sub"]);
        assert_eq!(fs::read(mnt.join("file")).unwrap(), b"changed at one");
    }
    site.run("snapshot create a/sub one");
    fs::write(a.join("sub/file"), "changed").unwrap();
    let beside = OpenOptions::new().write(true).open(b.join("file")).unwrap();
    site.run("snapshot rollback a/sub one");
    assert_eq!(fs::read(b.join("sub/file")).unwrap(), b"beside");
    beside.write_all_at(b"CHANGED", 0).unwrap();
    drop(beside);
    assert_eq!(fs::read(a.join("file")).unwrap(), b"CHANGED at one");
    site.finish(&["a", "b"]);
}

#[test]
fn rollbacks_beside_writers_at_two_mounts_leave_what_the_snapshot_has() {
    let Some(site) = Site::new() else { return };
    let mounts = [site.mount("", "a"), site.mount("", "b")];
    for number in 0..8 {
        fs::write(mounts[0].join(format!("{number}")), vec![number; 10_000]).unwrap();
    }
    site.run("snapshot create a one");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (byte, mnt) in (100..).zip(mounts.iter().chain(&mounts)) {
            let stop = &stop;
            // Whatever goes wrong is right: what they have open is taken from them.
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for number in 0..8 {
                        let path = mnt.join(format!("{number}"));
                        let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
                        let _ = file.write_all_at(&[byte; 5000], 3000);
                        let _ = fs::rename(&path, mnt.join("moved"));
                        let _ = fs::write(mnt.join(format!("new-{byte}")), [byte; 9000]);
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        for subject in ["disk.img", "a", "b"] {
            site.run(&format!("snapshot rollback {subject} one"));
        }
    });
    site.run("snapshot rollback a one");
    for mnt in &mounts {
        let files: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(names(mnt), files);
        for number in 0..8 {
            assert_eq!(fs::read(mnt.join(format!("{number}"))).unwrap(), [number; 10_000]);
        }
    }
    site.finish(&["a", "b"]);
}
