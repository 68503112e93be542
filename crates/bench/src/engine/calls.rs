//! System calls on a mounted filesystem.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, statat, syncfs, unlinkat};
use rustix::io::pwrite;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Subject;

/// A mounted filesystem.
pub struct Calls {
    root: OwnedFd,
}

impl Calls {
    /// Of the one with this root.
    pub fn new(root: &Path) -> Result<Self> {
        // All files stay open, so that opening and closing are not measured with writing.
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
        Ok(Self { root: open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }
}

impl Subject for Calls {
    type Directory = OwnedFd;
    type File = OwnedFd;

    fn make_directory(&self, name: &str) -> Result<OwnedFd> {
        mkdirat(&self.root, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.root, name, flags, Mode::empty())?)
    }

    fn create(&self, directory: &OwnedFd, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(openat(directory, name, flags, Mode::from_raw_mode(0o644))?)
    }

    fn close(&self, file: OwnedFd) {
        drop(file);
    }

    fn write(&self, file: &OwnedFd, offset: u64, block: &[u8]) -> Result<()> {
        assert_eq!(pwrite(file, block, offset)?, block.len(), "a whole write");
        Ok(())
    }

    fn lookup(&self, directory: &OwnedFd, name: &str) -> Result<()> {
        statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn unlink(&self, directory: &OwnedFd, name: &str) -> Result<()> {
        Ok(unlinkat(directory, name, AtFlags::empty())?)
    }

    fn sync(&self) -> Result<()> {
        Ok(syncfs(&self.root)?)
    }
}
