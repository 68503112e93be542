//! How sessions end, and what outlives them.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use gabion_fuse::mount::{MountError, MountOptions, Source, Unmount, mount, unmount};
use gabion_fuse::mountinfo::{abort_connection, find};
use gabion_fuse::{CancelReason, Config, End, Liveness, Session, probe};

use crate::memfs::{Mounted, Mountpoint, Served};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn errno(path: &Path) -> Option<i32> {
    fs::metadata(path).unwrap_err().raw_os_error()
}

#[test]
fn unmounting_ends_the_session() {
    let mounted = Mounted::new();
    fs::write(mounted.path("file"), b"x").unwrap();
    let found = find(mounted.at.path()).unwrap().unwrap();
    assert_eq!((found.fstype.as_str(), found.source.to_str()), ("fuse.gabion", Some("memory")));
    assert!(found.is_fuse() && found.options.contains("nosuid"));

    assert_eq!(probe(mounted.at.path(), PATIENCE).unwrap(), Liveness::Alive);

    let open = fs::File::open(mounted.path("file")).unwrap();
    let busy = unmount(mounted.at.path(), Unmount::Plain);
    let Err(MountError::Unmount { error, .. }) = busy else { panic!("{busy:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    drop(open);
    mounted.fs.wait_for(|record| (record.released == 2).then_some(()));
    unmount(mounted.at.path(), Unmount::Plain).unwrap();
    assert_eq!(mounted.session.wait(), End::Unmounted);
    assert_eq!(mounted.fs.record(|record| record.destroyed), 1);
    assert_eq!(find(mounted.at.path()).unwrap(), None);
}

#[test]
fn mount_whose_daemon_is_gone_is_found_and_removed() {
    let Mounted { at, fs, session } = Mounted::new();
    session.shutdown();
    assert_eq!(session.wait(), End::Shutdown);
    assert_eq!(fs.record(|record| record.destroyed), 1);
    drop(session);
    assert_eq!(probe(at.path(), PATIENCE).unwrap(), Liveness::Dead);
    assert!(matches!(errno(at.path()), Some(libc::ENOTCONN | libc::ECONNABORTED)));
    assert!(find(at.path()).unwrap().is_some_and(|found| found.is_fuse()));
    unmount(at.path(), Unmount::Lazy).unwrap();
    assert_eq!(find(at.path()).unwrap(), None);
    assert!(at.path().is_dir());
}

#[test]
fn mount_that_nobody_serves_is_silent_and_keeps_nobody_waiting() {
    let at = Mountpoint::new();
    let options = MountOptions::new(Source::Name("memory".to_owned()), "gabion");
    let _device = mount(at.path(), &options).unwrap();
    assert_eq!(probe(at.path(), Duration::from_millis(10)).unwrap(), Liveness::Silent);
}

#[test]
fn mount_is_found_by_a_path_through_symbolic_links() {
    let mounted = Mounted::new();
    let link = mounted.at.path().with_extension("link");
    std::os::unix::fs::symlink(mounted.at.path().parent().unwrap(), &link).unwrap();
    let found = find(&link.join(mounted.at.path().file_name().unwrap()));
    fs::remove_file(&link).unwrap();
    assert_eq!(found.unwrap().unwrap().mountpoint, mounted.at.path());
}

#[test]
fn unanswered_request_is_answered_by_the_next_session() {
    let Mounted { at, fs, session } = Mounted::new();
    fs.plant(7, "hole");
    let mut child = Command::new("test").arg("-f").arg(at.path().join("hole")).spawn().unwrap();
    let left = fs.wait_for(|record| record.holes.pop());
    let device = session.device().unwrap();
    session.shutdown();
    assert_eq!(left.cancel().reason(), Some(CancelReason::SessionEnded));
    session.wait();
    drop((left, session));

    let _next = Session::resume(device, Served(Arc::clone(&fs)), Config::default()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs.record(|record| record.resent), 1);
    assert_eq!(errno(&at.path().join("absent")), Some(libc::ENOENT));
}

/// A small file as a block device.
pub struct Loop {
    image: PathBuf,
    pub device: PathBuf,
}

impl Loop {
    pub fn new(at: &Mountpoint) -> Self {
        let image = at.path().with_extension("image");
        fs::File::create_new(&image).unwrap().set_len(1 << 20).unwrap();
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
        let name = String::from_utf8(output.stdout).unwrap();
        let loop_device = Self { image, device: PathBuf::from(name.trim()) };
        assert!(output.status.success());
        loop_device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
        let _ = fs::remove_file(&self.image);
    }
}

#[test]
fn on_a_block_device_sync_and_unmount_wait_for_the_filesystem() {
    let place = Mountpoint::new();
    let device = Loop::new(&place);
    let source = Source::BlockDevice { path: device.device.clone(), block_size: 4096 };
    let mounted = Mounted::of(source, Config::default());
    assert_eq!(find(mounted.at.path()).unwrap().unwrap().fstype, "fuseblk.gabion");
    let root = fs::File::open(mounted.at.path()).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::syncfs(root.as_raw_fd()) }, 0);
    drop(root);
    let once = mounted.fs.record(|record| record.syncfs);
    assert!(once >= 1);
    // SAFETY: sync has no preconditions.
    unsafe { libc::sync() };
    assert!(mounted.fs.record(|record| record.syncfs) > once);
    unmount(mounted.at.path(), Unmount::Plain).unwrap();
    assert_eq!(mounted.fs.record(|record| record.destroyed), 1);
    assert_eq!(mounted.session.wait(), End::Unmounted);
    assert_eq!(mounted.fs.record(|record| record.destroyed), 1);
}

/// FUSE's control filesystem, mounted where it belongs for as long as a test needs it.
struct Control {
    mounted: bool,
}

impl Control {
    const PATH: &str = "/sys/fs/fuse/connections";

    fn new() -> Self {
        if find(Path::new(Self::PATH)).unwrap().is_some() {
            return Self { mounted: false };
        }
        let status = Command::new("mount").args(["-t", "fusectl", "none", Self::PATH]).status();
        assert!(status.unwrap().success());
        Self { mounted: true }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(Path::new(Self::PATH), Unmount::Lazy);
        }
    }
}

#[test]
fn aborted_connection_ends_the_session_and_leaves_a_dead_mount() {
    let _control = Control::new();
    let mounted = Mounted::new();
    let found = find(mounted.at.path()).unwrap().unwrap();
    abort_connection(found.connection()).unwrap();
    assert_eq!(mounted.session.wait(), End::Aborted);
    assert_eq!(errno(mounted.at.path()), Some(libc::ENOTCONN));
    assert_eq!(find(mounted.at.path()).unwrap(), Some(found));

    let device = Loop::new(&mounted.at);
    let source = Source::BlockDevice { path: device.device.clone(), block_size: 4096 };
    let on_device = Mounted::of(source, Config::default());
    let found = find(on_device.at.path()).unwrap().unwrap();
    abort_connection(found.connection()).unwrap();
    assert_eq!(on_device.session.wait(), End::Aborted);
}
