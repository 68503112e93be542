//! Image files, and loop mounts of them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::run;

/// Bytes that are written at once.
const STEP: usize = 4 << 20;

/// Makes an image whose blocks are all written, so that the filesystem below it has nothing to
/// allocate or convert any more.
pub fn full_image(path: &Path, mebibytes: u64) -> Result<()> {
    let length = mebibytes << 20;
    let mut file = File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
    let zeros = vec![0; STEP];
    for _ in 0..length / STEP as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// A loop mount of an image. Dropping it unmounts it, which also detaches the loop device.
pub struct LoopMount {
    image: PathBuf,
    mountpoint: PathBuf,
}

impl LoopMount {
    /// Makes an image with ext4 and mounts it at `mountpoint`.
    pub fn new(image: PathBuf, mebibytes: u64, mountpoint: PathBuf) -> Result<Self> {
        Self::made(image, mebibytes, mountpoint, &|image| {
            // Without discards, which would give the image's blocks back; all tables at once, so
            // that no kernel thread does it later.
            let features = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", features]).arg(image))
        })
    }

    /// Makes an image with what `mkfs` makes on it, and mounts it at `mountpoint`.
    pub fn made(
        image: PathBuf,
        mebibytes: u64,
        mountpoint: PathBuf,
        mkfs: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<Self> {
        full_image(&image, mebibytes)?;
        mkfs(&image)?;
        fs::create_dir_all(&mountpoint)?;
        let mount = Self { image, mountpoint };
        mount.mount()?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mountpoint))
    }

    pub fn unmount(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mountpoint))
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
        }
    }
}
