//! What has changed between two snapshots is found at a cost that follows the change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gabion_base::disk::{Disk, DiskRequest, MemDisk, Ticket};
use gabion_base::ids::SubvolId;
use gabion_fs::{Changes, CopyRequest, FileType, Privileges, SetTime};
use gabion_map::{Limits, OpenMode};
use gabion_node::{Change, Delta, LocalFs, Settings, Stretch, delta, delta_from, differences};

use crate::world::{MIB, TestClock, World};

/// A disk that counts the blocks that are read.
struct Counting {
    disk: Arc<MemDisk>,
    read: AtomicUsize,
}

impl Disk for Counting {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let DiskRequest::Read { count, .. } = &request {
            self.read.fetch_add(*count, Ordering::Relaxed);
        }
        self.disk.submit(request)
    }
}

/// Files in each of the directories.
const FILES: usize = 2000;
/// Blocks of a node.
const NODE: usize = 4;

/// Two directories of many files each, of which every 400th is changed between the snapshots
/// `old` and `new`; and the changed ones' paths.
fn changed_world() -> (World, SubvolId, SubvolId, Vec<Vec<u8>>) {
    let world = World::new(64 * MIB);
    let World { fs, caller, .. } = &world;
    let root = world.root();
    let mut files = Vec::new();
    for dir in ["a", "b"] {
        let at = fs.mkdir(caller, root, dir.as_bytes(), 0o755).unwrap().file;
        for number in 0..FILES {
            let name = format!("file-{number}");
            let made = fs.mknod(caller, at, name.as_bytes(), FileType::Regular, 0o644, 0).unwrap();
            files.push((format!("{dir}/{name}").into_bytes(), made.file));
        }
    }
    let old = fs.map().create_snapshot(root.subvol, b"old", 0).unwrap();
    let mut changed = Vec::new();
    for (path, file) in files.into_iter().step_by(400) {
        world.write(file, 0, b"other");
        changed.push(path);
    }
    let new = fs.map().create_snapshot(root.subvol, b"new", 0).unwrap();
    changed.sort();
    (world, old, new, changed)
}

/// How many blocks are read to do something with the filesystem of which nothing is cached.
fn reads<T>(world: &World, run: impl FnOnce(&LocalFs) -> T) -> (T, usize) {
    let disk = Arc::new(MemDisk::from_image(world.disk.image()));
    let disk = Arc::new(Counting { disk, read: AtomicUsize::new(0) });
    let clock = Arc::new(TestClock::default());
    let (limits, settings) = (Limits::within(32 << 20), Settings::default());
    let fs = LocalFs::open(disk.clone(), OpenMode::ReadOnly, limits, settings, clock).unwrap();
    let before = disk.read.load(Ordering::Relaxed);
    let done = run(&fs);
    (done, disk.read.load(Ordering::Relaxed) - before)
}

#[test]
fn changed_files_are_found_without_a_look_at_all_names() {
    let (world, old, new, changed) = changed_world();
    let (found, blocks) = reads(&world, |fs| differences(fs.map(), old, new).unwrap());
    let expected: Vec<_> = changed.iter().cloned().map(Change::Changed).collect();
    assert_eq!(found, expected);
    // Ten leaves of each tree with what is above them, and for each file that of its name; of the
    // two directories their inodes' and names'.
    let most = (2 * (10 + 3) + 10 + 4) * NODE;
    assert!(blocks <= most, "{blocks} blocks for ten changes, of {most} at most");
    let (found, blocks) = reads(&world, |fs| delta(fs.map(), old, new).unwrap());
    let paths: Vec<_> = found.touched.iter().map(|touched| touched.path.clone()).collect();
    assert_eq!(paths, changed);
    assert!(blocks <= most, "{blocks} blocks for ten changes, of {most} at most");
    let (_, all) = reads(&world, |fs| delta(fs.map(), new, world.root().subvol).unwrap());
    assert!(all < most, "nothing has changed since, and {all} blocks are read");
}

#[test]
fn a_difference_comes_in_parts_that_are_the_whole_together() {
    let (world, old, new, _) = changed_world();
    let whole = delta(world.fs.map(), old, new).unwrap();
    assert!(
        whole.touched.iter().all(|touched| {
            touched.stretches == [Stretch { from: 0, to: 4096, is_hole: false }]
        })
    );
    let (mut touched, mut from, mut parts) = (Vec::new(), Some(Default::default()), 0);
    while let Some(at) = from {
        let (part, next) = delta_from(world.fs.map(), old, new, at, 1).unwrap();
        assert!(next.is_none_or(|next| next > at));
        touched.extend(part.touched);
        (from, parts) = (next, parts + 1);
    }
    assert_eq!(parts, 10);
    touched.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(touched, whole.touched);
}

#[test]
fn what_was_only_copied_is_no_difference() {
    let world = World::new(64 * MIB);
    let World { fs, caller, .. } = &world;
    let bytes = vec![7; 100_000];
    let (source, target) = (world.file("source", &bytes), world.file("target", b""));
    let old = fs.map().create_snapshot(world.root().subvol, b"old", 0).unwrap();
    let (source_offset, target_offset, length) = (8192, 0, 40_960);
    let copy = CopyRequest { source, source_offset, target, target_offset, length };
    assert_eq!(fs.copy_range(caller, &copy, Privileges::Keep).unwrap(), length);
    let new = fs.map().create_snapshot(world.root().subvol, b"new", 0).unwrap();
    let changed = Change::Changed(b"target".to_vec());
    assert_eq!(differences(fs.map(), old, new).unwrap(), [changed]);
    // One block of what both have is written, and the times stay.
    world.write(source, 8192, b"y");
    let newest = fs.map().create_snapshot(world.root().subvol, b"newest", 0).unwrap();
    let changed = Change::Changed(b"source".to_vec());
    assert_eq!(differences(fs.map(), new, newest).unwrap(), [changed]);
}

#[test]
fn what_was_only_read_is_no_difference() {
    let world = World::new(64 * MIB);
    let World { fs, caller, .. } = &world;
    let (read, written) = (world.file("read", b"x"), world.file("written", b"x"));
    let dir = fs.mkdir(caller, world.root(), b"dir", 0o755).unwrap().file;
    let old = fs.map().create_snapshot(world.root().subvol, b"old", 0).unwrap();
    world.clock.advance(10);
    for file in [read, written, dir] {
        let before = fs.stat(file).unwrap();
        fs.record_reading(file);
        assert!(fs.stat(file).unwrap().atime > before.atime);
    }
    let new = fs.map().create_snapshot(world.root().subvol, b"new", 0).unwrap();
    assert_eq!(differences(fs.map(), old, new).unwrap(), []);
    assert_eq!(delta(fs.map(), old, new).unwrap(), Delta::default());
    // What was read and changed is there all the same, also if only its times were set.
    world.write(written, 0, b"y");
    let changes = Changes { atime: Some(SetTime::Now), ..Changes::default() };
    fs.setattr(caller, read, &changes).unwrap();
    let newest = fs.map().create_snapshot(world.root().subvol, b"newest", 0).unwrap();
    let touched = delta(fs.map(), old, newest).unwrap().touched;
    let paths: Vec<_> = touched.into_iter().map(|touched| touched.path).collect();
    assert_eq!(paths, [b"read".to_vec(), b"written".to_vec()]);
}
