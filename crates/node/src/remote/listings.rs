//! Directories that the kernel lists by itself.
//!
//! The kernel collects what it is told of a directory's names in pages. When it hears of the end in
//! the ordinary way, what it has collected counts: it asks no more until the pages are dropped, or
//! it has changed a name there itself. Heard of in another way, the end counts for that listing
//! alone.
//!
//! ```text
//!             told             the end
//!   nothing ---------> told -------------> kept      the end is told in the ordinary way
//!      ^                 '--- revoked ---.--'
//!      |                                 v
//!      '---------- settled ---------- doubtful       and here in the other one
//! ```
//!
//! A revocation drops the pages. But somebody may have been answered before it and put that into
//! pages after it: so the directory is doubtful until all who were listing it have come to an end
//! in the kernel and the pages are dropped once more. Listing holds the directory's lock, and who
//! waits for that lock may wait for a READDIR that waits for the server; so a thread of its own
//! does, and nobody waits for it.
//!
//! Names that the kernel has forgotten it looks up one by one while it lists by itself, and gets
//! many at once if it asks for the listing. So when it forgets all names, it forgets all listings.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gabion_base::sync::{Mutex, spawn};
use gabion_fs::Listing;
use gabion_link::range::KeyRange;
use gabion_map::FileId;

use super::{Kernel, RemoteFs};

/// Directories that are known to be told. Of others the kernel keeps nothing.
const DIRECTORIES_MAX: usize = 200_000;

/// What the kernel was told of a directory.
#[derive(Default)]
struct Told {
    /// A name that it has probably looked up.
    name: Option<Box<[u8]>>,
    /// It may have in pages what is no longer true.
    is_doubtful: bool,
    /// How often it became doubtful.
    round: u64,
    /// Something was told since somebody began to settle it.
    is_told_again: bool,
}

/// A directory that is being settled.
struct Doubt {
    dir: FileId,
    round: u64,
    name: Option<Box<[u8]>>,
}

#[derive(Default)]
struct State {
    told: BTreeMap<FileId, Told>,
    /// Kept since the kernel last forgot its names.
    kept: BTreeSet<FileId>,
    /// To be settled.
    queue: VecDeque<FileId>,
    is_settling: bool,
}

/// The listings of one mount.
#[derive(Default)]
pub(super) struct Listings {
    state: Mutex<State>,
}

impl Listings {
    /// The kernel is going to be told these names.
    fn tell(&self, dir: FileId, listing: &Listing) {
        if listing.entries.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.told.len() >= DIRECTORIES_MAX && !state.told.contains_key(&dir) {
            return;
        }
        let told = state.told.entry(dir).or_default();
        told.is_told_again = true;
        let known = listing.entries.iter().find(|entry| entry.attributes.is_some());
        if let Some(known) = known {
            told.name = Some(known.name().into());
        }
    }

    /// Whether the kernel may keep what it was told of a directory, now that it hears of the end.
    fn may_end(&self, dir: FileId) -> bool {
        let mut state = self.state.lock();
        let is_sure = state.told.get(&dir).is_some_and(|told| !told.is_doubtful);
        if is_sure {
            state.kept.insert(dir);
        }
        is_sure
    }

    /// What was told of a directory need not be true any more. Whoever says so has pages dropped
    /// when all is answered that was found out before.
    pub(super) fn revoke(&self, dir: FileId) {
        let mut state = self.state.lock();
        if let Some(told) = state.told.get_mut(&dir) {
            told.is_doubtful = true;
            told.round += 1;
        }
        state.kept.remove(&dir);
    }

    /// The same of all.
    pub(super) fn revoke_all(&self) {
        let mut state = self.state.lock();
        for told in state.told.values_mut() {
            told.is_doubtful = true;
            told.round += 1;
        }
        state.kept.clear();
    }

    fn is_doubtful(&self, dir: FileId) -> bool {
        self.state.lock().told.get(&dir).is_some_and(|told| told.is_doubtful)
    }

    fn doubtful(&self) -> Vec<FileId> {
        let state = self.state.lock();
        let doubtful = state.told.iter().filter(|(_, told)| told.is_doubtful);
        doubtful.map(|(dir, _)| *dir).collect()
    }

    fn take_kept(&self) -> BTreeSet<FileId> {
        std::mem::take(&mut self.state.lock().kept)
    }

    /// Sees to it that directories do not stay doubtful for long.
    fn settle(self: &Arc<Self>, dirs: impl IntoIterator<Item = FileId>, kernel: &Arc<dyn Kernel>) {
        let mut state = self.state.lock();
        state.queue.extend(dirs);
        if state.is_settling || state.queue.is_empty() {
            return;
        }
        state.is_settling = true;
        drop(state);
        let (this, kernel) = (Arc::clone(self), Arc::clone(kernel));
        if spawn("listings", move || this.settle_queue(&*kernel)).is_err() {
            // They stay doubtful until the next one comes.
            self.state.lock().is_settling = false;
        }
    }

    fn settle_queue(&self, kernel: &dyn Kernel) {
        while let Some(doubt) = self.next() {
            let have_ended = kernel.await_listings(doubt.dir, doubt.name.as_deref());
            let is_known = kernel.forget_listing(doubt.dir);
            if have_ended || !is_known {
                self.settled(&doubt);
            }
        }
    }

    /// The next directory to be settled. Ends the thread's work if there is none.
    fn next(&self) -> Option<Doubt> {
        let mut state = self.state.lock();
        while let Some(dir) = state.queue.pop_front() {
            if let Some(told) = state.told.get_mut(&dir).filter(|told| told.is_doubtful) {
                told.is_told_again = false;
                return Some(Doubt { dir, round: told.round, name: told.name.clone() });
            }
        }
        state.is_settling = false;
        None
    }

    fn settled(&self, doubt: &Doubt) {
        let mut state = self.state.lock();
        let Some(told) = state.told.get_mut(&doubt.dir) else { return };
        if told.round != doubt.round {
            // It became doubtful once more, and was queued then.
            return;
        }
        told.is_doubtful = false;
        if !told.is_told_again {
            state.told.remove(&doubt.dir);
        }
    }
}

impl RemoteFs {
    /// The kernel is going to be told these names. Called while nothing can be revoked.
    pub(super) fn tell_listing(&self, dir: FileId, listing: &Listing) {
        self.listings.tell(dir, listing);
    }

    /// Whether the kernel may keep a directory that it has just listed to its end.
    pub(super) fn keeps_listing(&self, dir: FileId) -> bool {
        // Names that it looks up one by one cost more than the listing.
        let can_keep = self.can_forget_names() && self.is_alive();
        if !can_keep || !self.cache.read().covers(&KeyRange::names(dir)) {
            return false;
        }
        let may_end = self.listings.may_end(dir);
        if !may_end && self.listings.is_doubtful(dir) {
            self.settle_listings([dir]);
        }
        may_end
    }

    /// Has the kernel drop what it has of these directories, if that is doubtful.
    pub(super) fn kernel_forgets_listings(&self, dirs: impl Iterator<Item = FileId>) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let mut doubtful: Vec<FileId> =
            dirs.filter(|dir| self.listings.is_doubtful(*dir)).collect();
        doubtful.dedup();
        for dir in &doubtful {
            kernel.forget_listing(*dir);
        }
        self.listings.settle(doubtful, &kernel);
    }

    /// The same for all directories.
    pub(super) fn kernel_forgets_all_listings(&self) {
        self.kernel_forgets_listings(self.listings.doubtful().into_iter());
    }

    /// The kernel has just forgotten all names: to list directories by itself would cost it more
    /// than to ask. That is no matter of truth, so nobody waits for it.
    pub(super) fn kernel_lists_anew(&self) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let kept = self.listings.take_kept();
        if !kept.is_empty() {
            let forget = move || {
                for dir in kept {
                    kernel.forget_listing(dir);
                }
            };
            self.revocations.later(Box::new(forget));
        }
    }

    /// What was told of a directory need not be true. For threads that handle a request.
    pub(super) fn doubt_listing(&self, dir: FileId) {
        self.listings.revoke(dir);
        if self.listings.is_doubtful(dir) {
            self.settle_listings([dir]);
        }
    }

    /// The kernel does not know that names of a directory were changed at its request.
    pub(super) fn unseen(&self, dir: FileId) {
        self.doubt_listing(dir);
        if let Some(kernel) = self.kernel.lock().clone() {
            let names = KeyRange::names(dir);
            let forget = move || {
                kernel.forget_names(&[names]);
            };
            self.revocations.later(Box::new(forget));
        }
    }

    fn settle_listings(&self, dirs: impl IntoIterator<Item = FileId>) {
        if let Some(kernel) = self.kernel.lock().clone() {
            self.listings.settle(dirs, &kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    const DIR: FileId = FileId::new(SubvolId(1), Ino(1));

    fn told() -> Listings {
        let listings = Listings::default();
        listings.state.lock().told.entry(DIR).or_default();
        listings
    }

    #[test]
    fn what_was_not_told_is_not_kept() {
        let listings = Listings::default();
        assert!(!listings.may_end(DIR));
        assert!(told().may_end(DIR));
    }

    #[test]
    fn what_was_revoked_is_kept_only_after_it_was_settled() {
        let listings = told();
        listings.revoke(DIR);
        assert!(!listings.may_end(DIR));
        listings.state.lock().queue.push_back(DIR);
        let doubt = listings.next().unwrap();
        listings.state.lock().told.get_mut(&DIR).unwrap().is_told_again = true;
        listings.settled(&doubt);
        assert!(listings.may_end(DIR));
    }

    #[test]
    fn what_is_revoked_while_it_is_settled_stays_doubtful() {
        let listings = told();
        listings.revoke(DIR);
        listings.state.lock().queue.push_back(DIR);
        let doubt = listings.next().unwrap();
        listings.revoke(DIR);
        listings.settled(&doubt);
        assert!(listings.is_doubtful(DIR));
    }

    #[test]
    fn nothing_is_remembered_of_what_was_settled_and_not_told_again() {
        let listings = told();
        listings.revoke(DIR);
        listings.state.lock().queue.push_back(DIR);
        let doubt = listings.next().unwrap();
        listings.settled(&doubt);
        assert!(listings.state.lock().told.is_empty());
    }
}
