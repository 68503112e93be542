//! Objects that lose their last name just when somebody at this client is about to open them.
//!
//! ```text
//!   program  open: finds the name ------------------> OPEN of the number --> descriptor
//!   another             removes it: is it open? no --> gone          '--> ESTALE
//! ```
//!
//! On a local filesystem whoever has found a name can open what it stood for. Here the kernel has
//! only a number, and what it then is told has to be right:
//!
//! - What is opened is counted while the cache is locked, and so is seen by whoever removes names
//!   of it here.
//! - While the server removes a name for this client, which leaves the client its own leases, what
//!   is opened is looked at there once more, after it has been told of the opening. So is what has
//!   no name any more: the last who had it open may just have closed it.
//! - After ESTALE the kernel looks the name up once more, but only once. So what is looked up soon
//!   after somebody has come too late is held for a moment, as if it were open.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fs::{Access, Attributes, Caller, FileType, Result};
use gabion_link::message::{Call, Prefetch};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, LockMode};

use super::RemoteFs;
use super::opens::Told;

/// For how long what is looked up is held after somebody has come too late, and for how long at
/// least it is held then: a program that is looking for a name now is through by then.
const MOMENT: Duration = Duration::from_secs(1);
/// Objects that are held at the same time.
const HELD_MAX: usize = 1024;

/// Removals by the server that this client has asked for.
#[derive(Default)]
pub(super) struct Removals {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// One that is under way.
pub(super) struct Removing<'a>(&'a Removals);

impl Removals {
    pub(super) fn begin(&self) -> Removing<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Removing(self)
    }

    /// What [`Removals::are_none_since`] is to be asked with.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether none was under way at any time since `ended`.
    pub(super) fn are_none_since(&self, ended: u64) -> bool {
        self.begun.load(Ordering::SeqCst) == ended
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Objects that are held for a moment.
#[derive(Default)]
pub(super) struct Held {
    /// What is looked up until then is held.
    until: Mutex<Duration>,
    files: Mutex<VecDeque<(Duration, FileId)>>,
}

impl RemoteFs {
    /// Somebody wanted to open what is gone.
    pub(super) fn came_too_late(&self) {
        *self.held.until.lock() = self.clock.monotonic() + MOMENT;
    }

    /// Holds what was looked up, if somebody may be about to open it for the second time. The cache
    /// is locked by who calls this.
    pub(super) fn hold_for_a_moment(&self, found: &Attributes, caller: &Caller) {
        let now = self.clock.monotonic();
        let is_file = FileType::of_mode(found.mode) == Some(FileType::Regular);
        if !is_file || now >= *self.held.until.lock() {
            return;
        }
        let mut files = self.held.files.lock();
        if files.len() < HELD_MAX {
            files.push_back((now + MOMENT, found.file));
            self.opened(found, caller, Access::EXISTS, Told::NotYet);
        }
    }

    /// Lets go of what was held for long enough.
    pub(super) fn let_go(&self) {
        let now = self.clock.monotonic();
        let next = || self.held.files.lock().pop_front_if(|(until, _)| *until <= now);
        while let Some((_, file)) = next() {
            self.closed(file);
        }
    }

    /// Whether the server has an object of which it was told that it is open.
    pub(super) fn is_there(&self, file: FileId) -> Result<()> {
        let needed = vec![(KeyRange::attributes(file), LockMode::Shared)];
        let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
        let acquire = Call::Acquire { needed, welcome, prefetch };
        self.call(&Caller::superuser(), acquire).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_is_noticed_whenever_it_was_under_way() {
        let removals = Removals::default();
        let before = removals.ended();
        assert!(removals.are_none_since(before));
        let removing = removals.begin();
        assert!(!removals.are_none_since(before) && !removals.are_none_since(removals.ended()));
        drop(removing);
        assert!(!removals.are_none_since(before) && removals.are_none_since(removals.ended()));
    }
}
