//! Nothing that a test has started outlives it, nobody else keeps what it has mounted, and a test
//! that hangs says what it hangs in.
//!
//! - A test mounts in a mount namespace of its own. In the common one each program that makes a
//!   namespace just then would get a copy of its mount, which an unmounting does not end.
//! - After its limit the processes of the machine that wait in the kernel are listed, and the
//!   connections of the test's mounts are cut. What hangs in them ends with an error.
//! - If the test is killed all the same, `keeper.sh`, a process of its own, cleans up after it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use gabion_fuse::mountinfo::Mount;
use gabion_fuse::namespace;

/// Guards what is mounted and runs below a folder.
pub struct Guard {
    keeper: Child,
    /// Its end is the end of the thread that watches the time.
    _watchdog: Sender<()>,
}

impl Guard {
    /// Guards a folder, in a test that takes no longer than `limit`. From now on this thread and
    /// what it starts have mounts of their own.
    pub fn of(folder: &Path, limit: Duration) -> Self {
        // The one who cleans up must see them, too.
        namespace::enter(Mount::is_fuse).expect("root may have mounts of its own");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guard/keeper.sh");
        let mut keeper = Command::new("/bin/sh");
        keeper.arg(script).arg(std::process::id().to_string()).arg(folder);
        keeper.current_dir("/").process_group(0);
        keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = keeper.spawn().expect("there is a shell");
        Self { keeper, _watchdog: watch(folder.to_owned(), limit) }
    }
}

impl Drop for Guard {
    /// The test has cleaned up.
    fn drop(&mut self) {
        // It may have been killed by others, which is no harm.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn watch(folder: PathBuf, limit: Duration) -> Sender<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("cutting the mounts of {} after {limit:?}", folder.display());
            eprint!("{}", waiting());
            for mountpoint in mounts_below(&folder).iter().rev() {
                // On a thread of its own: what is held up may be this, too.
                let mut umount = Command::new("umount");
                umount.args(["--force", "--lazy", "--no-canonicalize"]).arg(mountpoint);
                thread::spawn(move || umount.status());
            }
        }
    });
    sender
}

/// Where something is mounted in a folder or on it, in the order in which that was done.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mountpoints = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    mountpoints.filter(|mountpoint| mountpoint.starts_with(folder)).collect()
}

/// Which threads of the machine are stopped or wait in the kernel, and where.
pub fn waiting() -> String {
    let mut text = String::new();
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let tasks = fs::read_dir(process.path().join("task")).into_iter().flatten();
        for task in tasks.filter_map(Result::ok) {
            let path = task.path();
            // Not `stat`: it waits for a process that hangs in execve(2).
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let state = status.lines().find_map(|line| line.strip_prefix("State:\t"));
            if state.is_some_and(|state| state.starts_with(['D', 'T'])) {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                let (name, state) = (name.trim_end(), state.unwrap_or_default());
                let _ = writeln!(text, "{} ({name}) is in state {state}", path.display());
                text.push_str(&stack(path));
            }
        }
    }
    text
}

/// Where in the kernel a thread is, as far as that is told soon.
fn stack(task: PathBuf) -> String {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(fs::read_to_string(task.join("stack"))));
    let told = receiver.recv_timeout(Duration::from_secs(1));
    told.map(Result::unwrap_or_default).unwrap_or_else(|_| "  in execve(2)\n".to_owned())
}
