//! ext4 on a loop device: what programs of one machine get, who need no second mount.

use std::path::Path;

use anyhow::Result;

use super::Shared;
use crate::systems::{Ext4, System};

/// ext4, whose second mount is the first one.
pub struct LocalTwice(Ext4);

impl LocalTwice {
    /// Makes and mounts it in `scratch`.
    pub fn new(scratch: &Path, mebibytes: u64) -> Result<Self> {
        Ok(Self(Ext4::new(scratch, mebibytes)?))
    }
}

impl Shared for LocalTwice {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn roots(&self) -> [&Path; 2] {
        [self.0.root(), self.0.root()]
    }

    fn forget(&mut self) -> Result<()> {
        self.0.forget()
    }

    fn sync(&mut self) -> Result<()> {
        self.0.sync()
    }
}
