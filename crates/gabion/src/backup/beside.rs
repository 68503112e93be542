//! A snapshot of what is mounted, read from its image or device and not through the mount.
//!
//! That is several times as fast, and what the mount has in memory stays there. It can be done
//! beside the daemon, as a snapshot is on the disk when it is made, and nothing of it is changed or
//! used again until it is removed. Whoever removes it meanwhile has the reading fail: then blocks
//! do not have the checksums that they should.

use std::path::Path;
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_base::ids::{SubvolId, Uuid};
use gabion_host::file_disk::{FileDisk, OpenMode};
use gabion_map::format::item::Access;
use gabion_map::{Limits, LocalMap};
use gabion_node::{LocalFs, Settings};

use crate::control::wire::{Snapshot, Status};
use crate::mount::SystemClock;

/// Memory, in bytes, of which nodes have a part: all that has changed of a large tree should stay
/// from its being found until it is read.
const MEMORY: u64 = 256 << 20;
/// How often it is tried to read the last commit while others follow.
const ATTEMPTS: usize = 5;

/// Opens the snapshot of the filesystem with this status, if it is on an image or a device that can
/// be read here.
pub fn open(status: &Status, snapshot: &Snapshot) -> Option<LocalFs> {
    let path = Path::new(&status.target);
    // Volumes have names, and what is served has an address.
    if !path.is_absolute() {
        return None;
    }
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(path, OpenMode::ReadOnlyShared).ok()?);
    let uuid = Uuid::parse(&status.uuid)?;
    (0..ATTEMPTS).find_map(|_| {
        let map = LocalMap::open_beside(Arc::clone(&disk), Limits::within(MEMORY)).ok()?;
        let is_it = map.superblock().uuid == uuid && has(&map, snapshot);
        let id = SubvolId(snapshot.id);
        let open = || LocalFs::new(Arc::new(map), id, Settings::default(), Arc::new(SystemClock));
        is_it.then(open)?.ok()
    })
}

/// Whether this snapshot, too, is in what was opened.
pub fn is_there(fs: &LocalFs, snapshot: &Snapshot) -> bool {
    has(fs.map(), snapshot)
}

fn has(map: &LocalMap, snapshot: &Snapshot) -> bool {
    map.subvolume(SubvolId(snapshot.id)).is_some_and(|record| {
        record.access == Access::ReadOnly && record.extended.name == snapshot.name.as_bytes()
    })
}
