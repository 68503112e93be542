//! What programs do with snapshots: they make some, look into any of them, remove some, and in some
//! worlds roll everything back to one.

use std::sync::PoisonError;

use gabion_fs::{Error, Result};
use gabion_link::wire::said;

use super::Program;
use crate::cluster::Sabotage;
use crate::cluster::history::{Op, Outcome, SnapshotNumber};
use crate::cluster::judge::GRAINS_MAX;

/// Snapshots that programs make, at most.
const SNAPSHOTS_MAX: u32 = 8;
/// Clients that look at all of them in the end: it takes long.
const WHO_LOOKS: usize = 2;

/// Whether there is no such snapshot.
pub(super) fn is_no_snapshot(error: &Error) -> bool {
    said(error).contains("there is no snapshot")
}

impl Program {
    /// Numbers of the snapshots that there may be.
    fn snapshots(&self) -> Vec<SnapshotNumber> {
        self.world.snapshots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn any_snapshot(&mut self) -> Option<SnapshotNumber> {
        let known = self.snapshots();
        (!known.is_empty()).then(|| known[self.rng.below(known.len() as u64) as usize])
    }

    fn note_snapshot(&self, snapshot: SnapshotNumber) {
        self.world.snapshots.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot);
    }

    /// Makes a snapshot, or does something with one.
    pub(super) fn step_snapshots(&mut self) {
        let known = self.any_snapshot();
        match (known, self.rng.below(100)) {
            (None, _) | (_, 0..25) => {
                let snapshot = self.world.new_snapshot();
                if snapshot <= SNAPSHOTS_MAX {
                    // Others may find it before this program hears of it.
                    self.note_snapshot(snapshot);
                    self.call(Op::Snapshot { snapshot });
                }
            }
            (Some(snapshot), 25..33) => {
                self.call(Op::RemoveSnapshot { snapshot });
            }
            (Some(to), 33..45) if self.world.can_roll_back => {
                let keep = self.world.new_snapshot();
                self.note_snapshot(keep);
                self.call(Op::Rollback { to, keep });
            }
            (Some(snapshot), _) => {
                let op = loop {
                    let op = match self.rng.chance(1, 2) {
                        true => self.choose_bytes(),
                        false => self.choose_names(),
                    };
                    match op {
                        Op::Read { .. } | Op::Stat { .. } | Op::Lookup { .. } | Op::List { .. } => {
                            break Box::new(op);
                        }
                        _ => {}
                    }
                };
                self.call(Op::InSnapshot { snapshot, op });
            }
        }
    }

    /// Looks at all snapshots, on some clients.
    pub(super) fn finish_snapshots(&mut self) {
        if self.client.number >= WHO_LOOKS {
            return;
        }
        let page = super::PAGE_GRAINS;
        for snapshot in self.snapshots() {
            let mut look = |op| self.call(Op::InSnapshot { snapshot, op: Box::new(op) });
            if look(Op::List { dir: 0 }) == Outcome::NoSnapshot {
                continue;
            }
            for file in self.world.files.clone() {
                for grain in (0..GRAINS_MAX as u32).step_by(page as usize) {
                    self.make(Op::InSnapshot {
                        snapshot,
                        op: Box::new(Op::Read { file, grain, count: page }),
                    });
                }
            }
        }
    }

    pub(super) fn perform_snapshots(&mut self, op: &Op) -> Result<Outcome> {
        let client = std::sync::Arc::clone(&self.client);
        let mount = &client.mount;
        let done = match op {
            Op::Snapshot { snapshot } => mount.make_snapshot(*snapshot),
            Op::RemoveSnapshot { snapshot } => mount.remove_snapshot(*snapshot),
            Op::Rollback { .. } if self.world.sabotage == Sabotage::RollbacksOfNothing => Ok(()),
            Op::Rollback { to, keep } => mount.roll_back(*to, *keep),
            Op::InSnapshot { snapshot, op } => {
                let Some(found) = mount.find_snapshot(*snapshot)? else {
                    return Ok(Outcome::NoSnapshot);
                };
                self.subvol = found;
                let outcome = self.perform(op);
                self.subvol = self.world.subvol;
                // The file was not there then, or the snapshot is not there any more.
                return match outcome {
                    Err(Error::Stale | Error::NotFound) => Ok(Outcome::Refused),
                    outcome => outcome,
                };
            }
            op => unreachable!("{op:?} has not to do with snapshots"),
        };
        match done {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if is_no_snapshot(&error) => Ok(Outcome::NoSnapshot),
            Err(error) => Err(error),
        }
    }
}
