//! What snapshots cost, in blocks that are read and written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::ids::SubvolId;

use gabion_map::audit::audit;
use gabion_map::format::node::NODE_BLOCKS;
use gabion_map::tree::Diff;
use gabion_map::{Key, Kind, LocalMap, Txn};

use super::local::{file, open, write};
use super::snapshots::formatted;

const SUBVOL: SubvolId = SubvolId(1);

/// Counts the blocks that are read and written.
struct Counting {
    disk: Arc<dyn Disk>,
    read: AtomicU64,
    written: AtomicU64,
}

impl Counting {
    fn new(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { disk, read: AtomicU64::new(0), written: AtomicU64::new(0) })
    }

    /// Blocks written since the last call.
    fn written(&self) -> u64 {
        self.written.swap(0, Ordering::Relaxed)
    }
}

impl Disk for Counting {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let (_, count) = request.extent();
        match request {
            DiskRequest::Read { .. } => self.read.fetch_add(count, Ordering::Relaxed),
            DiskRequest::Write { .. } => self.written.fetch_add(count, Ordering::Relaxed),
            _ => 0,
        };
        self.disk.submit(request)
    }
}

fn put_inodes(map: &LocalMap, inos: impl IntoIterator<Item = u64>, byte: u8) {
    for ino in inos {
        let key = file(ino).key(Kind::INODE, 0);
        map.transact(|txn| txn.put(key, vec![byte; 100])).expect("room");
    }
}

#[test]
fn the_difference_of_two_snapshots_costs_what_has_changed() {
    let disk = formatted(65_536);
    let map = open(&disk);
    put_inodes(&map, 10..100_010, 1);
    let old = map.create_snapshot(SUBVOL, b"old", 0).expect("room");
    let changed: Vec<u64> = (0..10).map(|index| 5000 + 9000 * index).collect();
    put_inodes(&map, changed.iter().copied(), 2);
    let new = map.create_snapshot(SUBVOL, b"new", 0).expect("room");
    drop(map);
    let counting = Counting::new(disk);
    let map = open(&(Arc::clone(&counting) as Arc<dyn Disk>));
    let before = counting.read.load(Ordering::Relaxed);
    let pin = map.pin();
    let mut diff = Diff::new(pin.tree(old), pin.tree(new), Key::first(new)).expect("readable");
    let mut found = Vec::new();
    while let Some(difference) = diff.next().expect("readable") {
        assert!(difference.old.is_some() && difference.new.is_some());
        found.push(difference.key.ino.0);
    }
    assert_eq!(found, changed);
    let (levels, nodes) = (u64::from(pin.tree(new).root().level) + 1, NODE_BLOCKS as u64);
    let read = counting.read.load(Ordering::Relaxed) - before;
    // Both sides, and the first leaf of both.
    let most = 2 * (changed.len() as u64 + 1) * levels * nodes;
    assert!(read <= most, "{read} blocks read of at most {most}, with {levels} levels");
}

#[test]
fn ten_thousand_snapshots_do_not_make_a_write_cost_more() {
    const COUNT: u64 = 10_000;
    let counting = Counting::new(formatted(262_144));
    let map = open(&(Arc::clone(&counting) as Arc<dyn Disk>));
    put_inodes(&map, 10..2000, 1);
    let (mut first, mut last) = (0, 0);
    for number in 0..COUNT {
        write(&map, file(10 + number % 7), number % 11 * 4096, &[number as u8; 4096])
            .expect("room");
        map.create_snapshot(SUBVOL, format!("{number}").as_bytes(), 0).expect("room");
        let sum = match number {
            100..150 => &mut first,
            9950.. => &mut last,
            _ => continue,
        };
        counting.written();
        write(&map, file(20), 0, &[number as u8; 9000]).expect("room");
        map.sync().expect("a working disk");
        *sum += counting.written();
    }
    // The forest has become a level or two higher.
    assert!(last <= first + 50 * 3 * NODE_BLOCKS as u64, "{first} blocks, then {last}");
    assert_eq!(map.snapshots(SUBVOL).len() as u64, COUNT);
    drop(map);
    let map = open(&(Arc::clone(&counting) as Arc<dyn Disk>));
    let ids: Vec<_> = map.snapshots(SUBVOL).into_iter().map(|(id, _)| id).collect();
    map.remove(&ids).expect("a working disk");
    for _ in 0..50 {
        map.remove_step().expect("a working disk");
    }
    assert!(audit(&map).expect("readable").is_exact());
}
