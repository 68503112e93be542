//! The link of a machine is cut, for longer than its session or for less.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::FlockOperation;

use super::cluster::{AtEnd, Cluster, GLANCE, PATIENCE, Place, Setup};
use crate::program::{Running, run, script};
use crate::site::gabion;

/// Operations give up soon, so that it is seen that they do: sooner than a session ends.
const IMPATIENT: Setup = Setup { place: Place::Network, machines: 2, deadline: 2, session: 3 };

/// Does something again and again until it is possible.
#[track_caller]
fn persist<T>(mut action: impl FnMut() -> io::Result<T>) -> T {
    let began = Instant::now();
    loop {
        match action() {
            Ok(done) => return done,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(GLANCE);
    }
}

/// Somebody who looks at something at the machine that is cut off, all the time.
struct Look<'a> {
    what: &'static str,
    look: Box<dyn Fn() -> io::Result<bool> + Send + Sync + 'a>,
    /// Looks that began after the change was done, by how they ended.
    failed: AtomicU64,
    new: AtomicU64,
    stale: AtomicU64,
}

impl<'a> Look<'a> {
    /// `look` tells whether it sees what is new.
    fn new(what: &'static str, look: impl Fn() -> io::Result<bool> + Send + Sync + 'a) -> Self {
        let zero = || AtomicU64::new(0);
        Self { what, look: Box::new(look), failed: zero(), new: zero(), stale: zero() }
    }

    fn run(&self, is_changed: &AtomicBool, is_done: &AtomicBool) {
        while !is_done.load(Ordering::Acquire) {
            let is_after = is_changed.load(Ordering::Acquire);
            let seen = (self.look)();
            let count = match seen {
                _ if !is_after => continue,
                Err(_) => &self.failed,
                Ok(true) => &self.new,
                Ok(false) => &self.stale,
            };
            count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Waits until a look has ended in a way.
    #[track_caller]
    fn await_some(&self, count: &AtomicU64, way: &str) {
        let began = Instant::now();
        while count.load(Ordering::Acquire) == 0 {
            assert!(began.elapsed() < PATIENCE, "{}: no look {way}", self.what);
            assert_eq!(self.stale.load(Ordering::Acquire), 0, "{}: stale", self.what);
            thread::sleep(GLANCE);
        }
    }
}

#[test]
fn who_is_cut_off_shows_nothing_stale_and_goes_on_when_the_link_is_back() {
    let cluster = Cluster::with("cut-long", IMPATIENT);
    if !cluster.is_gabion() {
        return;
    }
    let (here, there) = (|name: &str| cluster.path(0, name), |name: &str| cluster.path(1, name));
    // Apart, as the kernel has whoever looks into the same folder wait for each other.
    for folder in ["going", "coming", "listed"] {
        fs::create_dir(there(folder)).unwrap();
    }
    fs::write(there("file"), "old").unwrap();
    fs::write(there("going/gone"), "old").unwrap();
    let open = File::open(here("file")).unwrap();
    let by_descriptor = || {
        let mut bytes = [0; 3];
        open.read_exact_at(&mut bytes, 0).map(|()| bytes == *b"new")
    };
    let looks = [
        Look::new("bytes by name", || Ok(fs::read(here("file"))? == b"new new")),
        Look::new("bytes by descriptor", by_descriptor),
        Look::new("attributes", || Ok(fs::metadata(here("file"))?.len() == 7)),
        Look::new("a name that goes", || match fs::metadata(here("going/gone")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            found => found.map(|_| false),
        }),
        Look::new("a name that comes", || match fs::metadata(here("coming/came")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }),
        Look::new("a listing", || {
            let names: io::Result<Vec<_>> = fs::read_dir(here("listed"))?.collect();
            Ok(names?.iter().map(fs::DirEntry::file_name).eq(["came"]))
        }),
    ];
    // All that is in its caches is old.
    looks.iter().for_each(|look| assert!(!(look.look)().unwrap(), "{}", look.what));
    let (is_changed, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let _end = AtEnd(&is_done);
        looks.iter().for_each(|look| drop(scope.spawn(|| look.run(&is_changed, &is_done))));
        cluster.cut(0);
        persist(|| fs::write(there("file"), "new new"));
        persist(|| match fs::remove_file(there("going/gone")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        persist(|| fs::write(there("coming/came"), "new"));
        persist(|| fs::write(there("listed/came"), "new"));
        is_changed.store(true, Ordering::Release);
        looks.iter().for_each(|look| look.await_some(&look.failed, "has failed"));
        // What the mount is left by is answered all the same.
        rustix::fs::statvfs(cluster.root(0)).unwrap();
        assert!(cluster.root(0).metadata().unwrap().is_dir());
        let seen = |look: &Look| look.new.load(Ordering::Acquire);
        assert!(looks.iter().all(|look| seen(look) == 0), "it was not cut off");
        cluster.mend(0);
        looks.iter().for_each(|look| look.await_some(&look.new, "sees what is new"));
    });
    looks.iter().for_each(|look| assert_eq!(look.stale.load(Ordering::Acquire), 0));
    // Both work on, without being mounted again.
    persist(|| fs::write(here("file"), "written here"));
    assert_eq!(persist(|| fs::read(there("file"))), b"written here");
    drop(looks);
    drop(open);
    cluster.finish();
}

#[test]
fn what_was_not_synced_when_the_link_was_cut_is_there_or_its_fsync_fails() {
    let cluster = Cluster::with("cut-unsynced", IMPATIENT);
    if !cluster.is_gabion() {
        return;
    }
    let (here, there) = (|name: &str| cluster.path(0, name), |name: &str| cluster.path(1, name));
    let mut synced = File::create(here("synced")).unwrap();
    synced.write_all(b"synced").unwrap();
    synced.sync_all().unwrap();
    File::open(cluster.root(0)).unwrap().sync_all().unwrap();
    let mut unsynced = OpenOptions::new().append(true).create(true).open(here("log")).unwrap();
    unsynced.write_all(b"first line\n").unwrap();
    unsynced.sync_all().unwrap();
    let locker = |machine: usize, mode: &str| {
        let mut command = script("locker.py");
        let path = cluster.path(machine, "synced");
        Running::start_unheard(command.arg(path).args(["flock", mode]))
    };
    rustix::fs::flock(&synced, FlockOperation::LockExclusive).unwrap();
    let mut waiter = locker(1, "wait");
    assert_eq!(waiter.line().as_deref(), Some("waits"));
    unsynced.write_all(b"second line\n").unwrap();
    cluster.cut(0);
    // Who waits for the lock of who is cut off gets it when the session has ended.
    assert_eq!(waiter.line().as_deref(), Some("held"));
    assert_eq!(persist(|| fs::read(there("synced"))), b"synced");
    let left = persist(|| fs::read(there("log")));
    assert!(left.starts_with(b"first line\n"), "{left:?}");
    persist(|| fs::write(there("mark"), "of a new session"));
    cluster.mend(0);
    assert_eq!(persist(|| fs::read(here("mark"))), b"of a new session");
    let both = b"first line\nsecond line\n";
    match unsynced.sync_all() {
        Ok(()) => assert_eq!(fs::read(there("log")).unwrap(), both),
        // It was told, and what is written from now on is kept.
        Err(_) => assert!(both.starts_with(&left), "{left:?}"),
    }
    unsynced.write_all(b"third line\n").unwrap();
    unsynced.sync_all().unwrap();
    let end = fs::read(there("log")).unwrap();
    assert!(end.starts_with(&left) && end.ends_with(b"third line\n"), "{end:?}");
    assert_eq!(fs::read(here("log")).unwrap(), end);
    // Its lock was lost, so nothing is done with the file until that is given up.
    assert!(fs::read(here("synced")).is_err());
    rustix::fs::flock(&synced, FlockOperation::Unlock).unwrap();
    assert_eq!(fs::read(here("synced")).unwrap(), b"synced");
    // The lock is another one's by now.
    assert_eq!(locker(0, "try").line().as_deref(), Some("refused"));
    waiter.kill();
    drop((waiter, synced, unsynced));
    cluster.finish();
}

/// Folders of what was lost.
fn lost(cluster: &Cluster) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.state()).unwrap().map(|entry| entry.unwrap().path());
    let is_loss =
        |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes().starts_with(b"lost+");
    entries.filter(is_loss).collect()
}

#[test]
fn what_a_machine_loses_as_it_is_cut_off_is_kept_at_it() {
    let cluster = Cluster::with("cut-lost", IMPATIENT);
    if !cluster.is_gabion() {
        return;
    }
    let mut log =
        OpenOptions::new().append(true).create(true).open(cluster.path(0, "log")).unwrap();
    log.write_all(b"first line\n").unwrap();
    log.sync_all().unwrap();
    cluster.cut(0);
    // It does not know yet, and so programs are told that this is done.
    log.write_all(b"second line\n").unwrap();
    let left = persist(|| fs::read(cluster.path(1, "log")));
    assert_eq!(left, b"first line\n");
    persist(|| fs::write(cluster.path(1, "mark"), "of a new session"));
    assert!(lost(&cluster).is_empty());
    cluster.mend(0);
    assert_eq!(persist(|| fs::read(cluster.path(0, "mark"))), b"of a new session");
    assert_eq!(log.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    log.sync_all().unwrap();
    let began = Instant::now();
    let events = || run(gabion("events").arg("--json").env("GABION_STATE", cluster.state()));
    while !events().contains("client-changes-lost") {
        assert!(began.elapsed() < PATIENCE, "nothing is told: {}", events());
        thread::sleep(GLANCE);
    }
    let [folder] = lost(&cluster).try_into().unwrap();
    let text = fs::read_to_string(folder.join("changes.txt")).unwrap();
    assert!(text.contains("wrote 12 bytes at 11 of \"/log\""), "{text}");
    let inode = format!("inode-{}", log.metadata().unwrap().ino());
    assert_eq!(fs::read(folder.join(inode)).unwrap()[11..], *b"second line\n");
    drop(log);
    cluster.finish();
}

#[test]
fn a_cut_that_is_shorter_than_a_session_is_a_pause_and_no_more() {
    let setup = Setup { place: Place::Network, machines: 2, deadline: 60, session: 30 };
    let cluster = Cluster::with("cut-short", setup);
    if !cluster.is_gabion() {
        return;
    }
    let file = File::create(cluster.path(0, "file")).unwrap();
    // Nobody asks for what the first machine has leases on: it could not give them back in time.
    fs::create_dir(cluster.path(1, "folder")).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        cluster.cut(0);
        let writer = scope.spawn(|| {
            file.write_all_at(b"written while cut off", 0).unwrap();
            file.sync_all().unwrap();
            is_done.store(true, Ordering::Release);
        });
        // The others go on.
        for number in 0..50 {
            fs::write(cluster.path(1, &format!("folder/{number}")), "x").unwrap();
        }
        assert!(!is_done.load(Ordering::Acquire), "it was not cut off");
        cluster.mend(0);
        writer.join().unwrap();
    });
    assert_eq!(fs::read(cluster.path(1, "file")).unwrap(), b"written while cut off");
    assert_eq!(fs::read_dir(cluster.path(0, "folder")).unwrap().count(), 50);
    // The session is the same, and so are its locks.
    let mut locker = script("locker.py");
    locker.arg(cluster.path(1, "file")).args(["flock", "try"]);
    assert_eq!(Running::start(&mut locker).line().as_deref(), Some("refused"));
    drop(file);
    cluster.finish();
}
