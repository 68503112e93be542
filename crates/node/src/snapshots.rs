//! The directory `.snapshots` in the root of a subvolume.
//!
//! It has an entry for each snapshot that has a name, and below that is everything as it was: with
//! its owners and permissions, and not to be changed by anybody. No item of the map stands for the
//! directory itself, so no listing shows it; who knows its name finds it. A directory with that
//! name that was made before there were snapshots is shown instead of it.

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::{Attributes, Caller, Detail, Error, FileType, Listed, Listing, ROOT, Result};
use gabion_map::format::item::Access;
use gabion_map::{FileId, MapError};

use crate::local::LocalFs;
use crate::numbering;
use crate::references::Reference;

/// What the directory is called.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

/// The number of the directory in its subvolume, which no object has.
const SNAPSHOTS: Ino = Ino(0);
/// A directory that everybody may read.
const MODE: u32 = 0o040_555;
/// The cookies of the dots; those of snapshots are their ids behind that.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Whether it is the directory of a subvolume's snapshots.
pub(crate) fn is_snapshots(file: FileId) -> bool {
    file.ino == SNAPSHOTS
}

impl LocalFs {
    /// The directory of the snapshots of a subvolume.
    pub fn snapshots_directory(&self, of: SubvolId) -> FileId {
        FileId::new(of, SNAPSHOTS)
    }

    /// The number by which a front end knows the object.
    pub fn number(&self, file: FileId) -> Ino {
        numbering::number(self.root().subvol, file)
    }

    /// Whether a front end can know the object by a number.
    pub(crate) fn has_number(&self, file: FileId) -> bool {
        numbering::has_number(self.root().subvol, file)
    }

    /// Fails if the object is in a snapshot, or the directory of snapshots itself.
    pub(crate) fn check_changeable(&self, file: FileId) -> Result<()> {
        if !is_snapshots(file) && (file.subvol == self.root().subvol || !self.is_frozen(file)) {
            return Ok(());
        }
        Err(MapError::ReadOnly.into())
    }

    /// Whether the object never changes.
    pub(crate) fn is_frozen(&self, file: FileId) -> bool {
        file.subvol != self.root().subvol && self.map.access(file.subvol) == Some(Access::ReadOnly)
    }

    /// What was found out about an object, if its subvolume is still there: else it may have been
    /// found empty, or its blocks with somebody else's bytes.
    pub(crate) fn unless_removed<T>(&self, file: FileId, outcome: Result<T>) -> Result<T> {
        match file.subvol == self.root().subvol || self.map.access(file.subvol).is_some() {
            true => outcome,
            false => Err(Error::Stale),
        }
    }

    /// Fails if `name` in `parent` is that of the directory of snapshots.
    pub(crate) fn check_name(&self, parent: FileId, name: &[u8]) -> Result<()> {
        match parent.ino == ROOT && name == SNAPSHOTS_NAME && self.has_snapshots_directory(parent) {
            true => Err(MapError::ReadOnly.into()),
            false => self.check_changeable(parent),
        }
    }

    fn has_snapshots_directory(&self, root: FileId) -> bool {
        let caller = Caller::superuser();
        let ctx = self.context(&caller);
        let found = self.run(|txn| gabion_fs::lookup(txn, &ctx, root, SNAPSHOTS_NAME));
        matches!(found, Err(Error::NotFound))
    }

    /// What is found where no entry was: the directory of snapshots, in the root of a subvolume.
    pub(crate) fn lookup_absent(&self, parent: FileId, name: &[u8]) -> Result<Attributes> {
        if parent.ino != ROOT || name != SNAPSHOTS_NAME || self.is_frozen(parent) {
            return Err(Error::NotFound);
        }
        let found = self.stat_snapshots(FileId::new(parent.subvol, SNAPSHOTS))?;
        self.references.take(found.file, Reference::Lookup);
        Ok(found)
    }

    /// A snapshot by its name.
    pub(crate) fn lookup_snapshot(&self, dir: FileId, name: &[u8]) -> Result<Attributes> {
        let root = match name {
            b"." => return self.find(dir),
            b".." => FileId::new(dir.subvol, ROOT),
            name => {
                let found = self.map.find_snapshot(dir.subvol, name);
                FileId::new(found.ok_or(Error::NotFound)?, ROOT)
            }
        };
        self.find(root)
    }

    /// The attributes of the directory of snapshots. It belongs to whom the subvolume belongs to,
    /// and changed when the newest snapshot was made.
    pub(crate) fn stat_snapshots(&self, dir: FileId) -> Result<Attributes> {
        let root = self.run(|txn| gabion_fs::stat(txn, FileId::new(dir.subvol, ROOT)))?;
        let (count, newest) = self.map.count_snapshots(dir.subvol);
        let newest = newest.map_or(root.btime, |created| Timestamp::new(created, 0));
        Ok(Attributes {
            file: dir,
            mode: MODE,
            nlink: 2 + count as u32,
            rdev: 0,
            size: count as u64,
            sectors: 0,
            atime: newest,
            mtime: newest,
            ctime: newest,
            ..root
        })
    }

    /// At most `limit` snapshots after `cookie`, oldest first.
    pub(crate) fn list_snapshots(
        &self,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing> {
        let limit = limit.max(1);
        let mut entries = Vec::new();
        let root = FileId::new(dir.subvol, ROOT);
        for (at, name, file) in [(DOT, &b"."[..], dir), (DOT_DOT, b"..", root)] {
            if cookie < at && entries.len() < limit {
                // No number may be 0: programs take such an entry for none.
                entries.push(Listed::new(self.number(file), FileType::Directory, at, name));
            }
        }
        let snapshots = self.map.snapshots(dir.subvol);
        let cookie_of = |id: SubvolId| DOT_DOT + u64::from(id.0);
        let mut rest = snapshots.iter().filter(|(id, _)| cookie_of(*id) > cookie);
        for (id, record) in rest.by_ref().take(limit - entries.len()) {
            let file = FileId::new(*id, ROOT);
            let number = self.number(file);
            let name = &record.extended.name;
            let mut entry = Listed::new(number, FileType::Directory, cookie_of(*id), name);
            if detail == Detail::Attributes {
                // It may be removed just now.
                entry.attributes = self.find(file).ok();
            }
            entries.push(entry);
        }
        let is_complete = rest.next().is_none();
        Ok(Listing { entries, is_complete })
    }
}
