//! What reaches the disks of targets, and databases that rely on it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::stage::{Stage, Target};

/// A target under strace, which writes to `NAME.trace` what the target does to disks.
fn traced(stage: &Stage, name: &str) -> Target {
    let mut command = Command::new("strace");
    // Without io_uring, of which strace would see nothing.
    command.args([
        "-f",
        "-qq",
        "-o",
        &format!("{name}.trace"),
        "--inject=io_uring_setup:error=ENOSYS",
    ]);
    command.args(["-e", "trace=fdatasync,fsync,pwritev2,pwritev,pwrite64,io_uring_setup"]);
    // A tracer that is killed lets go of whom it traces.
    command.args(["setpriv", "--pdeathsig", "KILL", "--", crate::world::GABION]);
    command.args(["target", "--listen"]);
    stage.disk(&format!("{name}.img"));
    command.args([
        format!("unix:{}", stage.text(&format!("{name}.sock"))),
        format!("{name}={name}.img"),
    ]);
    stage.start_target(command)
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
    let _targets = (traced(&stage, "a"), traced(&stage, "b"));
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
