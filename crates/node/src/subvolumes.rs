//! Subvolumes as directories: making, cloning, finding and removing them.
//!
//! A subvolume knows which other one it stands in, and an entry there names it. An entry elsewhere,
//! in a snapshot or a clone of that one, means nothing and is not shown: a subvolume is in one
//! place only.
//!
//! A subvolume is made before it gets its name, and loses its name before it is removed. A crash
//! in between leaves one without a name, which [`LocalFs::subvolumes`] tells.

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::subvolume::{self, of_entry};
use gabion_fs::{Attributes, Caller, Detail, Error, Listed, ROOT, Result};
use gabion_link::errand::QuotaRow;
use gabion_map::format::item::Access;
use gabion_map::subvolumes::Refusal;
use gabion_map::{FileId, MapError};

use crate::local::LocalFs;
use crate::snapshots;

/// Permissions of a new subvolume's root.
pub(crate) const PERMISSIONS: u32 = 0o755;
/// Entries of a directory that are looked at in one transaction.
const ENTRIES_AT_ONCE: usize = 256;

/// A subvolume that stands in a directory of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The directory.
    pub parent: FileId,
    /// The subvolume.
    pub subvol: SubvolId,
}

/// What an entry of `dir` with this number stands for.
pub(crate) fn entry_file(dir: FileId, ino: Ino) -> FileId {
    match of_entry(ino) {
        Some(subvol) => FileId::new(subvol, ROOT),
        None => FileId::new(dir.subvol, ino),
    }
}

impl LocalFs {
    /// Whether an entry of `dir` is one for those who list it.
    pub(crate) fn is_listed(&self, dir: FileId, entry: &Listed) -> bool {
        of_entry(entry.ino).is_none_or(|subvol| self.stands_in(subvol, dir.subvol))
    }

    pub(crate) fn stands_in(&self, subvol: SubvolId, parent: SubvolId) -> bool {
        self.map.subvolume(subvol).is_some_and(|record| record.parent == parent)
    }

    /// The root of the subvolume that `name` stands for. Counts a lookup. A name that means nothing
    /// goes, so that it is free for something else.
    pub(crate) fn lookup_subvolume(&self, parent: FileId, name: &[u8]) -> Result<Attributes> {
        match self.subvolume_at(parent, name) {
            Ok(subvol) => self.find(FileId::new(subvol, ROOT)),
            Err(Error::NotFound) => {
                // Where nothing can be changed it stays, and does no harm.
                let _ = self.detach_void(parent, name);
                Err(Error::NotFound)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the name of a subvolume that is not here.
    fn detach_void(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_changeable(parent)?;
        let ctx = self.context(&Caller::superuser());
        self.run(|txn| match subvolume::named(txn, &ctx, parent, name)? {
            subvol if self.stands_in(subvol, parent.subvol) => Err(Error::Busy),
            _ => subvolume::detach(txn, &ctx, parent, name).map(drop),
        })
    }

    /// Removes all names from a directory that mean nothing. Whether there were any.
    pub(crate) fn detach_all_void(&self, dir: FileId) -> Result<bool> {
        let mut void = Vec::new();
        let mut cookie = 0;
        loop {
            let listing = self
                .run(|txn| gabion_fs::readdir(txn, dir, cookie, ENTRIES_AT_ONCE, Detail::Names))?;
            let unseen = listing.entries.iter().filter(|entry| !self.is_listed(dir, entry));
            void.extend(unseen.map(|entry| entry.name().to_vec()));
            match listing.entries.last() {
                Some(last) if !listing.is_complete => cookie = last.cookie,
                _ => break,
            }
        }
        void.iter().try_for_each(|name| self.detach_void(dir, name))?;
        Ok(!void.is_empty())
    }

    /// The subvolume that `name` in `parent` stands for.
    fn subvolume_at(&self, parent: FileId, name: &[u8]) -> Result<SubvolId> {
        let ctx = self.context(&Caller::superuser());
        let subvol = self.run(|txn| subvolume::named(txn, &ctx, parent, name))?;
        if self.stands_in(subvol, parent.subvol) { Ok(subvol) } else { Err(Error::NotFound) }
    }

    /// The object at `path`, which begins at the root, and the directory that has its name.
    /// `InvalidArgument`: the path is that of the root, or goes back by "..".
    pub fn resolve<'p>(&self, path: &'p [u8]) -> Result<(FileId, &'p [u8])> {
        let caller = Caller::superuser();
        let mut names = path.split(|byte| *byte == b'/');
        let mut names: Vec<_> =
            names.by_ref().filter(|name| !name.is_empty() && *name != b".").collect();
        let last = names.pop().ok_or(Error::InvalidArgument)?;
        let mut dir = self.root();
        for name in names {
            let found = self.lookup(&caller, dir, name)?;
            self.forget(found.file, 1);
            dir = found.file;
        }
        Ok((dir, last))
    }

    /// The subvolume or snapshot whose root is at `path`. `InvalidArgument`: something else is.
    pub fn subvolume_of(&self, path: &[u8]) -> Result<SubvolId> {
        if path.iter().all(|byte| matches!(byte, b'/' | b'.')) {
            return Ok(self.root().subvol);
        }
        let (parent, name) = self.resolve(path)?;
        let found = self.lookup(&Caller::superuser(), parent, name)?;
        self.forget(found.file, 1);
        match found.file.ino == ROOT && found.file.subvol != parent.subvol {
            true => Ok(found.file.subvol),
            false if snapshots::is_snapshots(parent) => Ok(found.file.subvol),
            false => Err(Error::InvalidArgument),
        }
    }

    /// Makes an empty subvolume at `path`.
    pub fn create_subvolume(&self, path: &[u8]) -> Result<Attached> {
        let (parent, name) = self.resolve(path)?;
        self.check_free(parent, name)?;
        let subvol = self.map.add_subvolume(parent.subvol, self.clock.now().seconds)?;
        let ctx = self.context(&Caller::superuser());
        self.run(|txn| gabion_fs::format_root(txn, &ctx, subvol, PERMISSIONS))?;
        self.attach(parent, name, subvol)
    }

    /// Makes a subvolume at `path` that begins as the snapshot `of` is.
    pub fn clone_snapshot(&self, of: SubvolId, path: &[u8]) -> Result<Attached> {
        let (parent, name) = self.resolve(path)?;
        self.check_free(parent, name)?;
        let subvol = self.map.clone_snapshot(of, parent.subvol, self.clock.now().seconds)?;
        let attached = self.attach(parent, name, subvol)?;
        // What had no name when the snapshot was made is not needed by anybody.
        self.reaper.rescan();
        Ok(attached)
    }

    fn check_free(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_name(parent, name)?;
        match self.lookup(&Caller::superuser(), parent, name) {
            Ok(found) => {
                self.forget(found.file, 1);
                Err(Error::Exists)
            }
            Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a new subvolume its name, or lets it go if that fails.
    fn attach(&self, parent: FileId, name: &[u8], subvol: SubvolId) -> Result<Attached> {
        let ctx = self.context(&Caller::superuser());
        let attached = self.run(|txn| subvolume::attach(txn, &ctx, parent, name, subvol));
        if let Err(error) = attached {
            self.map.remove(&[subvol])?;
            return Err(error);
        }
        self.map.commit()?;
        Ok(Attached { parent, subvol })
    }

    /// Moves the subvolume at `from` to `to`, with all that stands in it. Gives where it was, and
    /// where it is.
    pub fn rename_subvolume(&self, from: &[u8], to: &[u8]) -> Result<(Attached, Attached)> {
        let (source, old) = self.resolve(from)?;
        let (target, new) = self.resolve(to)?;
        self.check_changeable(source)?;
        self.check_free(target, new)?;
        let subvol = self.subvolume_at(source, old)?;
        let ctx = self.context(&Caller::superuser());
        if source.subvol == target.subvol {
            self.run(|txn| {
                subvolume::detach(txn, &ctx, source, old)?;
                subvolume::attach(txn, &ctx, target, new, subvol)
            })?;
            self.map.commit()?;
        } else {
            self.run(|txn| subvolume::attach(txn, &ctx, target, new, subvol))?;
            // From here on that name is the one that means something.
            if let Err(error) = self.map.set_parent(subvol, target.subvol) {
                self.detach_void(target, new)?;
                return Err(error.into());
            }
            // Whoever was looking for it before may have taken it for one that means nothing.
            match self.run(|txn| subvolume::attach(txn, &ctx, target, new, subvol)) {
                Err(Error::Exists) if self.is_at(target, new, subvol) => {}
                Ok(()) => {}
                Err(error) => {
                    self.map.set_parent(subvol, source.subvol)?;
                    return Err(error);
                }
            }
            match self.detach_void(source, old) {
                Ok(()) | Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
            self.map.commit()?;
        }
        Ok((Attached { parent: source, subvol }, Attached { parent: target, subvol }))
    }

    fn is_at(&self, parent: FileId, name: &[u8], subvol: SubvolId) -> bool {
        self.subvolume_at(parent, name).is_ok_and(|found| found == subvol)
    }

    /// Removes the subvolume at `path` with all its snapshots. Refused if subvolumes stand in it or
    /// were cloned from its snapshots, or if one of those is held.
    pub fn delete_subvolume(&self, path: &[u8]) -> Result<Attached> {
        let (parent, name) = self.resolve(path)?;
        self.check_changeable(parent)?;
        let subvol = self.subvolume_at(parent, name)?;
        let ids = self.removable(subvol)?;
        let ctx = self.context(&Caller::superuser());
        self.run(|txn| subvolume::detach(txn, &ctx, parent, name))?;
        self.map.remove(&ids)?;
        Ok(Attached { parent, subvol })
    }

    /// A subvolume and all its snapshots, if they can be removed together.
    pub(crate) fn removable(&self, subvol: SubvolId) -> Result<Vec<SubvolId>> {
        let records = self.map.subvolumes();
        if records.iter().any(|(_, it)| it.access == Access::Writable && it.parent == subvol) {
            return Err(MapError::from(Refusal::HasSubvolumes).into());
        }
        let is_its = |it: &gabion_map::format::item::SubvolRecord| {
            it.access == Access::ReadOnly && it.origin == subvol
        };
        let mut ids: Vec<_> =
            records.iter().filter(|(_, it)| is_its(it)).map(|(id, _)| *id).collect();
        ids.push(subvol);
        self.map.check_removable(&ids).map_err(MapError::from)?;
        Ok(ids)
    }

    /// All subvolumes but the one in use, and where each stands; `None` if it has no name.
    pub fn subvolumes(&self) -> Result<Vec<(SubvolId, Option<Vec<u8>>)>> {
        let mut found = Vec::new();
        for id in self.map.writable_subvolumes() {
            if id != self.root().subvol {
                found.push((id, self.path_of(id)?));
            }
        }
        Ok(found)
    }

    /// All subvolumes that have a quota, and where each stands; `None` if it has no name.
    pub fn quotas(&self) -> Result<Vec<QuotaRow>> {
        let mut found = Vec::new();
        for id in self.map.writable_subvolumes() {
            let Some(quota) = self.map.quota(id) else { continue };
            let path = match id == self.root().subvol {
                true => Some(b"/".to_vec()),
                false => self.path_of(id)?,
            };
            found.push(QuotaRow { id, path, quota });
        }
        Ok(found)
    }

    /// Where a subvolume stands, from the root.
    fn path_of(&self, subvol: SubvolId) -> Result<Option<Vec<u8>>> {
        let mut path = Vec::new();
        let mut at = subvol;
        while at != self.root().subvol {
            let record = self.map.subvolume(at).ok_or(MapError::from(Refusal::Absent))?;
            let Some(within) = crate::differences::path_of_entry(&self.map, record.parent, at)?
            else {
                return Ok(None);
            };
            path.splice(0..0, [&b"/"[..], &within].concat());
            if record.parent == at || path.len() > PATH_MAX {
                return Ok(None);
            }
            at = record.parent;
        }
        Ok(Some(path))
    }
}

/// Bytes that the path of a subvolume has at most.
const PATH_MAX: usize = 1 << 20;
