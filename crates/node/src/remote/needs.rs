//! What operations under way need is not given up for want of room.
//!
//! ```text
//!   attempt --lacks leases--> needs: what it has looked at, and what it lacks
//!      ^                        |
//!      '------- acquired <------'      Cache::excess passes over all of that
//!   ended ----> nothing is needed, and what is too much is given up
//! ```
//!
//! An operation that lacks leases runs again when it has them. It comes to its end only if what it
//! had is there still, but for what others took away. So a client that has less room than an
//! operation needs goes without room while it is under way, instead of giving up one part for the
//! other again and again.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::sync::Mutex;
use gabion_map::FileId;

/// The objects that operations need, and how many of them do.
#[derive(Default)]
pub(super) struct Needed {
    files: Mutex<BTreeMap<FileId, u32>>,
}

/// What one operation needs, until this is dropped.
pub(super) struct Needs<'n> {
    needed: &'n Needed,
    files: BTreeSet<FileId>,
}

impl Needed {
    /// An operation begins, which needs nothing yet.
    pub(super) fn begin(&self) -> Needs<'_> {
        Needs { needed: self, files: BTreeSet::new() }
    }

    /// Whether an operation needs the object.
    pub(super) fn contains(&self, file: FileId) -> bool {
        self.files.lock().contains_key(&file)
    }
}

impl Needs<'_> {
    /// The operation needs these, too.
    pub(super) fn add(&mut self, files: impl IntoIterator<Item = FileId>) {
        let mut all = self.needed.files.lock();
        for file in files {
            if self.files.insert(file) {
                *all.entry(file).or_default() += 1;
            }
        }
    }

    /// Whether there is anything.
    pub(super) fn is_any(&self) -> bool {
        !self.files.is_empty()
    }
}

impl Drop for Needs<'_> {
    fn drop(&mut self) {
        let mut all = self.needed.files.lock();
        for file in &self.files {
            let count = all.get_mut(file).expect("it was added");
            *count -= 1;
            if *count == 0 {
                all.remove(file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    #[test]
    fn what_two_operations_need_is_needed_until_both_have_ended() {
        let file = |number| FileId::new(SubvolId(1), Ino(number));
        let needed = Needed::default();
        let (mut one, mut other) = (needed.begin(), needed.begin());
        assert!(!one.is_any());
        one.add([file(1), file(2), file(1)]);
        other.add([file(2)]);
        assert!(needed.contains(file(1)) && needed.contains(file(2)));
        drop(one);
        assert!(!needed.contains(file(1)) && needed.contains(file(2)));
        drop(other);
        assert!(needed.files.lock().is_empty());
    }
}
