//! What clients know besides the subvolume that is served: its snapshots, and other subvolumes.
//!
//! Objects of these are leased, read and changed like all others. What is different:
//!
//! - Nothing in a snapshot can be changed, so no exclusive leases are given there, and nobody has
//!   to give any back until it is removed; then all at once (`errands`).
//! - The directory of a subvolume's snapshots has no items in the map. Here it has: an inode, and a
//!   name for each snapshot, which stands for a subvolume. Clients have leases on these.
//! - Names of subvolumes that stand elsewhere mean nothing ([`crate::subvolumes`]). They are not
//!   told; where the directory can be changed they go before its names are told.
//! - Who has mounted a folder only sees nothing of all this.

use std::collections::BTreeMap;

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::format::dirent::{self, Dirents};
use gabion_fs::format::inode::{Flags, Inode};
use gabion_fs::subvolume::{entry_of, of_entry};
use gabion_fs::{Error, FileType, ROOT, Result};
use gabion_link::message::Call;
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_map::format::item::Access;
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Txn as _, Value};

use crate::snapshots::{self, SNAPSHOTS_NAME};

use super::{Rights, Served};

const PERMISSIONS: u32 = 0o7777;

impl Served {
    /// Whether clients may name the object. Inode 0 is where the filesystem keeps what is its own,
    /// and stands for the directory of snapshots.
    pub(super) fn is_served(&self, file: FileId) -> bool {
        match file.ino == Ino(0) {
            false if self.is_home(file) => true,
            false => self.fs.map().access(file.subvol).is_some(),
            true => self.fs.map().access(file.subvol) == Some(Access::Writable),
        }
    }

    /// Whether the object is in the subvolume that is served.
    pub(super) fn is_home(&self, file: FileId) -> bool {
        file.subvol == self.fs.root().subvol
    }

    /// The subvolume that a session with these rights is about.
    pub fn subvolume_of(&self, rights: &Rights) -> SubvolId {
        rights.subvolume.unwrap_or(self.fs.root().subvol)
    }

    /// Whether the subvolume of an object is gone.
    pub(super) fn is_removed(&self, file: FileId) -> bool {
        !self.is_home(file) && self.fs.map().access(file.subvol).is_none()
    }

    /// Whether somebody may have a lease to change it.
    pub(super) fn is_changeable(&self, (range, mode): &Want) -> bool {
        *mode == LockMode::Shared || self.fs.check_changeable(range.file()).is_ok()
    }

    /// Fails if the call would change what nobody can, or go across the edge of a subvolume.
    pub(super) fn check_edges(&self, call: &Call) -> Result<()> {
        let (changed, name): (&[FileId], Option<&Vec<u8>>) = match call {
            Call::Acquire { needed, .. } => {
                return match needed.iter().all(|want| self.is_changeable(want)) {
                    true => Ok(()),
                    false => Err(MapError::ReadOnly.into()),
                };
            }
            Call::Rename { source_parent, source_name, target_parent, target_name, .. } => {
                if source_parent.subvol != target_parent.subvol {
                    return Err(Error::CrossSubvolume);
                }
                self.check_named(*source_parent, source_name)?;
                (&[*target_parent], Some(target_name))
            }
            Call::Link { file, parent, name } => {
                if file.subvol != parent.subvol {
                    return Err(Error::CrossSubvolume);
                }
                (&[*parent], Some(name))
            }
            Call::Create { parent, name, .. }
            | Call::Mknod { parent, name, .. }
            | Call::Mkdir { parent, name, .. }
            | Call::Symlink { parent, name, .. }
            | Call::Unlink { parent, name }
            | Call::Rmdir { parent, name } => (&[*parent], Some(name)),
            Call::Tmpfile { parent: file, .. }
            | Call::Write { file, .. }
            | Call::Setattr { file, .. }
            | Call::SetXattr { file, .. }
            | Call::RemoveXattr { file, .. }
            | Call::Fallocate { file, .. }
            | Call::Copy { target: file, .. } => (&[*file], None),
            Call::Numbers { .. }
            | Call::Read { .. }
            | Call::Seek { .. }
            | Call::Sync { .. }
            | Call::Space { .. }
            | Call::Lock { .. }
            | Call::Unlock { .. }
            | Call::TestLock { .. }
            | Call::Run(_) => return Ok(()),
        };
        let file = changed[0];
        match name {
            Some(name) => self.check_named(file, name),
            None => self.fs.check_changeable(file),
        }
    }

    fn check_named(&self, parent: FileId, name: &[u8]) -> Result<()> {
        match name == SNAPSHOTS_NAME {
            true => self.fs.check_name(parent, name),
            false => self.fs.check_changeable(parent),
        }
    }

    /// The inode of the directory of a subvolume's snapshots.
    pub(super) fn list_inode(&self, list: FileId) -> Result<Inode> {
        let found = self.fs.stat_snapshots(list)?;
        Ok(Inode {
            permissions: found.mode & PERMISSIONS,
            file_type: FileType::Directory,
            flags: Flags::default(),
            uid: found.uid,
            gid: found.gid,
            nlink: found.nlink,
            rdev: 0,
            generation: found.generation,
            parent: ROOT,
            length: found.size,
            place: 0,
            change: found.change,
            atime: found.atime,
            mtime: found.mtime,
            ctime: found.ctime,
            btime: found.btime,
        })
    }

    /// Items of names in `range`, at most `limit`.
    pub(super) fn names_in(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Key, Value)>> {
        let dir = range.file();
        if snapshots::is_snapshots(dir) {
            return Ok(self.snapshot_names(range, limit));
        }
        let scan = || self.fs.run(|txn| Ok(txn.scan(range.first(), range.last(), limit)?));
        let items = scan()?;
        if items.iter().all(|(_, item)| self.void(dir, item).is_empty()) {
            return Ok(items);
        }
        // Whoever wants one of these names finds it free. Where nothing can be changed they stay.
        let items = match self.fs.check_changeable(dir).and_then(|()| self.fs.detach_all_void(dir))
        {
            Ok(_) => scan()?,
            Err(_) => items,
        };
        Ok(items.into_iter().filter_map(|(key, item)| self.without_void(key, item)).collect())
    }

    /// Names in an item that mean nothing.
    fn void(&self, dir: FileId, item: &Value) -> Vec<Vec<u8>> {
        let mut void = Vec::new();
        let Ok(mut entries) = Dirents::decode(item) else { return void };
        while let Ok(Some(entry)) = entries.next_entry() {
            if of_entry(entry.ino).is_some_and(|subvol| !self.fs.stands_in(subvol, dir.subvol)) {
                void.push(entry.name.to_vec());
            }
        }
        void
    }

    fn without_void(&self, key: Key, item: Value) -> Option<(Key, Value)> {
        let mut rest = item.to_vec();
        for name in self.void(key.file(), &item) {
            let entries = Dirents::decode(&rest).ok()?;
            let entry = entries.find(&name).ok()??;
            rest = dirent::remove(&rest, &entry)?;
        }
        Some((key, Value::from(rest)))
    }

    fn snapshot_names(&self, range: &KeyRange, limit: usize) -> Vec<(Key, Value)> {
        let (list, seed) = (range.file(), self.fs.map().name_seed());
        let mut items: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
        for (id, record) in self.fs.map().snapshots(list.subvol) {
            let (name, number) = (&record.extended.name[..], entry_of(id));
            let key = list.key(Kind::DIRENT, dirent::position(name, seed));
            if !range.contains(key) {
                continue;
            }
            let item = match items.get(&key) {
                None => Some(dirent::encode_first(name, number, FileType::Directory)),
                Some(item) => {
                    dirent::insert(item, name, number, FileType::Directory).ok().flatten()
                }
            };
            if let Some(item) = item {
                items.insert(key, item);
            }
        }
        items.into_iter().take(limit).map(|(key, item)| (key, Value::from(item))).collect()
    }
}
