//! What a volume stands on besides its targets' programs: their files and the room for them, the
//! coordinator's disk, the log of events, the clock.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::stage::{HEADERS, SIZE, Stage, Target, run};
use super::writing::Writer;

/// Far more than a clock is wrong by chance.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Mounts a filesystem in memory with room for `size` at `NAME`.
fn small_disk(stage: &Stage, name: &str, size: &str) {
    fs::create_dir(stage.path(name)).unwrap();
    let size = format!("size={size},mode=700");
    run(stage.folder.path(), "mount", &["-t", "tmpfs", "-o", &size, "none", name]);
}

/// Takes all the room that is left on a disk.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

/// Starts a target of a file that has a name of its own.
fn target_of(stage: &Stage, name: &str, file: &str) -> Target {
    let mut command = stage.host().command(&["target", "--listen"]);
    command.arg(format!("unix:{}", stage.text(&format!("{name}.sock"))));
    command.arg(format!("{name}={file}"));
    stage.start_target(command)
}

#[test]
fn a_member_whose_own_disk_is_full_is_done_without_until_there_is_room() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _a = stage.target("a");
    small_disk(&stage, "small", "8M");
    // Of more bytes than there is room for.
    File::create(stage.path("small/disk")).unwrap().set_len(SIZE).unwrap();
    let _b = target_of(&stage, "b", "small/disk");
    let host = stage.host();
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let mountpoint = host.mount();
    fs::write(mountpoint.join("large"), vec![7; 16 << 20]).unwrap();
    File::open(mountpoint.join("large")).unwrap().sync_all().unwrap();
    let told = host.await_event("member-stale");
    assert_eq!(told["member"], stage.uri("b"));
    assert!(told["reason"].as_str().unwrap().contains("No space left"), "{told}");
    assert_eq!(fs::read(mountpoint.join("large")).unwrap(), vec![7; 16 << 20]);
    run(stage.folder.path(), "mount", &["-o", "remount,size=64M", "small"]);
    host.await_copies(&["in-sync", "in-sync"]);
    host.unmount();
    stage.assert_equal("a.img", "small/disk", HEADERS);
}

#[test]
fn a_target_whose_file_was_cut_short_is_read_past_and_put_right() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| (number / 9) as u8).collect();
    fs::write(mountpoint.join("file"), &content).unwrap();
    File::open(mountpoint.join("file")).unwrap().sync_all().unwrap();
    host.unmount();
    let image = File::options().write(true).open(stage.path("b.img")).unwrap();
    image.set_len(HEADERS as u64 + (64 << 10)).unwrap();
    host.mount();
    assert!(fs::read(mountpoint.join("file")).unwrap() == content, "wrong bytes");
    let scrubbed = host.gabion(&["scrub", "mnt"]).succeeded();
    assert!(scrubbed.contains("put right: ") && scrubbed.contains("nothing damaged"), "{scrubbed}");
    host.await_event("block-checksum-repaired");
    host.unmount();
    // What has been written there since makes it longer, but not as long as it was.
    assert!(image.metadata().unwrap().len() < SIZE);
    b.kill();
    let b = stage.target("b");
    host.mount();
    let told = host.await_event("member-unreachable");
    assert!(told["reason"].as_str().unwrap().contains("smaller than it was"), "{told}");
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    b.kill();
    image.set_len(SIZE).unwrap();
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    assert!(fs::read(mountpoint.join("file")).unwrap() == content, "wrong bytes");
    host.gabion(&["scrub", "mnt"]).succeeded();
    host.unmount();
}

#[test]
fn a_coordinator_whose_disk_is_full_holds_up_writes_from_when_a_copy_fails_until_there_is_room() {
    let Some(stage) = Stage::for_mounts() else { return };
    small_disk(&stage, "records", "1M");
    let host = stage.host_with("state", Some(stage.text("records")));
    let (_a, b) = (stage.target("a"), stage.target("b"));
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    let filler = stage.path("records/filler");
    fill(&filler);
    writer.await_more(20);
    b.kill();
    // Nothing is acknowledged before the record says who lacks it.
    host.await_event("coordinator-unreachable");
    fs::remove_file(&filler).unwrap();
    writer.await_more(20);
    host.await_copies(&["in-sync", "stale"]);
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    writer.finish_within(Duration::from_secs(30)).check();
    host.unmount_equal();
}

#[test]
fn a_log_of_events_that_cannot_be_written_holds_up_nobody() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let log = stage.path("state/events/log.jsonl");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    b.kill();
    writer.await_more(20);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    writer.finish_within(Duration::from_secs(15)).check();
    // From then on they are kept again.
    fs::remove_dir(&log).unwrap();
    host.unmount_equal();
    host.await_event("volume-closed");
    assert!(!host.events().iter().any(|event| event["event"] == "member-stale"));
}

/// A library for `LD_PRELOAD` that adds to the time of day what a file says, in seconds.
const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *ahead;
__attribute__((constructor)) static void open_offset(void) {
    void *map = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("CLOCK_AHEAD"), O_RDONLY), 0);
    if (map == MAP_FAILED) abort();
    ahead = map;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *ahead;
    return result;
}
"#;

/// A clock that can be set, for programs that are started with it.
struct Clock<'a> {
    stage: &'a Stage,
    ahead: File,
}

impl<'a> Clock<'a> {
    fn new(stage: &'a Stage) -> Self {
        fs::write(stage.path("clock.c"), CLOCK).unwrap();
        let compile = ["-shared", "-fPIC", "-O2", "-o", "clock.so", "clock.c"];
        run(stage.folder.path(), "cc", &compile);
        fs::write(stage.path("ahead"), [0; 8]).unwrap();
        let ahead = File::options().write(true).open(stage.path("ahead")).unwrap();
        Self { stage, ahead }
    }

    fn give<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_PRELOAD", self.stage.path("clock.so"));
        command.env("CLOCK_AHEAD", self.stage.path("ahead"))
    }

    fn set(&self, seconds: i64) {
        self.ahead.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// When the filesystem believes to have made a file.
fn made(path: &Path) -> SystemTime {
    fs::write(path, "").unwrap();
    fs::metadata(path).unwrap().created().unwrap()
}

#[test]
fn clocks_that_are_set_disturb_nobody() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (clock, host) = (Clock::new(&stage), stage.host());
    let target = |name: &str| {
        if !stage.path(&format!("{name}.img")).exists() {
            stage.disk(&format!("{name}.img"));
        }
        let mut command = host.command(&["target", "--listen"]);
        command.arg(format!("unix:{}", stage.text(&format!("{name}.sock"))));
        clock.give(command.arg(format!("{name}={name}.img")));
        stage.start_target(command)
    };
    let (_a, b) = (target("a"), target("b"));
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let mountpoint = stage.path("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let mount = || {
        let mut command = host.command(&["mount", "tank", "mnt"]);
        assert!(clock.give(&mut command).status().unwrap().success());
    };
    mount();
    let writer = Writer::start(&mountpoint);
    writer.await_more(5);
    let day = DAY.as_secs() as i64;
    clock.set(day);
    assert!(made(&mountpoint.join("later")) > SystemTime::now() + DAY / 2, "it is not set");
    writer.await_more(20);
    clock.set(-day);
    assert!(made(&mountpoint.join("earlier")) < SystemTime::now() - DAY / 2, "it is not set");
    writer.await_more(20);
    assert!(!host.events().iter().any(|event| event["event"] == "member-stale"));
    b.kill();
    writer.await_more(20);
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    clock.set(day);
    let _b = target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(Duration::from_secs(15));
    host.unmount();
    // The opening before was a day after this one.
    clock.set(0);
    mount();
    written.check();
    assert_eq!(host.copies(), ["in-sync", "in-sync"]);
    host.unmount_equal();
}
