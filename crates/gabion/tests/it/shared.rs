//! Several mounts of one filesystem that is served: every machine sees what the others do, at once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::world::{Folder, GABION, GLANCE, Running};

/// A served filesystem with its mounts.
pub struct Shared {
    pub server: Running,
    pub uri: String,
    pub folder: Folder,
}

impl Shared {
    pub fn new() -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let (server, uri) = serve(&folder, "127.0.0.1:0");
        Some(Self { server, uri, folder })
    }

    pub fn mount(&self, name: &str) -> PathBuf {
        self.mount_with(name, "deadline=60")
    }

    pub fn mount_with(&self, name: &str, options: &str) -> PathBuf {
        let mountpoint = self.folder.join(name);
        fs::create_dir(&mountpoint).unwrap();
        self.folder.gabion(&["mount", "-o", options, &self.uri, name]).succeeded();
        mountpoint
    }

    pub fn two(&self) -> (PathBuf, PathBuf) {
        (self.mount("a"), self.mount("b"))
    }

    /// The server dies, and another one takes its place.
    pub fn restart(&mut self) {
        self.server.signal(Signal::KILL);
        let _ = self.server.0.wait();
        let address = self.uri.trim_start_matches("gabion://").trim_end_matches('/');
        let (server, uri) = serve(&self.folder, address);
        assert_eq!(uri, self.uri);
        self.server = server;
    }

    /// The process that serves a mount.
    pub fn daemon(&self, name: &str) -> rustix::process::Pid {
        let status = self.folder.status(name);
        let pid = status["mount"]["pid"].as_i64().unwrap();
        rustix::process::Pid::from_raw(pid as i32).unwrap()
    }

    /// The server stands still for a while.
    pub fn stop_server(&self) -> Stopped {
        Stopped::new(rustix::process::Pid::from_child(&self.server.0))
    }

    /// All that was written is well.
    pub fn finish(mut self, mounts: &[&str]) {
        for name in mounts {
            self.folder.gabion(&["umount", name]).succeeded();
        }
        self.server.signal(Signal::TERM);
        assert!(self.server.0.wait().unwrap().success());
        self.folder.gabion(&["scrub", "disk.img"]).succeeded();
    }
}

pub fn serve(folder: &Folder, address: &str) -> (Running, String) {
    serve_with(folder, address, &[])
}

pub fn serve_with(folder: &Folder, address: &str, arguments: &[&str]) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--session-seconds", "3", "--listen", address]);
    command.args(arguments);
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("gabion://"), "{line:?}");
    (server, line.trim_end().to_owned())
}

/// Runs a script of the shell in `folder`.
#[track_caller]
pub fn sh(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn in_background(folder: &Path, script: &str) -> Running {
    let mut command = Command::new("sh");
    Running(command.args(["-ec", script]).current_dir(folder).spawn().unwrap())
}

#[track_caller]
pub fn succeeds(mut running: Running) {
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn what_one_mount_changes_the_other_sees_at_once() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    // Whoever asks for that is no request of the kernel, and must not hold up what follows.
    for name in ["a", "b"] {
        shared.folder.gabion(&["status", name]).succeeded();
    }
    assert!(!b.join("file").exists());
    fs::write(a.join("file"), "one").unwrap();
    for round in 0..50 {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        // The other one has the old content in its cache.
        fs::read(to.join("file")).unwrap();
        let text = format!("{round}").repeat(1 + round * 200);
        fs::write(from.join("file"), &text).unwrap();
        assert_eq!(to.join("file").metadata().unwrap().len(), text.len() as u64);
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), text);
        let (old, new) = (format!("name{round}"), format!("name{}", round + 1));
        if round == 0 {
            fs::write(from.join(&old), "").unwrap();
        }
        assert!(!to.join(&new).exists());
        fs::rename(from.join(&old), from.join(&new)).unwrap();
        assert!(to.join(&new).exists() && !to.join(&old).exists());
        let mode = 0o600 + round as u32 % 8;
        fs::set_permissions(from.join(&new), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(to.join(&new).metadata().unwrap().mode() & 0o777, mode);
    }
    // In both mounts the kernel has checked what is there.
    sh(&a, "mkdir -p d/e && echo x > d/e/f && ln -s d/e/f l && ln d/e/f h");
    assert_eq!(sh(&b, "cat l h; stat -c %h h; ls d/e"), "x\nx\n2\nf\n");
    sh(&b, "rm l h && mv d d2");
    assert_eq!(sh(&a, "ls"), "d2\nfile\nname50\n");
    shared.finish(&["a", "b"]);
}

#[test]
fn a_file_that_is_open_elsewhere_keeps_its_bytes_when_its_name_goes() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("file"), "content").unwrap();
    let mut open = File::open(b.join("file")).unwrap();
    fs::remove_file(a.join("file")).unwrap();
    assert_eq!(File::open(b.join("file")).unwrap_err().kind(), ErrorKind::NotFound);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    drop(open);
    shared.finish(&["a", "b"]);
}

#[test]
fn appends_of_two_mounts_lose_no_line() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let append = |mount: &Path, who: &str| {
        let mut file =
            OpenOptions::new().append(true).create(true).open(mount.join("log")).unwrap();
        for round in 0..300 {
            file.write_all(format!("{who} {round}\n").as_bytes()).unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| append(&a, "a"));
        scope.spawn(|| append(&b, "b"));
    });
    for mount in [&a, &b] {
        let text = fs::read_to_string(mount.join("log")).unwrap();
        for who in ["a", "b"] {
            let own: Vec<_> = text.lines().filter(|line| line.starts_with(who)).collect();
            let expected: Vec<_> = (0..300).map(|round| format!("{who} {round}")).collect();
            assert_eq!(own, expected);
        }
    }
    shared.finish(&["a", "b"]);
}

#[test]
fn counters_under_locks_are_exact() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("counter"), "0\n").unwrap();
    let count = "for i in $(seq 60); do \
                 flock lock sh -c 'read n < counter; echo $((n + 1)) > counter'; done";
    let both = [in_background(&a, count), in_background(&b, count)];
    both.into_iter().for_each(succeeds);
    assert_eq!(fs::read_to_string(a.join("counter")).unwrap(), "120\n");
    shared.finish(&["a", "b"]);
}

#[test]
fn the_end_of_a_description_unlocks_nothing_of_the_next_one() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("lock"), "").unwrap();
    let is_held = AtomicBool::new(false);
    // The kernel calls both by one name if the next one comes to lie where the last one was, and
    // does not wait until it has told of the end.
    thread::scope(|scope| {
        for mount in [&a, &a, &b, &b] {
            scope.spawn(|| {
                for _ in 0..500 {
                    let file = File::open(mount.join("lock")).unwrap();
                    flock(&file, FlockOperation::LockExclusive).unwrap();
                    assert!(!is_held.swap(true, Ordering::SeqCst), "two have the lock");
                    thread::yield_now();
                    is_held.store(false, Ordering::SeqCst);
                }
            });
        }
    });
    shared.finish(&["a", "b"]);
}

/// Locks a file as an open file description and closes it, again and again, by several threads.
/// Says so if two have it.
const DESCRIPTIONS: &str = "
import fcntl, os, struct, sys, threading
held, failed = [], []
def work():
    for _ in range(500):
        file = os.open(sys.argv[1], os.O_RDWR)
        fcntl.fcntl(file, 38, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
        held.append(1)
        if len(held) != 1:
            failed.append(1)
        os.sched_yield()
        held.pop()
        os.close(file)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(len(failed) > 0)
";

#[test]
fn the_end_of_a_description_unlocks_no_ranges_of_the_next_one() {
    let Some(shared) = Shared::new() else { return };
    let a = shared.mount("a");
    fs::write(a.join("lock"), "").unwrap();
    let script = ["-c", DESCRIPTIONS];
    let file = a.join("lock");
    shared.folder.run(Command::new("python3").args(script).arg(file)).succeeded();
    shared.finish(&["a"]);
}

/// Locks a byte of a file on the first mount, then another byte, which the process of the second
/// mount has, and the other way round. Prints what came of the second lock.
const CROSSWISE: &str = "
import fcntl, os, struct, sys
mount, mine, wanted, command = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
file = open(os.path.join(mount, 'locked'), 'r+')
def lock(byte):
    fcntl.fcntl(file, command, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, byte, 1, 0))
lock(mine)
print('has', flush=True)
sys.stdin.readline()
try:
    lock(wanted)
    print('has both', flush=True)
except OSError as error:
    print(error.errno, flush=True)
";

/// A process that locks crosswise, and what it says.
struct Locker(Running, std::io::Lines<BufReader<std::process::ChildStdout>>);

impl Locker {
    fn new(mount: &Path, mine: u64, wanted: u64, command: u32) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", CROSSWISE]).arg(mount);
        python.args([mine, wanted, command.into()].map(|number| number.to_string()));
        python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(python.spawn().unwrap());
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let mut locker = Self(running, lines);
        assert_eq!(locker.says(), "has");
        locker
    }

    fn says(&mut self) -> String {
        self.1.next().expect("the process has not ended").unwrap()
    }

    fn go_on(&mut self) {
        writeln!(self.0.0.stdin.as_ref().unwrap()).unwrap();
    }

    /// Waits until the process waits in a system call with this command.
    fn await_waiting(&self, command: u32) {
        let call = format!("/proc/{}/syscall", self.0.0.id());
        let waits = format!(" {command:#x} ");
        let began = Instant::now();
        while !fs::read_to_string(&call).unwrap().contains(&waits) {
            assert!(began.elapsed() < Duration::from_secs(60));
            thread::sleep(GLANCE);
        }
    }
}

#[test]
fn a_circle_of_waiting_across_mounts_is_told_to_one_of_them() {
    const F_SETLKW: u32 = 7;
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("locked"), "12").unwrap();
    let mut first = Locker::new(&a, 0, 1, F_SETLKW);
    let mut second = Locker::new(&b, 1, 0, F_SETLKW);
    first.go_on();
    second.go_on();
    // Whoever closes the circle is told; its end gives the other one what that waits for.
    let (told, spoken) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for mut locker in [first, second] {
            let told = told.clone();
            scope.spawn(move || told.send(locker.says()).unwrap());
        }
    });
    let mut said: Vec<String> = spoken.try_iter().collect();
    said.sort();
    assert_eq!(said, [rustix::io::Errno::DEADLK.raw_os_error().to_string(), "has both".to_owned()]);
    shared.finish(&["a", "b"]);
}

#[test]
fn open_file_descriptions_wait_in_circles_and_end_their_locks_when_closed() {
    const F_OFD_SETLKW: u32 = 38;
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("locked"), "12").unwrap();
    // The file is open here all the time, so that it is not the last close that unlocks.
    let open = File::open(a.join("locked")).unwrap();
    let mut first = Locker::new(&a, 0, 1, F_OFD_SETLKW);
    let mut second = Locker::new(&b, 1, 0, F_OFD_SETLKW);
    first.go_on();
    first.await_waiting(F_OFD_SETLKW);
    second.go_on();
    second.await_waiting(F_OFD_SETLKW);
    drop(first);
    assert_eq!(second.says(), "has both");
    drop((second, open));
    Locker::new(&a, 1, 0, F_OFD_SETLKW);
    shared.finish(&["a", "b"]);
}

#[test]
fn sqlite_is_written_from_two_mounts() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    sh(&a, "sqlite3 db 'create table t(who text, n int, unique(who, n))'");
    let insert = |who: &str| {
        format!(
            "for i in $(seq 40); do \
             echo \".timeout 60000\ninsert into t values('{who}', $i);\" | sqlite3 db; done"
        )
    };
    let both = [in_background(&a, &insert("a")), in_background(&b, &insert("b"))];
    both.into_iter().for_each(succeeds);
    for mount in [&a, &b] {
        let found = sh(mount, "sqlite3 db 'pragma integrity_check; select count(*) from t'");
        assert_eq!(found, "ok\n80\n");
    }
    shared.finish(&["a", "b"]);
}

#[test]
fn git_commits_from_two_mounts_into_one_repository() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let who = "git config user.name x && git config user.email x@example.org";
    sh(&a, &format!("git init -q -b main r && cd r && {who} && git config gc.auto 0"));
    for round in 0..8 {
        let mount = if round % 2 == 0 { &a } else { &b };
        sh(mount, &format!("cd r && echo {round} >> f && git add f && git commit -qm {round}"));
    }
    for mount in [&a, &b] {
        assert_eq!(sh(mount, "cd r && git log --format=%s | wc -l && git status -s"), "8\n");
        sh(mount, "cd r && git fsck --strict");
    }
    shared.finish(&["a", "b"]);
}

#[test]
fn pages_of_a_mapped_file_follow_what_others_write() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    fs::write(a.join("file"), [b'0'; 8192]).unwrap();
    // Reads through a mapping, each time that a line comes.
    let script = "import mmap, sys\n\
                  f = open('file', 'rb')\n\
                  m = mmap.mmap(f.fileno(), 8192, prot=mmap.PROT_READ)\n\
                  for line in sys.stdin:\n    print(chr(m[0]) + chr(m[5000]), flush=True)\n";
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(&b).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reader = Running(command.spawn().unwrap());
    let mut ask = reader.0.stdin.take().unwrap();
    let mut answers = BufReader::new(reader.0.stdout.take().unwrap()).lines();
    let file = File::options().write(true).open(a.join("file")).unwrap();
    for round in 1..=9_u8 {
        file.write_all_at(&[b'0' + round], 0).unwrap();
        file.write_all_at(&[b'a' + round], 5000).unwrap();
        writeln!(ask).unwrap();
        let expected = String::from_utf8(vec![b'0' + round, b'a' + round]).unwrap();
        assert_eq!(answers.next().unwrap().unwrap(), expected);
    }
    drop((ask, answers, file));
    succeeds(reader);
    shared.finish(&["a", "b"]);
}

/// Writers on all mounts count in blocks of one file, each in turn; readers on all mounts, with the
/// kernel's caches between them and the file, never see less than was written when they began.
#[test]
fn no_reader_sees_less_than_was_written_before_it_began() {
    const BLOCKS: usize = 6;
    const BLOCK: u64 = 4096;
    const ROUNDS: u64 = 150;
    let Some(shared) = Shared::new() else { return };
    let mounts = [shared.mount("a"), shared.mount("b"), shared.mount("c")];
    fs::write(mounts[0].join("file"), vec![0; BLOCKS * BLOCK as usize]).unwrap();
    // What is in each block at least, and whose turn it is to write there.
    let written: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let turns: Vec<Mutex<()>> = (0..BLOCKS).map(|_| Mutex::new(())).collect();
    let writing = AtomicU64::new(mounts.len() as u64);
    let write = |mount: &Path, seed: usize| {
        let file = File::options().write(true).open(mount.join("file")).unwrap();
        for round in 0..ROUNDS as usize {
            let block = (round * 5 + seed) % BLOCKS;
            let _turn = turns[block].lock().unwrap();
            let value = written[block].load(Ordering::Acquire) + 1;
            let bytes = value.to_le_bytes().repeat(BLOCK as usize / 8);
            file.write_all_at(&bytes, block as u64 * BLOCK).unwrap();
            written[block].store(value, Ordering::Release);
        }
        writing.fetch_sub(1, Ordering::AcqRel);
    };
    let read = |mount: &Path, seed: usize| {
        let file = File::open(mount.join("file")).unwrap();
        let mut block = seed;
        let mut bytes = [0; BLOCK as usize];
        while writing.load(Ordering::Acquire) > 0 {
            block = (block + 1) % BLOCKS;
            let least = written[block].load(Ordering::Acquire);
            file.read_exact_at(&mut bytes, block as u64 * BLOCK).unwrap();
            let values: BTreeSet<u64> = bytes
                .chunks_exact(8)
                .map(|value| u64::from_le_bytes(value.try_into().unwrap()))
                .collect();
            let value = *values.first().unwrap();
            assert_eq!(values.len(), 1, "block {block} is torn: {values:?}");
            assert!(value >= least, "block {block} of {mount:?} is {value}, after {least}");
        }
    };
    thread::scope(|scope| {
        for (seed, mount) in mounts.iter().enumerate() {
            let (write, read) = (&write, &read);
            scope.spawn(move || write(mount, seed));
            scope.spawn(move || read(mount, seed));
        }
    });
    let total: u64 = written.iter().map(|value| value.load(Ordering::Acquire)).sum();
    assert_eq!(total, ROUNDS * mounts.len() as u64);
    shared.finish(&["a", "b", "c"]);
}

/// A process that stands still until this is dropped, also by a test that fails.
pub struct Stopped(rustix::process::Pid);

impl Stopped {
    pub fn new(process: rustix::process::Pid) -> Self {
        rustix::process::kill_process(process, Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_file_that_is_replaced_or_removed_meanwhile_is_opened_whole_or_is_not_there() {
    let Some(shared) = Shared::new() else { return };
    let mount = shared.mount("a");
    let path = |name: &str| mount.join(name);
    fs::write(path("replaced"), "content").unwrap();
    let is_done = AtomicBool::new(false);
    let read_all = |name: &'static str| {
        let mut absent = 0;
        while !is_done.load(Ordering::Acquire) {
            let mut text = String::new();
            match File::open(path(name)) {
                Ok(mut file) => drop(file.read_to_string(&mut text).unwrap()),
                Err(error) if error.kind() == ErrorKind::NotFound => absent += 1,
                Err(error) => panic!("{name}: {error}"),
            }
        }
        absent
    };
    thread::scope(|scope| {
        let read_all = &read_all;
        let readers = ["replaced", "removed"].map(|name| scope.spawn(move || read_all(name)));
        for _ in 0..300 {
            fs::write(path("new"), "content").unwrap();
            fs::rename(path("new"), path("replaced")).unwrap();
            fs::write(path("removed"), "content").unwrap();
            fs::remove_file(path("removed")).unwrap();
        }
        is_done.store(true, Ordering::Release);
        let [replaced, _] = readers.map(|reader| reader.join().unwrap());
        assert_eq!(replaced, 0, "there was always one");
    });
    shared.finish(&["a"]);
}

#[test]
fn what_others_can_reach_is_served_to_everybody_only_if_that_is_wanted() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    fs::create_dir(folder.join("mnt")).unwrap();
    let mount = |address: &str| {
        let here = address.replace("0.0.0.0", "127.0.0.1");
        folder.gabion(&["mount", &here, "mnt"])
    };
    let stop = |server: Running| {
        server.signal(Signal::TERM);
        succeeds(server);
    };
    let (server, uri) = serve(&folder, "0.0.0.0:0");
    mount(&uri).failed(1, &["only machines that have joined get in", "gabion invite"]);
    stop(server);
    let (server, uri) = serve_with(&folder, "0.0.0.0:0", &["--insecure"]);
    mount(&uri).succeeded();
    fs::write(folder.join("mnt/file"), "content").unwrap();
    folder.gabion(&["umount", "mnt"]).succeeded();
    stop(server);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let Some(folder) = Folder::for_mounts() else { return };
    fs::create_dir(folder.join("mnt")).unwrap();
    let outcome = folder.gabion(&["mount", "gabion://127.0.0.1:1/", "mnt"]);
    outcome.failed(1, &["cannot mount gabion://127.0.0.1:1/", "gabion serve"]);
}
