//! The coordinator: one record, replaced by whoever knows its revision.
//!
//! A host may be cut off from it; a change may be made and the answer lost; and a change whose
//! answer was not waited for may be made later, if nobody was faster.

use std::collections::BTreeSet;
use std::time::Duration;

use gabion_base::ids::Uuid;
use gabion_block::epoch::Epoch;
use gabion_block::mirror::Input;
use gabion_block::record::{CopyState, Record, Wish};
use gabion_block::wishes;

use super::host::{Life, copies_mut};
use super::{Event, World};

pub(super) struct Coordinator {
    pub(super) record: Record,
    pub(super) revision: u64,
    /// Disks of which the record has once said that they are in sync.
    pub(super) filled: BTreeSet<Uuid>,
    /// Which hosts are cut off from it.
    pub(super) cut: [bool; 2],
    /// Whether answers get lost now and then.
    pub(super) loses_answers: bool,
}

impl Coordinator {
    pub(super) fn new(record: Record) -> Self {
        let (cut, filled) = ([false; 2], BTreeSet::new());
        Self { record, revision: 1, filled, cut, loses_answers: false }
    }
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replaced {
    Done(u64),
    Conflict,
    Unknown,
}

impl World {
    pub(super) fn read_record(&self, host: usize) -> Option<(Record, u64)> {
        let coordinator = &self.coordinator;
        (!coordinator.cut[host]).then(|| (coordinator.record.clone(), coordinator.revision))
    }

    pub(super) fn replace_record(&mut self, host: usize, known: u64, record: Record) -> Replaced {
        if self.coordinator.cut[host] {
            if self.rng.chance(1, 4) {
                let later = self.delay(Duration::from_secs(2));
                self.schedule(later, Event::LateReplacement { known, record: Box::new(record) });
            }
            return Replaced::Unknown;
        }
        let replaced = self.replace_now(known, record);
        match self.coordinator.loses_answers && self.rng.chance(1, 2) {
            true => Replaced::Unknown,
            false => replaced,
        }
    }

    pub(super) fn replace_now(&mut self, known: u64, record: Record) -> Replaced {
        if self.coordinator.revision != known {
            return Replaced::Conflict;
        }
        // What people read must be what was meant.
        debug_assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
        self.coordinator.revision += 1;
        let before = std::mem::replace(&mut self.coordinator.record, record);
        self.judge_replacements(before);
        Replaced::Done(self.coordinator.revision)
    }

    /// No copy that is replaced has left before the new one was in sync.
    fn judge_replacements(&mut self, mut before: Record) {
        let mut record = self.coordinator.record.clone();
        let now = copies_mut(&mut record);
        let filled = now.iter().filter(|copy| copy.state.is_in_sync());
        self.coordinator.filled.extend(filled.map(|copy| wishes::name(&copy.on)));
        for (before, now) in copies_mut(&mut before).iter().zip(now) {
            if let Wish::Replace { by } = before.wish
                && now.state == CopyState::Removed
                && before.state != CopyState::Removed
                && !self.coordinator.filled.contains(&by)
            {
                let left = wishes::name(&before.on);
                self.violated(format!("{left} left before {by} was in sync"));
            }
        }
    }

    /// Changes the record for a host that has the volume open; says what its mirror is to be told.
    pub(super) fn change_record(
        &mut self,
        life: Life,
        change: impl Fn(&mut Record, Epoch),
    ) -> Option<Input> {
        loop {
            let session = self.session(life)?;
            let (mut record, known) = (session.record.clone(), session.revision);
            let (epoch, nonce) = (session.epoch, session.nonce);
            change(&mut record, Epoch(epoch));
            match self.replace_record(life.host, known, record.clone()) {
                Replaced::Done(revision) => {
                    let session = self.session(life)?;
                    (session.record, session.revision) = (record, revision);
                    return Some(Input::Recorded);
                }
                Replaced::Unknown => return Some(Input::NotRecorded),
                Replaced::Conflict => {}
            }
            let Some((record, revision)) = self.read_record(life.host) else {
                return Some(Input::NotRecorded);
            };
            let last = record.openings.last().map(|last| (last.epoch.0, last.nonce));
            let session = self.session(life)?;
            if last != Some((epoch, nonce)) {
                session.fenced = true;
                return Some(Input::Fenced { reason: "the record has another opening".into() });
            }
            (session.record, session.revision) = (record, revision);
        }
    }
}
