//! A naive forest: subvolumes with files, their snapshots, clones of these, rollbacks, removals and
//! quotas, in the fewest words.
//!
//! ```text
//! volumes: number -> files       a file is a size and what each of its blocks has
//!          read-only             a snapshot, of the volume `of`
//!          base                  the snapshot that it goes on from: that one has to stay
//! ```
//!
//! Each volume has its files for itself; what is shared on the disk is nothing that anybody sees.
//! It shares no code with what it judges, and it is a value: each state of a history is kept whole.
//!
//! Absent: names of files, attributes, and parts of blocks, which [`crate::model`] has.

mod act;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::act::{Act, FILES};

/// A number of a volume. Never used again.
pub type Number = u32;

/// The volume that is there from the beginning and stays.
pub const FIRST: Number = 1;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// In bytes.
    pub size: u64,
    /// By which write the bytes of a block are; where there is none there are zeros.
    pub blocks: BTreeMap<u64, Written>,
}

/// What is in a block: bytes that follow from a stamp and the place that they were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which bytes ([`crate::op::bytes`]).
    pub stamp: u64,
    /// The block of a file that they were written to. A copy has them elsewhere.
    pub at: u64,
}

/// A subvolume or a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Of which volume it is a snapshot.
    pub of: Option<Number>,
    /// What the snapshot is called.
    pub name: String,
    /// Whether it cannot be removed.
    pub is_held: bool,
    /// The snapshot that it goes on from.
    pub base: Option<Number>,
    /// How many blocks it may have.
    pub quota: Option<u64>,
    /// Its files.
    pub files: Arc<BTreeMap<u64, File>>,
}

/// All volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forest {
    /// By number.
    pub volumes: BTreeMap<Number, Volume>,
    /// The next number.
    pub next: Number,
    /// Counts names.
    named: u64,
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It would go over the quota.
    Quota,
    /// Something else needs it.
    Needed,
}

/// What was done.
pub type Outcome = Result<(), Refused>;

impl Default for Forest {
    fn default() -> Self {
        let volumes = BTreeMap::from([(FIRST, Volume::default())]);
        Self { volumes, next: FIRST + 1, named: 0 }
    }
}

impl File {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        for (block, written) in &self.blocks {
            let from = (block * BLOCK) as usize;
            let to = (from + BLOCK as usize).min(bytes.len());
            let content = crate::op::bytes(written.stamp, written.at * BLOCK, (to - from) as u64);
            bytes[from..to].copy_from_slice(&content);
        }
        bytes
    }

    fn cut(&mut self, blocks: u64) {
        self.size = blocks * BLOCK;
        drop(self.blocks.split_off(&blocks));
    }
}

impl Volume {
    /// Blocks that count against its quota.
    pub fn usage(&self) -> u64 {
        self.files.values().map(|file| file.blocks.len() as u64).sum()
    }

    /// Whether it can be changed.
    pub fn is_writable(&self) -> bool {
        self.of.is_none()
    }

    fn admits(&self, before: u64) -> bool {
        let after = self.usage();
        after <= before || self.quota.is_none_or(|most| after <= most)
    }
}

impl Forest {
    /// Does one thing.
    pub fn apply(&mut self, act: &Act) -> Outcome {
        match act {
            Act::Write { volume, file, block, count, stamp } => self.change(*volume, |files| {
                let file = files.entry(*file).or_default();
                let blocks = *block..block + count;
                file.blocks.extend(blocks.map(|at| (at, Written { stamp: *stamp, at })));
                file.size = file.size.max((block + count) * BLOCK);
            }),
            Act::Cut { volume, file, blocks } => {
                self.change(*volume, |files| files.entry(*file).or_default().cut(*blocks))
            }
            Act::Punch { volume, file, block, count } => self.change(*volume, |files| {
                let file = files.entry(*file).or_default();
                file.blocks.retain(|at, _| !(*block..block + count).contains(at));
            }),
            Act::Share { volume, from, block, to, target, count } => {
                self.change(*volume, |files| {
                    let source = files.get(from).cloned().unwrap_or_default();
                    let file = files.entry(*to).or_default();
                    for index in 0..*count {
                        file.blocks.remove(&(target + index));
                        let written = source.blocks.get(&(block + index));
                        file.blocks.extend(written.map(|written| (target + index, *written)));
                    }
                    file.size = file.size.max((target + count) * BLOCK);
                })
            }
            Act::Drop { volume, file } => self.change(*volume, |files| drop(files.remove(file))),
            Act::Snapshot { of } => {
                self.snapshot(*of);
                Ok(())
            }
            Act::Clone { of } => {
                let files = Arc::clone(&self.volumes[of].files);
                let clone = Volume { base: Some(*of), files, ..Volume::default() };
                self.add(clone);
                Ok(())
            }
            Act::Rollback { of, to } => {
                self.snapshot(*of);
                // The chain that it begins has a number, too.
                self.next += 1;
                let files = Arc::clone(&self.volumes[to].files);
                let volume = self.volume_mut(*of);
                (volume.files, volume.base) = (files, Some(*to));
                Ok(())
            }
            Act::Remove { ids } => self.remove(ids),
            Act::Hold { of, is_held } => {
                self.volume_mut(*of).is_held = *is_held;
                Ok(())
            }
            Act::Quota { of, most } => {
                self.volume_mut(*of).quota = *most;
                Ok(())
            }
            Act::Step | Act::WriteBack | Act::Commit | Act::Sync | Act::Fsync { .. } => Ok(()),
        }
    }

    /// The name of the next snapshot.
    pub fn next_name(&self) -> String {
        format!("snapshot {}", self.named)
    }

    fn change(&mut self, of: Number, run: impl FnOnce(&mut BTreeMap<u64, File>)) -> Outcome {
        let volume = &self.volumes[&of];
        let (before, mut changed) = (volume.usage(), volume.clone());
        run(Arc::make_mut(&mut changed.files));
        match changed.admits(before) {
            true => {
                self.volumes.insert(of, changed);
                Ok(())
            }
            false => Err(Refused::Quota),
        }
    }

    fn volume_mut(&mut self, of: Number) -> &mut Volume {
        self.volumes.get_mut(&of).expect("a number that is in use has its volume")
    }

    fn add(&mut self, volume: Volume) {
        self.volumes.insert(self.next, volume);
        self.next += 1;
    }

    fn snapshot(&mut self, of: Number) {
        let name = self.next_name();
        let source = self.volumes[&of].clone();
        self.add(Volume { of: Some(of), name, is_held: false, ..source });
        self.named += 1;
    }

    fn remove(&mut self, ids: &BTreeSet<Number>) -> Outcome {
        let is_meant = |id: Option<Number>| id.is_some_and(|id| ids.contains(&id));
        let mut stay = self.volumes.iter().filter(|(id, _)| !ids.contains(id)).map(|it| it.1);
        let is_needed = stay.any(|it| is_meant(it.base) || is_meant(it.of));
        if is_needed || ids.iter().any(|id| self.volumes[id].is_held) {
            return Err(Refused::Needed);
        }
        self.volumes.retain(|id, _| !ids.contains(id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(volume: Number, block: u64, count: u64, stamp: u64) -> Act {
        Act::Write { volume, file: 7, block, count, stamp }
    }

    #[test]
    fn what_goes_on_from_a_snapshot_keeps_it_and_changes_nothing_in_it() {
        let mut forest = Forest::default();
        let acts = [
            write(FIRST, 0, 3, 1),
            Act::Snapshot { of: FIRST },
            Act::Clone { of: 2 },
            write(3, 0, 1, 2),
            write(FIRST, 5, 1, 3),
            Act::Rollback { of: FIRST, to: 2 },
        ];
        acts.iter().for_each(|act| forest.apply(act).expect("nothing is in the way"));
        let usage = |id: Number| forest.volumes[&id].usage();
        assert_eq!((usage(FIRST), usage(2), usage(3), usage(4)), (3, 3, 3, 4));
        assert_eq!(forest.volumes[&4].of, Some(FIRST));
        assert_eq!(forest.next, 6);
        let mut remove =
            |ids: &[Number]| forest.apply(&Act::Remove { ids: ids.iter().copied().collect() });
        assert_eq!(remove(&[2]), Err(Refused::Needed));
        assert_eq!(remove(&[4]), Ok(()));
        assert_eq!(remove(&[2, 3]), Err(Refused::Needed), "the first goes on from it");
    }

    #[test]
    fn a_quota_refuses_what_adds_and_nothing_else() {
        let mut forest = Forest::default();
        forest.apply(&write(FIRST, 0, 4, 1)).expect("there is no quota");
        forest.apply(&Act::Quota { of: FIRST, most: Some(3) }).expect("always");
        let before = forest.clone();
        assert_eq!(forest.apply(&write(FIRST, 3, 2, 2)), Err(Refused::Quota));
        assert_eq!(forest, before);
        assert_eq!(forest.apply(&write(FIRST, 0, 4, 3)), Ok(()));
        forest.apply(&Act::Cut { volume: FIRST, file: 7, blocks: 2 }).expect("it frees");
        assert_eq!(forest.apply(&write(FIRST, 2, 1, 4)), Ok(()));
    }
}
