//! Growing an open filesystem with the disk below it, in the words of the control protocol.
//!
//! An image file is made as long as asked for; a device or a volume is as long as it is. Nothing is
//! made longer before it is known that the filesystem can be.

use gabion_base::BLOCK_SIZE;
use gabion_host::file_disk::{FileDisk, Kind};
use gabion_map::LocalMap;

use crate::control::wire::Grown;
use crate::failure::chain;

/// Makes the filesystem `map` on `disk` so many bytes long, or as long as the disk is by now. A
/// disk that is no file has no length of its own to be looked at again.
pub fn grow(
    map: &LocalMap,
    disk: Option<&FileDisk>,
    target: &str,
    to_bytes: Option<u64>,
) -> Result<Grown, String> {
    let block = BLOCK_SIZE as u64;
    let text = |error: &dyn std::error::Error| chain(error);
    if let Some(disk) = disk {
        disk.measure().map_err(|error| text(&error))?;
    }
    let from = map.blocks();
    let blocks = match to_bytes {
        Some(bytes) => bytes / block,
        // A disk that is too long is used as far as that goes, if it is any further.
        None if map.reach() > from => map.disk_blocks().clamp(from, map.reach()),
        None => map.disk_blocks().max(from),
    };
    map.can_grow(blocks).map_err(|error| text(&error))?;
    if let Some(disk) = disk.filter(|disk| disk.kind() == Kind::Image) {
        disk.lengthen(blocks * block).map_err(|error| text(&error))?;
    }
    map.grow(blocks).map_err(|error| text(&error))?;
    Ok(Grown {
        target: target.to_owned(),
        from_bytes: from * block,
        to_bytes: blocks * block,
        most_bytes: map.reach() * block,
    })
}
