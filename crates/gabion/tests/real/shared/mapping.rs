//! Files that are mapped to be changed, at machines that are cut off or die.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::Instant;

use super::cluster::{Cluster, GLANCE, PATIENCE, Place, Setup};
use crate::program::script;

/// Operations give up soon, so that it is seen that they do: sooner than a session ends.
const IMPATIENT: Setup = Setup { place: Place::Network, machines: 2, deadline: 2, session: 3 };
const PAGE: u64 = 4096;

/// A program that has a file mapped, and is told where it may not read.
struct Probe {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    fn new(path: &Path) -> Self {
        let mut command = script("probe.py");
        command.arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let ask = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut probe = Self { child, ask, answers };
        assert_eq!(probe.says(), "mapped");
        probe
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn store(&mut self, offset: u64, byte: u8) -> String {
        writeln!(self.ask.as_mut().unwrap(), "store {offset} {byte}").unwrap();
        self.says()
    }

    /// The byte, if it can be had.
    fn load(&mut self, offset: u64) -> Option<u8> {
        writeln!(self.ask.as_mut().unwrap(), "load {offset}").unwrap();
        self.says().parse().ok()
    }

    /// Loads until it can be had.
    #[track_caller]
    fn await_load(&mut self, offset: u64) -> u8 {
        let began = Instant::now();
        loop {
            if let Some(byte) = self.load(offset) {
                return byte;
            }
            assert!(began.elapsed() < PATIENCE, "nothing can be had through the mapping");
            thread::sleep(GLANCE);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Then it has no more to read, and ends.
        self.ask = None;
        let _ = self.child.wait();
    }
}

/// Writes a byte as soon as that is possible.
#[track_caller]
fn write(path: &Path, offset: u64, byte: u8) {
    let began = Instant::now();
    loop {
        let file = OpenOptions::new().write(true).open(path);
        match file.and_then(|file| file.write_all_at(&[byte], offset)) {
            Ok(()) => return,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(GLANCE);
    }
}

#[test]
fn a_mapping_at_a_machine_that_is_cut_off_shows_nothing_stale() {
    let cluster = Cluster::with("cut-mapped", IMPATIENT);
    if !cluster.is_gabion() {
        return;
    }
    let (here, there) = (cluster.path(0, "file"), cluster.path(1, "file"));
    fs::write(&here, vec![0; 2 * PAGE as usize]).unwrap();
    OpenOptions::new().write(true).open(&here).unwrap().sync_all().unwrap();
    let mut probe = Probe::new(&here);
    assert_eq!(probe.load(0), Some(0));
    assert_eq!(probe.store(PAGE, 7), "stored");
    cluster.cut(0);
    write(&there, 0, 1);
    // It was written after the session had ended here, by this machine's clock, too.
    for _ in 0..3 {
        assert_eq!(probe.load(0), None, "what is shown is not known to be true");
    }
    cluster.mend(0);
    assert_eq!(probe.await_load(0), 1);
    // What was stored before the cut is not there for anybody, which the next fsync tells.
    assert_eq!(probe.await_load(PAGE), 0);
    assert_eq!(fs::read(&there).unwrap()[PAGE as usize], 0);
    assert!(OpenOptions::new().write(true).open(&here).unwrap().sync_all().is_err());
    assert_eq!(probe.store(PAGE, 8), "stored");
    assert_eq!(fs::read(&there).unwrap()[PAGE as usize], 8);
    drop(probe);
    cluster.finish();
}

/// The others go on with what was handed over.
#[test]
fn a_mount_that_is_killed_while_it_has_a_file_mapped_holds_up_nobody_for_long() {
    let cluster = Cluster::new("kill-mapped", Place::Loopback, 3);
    if !cluster.is_gabion() {
        return;
    }
    fs::write(cluster.path(0, "file"), vec![0; 2 * PAGE as usize]).unwrap();
    let mut probes: Vec<_> = (0..3).map(|at| Probe::new(&cluster.path(at, "file"))).collect();
    assert_eq!(probes[0].store(0, 1), "stored");
    assert_eq!(probes[1].load(0), Some(1));
    assert_eq!(probes[0].store(PAGE, 2), "stored");
    cluster.kill_mount(0);
    assert_eq!(probes[1].await_load(PAGE), 0);
    assert_eq!(probes[2].await_load(0), 1);
    assert_eq!(probes[1].store(PAGE, 3), "stored");
    assert_eq!(probes[2].load(PAGE), Some(3));
    drop(probes);
    cluster.unmount(0);
    cluster.mount(0);
    assert_eq!(fs::read(cluster.path(0, "file")).unwrap()[PAGE as usize], 3);
    cluster.finish();
}
