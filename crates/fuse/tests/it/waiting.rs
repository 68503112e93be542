//! Nothing hangs: signals, deadlines and lost replies end every wait.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gabion_fuse::mount::{Unmount, unmount};
use gabion_fuse::{CancelReason, Config, LockFamily, Outcome};

use crate::memfs::Mounted;

/// A deadline that passes in a test, and that a busy machine keeps where somebody does answer.
const DEADLINE: Duration = Duration::from_secs(1);

fn start(program: &str, arguments: &[&str], path: &Path) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn kill(child: &Child, signal: i32) {
    // SAFETY: the child was not waited for, so its id is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

fn errno(path: &Path) -> Option<i32> {
    fs::metadata(path).unwrap_err().raw_os_error()
}

#[test]
fn process_that_waits_for_a_lock_dies_of_any_fatal_signal() {
    let mounted = Mounted::new();
    fs::write(mounted.path("file"), b"").unwrap();
    for (waits, signal) in [(1, libc::SIGKILL), (2, libc::SIGINT), (3, libc::SIGTERM)] {
        let mut child =
            Command::new("flock").arg(mounted.path("file")).arg("true").spawn().unwrap();
        let lock = mounted.fs.wait_for(|record| {
            (record.lock_waits.len() == waits).then(|| record.lock_waits[waits - 1])
        });
        assert_eq!(lock.family, LockFamily::Flock);
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        let cancelled = mounted.fs.wait_for(|record| record.cancelled.pop());
        assert_eq!(cancelled, (CancelReason::Interrupted, Outcome::Delivered));
    }
}

#[test]
fn killed_caller_is_released_although_the_handler_never_answers() {
    let mounted = Mounted::new();
    let mut child = start("stat", &[], &mounted.path("hole"));
    mounted.fs.wait_for(|record| (record.holes.len() == 1).then_some(()));
    kill(&child, libc::SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn signal_that_does_not_kill_does_not_end_a_request() {
    let mounted = Mounted::new();
    let script = "trap '' USR1; exec stat \"$0\"";
    let mut child = start("sh", &["-c", script], &mounted.path("hole"));
    let reply = mounted.fs.wait_for(|record| record.holes.pop());
    kill(&child, libc::SIGUSR1);
    assert_eq!(reply.entry_absent(Duration::ZERO), Outcome::Delivered);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn request_that_is_never_answered_fails_at_the_deadline() {
    let deadline = DEADLINE;
    let mounted = Mounted::with(Config { deadline, ..Config::default() });
    assert_eq!(errno(&mounted.path("hole")), Some(libc::ETIMEDOUT));
    let reply = mounted.fs.wait_for(|record| record.holes.pop());
    assert_eq!(reply.cancel().reason(), Some(CancelReason::DeadlinePassed));
    assert_eq!(reply.error(libc::EPERM), Outcome::Gone);
    assert_eq!(errno(&mounted.path("absent")), Some(libc::ENOENT));
}

#[test]
fn lock_is_waited_for_beyond_the_deadline() {
    let deadline = DEADLINE;
    let mounted = Mounted::with(Config { deadline, ..Config::default() });
    fs::write(mounted.path("file"), b"").unwrap();
    let mut child = Command::new("flock").arg(mounted.path("file")).arg("true").spawn().unwrap();
    mounted.fs.wait_for(|record| record.lock_waits.pop());
    // Its deadline passes well before that of a request made after it.
    assert_eq!(errno(&mounted.path("hole")), Some(libc::ETIMEDOUT));
    assert!(child.try_wait().unwrap().is_none());
    kill(&child, libc::SIGKILL);
    child.wait().unwrap();
    let cancelled = mounted.fs.wait_for(|record| record.cancelled.pop());
    assert_eq!(cancelled, (CancelReason::Interrupted, Outcome::Delivered));
}

#[test]
fn dropped_reply_and_panicking_handler_are_errors_to_the_caller() {
    let mounted = Mounted::new();
    assert_eq!(errno(&mounted.path("dropped")), Some(libc::EIO));
    assert_eq!(errno(&mounted.path("panic")), Some(libc::EIO));
    assert_eq!(errno(&mounted.path("absent")), Some(libc::ENOENT));
}

#[test]
fn unmounting_by_force_releases_everybody() {
    let mounted = Mounted::new();
    let mut child = start("stat", &[], &mounted.path("hole"));
    let reply = mounted.fs.wait_for(|record| record.holes.pop());
    unmount(mounted.at.path(), Unmount::Force).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(reply.error(libc::EPERM), Outcome::Gone);
}

#[test]
fn callers_beyond_all_threads_can_still_be_killed() {
    let deadline = Duration::from_secs(3600);
    let config = Config { readers: 2, threads_max: 3, deadline, ..Config::default() };
    let mounted = Mounted::with(config);
    let stuck = |index| start("stat", &[], &mounted.path(&format!("stuck{index}")));
    let mut children: Vec<_> = (0..2).map(stuck).collect();
    mounted.fs.wait_for(|record| (record.stuck == 2).then_some(()));
    children.extend((2..6).map(stuck));
    children.push(start("stat", &[], &mounted.path("absent")));
    for child in &children {
        kill(child, libc::SIGKILL);
    }
    for child in &mut children {
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    mounted.fs.record(|record| record.unstuck = true);
    assert_eq!(errno(&mounted.path("absent too")), Some(libc::ENOENT));
    assert_eq!(mounted.fs.record(|record| record.stuck), 2, "nobody waits for the others");
}

#[test]
fn requests_behind_stuck_handlers_are_served_when_a_thread_is_free() {
    let config = Config { readers: 2, threads_max: 2, ..Config::default() };
    let mounted = Mounted::with(config);
    let stuck = |index| start("stat", &[], &mounted.path(&format!("stuck{index}")));
    let mut children: Vec<_> = (0..20).map(stuck).collect();
    mounted.fs.wait_for(|record| (record.stuck == 1).then_some(()));
    mounted.fs.record(|record| record.unstuck = true);
    for child in &mut children {
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
    assert_eq!(mounted.fs.record(|record| record.stuck), 20);
}

/// How many threads of this process serve, and how many of them wait for requests.
fn threads() -> (usize, usize) {
    let read = libc::SYS_read.to_string();
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let text = |task: &Path, file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
    let serving = |task: &PathBuf| {
        let name = text(task, "comm");
        name.strip_prefix("fuse-").is_some_and(|rest| rest.trim().parse::<usize>().is_ok())
    };
    let serving: Vec<_> = tasks.filter(serving).collect();
    let waits = |task: &&PathBuf| text(task, "syscall").split(' ').next() == Some(&*read);
    (serving.len(), serving.iter().filter(waits).count())
}

#[test]
fn threads_that_were_needed_rest_and_two_wait_for_requests() {
    let config = Config { readers: 2, threads_idle: 6, ..Config::default() };
    let mounted = Mounted::with(config);
    for round in 0..2 {
        mounted.fs.record(|record| (record.stuck, record.unstuck) = (0, false));
        let name = |index| mounted.path(&format!("stuck{round}.{index}"));
        let stuck = |index| start("stat", &[], &name(index));
        let mut children: Vec<_> = (0..9).map(stuck).collect();
        mounted.fs.wait_for(|record| (record.stuck == 9).then_some(()));
        mounted.fs.record(|record| record.unstuck = true);
        for child in &mut children {
            assert_eq!(child.wait().unwrap().code(), Some(1));
        }
        while threads() != (6, 2) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(errno(&mounted.path("absent")), Some(libc::ENOENT));
}

#[test]
fn changed_pages_are_handed_over_though_all_handlers_are_stuck() {
    let config = Config { readers: 2, threads_max: 2, ..Config::default() };
    let mounted = Mounted::with(config);
    fs::write(mounted.path("file"), [1; 8192]).unwrap();
    let script = "import mmap, sys\n\
                  file = open(sys.argv[1], 'r+b')\n\
                  memory = mmap.mmap(file.fileno(), 0)\n\
                  memory[5000] = 2\nprint('stored', flush=True)\n\
                  sys.stdin.readline()\nmemory[5000] = 3\nmemory.flush()\n";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(mounted.path("file"));
    let mut mapping = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(mapping.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "stored\n");
    let mut child = start("stat", &[], &mounted.path("stuck"));
    mounted.fs.wait_for(|record| (record.stuck == 1).then_some(()));
    mounted.fs.record(|record| record.write_sizes.clear());
    // To sync the mapping a WRITE is sent, and when that is answered an FSYNC, which has to wait.
    // What was stored before may have been handed over already: others sync, too.
    writeln!(mapping.stdin.as_ref().unwrap()).unwrap();
    mounted.fs.wait_for(|record| record.write_sizes.pop());
    assert!(mounted.fs.record(|record| record.stuck == 1 && !record.unstuck));
    assert_eq!(mapping.try_wait().unwrap(), None);
    mounted.fs.record(|record| record.unstuck = true);
    assert!(mapping.wait().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
