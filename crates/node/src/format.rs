//! Making a filesystem.

use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Context, Result};
use gabion_map::format::superblock::Superblock;
use gabion_map::open::FormatOptions;
use gabion_map::{Limits, LocalMap, OpenMode};

/// Memory that making a filesystem may use, in bytes.
const MEMORY: u64 = 16 << 20;
/// Everybody may enter, only the superuser may change.
const ROOT_PERMISSIONS: u32 = 0o755;

/// Makes a filesystem with one empty subvolume, durably. Whatever was on the disk is lost.
pub fn format_filesystem(disk: Arc<dyn Disk>, options: &FormatOptions) -> Result<Superblock> {
    gabion_map::open::format(&disk, options)?;
    let map = LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(MEMORY))?;
    let subvol = map.create_subvolume()?;
    let ctx = Context {
        seed: options.name_seed,
        now: Timestamp::new(options.created, 0),
        caller: Caller::superuser(),
    };
    map.transact(|txn| gabion_fs::format_root(txn, &ctx, subvol, ROOT_PERMISSIONS))?;
    map.sync()?;
    Ok(map.superblock())
}
