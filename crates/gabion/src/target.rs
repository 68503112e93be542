//! Opening a device or an image to look at it, without changing anything.

use std::path::Path;
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_host::file_disk::{FileDisk, OpenError, OpenMode};

use crate::clients;
use crate::control::wire::{Reply, Request};
use crate::failure::{Failure, Result};
use crate::mounts;

/// Whether what is read may change meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stillness {
    /// Nobody writes.
    Still,
    /// Somebody has it open to write.
    Moving,
}

/// Opens `target` for reading, if nobody writes to it.
pub fn open_still(target: &Path) -> Result<Arc<dyn Disk>> {
    match FileDisk::open(target, OpenMode::ReadOnly) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(error) => Err(not_opened(&cannot_read(target), target, &error)),
    }
}

fn cannot_read(target: &Path) -> String {
    format!("cannot read {}", target.display())
}

/// Opens `target` for reading, whatever others do with it.
pub fn open_anyhow(target: &Path) -> Result<(Arc<dyn Disk>, Stillness)> {
    let (disk, stillness) = match FileDisk::open(target, OpenMode::ReadOnly) {
        Err(OpenError::InUse { .. }) => {
            (FileDisk::open(target, OpenMode::ReadOnlyShared), Stillness::Moving)
        }
        opened => (opened, Stillness::Still),
    };
    match disk {
        Ok(disk) => Ok((Arc::new(disk), stillness)),
        Err(error) => Err(not_opened(&cannot_read(target), target, &error)),
    }
}

/// Why `target` could not be opened, with who has it mounted or serves it if somebody does.
pub fn not_opened(what: &str, target: &Path, error: &OpenError) -> Failure {
    let failure = Failure::of(what, error);
    let mount = match error {
        OpenError::InUse { .. } => mounts::of_target(target).ok().flatten(),
        OpenError::NotADisk { .. } => {
            return failure.next("Name a block device such as /dev/sdb1, or an image file.");
        }
        OpenError::Io { .. } => None,
    };
    if let Some(mount) = mount {
        let mountpoint = mount.mountpoint.display();
        return failure.next(format!(
            "It is mounted at {mountpoint}; to unmount it: gabion umount {mountpoint}"
        ));
    }
    match error {
        OpenError::InUse { .. } => match served_at(target) {
            Some(address) => failure.next(format!(
                "It is served here; to mount that: gabion mount gabion://{address}/ MOUNTPOINT"
            )),
            None => failure,
        },
        _ => failure,
    }
}

/// Where whoever serves `target` on this machine listens.
fn served_at(target: &Path) -> Option<String> {
    match clients::ask(target, Request::Status) {
        Ok(Reply::Status(status)) => Some(status.served?.address),
        _ => None,
    }
}
