//! What syncs have made durable of changes that are kept. The server tells of durable changes only
//! now and then; what a program knows to be safe is not to be called lost meanwhile.

use std::collections::BTreeMap;

use gabion_link::message::{Answer, Change};
use gabion_map::FileId;

use crate::operation::written_by;

/// Places in the order of changes, up to which they are durable.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// All but bytes of files, and what decides how many there are.
    items: u64,
    /// Bytes, too.
    all: u64,
    /// Bytes of these files.
    bytes: BTreeMap<FileId, u64>,
}

impl Synced {
    /// The file, or all files, are durable with all changes up to this place.
    pub(super) fn synced(&mut self, file: Option<FileId>, order: u64) {
        self.items = self.items.max(order);
        let bytes = match file {
            Some(file) => self.bytes.entry(file).or_default(),
            None => &mut self.all,
        };
        *bytes = order.max(*bytes);
    }

    /// Whether the change is durable.
    pub(super) fn has(&self, change: &Change) -> bool {
        // It was resolved when it was answered.
        let until = match written_by(&change.call, &Answer::Done) {
            Some(file) => self.all.max(self.bytes.get(&file).copied().unwrap_or(0)),
            None => self.items,
        };
        change.order <= until
    }

    /// No change is kept any more that has a lower place.
    pub(super) fn forget_before(&mut self, order: u64) {
        self.bytes.retain(|_, until| *until >= order);
    }

    /// Of how many files it is known that their bytes are durable.
    #[cfg(test)]
    pub(super) fn files(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_base::time::Timestamp;
    use gabion_fs::{Caller, Changes, Privileges, WriteAt};
    use gabion_link::message::{Call, ChangeNumber};

    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    fn change(order: u64, call: Call) -> Change {
        let (number, now, caller) = (ChangeNumber(0), Timestamp::new(1, 0), Caller::superuser());
        Change { number, order, now, made: None, caller, call }
    }

    #[test]
    fn how_long_a_file_is_is_durable_with_its_bytes() {
        let resize = |order| {
            let changes = Changes { size: Some((9, Privileges::Keep)), ..Changes::default() };
            change(order, Call::Setattr { file: file(2), changes })
        };
        let chmod = |order| {
            let changes = Changes { permissions: Some(0), ..Changes::default() };
            change(order, Call::Setattr { file: file(2), changes })
        };
        let mut synced = Synced::default();
        synced.synced(Some(file(3)), 5);
        assert!(!synced.has(&resize(4)) && synced.has(&chmod(4)));
        synced.synced(Some(file(2)), 4);
        assert!(synced.has(&resize(4)));
    }

    #[test]
    fn a_sync_of_a_file_makes_its_bytes_and_all_names_durable_up_to_then() {
        let write = |order, number| {
            let (file, at, privileges) = (file(number), WriteAt::Offset(0), Privileges::Keep);
            change(order, Call::Write { file, at, privileges, bytes: b"x".to_vec().into() })
        };
        let unlink = |order| change(order, Call::Unlink { parent: file(1), name: b"x".to_vec() });
        let mut synced = Synced::default();
        synced.synced(Some(file(2)), 5);
        assert!(synced.has(&write(5, 2)) && !synced.has(&write(6, 2)) && !synced.has(&write(5, 3)));
        assert!(synced.has(&unlink(5)) && !synced.has(&unlink(6)));
        synced.synced(None, 7);
        assert!(synced.has(&write(7, 3)) && synced.has(&write(6, 2)) && !synced.has(&write(8, 2)));
        synced.synced(Some(file(2)), 3);
        assert!(synced.has(&write(7, 2)) && synced.has(&unlink(7)));
    }
}
