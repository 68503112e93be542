//! What memory knows of all subvolumes and snapshots, so that the many snapshots cost nothing where
//! they do not matter: those that change are few, names are found at once, and a commit copies only
//! the roots beside those that it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use gabion_base::ids::SubvolId;

use crate::format::item::{Access, SubvolRecord};
use crate::quota::Usage;
use crate::tree::Root;

/// Subvolumes of which the roots stand side by side.
const CHUNK: u32 = 64;

/// A subvolume as it is now.
pub(crate) struct Subvol {
    pub(crate) record: SubvolRecord,
    pub(crate) next_ino: AtomicU64,
    /// What it refers to, if that is limited.
    pub(crate) usage: Option<Arc<Usage>>,
}

/// All subvolumes, by id.
#[derive(Default)]
pub(crate) struct Catalogue {
    all: BTreeMap<SubvolId, Subvol>,
    writable: BTreeSet<SubvolId>,
    names: BTreeMap<(SubvolId, Vec<u8>), SubvolId>,
    /// Those that are being removed.
    leaving: BTreeSet<SubvolId>,
}

impl Deref for Catalogue {
    type Target = BTreeMap<SubvolId, Subvol>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl FromIterator<(SubvolId, SubvolRecord)> for Catalogue {
    fn from_iter<I: IntoIterator<Item = (SubvolId, SubvolRecord)>>(records: I) -> Self {
        let mut catalogue = Self::default();
        records.into_iter().for_each(|(id, record)| catalogue.insert(id, record));
        catalogue
    }
}

impl Catalogue {
    pub(crate) fn insert(&mut self, id: SubvolId, record: SubvolRecord) {
        self.insert_unnamed(id, record);
        self.name(id);
    }

    /// The same, but that nobody finds it by its name yet.
    pub(crate) fn insert_unnamed(&mut self, id: SubvolId, record: SubvolRecord) {
        if !record.is_there() {
            self.leaving.insert(id);
        }
        if record.access == Access::Writable {
            self.writable.insert(id);
        }
        let quota = record.extended.quota.filter(|_| record.access == Access::Writable);
        let usage = quota.map(|quota| Arc::new(Usage::new(&quota)));
        self.all.insert(id, Subvol { next_ino: record.next_ino.into(), record, usage });
    }

    /// From now on a snapshot is found by its name, if it has one.
    pub(crate) fn name(&mut self, id: SubvolId) {
        let Some(record) = self.all.get(&id).map(|subvol| &subvol.record) else { return };
        let is_snapshot = record.access == Access::ReadOnly && record.is_there();
        if is_snapshot && !record.extended.name.is_empty() {
            self.names.insert((record.origin, record.extended.name.clone()), id);
        }
    }

    /// To change anything of it but its name and whether it can be changed.
    pub(crate) fn get_mut(&mut self, id: SubvolId) -> Option<&mut Subvol> {
        self.all.get_mut(&id)
    }

    /// It is being removed: its name is free for others.
    pub(crate) fn leave(&mut self, id: SubvolId) {
        self.leaving.insert(id);
        let Some(record) = self.all.get(&id).map(|subvol| &subvol.record) else { return };
        let name = (record.origin, record.extended.name.clone());
        if self.names.get(&name) == Some(&id) {
            self.names.remove(&name);
        }
    }

    pub(crate) fn remove(&mut self, id: SubvolId) {
        self.leave(id);
        self.leaving.remove(&id);
        self.writable.remove(&id);
        self.all.remove(&id);
    }

    /// Those that are no snapshots.
    pub(crate) fn writable(&self) -> impl Iterator<Item = (SubvolId, &Subvol)> {
        self.writable.iter().map(|id| (*id, &self.all[id]))
    }

    /// What a subvolume refers to, if that is limited.
    pub(crate) fn usage(&self, id: SubvolId) -> Option<&Arc<Usage>> {
        self.all.get(&id)?.usage.as_ref()
    }

    /// Those that are being removed.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = (SubvolId, &Subvol)> {
        self.leaving.iter().map(|id| (*id, &self.all[id]))
    }

    /// The snapshots of `of` that have a name, by name.
    pub(crate) fn all_named(&self, of: SubvolId) -> impl Iterator<Item = (SubvolId, &Subvol)> {
        let names = self.names.range((of, Vec::new())..).take_while(move |(key, _)| key.0 == of);
        names.map(|(_, id)| (*id, &self.all[id]))
    }

    /// Whose name this is, among the snapshots of `of`.
    pub(crate) fn named(&self, of: SubvolId, name: &[u8]) -> Option<SubvolId> {
        self.names.get(&(of, name.to_vec())).copied()
    }
}

/// The roots of all trees that can be read. A copy shares what is not changed.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    chunks: BTreeMap<u32, Arc<BTreeMap<SubvolId, Root>>>,
}

impl FromIterator<(SubvolId, Root)> for Roots {
    fn from_iter<I: IntoIterator<Item = (SubvolId, Root)>>(roots: I) -> Self {
        let mut all = Self::default();
        roots.into_iter().for_each(|(id, root)| all.insert(id, root));
        all
    }
}

impl Roots {
    /// The root of a subvolume's tree; an empty one if there is none to be read.
    pub fn root(&self, id: SubvolId) -> Root {
        let chunk = self.chunks.get(&(id.0 / CHUNK));
        chunk.and_then(|chunk| chunk.get(&id)).copied().unwrap_or(Root::EMPTY)
    }

    /// Puts a root.
    pub fn insert(&mut self, id: SubvolId, root: Root) {
        Arc::make_mut(self.chunks.entry(id.0 / CHUNK).or_default()).insert(id, root);
    }

    /// Lets a tree be read no more.
    pub fn remove(&mut self, id: SubvolId) {
        if let Some(chunk) = self.chunks.get_mut(&(id.0 / CHUNK)) {
            Arc::make_mut(chunk).remove(&id);
        }
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (SubvolId, Root)> {
        self.chunks.values().flat_map(|chunk| chunk.iter().map(|(id, root)| (*id, *root)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_roots_is_not_changed_with_the_original() {
        let root = |level| Root { ptr: None, level };
        let mut roots: Roots = (0..200).map(|id| (SubvolId(id), root(1))).collect();
        let copy = roots.clone();
        roots.insert(SubvolId(70), root(2));
        roots.remove(SubvolId(71));
        assert_eq!((roots.root(SubvolId(70)), copy.root(SubvolId(70))), (root(2), root(1)));
        assert_eq!((roots.root(SubvolId(71)), copy.root(SubvolId(71))), (Root::EMPTY, root(1)));
        assert_eq!((roots.iter().count(), copy.iter().count()), (199, 200));
    }
}
