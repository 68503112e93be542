//! The life of a block, from the free ones and back to them.
//!
//! ```text
//!   free -- allocate --> busy, nobody's -- own --> in use -- retire --> busy, in use no more
//!    ^                      |                                                 |
//!    +------ give_back -----+                                                 | the commit
//!    +------ release <--------------------------------------------------------+ is durable
//! ```
//!
//! - Busy blocks are nobody else's to get.
//! - Blocks are owned for the next commit's page together with the item that references them.
//! - Retired blocks are not in the next commit's page, but stay busy, because the last commit and
//!   the journal may reference them.
//!
//! [`Allocator::take`] is the first two steps of a replay, which knows already where the blocks
//! are.
//!
//! Runs come from items and the journal, so each is located first: on the device, within one
//! group, beside the fixed structures. Taking, retiring and releasing fail if blocks are in use
//! that should not be, or the other way round.

use std::sync::atomic::Ordering;

use gabion_base::ids::{BlockAddr, Txg};

use crate::alloc::group::Want;
use crate::alloc::{Allocator, STREAMS};
use crate::error::MapError;
use crate::format::journal::Run;
use crate::layout::GROUP_BLOCKS;

/// What blocks are for, and which stream of them this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A tree node: four aligned blocks.
    Node,
    /// Up to `count` blocks of file data; writers with different hints use different groups.
    Data {
        /// Most blocks wanted; fewer may come, at least one.
        count: u32,
        /// Anything that tells writers apart.
        hint: u64,
    },
}

impl Allocator {
    /// Gives out blocks. They are nobody's until [`Allocator::own`]. Fails with
    /// [`MapError::NoSpace`] only if there is nothing that fits.
    pub fn allocate(&self, purpose: Purpose) -> Result<Run, MapError> {
        match purpose {
            Purpose::Node => self.allocate_from(0, Want::Node)?.ok_or(MapError::NoSpace),
            Purpose::Data { count, hint } => {
                let stream = 1 + (hint % STREAMS as u64) as usize;
                let count = u64::from(count);
                let spare = self.clusters.load(Ordering::Acquire)
                    - self.layout.load().reserve_clusters as i64
                    - count.div_ceil(4) as i64;
                if spare < 0
                    && let Some(run) = self.allocate_from(stream, Want::Fragment(count))?
                {
                    return Ok(run);
                }
                let want = if spare < 0 { count.min(4) } else { count };
                self.allocate_from(stream, Want::Data(want))?.ok_or(MapError::NoSpace)
            }
        }
    }

    /// Marks blocks as in use that the journal says were given out. Fails if they cannot be.
    pub fn take(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        if !group.busy().all(start, u64::from(run.count), false) {
            return Err(misuse(run, "it is in use twice"));
        }
        let delta = group.take(start, u64::from(run.count));
        self.account(index, group, delta);
        drop(slot);
        self.own(run, txg)
    }

    /// The commit `txg` and later ones use `run`, which was allocated before.
    pub fn own(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        group.own(start, u64::from(run.count), txg, self.captured());
        drop(slot);
        self.mark_dirty(index);
        Ok(())
    }

    /// Takes back blocks that were allocated and never owned.
    pub fn give_back(&self, run: Run) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let delta = group.release(start, u64::from(run.count));
        self.account(index, group, delta);
        Ok(())
    }

    /// The commit `txg` and later ones no longer use `run`.
    pub fn retire(&self, run: Run, txg: Txg) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        self.retire_in(index, start, run, txg)
    }

    /// As [`Allocator::retire`], of a run that starts at `start` of the group `index`.
    pub(super) fn retire_in(
        &self,
        index: usize,
        start: u64,
        run: Run,
        txg: Txg,
    ) -> Result<(), MapError> {
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let retired = group.retire(start, u64::from(run.count), txg, self.captured());
        drop(slot);
        self.mark_dirty(index);
        if !retired {
            return Err(misuse(run, "it is freed, but not in use"));
        }
        self.retired.lock().entry(txg).or_default().push(run);
        self.after_commit.fetch_add(i64::from(run.count), Ordering::AcqRel);
        Ok(())
    }

    /// Whether `run` could be retired: on the device, within one group, in use.
    pub fn check_in_use(&self, run: Run) -> Result<(), MapError> {
        let (index, start) = self.locate(run)?;
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        if group.busy().all(start, u64::from(run.count), true) {
            Ok(())
        } else {
            Err(misuse(run, "it is referenced, but not in use"))
        }
    }

    /// The commit `txg` is durable: what it retired can be given out again. Returns those runs.
    pub fn release(&self, txg: Txg) -> Result<Vec<Run>, MapError> {
        let runs = self.retired.lock().remove(&txg).unwrap_or_default();
        for run in &runs {
            let (index, start) = self.locate(*run)?;
            let mut slot = self.load(index)?;
            let group = slot.as_mut().expect("just loaded");
            if !group.busy().all(start, u64::from(run.count), true) {
                return Err(misuse(*run, "it was freed twice"));
            }
            let delta = group.release(start, u64::from(run.count));
            self.account_released(index, group, delta);
        }
        Ok(runs)
    }

    /// Transaction groups up to `txg` that retired blocks which were not released yet, in order.
    pub fn retired_until(&self, txg: Txg) -> Vec<Txg> {
        self.retired.lock().range(..=txg).map(|(txg, _)| *txg).collect()
    }

    /// What `txg` retired, neighbours joined, in order.
    pub fn retired_runs(&self, txg: Txg) -> Vec<Run> {
        let mut runs = self.retired.lock().get(&txg).cloned().unwrap_or_default();
        runs.sort_unstable_by_key(|run| run.addr);
        runs.dedup_by(|next, run| {
            let joins = run.addr.plus(u64::from(run.count)) == next.addr;
            if joins {
                run.count += next.count;
            }
            joins
        });
        runs
    }

    /// Starts allocating from the front again, where the last commits made room.
    pub fn rewind(&self) {
        for (stream, cursor) in self.cursors.iter().enumerate() {
            let want = if stream == 0 { Want::Node } else { Want::Data(1) };
            let roomy = |group: &usize| self.room(*group, want) > GROUP_BLOCKS as u32 / 2;
            let mut roomy = (0..self.count()).filter(roomy);
            if let Some(group) = roomy.nth(stream).or_else(|| roomy.next()) {
                cursor.store(group, Ordering::Relaxed);
            }
        }
    }

    fn allocate_from(&self, stream: usize, want: Want) -> Result<Option<Run>, MapError> {
        let current = self.cursors[stream].load(Ordering::Relaxed);
        if let Some(run) = self.allocate_in(current, want)? {
            return Ok(Some(run));
        }
        // First a group with plenty of room, so that runs stay long; then whatever there is.
        for least in [GROUP_BLOCKS as u32 / 4, 1] {
            for group in 0..self.count() {
                if self.room(group, want) < least {
                    continue;
                }
                if let Some(run) = self.allocate_in(group, want)? {
                    self.cursors[stream].store(group, Ordering::Relaxed);
                    return Ok(Some(run));
                }
            }
        }
        Ok(None)
    }

    /// Blocks of a group that can serve `want`, as far as the hints know.
    fn room(&self, group: usize, want: Want) -> u32 {
        let place = self.place(group);
        let free = place.free.load(Ordering::Relaxed);
        let clusters = place.clusters.load(Ordering::Relaxed);
        match want {
            Want::Node => clusters * 4,
            Want::Data(_) => free,
            Want::Fragment(_) => free.saturating_sub(clusters * 4),
        }
    }

    fn allocate_in(&self, index: usize, want: Want) -> Result<Option<Run>, MapError> {
        if self.room(index, want) == 0 {
            return Ok(None);
        }
        let mut slot = self.load(index)?;
        let group = slot.as_mut().expect("just loaded");
        let Some((start, count)) = group.find(want) else { return Ok(None) };
        let delta = group.take(start, count);
        self.account(index, group, delta);
        let addr = BlockAddr(index as u64 * GROUP_BLOCKS + start);
        Ok(Some(Run { addr, count: count as u32 }))
    }

    fn locate(&self, run: Run) -> Result<(usize, u64), MapError> {
        let count = u64::from(run.count);
        let layout = self.layout.load();
        if count == 0 || !layout.contains(run.addr, count) {
            return Err(misuse(run, "it reaches past the device"));
        }
        let (group, start) = (run.addr.0 / GROUP_BLOCKS, run.addr.0 % GROUP_BLOCKS);
        if start + count > GROUP_BLOCKS {
            return Err(misuse(run, "it crosses allocation groups"));
        }
        let overlaps = |fixed: &(u64, u64)| start < fixed.0 + fixed.1 && fixed.0 < start + count;
        if layout.fixed_runs(group).iter().any(overlaps) {
            return Err(misuse(run, "it covers fixed structures"));
        }
        Ok((group as usize, start))
    }
}

fn misuse(run: Run, reason: &'static str) -> MapError {
    MapError::Corrupt { structure: "the allocation of a run", addr: run.addr, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::alloc::tests::allocator;

    #[test]
    fn retired_blocks_come_back_only_after_the_commit() {
        let (_, map) = allocator(8192);
        let before = map.free();
        let run = map.allocate(Purpose::Data { count: 8, hint: 0 }).expect("room");
        map.own(run, Txg(1)).expect("allocated");
        map.capture(Txg(1), None).expect("a working disk");
        map.retire(run, Txg(2)).expect("in use");
        assert_eq!(map.free().now, before.now - 8);
        assert_eq!(map.free().after_commit, before.now);
        map.capture(Txg(2), None).expect("a working disk");
        assert_eq!(map.release(Txg(2)).expect("consistent"), vec![run]);
        assert_eq!(map.free(), before);
        assert!(map.retire(run, Txg(3)).is_err(), "freeing twice is refused");
    }

    #[test]
    fn who_looks_during_a_release_misses_nothing_of_it() {
        let (_, map) = allocator(1 << 16);
        let all = map.free().after_commit;
        // The release under way, or 0.
        let releasing = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                loop {
                    let now = releasing.load(Ordering::SeqCst);
                    let after_commit = map.free().after_commit;
                    match releasing.load(Ordering::SeqCst) {
                        u64::MAX => return,
                        then if now > 0 && then == now => assert_eq!(after_commit, all),
                        _ => {}
                    }
                }
            });
            for txg in 1..1000 {
                for _ in 0..256 {
                    let run = map.allocate(Purpose::Data { count: 64, hint: 0 }).expect("room");
                    map.own(run, Txg(txg)).expect("allocated");
                    map.retire(run, Txg(txg)).expect("in use");
                }
                map.capture(Txg(txg), None).expect("a working disk");
                releasing.store(txg, Ordering::SeqCst);
                map.release(Txg(txg)).expect("consistent");
                releasing.store(0, Ordering::SeqCst);
            }
            releasing.store(u64::MAX, Ordering::SeqCst);
            looker.join().expect("nothing was missed");
        });
    }

    #[test]
    fn data_leaves_the_reserve_of_clusters_while_there_are_fragments() {
        let (_, map) = allocator(4096);
        let mut data = 0;
        let reserve = map.layout().reserve_clusters as i64;
        let total = map.free().now;
        while data < total - 4 * reserve {
            let run = map.allocate(Purpose::Data { count: 3, hint: 0 }).expect("room");
            data += i64::from(run.count);
        }
        for _ in 0..reserve - 1 {
            map.allocate(Purpose::Node).expect("the reserve is whole");
        }
    }
}
