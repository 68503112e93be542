//! After a crash: where those objects are that sessions of a folder say something about again.
//!
//! What a session was told of its folder ([`super::subtree`]) is forgotten with the server, and an
//! object that is no directory does not know where its names are. So
//!
//! 1. before anything is done again, the folder is walked once for the objects of which its session
//!    speaks, if there are any;
//! 2. what is done again has its names told to all such sessions, whoever made them;
//! 3. an opening of what is not there yet waits until that is made again.
//!
//! Whether a name is still there, and is below the folder, is looked at as always.
//!
//! Absent: what had lost its last name before the crash. Nobody knows whose it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gabion_base::ids::Ino;
use gabion_fs::format::dirent::Dirents;
use gabion_fs::{FileType, ROOT};
use gabion_link::message::ToServer;
use gabion_map::{FileId, Key, Kind, Txn, Value};

use super::{Served, Session};

/// Items of a directory that are looked at in one transaction.
const ITEMS_AT_ONCE: usize = 1000;

impl Served {
    /// Looks for names of what a session of a folder says something about again.
    pub(super) fn find_places(&self, session: &Session, said: &VecDeque<ToServer>) {
        if session.rights.root == ROOT {
            return;
        }
        let mut wanted: BTreeSet<Ino> = said
            .iter()
            .flat_map(files)
            .filter(|file| self.is_home(*file))
            .filter(|file| self.inode(*file).is_ok_and(|inode| !inode.is_directory()))
            .map(|file| file.ino)
            .collect();
        let (mut dirs, mut seen) = (VecDeque::from([session.rights.root]), BTreeSet::new());
        while let Some(dir) = dirs.pop_front() {
            if wanted.is_empty() {
                return;
            }
            if !seen.insert(dir) {
                continue;
            }
            for (key, ino, file_type) in self.entries_of(dir) {
                if file_type == FileType::Directory {
                    dirs.push_back(ino);
                } else if wanted.remove(&ino) {
                    session.below.lock().tell(ino, key);
                }
            }
        }
    }

    /// What a directory has, as far as it can be read.
    fn entries_of(&self, dir: Ino) -> Vec<(Key, Ino, FileType)> {
        let dir = self.fs.file(dir);
        let (mut from, last) = (dir.key(Kind::DIRENT, 0), dir.key(Kind::DIRENT, u64::MAX));
        let mut found = Vec::new();
        loop {
            let items = self.fs.run(|txn| Ok(txn.scan(from, last, ITEMS_AT_ONCE)?));
            let items = items.unwrap_or_default();
            for (key, item) in &items {
                let Ok(mut entries) = Dirents::decode(item) else { continue };
                while let Ok(Some(entry)) = entries.next_entry() {
                    found.push((*key, entry.ino, entry.file_type));
                }
            }
            match items.last() {
                Some((key, _)) if items.len() == ITEMS_AT_ONCE && key.at < u64::MAX => {
                    from = dir.key(Kind::DIRENT, key.at + 1);
                }
                _ => return found,
            }
        }
    }

    /// An opening that counts when its object is made again. False: it counts now.
    pub(super) fn opens_later(&self, session: &Session, message: &ToServer) -> bool {
        let ToServer::Opened { file, .. } = message else { return false };
        if session.rights.root == ROOT || !self.is_home(*file) || self.inode(*file).is_ok() {
            return false;
        }
        session.below.lock().late.entry(file.ino).or_default().push(message.clone());
        true
    }

    /// Something was done again. Whoever uses a folder is told the names.
    pub(super) fn note_done_again(&self, updates: &[(Key, Option<Value>)]) {
        let of_folders = |session: &Arc<Session>| session.rights.root != ROOT;
        for session in self.all_sessions().into_iter().filter(of_folders) {
            let mut below = session.below.lock();
            below.note(updates.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?))));
            let mut openings = Vec::new();
            if !below.late.is_empty() {
                let inodes = updates
                    .iter()
                    .filter(|(key, value)| key.kind == Kind::INODE && value.is_some());
                for (key, _) in inodes {
                    openings.extend(below.late.remove(&key.ino).unwrap_or_default());
                }
            }
            drop(below);
            openings.into_iter().for_each(|opening| self.attend(&session, opening));
        }
    }

    /// Nothing is done again any more.
    pub(super) fn forget_openings(&self) {
        for session in self.all_sessions() {
            session.below.lock().late = BTreeMap::new();
        }
    }
}

/// What a message is about.
fn files(message: &ToServer) -> Vec<FileId> {
    match message {
        ToServer::Opened { file, .. } => vec![*file],
        ToServer::Change(change) | ToServer::Done { change, .. } => change.call.files(),
        ToServer::Call { call, .. } => call.files(),
        ToServer::Locked(locks) => locks.iter().map(|lock| lock.file).collect(),
        _ => Vec::new(),
    }
}
