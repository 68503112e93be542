//! Operations that come while a commit is under way: they run within one of its disk requests.

use std::sync::{Arc, Mutex, OnceLock};

use gabion_base::disk::{Disk, DiskRequest, MemDisk, Ticket};
use gabion_map::LocalMap;

use crate::local::{assert_exact, file, format_on, open, read, write};

type Hook = Box<dyn FnOnce(&LocalMap) + Send>;

/// A disk that does something at the next write.
struct Hooked {
    disk: MemDisk,
    map: OnceLock<Arc<LocalMap>>,
    hook: Mutex<Option<Hook>>,
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
        self.disk.submit(request)
    }
}

/// A map, and what gives it a hook.
fn hooked() -> (Arc<Hooked>, Arc<LocalMap>) {
    let disk = MemDisk::new(16_384);
    let hooked = Arc::new(Hooked { disk, map: OnceLock::new(), hook: Mutex::new(None) });
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
