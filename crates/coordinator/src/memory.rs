//! A coordinator in memory, for tests: it can be cut off, and it can lose answers.
//!
//! Handles that [`MemCoordinator::peer`] makes share records and claims, and each is reached on its
//! own, as machines are that ask one etcd over different networks.
//!
//! A claim ends by itself a lease's time after its holder was heard of last, as in etcd: that of a
//! handle that is cut off, one that was let go of meanwhile, and one whose holder never heard that
//! it had it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex, MutexGuard, now};
use gabion_block::coordinator::{Claim, Coordinator, CoordinatorError, Revision, Stored};

use crate::{check_name, check_record, claimed, conflict, unavailable};

const NAME: &str = "memory";
/// How long a claim lasts whose holder is silent, unless something else is said.
const LEASE: Duration = Duration::from_secs(10);
/// No handle's number.
const NOBODY: u64 = 0;

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
#[derive(Debug)]
pub struct MemCoordinator {
    shared: Arc<Shared>,
    /// This handle among all.
    number: u64,
    reach: Arc<Mutex<Reach>>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
    lease: Duration,
}

#[derive(Debug, Default)]
struct Kept {
    records: BTreeMap<String, Stored>,
    notes: BTreeMap<String, Stored>,
    claims: BTreeMap<String, Holder>,
    /// Revisions of records and notes, claims and handles are numbered together.
    last: u64,
}

#[derive(Clone, Debug)]
struct Holder {
    number: u64,
    text: String,
    /// The handle that it is held by, or nobody.
    handle: u64,
    /// When it ends, unless its holder is heard of before.
    until: Option<Duration>,
}

impl MemCoordinator {
    /// One without records.
    pub fn new() -> Self {
        Self::with_lease(LEASE)
    }

    /// One without records, whose claims last for `lease` when their holders are silent.
    pub fn with_lease(lease: Duration) -> Self {
        let (kept, changed) = (Mutex::default(), Condvar::new());
        Self::to(Arc::new(Shared { kept, changed, lease }))
    }

    fn to(shared: Arc<Shared>) -> Self {
        let number = shared.kept.lock().next();
        Self { shared, number, reach: Arc::default() }
    }

    /// Another handle to the same records, which is reached.
    #[must_use]
    pub fn peer(&self) -> Self {
        Self::to(Arc::clone(&self.shared))
    }

    /// Says how this handle is reached from now on.
    pub fn set_reach(&self, reach: Reach) {
        let mut own = self.reach.lock();
        *own = reach;
        let mut kept = self.shared.kept();
        for holder in kept.claims.values_mut().filter(|holder| holder.handle == self.number) {
            match reach {
                Reach::None => _ = holder.until.get_or_insert(self.shared.end_of_lease()),
                Reach::Full | Reach::AnswersLost => holder.until = None,
            }
        }
        drop(kept);
        self.shared.changed.notify_all();
    }

    /// Ends a claim as if its holder had been silent for too long.
    pub fn expire_claim(&self, volume: &str) {
        self.shared.kept().claims.remove(volume);
        self.shared.changed.notify_all();
    }

    /// Does `work` and passes its result on, as far as this handle is reached.
    fn ask<T>(
        &self,
        work: impl FnOnce(&mut Kept) -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        self.ask_by(|kept, _| work(kept))
    }

    /// The same for what depends on whether the answer will be heard.
    fn ask_by<T>(
        &self,
        work: impl FnOnce(&mut Kept, Reach) -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        let reach = self.reach.lock();
        if *reach == Reach::None {
            return Err(unavailable(NAME, "it was cut off"));
        }
        let done = work(&mut self.shared.kept(), *reach);
        self.shared.changed.notify_all();
        match *reach {
            Reach::AnswersLost => Err(unavailable(NAME, "the answer was lost")),
            _ => done,
        }
    }
}

impl Default for MemCoordinator {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    /// What is kept now, without claims that have ended.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock();
        let now = now();
        kept.claims.retain(|_, holder| holder.until.is_none_or(|until| now < until));
        kept
    }

    /// When a claim ends whose holder is not heard of from now on.
    fn end_of_lease(&self) -> Duration {
        now().saturating_add(self.lease)
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
        let number = self.ask_by(|kept, reach| {
            if let Some(holder) = kept.claims.get(volume) {
                return Err(claimed(volume, holder.text.clone()));
            }
            // That of a holder who hears nothing of it is confirmed by nobody.
            let (handle, until) = match reach {
                Reach::AnswersLost => (NOBODY, Some(self.shared.end_of_lease())),
                Reach::Full | Reach::None => (self.number, None),
            };
            let (number, text) = (kept.next(), holder.to_owned());
            kept.claims.insert(volume.to_owned(), Holder { number, text, handle, until });
            Ok(number)
        })?;
        let (shared, reach) = (Arc::clone(&self.shared), Arc::clone(&self.reach));
        Ok(Box::new(MemClaim { shared, reach, volume: volume.to_owned(), number }))
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
            let mut kept = self.shared.kept();
            // What happens between the asking and the waiting must not be slept through.
            if let Some(holder) = kept.claims.get(volume) {
                let until = holder.until.map_or(left, |until| until.saturating_sub(now()));
                self.shared.changed.wait_for(&mut kept, left.min(until));
            }
        }
    }
}

struct MemClaim {
    shared: Arc<Shared>,
    /// How its holder reaches the coordinator.
    reach: Arc<Mutex<Reach>>,
    volume: String,
    number: u64,
}

impl Claim for MemClaim {
    fn is_held(&self) -> bool {
        let kept = self.shared.kept();
        kept.claims.get(&self.volume).is_some_and(|holder| holder.number == self.number)
    }
}

impl Drop for MemClaim {
    fn drop(&mut self) {
        let reach = self.reach.lock();
        let mut kept = self.shared.kept();
        let Some(holder) = kept.claims.get_mut(&self.volume) else { return };
        if holder.number != self.number {
            return;
        }
        if *reach != Reach::None {
            kept.claims.remove(&self.volume);
            self.shared.changed.notify_all();
        } else {
            holder.handle = NOBODY;
            holder.until.get_or_insert(self.shared.end_of_lease());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Two handles to one, whose claims end soon.
    fn handles() -> (MemCoordinator, MemCoordinator) {
        let one = MemCoordinator::with_lease(Duration::from_millis(50));
        let other = one.peer();
        (one, other)
    }

    #[test]
    fn a_claim_whose_answer_was_lost_ends_by_itself() {
        let (one, other) = handles();
        one.set_reach(Reach::AnswersLost);
        assert!(one.claim("tank", "me").is_err());
        assert_eq!(other.released("tank", LONG), Ok(None));
        // Whoever is heard again confirms only what it knows of.
        assert!(one.claim("tank", "me").is_err());
        one.set_reach(Reach::Full);
        assert_eq!(other.released("tank", LONG), Ok(None));
    }

    #[test]
    fn a_claim_that_is_let_go_of_unheard_ends_by_itself() {
        let (one, other) = handles();
        let claim = one.claim("tank", "me").unwrap();
        one.set_reach(Reach::None);
        drop(claim);
        one.set_reach(Reach::Full);
        assert_eq!(other.released("tank", LONG), Ok(None));
    }

    #[test]
    fn a_claim_lasts_as_long_as_its_holder_is_heard_of() {
        let one = MemCoordinator::with_lease(Duration::ZERO);
        let other = one.peer();
        let claim = one.claim("tank", "me").unwrap();
        assert!(claim.is_held());
        assert!(other.claim("tank", "you").is_err());
        one.set_reach(Reach::None);
        assert!(!claim.is_held());
        let taken = other.claim("tank", "you").unwrap();
        one.set_reach(Reach::Full);
        assert!(!claim.is_held() && taken.is_held());
        drop(claim);
        assert!(taken.is_held());
    }
}
