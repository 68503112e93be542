//! Nothing hangs: callers that wait can be killed, and a mount that is in use says so.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use crate::GIB;
use crate::program::{Running, script};
use crate::site::{Kind, Site};

/// How long a killed caller may take to be gone, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);

fn killed_waiter_ends(kind: &str) {
    let site = Site::new(&format!("wait-{kind}"), GIB);
    let path = site.path("file");
    fs::write(&path, "locked").unwrap();
    let holder_of = |mode: &str| {
        let mut command = script("locker.py");
        command.arg(&path).arg(kind).arg(mode);
        Running::start(&mut command)
    };
    let mut holder = holder_of("hold");
    assert_eq!(holder.line().as_deref(), Some("held"));
    let mut waiter = holder_of("wait");
    assert_eq!(waiter.line().as_deref(), Some("waits"));
    let begin = Instant::now();
    waiter.kill();
    assert!(!waiter.wait(), "it got the lock that is held");
    assert!(begin.elapsed() < PROMPT, "killed, it ended after {:?}", begin.elapsed());
    // The dead waiter did not inherit the lock, and the holder still has it.
    let mut asker = holder_of("try");
    assert_eq!(asker.line().as_deref(), Some("refused"));
    holder.kill();
    holder.wait();
    let mut asker = holder_of("try");
    assert_eq!(asker.line().as_deref(), Some("held"));
    asker.kill();
    site.unmount();
}

#[test]
fn a_killed_waiter_for_a_flock_ends_at_once() {
    killed_waiter_ends("flock");
}

#[test]
fn a_killed_waiter_for_a_range_lock_ends_at_once() {
    killed_waiter_ends("lockf");
}

#[test]
fn a_mount_in_use_says_so_and_stays() {
    let site = Site::new("busy", GIB);
    let file = File::create(site.path("open")).unwrap();
    let (success, text) = site.try_unmount();
    assert!(!success, "it was unmounted in use");
    assert!(text.contains("busy") || text.contains("in use"), "{text}");
    if site.kind() == Kind::Gabion {
        assert!(text.contains(&std::process::id().to_string()), "it names its user: {text}");
    }
    // It works on as if nothing had been asked.
    fs::write(site.path("another"), "written later").unwrap();
    drop(file);
    site.unmount();
    site.mount();
    assert_eq!(fs::read(site.path("another")).unwrap(), b"written later");
}

#[test]
fn callers_of_a_killed_daemon_get_errors_and_do_not_hang() {
    let site = Site::new("dead", GIB);
    let path = site.path("file");
    fs::write(&path, "here").unwrap();
    if site.kind() == Kind::Ext4 {
        return;
    }
    let file = File::open(site.path("file")).unwrap();
    site.kill(&mut []);
    assert!(fs::write(site.path("new"), "").is_err());
    assert!(fs::read_dir(site.root()).is_err());
    assert!(file.sync_all().is_err());
    // The dead mount is in use, and still another takes its place.
    site.mount();
    assert!(site.path("new").metadata().is_err());
    drop(file);
    fs::write(site.path("new"), "alive").unwrap();
}
