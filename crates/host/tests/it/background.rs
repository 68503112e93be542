//! Programs that go to the background: each scenario runs in a process of its own, because a fork
//! wants a single thread. The process is this test binary, told to run nothing but [`scenario`].

use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Output, Stdio};
use std::{env, fs};

use gabion_host::daemon::{self, Launch, Outcome};
use gabion_host::file_disk::{FileDisk, OpenError, OpenMode, create_image};
use gabion_host::signals::{Signals, Wake};

use crate::temp::{Killed, TempDir, start};

const SCENARIO: &str = "GABION_TEST_SCENARIO";
const FOLDER: &str = "GABION_TEST_FOLDER";
/// Seconds after which a forgotten child ends by itself.
const LIFE_SECONDS: u32 = 30;

fn run(name: &str, folder: &TempDir) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "background::scenario", "--ignored", "--test-threads=1", "--nocapture"])
        .env(SCENARIO, name)
        .env(FOLDER, folder.join(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    start(&mut command).and_then(Child::wait_with_output).unwrap()
}

/// Not a test by itself.
#[test]
#[ignore = "is started by the other tests of this module, in a process of its own"]
fn scenario() {
    let folder = PathBuf::from(env::var(FOLDER).unwrap());
    leave_the_harness_thread();
    match env::var(SCENARIO).unwrap().as_str() {
        "ready" => ready(&folder),
        "failed" => with_child(|readiness| readiness.failed("the disk is gone", 7).unwrap()),
        "died" => with_child(|_readiness| process::exit(3)),
        other => panic!("there is no scenario {other}"),
    }
}

/// The harness keeps a thread besides the test's, which sleeps; a fork leaves it behind.
fn leave_the_harness_thread() {
    // SAFETY: the other thread sleeps and holds nothing that the child may need.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child > 0 {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        process::exit(libc::WEXITSTATUS(status))
    }
}

/// Forks, and ends the parent with a word about the child, and the child after `child`.
fn with_child(child: impl FnOnce(daemon::Readiness)) -> ! {
    match daemon::detach(None).unwrap() {
        Launch::Child(readiness) => {
            child(readiness);
            process::exit(0)
        }
        Launch::Parent(outcome) => {
            println!("[{outcome:?}]");
            process::exit(0)
        }
    }
}

/// A daemon with a disk that was opened before the fork, until it is told to end.
fn ready(folder: &Path) {
    let disk = FileDisk::open(&folder.join("image"), OpenMode::ReadWrite).unwrap();
    let launch = daemon::detach(Some(&folder.join("log"))).unwrap();
    let Launch::Child(readiness) = launch else {
        let Launch::Parent(outcome) = launch else { unreachable!() };
        assert_eq!(outcome, Outcome::Ready);
        process::exit(42)
    };
    // SAFETY: takes no pointers.
    unsafe { libc::alarm(LIFE_SECONDS) };
    let signals = Signals::block().unwrap();
    fs::write(folder.join("pid"), process::id().to_string()).unwrap();
    readiness.ready().unwrap();
    // SAFETY: takes no pointers.
    let session = unsafe { libc::getsid(0) };
    println!("session {session}, in {}", env::current_dir().unwrap().display());
    eprintln!("on standard error");
    let wake = signals.wait().unwrap();
    assert_eq!(wake, Wake::Terminate);
    fs::write(folder.join("ended"), disk.describe()).unwrap();
    process::exit(0)
}

fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Ends only when the child has let go of the pipes that are its standard output and error, too.
#[test]
fn a_daemon_leaves_the_terminal_and_keeps_its_locks() {
    let folder = TempDir::for_starting();
    let image = folder.join("image");
    create_image(&image, 4096).unwrap();
    let output = run("ready", &folder);
    assert_eq!(output.status.code(), Some(42), "{}", output_text(&output));
    let pid: u32 = fs::read_to_string(folder.join("pid")).unwrap().parse().unwrap();
    let _killed = Killed(pid);
    let error = FileDisk::open(&image, OpenMode::ReadWrite).unwrap_err();
    let OpenError::InUse { holder: Some(holder), .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(holder.pid, pid, "the child, not the parent that took the lock");

    // SAFETY: takes no pointers.
    let end = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
    assert!(end >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGTERM) }, 0);
    let mut poll = libc::pollfd { fd: end, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer and the count describe `poll`; the descriptor was opened above.
    let ready = unsafe {
        let ready = libc::poll(&mut poll, 1, LIFE_SECONDS as i32 * 1000);
        libc::close(end);
        ready
    };
    assert_eq!(ready, 1, "the daemon ends when it is told to");
    assert!(fs::read_to_string(folder.join("ended")).unwrap().contains("image file"));
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert_eq!(log, format!("session {pid}, in /\non standard error\n"));
    FileDisk::open(&image, OpenMode::ReadWrite).unwrap();
}

#[test]
fn a_failed_start_is_told_with_its_exit_code() {
    let folder = TempDir::for_starting();
    let text = output_text(&run("failed", &folder));
    let wanted = "[Failed { message: \"the disk is gone\", exit_code: 7 }]";
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn a_child_that_dies_without_a_word_is_noticed() {
    let folder = TempDir::for_starting();
    let text = output_text(&run("died", &folder));
    assert!(text.contains("[Died(ExitStatus(unix_wait_status(768)))]"), "{text}");
}

#[test]
fn a_fork_beside_other_threads_is_refused() {
    let waiting = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| waiting.wait());
        let error = daemon::detach(None).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
        waiting.wait();
    });
}
