//! What a test leaves behind, and the guards that take it away again.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, process};

use gabion_base::sync::{RwLock, RwLockReadGuard};

/// Written to while a process is started, read while a test relies on the end of a lock: a child
/// has its parent's descriptors, and the locks with them, until it runs its own program.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process while no test minds.
pub fn start(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write();
    command.spawn()
}

/// A folder that goes with its content.
pub struct TempDir {
    path: PathBuf,
    calm: Option<RwLockReadGuard<'static, ()>>,
}

impl TempDir {
    /// A folder for a test in which no other test starts a process.
    pub fn new() -> Self {
        let calm = STARTING.read_recursive();
        let mut folder = Self::for_starting();
        folder.calm = Some(calm);
        folder
    }

    /// A folder for a test that starts processes itself.
    pub fn for_starting() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("gabion-host-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Self { path, calm: None }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

pub fn is_root() -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::geteuid() == 0 }
}

/// A mounted filesystem in memory.
pub struct Mount {
    folder: TempDir,
}

impl Mount {
    pub fn new(kind: &str, options: &str) -> Self {
        let folder = TempDir::new();
        let [kind, options] = [kind, options].map(|text| CString::new(text).unwrap());
        let target = c_path(&folder.path);
        // SAFETY: all are strings that end in a zero byte.
        let result = unsafe {
            libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast())
        };
        assert_eq!(result, 0, "mount {kind:?}: {}", std::io::Error::last_os_error());
        Self { folder }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let target = c_path(&self.folder.path);
        // SAFETY: a string that ends in a zero byte.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A process that is not allowed to outlive its test.
pub struct Killed(pub u32);

impl Drop for Killed {
    fn drop(&mut self) {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(self.0 as i32, libc::SIGKILL) };
    }
}
