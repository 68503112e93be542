//! Extended attributes, which kernels do not keep.

use gabion_fs::Result;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_map::FileId;

use super::{Mount, caller};
use crate::cluster::Sabotage;

impl Mount {
    /// The value of an extended attribute. Kernels keep none.
    pub fn xattr(&self, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        let key = (file, name.to_vec());
        if let Some(kept) = self.kernel.caches().xattrs.get(&key) {
            return Ok(kept.clone());
        }
        let found = self.fs.xattr(&caller(), file, name);
        if let (Sabotage::KernelKeepsXattrs, Ok(value)) = (self.kernel.sabotage, &found) {
            self.kernel.caches().xattrs.insert(key, value.clone());
        }
        self.fs.answered();
        found
    }

    /// The names of extended attributes.
    pub fn xattr_names(&self, file: FileId) -> Result<Vec<Vec<u8>>> {
        let found = self.fs.xattr_names(&caller(), file);
        self.fs.answered();
        let names = found?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(<[u8]>::to_vec).collect())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        &self,
        file: FileId,
        name: &[u8],
        value: &[u8],
        condition: SetCondition,
    ) -> Result<()> {
        let object = self.kernel.object(file);
        let _own = object.write();
        let keep = SetGroupBit::Keep;
        let set = self.fs.set_xattr(&caller(), file, name, value, condition, keep);
        self.after_xattr(file, name, &set);
        set
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, file: FileId, name: &[u8]) -> Result<()> {
        let object = self.kernel.object(file);
        let _own = object.write();
        let removed = self.fs.remove_xattr(&caller(), file, name);
        self.after_xattr(file, name, &removed);
        removed
    }

    fn after_xattr(&self, file: FileId, name: &[u8], result: &Result<()>) {
        let mut caches = self.kernel.caches();
        caches.xattrs.remove(&(file, name.to_vec()));
        if result.is_ok() {
            caches.forget_attributes(file);
        }
        drop(caches);
        self.fs.answered();
    }
}
