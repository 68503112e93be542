//! Opening a device or an image to look at it, without changing anything.

use std::path::Path;
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_fuse::mountinfo::Mount;
use gabion_host::file_disk::{FileDisk, OpenError, OpenMode};

use crate::control::wire::{Reply, Request};
use crate::failure::{Failure, Result};
use crate::mounts;
use crate::servers::Server;

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
        return mounted(failure, &mount);
    }
    match error {
        OpenError::InUse { holder: Some(holder), .. } if mounts::is_target(holder.pid) => {
            failure.next("It is offered to NBD clients; to have it here, end that gabion target.")
        }
        OpenError::InUse { .. } => served(failure, target),
        _ => failure,
    }
}

/// Says how to come to what somebody has in use, if that is on this machine: at `path`, and
/// `target` is what people call it.
pub fn used(failure: Failure, target: &Path, path: &Path) -> Failure {
    match mounts::of_target(path) {
        Ok(Some(mount)) => mounted(failure, &mount),
        _ => served(failure, target),
    }
}

fn mounted(failure: Failure, mount: &Mount) -> Failure {
    let mountpoint = mount.mountpoint.display();
    failure
        .next(format!("It is mounted at {mountpoint}; to unmount it: gabion umount {mountpoint}"))
}

fn served(failure: Failure, target: &Path) -> Failure {
    match served_at(target) {
        Some(address) => failure.next(format!(
            "It is served here; to mount that: gabion mount gabion://{address}/ MOUNTPOINT"
        )),
        None => failure,
    }
}

/// Where whoever serves `target` on this machine listens.
fn served_at(target: &Path) -> Option<String> {
    match Server::of(Some(target)).and_then(|server| server.ask(Request::Status)) {
        Ok(Reply::Status(status)) => Some(status.served?.address),
        _ => None,
    }
}
