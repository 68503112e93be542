//! ext4 on a loop device: what the kernel does without FUSE.

use std::path::Path;

use anyhow::Result;

use super::image::LoopMount;
use super::{System, drop_caches, sync_of};

/// ext4 with its defaults on an image of its own.
pub struct Ext4 {
    mount: LoopMount,
}

impl Ext4 {
    /// Makes and mounts it in `scratch`.
    pub fn new(scratch: &Path, mebibytes: u64) -> Result<Self> {
        let image = scratch.join("ext4.img");
        Ok(Self { mount: LoopMount::new(image, mebibytes, scratch.join("ext4"))? })
    }
}

impl System for Ext4 {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn root(&self) -> &Path {
        self.mount.mountpoint()
    }

    fn forget(&mut self) -> Result<()> {
        self.mount.unmount()?;
        drop_caches()?;
        self.mount.mount()
    }

    fn sync(&self) -> Result<()> {
        sync_of(self.root())
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }
}
