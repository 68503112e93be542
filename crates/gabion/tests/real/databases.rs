//! SQLite: many small syncs, locks on ranges of bytes, a mapped file shared by processes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::GIB;
use crate::program::{Running, run, script};
use crate::site::{Site, is_long};

/// How SQLite keeps its promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// A log beside the database, with a mapped index shared by all processes.
    Wal,
    /// Old pages go to a journal, which is deleted at each commit.
    Rollback,
}

/// A program that commits `count` rows and prints each afterwards. Whoever finds another journal
/// than it wants does not wait to change that: the first one shall be alone.
pub fn writer(database: &Path, journal: Journal, writer: u32, first: u32, count: u32) -> Command {
    let mut command = script("sqlite_writer.py");
    let journal = match journal {
        Journal::Wal => "wal",
        Journal::Rollback => "delete",
    };
    command.arg(database).arg(journal);
    command.args([writer, first, count].map(|number| number.to_string()));
    command
}

/// The rows of a database, which is checked before.
pub fn rows(database: &Path) -> BTreeSet<String> {
    run(script("sqlite_check.py").arg(database)).lines().map(str::to_owned).collect()
}

fn keeps_what_processes_commit(name: &str, journal: Journal) {
    const WRITERS: u32 = 4;
    let count = if is_long() { 3_000 } else { 60 };
    let site = Site::new(name, GIB);
    let database = site.path("database");
    let mut wanted = BTreeSet::new();
    for round in 0..2 {
        let mut running: Vec<_> = (0..WRITERS)
            .map(|number| {
                let first = round * count;
                Running::start(&mut writer(&database, journal, number, first, count))
            })
            .collect();
        for writer in &mut running {
            wanted.extend(writer.rest());
        }
        assert!(running.into_iter().all(Running::wait), "a writer failed");
        assert_eq!(wanted.len() as u32, (round + 1) * WRITERS * count);
        assert_eq!(rows(&database), wanted);
        site.remount();
        assert_eq!(rows(&database), wanted);
    }
    site.scrub();
}

#[test]
fn sqlite_with_a_write_ahead_log_keeps_what_processes_commit() {
    keeps_what_processes_commit("sqlite-wal", Journal::Wal);
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_what_processes_commit() {
    keeps_what_processes_commit("sqlite-rollback", Journal::Rollback);
}
