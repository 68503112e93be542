//! A coordinator in memory, for tests: it can be cut off, and it can lose answers.
//!
//! Handles that [`MemCoordinator::peer`] makes share records and claims, and each is reached on its
//! own, as machines are that ask one etcd over different networks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex, now};
use gabion_block::coordinator::{Claim, Coordinator, CoordinatorError, Revision, Stored};

use crate::{check_name, check_record, claimed, conflict, unavailable};

const NAME: &str = "memory";

/// Whether a handle reaches the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All is well.
    #[default]
    Full,
    /// What is asked is done, and the answer is lost.
    AnswersLost,
    /// Nothing that is asked is heard.
    None,
}

/// A handle to records in memory.
#[derive(Debug, Default)]
pub struct MemCoordinator {
    shared: Arc<Shared>,
    reach: Mutex<Reach>,
}

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    records: BTreeMap<String, Stored>,
    notes: BTreeMap<String, Stored>,
    claims: BTreeMap<String, Holder>,
    /// Revisions of records and notes, and claims, are numbered together.
    last: u64,
}

#[derive(Clone, Debug)]
struct Holder {
    number: u64,
    text: String,
}

impl MemCoordinator {
    /// One without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another handle to the same records, which is reached.
    #[must_use]
    pub fn peer(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), reach: Mutex::default() }
    }

    /// Says how this handle is reached from now on.
    pub fn set_reach(&self, reach: Reach) {
        *self.reach.lock() = reach;
    }

    /// Ends a claim as if its holder had been silent for too long.
    pub fn expire_claim(&self, volume: &str) {
        self.shared.kept.lock().claims.remove(volume);
        self.shared.changed.notify_all();
    }

    /// Does `work` and passes its result on, as far as this handle is reached.
    fn ask<T>(
        &self,
        work: impl FnOnce(&mut Kept) -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        let reach = *self.reach.lock();
        if reach == Reach::None {
            return Err(unavailable(NAME, "it was cut off"));
        }
        let done = work(&mut self.shared.kept.lock());
        self.shared.changed.notify_all();
        match reach {
            Reach::AnswersLost => Err(unavailable(NAME, "the answer was lost")),
            _ => done,
        }
    }
}

impl Kept {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn revision(&self, volume: &str) -> Revision {
        self.records.get(volume).map_or(Revision::ABSENT, |stored| stored.revision)
    }

    fn expect(&self, volume: &str, expected: Revision) -> Result<(), CoordinatorError> {
        let fits = self.revision(volume) == expected;
        if fits { Ok(()) } else { Err(conflict(volume)) }
    }
}

impl Coordinator for MemCoordinator {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn volumes(&self) -> Result<Vec<String>, CoordinatorError> {
        self.ask(|kept| Ok(kept.records.keys().cloned().collect()))
    }

    fn read(&self, volume: &str) -> Result<Option<Stored>, CoordinatorError> {
        check_name(NAME, volume)?;
        self.ask(|kept| Ok(kept.records.get(volume).cloned()))
    }

    fn replace(
        &self,
        volume: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        check_name(NAME, volume)?;
        check_record(NAME, volume, text)?;
        self.ask(|kept| {
            kept.expect(volume, expected)?;
            let revision = Revision(kept.next());
            kept.records.insert(volume.to_owned(), Stored { revision, text: text.to_owned() });
            Ok(revision)
        })
    }

    fn remove(&self, volume: &str, expected: Revision) -> Result<(), CoordinatorError> {
        check_name(NAME, volume)?;
        self.ask(|kept| {
            kept.expect(volume, expected)?;
            kept.records.remove(volume).map(drop).ok_or_else(|| conflict(volume))
        })
    }

    fn changed(
        &self,
        volume: &str,
        known: Revision,
        patience: Duration,
    ) -> Result<Option<Stored>, CoordinatorError> {
        let end = now().saturating_add(patience);
        loop {
            let read = self.read(volume)?;
            if let Some(stored) = read.filter(|stored| stored.revision != known) {
                return Ok(Some(stored));
            }
            let mut kept = self.shared.kept.lock();
            // What happens between the reading and the waiting must not be slept through.
            let is_new = !matches!(kept.revision(volume), Revision::ABSENT)
                && kept.revision(volume) != known;
            if is_new {
                continue;
            }
            let left = end.saturating_sub(now());
            if left.is_zero() {
                return Ok(None);
            }
            self.shared.changed.wait_for(&mut kept, left);
        }
    }

    fn claim(&self, volume: &str, holder: &str) -> Result<Box<dyn Claim>, CoordinatorError> {
        check_name(NAME, volume)?;
        let number = self.ask(|kept| {
            if let Some(holder) = kept.claims.get(volume) {
                return Err(claimed(volume, holder.text.clone()));
            }
            let number = kept.next();
            kept.claims.insert(volume.to_owned(), Holder { number, text: holder.to_owned() });
            Ok(number)
        })?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(MemClaim { shared, volume: volume.to_owned(), number }))
    }

    fn holder(&self, volume: &str) -> Result<Option<String>, CoordinatorError> {
        check_name(NAME, volume)?;
        self.ask(|kept| Ok(kept.claims.get(volume).map(|holder| holder.text.clone())))
    }

    fn note(&self, name: &str) -> Result<Option<Stored>, CoordinatorError> {
        check_name(NAME, name)?;
        self.ask(|kept| Ok(kept.notes.get(name).cloned()))
    }

    fn replace_note(
        &self,
        name: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError> {
        check_name(NAME, name)?;
        check_record(NAME, name, text)?;
        self.ask(|kept| {
            let found = kept.notes.get(name).map_or(Revision::ABSENT, |stored| stored.revision);
            if found != expected {
                return Err(conflict(name));
            }
            let revision = Revision(kept.next());
            kept.notes.insert(name.to_owned(), Stored { revision, text: text.to_owned() });
            Ok(revision)
        })
    }

    fn released(
        &self,
        volume: &str,
        patience: Duration,
    ) -> Result<Option<String>, CoordinatorError> {
        let end = now().saturating_add(patience);
        loop {
            let holder = self.holder(volume)?;
            let left = end.saturating_sub(now());
            if holder.is_none() || left.is_zero() {
                return Ok(holder);
            }
            let mut kept = self.shared.kept.lock();
            // What happens between the asking and the waiting must not be slept through.
            if kept.claims.contains_key(volume) {
                self.shared.changed.wait_for(&mut kept, left);
            }
        }
    }
}

struct MemClaim {
    shared: Arc<Shared>,
    volume: String,
    number: u64,
}

impl Claim for MemClaim {
    fn is_held(&self) -> bool {
        let kept = self.shared.kept.lock();
        kept.claims.get(&self.volume).is_some_and(|holder| holder.number == self.number)
    }
}

impl Drop for MemClaim {
    fn drop(&mut self) {
        let mut kept = self.shared.kept.lock();
        if kept.claims.get(&self.volume).is_some_and(|holder| holder.number == self.number) {
            kept.claims.remove(&self.volume);
            self.shared.changed.notify_all();
        }
    }
}
