//! The local map on a disk in memory: random operations against plain byte vectors, with commits,
//! reopenings and the allocation audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::disk::{Disk, MemDisk};
use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::rng::Rng;

use gabion_map::audit::audit;
use gabion_map::open::{FormatOptions, format};
use gabion_map::scrub::scrub;
use gabion_map::txn::{Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, Limits, LocalMap, MapError, OpenMode, Payload, Stop, Txn};

const SUBVOL: SubvolId = SubvolId(1);

fn formatted(blocks: u64) -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(blocks));
    format_on(&disk);
    disk
}

pub fn format_on(disk: &Arc<dyn Disk>) {
    let options = FormatOptions {
        uuid: Uuid([7; 16]),
        label: "test".into(),
        name_seed: 5,
        created: 0,
        blocks: None,
    };
    format(disk, &options).expect("a large enough disk");
    let map = open(disk);
    assert_eq!(map.create_subvolume().expect("writable"), SUBVOL);
    map.sync().expect("a working disk");
}

pub fn open(disk: &Arc<dyn Disk>) -> LocalMap {
    LocalMap::open(Arc::clone(disk), OpenMode::ReadWrite, Limits::within(4 << 20))
        .expect("a whole filesystem")
}

pub fn file(ino: u64) -> FileId {
    FileId::new(SUBVOL, Ino(ino))
}

pub fn write(map: &LocalMap, id: FileId, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
    map.transact(|txn| txn.write(id, offset, Payload::Copied(bytes)))
}

pub fn read(map: &LocalMap, id: FileId, offset: u64, length: usize) -> Vec<u8> {
    let mut into = vec![0xEE; length];
    let read = map.transact(|txn| txn.read(id, offset, &mut into)).expect("readable");
    into.truncate(read);
    into
}

pub fn size(map: &LocalMap, id: FileId) -> u64 {
    map.transact(|txn| txn.file(id)).expect("readable").size
}

pub fn assert_exact(map: &LocalMap) {
    map.sync().expect("a working disk");
    let audit = audit(map).expect("readable");
    assert!(audit.is_exact(), "{audit:?}");
    let report = scrub(map, &mut |_| std::ops::ControlFlow::Continue(())).expect("readable");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Plain files.
#[derive(Clone)]
pub struct Model {
    pub subvol: SubvolId,
    pub files: BTreeMap<u64, Vec<u8>>,
}

impl Default for Model {
    fn default() -> Self {
        Self { subvol: SUBVOL, files: BTreeMap::new() }
    }
}

impl Model {
    fn file(&self, ino: u64) -> FileId {
        FileId::new(self.subvol, Ino(ino))
    }

    fn write(&mut self, ino: u64, offset: usize, bytes: &[u8]) {
        let file = self.files.entry(ino).or_default();
        if file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn check(&self, map: &LocalMap) {
        for (ino, bytes) in &self.files {
            assert_eq!(size(map, self.file(*ino)), bytes.len() as u64, "size of {ino}");
            let found = read(map, self.file(*ino), 0, bytes.len() + 10);
            if let Some(at) = (0..bytes.len()).find(|at| found[*at] != bytes[*at]) {
                panic!("file {ino} differs at {at}: {} not {}", found[at], bytes[at]);
            }
        }
    }
}

pub fn random_step(rng: &mut Rng, map: &LocalMap, model: &mut Model) {
    let ino = 10 + rng.below(6);
    let id = model.file(ino);
    let offset = match rng.below(3) {
        0 => rng.below(20_000),
        1 => rng.below(100) * 4096,
        _ => model.files.get(&ino).map_or(0, |bytes| bytes.len() as u64),
    };
    let length = [1, 100, 4096, 8192, 70_000, 300_000][rng.below(6) as usize];
    let length = 1 + rng.below(length);
    match rng.below(20) {
        0..8 => {
            let mut bytes = vec![0; length as usize];
            rng.fill(&mut bytes);
            write(map, id, offset, &bytes).expect("space");
            model.write(ino, offset as usize, &bytes);
        }
        8 | 9 => {
            map.transact(|txn| txn.set_size(id, offset)).expect("space");
            model.files.entry(ino).or_default().resize(offset as usize, 0);
        }
        10 => {
            map.transact(|txn| txn.punch(id, offset, offset + length)).expect("space");
            let bytes = model.files.entry(ino).or_default();
            let end = bytes.len().min((offset + length) as usize);
            if (offset as usize) < end {
                bytes[offset as usize..end].fill(0);
            }
        }
        11 => {
            map.transact(|txn| txn.allocate(id, offset, offset + length)).expect("space");
            model.files.entry(ino).or_default();
        }
        12 => share(rng, map, model, ino),
        13 => shift(rng, map, model, ino),
        14 => {
            while map.transact(|txn| txn.remove_bytes(id)).expect("readable") == Removal::Partial {}
            model.files.remove(&ino);
        }
        15 => map.sync_file(id).expect("a working disk"),
        16 => map.flush_file(id).expect("a working disk"),
        17 => {
            map.commit().expect("a working disk");
        }
        _ => {
            let bytes = model.files.get(&ino).cloned().unwrap_or_default();
            let from = (offset as usize).min(bytes.len());
            let to = (from + length as usize).min(bytes.len());
            assert_eq!(read(map, id, offset, length as usize), &bytes[from..to]);
        }
    }
}

fn share(rng: &mut Rng, map: &LocalMap, model: &mut Model, source: u64) {
    let bytes = model.files.get(&source).cloned().unwrap_or_default();
    let blocks = bytes.len() as u64 / 4096;
    let target = 10 + rng.below(6);
    if blocks == 0 || target == source {
        return;
    }
    let from = rng.below(blocks);
    let count = 1 + rng.below(blocks - from);
    let to = rng.below(40);
    let (from, length, to) = (from * 4096, count * 4096, to * 4096);
    let (shared, copy) = (model.file(source), model.file(target));
    map.transact(|txn| txn.share(shared, from, copy, to, length)).expect("space");
    model.write(target, to as usize, &bytes[from as usize..(from + length) as usize]);
}

fn shift(rng: &mut Rng, map: &LocalMap, model: &mut Model, ino: u64) {
    let id = model.file(ino);
    let bytes = model.files.entry(ino).or_default();
    let blocks = bytes.len() as u64 / 4096;
    if blocks < 2 {
        return;
    }
    let from = rng.below(blocks - 1);
    let count = 1 + rng.below(blocks - from - 1);
    let (from, length) = (from * 4096, count * 4096);
    if rng.chance(1, 2) {
        map.transact(|txn| txn.collapse(id, from, length)).expect("readable");
        bytes.drain(from as usize..(from + length) as usize);
    } else {
        map.transact(|txn| txn.insert(id, from, length)).expect("space");
        let tail = bytes.split_off(from as usize);
        bytes.resize((from + length) as usize, 0);
        bytes.extend(tail);
    }
}

#[test]
fn files_agree_with_plain_vectors_through_commits_and_reopenings() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let disk = formatted(16_384);
        let mut model = Model::default();
        for _ in 0..3 {
            let map = open(&disk);
            for _ in 0..150 {
                random_step(&mut rng, &map, &mut model);
            }
            model.check(&map);
            assert_exact(&map);
            model.check(&map);
        }
        model.check(&open(&disk));
    }
}

#[test]
fn what_was_synced_is_there_after_the_process_died() {
    for seed in 100..130 {
        let mut rng = Rng::new(seed);
        let disk = formatted(16_384);
        let mut model = Model::default();
        for _ in 0..4 {
            let map = open(&disk);
            for _ in 0..60 {
                random_step(&mut rng, &map, &mut model);
            }
            for ino in 10..16 {
                map.sync_file(file(ino)).expect("a working disk");
            }
            // Without a last commit: what is there comes from the journal.
            drop(map);
            let map = open(&disk);
            model.check(&map);
            assert_exact(&map);
        }
    }
}

#[test]
fn a_size_over_journaled_bytes_is_durable_with_the_names() {
    let disk = formatted(16_384);
    let map = open(&disk);
    write(&map, file(10), 0, &[1; 5000]).expect("space");
    map.flush_file(file(10)).expect("a working disk");
    // The rest of the last block rides in the journal with the cut itself.
    map.transact(|txn| txn.set_size(file(10), 758)).expect("space");
    map.transact(|txn| txn.set_size(file(10), 16_434)).expect("space");
    map.sync_file(file(11)).expect("a working disk");
    drop(map);
    let map = open(&disk);
    assert_eq!(size(&map, file(10)), 16_434);
    assert_eq!(read(&map, file(10), 0, 1000), [vec![1; 758], vec![0; 242]].concat());
    assert_exact(&map);
}

#[test]
fn items_are_atomic_and_scans_see_them_in_order() {
    let disk = formatted(8192);
    let map = open(&disk);
    let key = |at| file(5).key(Kind::XATTR, at);
    for round in 0..5_u64 {
        map.transact(|txn| -> Result<(), Stop> {
            for at in 0..200 {
                txn.put(key(at * 7 % 1000), vec![round as u8; 50])?;
                if at % 3 == round % 3 {
                    txn.delete(key(at))?;
                }
            }
            Ok(())
        })
        .expect("space");
        map.commit().expect("a working disk");
    }
    let failed: Result<(), Stop> = map.transact(|txn| {
        txn.put(key(1), vec![99; 10])?;
        Err(Stop::Map(MapError::NoSpace))
    });
    assert!(failed.is_err());
    let scanned: Vec<(Key, _)> =
        map.transact(|txn| txn.scan(key(0), key(u64::MAX), 10_000)).expect("readable");
    assert!(scanned.is_sorted_by_key(|(key, _)| *key));
    assert!(scanned.iter().all(|(_, value)| value[0] != 99));
    let again = open(&disk);
    let read = again.transact(|txn| txn.scan(key(0), key(u64::MAX), 10_000));
    assert_eq!(read.expect("readable").len(), scanned.len());
}

#[test]
fn a_snapshot_keeps_reading_as_it_was() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let mut rng = Rng::new(3);
    let mut model = Model::default();
    for _ in 0..100 {
        random_step(&mut rng, &map, &mut model);
    }
    let snapshot = map.snapshot(SUBVOL).expect("a working disk");
    let frozen: BTreeMap<u64, Vec<u8>> = model.files.clone();
    for _ in 0..200 {
        random_step(&mut rng, &map, &mut model);
    }
    model.check(&map);
    assert_exact(&map);
    drop(map);
    let map = open(&disk);
    for (ino, bytes) in &frozen {
        let id = FileId::new(snapshot, Ino(*ino));
        assert_eq!(&read(&map, id, 0, bytes.len() + 1), bytes, "file {ino} of the snapshot");
    }
    model.check(&map);
    let refused = map.transact(|txn| txn.new_inode(snapshot));
    assert!(matches!(refused, Err(Stop::Map(MapError::ReadOnly))));
}

#[test]
fn holes_and_data_are_found() {
    let disk = formatted(8192);
    let map = open(&disk);
    write(&map, file(3), 100 * 4096, &[1; 8192]).expect("space");
    map.transact(|txn| txn.set_size(file(3), 200 * 4096)).expect("space");
    let seek =
        |offset, target| map.transact(|txn| txn.seek(file(3), offset, target)).expect("readable");
    for _ in 0..2 {
        assert_eq!(seek(5, SeekTarget::Data), Some(100 * 4096));
        assert_eq!(seek(5, SeekTarget::Hole), Some(5));
        assert_eq!(seek(100 * 4096 + 1, SeekTarget::Hole), Some(102 * 4096));
        assert_eq!(seek(103 * 4096, SeekTarget::Data), None);
        map.sync().expect("a working disk");
    }
}

/// Cutting used to put the zeros behind inline bytes into the item, past what it may hold.
#[test]
fn a_short_file_that_was_extended_can_be_cut_past_its_inline_bytes() {
    let disk = formatted(8192);
    let map = open(&disk);
    write(&map, file(3), 0, &[1; 100]).expect("space");
    map.sync().expect("a working disk");
    for size in [8000, 3000] {
        map.transact(|txn| txn.set_size(file(3), size)).expect("space");
    }
    let bytes = read(&map, file(3), 0, 5000);
    assert_eq!((bytes.len(), bytes[99], bytes[100]), (3000, 1, 0));
}

#[test]
fn a_file_shares_blocks_with_itself_within_one_extent() {
    let map = open(&formatted(16_384));
    let bytes: Vec<u8> = (1..=8).flat_map(|byte| [byte; 4096]).collect();
    write(&map, file(10), 0, &bytes).expect("space");
    map.flush_file(file(10)).expect("a working disk");
    map.transact(|txn| txn.share(file(10), 5 * 4096, file(10), 4096, 2 * 4096)).expect("space");
    let expected = [&bytes[..4096], &bytes[5 * 4096..7 * 4096], &bytes[3 * 4096..]].concat();
    assert!(read(&map, file(10), 0, bytes.len()) == expected);
    assert_exact(&map);
}

#[test]
fn a_full_filesystem_can_be_emptied_and_filled_again() {
    let disk = formatted(4096);
    let map = open(&disk);
    let empty = map.space().available;
    let chunk = vec![7; 64 * 1024];
    for round in 0..30 {
        let mut written = 0;
        loop {
            match write(&map, file(20 + written % 7), written / 7 * 65_536, &chunk) {
                Ok(()) => written += 1,
                Err(Stop::Map(MapError::NoSpace)) => break,
                Err(other) => panic!("round {round}: {other:?}"),
            }
        }
        assert!(written > 100, "round {round}: only {written} chunks fit");
        if round % 3 == 0 {
            for ino in 20..27 {
                map.sync_file(file(ino)).expect("promised space");
            }
        }
        for ino in 20..27 {
            while map.transact(|txn| txn.remove_bytes(file(ino))).expect("removal works")
                == Removal::Partial
            {}
        }
    }
    assert_exact(&map);
    map.sync().expect("a working disk");
    assert!(map.space().available + 64 >= empty, "{} of {empty}", map.space().available);
}

#[test]
fn threads_write_disjoint_ranges_of_one_file() {
    let disk = formatted(65_536);
    let map = open(&disk);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let map = &map;
            scope.spawn(move || {
                for step in 0..300_u64 {
                    let offset = (step * 4 + thread) * 5000;
                    let bytes = vec![thread as u8 + 1; 5000];
                    write(map, file(9), offset, &bytes).expect("space");
                    if step % 50 == thread {
                        map.sync_file(file(9)).expect("a working disk");
                    }
                }
            });
        }
    });
    let all = read(&map, file(9), 0, 1200 * 5000);
    for (index, part) in all.chunks(5000).enumerate() {
        assert!(part.iter().all(|byte| *byte == index as u8 % 4 + 1), "part {index}");
    }
    assert_exact(&map);
}

/// A writer that begins behind the end must not take another's bytes for what a crash has left.
#[test]
fn writers_that_extend_a_file_beside_each_other_keep_all_bytes() {
    let disk = formatted(16_384);
    let map = open(&disk);
    for round in 0..200 {
        let id = file(100 + round);
        write(&map, id, 0, &[1; 100]).expect("space");
        map.sync().expect("a working disk");
        std::thread::scope(|scope| {
            for part in 0..4_u64 {
                let map = &map;
                scope.spawn(move || {
                    write(map, id, part * 4096, &[7; 4096]).expect("space");
                });
            }
        });
        assert!(read(&map, id, 0, 16_384) == [7; 16_384], "round {round}");
    }
}

#[test]
fn what_is_said_to_be_available_can_be_set_aside_at_once() {
    const LEFT: u64 = 16;
    let disk = formatted(16_384);
    let map = open(&disk);
    let all = map.space().available - LEFT;
    map.transact(|txn| txn.allocate(file(10), 0, all * 4096)).expect("space");
    assert!(map.space().available <= LEFT);
    assert_exact(&map);
}

/// Together they want more than is free before the next commit, and less than after it.
#[test]
fn threads_that_fill_a_disk_together_are_promised_no_block_twice() {
    const LENGTH: usize = 4 << 20;
    let bytes = vec![7; LENGTH];
    for round in 0..8 {
        let disk = formatted(16_384);
        let map = open(&disk);
        let together = std::sync::Barrier::new(16);
        let fill = |id| {
            together.wait();
            let mut end = 0;
            let payload = || Payload::Copied(&bytes);
            while map.transact(|txn| txn.write(file(id), end, payload())).is_ok() {
                end += LENGTH as u64;
            }
            end
        };
        let fill = &fill;
        let ends: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (10..26).map(|id| scope.spawn(move || fill(id))).collect();
            threads.into_iter().map(|it| it.join().expect("no panic")).collect()
        });
        let synced = map.sync();
        assert!(synced.is_ok(), "round {round}: {synced:?}, {ends:?}");
        assert_exact(&map);
    }
}

#[test]
fn who_sets_space_aside_beside_another_one_gets_it_as_long_as_there_is_room_for_both() {
    const BLOCK: u64 = 4096;
    const LEFT: u64 = 3000;
    const PART: u64 = 2000;
    let disk = formatted(16_384);
    let map = open(&disk);
    let allocate =
        |id, blocks: u64| map.transact(|txn| txn.allocate(id, 0, blocks * BLOCK)).map(drop);
    for round in 0..100 {
        let all = map.space().available - LEFT;
        allocate(file(10), all).expect("space");
        map.sync().expect("a working disk");
        map.transact(|txn| txn.punch(file(10), 0, all * BLOCK))
            .expect("a full disk can be emptied");
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for id in [file(11), file(12)] {
                let (allocate, together) = (&allocate, &together);
                scope.spawn(move || {
                    together.wait();
                    let outcome = allocate(id, PART);
                    assert!(outcome.is_ok(), "round {round}: {outcome:?}");
                });
            }
        });
        for id in [file(11), file(12)] {
            map.transact(|txn| txn.punch(id, 0, PART * BLOCK)).expect("it was there");
        }
        map.sync().expect("a working disk");
    }
    assert_exact(&map);
}
