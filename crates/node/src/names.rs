//! Operations on names: finding, making, moving and removing objects.
//!
//! Who gets an object's attributes gets a reference to it: a lookup, which [`LocalFs::forget`]
//! gives back. What is opened is in use besides, until [`LocalFs::release`].

use gabion_fs::create::Linkable;
use gabion_fs::{
    Attributes, Caller, Detail, Disposition, Error, Fate, FileType, IfExists, Listing, OpenRequest,
    ROOT, RenameRequest, Result, Unnamed,
};
use gabion_map::{FileId, LocalTxn};

use crate::local::LocalFs;
use crate::references::{Left, Reference};
use crate::snapshots::{self, SNAPSHOTS_NAME};
use crate::subvolumes::entry_file;

const LOOKUP: &[Reference] = &[Reference::Lookup];
const LOOKUP_AND_OPEN: &[Reference] = &[Reference::Lookup, Reference::Open];

impl LocalFs {
    /// The object that `name` stands for. Counts a lookup.
    pub fn lookup(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes> {
        if snapshots::is_snapshots(parent) {
            return self.lookup_snapshot(parent, name);
        }
        let ctx = self.context(caller);
        let lookup = |txn: &mut LocalTxn<'_>| match gabion_fs::lookup(txn, &ctx, parent, name)? {
            found if self.has_number(found.file) => Ok(found),
            _ => Err(Error::TooLarge),
        };
        let found = self.run_referring(LOOKUP, lookup, |found| found);
        match self.unless_removed(parent, found) {
            Err(Error::CrossSubvolume) => self.lookup_subvolume(parent, name),
            Err(Error::NotFound) => self.lookup_absent(parent, name),
            found => found,
        }
    }

    /// The object with this number, for who remembers it from before. `Stale`: it is gone, or has
    /// no name any more. Counts a lookup.
    pub fn find(&self, file: FileId) -> Result<Attributes> {
        if snapshots::is_snapshots(file) {
            return self.lookup_absent(FileId::new(file.subvol, ROOT), SNAPSHOTS_NAME);
        }
        self.run_referring(
            LOOKUP,
            |txn| match gabion_fs::stat(txn, file)? {
                found if found.nlink == 0 => Err(Error::Stale),
                found => Ok(found),
            },
            |found| found,
        )
    }

    /// Makes and opens a regular file, or opens what is there. Counts a lookup and an opening.
    pub fn create(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
        if_exists: IfExists,
        request: &OpenRequest,
    ) -> Result<(Attributes, Disposition)> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        let made = self.run_referring(
            LOOKUP_AND_OPEN,
            |txn| gabion_fs::create(txn, &ctx, parent, name, permissions, if_exists, request),
            |(attributes, _)| attributes,
        )?;
        self.references.set_read_recorded(made.0.file, None);
        Ok(made)
    }

    /// Makes a regular file without a name. Counts a lookup and an opening.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: FileId,
        permissions: u32,
        linkable: Linkable,
    ) -> Result<Attributes> {
        self.check_changeable(parent)?;
        let ctx = self.context(caller);
        let made = self.run_referring(
            LOOKUP_AND_OPEN,
            |txn| gabion_fs::tmpfile(txn, &ctx, parent, permissions, linkable),
            |found| found,
        )?;
        self.expect_orphan(made.file);
        Ok(made)
    }

    /// Makes a file, pipe, socket or device. Counts a lookup.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        file_type: FileType,
        permissions: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        self.run_referring(
            LOOKUP,
            |txn| gabion_fs::mknod(txn, &ctx, parent, name, file_type, permissions, rdev),
            |found| found,
        )
    }

    /// Makes a directory. Counts a lookup.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
    ) -> Result<Attributes> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        self.run_referring(
            LOOKUP,
            |txn| gabion_fs::mkdir(txn, &ctx, parent, name, permissions),
            |found| found,
        )
    }

    /// Makes a symbolic link. Counts a lookup.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        self.run_referring(
            LOOKUP,
            |txn| gabion_fs::symlink(txn, &ctx, parent, name, target),
            |found| found,
        )
    }

    /// Gives `file` one more name. Counts a lookup.
    pub fn link(
        &self,
        caller: &Caller,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes> {
        self.check_link(file, parent)?;
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        self.run_referring(
            LOOKUP,
            |txn| gabion_fs::link(txn, &ctx, file, parent, name),
            |found| found,
        )
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        let opens = |file| self.open_state(file);
        let unnamed = self.run(|txn| gabion_fs::unlink(txn, &ctx, parent, name, &opens))?;
        self.lost_name(unnamed);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_name(parent, name)?;
        let ctx = self.context(caller);
        let opens = |file| self.open_state(file);
        let remove = || self.run(|txn| gabion_fs::rmdir(txn, &ctx, parent, name, &opens));
        let unnamed = match remove() {
            // What is in it may be names that nobody sees.
            Err(Error::NotEmpty) if self.has_only_void(&ctx.caller, parent, name)? => remove(),
            removed => removed,
        }?;
        self.lost_name(unnamed);
        Ok(())
    }

    /// Gives an object another name.
    pub fn rename(&self, caller: &Caller, request: &RenameRequest<'_>) -> Result<()> {
        self.check_link(request.source_parent, request.target_parent)?;
        self.check_name(request.source_parent, request.source_name)?;
        self.check_name(request.target_parent, request.target_name)?;
        let ctx = self.context(caller);
        let opens = |file| self.open_state(file);
        let renamed = self.run(|txn| gabion_fs::rename(txn, &ctx, request, &opens))?;
        if let Some(unnamed) = renamed.replaced {
            self.lost_name(unnamed);
        }
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, file: FileId) -> Result<Vec<u8>> {
        let target = self.run(|txn| gabion_fs::readlink(txn, file));
        self.unless_removed(file, target)
    }

    /// At most `limit` entries of a directory after `cookie`; 0 starts. With
    /// [`Detail::Attributes`], each entry that has attributes counts a lookup.
    pub fn readdir(
        &self,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing> {
        if snapshots::is_snapshots(dir) {
            return self.list_snapshots(dir, cookie, limit, detail);
        }
        let mut taken = Vec::new();
        let give_back = |taken: &mut Vec<FileId>| {
            for file in taken.drain(..) {
                self.forget(file, 1);
            }
        };
        let listing = self.run(|txn| {
            give_back(&mut taken);
            let mut listing = gabion_fs::readdir(txn, dir, cookie, limit, detail)?;
            while listing.entries.iter().all(|entry| !self.is_listed(dir, entry)) {
                let Some(last) = listing.entries.last().filter(|_| !listing.is_complete) else {
                    break;
                };
                listing = gabion_fs::readdir(txn, dir, last.cookie, limit, detail)?;
            }
            listing.entries.retain(|entry| self.is_listed(dir, entry));
            for entry in &mut listing.entries {
                entry.attributes.take_if(|found| !self.has_number(found.file));
                entry.ino = self.number(entry_file(dir, entry.ino));
            }
            for attributes in listing.entries.iter().filter_map(|entry| entry.attributes.as_ref()) {
                self.references.take(attributes.file, Reference::Lookup);
                taken.push(attributes.file);
            }
            Ok(listing)
        });
        let listing = self.unless_removed(dir, listing);
        if listing.is_err() {
            give_back(&mut taken);
        }
        listing
    }

    /// Whether a directory had names that mean nothing; they are gone then.
    fn has_only_void(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<bool> {
        let dir = self.lookup(caller, parent, name)?.file;
        self.forget(dir, 1);
        self.detach_all_void(dir)
    }

    /// Fails if an object of one directory's subvolume cannot get a name in the other.
    fn check_link(&self, one: FileId, other: FileId) -> Result<()> {
        if one.subvol == other.subvol { Ok(()) } else { Err(Error::CrossSubvolume) }
    }

    /// An object that is referred to has no name, and goes with its last reference.
    pub(crate) fn expect_orphan(&self, file: FileId) {
        self.references.mark_unnamed(file);
    }

    /// Sees to it that an object that lost a name is removed once nobody refers to it.
    pub(crate) fn lost_name(&self, unnamed: Unnamed) {
        let Unnamed { file, fate } = unnamed;
        if fate == Fate::Orphaned && self.references.mark_unnamed(file) == Left::Orphan {
            self.reaper.push(file);
        }
    }
}
