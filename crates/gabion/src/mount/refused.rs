//! Bytes that the kernel has taken from a program and cannot hand over.
//!
//! A kernel that opens files by itself ([`Locking::Kernel`](super::Locking)) lets a program open a
//! file of a snapshot for writing, and one that collects writes takes the bytes, too. It is told
//! only when it hands them over, and then it must not go on showing them: the snapshot would seem
//! changed to whoever reads it here. Bytes that are over a quota are no bytes of the file either.
//! So
//!
//! 1. the file's pages are dropped;
//! 2. all names are looked up again, so that the file's inode goes once nobody has it open, and
//!    with it what the kernel takes for its length. A kernel takes away what is mounted at names
//!    that it looks up so. Where something is, the length stays wrong until the inode goes by
//!    itself, which is less of an evil.
//!
//! The same is done with a directory in which something was changed for a program that was killed
//! before it was told, as the kernel does not know of the change.
//!
//! Both may have to wait for requests that are under way, so a thread of its own does it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;

use gabion_base::sync::Mutex;
use gabion_fuse::{ByteRange, NodeId, Notifier, mountinfo};

/// Files of which the kernel has bytes that were refused.
pub(super) struct Refused {
    mountpoint: PathBuf,
    notifier: OnceLock<Notifier>,
    files: Mutex<BTreeSet<u64>>,
}

impl Refused {
    /// Of the mount at `mountpoint`.
    pub(super) fn new(mountpoint: PathBuf) -> Self {
        Self { mountpoint, notifier: OnceLock::new(), files: Mutex::default() }
    }

    /// Whom to tell.
    pub(super) fn tell(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier);
    }

    /// What the kernel has of this file or directory is not so.
    pub(super) fn add(self: &Arc<Self>, file: NodeId) {
        let mut files = self.files.lock();
        let is_being_done = !files.is_empty();
        files.insert(file.0);
        drop(files);
        if is_being_done {
            return;
        }
        let refused = Arc::clone(self);
        let started = thread::Builder::new().name("gabion-refused".to_owned());
        if started.spawn(move || refused.drop_all()).is_err() {
            // The next one tries again.
            self.files.lock().clear();
        }
    }

    fn drop_all(&self) {
        let Some(notifier) = self.notifier.get() else { return };
        loop {
            let Some(file) = self.files.lock().first().copied() else { return };
            // A kernel that does not know the file has no bytes of it, and one that is too old to
            // look names up again has at least no wrong bytes.
            let _ = notifier.inval_inode(NodeId(file), ByteRange::All);
            if mountinfo::below(&self.mountpoint).is_ok_and(|below| below.is_none()) {
                let _ = notifier.inc_epoch();
            }
            self.files.lock().remove(&file);
        }
    }
}
