//! Snapshots and clones that were made before the crash, and what has to be in them.
//!
//! Whatever there is after a crash must be what it was at some time: a snapshot what it was when it
//! was made, a clone before its change or after it. A snapshot may be absent if its making or its
//! removal was asked for; what is left of it goes while the filesystem is used, also after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::Mutex;
use gabion_fs::{self as fs, Privileges, WriteAt};
use gabion_map::format::item::Access;
use gabion_map::removal::Removing;
use gabion_map::{FileId, MapError, Payload};
use gabion_sim::op::{Errno, Kind};
use gabion_sim::tree::Tree;

use super::{Mounted, SUBVOL};

/// Steps of removals that are made at once at most.
const STEPS_MAX: u64 = 8;

/// What an engine knows about the snapshots of its first life: what it answered, no crash undoes.
#[derive(Clone, Debug, Default)]
pub struct Snapshots(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    lives: u32,
    /// Snapshots and clones, and what may be in them.
    trees: BTreeMap<SubvolId, Vec<Tree>>,
    /// Those whose removal was asked for.
    removed: BTreeSet<SubvolId>,
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
    /// Makes everything durable by making a snapshot, or by what is done with those there are.
    pub fn handle_snapshots(&mut self) -> Result<(), Errno> {
        self.settle()?;
        match self.rng.below(8) {
            0..=3 => self.make_snapshot(),
            4 => self.make_clone(),
            5 | 6 => self.remove_one(),
            _ => {
                let steps = self.rng.below(STEPS_MAX);
                self.remove_steps(steps)
            }
        }?;
        self.world(self.map.sync())
    }

    fn make_snapshot(&mut self) -> Result<(), Errno> {
        let tree = self.dump_subvolume(SUBVOL)?;
        let id = self.world(self.map.snapshot(SUBVOL))?;
        self.snapshots.0.lock().trees.insert(id, vec![tree]);
        Ok(())
    }

    /// One of the subvolumes beside the first and the ballast: a snapshot or a clone.
    fn any(&mut self, access: Option<Access>) -> Option<SubvolId> {
        let known = self.snapshots.0.lock();
        let there = self.map.subvolumes().into_iter().filter(|(id, record)| {
            known.trees.contains_key(id) && access.is_none_or(|access| access == record.access)
        });
        let ids: Vec<_> = there.map(|(id, _)| id).collect();
        let index = self.rng.below(1 + ids.len() as u64) as usize;
        ids.get(index).copied()
    }

    /// Makes a clone of a snapshot and changes the first file of it.
    fn make_clone(&mut self) -> Result<(), Errno> {
        let Some(of) = self.any(Some(Access::ReadOnly)) else { return Ok(()) };
        let tree = self.dump_subvolume(of)?;
        let id = self.world(self.map.clone_snapshot(of, SUBVOL, 0))?;
        self.snapshots.0.lock().trees.insert(id, vec![tree.clone()]);
        let files = tree.namespace.paths(Kind::File);
        let Some(path) = files.into_iter().next() else { return Ok(()) };
        let ino = Ino(tree.namespace.objects[path].id);
        let file = FileId::new(id, ino);
        let bytes = [0xc1; 5000];
        let written = self.run(|txn| {
            let at = WriteAt::Offset(0);
            let payload = Payload::Copied(&bytes);
            fs::write(txn, &self.ctx, file, at, payload, Privileges::Keep)
        });
        match written {
            Ok(_) => {}
            Err(Errno::ENOSPC) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let changed = self.dump_subvolume(id)?;
        self.snapshots.0.lock().trees.entry(id).or_default().push(changed);
        Ok(())
    }

    fn remove_one(&mut self) -> Result<(), Errno> {
        let Some(id) = self.any(None) else { return Ok(()) };
        self.snapshots.0.lock().removed.insert(id);
        match self.map.remove(&[id]) {
            // It has clones.
            Err(MapError::Subvolume(_)) => Ok(()),
            removed => self.world(removed),
        }
    }

    fn remove_steps(&self, most: u64) -> Result<(), Errno> {
        for _ in 0..most {
            if self.world(self.map.remove_step())? == Removing::Nothing {
                break;
            }
        }
        Ok(())
    }

    /// What was being removed at the crash goes on being removed.
    pub fn go_on_removing(&mut self) -> Result<(), String> {
        if !self.map.is_removing() {
            return Ok(());
        }
        let steps = if self.rng.chance(1, 4) { u64::MAX } else { self.rng.below(STEPS_MAX) };
        self.remove_steps(steps).map_err(|errno| format!("a removal failed: {errno:?}"))?;
        self.verify()
    }

    /// The snapshots and clones that are there are what they were, and none is there without those
    /// before it.
    pub fn verify_snapshots(&self) -> Result<(), String> {
        let known = self.snapshots.0.lock();
        let there: BTreeSet<SubvolId> = self.map.subvolumes().iter().map(|(id, _)| *id).collect();
        let newest = there.last().copied().unwrap_or(SUBVOL);
        for (id, trees) in known.trees.range(..=newest) {
            if !there.contains(id) {
                if known.removed.contains(id) {
                    continue;
                }
                return Err(format!("{id} is not there, and {newest} is"));
            }
            let found = self.dump_subvolume(*id).map_err(|errno| format!("{id}: {errno:?}"))?;
            if !trees.contains(&found) {
                let difference = trees[0].namespace.difference(&found.namespace);
                return Err(format!("{id} is not what it was: {difference}"));
            }
        }
        Ok(())
    }
}
