//! Sessions that are about a folder: which objects are below it.
//!
//! ```text
//!   a directory      its parents lead to the folder
//!   all else         it is open in the session, or
//!                    the session was told a name of it, in a directory that is below,
//!                    and there that name still is
//! ```
//!
//! - A directory knows its parent, so its place is looked up at each call. That it is below is
//!   remembered until a directory gets another parent anywhere (`moves`).
//! - Anything else does not know where its names are. So the names that are sent to a session are
//!   written down before they are sent: an object that was never told is not below, and one whose
//!   name has gone, or whose directory has been moved out, is not any more.
//! - What a session has open was below when it was opened, or made by the session.
//! - What is written down has a bound. Past it the directory that was told longest ago is struck
//!   out, and the session's lease on its names revoked: it has to ask again.
//!
//! It is looked at when a call begins to run: one that runs beside the rename that moves its
//! directory out counts as if it had been before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use gabion_base::ids::Ino;
use gabion_fs::format::dirent::Dirents;
use gabion_fs::{FileType, ROOT};
use gabion_link::message::{Call, Grant, ToServer};
use gabion_link::range::KeyRange;
use gabion_link::table::ClientId;
use gabion_map::{FileId, Key, Kind, Txn, Value};

use super::{Served, Session};

/// Objects in directories that were told to one session, directories not counted.
const TOLD_MAX: usize = 1 << 18;
/// Names of one object that are written down; of more, those that were told last.
const NAMES_MAX: usize = 8;
/// Directories that are remembered to be below.
const BELOW_MAX: usize = 1 << 16;
/// Directories between an object and the folder.
const DEPTH_MAX: usize = 1 << 16;

/// What is known of the objects below a session's folder.
#[derive(Default)]
pub(super) struct Below {
    /// Where names of each object are.
    told: BTreeMap<Ino, Vec<Key>>,
    /// Which objects were told of each directory, the directories in the order of that, and how
    /// many objects these are in all.
    by_dir: BTreeMap<Ino, BTreeSet<Ino>>,
    order: VecDeque<Ino>,
    count: usize,
    /// Directories that are below, since the move of this number.
    dirs: BTreeSet<Ino>,
    moves: u64,
    /// Openings of what is not made again yet ([`super::refinding`]).
    pub(super) late: BTreeMap<Ino, Vec<ToServer>>,
}

impl Below {
    /// Writes down what items are told of names.
    pub(super) fn note<'a>(&mut self, items: impl Iterator<Item = (Key, &'a Value)>) {
        for (key, value) in items.filter(|(key, _)| key.kind == Kind::DIRENT) {
            for ino in objects(value) {
                self.tell(ino, key);
            }
        }
    }

    pub(super) fn tell(&mut self, ino: Ino, key: Key) {
        let places = self.told.entry(ino).or_default();
        places.retain(|place| *place != key);
        if places.len() == NAMES_MAX {
            places.remove(0);
        }
        places.push(key);
        let of_dir = self.by_dir.entry(key.ino).or_insert_with(|| {
            self.order.push_back(key.ino);
            BTreeSet::new()
        });
        self.count += usize::from(of_dir.insert(ino));
    }

    /// Strikes out directories until there is room again, and says which.
    fn make_room(&mut self, limit: usize) -> Vec<Ino> {
        let mut struck = Vec::new();
        while self.count > limit {
            let Some(dir) = self.order.pop_front() else { break };
            let of_dir = self.by_dir.remove(&dir).unwrap_or_default();
            self.count -= of_dir.len();
            for ino in of_dir {
                let Some(places) = self.told.get_mut(&ino) else { continue };
                places.retain(|place| place.ino != dir);
                if places.is_empty() {
                    self.told.remove(&ino);
                }
            }
            struck.push(dir);
        }
        struck
    }

    fn has_dir(&mut self, dir: Ino, moves: u64) -> bool {
        if self.moves != moves || self.dirs.len() >= BELOW_MAX {
            self.dirs.clear();
            self.moves = moves;
        }
        self.dirs.contains(&dir)
    }
}

impl Served {
    /// Whether the session may name the object.
    pub(super) fn is_below(&self, session: &Session, file: FileId) -> bool {
        if session.rights.have_all() {
            return true;
        }
        if let Some(own) = session.rights.subvolume {
            return file.subvol == own || self.fs.map().is_snapshot_of(file.subvol, own);
        }
        if !self.is_home(file) || file.ino == Ino(0) {
            return false;
        }
        match self.inode(file) {
            Err(_) => false,
            Ok(inode) if inode.is_directory() => self.leads_up(session, file),
            Ok(_) if session.has_open(file) => true,
            Ok(_) => {
                let places = session.below.lock().told.get(&file.ino).cloned().unwrap_or_default();
                let is_true =
                    |key: Key| self.has_name(key, file.ino) && self.leads_up(session, key.file());
                places.into_iter().any(is_true)
            }
        }
    }

    /// Whether the parents of the directory lead to the session's folder.
    fn leads_up(&self, session: &Session, dir: FileId) -> bool {
        let root = session.rights.root;
        // Read before the parents are: a move that comes later makes this void.
        let moves = self.moves.load(Ordering::Acquire);
        let mut passed = Vec::new();
        let mut at = dir;
        loop {
            if session.below.lock().has_dir(at.ino, moves) {
                break;
            }
            // A directory that was removed lies nowhere.
            let Ok(inode) = self.inode(at) else { return false };
            if inode.nlink == 0 {
                return false;
            }
            passed.push(at.ino);
            if at.ino == root {
                break;
            }
            if at.ino == ROOT || passed.len() == DEPTH_MAX {
                return false;
            }
            at.ino = inode.parent;
        }
        let mut below = session.below.lock();
        if below.moves == moves {
            below.dirs.extend(passed);
        }
        true
    }

    /// Whether an entry at `key` stands for the object.
    fn has_name(&self, key: Key, ino: Ino) -> bool {
        let item = self.fs.run(|txn| Ok(txn.get(key)?)).ok().flatten();
        item.is_some_and(|item| objects(&item).contains(&ino))
    }

    /// Writes down what a session is told, before it is sent, or what it has made itself.
    pub(super) fn note_told(
        &self,
        session: &Session,
        call: &Call,
        grants: &[Grant],
        updates: &[(Key, Option<Value>)],
    ) {
        if matches!(call, Call::Rename { .. } | Call::Rmdir { .. }) {
            self.moves.fetch_add(1, Ordering::AcqRel);
        }
        if self.is_recovering() {
            self.note_done_again(updates);
        }
        if session.rights.root == ROOT {
            return;
        }
        let granted = grants.iter().flat_map(|grant| &grant.items);
        let granted = granted.map(|(key, value)| (*key, value));
        let updated = updates.iter();
        let updated = updated.filter_map(|(key, value)| Some((*key, value.as_ref()?)));
        let mut below = session.below.lock();
        below.note(granted.chain(updated));
        let struck = below.make_room(TOLD_MAX);
        drop(below);
        let client = ClientId(session.id.0);
        for dir in struck {
            let names = KeyRange::names(self.fs.file(dir));
            self.settle(|grants| grants.table.unwanted(client, &names));
        }
    }
}

/// What the names in an item stand for, but for directories.
fn objects(item: &Value) -> Vec<Ino> {
    let mut found = Vec::new();
    let Ok(mut entries) = Dirents::decode(item) else { return found };
    while let Ok(Some(entry)) = entries.next_entry() {
        if entry.file_type != FileType::Directory {
            found.push(entry.ino);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::SubvolId;

    use super::*;

    fn place(dir: u64, at: u64) -> Key {
        FileId::new(SubvolId(1), Ino(dir)).key(Kind::DIRENT, at)
    }

    #[test]
    fn past_the_bound_the_directory_that_was_told_first_is_struck_out() {
        let mut below = Below::default();
        for dir in 1..=3 {
            for ino in 0..10 {
                below.tell(Ino(dir * 100 + ino), place(dir, ino));
            }
        }
        // Another name of an object in a directory that stays.
        below.tell(Ino(100), place(3, 77));
        assert_eq!(below.make_room(31), []);
        assert_eq!(below.make_room(25), [Ino(1)]);
        assert_eq!((below.count, below.told.len()), (21, 21));
        assert_eq!(below.told[&Ino(100)], [place(3, 77)]);
        assert_eq!(below.make_room(0), [Ino(2), Ino(3)]);
        assert!(below.told.is_empty() && below.by_dir.is_empty() && below.order.is_empty());
    }

    #[test]
    fn an_object_keeps_the_names_that_were_told_last() {
        let mut below = Below::default();
        for at in 0..20 {
            below.tell(Ino(7), place(1, at));
        }
        assert_eq!((below.count, below.told[&Ino(7)].len()), (1, NAMES_MAX));
        assert_eq!(below.told[&Ino(7)].last(), Some(&place(1, 19)));
    }
}
