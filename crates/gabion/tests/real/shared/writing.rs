//! Programs that write at all mounts at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};

use super::cluster::{Cluster, Place};
use crate::databases::{Journal, rows, writer};
use crate::program::{Running, crate_program, program, run, script};
use crate::site::is_long;

/// Mounts of each test.
const MACHINES: usize = 4;

#[test]
fn appends_at_four_mounts_lose_no_line() {
    const WRITERS: usize = 2 * MACHINES;
    let lines = if is_long() { 20_000 } else { 250 };
    let cluster = Cluster::new("appends", Place::Network, MACHINES);
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let mut command = script("appender.py");
            command.arg(cluster.path(number % MACHINES, "log"));
            Running::start(command.args([number, lines].map(|number| number.to_string())))
        })
        .collect();
    assert!(writers.into_iter().all(Running::wait), "a writer failed");
    let text = fs::read_to_string(cluster.path(0, "log")).unwrap();
    let mut next = [0; WRITERS];
    for line in text.lines() {
        let words: Vec<usize> =
            line.split(' ').take(2).map(|word| word.parse().expect("whole lines")).collect();
        assert_eq!(next[words[0]], words[1], "a line of writer {} is missing", words[0]);
        next[words[0]] += 1;
    }
    assert_eq!(next, [lines; WRITERS]);
    for machine in 1..MACHINES {
        assert!(fs::read_to_string(cluster.path(machine, "log")).unwrap() == text, "{machine}");
    }
    cluster.finish();
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_what_four_mounts_commit() {
    keeps_what_mounts_commit("shared-sqlite", Journal::Rollback);
}

/// The index of the log is a file that all have mapped, and change.
#[test]
fn sqlite_with_a_write_ahead_log_keeps_what_four_mounts_commit() {
    keeps_what_mounts_commit("shared-sqlite-wal", Journal::Wal);
}

fn keeps_what_mounts_commit(name: &str, journal: Journal) {
    let count = if is_long() { 2_000 } else { 25 };
    let cluster = Cluster::new(name, Place::Network, MACHINES);
    let database = |machine: usize| cluster.path(machine, "database");
    run(&mut writer(&database(0), journal, 0, 0, 0));
    let mut writers: Vec<_> = (0..MACHINES)
        .map(|machine| {
            Running::start(&mut writer(&database(machine), journal, machine as u32, 0, count))
        })
        .collect();
    let mut wanted = BTreeSet::new();
    writers.iter_mut().for_each(|writer| wanted.extend(writer.rest()));
    let ends: Vec<_> = writers.into_iter().map(Running::end).collect();
    let texts: Vec<_> = ends.iter().map(ToString::to_string).collect();
    assert!(ends.iter().all(ExitStatus::success), "a writer failed: {texts:?}");
    assert_eq!(wanted.len(), MACHINES * count as usize);
    (0..MACHINES).for_each(|machine| assert_eq!(rows(&database(machine)), wanted));
    cluster.finish();
}

fn git(folder: &Path) -> Command {
    let mut git = program("git", "git");
    git.current_dir(folder).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    git.args(["-c", "user.name=Mira", "-c", "user.email=mira@example.org", "-c", "gc.auto=0"]);
    git
}

/// A script for the shell in which `git` is that one.
fn git_script(folder: &Path, text: &str) -> Command {
    let mut shell = program("sh", "dash");
    shell.current_dir(folder).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    let git = "git() { command git -c user.name=Mira -c user.email=mira@example.org \"$@\"; }";
    shell.args(["-ec", &format!("{git}\n{text}")]);
    shell
}

/// All commit at the same time into one store of objects, each on a branch of its own.
#[test]
fn git_commits_at_four_mounts_at_once_into_one_repository() {
    let commits = if is_long() { 200 } else { 6 };
    let cluster = Cluster::new("shared-git", Place::Loopback, MACHINES);
    let origin = cluster.path(0, "origin");
    fs::create_dir(&origin).unwrap();
    run(git(&origin).args(["init", "--quiet", "--initial-branch=main"]));
    run(git(&origin).args(["commit", "--quiet", "--allow-empty", "--message", "root"]));
    for machine in 0..MACHINES {
        let branch = format!("branch{machine}");
        run(git(&origin).args(["worktree", "add", "-q", "-b", &branch, &format!("../{branch}")]));
        // Seen from another mount the repository is at another path.
        let link = cluster.path(0, &branch).join(".git");
        fs::write(link, format!("gitdir: ../origin/.git/worktrees/{branch}\n")).unwrap();
    }
    let committers: Vec<_> = (0..MACHINES)
        .map(|machine| {
            let text = format!(
                "for i in $(seq {commits}); do\n\
                 echo {machine} $i >> file; echo $i > \"new $i\"\n\
                 git add --all; git commit --quiet --message \"{machine} $i\"\ndone\n\
                 git gc --quiet"
            );
            let folder = cluster.path(machine, &format!("branch{machine}"));
            Running::start(&mut git_script(
                &folder,
                if machine == 0 { &text } else { text.trim_end_matches("git gc --quiet") },
            ))
        })
        .collect();
    assert!(committers.into_iter().all(Running::wait), "a committer failed");
    for machine in 0..MACHINES {
        let origin = cluster.path(machine, "origin");
        run(git(&origin).args(["fsck", "--full", "--strict"]));
        for branch in 0..MACHINES {
            let folder = cluster.path(machine, &format!("branch{branch}"));
            let log = run(git(&folder).args(["log", "--format=%s"]));
            assert_eq!(log.lines().count(), commits + 1, "branch {branch} at mount {machine}");
            assert_eq!(run(git(&folder).args(["status", "--short"])), "");
            let file = fs::read_to_string(folder.join("file")).unwrap();
            assert_eq!(file.lines().count(), commits);
        }
    }
    cluster.finish();
}

const FSX_CONFIG: &str = "[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 5\n\
                          read = 10\nwrite = 10\ntruncate = 5\nfsync = 0.5\nfdatasync = 0.5\n\
                          posix_fallocate = 1\npunch_hole = 3\ncopy_file_range = 2\n";

#[test]
fn fsx_reads_what_it_wrote_at_each_of_two_mounts() {
    let operations = if is_long() { "100000" } else { "1500" };
    // Compiled before there is a mount, whose watchdog would count the time.
    let _installed = crate_program("fsx", "0.3.2");
    let cluster = Cluster::new("shared-fsx", Place::Loopback, 2);
    let config = cluster.beside("fsx.toml");
    fs::write(&config, FSX_CONFIG).unwrap();
    let running: Vec<_> = (0..2)
        .map(|machine| {
            let mut fsx = crate_program("fsx", "0.3.2");
            fsx.arg("-f").arg(&config).args(["-N", operations, "-S", &(machine + 7).to_string()]);
            fsx.arg("-P").arg(cluster.beside(""));
            Running::start(fsx.arg(cluster.path(machine, &format!("file {machine}"))))
        })
        .collect();
    assert!(running.into_iter().all(Running::wait), "fsx found other bytes than it wrote");
    for machine in 0..2 {
        let [own, other] =
            [0, 1].map(|at| fs::read(cluster.path(at, &format!("file {machine}"))).unwrap());
        assert!(own == other, "file {machine} is another one at the other mount");
    }
    cluster.finish();
}
