//! The ways to what is mounted on the filesystem, while the server is away.
//!
//! A kernel that is told of an error where it asks what a name stands for takes away what is
//! mounted there or below. What is mounted has nothing to do with the server, and shall be of use
//! without it, and to those who are refused by it. So what the names on its way stood for last is
//! answered from memory then; what is in the folders on the way is not.

use std::collections::BTreeMap;

use gabion_base::sync::Mutex;
use gabion_fs::{Attributes, Error, Result};
use gabion_map::FileId;

use super::RemoteFs;

/// Names that are remembered. With more of them it begins anew.
const NAMES_MAX: usize = 1024;

/// A name in a directory.
type Name = (FileId, Box<[u8]>);

/// What names stood for last.
#[derive(Default)]
pub(super) struct Ways {
    known: Mutex<BTreeMap<Name, Attributes>>,
}

impl Ways {
    fn find(&self, parent: FileId, name: &[u8]) -> Option<Attributes> {
        self.known.lock().get(&(parent, name.into())).cloned()
    }

    fn found(&self, parent: FileId, name: &[u8], found: &Attributes) {
        let mut known = self.known.lock();
        if known.len() >= NAMES_MAX {
            known.clear();
        }
        known.insert((parent, name.into()), found.clone());
    }

    fn missed(&self, parent: FileId, name: &[u8]) {
        self.known.lock().remove(&(parent, name.into()));
    }
}

impl RemoteFs {
    /// What a name stands for, by `look_up` if the server can be asked.
    pub(super) fn on_the_way(
        &self,
        parent: FileId,
        name: &[u8],
        look_up: impl FnOnce() -> Result<Attributes>,
    ) -> Result<Attributes> {
        let kernel = self.kernel.lock().clone();
        if !kernel.is_some_and(|kernel| kernel.leads_to_mount(name)) {
            return look_up();
        }
        if let Some(found) = self.ways.find(parent, name).filter(|_| !self.is_alive()) {
            return Ok(found);
        }
        let found = look_up();
        match &found {
            Ok(found) => self.ways.found(parent, name, found),
            Err(Error::NotFound | Error::NotDirectory | Error::Stale) => {
                self.ways.missed(parent, name);
            }
            Err(_) => return self.ways.find(parent, name).map_or(found, Ok),
        }
        found
    }

    /// The attributes of what is on such a way, if the server is away.
    pub(super) fn is_on_a_way(&self, file: FileId) -> Option<Attributes> {
        if self.is_alive() {
            return None;
        }
        self.ways.known.lock().values().find(|found| found.file == file).cloned()
    }
}
