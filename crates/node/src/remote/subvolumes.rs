//! Snapshots and other subvolumes, as a client sees them.
//!
//! A name that stands for a subvolume ends a lookup; it goes on at that one's root, whose items are
//! leased like all others. The directory of snapshots is found by who knows its name.

use gabion_base::ids::Ino;
use gabion_fs::{Attributes, Caller, Error, Listing, ROOT, Result, subvolume};
use gabion_link::message::{Call, Prefetch};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, LockMode};

use crate::numbering;
use crate::snapshots::{self, SNAPSHOTS_NAME};
use crate::subvolumes::entry_file;

use super::RemoteFs;

impl RemoteFs {
    /// The object that a front end knows by this number. The root is always [`ROOT`] to it.
    pub fn file(&self, ino: Ino) -> FileId {
        match ino == ROOT {
            true => self.root(),
            false => numbering::file(self.identity.subvol, ino),
        }
    }

    /// The number by which a front end knows the object, but for the root.
    pub fn number(&self, file: FileId) -> Ino {
        numbering::number(self.identity.subvol, file)
    }

    /// Fails if the object can have no number.
    pub(super) fn numbered(&self, found: Attributes) -> Result<Attributes> {
        match numbering::has_number(self.identity.subvol, found.file) {
            true => Ok(found),
            false => Err(Error::TooLarge),
        }
    }

    pub(super) fn is_home(&self, file: FileId) -> bool {
        file.subvol == self.identity.subvol
    }

    /// The root of the subvolume that a name stands for.
    pub(super) fn lookup_subvolume(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes> {
        let ctx = self.context(caller);
        let subvol = self
            .read_items(caller, Prefetch::Names, |txn| subvolume::named(txn, &ctx, parent, name))?;
        match self.stat(FileId::new(subvol, ROOT)) {
            // Who has mounted a part does not learn what others stand in it.
            Err(Error::Stale) if self.settings.is_part => Err(Error::CrossSubvolume),
            // It was removed this moment.
            Err(Error::Stale) => Err(Error::NotFound),
            found => {
                // Only the directory of snapshots has names of those.
                if found.is_ok() && !snapshots::is_snapshots(parent) {
                    self.readings.is_living(subvol);
                }
                found
            }
        }
    }

    /// What is found where no entry was: the directory of snapshots, in the root of a subvolume.
    pub(super) fn lookup_absent(&self, parent: FileId, name: &[u8]) -> Result<Attributes> {
        if parent.ino != ROOT || name != SNAPSHOTS_NAME {
            return Err(Error::NotFound);
        }
        match self.stat(FileId::new(parent.subvol, Ino(0))) {
            // A snapshot has none.
            Err(Error::Stale) => Err(Error::NotFound),
            found => found,
        }
    }

    /// A listing as a front end knows it.
    pub(super) fn renumbered(&self, dir: FileId, mut listing: Listing) -> Listing {
        for entry in &mut listing.entries {
            entry
                .attributes
                .take_if(|found| !numbering::has_number(self.identity.subvol, found.file));
            entry.ino = self.number(entry_file(dir, entry.ino));
        }
        listing
    }

    /// Whether only the server can make the change: it knows whether there is a directory of
    /// snapshots.
    pub(super) fn is_for_server(&self, call: &Call) -> bool {
        let named = |parent: &FileId, name: &[u8]| parent.ino == ROOT && name == SNAPSHOTS_NAME;
        match call {
            Call::Create { parent, name, .. }
            | Call::Mknod { parent, name, .. }
            | Call::Mkdir { parent, name, .. }
            | Call::Symlink { parent, name, .. }
            | Call::Link { parent, name, .. }
            | Call::Unlink { parent, name }
            | Call::Rmdir { parent, name } => named(parent, name),
            Call::Rename { source_parent, source_name, target_parent, target_name, .. } => {
                named(source_parent, source_name) || named(target_parent, target_name)
            }
            _ => false,
        }
    }

    /// Fails if an object of one subvolume would get a name in another one.
    pub(super) fn check_edge(&self, call: &Call) -> Result<()> {
        let (one, other) = match call {
            Call::Link { file, parent, .. } => (file, parent),
            Call::Rename { source_parent, target_parent, .. } => (source_parent, target_parent),
            _ => return Ok(()),
        };
        if one.subvol == other.subvol { Ok(()) } else { Err(Error::CrossSubvolume) }
    }

    /// Fails if nobody can write to the object, as it is in a snapshot. The server knows.
    pub(super) fn check_writable(&self, caller: &Caller, file: FileId) -> Result<()> {
        let range = KeyRange::attributes(file);
        if self.is_home(file) && !snapshots::is_snapshots(file)
            || self.is_alive() && self.cache.read().covers_as(&range, LockMode::Exclusive)
        {
            return Ok(());
        }
        let (needed, welcome) = (vec![(range, LockMode::Exclusive)], Vec::new());
        let acquire = Call::Acquire { needed, welcome, prefetch: Prefetch::Names };
        self.call(caller, acquire).map(drop)
    }
}
