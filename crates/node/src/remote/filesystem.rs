//! A remote filesystem as front ends see it.

use std::sync::Arc;

use gabion_base::ids::Ino;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Ticket, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Attributes, Caller, Changes, CopyRequest, Detail, Disposition, FileType, IfExists, Listing,
    OpenRequest, Privileges, RenameRequest, Result, SpaceRequest, WriteAt, Written,
};
use gabion_map::map::SpaceReport;
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Payload};

use crate::filesystem::{BackgroundLoop, Filesystem, Kept, Reader};
use crate::locks::LockEnd;

use super::RemoteFs;
use super::gate::is_hearsay;

impl Filesystem for RemoteFs {
    fn file(&self, ino: Ino) -> FileId {
        RemoteFs::file(self, ino)
    }

    fn number(&self, file: FileId) -> Ino {
        RemoteFs::number(self, file)
    }

    fn lookup(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes> {
        RemoteFs::lookup(self, caller, parent, name)
    }

    fn find(&self, file: FileId) -> Result<Attributes> {
        RemoteFs::find(self, file)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
        if_exists: IfExists,
        request: &OpenRequest,
    ) -> Result<(Attributes, Disposition)> {
        RemoteFs::create(self, caller, parent, name, permissions, if_exists, request)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: FileId,
        permissions: u32,
        linkable: Linkable,
    ) -> Result<Attributes> {
        RemoteFs::tmpfile(self, caller, parent, permissions, linkable)
    }

    fn mknod(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        file_type: FileType,
        permissions: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        RemoteFs::mknod(self, caller, parent, name, file_type, permissions, rdev)
    }

    fn mkdir(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
    ) -> Result<Attributes> {
        RemoteFs::mkdir(self, caller, parent, name, permissions)
    }

    fn symlink(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        RemoteFs::symlink(self, caller, parent, name, target)
    }

    fn link(
        &self,
        caller: &Caller,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes> {
        RemoteFs::link(self, caller, file, parent, name)
    }

    fn unlink(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        RemoteFs::unlink(self, caller, parent, name)
    }

    fn rmdir(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        RemoteFs::rmdir(self, caller, parent, name)
    }

    fn rename(&self, caller: &Caller, request: &RenameRequest<'_>) -> Result<()> {
        RemoteFs::rename(self, caller, request)
    }

    fn readlink(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        RemoteFs::readlink(self, caller, file)
    }

    fn readdir(
        &self,
        caller: &Caller,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing> {
        RemoteFs::readdir(self, caller, dir, cookie, limit, detail)
    }

    fn stat(&self, file: FileId) -> Result<Attributes> {
        RemoteFs::stat(self, file)
    }

    fn setattr(&self, caller: &Caller, file: FileId, changes: &Changes) -> Result<Attributes> {
        RemoteFs::setattr(self, caller, file, changes)
    }

    fn open_file(
        &self,
        caller: &Caller,
        file: FileId,
        request: &OpenRequest,
    ) -> Result<Attributes> {
        RemoteFs::open_file(self, caller, file, request)
    }

    fn xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        RemoteFs::xattr(self, caller, file, name)
    }

    fn xattr_names(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        RemoteFs::xattr_names(self, caller, file)
    }

    fn set_xattr(
        &self,
        caller: &Caller,
        file: FileId,
        name: &[u8],
        value: &[u8],
        condition: SetCondition,
        set_group: SetGroupBit,
    ) -> Result<()> {
        RemoteFs::set_xattr(self, caller, file, name, value, condition, set_group)
    }

    fn remove_xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<()> {
        RemoteFs::remove_xattr(self, caller, file, name)
    }

    fn read(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
        reader: Reader,
    ) -> Result<usize> {
        match reader {
            Reader::Program => self.read_now(caller, file, offset, into),
            Reader::Cache => self.read_pages(caller, file, offset, into),
        }
    }

    fn record_reading(&self, caller: &Caller, file: FileId) {
        RemoteFs::record_reading(self, caller, file)
    }

    fn write(
        &self,
        caller: &Caller,
        file: FileId,
        at: WriteAt,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        RemoteFs::write(self, caller, file, at, payload, privileges)
    }

    fn write_back(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
    ) -> Result<Written> {
        RemoteFs::write_back(self, caller, file, offset, payload)
    }

    fn may_be_mapped(&self, file: FileId) {
        RemoteFs::may_be_mapped(self, file);
    }

    fn is_not_mapped(&self, file: FileId) {
        RemoteFs::is_not_mapped(self, file);
    }

    fn fallocate(
        &self,
        caller: &Caller,
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    ) -> Result<()> {
        RemoteFs::fallocate(self, caller, file, request, offset, length, privileges)
    }

    fn seek(&self, file: FileId, offset: u64, target: SeekTarget) -> Result<u64> {
        RemoteFs::seek(self, file, offset, target)
    }

    fn copy_range(
        &self,
        caller: &Caller,
        request: &CopyRequest,
        privileges: Privileges,
    ) -> Result<u64> {
        RemoteFs::copy_range(self, caller, request, privileges)
    }

    fn fsync(&self, file: FileId) -> Result<()> {
        RemoteFs::fsync(self, file)
    }

    fn syncfs(&self) -> Result<()> {
        RemoteFs::syncfs(self)
    }

    fn space(&self, of: FileId) -> Result<SpaceReport> {
        RemoteFs::space(self, of.subvol)
    }

    fn lock_conflict(&self, lock: &Lock) -> Result<Option<Lock>> {
        RemoteFs::lock_conflict(self, lock)
    }

    fn lock(&self, lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket> {
        RemoteFs::lock(self, lock, wait, end)
    }

    fn cancel_lock(&self, ticket: Ticket) {
        RemoteFs::cancel_lock(self, ticket)
    }

    fn unlock(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<()> {
        RemoteFs::unlock(self, file, class, owner, range)
    }

    fn unlock_then(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
        end: LockEnd,
    ) {
        RemoteFs::unlock_then(self, file, class, owner, range, end);
    }

    fn unlock_soon(&self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        RemoteFs::unlock_soon(self, file, class, owner, range);
    }

    fn is_kept(&self, subject: Kept<'_>) -> bool {
        if is_hearsay() {
            return false;
        }
        match subject {
            Kept::Attributes(file) => self.can_forget_attributes() && self.keeps_attributes(file),
            Kept::Name { dir, name } => self.can_forget_names() && self.keeps_name(dir, name),
            Kept::Listing(dir) => self.keeps_listing(dir),
        }
    }

    fn answered(&self) {
        RemoteFs::answered(self)
    }

    fn unseen(&self, dir: FileId) {
        RemoteFs::unseen(self, dir)
    }

    /// The server knows of no lookups: it tells before it removes anything.
    fn forget(&self, file: FileId, _: u64) {
        self.doubt_listing(file);
        self.places.forgotten(file);
    }

    fn release(&self, file: FileId) {
        RemoteFs::release(self, file)
    }

    fn close(&self) -> Result<()> {
        let handed_over = self.hand_over();
        self.answered();
        RemoteFs::close(self);
        handed_over
    }

    fn background(self: Arc<Self>) -> Vec<(&'static str, BackgroundLoop)> {
        // Its owner gives it threads.
        Vec::new()
    }

    fn end_background(&self) {}
}
