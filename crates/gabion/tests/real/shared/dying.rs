//! The server or a mount's daemon is killed in the midst of work at all mounts.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::cluster::{AtEnd, Cluster, GLANCE, PATIENCE, Place};
use crate::databases::{Journal, rows, writer};
use crate::program::{Running, run, script};
use crate::site::is_long;

/// Work at a mount: files are made, synced, and promised.
struct Work {
    folder: PathBuf,
    count: AtomicU64,
    is_done: AtomicBool,
    /// Programs that have ended with an error.
    failed: AtomicU64,
}

impl Work {
    fn new(cluster: &Cluster, machine: usize) -> Self {
        let folder = cluster.path(machine, &format!("synced{machine}"));
        fs::create_dir(&folder).unwrap();
        File::open(&folder).unwrap().sync_all().unwrap();
        File::open(cluster.root(machine)).unwrap().sync_all().unwrap();
        let (count, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { folder, count, is_done: AtomicBool::new(false), failed }
    }

    /// Goes on until it is done. A program that gets an error ends, and another one takes over.
    fn run(&self) -> BTreeSet<String> {
        let mut promised = BTreeSet::new();
        for round in 0.. {
            if self.is_done.load(Ordering::Acquire) {
                break;
            }
            let mut syncer = script("syncer.py");
            syncer.arg(&self.folder).arg(round.to_string());
            let mut syncer = Running::start_unheard(&mut syncer);
            while !self.is_done.load(Ordering::Acquire) {
                let Some(number) = syncer.line() else {
                    self.failed.fetch_add(1, Ordering::AcqRel);
                    break;
                };
                promised.insert(number);
                self.count.fetch_add(1, Ordering::AcqRel);
            }
            syncer.kill();
            promised.extend(syncer.rest());
        }
        promised
    }

    /// Waits until so much more is done.
    #[track_caller]
    fn await_more(&self, more: u64) {
        let (before, began) = (self.count.load(Ordering::Acquire), Instant::now());
        while self.count.load(Ordering::Acquire) < before + more {
            assert!(began.elapsed() < PATIENCE, "no more is done in {}", self.folder.display());
            thread::sleep(GLANCE);
        }
    }
}

/// Whether everything that was promised at one mount is seen at another one.
fn assert_kept(cluster: &Cluster, machine: usize, at: usize, promised: &BTreeSet<String>) {
    assert!(!promised.is_empty(), "nothing was promised at mount {machine}");
    let folder = cluster.path(at, &format!("synced{machine}"));
    run(script("promise.py").arg(folder).args(promised));
}

#[test]
fn what_was_synced_at_any_mount_is_there_when_the_server_was_killed_meanwhile() {
    const MACHINES: usize = 3;
    let kills = if is_long() { 30 } else { 2 };
    let mut cluster = Cluster::new("kill-server", Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    let work: Vec<_> = (0..MACHINES).map(|machine| Work::new(&cluster, machine)).collect();
    let promised: Vec<_> = thread::scope(|scope| {
        let _ends: Vec<_> = work.iter().map(|work| AtEnd(&work.is_done)).collect();
        let running: Vec<_> = work.iter().map(|work| scope.spawn(|| work.run())).collect();
        for kill in 0..kills {
            work.iter().for_each(|work| work.await_more(5 + kill * 3 % 10));
            cluster.kill_server();
            cluster.start_server();
            // Nobody has to be mounted again.
            work.iter().for_each(|work| work.await_more(3));
        }
        work.iter().for_each(|work| work.is_done.store(true, Ordering::Release));
        running.into_iter().map(|work| work.join().unwrap()).collect()
    });
    for (machine, promised) in promised.iter().enumerate() {
        let failed = work[machine].failed.load(Ordering::Acquire);
        assert_eq!(failed, 0, "programs at mount {machine} have noticed more than a pause");
        assert_kept(&cluster, machine, machine, promised);
        assert_kept(&cluster, machine, (machine + 1) % MACHINES, promised);
    }
    cluster.finish();
}

#[test]
fn a_lock_is_held_on_when_the_server_was_killed() {
    const MACHINES: usize = 3;
    let mut cluster = Cluster::new("kill-server-locks", Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    for kind in ["flock", "lockf"] {
        fs::write(cluster.path(0, kind), "locked").unwrap();
        let locker = |cluster: &Cluster, machine: usize, mode: &str| {
            let mut command = script("locker.py");
            Running::start(command.arg(cluster.path(machine, kind)).args([kind, mode]))
        };
        let mut held = locker(&cluster, 0, "hold");
        assert_eq!(held.line().as_deref(), Some("held"), "{kind}");
        let mut waiter = locker(&cluster, 1, "wait");
        assert_eq!(waiter.line().as_deref(), Some("waits"), "{kind}");
        cluster.kill_server();
        cluster.start_server();
        assert_eq!(locker(&cluster, 2, "try").line().as_deref(), Some("refused"), "{kind}");
        held.kill();
        drop(held);
        assert_eq!(waiter.line().as_deref(), Some("held"), "{kind}");
        waiter.kill();
    }
    cluster.finish();
}

#[test]
fn counters_under_locks_are_exact_though_the_server_is_killed_meanwhile() {
    const MACHINES: usize = 3;
    let (count, kills) = if is_long() { (20_000, 10) } else { (400, 2) };
    let mut cluster = Cluster::new("kill-server-count", Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    fs::write(cluster.path(0, "counter"), format!("{:019}\n", 0)).unwrap();
    let counters: Vec<_> = (0..MACHINES)
        .map(|machine| {
            let mut command = script("counter.py");
            command.arg(cluster.path(machine, "counter"));
            Running::start(command.args(["fcntl", &count.to_string()]))
        })
        .collect();
    let counted = |cluster: &Cluster| {
        let found = fs::read_to_string(cluster.path(0, "counter")).unwrap();
        found.trim_end().parse::<usize>().unwrap()
    };
    for kill in 1..=kills {
        let began = Instant::now();
        while counted(&cluster) < MACHINES * count * kill / (kills + 1) {
            assert!(began.elapsed() < PATIENCE, "nobody counts any more");
            thread::sleep(GLANCE);
        }
        cluster.kill_server();
        cluster.start_server();
    }
    assert!(counters.into_iter().all(Running::wait), "a counter has noticed more than a pause");
    assert_eq!(counted(&cluster), MACHINES * count);
    cluster.finish();
}

/// All write into one database: what they do in turns under locks is in the order in which it was
/// done, synced or not.
#[test]
fn sqlite_writers_of_one_database_go_on_when_the_server_was_killed() {
    go_on_when_the_server_was_killed("kill-server-one-sqlite", Journal::Rollback);
}

/// What is stored in the mapped index of the log is in that order, too.
#[test]
fn sqlite_writers_of_one_log_go_on_when_the_server_was_killed() {
    go_on_when_the_server_was_killed("kill-server-one-log", Journal::Wal);
}

fn go_on_when_the_server_was_killed(name: &str, journal: Journal) {
    const MACHINES: usize = 2;
    let (count, kills) = if is_long() { (4_000, 10) } else { (60, 2) };
    let mut cluster = Cluster::new(name, Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    run(&mut writer(&cluster.path(0, "database"), journal, 0, 0, 0));
    let mut writers: Vec<_> = (0..MACHINES)
        .map(|machine| {
            let database = cluster.path(machine, "database");
            Running::start(&mut writer(&database, journal, machine as u32, 0, count))
        })
        .collect();
    let mut wanted = BTreeSet::new();
    for _ in 0..kills {
        for writer in &mut writers {
            let said = (0..count / (kills + 2)).map(|_| writer.line().expect("the writer goes on"));
            wanted.extend(said);
        }
        cluster.kill_server();
        cluster.start_server();
    }
    writers.iter_mut().for_each(|writer| wanted.extend(writer.rest()));
    assert!(writers.into_iter().all(Running::wait), "a writer has noticed more than a pause");
    assert_eq!(wanted.len(), MACHINES * count as usize);
    (0..MACHINES).for_each(|machine| assert_eq!(rows(&cluster.path(machine, "database")), wanted));
    cluster.finish();
}

/// Each mount has a database of its own.
#[test]
fn sqlite_keeps_what_was_committed_at_mounts_whose_server_was_killed() {
    const MACHINES: usize = 2;
    let rounds = if is_long() { 30 } else { 2 };
    let mut cluster = Cluster::new("kill-server-sqlite", Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    let mut committed = vec![BTreeSet::new(); MACHINES];
    for round in 0..rounds {
        let path = |machine: usize, at: usize| cluster.path(at, &format!("database{machine}"));
        let mut writers: Vec<_> = (0..MACHINES)
            .map(|machine| {
                let first = round * 1_000_000;
                let database = path(machine, machine);
                Running::start_unheard(&mut writer(
                    &database,
                    Journal::Rollback,
                    0,
                    first,
                    1_000_000,
                ))
            })
            .collect();
        for (writer, committed) in writers.iter_mut().zip(&mut committed) {
            for _ in 0..5 + round * 3 % 10 {
                committed.insert(writer.line().expect("the writer goes on"));
            }
        }
        cluster.kill_server();
        cluster.start_server();
        for (machine, mut writer) in writers.into_iter().enumerate() {
            let mut said: Vec<_> = (0..5).map_while(|_| writer.line()).collect();
            assert_eq!(
                said.len(),
                5,
                "the writer at mount {machine} has noticed more than a pause"
            );
            writer.kill();
            said.extend(writer.rest());
            committed[machine].extend(said);
            drop(writer);
            let path = |at: usize| cluster.path(at, &format!("database{machine}"));
            let found = rows(&path((machine + 1) % MACHINES));
            let lost: Vec<_> = committed[machine].difference(&found).collect();
            assert!(lost.is_empty(), "round {round}, mount {machine}: {lost:?} are gone");
            assert_eq!(rows(&path(machine)), found);
            committed[machine] = found;
        }
    }
    cluster.finish();
}

#[test]
fn a_mount_that_is_killed_in_the_midst_of_work_holds_up_nobody_for_long() {
    const MACHINES: usize = 4;
    let cluster = Cluster::new("kill-mount", Place::Loopback, MACHINES);
    if !cluster.is_gabion() {
        return;
    }
    let work: Vec<_> = (0..MACHINES).map(|machine| Work::new(&cluster, machine)).collect();
    fs::write(cluster.path(0, "lock"), "").unwrap();
    let locker = |machine: usize, mode: &str| {
        let mut command = script("locker.py");
        let path = cluster.path(machine, "lock");
        Running::start_unheard(command.arg(path).args(["flock", mode]))
    };
    let mut holder = locker(0, "hold");
    assert_eq!(holder.line().as_deref(), Some("held"));
    let mut waiter = locker(1, "wait");
    assert_eq!(waiter.line().as_deref(), Some("waits"));
    let promised: Vec<_> = thread::scope(|scope| {
        let _ends: Vec<_> = work.iter().map(|work| AtEnd(&work.is_done)).collect();
        let running: Vec<_> = work.iter().map(|work| scope.spawn(|| work.run())).collect();
        work.iter().for_each(|work| work.await_more(5));
        // Its programs get errors, and no more work is done there.
        work[0].is_done.store(true, Ordering::Release);
        cluster.kill_mount(0);
        let began = Instant::now();
        fs::write(cluster.path(1, "synced0/from another one"), "changed").unwrap();
        assert_eq!(waiter.line().as_deref(), Some("held"));
        work[1..].iter().for_each(|work| work.await_more(5));
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        work.iter().for_each(|work| work.is_done.store(true, Ordering::Release));
        running.into_iter().map(|work| work.join().unwrap()).collect()
    });
    holder.kill();
    waiter.kill();
    drop((holder, waiter));
    cluster.unmount(0);
    cluster.mount(0);
    assert_eq!(fs::read(cluster.path(0, "synced0/from another one")).unwrap(), b"changed");
    for (machine, promised) in promised.iter().enumerate() {
        assert_kept(&cluster, machine, 0, promised);
        assert_kept(&cluster, machine, 2, promised);
    }
    cluster.finish();
}
