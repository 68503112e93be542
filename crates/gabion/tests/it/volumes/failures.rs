//! Targets and daemons that die, hang, fail, or talk nonsense.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::stage::{PATIENCE, Stage};
use super::writing::Writer;
use crate::world::Running;

/// What a killed target may cost; two seconds are the promise on a machine that does nothing else.
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn a_killed_target_costs_a_short_pause_and_comes_back_in_sync() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(20);
    b.kill();
    writer.await_more(20);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    let told = host.await_event("member-stale");
    assert_eq!(told["member"], stage.uri("b"));
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(PAUSE);
    written.check();
    host.unmount_equal();
    host.gabion(&["volume", "resync", "tank", "--verify"]).succeeded();
}

#[test]
fn what_was_synced_is_there_after_both_targets_were_killed() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (a, b) = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(20);
    b.kill();
    a.kill();
    host.await_event("volume-unavailable");
    let (_a, _b) = (stage.target("a"), stage.target("b"));
    // Nobody is told of an error: the last copy is waited for.
    writer.await_more(20);
    let written = writer.finish();
    host.await_copies(&["in-sync", "in-sync"]);
    host.kill_daemon();
    host.mount();
    written.check();
    host.unmount_equal();
}

#[test]
fn a_killed_mount_leaves_copies_that_become_equal() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(50);
    host.kill_daemon();
    let written = writer.finish_in_failure();
    host.mount();
    written.check();
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount_equal();
}

#[test]
fn a_stopped_target_holds_nobody_longer_than_its_deadline() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(20);
    b.signal(Signal::STOP);
    writer.await_more(20);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    let written = writer.finish_within(Duration::from_secs(15));
    written.check();
    let began = Instant::now();
    host.unmount();
    println!("umount: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    b.signal(Signal::CONT);
    host.mount();
    written.check();
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount_equal();
}

/// Answers every connection to `socket` with rubbish until it is dropped.
struct Babbler {
    socket: std::path::PathBuf,
    stop: Arc<AtomicBool>,
    /// Has a message for each connection that was answered.
    heard: mpsc::Receiver<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Babbler {
    fn start(socket: std::path::PathBuf) -> Self {
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let own_stop = Arc::clone(&stop);
        let (tell, heard) = mpsc::channel();
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if own_stop.load(Ordering::Acquire) {
                    return;
                }
                let mut client = client.unwrap();
                // It may hang up at any time.
                let _ = client.write_all(&[0xa5; 64 << 10]);
                let _ = client.read(&mut [0; 100]);
                // Nobody may want to know any more.
                let _ = tell.send(());
            }
        });
        Self { socket, stop, heard, thread: Some(thread) }
    }
}

impl Drop for Babbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
        let _ = self.thread.take().unwrap().join();
        let _ = fs::remove_file(&self.socket);
    }
}

#[test]
fn a_target_that_talks_nonsense_is_done_without() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    b.kill();
    let babbler = Babbler::start(stage.path("b.sock"));
    writer.await_more(20);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    babbler.heard.recv_timeout(PATIENCE).expect("a connection");
    writer.await_more(5);
    drop(babbler);
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(Duration::from_secs(15));
    written.check();
    host.unmount_equal();
}

/// Starts nbdkit for an empty disk `NAME.img`; gives its URI, too.
fn nbdkit(stage: &Stage, name: &str, arguments: &[&str]) -> (Running, String) {
    let socket = stage.text(&format!("{name}.sock"));
    stage.disk(&format!("{name}.img"));
    // It is given a socket that listens already, so that nobody has to wait for it.
    let listener = UnixListener::bind(&socket).unwrap();
    let activate = "export LISTEN_PID=$$ LISTEN_FDS=1; exec nbdkit \"$@\" 3<&0 </dev/null";
    let mut nbdkit = Command::new("sh");
    nbdkit.args(["-c", activate, "sh", "--exit-with-parent"]).args(arguments);
    nbdkit.current_dir(stage.folder.path()).stdin(OwnedFd::from(listener)).stderr(Stdio::null());
    (Running(nbdkit.spawn().unwrap()), format!("nbd+unix:///?socket={socket}"))
}

#[test]
fn a_resync_ends_and_says_so_when_a_block_stays_unreadable() {
    let stage = Stage::new();
    let folder = stage.folder.path().display();
    // It cannot read one block as long as there is a file that says so.
    let (bad, image) = (format!("{folder}/bad"), format!("{folder}/c.img"));
    let is_bad = format!("[ -e {bad} ] && [ $4 -le 20000000 ] && [ $(($4 + $3)) -gt 20000000 ]");
    let read = format!("dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none");
    let (_nbdkit, c) = nbdkit(
        &stage,
        "c",
        &[
            "eval",
            &format!("get_size=stat -c %s {image}"),
            &format!("pread=if {is_bad}; then echo EIO a bad block >&2; exit 1; fi; {read}"),
            &format!("pwrite=dd of={image} oflag=seek_bytes seek=$4 conv=notrunc status=none"),
            &format!("flush=sync {image}"),
            "can_write=exit 0",
            "can_flush=exit 0",
            "can_fua=echo emulate",
        ],
    );
    let (b, host) = (stage.target("b"), stage.host());
    let create = ["volume", "create", "tank", "--mirror", &c, &b.uri];
    host.gabion(&create).succeeded();
    fs::write(&bad, "").unwrap();
    let resync = || host.gabion(&["volume", "resync", "tank"]);
    resync().failed(4, &["1 block of tank cannot be read from any copy in sync", "scrub"]);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    host.await_event("resync-interrupted");
    fs::remove_file(&bad).unwrap();
    resync().succeeded();
    assert_eq!(host.copies(), ["in-sync", "in-sync"]);
}

#[test]
fn a_member_with_errors_is_done_without() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _a = stage.target("a");
    let broken = stage.text("broken");
    let (_nbdkit, c) = nbdkit(
        &stage,
        "c",
        &[
            "--filter=error",
            "file",
            "c.img",
            "error=EIO",
            "error-pwrite-rate=100%",
            &format!("error-file={broken}"),
        ],
    );
    let a = stage.uri("a");
    let host = stage.host();
    host.make_mirror("tank", [&a, &c]);
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    fs::write(&broken, "").unwrap();
    let told = host.await_event("member-stale");
    assert!(told["reason"].as_str().unwrap().contains("Input/output error"), "{told}");
    writer.await_more(5);
    fs::remove_file(&broken).unwrap();
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(PAUSE);
    written.check();
    host.unmount();
}

#[test]
fn what_no_target_takes_any_more_fails_with_eio_and_what_was_synced_is_kept() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (a, b) = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let kept = mountpoint.join("kept");
    fs::write(&kept, "by fsync").unwrap();
    fs::File::open(&kept).unwrap().sync_all().unwrap();
    [a, b].into_iter().for_each(super::stage::Target::kill);
    fs::write(mountpoint.join("late"), "lost").unwrap();
    let error = fs::File::open(mountpoint.join("late")).unwrap().sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    host.await_event("volume-unavailable");
    let told = host.await_event("filesystem-stopped-writing");
    assert_eq!(told["filesystem"], "tank");
    // What is in memory can be read; nothing is written any more, although the targets are back.
    assert_eq!(fs::read_to_string(&kept).unwrap(), "by fsync");
    let _targets = (stage.target("a"), stage.target("b"));
    let refused = fs::write(mountpoint.join("later"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(5), "{refused}");
    host.gabion(&["umount", "mnt"]).failed(1, &["not all of it could be written", "tank"]);
    host.mount();
    assert_eq!(fs::read_to_string(&kept).unwrap(), "by fsync");
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount_equal();
}

#[test]
fn umount_and_an_interrupt_end_though_all_targets_are_dead() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (a, b) = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    fs::create_dir(stage.path("front")).unwrap();
    let [c, d] = ["c", "d"].map(|name| stage.target(name));
    host.make_mirror("fore", [&stage.uri("c"), &stage.uri("d")]);
    let mut command = host.command(&["mount", "--foreground", "-o", "commit=300", "fore", "front"]);
    let mut foreground = stage.start(command.stderr(Stdio::null()).stdout(Stdio::null()));
    stage.await_mount("front");
    for folder in [&mountpoint, &stage.path("front")] {
        fs::write(folder.join("file"), vec![1; 1 << 20]).unwrap();
    }
    [a, b, c, d].into_iter().for_each(super::stage::Target::kill);
    let began = Instant::now();
    foreground.signal(Signal::INT);
    let outcome = host.gabion(&["umount", "mnt"]);
    println!("umount: {:?}: {}", began.elapsed(), outcome.stderr);
    outcome.failed(1, &["not all of it could be written"]);
    let status = foreground.0.wait().unwrap();
    println!("Ctrl-C: {:?}", began.elapsed());
    assert!(!status.success());
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
    assert!(stage.folder.mountpoints().is_empty(), "{:?}", stage.folder.mountpoints());
}
