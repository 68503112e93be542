//! btrfs on a loop device: the kernel's own filesystem with snapshots.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::image::LoopMount;
use super::run;

/// btrfs with its defaults on an image of its own, and a subvolume in it.
pub struct Btrfs {
    mount: LoopMount,
}

impl Btrfs {
    /// Makes and mounts it in `scratch`.
    pub fn new(scratch: &Path, name: &str, mebibytes: u64) -> Result<Self> {
        let image = scratch.join(format!("{name}.img"));
        let mkfs = |image: &Path| {
            // Without discards, which would give the image's blocks back.
            run(Command::new("mkfs.btrfs").args(["-q", "-f", "-K"]).arg(image))
        };
        let mount = LoopMount::made(image, mebibytes, scratch.join(name), &mkfs)?;
        Ok(Self { mount })
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        self.mount.mountpoint()
    }

    /// Something below its root.
    pub fn at(&self, name: &str) -> PathBuf {
        self.mountpoint().join(name)
    }
}
