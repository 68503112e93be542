//! `gabion-bench link` as its users meet it, with as little to do as it can have.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_gabion-bench");
/// Every row of the tables.
const ROWS: &[&str] = &[
    "untar + sync, files",
    "walk + stat again, entries",
    "read a tree again",
    "find again",
    "git status again",
    "walk + stat on the other, cold",
    "read a tree on the other, cold",
    "create in one directory, files",
    "unlink them, files",
    "write a large file + fsync",
    "read it on the other mount, cold",
    "append 4 KiB + fsync, median",
    "append 4 KiB + fsync, mean",
    "lock hand-over between mounts",
    "one byte there and back, turns",
    "turns with stale reads",
    "write a file on one mount + fsync",
    "write its halves on two + fsync",
    "two mounts to one",
];

/// A folder on a disk for one test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    /// None if mounts are not possible, which is said.
    fn for_mounts(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("left out: needs root and /dev/fuse");
            return None;
        }
        let name = format!("bench-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Some(Self(path))
    }

    fn bench(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BENCH);
        command.args(["link", "--size", "small", "--rounds", "1", "--data"]).arg(&self.0);
        command.arg("--gabion").arg(gabion()).args(arguments);
        command
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    /// Processes that have it in their command line.
    fn users(&self) -> Vec<String> {
        let is_user = |line: &String| line.contains(&*self.0.to_string_lossy());
        let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let line = fs::read(entry.unwrap().path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(is_user).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends what it holds if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program beside this one, made if only this package was: whoever tests all packages has it.
fn gabion() -> PathBuf {
    let path = Path::new(BENCH).with_file_name("gabion");
    if !path.exists() {
        let status = Command::new(env!("CARGO")).args(["build", "--package", "gabion"]).status();
        assert!(status.unwrap().success());
    }
    path
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).join("\n")
}

#[test]
fn every_row_has_a_figure_for_gabion_and_for_ext4() {
    let Some(folder) = Folder::for_mounts("rows") else { return };
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", std::process::id()));
    let mut command = folder.bench(&["--peers", "ext4", "--json"]);
    let output = command.arg(&json).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let all: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_file(&json).unwrap();
    assert_eq!(all["systems"], serde_json::json!(["gabion", "ext4"]));
    let rows = all["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ROWS, "{said}");
    for row in rows {
        let name = row["name"].as_str().unwrap();
        assert!(said.contains(name), "{name} is in no table");
        let [ours, theirs] = ["gabion", "ext4"].map(|system| {
            let figure = &row["figures"][system];
            assert_eq!(figure["rounds"].as_array().map(Vec::len), Some(1), "{name}");
            figure["median"].as_f64().unwrap()
        });
        if name == "turns with stale reads" {
            // Whoever lets two machines mount one filesystem must not show them different things.
            assert_eq!((ours, theirs), (0.0, 0.0));
            continue;
        }
        assert!(ours > 0.0 && theirs > 0.0, "{name}: {ours}, {theirs}");
        let ratio = row["gabion_to"]["ext4"].as_f64().unwrap();
        let expected = if row["better"] == "less" { theirs / ours } else { ours / theirs };
        assert!((ratio / expected - 1.0).abs() < 1e-9, "{name}: {ratio} is not {expected}");
    }
    assert!(folder.names().is_empty(), "{:?}", folder.names());
    assert!(folder.users().is_empty(), "{:?}", folder.users());
}

#[test]
fn a_run_that_is_interrupted_leaves_nothing_behind() {
    let Some(folder) = Folder::for_mounts("stop") else { return };
    let mut command = folder.bench(&["--peers", "ext4"]);
    let mut bench = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(bench.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = lines.skip_while(|line| !line.starts_with("round 1"));
    // Everything is mounted, and something is being done.
    assert!(lines.next().is_some(), "it ended before it began");
    assert!(!folder.users().is_empty());
    kill_process(Pid::from_child(&bench.0), Signal::INT).unwrap();
    assert_eq!(bench.0.wait().unwrap().code(), Some(130));
    assert!(folder.names().is_empty(), "{:?}", folder.names());
    assert!(folder.users().is_empty(), "{:?}", folder.users());
}

#[test]
fn a_peer_that_was_named_and_is_missing_is_an_error_that_says_what_to_install() {
    let mut command = Command::new(BENCH);
    command.args(["link", "--peers", "moosefs"]).env("PATH", "/nonexistent");
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("moosefs needs "), "{said}");
    assert!(said.contains("apt-get install moosefs-master"), "{said}");
}
