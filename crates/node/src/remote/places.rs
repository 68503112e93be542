//! Where the kernel knows directories, and what it has to forget when they turn up elsewhere.
//!
//! A directory has one name in the kernel. If it is found by another one, as another machine has
//! moved it, the kernel moves it, too; but not while it is itself in a rename, which has locked
//! both directories: then it says ESTALE, lets go, and tries once more.
//!
//! ```text
//!   kernel  rename: locks | LOOKUP place .. ESTALE | unlocks, LOOKUP of the path | locks, LOOKUP
//!                              |                        ^ waits a moment
//!   here                       '-- old name: forget ----'
//! ```
//!
//! To forget a name waits for the lock of its directory, so a thread of its own does it. What waits
//! for that is the answer to who looks for a known directory on its path, for a moment only: it may
//! hold the lock itself.
//!
//! All of this is only about that error. Nothing stale is shown without it, and a place that is not
//! known here, as there are too many, costs no more than the error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex, spawn};
use gabion_fs::{Attributes, FileType, IfTaken, RenameRequest};
use gabion_map::FileId;

use super::RemoteFs;

/// Directories that are remembered. With more of them it begins anew.
const PLACES_MAX: usize = 65_536;
/// How long an answer waits at most: who holds the lock may wait for this answer.
const MOMENT: Duration = Duration::from_millis(100);

/// A directory, and a name in it.
type Place = (FileId, Arc<[u8]>);

#[derive(Default)]
struct Known {
    of: BTreeMap<FileId, Place>,
    at: BTreeMap<FileId, BTreeMap<Arc<[u8]>, FileId>>,
}

impl Known {
    /// The directory is here; where it was, if it was elsewhere.
    fn found(&mut self, directory: FileId, place: Place) -> Option<Place> {
        if self.of.get(&directory) == Some(&place) {
            return None;
        }
        if self.of.len() >= PLACES_MAX {
            *self = Self::default();
        }
        let before = self.forget(directory);
        let (parent, name) = place.clone();
        self.clear(parent, &name);
        self.of.insert(directory, place);
        self.at.entry(parent).or_default().insert(name, directory);
        before
    }

    fn is_known(&self, parent: FileId, name: &[u8]) -> bool {
        self.at.get(&parent).is_some_and(|names| names.contains_key(name))
    }

    /// No directory that is known is here any more.
    fn clear(&mut self, parent: FileId, name: &[u8]) -> Option<FileId> {
        let directory = *self.at.get(&parent)?.get(name)?;
        self.forget(directory);
        Some(directory)
    }

    /// The directory is nowhere; where it was.
    fn forget(&mut self, directory: FileId) -> Option<Place> {
        let (parent, name) = self.of.remove(&directory)?;
        let names = self.at.get_mut(&parent).expect("both ways are known");
        names.remove(&name);
        if names.is_empty() {
            self.at.remove(&parent);
        }
        Some((parent, name))
    }
}

/// Directories that the kernel knows by name.
#[derive(Default)]
pub(super) struct Places {
    known: Mutex<Known>,
    /// Names that are being forgotten.
    leaving: Mutex<usize>,
    left: Condvar,
}

impl Places {
    /// Before a name is looked up: if it may lead to a name that is being forgotten, that goes
    /// first.
    pub(super) fn wait_for_moves(&self, parent: FileId, name: &[u8]) {
        let mut leaving = self.leaving.lock();
        if *leaving > 0 && self.known.lock().is_known(parent, name) {
            while *leaving > 0 && !self.left.wait_for(&mut leaving, MOMENT).timed_out() {}
        }
    }

    /// A name stands for no directory any more.
    pub(super) fn removed(&self, parent: FileId, name: &[u8]) {
        self.known.lock().clear(parent, name);
    }

    /// The kernel has moved what it knows, as it was asked to.
    pub(super) fn renamed(&self, request: &RenameRequest<'_>) {
        let (source_parent, source_name) = (request.source_parent, request.source_name);
        let (target_parent, target_name) = (request.target_parent, request.target_name);
        let mut known = self.known.lock();
        let moved = known.clear(source_parent, source_name);
        let replaced = known.clear(target_parent, target_name);
        if let Some(directory) = moved {
            known.found(directory, (target_parent, target_name.into()));
        }
        if let Some(directory) = replaced.filter(|_| request.if_taken == IfTaken::Exchange) {
            known.found(directory, (source_parent, source_name.into()));
        }
    }

    /// The kernel does not know the object any more.
    pub(super) fn forgotten(&self, file: FileId) {
        self.known.lock().forget(file);
    }
}

impl RemoteFs {
    /// The kernel is about to be told what a name stands for.
    pub(super) fn stands_for(&self, parent: FileId, name: &[u8], found: &Attributes) {
        if FileType::of_mode(found.mode) != Some(FileType::Directory) {
            return self.places.removed(parent, name);
        }
        let before = self.places.known.lock().found(found.file, (parent, name.into()));
        if let Some((parent, name)) = before {
            self.kernel_forgets_name(parent, name);
        }
    }

    /// Has the kernel forget a name, soon.
    fn kernel_forgets_name(&self, parent: FileId, name: Arc<[u8]>) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let places = Arc::clone(&self.places);
        *places.leaving.lock() += 1;
        let leaving = Leaving(places);
        // Without a thread it stays known, as if nobody had thought of it.
        let _ = spawn("forget-name", move || {
            kernel.forget_name(parent, &name);
            drop(leaving);
        });
    }
}

/// A name that is being forgotten.
struct Leaving(Arc<Places>);

impl Drop for Leaving {
    fn drop(&mut self) {
        *self.0.leaving.lock() -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_fs::Leave;

    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    fn place(parent: u64, name: &str) -> Place {
        (file(parent), name.as_bytes().into())
    }

    #[test]
    fn a_directory_that_turns_up_elsewhere_was_where_it_was_found_last() {
        let mut known = Known::default();
        assert_eq!(known.found(file(5), place(1, "a")), None);
        assert_eq!(known.found(file(5), place(1, "a")), None);
        assert_eq!(known.found(file(5), place(2, "b")), Some(place(1, "a")));
        // Another one has taken its place, and so the kernel has dropped it there.
        assert_eq!(known.found(file(6), place(2, "b")), None);
        assert_eq!(known.found(file(5), place(3, "c")), None);
        assert_eq!((known.of.len(), known.at.len()), (2, 2));
    }

    #[test]
    fn what_this_kernel_moves_is_known_by_its_new_name() {
        let places = Places::default();
        let found = |number, at: Place| places.known.lock().found(file(number), at);
        found(5, place(1, "a"));
        found(6, place(2, "b"));
        let rename = |if_taken| RenameRequest {
            source_parent: file(1),
            source_name: b"a",
            target_parent: file(2),
            target_name: b"b",
            if_taken,
            leave: Leave::Nothing,
        };
        places.renamed(&rename(IfTaken::Exchange));
        assert_eq!(found(5, place(2, "b")), None);
        places.renamed(&rename(IfTaken::Replace));
        assert_eq!(found(6, place(3, "c")), Some(place(2, "b")));
        assert_eq!(found(5, place(3, "d")), None, "it was replaced");
        places.forgotten(file(6));
        assert_eq!(found(6, place(1, "a")), None);
        places.removed(file(1), b"a");
        assert_eq!(found(6, place(1, "b")), None);
    }

    #[test]
    fn too_many_directories_are_not_remembered() {
        let mut known = Known::default();
        for number in 0..2 * PLACES_MAX as u64 {
            known.found(file(number), place(1, &number.to_string()));
        }
        assert!(known.of.len() <= PLACES_MAX && known.at[&file(1)].len() == known.of.len());
    }
}
