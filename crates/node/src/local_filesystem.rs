//! [`LocalFs`] as a [`Filesystem`]: nearly each call goes to the method of the same name.
//!
//! Nobody else changes a local filesystem, so whatever was told of it stays true until its front
//! end itself changes it; but for the list of its snapshots, which is always asked for again.

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
use crate::local::LocalFs;
use crate::locks::LockEnd;
use crate::snapshots;

impl Filesystem for LocalFs {
    fn file(&self, ino: Ino) -> FileId {
        LocalFs::file(self, ino)
    }

    fn number(&self, file: FileId) -> Ino {
        LocalFs::number(self, file)
    }

    fn lookup(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes> {
        LocalFs::lookup(self, caller, parent, name)
    }

    fn find(&self, file: FileId) -> Result<Attributes> {
        LocalFs::find(self, file)
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
        LocalFs::create(self, caller, parent, name, permissions, if_exists, request)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: FileId,
        permissions: u32,
        linkable: Linkable,
    ) -> Result<Attributes> {
        LocalFs::tmpfile(self, caller, parent, permissions, linkable)
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
        LocalFs::mknod(self, caller, parent, name, file_type, permissions, rdev)
    }

    fn mkdir(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
    ) -> Result<Attributes> {
        LocalFs::mkdir(self, caller, parent, name, permissions)
    }

    fn symlink(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        LocalFs::symlink(self, caller, parent, name, target)
    }

    fn link(
        &self,
        caller: &Caller,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes> {
        LocalFs::link(self, caller, file, parent, name)
    }

    fn unlink(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        LocalFs::unlink(self, caller, parent, name)
    }

    fn rmdir(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        LocalFs::rmdir(self, caller, parent, name)
    }

    fn rename(&self, caller: &Caller, request: &RenameRequest<'_>) -> Result<()> {
        LocalFs::rename(self, caller, request)
    }

    fn readlink(&self, _: &Caller, file: FileId) -> Result<Vec<u8>> {
        LocalFs::readlink(self, file)
    }

    fn readdir(
        &self,
        _: &Caller,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing> {
        LocalFs::readdir(self, dir, cookie, limit, detail)
    }

    fn stat(&self, file: FileId) -> Result<Attributes> {
        LocalFs::stat(self, file)
    }

    fn setattr(&self, caller: &Caller, file: FileId, changes: &Changes) -> Result<Attributes> {
        LocalFs::setattr(self, caller, file, changes)
    }

    fn open_file(
        &self,
        caller: &Caller,
        file: FileId,
        request: &OpenRequest,
    ) -> Result<Attributes> {
        LocalFs::open_file(self, caller, file, request)
    }

    fn xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        LocalFs::xattr(self, caller, file, name)
    }

    fn xattr_names(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        LocalFs::xattr_names(self, caller, file)
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
        LocalFs::set_xattr(self, caller, file, name, value, condition, set_group)
    }

    fn remove_xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<()> {
        LocalFs::remove_xattr(self, caller, file, name)
    }

    fn read(
        &self,
        _: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
        _: Reader,
    ) -> Result<usize> {
        LocalFs::read(self, file, offset, into)
    }

    fn record_reading(&self, _: &Caller, file: FileId) {
        LocalFs::record_reading(self, file);
    }

    fn write(
        &self,
        caller: &Caller,
        file: FileId,
        at: WriteAt,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        LocalFs::write(self, caller, file, at, payload, privileges)
    }

    fn write_untimed(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        LocalFs::write_untimed(self, caller, file, offset, payload, privileges)
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
        LocalFs::fallocate(self, caller, file, request, offset, length, privileges)
    }

    fn seek(&self, file: FileId, offset: u64, target: SeekTarget) -> Result<u64> {
        LocalFs::seek(self, file, offset, target)
    }

    fn is_unchanging(&self, file: FileId) -> bool {
        self.is_read_only() || self.is_frozen(file)
    }

    fn copy_range(
        &self,
        caller: &Caller,
        request: &CopyRequest,
        privileges: Privileges,
    ) -> Result<u64> {
        LocalFs::copy_range(self, caller, request, privileges)
    }

    fn fsync(&self, file: FileId) -> Result<()> {
        LocalFs::fsync(self, file)
    }

    fn syncfs(&self) -> Result<()> {
        LocalFs::syncfs(self)
    }

    fn space(&self, of: FileId) -> Result<SpaceReport> {
        Ok(self.map.space_of(of.subvol))
    }

    fn lock_conflict(&self, lock: &Lock) -> Result<Option<Lock>> {
        Ok(self.locks().conflict(lock))
    }

    fn lock(&self, lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket> {
        self.locks().acquire(lock, wait, end)
    }

    fn cancel_lock(&self, ticket: Ticket) {
        self.locks().cancel(ticket);
    }

    fn unlock(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<()> {
        self.unlock_soon(file, class, owner, range);
        Ok(())
    }

    fn unlock_then(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
        end: LockEnd,
    ) {
        self.unlock_soon(file, class, owner, range);
        end(Ok(()));
    }

    fn unlock_soon(&self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange) {
        self.locks().release(file, class, owner, range);
    }

    fn is_kept(&self, subject: Kept<'_>) -> bool {
        match subject {
            Kept::Attributes(file) | Kept::Listing(file) | Kept::Name { dir: file, .. } => {
                !snapshots::is_snapshots(file)
            }
        }
    }

    fn answered(&self) {}

    fn unseen(&self, _dir: FileId) {}

    fn forget(&self, file: FileId, count: u64) {
        LocalFs::forget(self, file, count);
    }

    fn release(&self, file: FileId) {
        LocalFs::release(self, file);
    }

    fn close(&self) -> Result<()> {
        LocalFs::close(self)
    }

    fn background(self: Arc<Self>) -> Vec<(&'static str, BackgroundLoop)> {
        let (reaper, scheduler) = (Arc::clone(&self), Arc::clone(&self));
        vec![
            ("gabion-commit", Box::new(move |report| self.keep_committed(report))),
            ("gabion-reap", Box::new(move |report| reaper.keep_reaped(report))),
            ("gabion-snapshots", Box::new(move |report| scheduler.keep_scheduled(report))),
        ]
    }

    fn end_background(&self) {
        LocalFs::end_background(self);
    }
}
