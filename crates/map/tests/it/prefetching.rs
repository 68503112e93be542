//! Items that are read from the disk before they are asked for, all at once.

use std::sync::Arc;

use gabion_base::disk::{Disk, DiskError, DiskRequest, MemDisk, Ticket};
use gabion_base::ids::{BlockAddr, SubvolId};
use gabion_base::sync::Mutex;
use gabion_map::tree::Diff;
use gabion_map::{Key, Kind, Limits, LocalMap, OpenMode, Txn, Value};

use crate::local::{file, format_on, open};

const BLOCKS: u64 = 16 << 10;
const SUBVOL: SubvolId = SubvolId(1);

/// A disk that notes how it is read.
struct Watched {
    disk: MemDisk,
    reads: Arc<Mutex<Reads>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    /// Those that somebody has waited for one by one.
    single: usize,
    in_flight: usize,
    most_in_flight: usize,
}

impl Disk for Watched {
    fn name(&self) -> Arc<str> {
        "watched".into()
    }

    fn blocks(&self) -> u64 {
        BLOCKS
    }

    fn read(&self, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        self.reads.lock().single += 1;
        self.disk.read(addr, into)
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if !matches!(request, DiskRequest::Read { .. }) {
            return self.disk.submit(request);
        }
        let mut reads = self.reads.lock();
        reads.in_flight += 1;
        reads.most_in_flight = reads.most_in_flight.max(reads.in_flight);
        let outcome = self.disk.submit(request).wait();
        let reads = Arc::clone(&self.reads);
        Ticket::deferred(move || {
            reads.lock().in_flight -= 1;
            outcome
        })
    }
}

fn item(number: u64) -> (Key, Vec<u8>) {
    (file(number).key(Kind::INODE, 0), number.to_le_bytes().repeat(100))
}

fn get(map: &LocalMap, key: Key) -> Option<Value> {
    map.transact(|txn| txn.get(key)).expect("a working disk")
}

/// A filesystem of which nothing is in memory, with items in many nodes.
fn cold() -> (LocalMap, Arc<Mutex<Reads>>) {
    let watched = Watched { disk: MemDisk::new(BLOCKS), reads: Arc::default() };
    let reads = Arc::clone(&watched.reads);
    let disk: Arc<dyn Disk> = Arc::new(watched);
    format_on(&disk);
    let map = open(&disk);
    for number in 1000..2000 {
        let (key, value) = item(number);
        map.transact(|txn| txn.put(key, value.clone())).expect("there is room");
    }
    map.sync().expect("a working disk");
    drop(map);
    let map = open(&disk);
    *reads.lock() = Reads::default();
    (map, reads)
}

#[test]
fn what_is_going_to_be_asked_for_is_read_at_once() {
    let (map, reads) = cold();
    // Some that are far from each other, in any order, and one that is not there.
    let numbers = [1900, 1000, 1300, 1600, 5, 1950, 1450];
    let keys = numbers.map(|number| item(number).0);
    map.transact(|txn| txn.prefetch(&keys)).expect("a working disk");
    let fetched = *reads.lock();
    assert!(fetched.most_in_flight >= 5, "{fetched:?}");
    for number in numbers {
        let (key, value) = item(number);
        let expected = (number >= 1000).then(|| Value::from(value));
        assert_eq!(get(&map, key), expected);
    }
    assert_eq!(reads.lock().single, fetched.single, "all of it is in memory");
}

#[test]
fn what_was_changed_after_it_was_fetched_is_as_it_was_changed() {
    let (map, _) = cold();
    let keys = [item(1100).0, item(1700).0];
    map.transact(|txn| txn.prefetch(&keys)).expect("a working disk");
    map.transact(|txn| txn.put(keys[0], b"new".to_vec())).expect("there is room");
    map.sync().expect("a working disk");
    map.transact(|txn| txn.prefetch(&keys)).expect("a working disk");
    assert_eq!(get(&map, keys[0]).as_deref(), Some(&b"new"[..]));
    assert_eq!(get(&map, keys[1]).as_deref(), Some(&item(1700).1[..]));
}

#[test]
fn what_a_difference_is_going_to_read_is_read_at_once() {
    let watched = Watched { disk: MemDisk::new(BLOCKS), reads: Arc::default() };
    let reads = Arc::clone(&watched.reads);
    let disk: Arc<dyn Disk> = Arc::new(watched);
    format_on(&disk);
    let put = |map: &LocalMap, numbers: &mut dyn Iterator<Item = u64>, times: usize| {
        for number in numbers {
            let value = number.to_le_bytes().repeat(times);
            map.transact(|txn| txn.put(item(number).0, value.clone())).expect("there is room");
        }
    };
    let map = open(&disk);
    put(&map, &mut (1000..3000), 100);
    let old = map.create_snapshot(SUBVOL, b"old", 0).expect("room");
    put(&map, &mut (1000..3000).step_by(100), 99);
    let new = map.create_snapshot(SUBVOL, b"new", 0).expect("room");
    drop(map);
    // So many at once have room.
    let map = LocalMap::open(disk, OpenMode::ReadOnly, Limits::within(16 << 20));
    let map = map.expect("a whole filesystem");
    *reads.lock() = Reads::default();
    let pin = map.pin();
    let mut diff = Diff::new(pin.tree(old), pin.tree(new), Key::first(new)).expect("readable");
    let mut found = 0;
    while diff.next().expect("readable").is_some() {
        found += 1;
    }
    assert_eq!(found, 20);
    let reads = *reads.lock();
    assert!(reads.most_in_flight >= 20, "{reads:?}");
    assert!(reads.single <= 12, "the roots and what is on the way to the first leaf: {reads:?}");
}
