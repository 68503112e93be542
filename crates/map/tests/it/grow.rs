//! A filesystem grows with its disk: what is there afterwards, what the next mount finds, what is
//! refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskRequest, Durability, Ticket};
use gabion_base::ids::{BlockAddr, Txg, Uuid};
use gabion_base::rng::Rng;
use gabion_base::sync::Mutex;

use gabion_map::format::superblock::Superblock;
use gabion_map::layout::{GROUP_BLOCKS, SLOTS_EACH_END, TABLE_ENTRIES};
use gabion_map::{Limits, LocalMap, MapError, OpenMode, Stop, Txn};

use crate::image::{Image, ImageDisk};
use crate::local::{assert_exact, file, format_on, open, read, write};

/// A disk of zeros with an empty filesystem, and the filesystem.
fn made(blocks: u64) -> (Arc<ImageDisk>, LocalMap) {
    let disk = ImageDisk::new(Image::zeroed(blocks));
    let dyn_disk: Arc<dyn Disk> = disk.clone();
    format_on(&dyn_disk);
    let map = open(&dyn_disk);
    (disk, map)
}

fn reopened(disk: &Arc<ImageDisk>) -> LocalMap {
    opened(disk.image()).1
}

fn opened(image: Image) -> (Arc<ImageDisk>, LocalMap) {
    let disk = ImageDisk::new(image);
    let map = open(&(disk.clone() as Arc<dyn Disk>));
    (disk, map)
}

fn refused(image: Image) -> MapError {
    let disk: Arc<dyn Disk> = ImageDisk::new(image);
    let opened = LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(4 << 20));
    opened.err().expect("it must not be opened")
}

/// Writes 64 KiB at a time until there is no space. Returns how often that went well.
fn fill(map: &LocalMap, ino: u64, from: u64) -> u64 {
    let mut at = from;
    loop {
        match write(map, file(ino), at * 65_536, &[at as u8; 65_536]) {
            Ok(()) => at += 1,
            Err(Stop::Map(MapError::NoSpace)) => return at - from,
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_full_filesystem_that_grows_goes_on_writing() {
    let (disk, map) = made(4096);
    let before = fill(&map, 10, 0);
    disk.lengthen(3 * 4096);
    assert!(write(&map, file(10), before * 65_536, &[1; 65_536]).is_err(), "it has not grown yet");
    map.grow(3 * 4096).expect("a long enough disk");
    let more = fill(&map, 10, before);
    // All that was added but for half a MiB more of reserve and what the trees need.
    assert!((496..=504).contains(&more), "{more} times 64 KiB in 32 MiB more");
    assert_exact(&map);
    drop(map);
    let map = reopened(&disk);
    assert_eq!(map.blocks(), 3 * 4096);
    for at in 0..before + more {
        assert!(read(&map, file(10), at * 65_536, 65_536) == [at as u8; 65_536], "part {at}");
    }
    assert_exact(&map);
}

#[test]
fn space_is_counted_as_in_a_new_filesystem_of_that_length() {
    // Up to 4 GiB a new one has the same journal and tables: this one's is as short as any.
    for (from, to) in [(4096, 8192), (4096, 16_384), (8192, 12_345), (5000, 16_384)] {
        let (disk, map) = made(from);
        disk.lengthen(to);
        map.grow(to).expect("a long enough disk");
        let (_, new) = made(to);
        new.sync().expect("a working disk");
        assert_eq!(map.space(), new.space(), "from {from} to {to}");
        let (reopened, new) = (reopened(&disk), new.superblock());
        assert_eq!(map.space(), reopened.space());
        assert_eq!(map.superblock().free_blocks, new.free_blocks, "from {from} to {to}");
        assert_exact(&reopened);
    }
}

/// Lengths around the ends of groups: old and new tails lie in all ways to groups and bitmap pages.
#[test]
fn it_grows_from_every_end_to_every_other() {
    let ends = [0, 1, 2, 7, 8, 10, 11, 300];
    for (index, old) in ends.into_iter().enumerate() {
        let mut length = GROUP_BLOCKS + old;
        let (disk, mut map) = made(length);
        write(&map, file(10), 0, &[1; 9000]).expect("space");
        for (number, end) in
            (2_u8..).zip(ends.into_iter().cycle().skip(index + 1).step_by(3).take(3))
        {
            let group = length / GROUP_BLOCKS * GROUP_BLOCKS;
            length = if group + end > length { group + end } else { group + GROUP_BLOCKS + end };
            disk.lengthen(length);
            map.grow(length).expect("a long enough disk");
            write(&map, file(10), u64::from(number) * 9000, &[number; 9000]).expect("space");
            map.sync().expect("a working disk");
            drop(map);
            map = open(&(disk.clone() as Arc<dyn Disk>));
            assert_eq!((map.blocks(), map.superblock().blocks), (length, length));
            let found = read(&map, file(10), u64::from(number) * 9000, 9000);
            assert!(found == [number; 9000], "from {old} to {length}");
        }
        assert_exact(&map);
    }
}

#[test]
fn many_small_steps_lose_nothing() {
    let mut rng = Rng::new(3);
    let mut length = GROUP_BLOCKS - 30;
    let (disk, mut map) = made(length);
    for step in 0..40 {
        length += 1 + rng.below(3);
        disk.lengthen(length);
        map.grow(length).expect("a long enough disk");
        if step % 3 == 0 {
            write(&map, file(10 + step), 0, &[step as u8; 5000]).expect("space");
        }
        if rng.chance(1, 3) {
            map.commit().expect("a working disk");
        }
        if rng.chance(1, 4) {
            map.sync().expect("a working disk");
            drop(map);
            map = open(&(disk.clone() as Arc<dyn Disk>));
            assert_eq!(map.blocks(), length, "after {step} steps");
        }
    }
    assert_exact(&map);
    for step in (0..40).step_by(3) {
        assert!(read(&map, file(10 + step), 0, 6000) == [step as u8; 5000]);
    }
}

#[test]
fn tables_of_several_levels_grow_page_by_page() {
    let page = TABLE_ENTRIES * GROUP_BLOCKS;
    let mut length = page / 2;
    let (disk, mut map) = made(length);
    write(&map, file(10), 0, &[1; 9000]).expect("space");
    map.sync().expect("a working disk");
    for more in [page / 2 - 1, 1, page, 20 * page + 5, 3] {
        length += more;
        disk.lengthen(length);
        map.grow(length).expect("a long enough disk");
        let space = map.space();
        drop(map);
        map = open(&(disk.clone() as Arc<dyn Disk>));
        assert_eq!((map.blocks(), map.space()), (length, space));
        assert_eq!(read(&map, file(10), 0, 10_000), [1; 9000]);
        write(&map, file(11), 0, &[2; 9000]).expect("space");
        map.sync().expect("a working disk");
    }
    let reach = map.reach();
    assert!(reach >= 64 * (page / 2));
    disk.lengthen(reach);
    map.grow(reach).expect("as far as it can");
    assert_eq!(reopened(&disk).blocks(), reach);
}

#[test]
fn what_cannot_be_is_refused_with_the_next_step_and_changes_nothing() {
    let (disk, map) = made(8192);
    let txg = map.superblock().txg;
    let told = |blocks| map.grow(blocks).expect_err("it cannot be").to_string();
    let shorter = told(8191);
    assert!(shorter.contains("8192") && shorter.contains("8191"), "{shorter}");
    assert!(shorter.contains("make a new one"), "{shorter}");
    let far = told(map.reach() + 1);
    assert!(far.contains(&format!("reach {}", map.reach())), "{far}");
    let short = told(8193);
    assert!(short.contains("8192") && short.contains("longer first"), "{short}");
    map.grow(8192).expect("nothing to do");
    assert_eq!(map.superblock().txg, txg);
    drop(map);
    let disk: Arc<dyn Disk> = disk;
    let map = LocalMap::open(disk, OpenMode::ReadOnly, Limits::within(4 << 20));
    let refused = map.expect("whole").grow(8193);
    assert!(matches!(refused, Err(MapError::ReadOnly)), "{refused:?}");
}

#[test]
fn a_disk_that_lost_its_new_length_is_refused_and_left_alone() {
    let (disk, map) = made(4096);
    disk.lengthen(8192);
    map.sync().expect("a working disk");
    let before = disk.image();
    map.grow(8192).expect("a long enough disk");
    write(&map, file(10), 0, &[1; 9000]).expect("space");
    map.sync().expect("a working disk");
    drop(map);
    let mut short = disk.image();
    short.blocks = 4096;
    let told = refused(short).to_string();
    assert!(told.contains("has 4096") && told.contains("needs 8192"), "{told}");
    // Before the growth it does not matter how long the disk is.
    let mut image = before;
    for blocks in [4096, 4097, 8192] {
        image.blocks = blocks;
        let (_, map) = opened(image.clone());
        assert_eq!(map.blocks(), 4096);
        assert_exact(&map);
    }
}

/// A superblock like the newest one, but newer, as it would stand at `addr`.
fn forged(map: &LocalMap, blocks: u64, addr: BlockAddr) -> BlockSlice {
    let mut superblock = map.superblock();
    (superblock.txg, superblock.blocks) = (Txg(superblock.txg.0 + 1001), blocks);
    BlockSlice::new(superblock.encode(addr))
}

#[test]
fn what_a_file_holds_where_the_tail_was_is_no_superblock() {
    let (disk, map) = made(4096);
    disk.lengthen(8192);
    map.grow(8192).expect("a long enough disk");
    // Whatever blocks the old tail's become, a file may hold this.
    for block in 4096 - SLOTS_EACH_END..4096 {
        let addr = BlockAddr(block);
        for blocks in [4096, 8192] {
            let superblock = forged(&map, blocks, addr);
            disk.write(addr, superblock, Durability::Fua).expect("a working disk");
            assert_eq!(reopened(&disk).superblock(), map.superblock());
        }
    }
}

#[test]
fn what_a_former_filesystem_left_at_the_new_tail_is_no_superblock() {
    let (disk, map) = made(4096);
    disk.lengthen(8192);
    for block in 8192 - SLOTS_EACH_END..8192 {
        let addr = BlockAddr(block);
        let mut former = Superblock { uuid: Uuid([1; 16]), ..map.superblock() };
        (former.txg, former.blocks) = (Txg(9999), 8192);
        let former = BlockSlice::new(former.encode(addr));
        disk.write(addr, former, Durability::Fua).expect("a working disk");
    }
    map.grow(8192).expect("a long enough disk");
    assert_eq!(reopened(&disk).superblock(), map.superblock());
    for _ in 0..5 {
        map.transact(|txn| txn.set_size(file(10), 1)).expect("space");
        map.sync().expect("a working disk");
        assert_eq!(reopened(&disk).superblock(), map.superblock());
    }
}

#[test]
fn it_grows_while_others_write() {
    let (disk, map) = made(8192);
    let growing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (map, growing) = (&map, &growing);
            scope.spawn(move || {
                let mut step = 0;
                while growing.load(Ordering::Acquire) || step < 20 {
                    let (ino, at) = (10 + thread * 100 + step % 20, step / 20 % 8);
                    let bytes = [ino as u8; 30_000];
                    write(map, file(ino), at * 30_000, &bytes).expect("space");
                    if step % 7 == thread {
                        map.sync_file(file(ino)).expect("a working disk");
                    }
                    step += 1;
                }
            });
        }
        for step in 1..=12 {
            let length = 8192 + step * 6000;
            disk.lengthen(length);
            map.grow(length).expect("a long enough disk");
        }
        growing.store(false, Ordering::Release);
    });
    assert_exact(&map);
    drop(map);
    let map = reopened(&disk);
    assert_eq!(map.blocks(), 8192 + 12 * 6000);
    assert_exact(&map);
    for thread in 0..3 {
        let ino = 10 + thread * 100;
        assert!(read(&map, file(ino), 0, 30_000) == [ino as u8; 30_000]);
    }
}

/// Keeps what is on a disk before and after each superblock, with the newest durable one.
struct Witness {
    disk: Arc<ImageDisk>,
    newest: Mutex<Option<Superblock>>,
    seen: Mutex<Vec<(Image, Superblock)>>,
}

impl Witness {
    fn look(&self) {
        if let Some(newest) = &*self.newest.lock() {
            self.seen.lock().push((self.disk.image(), newest.clone()));
        }
    }
}

impl Disk for Witness {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let superblock = match &request {
            DiskRequest::Write { addr, parts, durability: Durability::Fua } => {
                Superblock::decode(parts[0].bytes(), *addr).ok()
            }
            _ => None,
        };
        if superblock.is_none() {
            return self.disk.submit(request);
        }
        self.look();
        let ticket = self.disk.submit(request);
        *self.newest.lock() = superblock;
        self.look();
        ticket
    }
}

#[test]
fn the_newest_superblock_is_found_at_every_moment_of_a_growth() {
    for (from, to) in [(4096, 4099), (4096, 9000), (32_775, 40_000), (32_776, 65_540)] {
        // Wherever in the ring it begins.
        for commits in 0..16 {
            let (disk, map) = made(from);
            for _ in 0..commits {
                map.transact(|txn| txn.set_size(file(10), commits)).expect("space");
                map.transact(|txn| txn.set_size(file(10), 0)).expect("space");
                map.commit().expect("a working disk");
            }
            let newest = Mutex::new(Some(map.superblock()));
            drop(map);
            disk.lengthen(to);
            let witness = Arc::new(Witness { disk, newest, seen: Mutex::default() });
            open(&(witness.clone() as Arc<dyn Disk>)).grow(to).expect("a long enough disk");
            let seen = witness.seen.lock();
            assert!(seen.len() >= 4, "{} moments", seen.len());
            for (image, newest) in seen.iter() {
                let found = opened(image.clone()).1.superblock();
                assert_eq!(found, *newest, "from {from} to {to} after {commits} commits");
            }
        }
    }
}
