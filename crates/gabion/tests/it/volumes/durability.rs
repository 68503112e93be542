//! What reaches the disks of targets, and databases that rely on it.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::stage::{Stage, Target};
use crate::world::{Running, await_that};

/// A target under strace, which writes to `NAME.trace` what the target does to disks.
fn traced(stage: &Stage, name: &str, cache: &str) -> Target {
    let mut command = Command::new("strace");
    // Without io_uring, of which strace would see nothing.
    command.args([
        "-f",
        "-qq",
        "-o",
        &format!("{name}.trace"),
        "--inject=io_uring_setup:error=ENOSYS",
    ]);
    let calls = "fdatasync,fsync,pwritev2,pwritev,pwrite64,io_uring_setup,openat";
    command.args(["-e", &format!("trace={calls}")]);
    // A tracer that is killed lets go of whom it traces.
    command.args(["setpriv", "--pdeathsig", "KILL", "--", crate::world::GABION]);
    command.args(["target", "--cache", cache, "--listen"]);
    stage.disk(&format!("{name}.img"));
    command.args([
        format!("unix:{}", stage.text(&format!("{name}.sock"))),
        format!("{name}={name}.img"),
    ]);
    stage.start_target(command)
}

/// Whether it goes past the page cache.
fn is_direct(stage: &Stage, name: &str) -> bool {
    let trace = fs::read_to_string(stage.path(&format!("{name}.trace"))).unwrap();
    let image = format!("{name}.img");
    let mut opened = trace.lines().filter(|line| line.contains("openat(") && line.contains(&image));
    opened.any(|line| line.contains("O_DIRECT"))
}

/// How often what was written was forced to the disk.
fn forced(stage: &Stage, name: &str) -> usize {
    let trace = fs::read_to_string(stage.path(&format!("{name}.trace"))).unwrap();
    let is_forced = |line: &&str| {
        line.contains("fdatasync(") || line.contains("fsync(") || line.contains("RWF_DSYNC")
    };
    trace.lines().filter(is_forced).count()
}

#[test]
fn an_fsync_ends_on_the_disks_of_both_targets() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = (traced(&stage, "a", "none"), traced(&stage, "b", "writeback"));
    assert_eq!([is_direct(&stage, "a"), is_direct(&stage, "b")], [true, false]);
    let host = stage.host();
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let mountpoint = host.mount();
    let mut file = fs::File::create(mountpoint.join("file")).unwrap();
    for _ in 0..3 {
        let before = [forced(&stage, "a"), forced(&stage, "b")];
        file.write_all(&[1; 3000]).unwrap();
        assert_eq!([forced(&stage, "a"), forced(&stage, "b")], before, "nobody has asked for it");
        file.sync_all().unwrap();
        for (name, before) in ["a", "b"].into_iter().zip(before) {
            // strace writes a call down when it has ended, which is before the answer.
            assert!(forced(&stage, name) > before, "fsync has not reached the disk of {name}");
        }
    }
    drop(file);
    host.unmount_equal();
}

/// Starts a target of `NAME.img` that keeps writes in the page cache.
fn cached(stage: &Stage, name: &str) -> Target {
    if !stage.path(&format!("{name}.img")).exists() {
        stage.disk(&format!("{name}.img"));
    }
    let mut command = Command::new(crate::world::GABION);
    command.args(["target", "--cache", "writeback", "--listen"]);
    command.arg(format!("unix:{}", stage.text(&format!("{name}.sock"))));
    command.arg(format!("{name}={name}.img"));
    stage.start_target(command)
}

/// Has the next fdatasync(2) of each thread of a process fail as that of a broken disk does.
fn fail_next_syncs(stage: &Stage, process: u32) -> Running {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "injected", "-e", "trace=fdatasync"]);
    strace.args(["--inject=fdatasync:error=EIO:when=1", "-p", &process.to_string()]);
    let strace = stage.start(&mut strace);
    let traced = format!("TracerPid:\t{}\n", strace.0.id());
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let is_traced = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status"));
        status.is_ok_and(|status| status.contains(&traced))
    };
    await_that(|| tasks().all(is_traced));
    strace
}

#[test]
fn a_copy_that_was_not_flushed_once_is_not_trusted_until_its_target_is_started_anew() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (a, _b) = (cached(&stage, "a"), cached(&stage, "b"));
    let host = stage.host();
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let mountpoint = host.mount();
    let strace = fail_next_syncs(&stage, a.running.0.id());
    fs::write(mountpoint.join("file"), vec![5; 1 << 20]).unwrap();
    fs::File::open(mountpoint.join("file")).unwrap().sync_all().unwrap();
    let told = host.await_event("member-stale");
    assert_eq!(told["member"], stage.uri("a"));
    assert!(told["reason"].as_str().unwrap().contains("Input/output error"), "{told}");
    drop(strace);
    // The kernel would flush it now, and say nothing of what was lost.
    let told = host.await_event("member-unreachable");
    assert_eq!(told["member"], stage.uri("a"));
    assert!(told["reason"].as_str().unwrap().contains("a flush has failed"), "{told}");
    assert_eq!(host.copies(), ["stale", "in-sync"]);
    a.kill();
    let _a = cached(&stage, "a");
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount_equal();
}

#[test]
fn sqlite_keeps_what_it_commits_while_a_target_is_killed() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let database = mountpoint.join("database");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/scripts");
    let python = |script: &str| {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(scripts.join(script)).arg(&database);
        command
    };
    let mut command = python("sqlite_writer.py");
    let mut writer = stage.start(command.args(["wal", "0", "0", "200"]).stdout(Stdio::piped()));
    let mut rows = BufReader::new(writer.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut committed: Vec<String> = rows.by_ref().take(30).collect();
    b.kill();
    committed.extend(rows.by_ref().take(30));
    let _b = stage.target("b");
    committed.extend(rows);
    assert!(writer.0.wait().unwrap().success());
    assert_eq!(committed.len(), 200);
    host.await_copies(&["in-sync", "in-sync"]);
    host.kill_daemon();
    host.mount();
    let found = python("sqlite_check.py").output().unwrap();
    assert!(found.status.success(), "{found:?}");
    let found = String::from_utf8(found.stdout).unwrap();
    let missing: Vec<_> =
        committed.iter().filter(|row| !found.lines().any(|one| one == *row)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount_equal();
}
