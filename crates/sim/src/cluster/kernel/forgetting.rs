//! What a kernel forgets when it is told, some sooner and some later.
//!
//! Linux waits for locks of directories and pages before it forgets what they keep. Slow kernels do
//! so here, too, but not once the server is silent: when a session may have ended, all has to be
//! forgotten within the time by which a server is more patient than it says.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_base::ids::SubvolId;
use gabion_fs::format::dirent;
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Kind};
use gabion_node::remote;

use super::{Caches, Kernel, LOOK, PAGE, Page, PageKey};
use crate::cluster::Sabotage;

/// How long a slow kernel may take to forget, in microseconds. It is less than what a server's
/// margin leaves when the clock of a client is slow, and it looks at it late.
const LINGER_MAX: u64 = 30_000;

impl Kernel {
    /// Whether nothing may take its time.
    pub fn hurry(&self, is_in_haste: bool) {
        self.is_in_haste.store(is_in_haste, Ordering::Relaxed);
    }

    /// What a slow kernel does before it forgets.
    fn linger(&self) {
        let is_slow = self.traits.forgets_slowly && !self.is_in_haste.load(Ordering::Relaxed);
        if is_slow && self.baton.draw(4) == 0 {
            self.baton.sleep(Duration::from_micros(self.baton.draw(LINGER_MAX)));
        }
    }
}

impl remote::Kernel for Kernel {
    fn forget_attributes(&self, file: FileId) {
        self.linger();
        if self.sabotage != Sabotage::KernelKeepsAttributes {
            self.caches().forget_attributes(file);
        }
    }

    /// No more than it is told to: what else is true has to stay so.
    fn forget_names(&self, ranges: &[KeyRange]) -> bool {
        self.linger();
        if self.sabotage != Sabotage::KernelKeepsNames {
            self.caches().names.retain(|(dir, name), _| {
                let key = dir.key(Kind::DIRENT, dirent::position(name, self.seed));
                !ranges.iter().any(|range| range.contains(key))
            });
        }
        false
    }

    fn forget_all_names(&self) {
        self.linger();
        if self.sabotage != Sabotage::KernelKeepsNames {
            let mut caches = self.caches();
            caches.epoch += 1;
            caches.names.clear();
        }
    }

    fn forget_name(&self, parent: FileId, name: &[u8]) {
        let object = self.object(parent);
        let _own = object.write();
        self.caches().names.remove(&(parent, name.to_vec()));
    }

    fn can_forget_names(&self) -> bool {
        self.traits.can_forget_names
    }

    fn forget_listing(&self, dir: FileId) -> bool {
        if self.sabotage == Sabotage::KernelKeepsListings {
            return true;
        }
        let mut caches = self.caches();
        caches.forget_attributes(dir);
        caches.directories.drop_page(dir)
    }

    fn await_listings(&self, dir: FileId, _: Option<&[u8]>) -> bool {
        drop(self.object(dir).write());
        true
    }

    fn renumber(&self, _: SubvolId) {
        let mut caches = self.caches();
        let era = caches.versions.era + 1;
        *caches = Caches { epoch: caches.epoch + 1, ..Caches::default() };
        caches.versions.era = era;
        drop(caches);
        self.baton.wake(self.place);
    }

    fn forget_bytes(&self, file: FileId, from: u64, to: u64) {
        self.linger();
        if self.sabotage == Sabotage::KernelKeepsPages {
            return;
        }
        self.caches().forget_attributes(file);
        let end = to.div_ceil(PAGE);
        let range = (file, from / PAGE)..(file, end);
        let keys: Vec<PageKey> = self.caches().pages.range(range).map(|(key, _)| *key).collect();
        for key in keys {
            loop {
                let mut caches = self.caches();
                if !matches!(caches.pages.get(&key), Some(Page::Locked)) {
                    caches.pages.remove(&key);
                    break;
                }
                drop(caches);
                self.baton.wait(self.place, LOOK);
            }
        }
    }
}
