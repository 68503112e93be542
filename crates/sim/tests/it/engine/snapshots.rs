//! Snapshots that were made before the crash, and what has to be in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_base::sync::Mutex;
use gabion_sim::op::Errno;
use gabion_sim::tree::Tree;

use super::{Mounted, SUBVOL};

/// What an engine knows about the snapshots of its first life: what it answered, no crash undoes.
#[derive(Clone, Debug, Default)]
pub struct Snapshots(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    lives: u32,
    trees: BTreeMap<SubvolId, Tree>,
}

impl Snapshots {
    /// A new filesystem has none.
    pub fn forget(&self) {
        *self.0.lock() = Known::default();
    }

    /// Whether this mount is the first one.
    pub fn begin_life(&self) -> bool {
        let mut known = self.0.lock();
        known.lives += 1;
        known.lives == 1
    }
}

impl Mounted {
    /// Makes a snapshot, which makes everything durable, and remembers what has to be in it.
    pub fn make_snapshot(&mut self) -> Result<(), Errno> {
        self.settle()?;
        let tree = self.dump_subvolume(SUBVOL)?;
        let id = self.world(self.map.snapshot(SUBVOL))?;
        self.snapshots.0.lock().trees.insert(id, tree);
        Ok(())
    }

    /// The snapshots that are there are what they were, and none is there without those before it.
    pub fn verify_snapshots(&self) -> Result<(), String> {
        let known = self.snapshots.0.lock();
        let there: BTreeSet<SubvolId> = self.map.subvolumes().iter().map(|(id, _)| *id).collect();
        let newest = there.last().copied().unwrap_or(SUBVOL);
        for (id, tree) in known.trees.range(..=newest) {
            if !there.contains(id) {
                return Err(format!("{id} is not there, and {newest} is"));
            }
            let found = self.dump_subvolume(*id).map_err(|errno| format!("{id}: {errno:?}"))?;
            if found != *tree {
                let difference = tree.namespace.difference(&found.namespace);
                return Err(format!("{id} is not what it was: {difference}"));
            }
        }
        Ok(())
    }
}
