//! The daemon is killed in the midst of work, as a power failure of the daemon alone: what was
//! synced is there, the rest is a state that it went through, and mounting again costs what the
//! journal costs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::databases::{Journal, rows, writer};
use crate::program::{Running, program, run, script};
use crate::site::{Site, is_long};
use crate::{GIB, MIB, tree};

/// Longest time that a mount may take after a kill, on a busy machine with a debug build.
const MOUNT_MAX: Duration = Duration::from_secs(20);

fn rounds() -> u32 {
    if is_long() { 40 } else { 3 }
}

fn report(what: &str, round: u32, took: Duration) {
    eprintln!("{what}: mounted {} ms after kill {round}", took.as_millis());
    assert!(took < MOUNT_MAX, "mounting took {took:?}");
}

fn sqlite_keeps_what_it_committed(name: &str, journal: Journal) {
    const WRITERS: u32 = 2;
    let site = Site::new(name, GIB);
    let database = site.path("database");
    let mut committed = BTreeSet::new();
    for round in 0..rounds() {
        let first = round * 1_000_000;
        let start = |number| {
            Running::start_unheard(&mut writer(&database, journal, number, first, 1_000_000))
        };
        let mut writers: Vec<_> = (0..WRITERS).map(start).collect();
        // The kill comes at another place in each round.
        for _ in 0..20 + round * 7 {
            committed.insert(writers[0].line().expect("the writer goes on"));
        }
        site.kill(&mut writers.iter_mut().collect::<Vec<_>>());
        for writer in &mut writers {
            let mut said = writer.rest();
            if journal == Journal::Rollback {
                // SQLite takes a transaction for committed whose journal it could remove, but whose
                // directory it could not open for the sync: this one may be of after the kill.
                said.pop();
            }
            committed.extend(said);
        }
        drop(writers);
        report(name, round, site.mount());
        let found = rows(&database);
        let lost: Vec<_> = committed.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?} are gone");
        site.scrub();
        committed = found;
    }
}

#[test]
fn sqlite_with_a_write_ahead_log_keeps_its_commits_when_the_daemon_is_killed() {
    sqlite_keeps_what_it_committed("kill-wal", Journal::Wal);
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_its_commits_when_the_daemon_is_killed() {
    sqlite_keeps_what_it_committed("kill-rollback", Journal::Rollback);
}

#[test]
fn synced_files_are_there_when_the_daemon_is_killed_during_an_unpacking() {
    let site = Site::new("kill-untar", 2 * GIB);
    let (source, archive) = (site.beside("source"), site.beside("archive.tar"));
    tree::plant(&source, 1_500);
    run(program("tar", "tar").arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."));
    fs::create_dir(site.path("synced")).unwrap();
    run(program("sync", "coreutils").arg("-f").arg(site.root()));
    let mut promised = BTreeSet::new();
    for round in 0..rounds() {
        let target = site.path(&format!("round {round}"));
        fs::create_dir(&target).unwrap();
        let mut tar = program("tar", "tar");
        tar.arg("-xpvf").arg(&archive).arg("-C").arg(&target);
        let mut tar = Running::start_unheard(&mut tar);
        let mut syncer = script("syncer.py");
        syncer.arg(site.path("synced")).arg(round.to_string());
        let mut syncer = Running::start_unheard(&mut syncer);
        for _ in 0..300 + round * 50 {
            tar.line().expect("tar goes on");
        }
        for _ in 0..10 + round * 3 {
            promised.insert(syncer.line().expect("the syncer goes on"));
        }
        site.kill(&mut [&mut tar, &mut syncer]);
        promised.extend(syncer.rest());
        drop((tar, syncer));
        report("kill-untar", round, site.mount());
        for promise in &promised {
            run(script("promise.py").arg(site.path("synced")).arg(promise));
        }
        assert_parts(&source, &target);
        site.scrub();
    }
    tree::count(site.root());
}

#[test]
fn what_was_there_at_a_sync_of_the_filesystem_is_there_after_a_kill() {
    let site = Site::new("kill-sync", 2 * GIB);
    let source = site.beside("source");
    tree::plant(&source, 800);
    for round in 0..rounds() {
        let copy = |name: &str| {
            let target = site.path(&format!("{name} {round}"));
            run(program("cp", "coreutils").arg("-a").arg(&source).arg(&target));
            target
        };
        let whole = copy("synced");
        run(program("sync", "coreutils").arg("-f").arg(site.root()));
        let part = copy("not synced");
        site.kill(&mut []);
        report("kill-sync", round, site.mount());
        tree::assert_same(&source, &whole);
        if part.exists() {
            assert_parts(&source, &part);
        }
        site.scrub();
    }
}

#[test]
fn files_replaced_by_renames_are_old_or_new_when_the_daemon_is_killed() {
    let site = Site::new("kill-rename", GIB);
    for round in 0..rounds() {
        let mut replacer = script("replacer.py");
        replacer.arg(site.root());
        let mut replacer = Running::start_unheard(&mut replacer);
        for _ in 0..50 + round * 31 {
            replacer.line().expect("the replacer goes on");
        }
        site.kill(&mut [&mut replacer]);
        drop(replacer);
        report("kill-rename", round, site.mount());
        for entry in fs::read_dir(site.root()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().ends_with("new") {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            let mut lines = text.lines();
            let version = lines.next().expect("never empty").to_owned();
            assert!(lines.all(|line| line == version), "{:?} is mixed", entry.path());
            assert_eq!(text.len() % (version.len() + 1), 0);
            assert_eq!(text.len() / (version.len() + 1), 2_000, "{:?} is cut", entry.path());
        }
        site.scrub();
    }
}

/// Panics if a file holds bytes that are not of its source. What had not reached the daemon, or
/// not the disk, is absent, shorter or zero.
fn assert_parts(wanted: &Path, found: &Path) {
    for entry in fs::read_dir(found).unwrap() {
        let entry = entry.unwrap();
        let (wanted, found) = (wanted.join(entry.file_name()), entry.path());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_parts(&wanted, &found);
        } else if kind.is_file() {
            let (wanted_bytes, found_bytes) = match (read(&wanted), read(&found)) {
                (Ok(wanted), Ok(found)) => (wanted, found),
                (wanted, found) => panic!("{}: {wanted:?} {found:?}", entry.path().display()),
            };
            assert!(found_bytes.len() <= wanted_bytes.len(), "{} is too long", found.display());
            let differ = |(wanted, found): (&u8, &u8)| wanted != found && *found != 0;
            let first = wanted_bytes.iter().zip(&found_bytes).position(differ);
            assert_eq!(first, None, "{} holds another's bytes", found.display());
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Shortest of some mounts after a kill, each with the same few changes to be replayed.
fn mount_after_kill(site: &Site) -> Duration {
    let mut best = Duration::MAX;
    for round in 0..3 {
        let file = File::create(site.path(&format!("changes {round}"))).unwrap();
        file.write_all_at(&[7; 100_000], 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        site.kill(&mut []);
        best = best.min(site.mount());
        assert_eq!(fs::read(site.path(&format!("changes {round}"))).unwrap(), [7; 100_000]);
    }
    best
}

fn fill(site: &Site, files: u32, bytes: u64) {
    for folder in 0..files / 100 {
        let folder = site.path(&folder.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 0..100 {
            File::create(folder.join(file.to_string())).unwrap();
        }
    }
    let block = vec![0x5a; MIB as usize];
    let file = File::create(site.path("data")).unwrap();
    for offset in (0..bytes).step_by(block.len()) {
        file.write_all_at(&block, offset).unwrap();
    }
    // As much again, nearly all of it holes.
    for offset in (0..bytes).step_by(64 << 20) {
        file.write_all_at(b"sparse", (1 << 40) + offset * 1024).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn mounting_after_a_kill_costs_the_same_for_a_hundred_times_the_files() {
    let (small, large) =
        (Site::new("mount-small", 4 * GIB), { Site::new("mount-large", 32 * GIB) });
    let (files, data) = if is_long() { (100_000, 10 * GIB) } else { (20_000, GIB) };
    fill(&small, files / 100, MIB);
    fill(&large, files, data);
    let (few, many) = (mount_after_kill(&small), mount_after_kill(&large));
    eprintln!(
        "mount after kill -9: {few:?} with {} files, {many:?} with {files} and {data} bytes",
        files / 100
    );
    assert!(many <= few * 3 + Duration::from_millis(500), "{few:?} became {many:?}");
    assert_eq!(fs::read_dir(large.path("99")).unwrap().count(), 100);
}
