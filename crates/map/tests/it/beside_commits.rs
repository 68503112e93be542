//! What comes while a commit is under way, within one of its disk requests: operations, crashes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, MemDisk, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_map::{LocalMap, Txn};

use crate::local::{assert_exact, file, format_on, open, read, size, write};

type Hook = Box<dyn FnOnce(&LocalMap) + Send>;

/// A disk that does something at one of the next writes, remembers itself before each forced one,
/// and may fail to flush.
struct Hooked {
    disk: MemDisk,
    map: OnceLock<Arc<LocalMap>>,
    /// What to do, and after how many writes.
    hook: Mutex<Option<(usize, Hook)>>,
    before_forced: Mutex<Vec<u8>>,
    fails: AtomicBool,
}

impl Hooked {
    fn at_write(&self, number: usize, hook: impl FnOnce(&LocalMap) + Send + 'static) {
        *self.hook.lock().expect("nobody panics") = Some((number, Box::new(hook)));
    }

    fn next_hook(&self) -> Option<Hook> {
        let mut hook = self.hook.lock().expect("nobody panics");
        let (left, _) = hook.as_mut()?;
        match left.checked_sub(1) {
            Some(less) => {
                *left = less;
                None
            }
            None => hook.take().map(|(_, hook)| hook),
        }
    }
}

impl Disk for Hooked {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let is_write = matches!(request, DiskRequest::Write { .. });
        let hook = is_write.then(|| self.next_hook()).flatten();
        if let Some(hook) = hook {
            hook(self.map.get().expect("hooks come after the map"));
        }
        if matches!(request, DiskRequest::Flush) && self.fails.load(Ordering::Relaxed) {
            let (device, addr) = (self.name(), BlockAddr(0));
            let source = Arc::new(std::io::Error::other("a test"));
            return Ticket::ready(Err(DiskError::Io { device, operation: "flush", addr, source }));
        }
        if let DiskRequest::Write { durability: Durability::Fua, .. } = request {
            *self.before_forced.lock().expect("nobody panics") = self.disk.image();
        }
        self.disk.submit(request)
    }
}

/// A map, and what gives it a hook.
fn hooked() -> (Arc<Hooked>, Arc<LocalMap>) {
    let disk = MemDisk::new(16_384);
    let (map, hook, before_forced) = (OnceLock::new(), Mutex::new(None), Mutex::default());
    let fails = AtomicBool::new(false);
    let hooked = Arc::new(Hooked { disk, map, hook, before_forced, fails });
    let disk: Arc<dyn Disk> = hooked.clone();
    format_on(&disk);
    let map = Arc::new(open(&disk));
    assert!(hooked.map.set(Arc::clone(&map)).is_ok());
    (hooked, map)
}

#[test]
fn synced_bytes_outlive_a_commit_that_saw_only_newer_ones() {
    let (disk, map) = hooked();
    write(&map, file(10), 0, &[7; 100_000]).expect("space");
    // The commit writes file 10 back; file 11 begins only now.
    let between = |map: &LocalMap| {
        write(map, file(11), 0, &[1; 663]).expect("space");
        map.sync_file(file(11)).expect("a working disk");
        write(map, file(11), 0, &[2; 600]).expect("space");
        write(map, file(11), 663, &[2; 9000]).expect("space");
    };
    disk.at_write(0, between);
    map.commit().expect("a working disk");
    let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
    let after = open(&image);
    assert_eq!(read(&after, file(11), 0, 10_000), [vec![2; 600], vec![1; 63]].concat());
    assert_exact(&after);
}

#[test]
fn a_crash_before_the_superblock_leaves_nothing_of_what_was_carried_over() {
    let (disk, map) = hooked();
    write(&map, file(10), 0, &[1; 8192]).expect("space");
    map.sync().expect("a working disk");
    // The rest of the last block rides in the journal, newer bytes lie over it, and neither the
    // cut nor the file that comes before it is on disk when the commit carries them over.
    write(&map, file(11), 0, &[3; 100]).expect("space");
    map.transact(|txn| txn.set_size(file(10), 5000)).expect("space");
    let between = |map: &LocalMap| write(map, file(10), 4096, &[2; 4096]).expect("space");
    write(&map, file(12), 0, &[4; 100_000]).expect("space");
    disk.at_write(0, between);
    map.commit().expect("a working disk");
    let before = disk.before_forced.lock().expect("nobody panics").clone();
    let image = Arc::new(MemDisk::from_image(before)) as Arc<dyn Disk>;
    let after = open(&image);
    assert!(read(&after, file(10), 0, 10_000) == [1; 8192]);
    assert_exact(&after);
}

#[test]
fn a_commit_after_one_that_failed_fails_too() {
    let (disk, map) = hooked();
    write(&map, file(10), 0, &[1; 100]).expect("space");
    disk.fails.store(true, Ordering::Relaxed);
    assert!(map.commit().is_err());
    disk.fails.store(false, Ordering::Relaxed);
    assert!(map.commit().is_err(), "nothing new was changed, and nothing was committed");
}

#[test]
fn what_a_crash_leaves_behind_the_end_of_a_file_does_not_come_back() {
    let (disk, map) = hooked();
    // Half of the file is written in place, the other half elsewhere; a sync comes in between.
    map.transact(|txn| txn.allocate(file(10), 4 * 4096, 8 * 4096)).expect("space");
    write(&map, file(11), 0, &[1; 100]).expect("space");
    write(&map, file(10), 0, &[7; 8 * 4096]).expect("space");
    disk.at_write(1, |map| map.sync_file(file(11)).expect("a working disk"));
    map.flush_file(file(10)).expect("a working disk");
    assert!(read(&map, file(10), 0, 100_000) == [7; 8 * 4096]);
    let grow_by_size = |map: &LocalMap| {
        map.transact(|txn| txn.set_size(file(10), 9 * 4096)).expect("space");
    };
    let grow_by_write = |map: &LocalMap| write(map, file(10), 8 * 4096, &[0; 4096]).expect("space");
    for grow in [&grow_by_size as &dyn Fn(&LocalMap), &grow_by_write] {
        let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
        let after = open(&image);
        assert_eq!(size(&after, file(10)), 0);
        grow(&after);
        assert!(read(&after, file(10), 0, 100_000) == [0; 9 * 4096]);
        after.commit().expect("a working disk");
        assert_exact(&after);
    }
}

/// Appends a byte to file 10 at each write from now on.
fn append_at_each_write(disk: &Arc<Hooked>) {
    let next = Arc::clone(disk);
    disk.at_write(0, move |map| {
        write(map, file(10), size(map, file(10)), &[9]).expect("space");
        append_at_each_write(&next);
    });
}

#[test]
fn what_is_synced_is_durable_though_somebody_writes_to_the_same_block_all_the_time() {
    for is_constant in [false, true] {
        let (disk, map) = hooked();
        write(&map, file(10), 0, &[1; 3000]).expect("space");
        map.sync().expect("a working disk");
        write(&map, file(10), 3000, &[2; 100]).expect("space");
        match is_constant {
            true => append_at_each_write(&disk),
            false => {
                disk.at_write(0, |map| write(map, file(10), 3100, &[9]).expect("space"));
            }
        }
        map.sync().expect("a working disk");
        let _ = disk.next_hook();
        let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
        let after = open(&image);
        let found = read(&after, file(10), 0, 10_000);
        assert_eq!(found[..3100], [vec![1; 3000], vec![2; 100]].concat(), "{is_constant}");
        assert!(found[3100..].iter().all(|byte| *byte == 9), "its size is that of its bytes");
        assert_exact(&after);
        map.sync().expect("a working disk");
        assert_exact(&map);
    }
}

/// Writes over file 10 at each write from now on, and waits for that if it does not have to wait
/// itself.
fn overwrite_at_each_write(disk: &Arc<Hooked>, round: u8) {
    let next = Arc::clone(disk);
    disk.at_write(0, move |_| {
        let map = Arc::clone(next.map.get().expect("hooks come after the map"));
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            write(&map, file(10), 0, &vec![round; SEVERAL_BLOCKS]).expect("space");
            let _ = tell.send(());
        });
        let _ = told.recv_timeout(Duration::from_millis(200));
        overwrite_at_each_write(&next, round + 1);
    });
}

/// More than an fsync puts into the journal.
const SEVERAL_BLOCKS: usize = 100 * 4096;

#[test]
fn what_is_synced_is_durable_though_somebody_writes_over_all_of_it_all_the_time() {
    let (disk, map) = hooked();
    write(&map, file(10), 0, &[1; SEVERAL_BLOCKS]).expect("space");
    overwrite_at_each_write(&disk, 2);
    map.sync_file(file(10)).expect("a working disk");
    let _ = disk.next_hook();
    let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
    let after = open(&image);
    let found = read(&after, file(10), 0, SEVERAL_BLOCKS);
    assert_eq!(found.len(), SEVERAL_BLOCKS);
    assert!(found.iter().all(|byte| *byte > 0), "bytes of before or after");
    assert_exact(&after);
    drop(disk);
    // Whoever had to wait writes in the end.
    map.sync().expect("a working disk");
    assert!(read(&map, file(10), 0, 1)[0] > 1);
}

#[test]
fn what_is_synced_is_durable_though_the_file_is_cut_behind_it_meanwhile() {
    let (disk, map) = hooked();
    write(&map, file(10), 0, &[1; SEVERAL_BLOCKS]).expect("space");
    disk.at_write(0, |map| map.transact(|txn| txn.set_size(file(10), 8 * 4096)).expect("space"));
    map.sync_file(file(10)).expect("a working disk");
    let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
    let after = open(&image);
    assert!(read(&after, file(10), 0, SEVERAL_BLOCKS) == [1; 8 * 4096]);
    assert_exact(&after);
}

#[test]
fn a_small_file_that_grows_meanwhile_is_committed_with_its_bytes() {
    fn by_size(map: &LocalMap) {
        map.transact(|txn| txn.set_size(file(10), 100_000)).expect("space");
    }
    fn by_write(map: &LocalMap) {
        write(map, file(10), 50_000, &[3; 10]).expect("space");
    }
    for grow in [by_size, by_write] {
        let (disk, map) = hooked();
        write(&map, file(10), 0, &[1; 1000]).expect("space");
        write(&map, file(11), 0, &[2; SEVERAL_BLOCKS]).expect("space");
        disk.at_write(0, grow);
        map.commit().expect("a working disk");
        let image = Arc::new(MemDisk::from_image(disk.disk.image())) as Arc<dyn Disk>;
        let after = open(&image);
        let found = read(&after, file(10), 0, 1000);
        assert!(found == [1; 1000], "{} bytes, {:?}", found.len(), found.first());
        assert_exact(&after);
    }
}
