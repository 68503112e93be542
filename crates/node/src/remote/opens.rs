//! What is open here. The server learns of it before it could matter: with the next message.

use std::collections::BTreeMap;

use gabion_base::sync::Mutex;
use gabion_fs::format::inode::Inode;
use gabion_link::message::ToServer;
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Kind};

use super::RemoteFs;

/// Objects that are open, and how often.
#[derive(Default)]
pub(super) struct Opens {
    /// Who has locked this does not ask for the cache.
    files: Mutex<BTreeMap<FileId, u32>>,
    /// Files with advisory locks: others need not be unlocked when they are closed.
    locked: Mutex<BTreeMap<FileId, u32>>,
}

impl Opens {
    /// A lock on the file was asked for, and may be held.
    pub(super) fn may_be_locked(&self, file: FileId) {
        *self.locked.lock().entry(file).or_default() += 1;
    }

    pub(super) fn is_open(&self, file: FileId) -> bool {
        self.files.lock().contains_key(&file)
    }

    pub(super) fn has_locks(&self, file: FileId) -> bool {
        self.locked.lock().contains_key(&file)
    }
}

impl RemoteFs {
    /// Counts an opening. The server has counted it if `is_told`; one of them it has to keep.
    pub(super) fn opened(&self, file: FileId, is_told: bool) {
        let mut files = self.opens.files.lock();
        let count = files.entry(file).or_default();
        *count += 1;
        match (*count == 1, is_told) {
            (true, false) => self.calls.note(ToServer::Opened(file)),
            (false, true) => self.calls.note(ToServer::Closed(file)),
            (true, true) | (false, false) => {}
        }
    }

    /// Takes an opening back.
    pub(super) fn closed(&self, file: FileId) {
        // Before the lock is taken: who has the cache may ask for what is open.
        let has_no_name = self.has_no_name(file);
        let mut files = self.opens.files.lock();
        let Some(count) = files.get_mut(&file) else { return };
        *count -= 1;
        if *count == 0 {
            files.remove(&file);
            self.opens.locked.lock().remove(&file);
            self.calls.note(ToServer::Closed(file));
            if has_no_name {
                // It goes now.
                self.calls.note(ToServer::Unwanted(vec![KeyRange::object(file)]));
            }
        }
    }

    /// Whether the object is known to have lost its last name.
    fn has_no_name(&self, file: FileId) -> bool {
        let cache = self.cache.read();
        let inode = cache.item(file.key(Kind::INODE, 0)).map(|item| Inode::decode(item));
        matches!(inode, Some(Ok(inode)) if inode.nlink == 0)
    }

    /// The session has ended with all that was asked in it. The next one is told what is open
    /// before anything else.
    pub(super) fn tell_opens_again(&self) {
        // Nothing is opened or closed between what is forgotten and what is told.
        let files = self.opens.files.lock();
        self.calls.lose_all();
        for file in files.keys() {
            self.calls.note(ToServer::Opened(*file));
        }
        drop(files);
        self.ping();
    }

    /// Lets the server know that this client lives, and what waits to be told.
    pub fn ping(&self) {
        self.calls.tell(ToServer::Ping);
    }
}
