//! The systems that are measured: where they are mounted, and how they forget what they cached.

mod btrfs;
mod daemon;
mod distance;
mod ext4;
mod gabion;
mod image;
mod mirror;
mod passthrough;
mod scratch;
pub mod shared;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub use self::btrfs::Btrfs;
pub use self::ext4::Ext4;
pub use self::gabion::Gabion;
pub use self::image::full_image;
pub use self::mirror::{Exported, Mirror};
pub use self::passthrough::{Passthrough, compile};
pub use self::scratch::Scratch;

/// A mounted filesystem. Dropping it unmounts it.
pub trait System {
    /// Its column.
    fn name(&self) -> &'static str;

    /// Its root directory.
    fn root(&self) -> &Path;

    /// Unmounts it, drops the kernel's caches, mounts it again: nothing of it is cached then, by
    /// anybody.
    fn forget(&mut self) -> Result<()>;

    /// Returns when all of it is on the disk.
    fn sync(&self) -> Result<()>;

    /// The most memory that its daemons ever had, in bytes, if that is of interest.
    fn peak_memory(&self) -> Option<u64>;
}

/// Drops clean pages, names and inodes of the whole machine.
pub fn drop_caches() -> Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the kernel's caches")
}

/// Returns when all of the filesystem that holds `path` is on the disk.
pub fn sync_of(path: &Path) -> Result<()> {
    let directory = std::fs::File::open(path)?;
    rustix::fs::syncfs(&directory).with_context(|| format!("cannot sync {}", path.display()))
}

/// Runs a program to its successful end.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(())
}
