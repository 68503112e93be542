//! Objects by their paths, for people who tend a filesystem.

use gabion_fs::{Attributes, Caller, Error, FileType, Result};
use gabion_map::FileId;

use crate::local::LocalFs;

impl LocalFs {
    /// The directory at a path from the root, which may lead into other subvolumes. Symbolic links
    /// are not followed, and ".." is no way.
    pub fn folder(&self, path: &[u8]) -> Result<FileId> {
        let caller = Caller::superuser();
        let mut at = self.root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            if name == b".." {
                return Err(Error::InvalidArgument);
            }
            let found = self.lookup(&caller, at, name)?;
            self.forget(found.file, 1);
            if found.file_type() != FileType::Directory {
                return Err(Error::NotDirectory);
            }
            at = found.file;
        }
        Ok(at)
    }

    /// The object at a path from the root, with or without a slash at its head. Symbolic links are
    /// not followed, and ".." is no way.
    pub fn at(&self, path: &[u8]) -> Result<Attributes> {
        let ctx = self.context(&Caller::superuser());
        let names = || path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        if names().any(|name| name == b"..") {
            return Err(Error::InvalidArgument);
        }
        self.run(|txn| {
            let mut found = gabion_fs::stat(txn, self.root())?;
            for name in names() {
                found = gabion_fs::lookup(txn, &ctx, found.file, name)?;
            }
            Ok(found)
        })
    }
}
