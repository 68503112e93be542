//! Changes that programs were told are done, and that are not at the server: their session has
//! ended before they were made there, or the server has refused them.
//!
//! ```text
//!   under way --the session ends, Failed--> Loss --a thread that may wait--> whoever keeps it
//! ```
//!
//! Where their objects are, as people name it, is found out before the cache forgets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_fs::Error;
use gabion_fs::format::dirent::Dirents;
use gabion_link::cache::Cache;
use gabion_link::message::{Call, Change};
use gabion_map::{FileId, Kind};

use super::RemoteFs;
use super::pending::Extent;

/// The longest path that is told, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// Changes that were lost at the same time.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Why, for people.
    pub reason: String,
    /// The changes, in the order in which they were made.
    pub changes: Vec<Change>,
    /// Where objects are that the changes are about, as far as it is known: from the root, with a
    /// slash before each name. If only the last names are known, the number of the directory that
    /// they begin in stands before them.
    pub paths: BTreeMap<FileId, Vec<u8>>,
}

/// Who keeps what is lost. Called on a thread that may wait.
pub type LossKeeper = Box<dyn Fn(Loss) + Send + Sync>;

/// A change that the server could not make.
pub(super) struct Refused {
    pub(super) files: Vec<FileId>,
    pub(super) change: Option<Change>,
    pub(super) error: Error,
}

/// What is known of losses to come.
#[derive(Default)]
pub(super) struct Losses {
    keeper: Mutex<Option<Arc<LossKeeper>>>,
    paths: Mutex<BTreeMap<FileId, Vec<u8>>>,
}

impl RemoteFs {
    /// Who is to be told of changes that are lost.
    pub fn set_loss_keeper(&self, keeper: Option<LossKeeper>) {
        *self.losses.keeper.lock() = keeper.map(Arc::new);
    }

    /// Everything is about to be forgotten, and with it where the objects are that changes under
    /// way are about.
    pub(super) fn remember_paths(&self) {
        let subjects = self.pending.map(Subject::of);
        self.remember_paths_of(&subjects);
    }

    /// Where files are, as far as it is known.
    pub(super) fn paths_of(&self, files: &[FileId]) -> BTreeMap<FileId, Vec<u8>> {
        let subject = |file: &FileId| Subject { files: vec![*file], named: None };
        let subjects: Vec<Subject> = files.iter().map(subject).collect();
        paths(&self.cache.read(), self.root(), &subjects)
    }

    fn remember_paths_of(&self, subjects: &[Subject]) {
        if subjects.is_empty() {
            return;
        }
        let found = paths(&self.cache.read(), self.root(), subjects);
        let mut paths = self.losses.paths.lock();
        for (file, path) in found {
            // What begins at the root is known better than what does not, and sooner than later.
            let known = paths.entry(file).or_insert_with(|| path.clone());
            if !known.starts_with(b"/") {
                *known = path;
            }
        }
    }

    /// These changes will not be made at the server. Whoever keeps them is told soon.
    pub(super) fn lose_changes(&self, changes: Vec<Change>, reason: String) {
        if changes.is_empty() {
            return;
        }
        self.report(&format!("{} changes may be lost: {reason}", changes.len()));
        let subjects: Vec<Subject> = changes.iter().map(Subject::of).collect();
        self.remember_paths_of(&subjects);
        let kept: BTreeSet<FileId> =
            self.pending.map(Subject::of).into_iter().flat_map(|subject| subject.files).collect();
        let mut known = self.losses.paths.lock();
        let path = |file: FileId| Some((file, known.get(&file)?.clone()));
        let files = subjects.into_iter().flat_map(|subject| subject.files);
        let paths = files.filter_map(path).collect();
        known.retain(|file, _| kept.contains(file));
        drop(known);
        let Some(keeper) = self.losses.keeper.lock().clone() else { return };
        let loss = Loss { reason, changes, paths };
        self.revocations.later(Box::new(move || keeper(loss)));
    }

    /// What was under way does not come to the server any more.
    pub(super) fn lose_pending(&self, extent: Extent, reason: &str) {
        self.remember_paths();
        let lost = self.pending.lose(extent);
        if !lost.files.is_empty() {
            self.unsynced.lose_files(&lost.files);
        }
        self.lose_changes(lost.changes, reason.to_owned());
    }
}

/// What a change is about.
struct Subject {
    files: Vec<FileId>,
    /// What it has made, where, and under which name.
    named: Option<(FileId, FileId, Vec<u8>)>,
}

impl Subject {
    fn of(change: &Change) -> Self {
        let mut files = change.call.files();
        let made = change.made.zip(files.first()).map(|(ino, dir)| FileId::new(dir.subvol, ino));
        files.extend(made);
        let named = match &change.call {
            Call::Create { parent, name, .. }
            | Call::Mknod { parent, name, .. }
            | Call::Mkdir { parent, name, .. }
            | Call::Symlink { parent, name, .. } => made.map(|made| (made, *parent, name.clone())),
            _ => None,
        };
        Self { files, named }
    }
}

/// Where the objects are that changes are about.
fn paths(cache: &Cache, root: FileId, subjects: &[Subject]) -> BTreeMap<FileId, Vec<u8>> {
    let mut names: BTreeMap<Ino, (FileId, &[u8])> = BTreeMap::new();
    for (key, item) in cache.items().filter(|(key, _)| key.kind == Kind::DIRENT) {
        let Ok(mut entries) = Dirents::decode(item) else { continue };
        while let Ok(Some(entry)) = entries.next_entry() {
            names.insert(entry.ino, (key.file(), entry.name));
        }
    }
    for (made, parent, name) in subjects.iter().filter_map(|subject| subject.named.as_ref()) {
        names.entry(made.ino).or_insert((*parent, name));
    }
    let files = subjects.iter().flat_map(|subject| subject.files.iter().copied());
    files.filter_map(|file| Some((file, path(&names, root, file)?))).collect()
}

/// The names on the way to `file`.
fn path(names: &BTreeMap<Ino, (FileId, &[u8])>, root: FileId, file: FileId) -> Option<Vec<u8>> {
    let mut way: Vec<&[u8]> = Vec::new();
    let (mut at, mut bytes) = (file, 0);
    while at != root && bytes < PATH_BYTES_MAX {
        let Some((parent, name)) = names.get(&at.ino) else { break };
        way.push(name);
        bytes += 1 + name.len();
        at = *parent;
    }
    let mut path = match at == root {
        true if way.is_empty() => return Some(b"/".to_vec()),
        true => Vec::new(),
        false if way.is_empty() => return None,
        false => format!("inode {}", at.ino.0).into_bytes(),
    };
    for name in way.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::SubvolId;

    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    #[test]
    fn a_path_begins_where_names_are_known() {
        let names: BTreeMap<Ino, (FileId, &[u8])> = BTreeMap::from([
            (Ino(2), (file(1), &b"a"[..])),
            (Ino(3), (file(2), &b"b"[..])),
            (Ino(5), (file(4), &b"c"[..])),
            // No filesystem has this.
            (Ino(6), (file(7), &b"x"[..])),
            (Ino(7), (file(6), &b"y"[..])),
        ]);
        let of = |number| path(&names, file(1), file(number));
        assert_eq!(of(3).unwrap(), b"/a/b");
        assert_eq!(of(1).unwrap(), b"/");
        assert_eq!(of(5).unwrap(), b"inode 4/c");
        assert_eq!(of(8), None);
        assert!(of(6).unwrap().len() < 2 * PATH_BYTES_MAX);
    }
}
