//! A filesystem as its front ends see it, whoever keeps it: [`LocalFs`](crate::LocalFs) on a disk
//! of this machine, or a client of a server elsewhere.
//!
//! - Who is answered with attributes gets a reference to the object, of the kind that the method
//!   says; it lasts until [`Filesystem::forget`] or [`Filesystem::release`].
//! - What a front end was told may be cached without end if [`Filesystem::is_kept`] says so between
//!   the call that found it out and the answer to whoever asked. Then the filesystem says when it
//!   is no longer true; never before [`Filesystem::answered`], for who has not got it yet cannot
//!   drop it.
//! - Methods may be called from several threads at once.
//!
//! Absent: how a filesystem is opened, and numbers about it that only its owner wants.

use std::sync::Arc;

use gabion_base::ids::Ino;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Ticket, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Attributes, Caller, Changes, CopyRequest, Detail, Disposition, Error, FileType, IfExists,
    Listing, OpenRequest, Privileges, RenameRequest, Result, SpaceRequest, WriteAt, Written,
};
use gabion_map::map::SpaceReport;
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Payload};

use crate::locks::LockEnd;

/// Something that a front end was told of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// The attributes of an object.
    Attributes(FileId),
    /// What a name stands for, or that there is none.
    Name {
        /// The directory it is in.
        dir: FileId,
        /// The name.
        name: &'a [u8],
    },
    /// The names of a directory, to whose end it was just listed.
    Listing(FileId),
}

/// Who keeps bytes that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A program, which looks at them once.
    Program,
    /// The kernel, in pages that it has locked until they come and keeps until it is told
    /// otherwise.
    Cache,
}

/// What a thread does in the background until [`Filesystem::end_background`], telling whom it is
/// given what fails.
pub type BackgroundLoop = Box<dyn FnOnce(&dyn Fn(&Error)) + Send>;

/// All operations on one filesystem in use.
pub trait Filesystem: Send + Sync {
    /// The object with this number.
    fn file(&self, ino: Ino) -> FileId;

    /// The number of an object, by which it is found again.
    fn number(&self, file: FileId) -> Ino {
        file.ino
    }

    /// The object that `name` stands for. Counts a lookup.
    fn lookup(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes>;

    /// The object with this number, for who remembers it from before. `Stale`: it is gone, or has
    /// no name any more. Counts a lookup.
    fn find(&self, file: FileId) -> Result<Attributes>;

    /// Makes and opens a regular file, or opens what is there. Counts a lookup and an opening.
    fn create(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
        if_exists: IfExists,
        request: &OpenRequest,
    ) -> Result<(Attributes, Disposition)>;

    /// Makes a regular file without a name. Counts a lookup and an opening.
    fn tmpfile(
        &self,
        caller: &Caller,
        parent: FileId,
        permissions: u32,
        linkable: Linkable,
    ) -> Result<Attributes>;

    /// Makes a file, pipe, socket or device. Counts a lookup.
    fn mknod(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        file_type: FileType,
        permissions: u32,
        rdev: u32,
    ) -> Result<Attributes>;

    /// Makes a directory. Counts a lookup.
    fn mkdir(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
    ) -> Result<Attributes>;

    /// Makes a symbolic link. Counts a lookup.
    fn symlink(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes>;

    /// Gives `file` one more name. Counts a lookup.
    fn link(
        &self,
        caller: &Caller,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes>;

    /// Removes a name of anything but a directory.
    fn unlink(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()>;

    /// Gives an object another name.
    fn rename(&self, caller: &Caller, request: &RenameRequest<'_>) -> Result<()>;

    /// The target of a symbolic link.
    fn readlink(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>>;

    /// At most `limit` entries of a directory after `cookie`; 0 starts. With
    /// [`Detail::Attributes`], each entry that has attributes counts a lookup.
    fn readdir(
        &self,
        caller: &Caller,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing>;

    /// The attributes of an object. Counts no reference.
    fn stat(&self, file: FileId) -> Result<Attributes>;

    /// Changes attributes and answers with the new ones. Counts no reference.
    fn setattr(&self, caller: &Caller, file: FileId, changes: &Changes) -> Result<Attributes>;

    /// Opens an object. Counts an opening.
    fn open_file(&self, caller: &Caller, file: FileId, request: &OpenRequest)
    -> Result<Attributes>;

    /// The value of an extended attribute.
    fn xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of the extended attributes, each ended by a NUL.
    fn xattr_names(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>>;

    /// Sets an extended attribute.
    fn set_xattr(
        &self,
        caller: &Caller,
        file: FileId,
        name: &[u8],
        value: &[u8],
        condition: SetCondition,
        set_group: SetGroupBit,
    ) -> Result<()>;

    /// Removes an extended attribute.
    fn remove_xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<()>;

    /// Reads bytes; fewer than asked for only at the file's end.
    fn read(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
        reader: Reader,
    ) -> Result<usize>;

    /// A program has read bytes, names or a link's target of an object: that is recorded as its
    /// time of reading, where the settings want that. To be told before the program is answered,
    /// and not of one that wants no trace (`O_NOATIME`).
    fn record_reading(&self, caller: &Caller, file: FileId);

    /// Writes bytes, all of them.
    fn write(
        &self,
        caller: &Caller,
        file: FileId,
        at: WriteAt,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written>;

    /// Takes bytes that the kernel has of a page which a program has changed. Answers for all of
    /// them; where nobody else changes the filesystem, they are written as all others.
    fn write_back(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
    ) -> Result<Written> {
        self.write(caller, file, WriteAt::Offset(offset), payload, Privileges::Keep)
    }

    /// Writes bytes for a kernel that keeps the file's times by itself, and sets them before this
    /// or after it. Only one that nobody else's changes concern does so; where it cannot be, this
    /// is a write as all others.
    fn write_untimed(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        self.write(caller, file, WriteAt::Offset(offset), payload, privileges)
    }

    /// The file was opened for reading and writing, so that programs may map it and change its
    /// pages. To be told before anybody can.
    fn may_be_mapped(&self, _: FileId) {}

    /// Such an opening is closed, and nothing is mapped through it any more.
    fn is_not_mapped(&self, _: FileId) {}

    /// Changes the layout of a file's bytes.
    fn fallocate(
        &self,
        caller: &Caller,
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    ) -> Result<()>;

    /// The next data or hole at or after `offset`.
    fn seek(&self, file: FileId, offset: u64, target: SeekTarget) -> Result<u64>;

    /// Whether nobody can change an object, as those of snapshots. False if that is not known.
    fn is_unchanging(&self, _file: FileId) -> bool {
        false
    }

    /// Copies bytes from file to file and says how many: all, or fewer at the source's end and
    /// where the work got long.
    fn copy_range(
        &self,
        caller: &Caller,
        request: &CopyRequest,
        privileges: Privileges,
    ) -> Result<u64>;

    /// Makes an object and everything that completed before durable.
    fn fsync(&self, file: FileId) -> Result<()>;

    /// Makes everything that completed before durable.
    fn syncfs(&self) -> Result<()>;

    /// Space in numbers, as whoever adds to the subvolume of this object finds it.
    fn space(&self, of: FileId) -> Result<SpaceReport>;

    /// A lock that stands in the way of `lock`.
    fn lock_conflict(&self, lock: &Lock) -> Result<Option<Lock>>;

    /// Asks for a lock. `end` is called exactly once, with no lock of the filesystem held: before
    /// this returns if that is possible; else the request waits, and can be given up by the ticket.
    /// `end` must not wait for anybody.
    fn lock(&self, lock: Lock, wait: Wait, end: LockEnd) -> Option<Ticket>;

    /// Gives up what waits, if it still does: it ends with `Interrupted`. Does not block.
    fn cancel_lock(&self, ticket: Ticket);

    /// Gives up an owner's locks on a range.
    fn unlock(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<()>;

    /// The same. `end` is called as for a lock.
    fn unlock_then(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
        end: LockEnd,
    );

    /// The same, at once or later. Does not block, and nobody is told.
    fn unlock_soon(&self, file: FileId, class: LockClass, owner: LockOwner, range: LockRange);

    /// Whether who is told this now may keep it until told otherwise.
    fn is_kept(&self, subject: Kept<'_>) -> bool;

    /// The request that this thread has made calls for is answered: what was found out for it may
    /// be invalidated from now on.
    fn answered(&self);

    /// Whoever asked for a change of names of a directory has given up before it was told that the
    /// change was made. For front ends that cannot see to it themselves. Does not block.
    fn unseen(&self, dir: FileId);

    /// Gives back `count` references to an object that was looked up. Does not block.
    fn forget(&self, file: FileId, count: u64);

    /// Gives back the reference of one who had the object open. Does not block.
    fn release(&self, file: FileId);

    /// Makes everything durable, once nobody uses the filesystem any more: no operation is running,
    /// none will come, and what is still referred to no longer counts.
    fn close(&self) -> Result<()>;

    /// What has to be done without being asked, each by a thread with this name.
    fn background(self: Arc<Self>) -> Vec<(&'static str, BackgroundLoop)>;

    /// Lets everything in the background return soon. To be called again until it has, for a
    /// thread that was about to wait may have missed it.
    fn end_background(&self);
}
