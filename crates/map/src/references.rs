//! Blocks with more than one owner within a subvolume.
//!
//! REFERENCE items say of runs of blocks how many owners they have beyond the first; a run without
//! an item has one. Only extents that are flagged as shared are looked up, so files that were never
//! copied by reference pay nothing.
//!
//! Invariant: the items of a subvolume do not overlap.

use gabion_base::ids::{BlockAddr, Ino, SubvolId};

use crate::error::MapError;
use crate::format::item::Reference;
use crate::format::journal::Run;
use crate::key::{FileId, Kind};
use crate::transaction::LocalTxn;
use crate::txn::{LockMode, Stop, Txn, Value};

/// A stretch of blocks with the same number of further owners.
#[derive(Clone, Copy)]
struct Stretch {
    from: u64,
    to: u64,
    more: u32,
}

impl LocalTxn<'_> {
    /// One more owner of `run`.
    pub(crate) fn add_reference(&mut self, subvol: SubvolId, run: Run) -> Result<(), Stop> {
        let uncounted = self.change_references(subvol, run, |more| more.checked_add(1))?;
        match uncounted.first() {
            None => Ok(()),
            Some(run) => Err(corrupt(run.addr, "more owners than can be counted").into()),
        }
    }

    /// One owner less of `run`. Returns the parts that nobody owns any more.
    pub(crate) fn drop_reference(&mut self, subvol: SubvolId, run: Run) -> Result<Vec<Run>, Stop> {
        self.change_references(subvol, run, |more| more.checked_sub(1))
    }

    /// Replaces the number of further owners of each block of `run`. Returns the runs for which
    /// `change` gives nothing.
    fn change_references(
        &mut self,
        subvol: SubvolId,
        run: Run,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<Vec<Run>, Stop> {
        let ledger = FileId::new(subvol, Ino(0));
        self.ensure(ledger, LockMode::Exclusive)?;
        let (from, to) = (run.addr.0, run.addr.0 + u64::from(run.count));
        let old = self.stretches(ledger, from, to)?;
        let mut new = Vec::new();
        let mut orphaned = Vec::new();
        let mut alter = |from: u64, to: u64, more: u32| match change(more) {
            Some(0) => {}
            Some(more) => new.push(Stretch { from, to, more }),
            None => {
                orphaned.push(Run { addr: BlockAddr(from), count: (to - from) as u32 });
            }
        };
        let mut at = from;
        for stretch in &old {
            if stretch.from > at {
                alter(at, stretch.from, 0);
            }
            alter(stretch.from.max(from), stretch.to.min(to), stretch.more);
            at = stretch.to;
        }
        if at < to {
            alter(at, to, 0);
        }
        for stretch in &old {
            self.changes.items.insert(ledger.key(Kind::REFERENCE, stretch.from), None);
        }
        for stretch in old {
            let outside = [(stretch.from, from), (to, stretch.to)];
            new.extend(
                outside.into_iter().filter(|(from, to)| from < to).map(|(from, to)| Stretch {
                    from,
                    to,
                    more: stretch.more,
                }),
            );
        }
        for stretch in new {
            let count = (stretch.to - stretch.from) as u32;
            let value = Reference { count, more: stretch.more }.encode();
            let key = ledger.key(Kind::REFERENCE, stretch.from);
            self.changes.items.insert(key, Some(Value::from(value)));
        }
        Ok(orphaned)
    }

    /// The stretches that overlap blocks `from..to`, in order.
    fn stretches(&mut self, ledger: FileId, from: u64, to: u64) -> Result<Vec<Stretch>, Stop> {
        let key = |at| ledger.key(Kind::REFERENCE, at);
        let mut items = Vec::new();
        items.extend(self.last(key(0), key(from))?);
        if from + 1 < to {
            items.extend(self.scan(key(from + 1), key(to - 1), usize::MAX)?);
        }
        let mut stretches = Vec::with_capacity(items.len());
        for (key, value) in items {
            let reference =
                Reference::decode(&value).map_err(|source| MapError::BadItem { key, source })?;
            let end = key.at.saturating_add(u64::from(reference.count));
            if stretches.last().is_some_and(|before: &Stretch| before.to > key.at) {
                return Err(corrupt(BlockAddr(key.at), "it overlaps another").into());
            }
            if end > from {
                stretches.push(Stretch { from: key.at, to: end, more: reference.more });
            }
        }
        Ok(stretches)
    }
}

fn corrupt(addr: BlockAddr, reason: &'static str) -> MapError {
    MapError::Corrupt { structure: "reference", addr, reason }
}
