//! Quotas on a disk in memory: limits hold to the block whatever is done beside each other, and the
//! counts are those of the trees, also after crashes.

use std::sync::Arc;

use gabion_base::disk::{Disk, MemDisk};
use gabion_base::ids::SubvolId;
use gabion_base::rng::Rng;

use gabion_map::format::item::decode_file;
use gabion_map::format::subvolume::{Count, Most};
use gabion_map::txn::Removal;
use gabion_map::{FileId, Kind, LocalMap, MapError, Payload, Stop, Txn};

use super::local::{assert_exact, file, format_on, open, read, write};

const SUBVOL: SubvolId = SubvolId(1);
const BLOCK: usize = 4096;

fn formatted() -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(32_768));
    format_on(&disk);
    disk
}

fn limit(map: &LocalMap, blocks: u64) {
    let most = Most { blocks: Some(blocks), objects: None };
    map.set_quota(SUBVOL, most).expect("a working disk");
}

fn count(map: &LocalMap) -> Count {
    map.quota(SUBVOL).and_then(|quota| quota.count).expect("it is counted")
}

fn is_refused<T: std::fmt::Debug>(outcome: Result<T, Stop>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Stop::Map(MapError::OverQuota)) => true,
        Err(other) => panic!("it failed otherwise: {other:?}"),
    }
}

/// The count by the items of the files that there are.
fn counted_by_hand(map: &LocalMap, inos: &[u64]) -> Count {
    let mut count = Count::default();
    for ino in inos {
        let items = [Kind::INODE, Kind::FILE].map(|kind| {
            let key = file(*ino).key(kind, 0);
            map.transact(|txn| txn.get(key)).expect("readable")
        });
        count.objects += u64::from(items[0].is_some());
        let file = items[1].as_ref().map(|value| decode_file(value).expect("whole"));
        count.blocks += file.map_or(0, |file| file.blocks);
    }
    count
}

fn remove(map: &LocalMap, id: FileId) {
    let step = || -> Result<Removal, Stop> {
        map.transact(|txn| {
            txn.delete(id.key(Kind::INODE, 0))?;
            txn.remove_bytes(id)
        })
    };
    while step().expect("removing is never refused") == Removal::Partial {}
}

/// The number of blocks that a file has, by what a reader is told.
fn blocks(map: &LocalMap, id: FileId) -> u64 {
    map.transact(|txn| txn.file(id)).expect("readable").blocks
}

#[test]
fn bytes_are_refused_when_they_are_accepted_and_never_later() {
    let map = open(&formatted());
    limit(&map, 100);
    write(&map, file(10), 0, &[1; 60 * BLOCK]).expect("room");
    assert!(is_refused(write(&map, file(11), 0, &[2; 41 * BLOCK])));
    write(&map, file(11), 0, &[2; 40 * BLOCK]).expect("all that is left");
    assert!(is_refused(write(&map, file(12), 0, b"one more")));
    assert!(is_refused(write(&map, file(10), 60 * BLOCK as u64, b"one more")));
    map.sync().expect("what was accepted is written");
    assert_eq!(count(&map), Count { blocks: 100, objects: 0 });
    // What is there can be overwritten, as often as one likes.
    for fill in 3..6 {
        write(&map, file(10), 0, &[fill; 60 * BLOCK]).expect("nothing new");
        write(&map, file(10), 100, &[fill; 10]).expect("nothing new");
    }
    assert!(is_refused(write(&map, file(10), 60 * BLOCK as u64, b"one more")));
    assert_exact(&map);
    assert_eq!(read(&map, file(10), 0, 2), [5, 5]);
}

#[test]
fn what_is_removed_gives_room_at_once() {
    let map = open(&formatted());
    limit(&map, 50);
    for round in 0..3 {
        write(&map, file(10), 0, &[1; 50 * BLOCK]).expect("room");
        if round == 1 {
            map.sync().expect("a working disk");
        }
        assert!(is_refused(write(&map, file(11), 0, &[1; 10 * BLOCK])));
        map.transact(|txn| txn.set_size(file(10), 40 * BLOCK as u64)).expect("cut");
        write(&map, file(11), 0, &[1; 10 * BLOCK]).expect("what was cut off");
        map.transact(|txn| txn.punch(file(10), 0, 20 * BLOCK as u64)).expect("punched");
        write(&map, file(12), 0, &[1; 20 * BLOCK]).expect("what was punched");
        (10..13).for_each(|ino| remove(&map, file(ino)));
    }
    assert_exact(&map);
    assert_eq!(count(&map), Count::default());
}

#[test]
fn everything_that_adds_is_charged() {
    let map = open(&formatted());
    write(&map, file(10), 0, &[1; 30 * BLOCK]).expect("room");
    // What is there already counts.
    limit(&map, 50);
    assert_eq!(count(&map).blocks, 30);
    let set_aside =
        |blocks: usize| map.transact(|txn| txn.allocate(file(11), 0, (blocks * BLOCK) as u64));
    assert!(is_refused(set_aside(21)));
    set_aside(10).expect("room");
    let share = |blocks: usize| {
        let length = (blocks * BLOCK) as u64;
        map.transact(|txn| txn.share(file(10), 0, file(12), 0, length))
    };
    assert!(is_refused(share(11)));
    share(10).expect("room");
    // What was set aside is paid for.
    write(&map, file(11), 0, &[2; 10 * BLOCK]).expect("set aside");
    share(10).expect("the same once more");
    let put = |ino: u64| map.transact(|txn| txn.put(file(ino).key(Kind::INODE, 0), vec![1]));
    assert!(is_refused(put(20)));
    remove(&map, file(12));
    put(20).expect("room for an object");
    put(20).expect("it is there already");
    assert_eq!(count(&map).objects, 1);
    let most = Most { blocks: None, objects: Some(2) };
    map.set_quota(SUBVOL, most).expect("a working disk");
    put(21).expect("the second");
    assert!(is_refused(put(22)));
    write(&map, file(20), 0, &[3; 200 * BLOCK]).expect("bytes are not limited any more");
    assert_exact(&map);
}

#[test]
fn small_files_take_no_block_once_they_are_written() {
    let map = open(&formatted());
    limit(&map, 10);
    // Each takes a block until its bytes are in its item; nobody is refused for that.
    for ino in 10..60 {
        write(&map, file(ino), 0, &[7; 100]).expect("they fit into items");
    }
    assert_exact(&map);
    assert_eq!(count(&map).blocks, 0);
}

#[test]
fn a_snapshot_is_not_charged_and_a_clone_has_no_quota() {
    let map = open(&formatted());
    limit(&map, 20);
    write(&map, file(10), 0, &[1; 20 * BLOCK]).expect("room");
    let snapshot = map.create_snapshot(SUBVOL, b"full", 7).expect("a snapshot");
    write(&map, file(10), 0, &[2; 20 * BLOCK]).expect("nothing new");
    remove(&map, file(10));
    write(&map, file(11), 0, &[3; 19 * BLOCK]).expect("the snapshot's blocks do not count");
    let clone = map.clone_snapshot(snapshot, SUBVOL, 7).expect("a clone");
    assert_eq!(map.quota(clone), None);
    let id = FileId::new(clone, file(12).ino);
    write(&map, id, 0, &[4; 50 * BLOCK]).expect("no limit");
    assert_exact(&map);
    let kept = map.rollback(SUBVOL, snapshot, b"before", 7).expect("rolled back");
    assert_eq!(count(&map).blocks, 20);
    assert!(is_refused(write(&map, file(12), 0, &[5; BLOCK])));
    assert_exact(&map);
    // What it was before is another chain's now, and was counted, too.
    map.rollback(SUBVOL, kept, b"again", 7).expect("rolled back");
    assert_eq!(count(&map).blocks, 19);
    assert_exact(&map);
}

#[test]
fn a_rollback_to_before_the_quota_is_counted_again() {
    let disk = formatted();
    let map = open(&disk);
    write(&map, file(10), 0, &[1; 20 * BLOCK]).expect("room");
    let early = map.create_snapshot(SUBVOL, b"early", 7).expect("a snapshot");
    remove(&map, file(10));
    limit(&map, 10);
    map.rollback(SUBVOL, early, b"before", 7).expect("rolled back");
    assert_eq!(map.quota(SUBVOL).map(|quota| quota.count), Some(None));
    drop(map);
    let map = open(&disk);
    map.count_usages().expect("a working disk");
    assert_eq!(count(&map).blocks, 20);
    // More than there may be: nothing can be added, and all can be removed.
    assert!(is_refused(write(&map, file(11), 0, &[1; BLOCK])));
    map.transact(|txn| txn.set_size(file(10), 9 * BLOCK as u64)).expect("cut");
    write(&map, file(11), 0, &[1; BLOCK]).expect("room again");
    assert_exact(&map);
}

#[test]
fn what_is_told_of_space_is_what_the_quota_leaves() {
    let map = open(&formatted());
    let all = map.space();
    assert_eq!(map.space_of(SUBVOL), all);
    map.set_quota(SUBVOL, Most { blocks: Some(1000), objects: Some(9) }).expect("a working disk");
    write(&map, file(10), 0, &[1; 300 * BLOCK]).expect("room");
    let space = map.space_of(SUBVOL);
    assert_eq!((space.total, space.available, space.used), (1000, 700, 300));
    assert_eq!((space.objects, space.objects_left), (Some(9), Some(9)));
    limit(&map, 1 << 40);
    let space = map.space_of(SUBVOL);
    assert_eq!((space.total, space.available), (all.total, map.space().available));
    map.set_quota(SUBVOL, Most::default()).expect("a working disk");
    assert_eq!(map.quota(SUBVOL), None);
    assert_eq!(map.space_of(SUBVOL), map.space());
}

/// One random operation; whether it was refused.
fn step(rng: &mut Rng, map: &LocalMap, ino: u64) -> bool {
    let id = file(ino);
    let other = file(10 + rng.below(6));
    let at = rng.below(40) * BLOCK as u64;
    let length = (1 + rng.below(12)) * BLOCK as u64;
    is_refused(match rng.below(9) {
        0 => map.transact(|txn| txn.set_size(id, at + rng.below(4096))),
        1 => map.transact(|txn| txn.punch(id, at + 5, at + length)),
        2 => map.transact(|txn| txn.allocate(id, at, at + length)),
        3 if other != id => map.transact(|txn| txn.share(other, at, id, at, length)),
        4 => map.transact(|txn| {
            txn.delete(id.key(Kind::INODE, 0))?;
            txn.remove_bytes(id).map(drop)
        }),
        5 => map.transact(|txn| txn.put(id.key(Kind::INODE, 0), vec![1])),
        6 => {
            map.flush_file(id).expect("a working disk");
            Ok(())
        }
        _ => {
            let bytes = vec![rng.below(256) as u8; length as usize - rng.below(4096) as usize];
            map.transact(|txn| txn.write(id, at + rng.below(4096), Payload::Copied(&bytes)))
        }
    })
}

#[test]
fn limits_hold_at_every_step_and_counts_survive_crashes() {
    const MOST: u64 = 60;
    let inos: Vec<u64> = (10..16).collect();
    for seed in 0..8 {
        let mut rng = Rng::new(seed);
        let disk = formatted();
        let mut map = open(&disk);
        limit(&map, MOST);
        let mut refused = 0;
        for round in 0..600 {
            let ino = 10 + rng.below(6);
            refused += u32::from(step(&mut rng, &map, ino));
            let now = count(&map);
            assert_eq!(now, counted_by_hand(&map, &inos), "seed {seed}, round {round}");
            let space = map.space_of(SUBVOL);
            assert!(space.used <= MOST, "seed {seed}, round {round}: {space:?}");
            // Waiting bytes count, so what readers see is charged.
            let seen: u64 = inos.iter().map(|ino| blocks(&map, file(*ino))).sum();
            assert!(now.blocks <= seen, "seed {seed}, round {round}");
            match rng.below(80) {
                0 => drop(map.commit().expect("a working disk")),
                1 => assert_exact(&map),
                2 => {
                    map.sync_file(file(ino)).expect("a working disk");
                    // Whatever was not durable is lost, as in a crash.
                    drop(map);
                    map = open(&disk);
                    assert_exact(&map);
                }
                _ => {}
            }
        }
        assert!(refused > 20, "seed {seed}: the limit was hardly met");
        inos.iter().for_each(|ino| remove(&map, file(*ino)));
        assert_exact(&map);
        assert_eq!(map.space_of(SUBVOL).used, 0, "seed {seed}");
    }
}

#[test]
fn limits_hold_and_counts_agree_beside_each_other() {
    const MOST: u64 = 200;
    let map = open(&formatted());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let map = &map;
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                for _ in 0..800 {
                    let ino = 10 + rng.below(6);
                    step(&mut rng, map, ino);
                }
            });
        }
        // It is counted while it is changed.
        for _ in 0..20 {
            map.set_quota(SUBVOL, Most::default()).expect("a working disk");
            let most = Most { blocks: Some(1 << 40), objects: None };
            map.set_quota(SUBVOL, most).expect("a working disk");
            map.commit().expect("a working disk");
        }
        limit(&map, MOST);
    });
    assert_exact(&map);
    let inos: Vec<u64> = (10..16).collect();
    assert_eq!(count(&map), counted_by_hand(&map, &inos));
}

#[test]
fn threads_fill_a_quota_to_the_block_and_not_further() {
    const MOST: u64 = 500;
    let map = open(&formatted());
    limit(&map, MOST);
    let accepted: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                let map = &map;
                scope.spawn(move || {
                    let id = file(10 + thread);
                    let bytes = vec![1; BLOCK];
                    let at = |block: u64| block * BLOCK as u64;
                    (0..MOST).filter(|n| !is_refused(write(map, id, at(*n), &bytes))).count() as u64
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });
    assert_eq!(accepted.iter().sum::<u64>(), MOST, "{accepted:?}");
    map.sync().expect("what was accepted is written");
    assert_eq!(count(&map).blocks, MOST);
    assert_exact(&map);
}
