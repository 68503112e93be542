//! What has changed from one snapshot to another, by names.
//!
//! 1. The difference of the two trees tells which objects and which names are not the same; what
//!    both share is not looked at.
//! 2. A name that went and a name that came, of the same object, are a renaming.
//! 3. Objects that changed and kept their names are looked for where their inodes say that they got
//!    one. That is a hint, which old filesystems do not have: what is not there is looked for in
//!    the whole directory, and then among all names. No bytes of files are read.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::{self, Inode};
use gabion_fs::{ROOT, Result, subvolume};
use gabion_map::tree::{Diff, Difference, Tree};
use gabion_map::{FileId, Key, Kind, LocalMap, MapError};

use crate::stretches::{self, Run};
use crate::together::together;

/// Directories that a path may have: more are no path but a damaged tree.
const DEPTH_MAX: usize = 1 << 20;

/// Names that one thread looks for at a time.
const PER_THREAD: usize = 32;

/// Something that is not what it was. Paths begin below the root, without a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is new.
    Added(Vec<u8>),
    /// It is gone.
    Removed(Vec<u8>),
    /// Its bytes, its attributes or its permissions are others. That it was read does not count.
    Changed(Vec<u8>),
    /// It has another name.
    Renamed {
        /// What it was called.
        from: Vec<u8>,
        /// What it is called.
        to: Vec<u8>,
    },
}

impl Change {
    fn path(&self) -> &[u8] {
        match self {
            Self::Added(path) | Self::Removed(path) | Self::Changed(path) => path,
            Self::Renamed { to, .. } => to,
        }
    }
}

/// A name in a directory.
pub(crate) type Name = (Ino, Vec<u8>);
/// An object and its name.
pub(crate) type Named = (Ino, Name);

/// What has changed from the snapshot `old` to the snapshot or subvolume `new`, in the order of
/// paths. Both are looked at as they were committed last.
pub fn differences(map: &LocalMap, old: SubvolId, new: SubvolId) -> Result<Vec<Change>> {
    let pin = map.pin();
    let (old, new) = (Side::new(pin.tree(old), old), Side::new(pin.tree(new), new));
    let mut found = Found::default();
    let mut diff = Diff::new(old.tree, new.tree, Key::first(new.subvol))?;
    while let Some(difference) = diff.next()? {
        found.take(&difference)?;
    }
    found.end_file();
    found.changes(old, new)
}

/// Where the subvolume `of` stands in the one with the id `within`, as that was committed last.
/// Reads all its names.
pub(crate) fn path_of_entry(
    map: &LocalMap,
    within: SubvolId,
    of: SubvolId,
) -> Result<Option<Vec<u8>>> {
    let pin = map.pin();
    let mut side = Side::new(pin.tree(within), within);
    let found = side.find(BTreeSet::from([subvolume::entry_of(of)]))?;
    Ok(found.into_iter().next())
}

/// What the difference of two trees says.
#[derive(Default)]
struct Found {
    added: BTreeMap<Ino, Vec<Name>>,
    removed: BTreeMap<Ino, Vec<Name>>,
    changed: BTreeSet<Ino>,
    /// Objects that only the newer has.
    made: BTreeSet<Ino>,
    /// The file whose DATA items are being gathered, in both trees.
    file: Option<Ino>,
    old: Vec<Run>,
    new: Vec<Run>,
}

impl Found {
    /// All DATA items of a file that differ were gathered. They differ, too, where only somebody
    /// else has the same blocks now, as after a copy of the file.
    fn end_file(&mut self) {
        let Some(file) = self.file.take() else { return };
        if !stretches::changed(&self.old, &self.new).is_empty() {
            self.changed.insert(file);
        }
        self.old.clear();
        self.new.clear();
    }

    fn take(&mut self, difference: &Difference<'_>) -> Result<()> {
        let Difference { key, old, new } = *difference;
        let bad = |source| MapError::BadItem { key, source };
        match key.kind {
            Kind::DIRENT => {
                let (old, new) = (names(key, old)?, names(key, new)?);
                let gone = old.iter().filter(|(name, ino)| new.get(*name) != Some(*ino));
                for (name, ino) in gone {
                    self.removed.entry(*ino).or_default().push((key.ino, name.clone()));
                }
                for (name, ino) in new.iter().filter(|(name, ino)| old.get(*name) != Some(*ino)) {
                    self.added.entry(*ino).or_default().push((key.ino, name.clone()));
                }
            }
            Kind::INODE => {
                let (Some(old), Some(new)) = (old, new) else {
                    if old.is_none() {
                        self.made.insert(key.ino);
                    }
                    return Ok(());
                };
                let (old, new) =
                    (Inode::decode(old).map_err(bad)?, Inode::decode(new).map_err(bad)?);
                // Names that come and go change the times of their directory.
                let times = !new.is_directory() && old.mtime != new.mtime;
                let facts = |of: &Inode| (of.mode(), of.uid, of.gid, of.rdev);
                if times || facts(&old) != facts(&new) {
                    self.changed.insert(key.ino);
                }
            }
            Kind::DATA if self.changed.contains(&key.ino) => {}
            Kind::DATA => {
                if self.file != Some(key.ino) {
                    self.end_file();
                    self.file = Some(key.ino);
                }
                let run = |value| stretches::run(key.at, value).map_err(bad);
                self.old.extend(old.map(run).transpose()?);
                self.new.extend(new.map(run).transpose()?);
            }
            Kind::FILE | Kind::SYMLINK | Kind::XATTR => {
                self.changed.insert(key.ino);
            }
            _ => {}
        }
        Ok(())
    }

    fn changes(mut self, mut old: Side<'_>, mut new: Side<'_>) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let mut linked = BTreeSet::new();
        for (ino, to) in &mut self.added {
            let from = self.removed.get_mut(ino);
            let from = from.map(std::mem::take).unwrap_or_default();
            let is_renamed = !from.is_empty();
            let mut from = from.into_iter();
            for (index, name) in to.iter().enumerate() {
                let to = new.path_of(name)?;
                if is_renamed && index == 0 && self.changed.contains(ino) {
                    changes.push(Change::Changed(to.clone()));
                }
                changes.push(match from.next() {
                    Some(name) => Change::Renamed { from: old.path_of(&name)?, to },
                    None => Change::Added(to),
                });
            }
            for name in from {
                changes.push(Change::Removed(old.path_of(&name)?));
            }
            if self.changed.remove(ino) && !is_renamed && !self.made.contains(ino) {
                linked.insert(*ino);
            }
        }
        // What has more names now than before has all that it had, and changed under those.
        for (_, name) in old.names_of(linked)? {
            changes.push(Change::Changed(new.path_of(&name)?));
        }
        for name in self.removed.values().flatten() {
            changes.push(Change::Removed(old.path_of(name)?));
        }
        for path in new.find(self.changed)? {
            changes.push(Change::Changed(path));
        }
        changes.sort_by(|a, b| (a.path(), a).cmp(&(b.path(), b)));
        Ok(changes)
    }
}

/// The names that a DIRENT item has, and of which objects.
pub(crate) fn names(key: Key, value: Option<&[u8]>) -> Result<BTreeMap<Vec<u8>, Ino>> {
    let mut names = BTreeMap::new();
    let Some(value) = value else { return Ok(names) };
    let bad = |source| MapError::BadItem { key, source };
    let mut entries = Dirents::decode(value).map_err(bad)?;
    while let Some(entry) = entries.next_entry().map_err(bad)? {
        names.insert(entry.name.to_vec(), entry.ino);
    }
    Ok(names)
}

/// Where an object has a name.
enum Looked {
    /// This is it.
    Found(Named),
    /// In this directory, or not.
    Within(Ino),
    /// Nothing says where.
    Anywhere,
    /// It has none.
    Nowhere,
}

/// One of the two, with the paths of its directories as far as they are known.
pub(crate) struct Side<'a> {
    tree: Tree<'a>,
    subvol: SubvolId,
    paths: BTreeMap<Ino, Vec<u8>>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(tree: Tree<'a>, subvol: SubvolId) -> Self {
        Self { tree, subvol, paths: BTreeMap::from([(ROOT, Vec::new())]) }
    }

    pub(crate) fn path_of(&mut self, (dir, name): &Name) -> Result<Vec<u8>> {
        let mut path = self.directory(*dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(path)
    }

    /// The path of a directory, by what it knows of the one above it.
    fn directory(&mut self, dir: Ino) -> Result<Vec<u8>> {
        let mut above = Vec::new();
        let mut at = dir;
        while !self.paths.contains_key(&at) {
            let inode = self.inode(at)?.ok_or(gabion_fs::Error::Stale)?;
            let name = match self.name_at(&inode, at)? {
                Some(name) => Some(name),
                None => self.names_in(inode.parent, &mut BTreeSet::from([at]))?.pop(),
            };
            let (_, (parent, name)) = name.ok_or(gabion_fs::Error::Stale)?;
            above.push((at, name));
            at = parent;
            if above.len() > DEPTH_MAX {
                return Err(gabion_fs::Error::TooDeep);
            }
        }
        let mut path = self.paths[&at].clone();
        for (ino, name) in above.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.paths.insert(ino, path.clone());
        }
        Ok(path)
    }

    fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        let key = FileId::new(self.subvol, ino).key(Kind::INODE, 0);
        let Some(value) = self.tree.get(key)? else { return Ok(None) };
        let inode = Inode::decode(&value).map_err(|source| MapError::BadItem { key, source })?;
        Ok(Some(inode))
    }

    /// A path of each of these objects.
    fn find(&mut self, mut wanted: BTreeSet<Ino>) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        if wanted.remove(&ROOT) {
            found.push(b".".to_vec());
        }
        for (_, name) in self.names_of(wanted)? {
            found.push(self.path_of(&name)?);
        }
        Ok(found)
    }

    /// A name of each of these objects that has one: where its inode says, else in the directory
    /// that the inode says, else, if there is anything left, anywhere.
    pub(crate) fn names_of(&self, wanted: BTreeSet<Ino>) -> Result<Vec<Named>> {
        let wanted: Vec<Ino> = wanted.into_iter().collect();
        let look = |part: &&[Ino]| part.iter().map(|ino| self.look(*ino)).collect::<Result<_>>();
        let parts: Vec<&[Ino]> = wanted.chunks(PER_THREAD).collect();
        let looked: Vec<Vec<Looked>> = together(&parts, look)?;
        let mut found = Vec::new();
        let mut within: BTreeMap<Ino, BTreeSet<Ino>> = BTreeMap::new();
        let mut anywhere = BTreeSet::new();
        for (ino, looked) in wanted.iter().zip(looked.into_iter().flatten()) {
            match looked {
                Looked::Found(name) => found.push(name),
                Looked::Within(dir) => _ = within.entry(dir).or_default().insert(*ino),
                Looked::Anywhere => _ = anywhere.insert(*ino),
                Looked::Nowhere => {}
            }
        }
        for (dir, mut wanted) in within {
            found.extend(self.names_in(dir, &mut wanted)?);
            anywhere.extend(wanted);
        }
        if !anywhere.is_empty() {
            let all = Key::first(self.subvol);
            found.extend(self.names_from(all, |_| true, &mut anywhere)?);
        }
        Ok(found)
    }

    /// Looks where an object's inode says that it has a name.
    fn look(&self, ino: Ino) -> Result<Looked> {
        Ok(match self.inode(ino)? {
            Some(inode) if inode.nlink == 0 => Looked::Nowhere,
            Some(inode) if inode.parent != Ino(0) => match self.name_at(&inode, ino)? {
                Some(name) => Looked::Found(name),
                None => Looked::Within(inode.parent),
            },
            _ => Looked::Anywhere,
        })
    }

    /// The name of an object where its inode says that it has one, if it has.
    fn name_at(&self, inode: &Inode, ino: Ino) -> Result<Option<Named>> {
        let positions = inode::positions(inode.place);
        let dir = FileId::new(self.subvol, inode.parent);
        let is_there =
            |key: Key| key.file() == dir && key.kind == Kind::DIRENT && positions.contains(&key.at);
        let first = dir.key(Kind::DIRENT, positions.start);
        Ok(self.names_from(first, is_there, &mut BTreeSet::from([ino]))?.pop())
    }

    /// Names in a directory of what is wanted, which is wanted no more then.
    fn names_in(&self, dir: Ino, wanted: &mut BTreeSet<Ino>) -> Result<Vec<Named>> {
        let dir = FileId::new(self.subvol, dir);
        let is_there = |key: Key| key.file() == dir && key.kind == Kind::DIRENT;
        self.names_from(dir.key(Kind::DIRENT, 0), is_there, wanted)
    }

    /// Names at and after a key of what is wanted, as long as that has not all been found.
    fn names_from(
        &self,
        first: Key,
        is_there: impl Fn(Key) -> bool,
        wanted: &mut BTreeSet<Ino>,
    ) -> Result<Vec<Named>> {
        let mut found = Vec::new();
        let mut cursor = self.tree.cursor(first)?;
        while let Some((key, value)) = cursor.item() {
            if !is_there(key) {
                break;
            }
            let value = (key.kind == Kind::DIRENT).then_some(value);
            let here = names(key, value)?.into_iter().filter(|(_, ino)| wanted.remove(ino));
            found.extend(here.map(|(name, ino)| (ino, (key.ino, name))));
            if wanted.is_empty() {
                break;
            }
            cursor.advance()?;
        }
        Ok(found)
    }
}
