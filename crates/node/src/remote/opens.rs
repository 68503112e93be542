//! What is open here. The server learns of it before it could matter: with the next message.

use std::collections::BTreeMap;

use gabion_base::sync::Mutex;
use gabion_link::message::ToServer;
use gabion_map::FileId;

use super::RemoteFs;

/// Objects that are open, and how often.
#[derive(Default)]
pub(super) struct Opens {
    files: Mutex<BTreeMap<FileId, u32>>,
    /// Files with advisory locks: others need not be unlocked when they are closed.
    locked: Mutex<BTreeMap<FileId, u32>>,
    again: Mutex<bool>,
}

impl Opens {
    /// The server has to be told of everything once more.
    pub(super) fn tell_again(&self) {
        *self.again.lock() = true;
    }

    /// A lock on the file was asked for, and may be held.
    pub(super) fn may_be_locked(&self, file: FileId) {
        *self.locked.lock().entry(file).or_default() += 1;
    }

    pub(super) fn has_locks(&self, file: FileId) -> bool {
        self.locked.lock().contains_key(&file)
    }
}

impl RemoteFs {
    /// Counts an opening. The server knows of it if `is_told`.
    pub(super) fn opened(&self, file: FileId, is_told: bool) {
        self.tell_opens_again();
        let mut files = self.opens.files.lock();
        let count = files.entry(file).or_default();
        *count += 1;
        if *count == 1 && !is_told {
            self.calls.note(ToServer::Opened(file));
        }
    }

    /// Takes an opening back.
    pub(super) fn closed(&self, file: FileId) {
        self.tell_opens_again();
        let mut files = self.opens.files.lock();
        let Some(count) = files.get_mut(&file) else { return };
        *count -= 1;
        if *count == 0 {
            files.remove(&file);
            self.opens.locked.lock().remove(&file);
            self.calls.note(ToServer::Closed(file));
        }
    }

    fn tell_opens_again(&self) {
        if !std::mem::take(&mut *self.opens.again.lock()) {
            return;
        }
        for file in self.opens.files.lock().keys() {
            self.calls.note(ToServer::Opened(*file));
        }
    }

    /// Lets the server know that this client lives, and what waits to be told.
    pub fn ping(&self) {
        self.tell_opens_again();
        self.calls.tell(ToServer::Ping);
    }
}
