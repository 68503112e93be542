//! How an operation that only reads runs: on what is leased, and again when it has what it lacks.

use gabion_fs::{Caller, Error, Result};
use gabion_link::cache::CacheTxn;
use gabion_link::message::{Call, Prefetch};
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_map::{FileId, LockMode, Stop};

use super::RemoteFs;
use super::needs::Needs;

/// How often an operation acquires what it lacks. It holds on to all that it has needed before, so
/// each time it comes further, but for what others took away meanwhile.
const ATTEMPTS_MAX: usize = 1000;
/// Ranges that an operation asks for at once.
const WANTS_MAX: usize = 1024;

impl RemoteFs {
    /// Runs an operation that reads.
    pub(super) fn read_items<T>(
        &self,
        caller: &Caller,
        prefetch: Prefetch,
        operation: impl FnMut(&mut CacheTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut needs = self.needed.begin();
        let outcome = self.read_with(caller, prefetch, &mut needs, operation);
        if needs.is_any() {
            drop(needs);
            self.relieve(&mut self.cache.write());
        }
        outcome
    }

    /// The same. What it needs stays as long as `needs` do.
    fn read_with<T>(
        &self,
        caller: &Caller,
        prefetch: Prefetch,
        needs: &mut Needs<'_>,
        mut operation: impl FnMut(&mut CacheTxn<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut needed: Vec<KeyRange> = Vec::new();
        let mut gone: Option<FileId> = None;
        let mut at_once = WANTS_MAX;
        for _ in 0..ATTEMPTS_MAX {
            // From here on nothing is revoked behind the back of what is found out.
            self.gate.enter_own();
            if self.is_alive() {
                let cache = self.cache.read();
                let mut txn = CacheTxn::new(&cache);
                match operation(&mut txn) {
                    Err(Error::Stop(Stop::Lease)) => {
                        needs.add(txn.looked_at().iter().copied());
                        needed.retain(|range| !cache.covers(range) && !txn_lacks(&txn, range));
                        needed.extend(txn.into_missing());
                    }
                    outcome => return outcome,
                }
            }
            let wants: Vec<Want> =
                needed.iter().take(at_once).map(|range| (*range, LockMode::Shared)).collect();
            let acquire = Call::Acquire { needed: wants, welcome: Vec::new(), prefetch };
            match self.call(caller, acquire) {
                Ok(_) => at_once = (2 * at_once).min(WANTS_MAX),
                // What a name stood for when the question was sent need not be there any more when
                // it is answered. Who asks anew asks for nothing that is gone, but for the object
                // that is meant, and finds it out by asking for less at once.
                Err(Error::Stale) if gone.is_none() || gone != only_file(&needed, at_once) => {
                    gone = only_file(&needed, at_once);
                    at_once = (at_once / 2).max(1);
                    needed.clear();
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Busy)
    }
}

/// The object that all ranges are of that were asked for, which are the first `count`.
fn only_file(ranges: &[KeyRange], count: usize) -> Option<FileId> {
    let file = ranges.first()?.file();
    ranges.iter().take(count).all(|range| range.file() == file).then_some(file)
}

/// Whether the attempt has found out itself that `range` is missing.
fn txn_lacks(txn: &CacheTxn<'_>, range: &KeyRange) -> bool {
    txn.missing().contains(range)
}
