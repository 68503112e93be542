//! Everything that can be done with a filesystem, done to one that may be damaged.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::rng::Rng;

use gabion_map::audit::audit;
use gabion_map::format::item::Access;
use gabion_map::format::subvolume::Most;
use gabion_map::open::superblocks;
use gabion_map::removal::Removing;
use gabion_map::scrub::scrub;
use gabion_map::tree::{Visit, Visitor};
use gabion_map::txn::{Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, Limits, LocalMap, MapError, OpenMode, Payload, Stop, Txn};

use super::sample::open;
use crate::image::{Image, ImageDisk};

const OBJECTS_MAX: usize = 40;

/// Runs a case for each seed; a panic names the seed. At least `least` percent of the images must
/// be good enough to be opened, else they test little. More cases by `GABION_CASES` times as many.
pub fn for_seeds(
    name: &str,
    count: u64,
    least: u64,
    case: impl Fn(&mut Rng) -> Result<(), MapError>,
) {
    let times = std::env::var("GABION_CASES").ok().and_then(|times| times.parse().ok());
    let only = std::env::var("GABION_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut lived = 0;
    let count = count * times.unwrap_or(1);
    for seed in 0..count {
        if only.is_some_and(|only: u64| only != seed) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| case(&mut Rng::new(seed)))) {
            Ok(outcome) => lived += u64::from(outcome.is_ok()),
            Err(cause) => {
                eprintln!("{name}: GABION_SEED={seed}");
                resume_unwind(cause);
            }
        }
    }
    assert!(only.is_some() || lived * 100 >= count * least, "{lived} of {count} were opened");
}

/// Uses the filesystem in every way. Whether it could be opened.
pub fn exercise(image: Image, rng: &mut Rng) -> Result<(), MapError> {
    let disk = ImageDisk::new(image);
    let _ = superblocks(&*disk);
    read_only(&disk);
    let map = open(&disk)?;
    let (subvols, objects) = survey(&map);
    for file in &objects {
        look_at(&map, *file);
    }
    check(&map);
    for _ in 0..12 {
        let file = objects.get(rng.below(1 + objects.len() as u64) as usize);
        let file = file.copied().unwrap_or(FileId::new(SubvolId(1), Ino(10 + rng.below(8))));
        let other = FileId::new(file.subvol, Ino(10 + rng.below(8)));
        let _ = change(&map, file, other, rng);
        if rng.chance(1, 6) {
            let _ = map.commit();
        }
    }
    for subvol in subvols {
        let _ = map.transact(|txn| txn.new_inode(subvol));
    }
    let _ = map.snapshot(SubvolId(1));
    limit(&map, rng);
    for (id, record) in map.subvolumes() {
        let _ = match record.access {
            Access::ReadOnly if rng.chance(1, 3) => {
                map.clone_snapshot(id, SubvolId(1), 0).map(drop)
            }
            _ if rng.chance(1, 3) => map.remove(&[id]),
            _ => Ok(()),
        };
    }
    for _ in 0..STEPS_MAX {
        if !matches!(map.remove_step(), Ok(Removing::Step)) {
            break;
        }
        check(&map);
    }
    if map.create_subvolume().is_ok() {
        let _ = map.commit();
    }
    for file in &objects {
        while let Ok(Removal::Partial) = map.transact(|txn| txn.remove_bytes(*file)) {}
    }
    let _ = map.sync();
    check(&map);
    let _ = (map.space(), map.activity(), map.stopped());
    let _ = (map.schedules(), map.room_everywhere(), map.space_of(SubvolId(1)));
    drop(map);
    // A second life, from whatever the first has left.
    let map = open(&disk)?;
    survey(&map);
    check(&map);
    Ok(())
}

/// Counts what has a quota, and what gets one now.
fn limit(map: &LocalMap, rng: &mut Rng) {
    let _ = map.count_usages();
    for of in map.writable_subvolumes() {
        let (blocks, objects) = (Some(rng.below(1 << 40)), rng.chance(1, 2).then_some(1 << 20));
        if rng.chance(1, 2) {
            let _ = map.set_quota(of, Most { blocks, objects });
        }
    }
}

/// Steps of removals at most: a forged one may have a deadlist of its own making.
const STEPS_MAX: usize = 20;

fn read_only(disk: &Arc<ImageDisk>) {
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    if let Ok(map) = LocalMap::open(disk, OpenMode::ReadOnly, Limits::within(4 << 20)) {
        look_at(&map, FileId::new(SubvolId(1), Ino(10)));
        assert!(map.commit().is_err() || map.activity().item_bytes == 0, "a read-only commit");
    }
}

fn check(map: &LocalMap) {
    let _ = scrub(map, &mut |_| ControlFlow::Continue(()));
    let _ = audit(map);
}

/// Collects objects; damaged nodes are left out.
#[derive(Default)]
struct Objects {
    found: Vec<(Ino, u64)>,
}

impl Visitor for Objects {
    fn node(&mut self, _: gabion_map::format::node::NodePtr, _: u8) -> Result<Visit, MapError> {
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, _: &[u8]) -> Result<(), MapError> {
        let with_bytes = u64::from(matches!(key.kind, Kind::FILE | Kind::DATA));
        match self.found.last_mut() {
            Some(last) if last.0 == key.ino => last.1 |= with_bytes,
            _ => self.found.push((key.ino, with_bytes)),
        }
        Ok(())
    }

    fn damage(
        &mut self,
        _: gabion_map::format::node::NodePtr,
        _: u8,
        _: MapError,
    ) -> Result<(), MapError> {
        Ok(())
    }
}

/// All subvolumes, and some objects of each: first those with bytes.
fn survey(map: &LocalMap) -> (Vec<SubvolId>, Vec<FileId>) {
    let pin = map.pin();
    let subvols: Vec<_> = map.subvolumes().into_iter().map(|(subvol, _)| subvol).collect();
    let mut objects = Vec::new();
    for subvol in subvols.iter().take(8) {
        let mut visitor = Objects::default();
        let _ = pin.tree(*subvol).walk(&mut visitor);
        let _ = pin.tree(*subvol).scan(Key::first(*subvol), Key::last(*subvol), 10_000);
        visitor.found.sort_by_key(|(_, with_bytes)| 1 - with_bytes);
        let found = visitor.found.iter().take(OBJECTS_MAX / 4);
        objects.extend(found.map(|(ino, _)| FileId::new(*subvol, *ino)));
    }
    objects.truncate(OBJECTS_MAX);
    (subvols, objects)
}

fn look_at(map: &LocalMap, file: FileId) {
    let _ =
        map.transact(|txn| txn.scan(file.key(Kind(0), 0), file.key(Kind(u8::MAX), u64::MAX), 1000));
    let Ok(extent) = map.transact(|txn| txn.file(file)) else { return };
    let mut into = vec![0; 70_000];
    let last = extent.size.saturating_sub(100);
    for offset in [0, 3000, 100_000, last, last & !0xffff, extent.size, u64::MAX - 5] {
        let _ = map.transact(|txn| txn.read(file, offset, &mut into));
    }
    for offset in [0, 50_000, last] {
        for target in [SeekTarget::Data, SeekTarget::Hole] {
            if offset < extent.size {
                let _ = map.transact(|txn| txn.seek(file, offset, target));
            }
        }
    }
}

/// One change, within what a caller may ask for.
fn change(map: &LocalMap, file: FileId, other: FileId, rng: &mut Rng) -> Result<(), Stop> {
    let size = map.transact(|txn| txn.file(file))?.size;
    let end = size.min(1 << 50);
    let offset = [rng.below(100_000), rng.below(end + 1), end, 4096 * rng.below(60)];
    let offset = offset[rng.below(4) as usize];
    let length = 1 + rng.below(40_000);
    match rng.below(12) {
        0..3 => {
            let bytes = vec![0xAB; length as usize];
            map.transact(|txn| txn.write(file, offset, Payload::Copied(&bytes)))
        }
        3 => map.transact(|txn| txn.set_size(file, offset)),
        4 => map.transact(|txn| txn.punch(file, offset, offset + length)),
        5 => map.transact(|txn| txn.allocate(file, offset, offset + length)),
        6 if file != other => {
            let (from, to) = (offset & !0xfff, rng.below(50) * 4096);
            let length = length.next_multiple_of(4096);
            map.transact(|txn| txn.share(file, from, other, to, length))
        }
        7 => {
            let (from, length) = (offset & !0xfff, length.next_multiple_of(4096));
            if from + length < size {
                map.transact(|txn| txn.collapse(file, from, length))?;
            }
            if from < size {
                map.transact(|txn| txn.insert(file, from, length))?;
            }
            Ok(())
        }
        8 => Ok(map.sync_file(file)?),
        9 => Ok(map.flush_file(file)?),
        10 => map.transact(|txn| txn.put(file.key(Kind::XATTR, offset), vec![1; 100])),
        _ => map.transact(|txn| txn.delete(file.key(Kind::INODE, 0))),
    }
}
