//! Objects that several clients change in turns. What is done to them is better done at the
//! server: to take leases from each other for each change would cost more.

use std::collections::BTreeMap;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_map::FileId;

/// An object that was revoked twice within this time is contended, for as long.
const MEMORY: Duration = Duration::from_secs(1);
/// Objects that are remembered.
const FILES_MAX: usize = 4096;

/// When leases on an object were revoked.
#[derive(Default)]
pub(super) struct Contention {
    files: Mutex<BTreeMap<FileId, (Duration, Option<Duration>)>>,
}

impl Contention {
    /// Leases on the object were revoked.
    pub(super) fn revoked(&self, file: FileId, now: Duration) {
        let mut files = self.files.lock();
        if files.len() >= FILES_MAX {
            files.retain(|_, (last, _)| now.saturating_sub(*last) < MEMORY);
        }
        if files.len() < FILES_MAX || files.contains_key(&file) {
            let entry = files.entry(file).or_insert((now, None));
            if entry.0 != now {
                *entry = (now, Some(entry.0));
            }
        }
    }

    /// Whether several clients change the object.
    pub(super) fn is_contended(&self, file: FileId, now: Duration) -> bool {
        let files = self.files.lock();
        let is_recent = |time: Duration| now.saturating_sub(time) < MEMORY;
        let both = |(last, before): &(Duration, Option<Duration>)| {
            is_recent(*last) && before.is_some_and(|before| last.saturating_sub(before) < MEMORY)
        };
        files.get(&file).is_some_and(both)
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    #[test]
    fn an_object_that_is_taken_away_again_and_again_is_contended_for_a_while() {
        let contention = Contention::default();
        let file = FileId::new(SubvolId(1), Ino(1));
        let at = Duration::from_millis;
        contention.revoked(file, at(1000));
        assert!(!contention.is_contended(file, at(1001)));
        contention.revoked(file, at(1500));
        assert!(contention.is_contended(file, at(1501)));
        assert!(!contention.is_contended(file, at(2500)));
        contention.revoked(file, at(9000));
        assert!(!contention.is_contended(file, at(9001)));
    }
}
