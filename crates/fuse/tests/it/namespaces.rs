//! Mounts that only one thread sees.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null;
use std::sync::mpsc;
use std::thread;

use gabion_fuse::mount::{Unmount, unmount};
use gabion_fuse::mountinfo::{find, mounts_of};
use gabion_fuse::namespace;

use crate::memfs::{Mounted, Mountpoint};

#[test]
fn what_is_mounted_in_a_namespace_of_its_own_is_seen_there_only() {
    let mounted = Mounted::new();
    let at = mounted.at.path();
    assert!(find(at).unwrap().is_some());
    let others = mounts_of(std::os::unix::process::parent_id()).unwrap();
    assert!(!others.is_empty() && others.iter().all(|mount| mount.mountpoint != at));
    // Whoever is started here is here, too.
    let listed = std::process::Command::new("cat").arg("/proc/self/mountinfo").output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(at.to_str().unwrap()));
}

/// Mounts a filesystem in memory. If it is to be shared, copies learn what becomes of mounts in it.
fn mount_memory(at: &Path, is_shared: bool) {
    let at = CString::new(at.as_os_str().as_bytes()).unwrap();
    let kind = c"tmpfs".as_ptr();
    // SAFETY: the strings are NUL-terminated, and what is null is not looked at.
    unsafe {
        assert_eq!(libc::mount(kind, at.as_ptr(), kind, 0, null()), 0);
        if is_shared {
            assert_eq!(libc::mount(null(), at.as_ptr(), null(), libc::MS_SHARED, null()), 0);
        }
    }
}

#[test]
fn a_namespace_leaves_to_others_what_it_need_not_have_and_keeps_nothing_that_they_unmount() {
    let outer = Mountpoint::new();
    let outer = fs::canonicalize(outer.path()).unwrap();
    mount_memory(&outer, true);
    let [left, kept] = ["left", "kept"].map(|name| outer.join(name));
    for at in [&left, &kept] {
        fs::create_dir(at).unwrap();
        mount_memory(at, false);
    }
    thread::scope(|scope| {
        let (left, kept) = (&left, &kept);
        let (tell, told) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        scope.spawn(move || {
            namespace::enter(|mount| mount.mountpoint == *left).unwrap();
            let sees = |at: &Path| find(at).unwrap().is_some();
            answer.send([sees(left), sees(kept)]).unwrap();
            told.recv().unwrap();
            answer.send([sees(left), sees(kept)]).unwrap();
        });
        assert_eq!(answers.recv().unwrap(), [false, true]);
        assert!(find(left).unwrap().is_some(), "it is only left there");
        unmount(kept, Unmount::Plain).unwrap();
        tell.send(()).unwrap();
        assert_eq!(answers.recv().unwrap(), [false, false]);
    });
}
