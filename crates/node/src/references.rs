//! Who still refers to which object.
//!
//! ```text
//!   absent --take--> referred to --give back the last--> absent
//!                        |                                  ^
//!                  its last name goes                       |
//!                        v                                  |
//!                    unnamed ------give back the last-------'  and the object may be reaped
//! ```
//!
//! A reference is taken within the transaction that finds the object, while it is locked there.
//! The transaction that removes the last name holds it exclusively. So whoever removes a name sees
//! every reference, and nobody finds an object after that.
//!
//! Objects that a kernel knows are many: the table is cut into shards, each with its own lock, and
//! an entry is as small as can be.

use std::collections::BTreeMap;

use gabion_base::ids::SubvolId;
use gabion_base::sync::{CachePadded, Mutex};
use gabion_map::FileId;

const SHARDS: usize = 64;

/// What kind of reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Somebody remembers the object by its number.
    Lookup,
    /// Somebody has it open.
    Open,
}

/// What is true after references were given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// There are others.
    Some,
    /// That was the last one, of an object that has names as far as is known here.
    None,
    /// That was the last one, of an object without a name.
    Orphan,
}

#[derive(Default)]
struct Entry {
    lookups: u64,
    opens: u32,
    is_unnamed: bool,
    /// Reading was recorded at this second, and the file has not changed since.
    read_recorded: Option<i64>,
}

/// The table of references.
pub(crate) struct References {
    shards: Vec<CachePadded<Mutex<BTreeMap<FileId, Entry>>>>,
}

impl Default for References {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| CachePadded::default()).collect() }
    }
}

impl References {
    fn shard(&self, file: FileId) -> &Mutex<BTreeMap<FileId, Entry>> {
        &self.shards[(file.ino.0 % SHARDS as u64) as usize]
    }

    pub(crate) fn take(&self, file: FileId, reference: Reference) {
        let mut shard = self.shard(file).lock();
        let entry = shard.entry(file).or_default();
        match reference {
            Reference::Lookup => entry.lookups += 1,
            Reference::Open => entry.opens += 1,
        }
    }

    /// Gives back `count` references. More than were taken are as good as all.
    pub(crate) fn give_back(&self, file: FileId, reference: Reference, count: u64) -> Left {
        let mut shard = self.shard(file).lock();
        let Some(entry) = shard.get_mut(&file) else { return Left::None };
        match reference {
            Reference::Lookup => entry.lookups = entry.lookups.saturating_sub(count),
            Reference::Open => {
                entry.opens = u64::from(entry.opens).saturating_sub(count) as u32;
            }
        }
        if entry.lookups > 0 || entry.opens > 0 {
            return Left::Some;
        }
        let is_unnamed = entry.is_unnamed;
        shard.remove(&file);
        if is_unnamed { Left::Orphan } else { Left::None }
    }

    pub(crate) fn is_referred_to(&self, file: FileId) -> bool {
        self.shard(file).lock().contains_key(&file)
    }

    /// Remembers that the object has no name, for when the last reference goes. `Orphan`: there is
    /// none already. An object that gets a name again (`O_TMPFILE`) stays marked: whoever reaps
    /// looks at its names.
    pub(crate) fn mark_unnamed(&self, file: FileId) -> Left {
        match self.shard(file).lock().get_mut(&file) {
            Some(entry) => {
                entry.is_unnamed = true;
                Left::Some
            }
            None => Left::Orphan,
        }
    }

    /// When reading the file was recorded, unless it has changed since.
    pub(crate) fn read_recorded(&self, file: FileId) -> Option<i64> {
        self.shard(file).lock().get(&file)?.read_recorded
    }

    /// Remembers when reading was recorded; `None` after a change.
    pub(crate) fn set_read_recorded(&self, file: FileId, second: Option<i64>) {
        if let Some(entry) = self.shard(file).lock().get_mut(&file) {
            entry.read_recorded = second;
        }
    }

    /// Objects that are referred to.
    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Forgets all objects of a subvolume, and gives them.
    pub(crate) fn forget(&self, subvol: SubvolId) -> Vec<FileId> {
        let mut forgotten = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let gone = shard.extract_if(.., |file, _| file.subvol == subvol);
            forgotten.extend(gone.map(|(file, _)| file));
        }
        forgotten
    }

    /// Forgets everything: nobody is left who could give anything back.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    const FILE: FileId = FileId::new(SubvolId(1), Ino(7));

    #[test]
    fn an_object_is_an_orphan_once_the_last_reference_of_either_kind_is_gone() {
        let references = References::default();
        references.take(FILE, Reference::Lookup);
        references.take(FILE, Reference::Lookup);
        references.take(FILE, Reference::Open);
        assert_eq!(references.mark_unnamed(FILE), Left::Some);
        assert_eq!(references.give_back(FILE, Reference::Lookup, 2), Left::Some);
        assert!(references.is_referred_to(FILE));
        assert_eq!(references.give_back(FILE, Reference::Open, 1), Left::Orphan);
        assert!(!references.is_referred_to(FILE));
        assert_eq!(references.mark_unnamed(FILE), Left::Orphan);
    }

    #[test]
    fn too_many_given_back_count_as_all() {
        let references = References::default();
        references.take(FILE, Reference::Lookup);
        assert_eq!(references.give_back(FILE, Reference::Lookup, 5), Left::None);
        assert_eq!(references.give_back(FILE, Reference::Lookup, 5), Left::None);
        assert_eq!(references.count(), 0);
    }
}
