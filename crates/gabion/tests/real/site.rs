//! A filesystem for one test: an image in a folder of its own on the real disk, mounted by the
//! real program, and taken away at the end, whatever happens.
//!
//! ```text
//! /var/tmp/gabion-real/<process>-<name>/image    the filesystem
//!                                      /mnt      where it is mounted
//!                                      /beside   for what must not be on it
//! ```
//!
//! With `GABION_REAL_ON=ext4` the same tests run on the kernel's ext4: a test that fails there is
//! wrong itself. There a killed daemon is an ordinary unmount.
//!
//! A test that takes too long has its mounts cut: then everything that hangs in them ends with an
//! error, and the test fails instead of staying for ever.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::guard::{Guard, mounts_below};
use crate::program::{Running, attempt, program, run};

/// The program under test, if `GABION_REAL_PROGRAM` does not name another build of it.
const GABION: &str = env!("CARGO_BIN_EXE_gabion");
/// Where the folders are: on a disk, which `/tmp` need not be.
const FOLDER: &str = "/var/tmp/gabion-real";
/// Far more than a test needs.
const DEADLINE: Duration = Duration::from_secs(280);
/// The same for long runs.
const DEADLINE_LONG: Duration = Duration::from_secs(3600);

/// Whether the long versions of the tests were asked for.
pub fn is_long() -> bool {
    std::env::var_os("GABION_LONG").is_some_and(|value| value != "0")
}

/// What the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What is tested.
    Gabion,
    /// What tests the tests.
    Ext4,
}

impl Kind {
    /// What was asked for.
    pub fn chosen() -> Self {
        match std::env::var("GABION_REAL_ON").as_deref() {
            Ok("ext4") => Self::Ext4,
            _ => Self::Gabion,
        }
    }
}

/// A mounted filesystem.
pub struct Site {
    kind: Kind,
    folder: PathBuf,
    image: PathBuf,
    root: PathBuf,
    options: Vec<String>,
    _guard: Guard,
}

impl Site {
    /// Makes a filesystem of `size` bytes and mounts it.
    pub fn new(name: &str, size: u64) -> Self {
        Self::with_options(name, size, &[])
    }

    /// The same, with mount options of Gabion.
    pub fn with_options(name: &str, size: u64, options: &[&str]) -> Self {
        let kind = Kind::chosen();
        let folder = make_folder(name);
        let (image, root) = (folder.join("image"), folder.join("mnt"));
        fs::create_dir_all(&root).unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let guard = guard(&folder);
        let site = Self { kind, folder, image, root, options, _guard: guard };
        site.make(size);
        site.mount();
        if kind == Kind::Ext4 {
            fs::remove_dir(site.root.join("lost+found")).unwrap();
        }
        site
    }

    fn make(&self, size: u64) {
        match self.kind {
            Kind::Gabion => {
                let mut mkfs = gabion("mkfs");
                run(mkfs.args(["--size", &size.to_string()]).arg(&self.image));
            }
            Kind::Ext4 => make_ext4(&self.image, size),
        }
    }

    /// What the tests run on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the mountpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A path on the disk that holds the image.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.join("beside").join(name)
    }

    /// Mounts it; gives how long that took.
    pub fn mount(&self) -> Duration {
        let mut mount = match self.kind {
            Kind::Gabion => gabion("mount"),
            Kind::Ext4 => program("mount", "mount"),
        };
        match self.kind {
            Kind::Gabion if self.options.is_empty() => {}
            Kind::Gabion => drop(mount.args(["-o", &self.options.join(",")])),
            Kind::Ext4 => drop(mount.args(["-o", "loop"])),
        }
        let begin = Instant::now();
        run(mount.arg(&self.image).arg(&self.root));
        begin.elapsed()
    }

    /// Tries to unmount it; gives whether that worked, and what was said.
    pub fn try_unmount(&self) -> (bool, String) {
        let mut unmount = match self.kind {
            Kind::Gabion => gabion("umount"),
            Kind::Ext4 => program("umount", "mount"),
        };
        attempt(unmount.arg(&self.root))
    }

    /// Unmounts it.
    pub fn unmount(&self) {
        let (success, text) = self.try_unmount();
        assert!(success, "cannot unmount: {text}");
        assert!(!is_mounted(&self.root), "still there after it was unmounted");
    }

    /// Unmounts it and mounts it again.
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Kills the daemon, in the midst of what these programs do. They end by the errors that they
    /// get from then on.
    pub fn kill(&self, users: &mut [&mut Running]) {
        match self.kind {
            Kind::Gabion => {
                let pids = processes_below(&self.root);
                assert!(!pids.is_empty(), "there is no daemon to kill");
                kill_all(&pids);
            }
            Kind::Ext4 => {
                users.iter_mut().for_each(|user| user.kill());
                run(program("umount", "mount").arg("-l").arg(&self.root));
            }
        }
    }

    /// Compares everything with its checksums, and what is allocated with what is used.
    pub fn scrub(&self) {
        if self.kind == Kind::Gabion {
            run(gabion("scrub").arg(&self.root));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        clear(&self.folder);
    }
}

/// The program under test with one of its commands, which cannot run for ever.
pub fn gabion(command: &str) -> Command {
    let mut gabion = Command::new("timeout");
    gabion.args(["--signal=KILL", "200", &program_under_test(), command]);
    gabion
}

/// The path of the program under test.
pub fn program_under_test() -> String {
    std::env::var("GABION_REAL_PROGRAM").unwrap_or_else(|_| GABION.to_owned())
}

/// Makes an ext4 in an image.
pub fn make_ext4(image: &Path, size: u64) {
    fs::File::create(image).unwrap().set_len(size).unwrap();
    run(program("mkfs.ext4", "e2fsprogs").args(["-q", "-m", "0"]).arg(image));
}

/// Makes the folder of a test, after what killed tests have left is taken away.
pub fn make_folder(name: &str) -> PathBuf {
    assert!(rustix::process::geteuid().is_root(), "these tests mount: run them as root");
    static ONCE: Once = Once::new();
    ONCE.call_once(clear_old);
    let folder = Path::new(FOLDER).join(format!("{}-{name}", std::process::id()));
    fs::create_dir_all(folder.join("beside")).unwrap();
    folder
}

/// Takes away what a test has left in its folder: daemons, mounts, loop devices, files.
pub fn clear(folder: &Path) {
    kill_all(&processes_below(folder));
    for root in mounts_below(folder).iter().rev() {
        let (success, text) = attempt(Command::new("umount").arg("-l").arg(root));
        if !success {
            eprintln!("{} stays: {text}", root.display());
            return;
        }
    }
    let (_, devices) = attempt(Command::new("losetup").arg("-j").arg(folder.join("image")));
    for device in devices.lines().filter_map(|line| line.split(':').next()) {
        attempt(Command::new("losetup").args(["-d", device]));
    }
    if std::env::var_os("GABION_REAL_KEEP").is_none() {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Takes away what killed test processes have left.
fn clear_old() {
    let Ok(folders) = fs::read_dir(FOLDER) else { return };
    for folder in folders.filter_map(Result::ok) {
        let name = folder.file_name().into_string().unwrap_or_default();
        let pid = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            clear(&folder.path());
        }
    }
}

/// Guards the folder of a test.
pub fn guard(folder: &Path) -> Guard {
    Guard::of(folder, if is_long() { DEADLINE_LONG } else { DEADLINE })
}

/// Whether something is mounted there, by the kernel's list: a look would wait for a dead daemon.
pub fn is_mounted(root: &Path) -> bool {
    mounts_below(root).iter().any(|mounted| mounted == root)
}

/// The processes of our program that name this path or one below it.
pub fn processes_below(folder: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let mut words = line.split(|byte| *byte == 0);
        let is_ours = words.next().is_some_and(|program| {
            Path::new(OsStr::from_bytes(program)).file_name() == Some(OsStr::new("gabion"))
        });
        is_ours && words.any(|word| Path::new(OsStr::from_bytes(word)).starts_with(folder))
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// Kills, and waits until they are gone.
pub fn kill_all(pids: &[Pid]) {
    for pid in pids {
        // It may be gone already.
        let _ = kill_process(*pid, Signal::KILL);
    }
    for pid in pids {
        while !is_dead(*pid) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether nothing of a process is left that could hold a file open: its first thread may be dead
/// while others still are at their end.
fn is_dead(pid: Pid) -> bool {
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    let Ok(tasks) = fs::read_dir(format!("{folder}/task")) else { return true };
    let state = fs::read_to_string(format!("{folder}/stat")).unwrap_or_default();
    // After the name, which is in parentheses, comes the state.
    let is_zombie = state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    is_zombie && tasks.count() <= 1
}
