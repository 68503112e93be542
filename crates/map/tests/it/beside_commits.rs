//! What comes while a commit is under way, within one of its disk requests: operations, crashes.

use std::sync::{Arc, Mutex, OnceLock};

use gabion_base::disk::{Disk, DiskRequest, Durability, MemDisk, Ticket};
use gabion_map::{LocalMap, Txn};

use crate::local::{assert_exact, file, format_on, open, read, write};

type Hook = Box<dyn FnOnce(&LocalMap) + Send>;

/// A disk that does something at the next write, and remembers itself before each forced one.
struct Hooked {
    disk: MemDisk,
    map: OnceLock<Arc<LocalMap>>,
    hook: Mutex<Option<Hook>>,
    before_forced: Mutex<Vec<u8>>,
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
        let hook = is_write.then(|| self.hook.lock().expect("nobody panics").take()).flatten();
        if let Some(hook) = hook {
            hook(self.map.get().expect("hooks come after the map"));
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
    let hooked = Arc::new(Hooked { disk, map, hook, before_forced });
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
    *disk.hook.lock().expect("nobody panics") = Some(Box::new(between));
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
    *disk.hook.lock().expect("nobody panics") = Some(Box::new(between));
    map.commit().expect("a working disk");
    let before = disk.before_forced.lock().expect("nobody panics").clone();
    let image = Arc::new(MemDisk::from_image(before)) as Arc<dyn Disk>;
    let after = open(&image);
    assert!(read(&after, file(10), 0, 10_000) == [1; 8192]);
    assert_exact(&after);
}
