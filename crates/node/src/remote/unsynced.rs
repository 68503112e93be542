//! Objects that were changed and not made durable since: files whose bytes were written, which only
//! a sync of the same file makes durable, and whatever else was changed, which any sync does.
//!
//! ```text
//!   written --> unsynced --fsync--> nothing is known against it
//!                  | the server starts again
//!                  v
//!                lost --fsync: fails, once--> nothing is known against it
//! ```
//!
//! A server commits by itself every few seconds, of which nobody here is told. So a file may be
//! called lost that is not; never the other way round.

use std::collections::BTreeSet;

use gabion_base::sync::Mutex;
use gabion_map::FileId;

/// Files that are remembered one by one. With more of them, all are meant.
const FILES_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Files {
    some: BTreeSet<FileId>,
    /// All, but for those in `spared`.
    are_all: bool,
    spared: BTreeSet<FileId>,
}

impl Files {
    fn insert(&mut self, file: FileId) {
        if self.are_all {
            self.spared.remove(&file);
            return;
        }
        self.some.insert(file);
        if self.some.len() > FILES_MAX {
            *self = Self { are_all: true, ..Self::default() };
        }
    }

    fn remove(&mut self, file: FileId) -> bool {
        match self.are_all {
            true if self.spared.len() < FILES_MAX => self.spared.insert(file),
            true => true,
            false => self.some.remove(&file),
        }
    }
}

impl Files {
    fn has(&self, file: FileId) -> bool {
        if self.are_all { !self.spared.contains(&file) } else { self.some.contains(&file) }
    }

    fn is_empty(&self) -> bool {
        !self.are_all && self.some.is_empty()
    }

    fn absorb(&mut self, others: Files) {
        if others.are_all {
            // Spared is who is in neither.
            let mut spared = others.spared;
            spared.retain(|file| !self.has(*file));
            *self = Self { are_all: true, spared, ..Self::default() };
        } else {
            others.some.into_iter().for_each(|file| self.insert(file));
        }
    }
}

/// What is being made durable.
pub(super) struct Marks {
    written: Files,
    changed: Files,
}

/// What is known of objects that were changed.
#[derive(Default)]
pub(super) struct Unsynced {
    written: Mutex<Files>,
    changed: Mutex<Files>,
    /// Files with bytes, or anything else.
    lost: Mutex<(Files, bool)>,
}

impl Unsynced {
    /// Bytes of the file were written.
    pub(super) fn written(&self, file: FileId) {
        self.written.lock().insert(file);
    }

    /// Something else about the object was changed.
    pub(super) fn changed(&self, file: FileId) {
        self.changed.lock().insert(file);
    }

    /// The file, or all files, are about to be made durable. Whoever changes something from now on
    /// says so anew, afterwards.
    pub(super) fn take(&self, file: Option<FileId>) -> Marks {
        let changed = std::mem::take(&mut *self.changed.lock());
        let mut all = self.written.lock();
        let mut written = Files::default();
        match file {
            Some(file) if all.remove(file) => written.insert(file),
            Some(_) => {}
            None => written = std::mem::take(&mut all),
        }
        Marks { written, changed }
    }

    /// They were not made durable, and may be lost already.
    pub(super) fn put_back(&self, marks: Marks, is_lost: bool) {
        if is_lost {
            let mut lost = self.lost.lock();
            lost.0.absorb(marks.written);
            lost.1 |= !marks.changed.is_empty();
        } else {
            self.written.lock().absorb(marks.written);
            self.changed.lock().absorb(marks.changed);
        }
    }

    /// Whether bytes of the file, or of any, may be lost. Told once.
    pub(super) fn take_lost(&self, file: Option<FileId>) -> bool {
        let mut lost = self.lost.lock();
        // Any sync would have made all but bytes durable.
        let is_lost = std::mem::take(&mut lost.1);
        let has_bytes = match file {
            Some(file) => lost.0.remove(file),
            None => !std::mem::take(&mut lost.0).is_empty(),
        };
        is_lost || has_bytes
    }

    /// Whether anything was done and not made durable.
    pub(super) fn is_any(&self) -> bool {
        !self.written.lock().is_empty() || !self.changed.lock().is_empty()
    }

    /// What was done to these objects is lost.
    pub(super) fn lose_files(&self, files: &[FileId]) {
        let mut lost = self.lost.lock();
        lost.1 = true;
        files.iter().for_each(|file| lost.0.insert(*file));
    }

    /// Whatever was not made durable may be lost.
    pub(super) fn lose(&self) {
        let marks = self.take(None);
        self.put_back(marks, true);
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    #[test]
    fn what_was_not_synced_before_the_server_started_again_is_told_once() {
        let unsynced = Unsynced::default();
        for number in 1..4 {
            unsynced.written(file(number));
        }
        drop(unsynced.take(Some(file(2))));
        // A sync that fails leaves what was known.
        let marks = unsynced.take(Some(file(3)));
        unsynced.put_back(marks, false);
        unsynced.lose();
        unsynced.written(file(4));
        let told: Vec<u64> = (1..5).filter(|n| unsynced.take_lost(Some(file(*n)))).collect();
        assert_eq!(told, [1, 3]);
        assert!(!unsynced.take_lost(Some(file(1))) && !unsynced.take_lost(None));
    }

    #[test]
    fn a_sync_of_any_file_makes_all_but_bytes_of_others_durable() {
        let unsynced = Unsynced::default();
        unsynced.written(file(1));
        unsynced.changed(file(2));
        drop(unsynced.take(Some(file(4))));
        unsynced.lose();
        let told: Vec<u64> = (1..5).filter(|n| unsynced.take_lost(Some(file(*n)))).collect();
        assert_eq!(told, [1]);
        unsynced.changed(file(2));
        unsynced.lose();
        let told: Vec<u64> = (1..5).filter(|n| unsynced.take_lost(Some(file(*n)))).collect();
        assert_eq!(told, [1], "whoever syncs first is told");
    }

    #[test]
    fn what_was_written_while_very_many_files_could_not_be_synced_is_told() {
        let unsynced = Unsynced::default();
        for number in 0..=FILES_MAX as u64 {
            unsynced.written(file(number));
        }
        drop(unsynced.take(Some(file(5))));
        drop(unsynced.take(Some(file(6))));
        let marks = unsynced.take(None);
        unsynced.written(file(5));
        unsynced.put_back(marks, false);
        unsynced.lose();
        assert!(unsynced.take_lost(Some(file(5))), "it was written since");
        assert!(!unsynced.take_lost(Some(file(6))));
    }

    #[test]
    fn of_very_many_files_all_are_told() {
        let unsynced = Unsynced::default();
        for number in 0..=FILES_MAX as u64 {
            unsynced.written(file(number));
        }
        drop(unsynced.take(Some(file(5))));
        unsynced.lose();
        assert!(!unsynced.take_lost(Some(file(5))));
        assert!(unsynced.take_lost(Some(file(1_000_000))));
        assert!(unsynced.take_lost(None) && !unsynced.take_lost(None));
    }
}
