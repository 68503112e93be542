//! Two openers, and disks that are not what they were.

use std::fs;
use std::thread;

use super::stage::{HEADERS, SIZE, Stage, run};
use super::writing::Writer;

/// Members that are files have no target's header.
const MEMBER_HEADER: usize = 1 << 20;

#[test]
fn a_second_opener_is_told_who_has_the_volume() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    fs::create_dir(stage.path("other")).unwrap();
    let holder = format!("process {}", host.daemon("mnt").as_raw_nonzero());
    let socket = format!("unix:{}", stage.text("export.sock"));
    let refused = |arguments: &[&str]| {
        host.gabion(arguments).failed(1, &["tank", "in use by", &holder]);
    };
    // At the same time, as some wait for a moment.
    thread::scope(|scope| {
        scope.spawn(|| refused(&["mount", "tank", "other"]));
        scope.spawn(|| refused(&["mkfs", "--force", "tank"]));
        scope.spawn(|| refused(&["volume", "export", "tank", "--listen", &socket]));
        scope.spawn(|| refused(&["volume", "delete", "tank", "--yes"]));
    });
    fs::write(mountpoint.join("still"), "there").unwrap();
    fs::File::open(mountpoint.join("still")).unwrap().sync_all().unwrap();
    host.unmount();
    assert_eq!(host.copies(), ["in-sync", "in-sync"]);
}

#[test]
fn a_machine_that_opens_a_volume_fences_the_one_that_had_it() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let (first, second) = (stage.host(), stage.host_with("second", None));
    let mountpoint = first.mount();
    fs::write(mountpoint.join("kept"), "by fsync").unwrap();
    fs::File::open(mountpoint.join("kept")).unwrap().sync_all().unwrap();
    // A coordinator that knows the same and does not know of the claim, as after a lease's end.
    run(stage.folder.path(), "cp", &["-r", "state", "second"]);
    let other = second.mount_of("tank", "other");
    assert_eq!(fs::read_to_string(other.join("kept")).unwrap(), "by fsync");
    fs::write(mountpoint.join("late"), "lost").unwrap();
    let file = fs::File::open(mountpoint.join("late")).unwrap();
    file.sync_all().expect_err("somebody else has the volume");
    first.await_event("volume-fenced");
    fs::write(other.join("new"), "kept").unwrap();
    fs::File::open(other.join("new")).unwrap().sync_all().unwrap();
    drop(file);
    first.gabion(&["umount", "mnt"]).failed(1, &["not all of it could be written"]);
    second.gabion(&["umount", "other"]).succeeded();
    let other = second.mount_of("tank", "other");
    assert!(!other.join("late").exists());
    assert_eq!(fs::read_to_string(other.join("new")).unwrap(), "kept");
}

#[test]
fn an_empty_disk_in_a_copys_place_is_filled() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (_a, b) = stage.mirror();
    let host = stage.host();
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    b.kill();
    writer.await_more(5);
    stage.disk("b.img");
    let b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish();
    host.unmount_equal();
    // The same while nobody uses it.
    b.kill();
    stage.disk("b.img");
    let _b = stage.target("b");
    host.gabion(&["volume", "resync", "tank"]).succeeded();
    assert_eq!(host.copies(), ["in-sync", "in-sync"]);
    stage.assert_equal("a.img", "b.img", HEADERS);
    host.mount();
    written.check();
}

#[test]
fn a_foreign_disk_is_left_alone_and_named() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.mirror_of_files();
    let host = stage.host();
    let b = stage.text("b.img");
    fs::rename(stage.path("b.img"), stage.path("b.away")).unwrap();
    // First another filesystem, then a member of another volume.
    stage.disk("b.img");
    run(stage.folder.path(), "mkfs.ext4", &["-q", "-E", "lazy_itable_init=0", "b.img"]);
    for what in ["something that is not a volume's", "belongs to another volume"] {
        if what.contains("belongs") {
            stage.disk("b.img");
            host.gabion(&["volume", "create", "other", "--linear", &b]).succeeded();
        }
        let before = fs::read(&b).unwrap();
        let mountpoint = host.mount();
        let writer = Writer::start(&mountpoint);
        writer.await_more(5);
        let told = host.await_event_that("member-foreign", |event| {
            event["found"].as_str().unwrap().contains(what)
        });
        assert_eq!(told["member"], b.as_str());
        writer.finish().check();
        host.unmount();
        assert!(fs::read(&b).unwrap() == before, "{what}");
        assert_eq!(host.copies(), ["in-sync", "stale"]);
    }
    // The right one again.
    fs::rename(stage.path("b.away"), &b).unwrap();
    host.gabion(&["volume", "resync", "tank", "--verify"]).succeeded();
    stage.assert_equal("a.img", "b.img", MEMBER_HEADER);
}

#[test]
fn an_older_state_of_a_copy_is_filled_and_never_read() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.mirror_of_files();
    let host = stage.host();
    let mountpoint = host.mount();
    fs::write(mountpoint.join("file"), "old").unwrap();
    host.unmount();
    fs::copy(stage.path("b.img"), stage.path("backup")).unwrap();
    host.mount();
    fs::write(mountpoint.join("file"), "new").unwrap();
    host.unmount();
    fs::copy(stage.path("backup"), stage.path("b.img")).unwrap();
    // It alone is no volume.
    fs::rename(stage.path("a.img"), stage.path("a.away")).unwrap();
    let refused = host.gabion(&["mount", "tank", "mnt"]);
    refused.failed(1, &["no copy that is in sync", "No such file", "older than it was"]);
    fs::rename(stage.path("a.away"), stage.path("a.img")).unwrap();
    host.mount();
    assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), "new");
    host.await_copies(&["in-sync", "in-sync"]);
    let told = host.await_event("resync-started");
    // All of it but the headers and the bitmaps.
    assert_eq!(told["bytes"], SIZE - 2 * MEMBER_HEADER as u64);
    assert_eq!(fs::read_to_string(mountpoint.join("file")).unwrap(), "new");
    host.unmount();
    stage.assert_equal("a.img", "b.img", MEMBER_HEADER);
}

#[test]
fn copies_that_went_on_apart_are_refused_with_both_histories() {
    let Some(stage) = Stage::for_mounts() else { return };
    let (a, b) = stage.mirror();
    let (first, second) = (stage.host(), stage.host_with("second", None));
    run(stage.folder.path(), "cp", &["-r", "state", "second"]);
    let write = |host: &super::stage::Host<'_>, text: &str| {
        let mountpoint = host.mount();
        fs::write(mountpoint.join("whose"), text).unwrap();
        host.gabion(&["umount", "mnt"]).succeeded();
    };
    b.kill();
    write(&first, "first");
    a.kill();
    let b = stage.target("b");
    write(&second, "second");
    let a = stage.target("a");
    for host in [&first, &second] {
        let history = ["used apart from the rest", "The volume's history:", "The history of"];
        let mut refused = host.gabion(&["mount", "tank", "mnt"]);
        if refused.stderr.contains("belongs to epoch") {
            // The other side has just tried with the same epoch.
            refused = host.gabion(&["mount", "tank", "mnt"]);
        }
        refused.failed(1, &history);
        let told = host.await_event("volume-split-brain");
        assert_ne!(told["one"], told["other"]);
    }
    // Whoever decides for one side gives the other's disk back as an empty one.
    b.kill();
    stage.disk("b.img");
    let _targets = (a, stage.target("b"));
    // The other side has just tried with the same epoch, so that this may be the wrong one.
    let _ = first.gabion(&["volume", "resync", "tank"]);
    let mountpoint = first.mount();
    first.await_copies(&["in-sync", "in-sync"]);
    assert_eq!(fs::read_to_string(mountpoint.join("whose")).unwrap(), "first");
    first.unmount();
    stage.assert_equal("a.img", "b.img", HEADERS);
}

#[test]
fn a_volume_that_is_not_made_disturbs_nobody() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let mountpoint = host.mount();
    let refused = host.gabion(&["volume", "create", "new", "--linear", &stage.uri("a")]);
    refused.failed(1, &["is a member of the volume", "--force"]);
    let writer = Writer::start(&mountpoint);
    writer.await_more(5);
    writer.finish().check();
    assert_eq!(host.copies(), ["in-sync", "in-sync"]);
}

#[test]
fn a_target_that_was_given_to_another_volume_stays_with_it() {
    let Some(stage) = Stage::for_mounts() else { return };
    let _targets = stage.mirror();
    let host = stage.host();
    let b = stage.uri("b");
    host.gabion(&["volume", "create", "other", "--force", "--linear", &b]).succeeded();
    host.gabion(&["mkfs", "other"]).succeeded();
    let other = host.mount_of("other", "mnt");
    fs::create_dir(stage.path("second")).unwrap();
    for _ in 0..4 {
        // Until its epoch is higher than that of the other volume.
        host.mount_of("tank", "second");
        host.gabion(&["umount", "second"]).succeeded();
    }
    assert_eq!(host.copies(), ["in-sync", "stale"]);
    let writer = Writer::start(&other);
    writer.await_more(5);
    writer.finish().check();
    host.unmount();
    host.gabion(&["volume", "delete", "--yes", "tank"]).succeeded();
    host.mount_of("other", "mnt");
}

#[test]
fn a_deleted_volume_leaves_its_disks_free() {
    let stage = Stage::new();
    let _targets = (stage.target("a"), stage.target("b"));
    let file = stage.disk("c.img");
    let members = [stage.uri("a"), stage.uri("b"), file.to_str().unwrap().to_owned()];
    let host = stage.host();
    for _ in 0..2 {
        let mut create = vec!["volume", "create", "tank", "--equal", "--mirror"];
        create.extend(members.iter().map(String::as_str));
        host.gabion(&create).succeeded();
        host.gabion(&["volume", "delete", "tank"]).failed(2, &["--yes"]);
        let deleted = host.gabion(&["volume", "delete", "tank", "--yes"]);
        assert_eq!(deleted.stderr, "");
        deleted.succeeded();
        host.gabion(&["volume", "status", "tank"]).failed(1, &["tank", "gabion volume list"]);
    }
}

#[test]
fn a_volume_that_nobody_has_in_use_is_looked_at_and_scrubbed() {
    let Some(stage) = Stage::for_mounts() else { return };
    stage.mirror_of_files();
    let host = stage.host();
    let mountpoint = host.mount();
    let bytes = [b"there is one of these".as_slice(), &[7; 8000]].concat();
    fs::write(mountpoint.join("file"), &bytes).unwrap();
    host.unmount();
    let text = host.gabion(&["status", "--json", "tank"]).succeeded();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["target"], "tank");
    let text = host.gabion(&["scrub", "--allocation", "tank"]).succeeded();
    assert!(text.contains("nothing damaged") && text.contains("to the block"), "{text}");
    // It is free again for others.
    host.mount();
    host.unmount();
    for copy in ["a.img", "b.img"] {
        let mut image = fs::read(stage.path(copy)).unwrap();
        let at = image.windows(21).position(|window| window == &bytes[..21]).unwrap();
        image[at] = b'T';
        fs::write(stage.path(copy), image).unwrap();
    }
    host.gabion(&["scrub", "tank"]).failed(4, &["tank: 1 places are damaged"]);
}
