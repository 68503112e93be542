//! Programs that go to the background: each scenario runs in a process of its own, because a fork
//! wants a single thread, and ends what forks.
//!
//! ```text
//!   test -- fork --> scenario, one thread -- detach --> daemon
//!     reads both outputs to their end, and takes the scenario's exit code
//! ```
//!
//! The scenario is a child that never runs a program: what another thread of the tests held at the
//! fork stays held in it for ever. So it takes no locks of the standard library: it writes to its
//! descriptors directly and ends without cleaning up. A panic in it is told on its standard error.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, Command, Output, Stdio};
use std::{env, fs};

use gabion_host::daemon::{self, Launch, Outcome};
use gabion_host::file_disk::{FileDisk, OpenError, OpenMode, create_image};
use gabion_host::signals::{Signals, Wake};

use crate::temp::{Killed, TempDir, start};

/// Seconds after which a forgotten child ends by itself.
const LIFE_SECONDS: u32 = 30;

/// Runs `scenario` to its end; what it writes goes to pipes.
fn run(folder: &TempDir, scenario: fn(&Path) -> !) -> Output {
    let folder = folder.join("");
    let mut command = Command::new("no program, because the scenario does not return");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the scenario takes no lock that another thread may have held at the fork (the
    // allocator's are made free by the fork itself), and does not return to what it was forked
    // from.
    unsafe {
        command.pre_exec(move || {
            leave_the_tests();
            scenario(&folder)
        })
    };
    start(&mut command).and_then(Child::wait_with_output).unwrap()
}

/// Closes what was inherited, and with it the locks that other tests hold by their descriptors.
/// Among it is the pipe whose end tells [`start`] that the child has begun.
fn leave_the_tests() {
    // SAFETY: takes no pointers, and nothing that owns one of the descriptors is dropped any more.
    assert_eq!(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) }, 0);
    live_at_most();
}

fn live_at_most() {
    // SAFETY: takes no pointers.
    unsafe { libc::alarm(LIFE_SECONDS) };
}

fn end(code: i32) -> ! {
    // SAFETY: takes no pointers, and ends all there is.
    unsafe { libc::_exit(code) }
}

/// Writes to a descriptor without the lock that guards the standard library's.
fn say(descriptor: i32, text: &str) {
    // SAFETY: the pointer and the length are those of `text`.
    let written = unsafe { libc::write(descriptor, text.as_ptr().cast(), text.len()) };
    assert_eq!(written, text.len() as isize);
}

/// Forks, and ends the parent with a word about the child, and the child after `child`.
fn with_child(child: impl FnOnce(daemon::Readiness)) -> ! {
    match daemon::detach(None).unwrap() {
        Launch::Child(readiness) => {
            child(readiness);
            end(0)
        }
        Launch::Parent(outcome) => {
            say(1, &format!("[{outcome:?}]\n"));
            end(0)
        }
    }
}

/// A daemon with a disk that was opened before the fork, until it is told to end.
fn ready(folder: &Path) -> ! {
    let disk = FileDisk::open(&folder.join("image"), OpenMode::ReadWrite).unwrap();
    let launch = daemon::detach(Some(&folder.join("log"))).unwrap();
    let Launch::Child(readiness) = launch else {
        let Launch::Parent(outcome) = launch else { unreachable!() };
        assert_eq!(outcome, Outcome::Ready);
        end(42)
    };
    live_at_most();
    let signals = Signals::block().unwrap();
    fs::write(folder.join("pid"), process::id().to_string()).unwrap();
    readiness.ready().unwrap();
    // SAFETY: takes no pointers.
    let session = unsafe { libc::getsid(0) };
    say(1, &format!("session {session}, in {}\n", env::current_dir().unwrap().display()));
    say(2, "on standard error\n");
    let wake = signals.wait().unwrap();
    assert_eq!(wake, Wake::Terminate);
    fs::write(folder.join("ended"), disk.describe()).unwrap();
    end(0)
}

fn failed(_folder: &Path) -> ! {
    with_child(|readiness| readiness.failed("the disk is gone", 7).unwrap())
}

fn died(_folder: &Path) -> ! {
    with_child(|_readiness| end(3))
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
    let output = run(&folder, ready);
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
    let ended = unsafe {
        let ended = libc::poll(&mut poll, 1, LIFE_SECONDS as i32 * 1000);
        libc::close(end);
        ended
    };
    assert_eq!(ended, 1, "the daemon ends when it is told to");
    assert!(fs::read_to_string(folder.join("ended")).unwrap().contains("image file"));
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert_eq!(log, format!("session {pid}, in /\non standard error\n"));
    FileDisk::open(&image, OpenMode::ReadWrite).unwrap();
}

#[test]
fn a_failed_start_is_told_with_its_exit_code() {
    let folder = TempDir::for_starting();
    let text = output_text(&run(&folder, failed));
    let wanted = "[Failed { message: \"the disk is gone\", exit_code: 7 }]";
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn a_child_that_dies_without_a_word_is_noticed() {
    let folder = TempDir::for_starting();
    let text = output_text(&run(&folder, died));
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
