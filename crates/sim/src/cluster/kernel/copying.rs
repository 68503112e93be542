//! Bytes that come to a file from another one.

use gabion_fs::create::Linkable;
use gabion_fs::{CopyRequest, Privileges, Result, WriteAt};
use gabion_map::{FileId, Payload};
use gabion_node::remote::Kernel as _;

use super::{Mount, caller};

impl Mount {
    /// Makes a file that has no name, and these bytes at `offset`. It is open.
    pub fn scratch(&self, dir: FileId, offset: u64, bytes: &[u8]) -> Result<FileId> {
        let made = self.fs.tmpfile(&caller(), dir, 0o600, Linkable::No);
        self.fs.answered();
        let file = made?.file;
        let (at, payload) = (WriteAt::Offset(offset), Payload::Copied(bytes));
        let written = self.fs.write(&caller(), file, at, &payload, Privileges::Keep);
        self.fs.answered();
        match written {
            Ok(_) => Ok(file),
            Err(error) => {
                self.close(file);
                Err(error)
            }
        }
    }

    /// Copies bytes, and says how many. The kernel drops the pages that they are in.
    pub fn copy(&self, request: &CopyRequest) -> Result<u64> {
        let object = self.kernel.object(request.target);
        let _own = object.write();
        let copied = self.fs.copy_range(&caller(), request, Privileges::Keep);
        if copied.is_ok() {
            self.changed(&[request.target]);
        }
        self.fs.answered();
        let count = copied?;
        let from = request.target_offset;
        self.kernel.forget_bytes(request.target, from, from + count);
        Ok(count)
    }
}
