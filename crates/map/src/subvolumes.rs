//! Subvolumes, snapshots and clones: making them, finding them, and letting them go.
//!
//! ```text
//!   chain 1:   monday --- tuesday --- wednesday --- subvolume 1, as it is now
//!                            |
//!   chain 7:                 +------- thursday ---- subvolume 7, a clone of tuesday
//! ```
//!
//! A *chain* is what one tree was, from its beginning: its snapshots in the order of their births,
//! and last the subvolume that still changes, if there is one. A block that leaves the tree of the
//! last one is
//!
//! - free at once, if it is younger than all snapshots of the chain;
//! - put on the deadlist of the newest snapshot otherwise (DEAD items in the forest);
//! - nobody's concern, if it is not younger than the snapshot that the chain was cloned from:
//!   then it belongs to that one's chain.
//!
//! So a block is on one deadlist at most, and that is the one of the newest snapshot that has it.
//! All that is said here is one commit each, whatever the size of the tree. What follows a removal
//! is in [`crate::removal`].
//!
//! A rollback keeps the subvolume's id: what it was becomes the last snapshot of its chain, and it
//! goes on as a clone of the one that was asked for.

use std::collections::BTreeSet;

use gabion_base::ids::{SubvolId, Txg};
use thiserror::Error;

use crate::commit::Besides;
use crate::edits::{Edit, ForestChange};
use crate::error::MapError;
use crate::format::item::{Access, SubvolRecord};
use crate::format::subvolume::{Extended, Hold, Removal, is_snapshot_name};
use crate::format::superblock::Superblock;
use crate::map::LocalMap;

/// Why nothing was done to a subvolume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is none with this id.
    #[error("there is no such subvolume or snapshot")]
    Absent,
    /// A snapshot of the same subvolume has this name.
    #[error("there is a snapshot {0:?} already")]
    NameTaken(String),
    /// No snapshot can have this name.
    #[error("a snapshot cannot be called {0:?}: a name has 1 to 255 bytes and no slash")]
    BadName(String),
    /// It is no snapshot.
    #[error("it is no snapshot")]
    NoSnapshot,
    /// It is held.
    #[error("the snapshot {0:?} is held; release it first")]
    Held(String),
    /// Subvolumes were cloned from it.
    #[error("the snapshot {0:?} has clones; remove them first")]
    HasClones(String),
    /// A subvolume was rolled back to it.
    #[error("the snapshot {0:?} was rolled back to, and is needed by what came of that")]
    RolledBackTo(String),
    /// Other subvolumes stand in it.
    #[error("another subvolume stands in it; remove that first")]
    HasSubvolumes,
    /// It has snapshots that shall stay.
    #[error("it has snapshots; remove them first, or together with it")]
    HasSnapshots,
    /// It would stand in itself.
    #[error("a subvolume cannot stand in itself")]
    InItself,
}

/// What happens to a block that leaves a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody needs it.
    Free,
    /// This snapshot needs it: it goes onto its deadlist.
    Dead(SubvolId),
    /// It belongs to the snapshot that the chain was cloned from.
    Another,
}

impl SubvolRecord {
    /// What happens to a block of this `birth` that leaves its tree.
    pub(crate) fn fate(&self, birth: Txg) -> Fate {
        if birth <= self.extended.base_birth {
            Fate::Another
        } else if self.newest_snapshot != SubvolId(0) && birth <= self.newest_snapshot_birth {
            Fate::Dead(self.newest_snapshot)
        } else {
            Fate::Free
        }
    }

    /// The chain that a subvolume of this id belongs to.
    pub fn chain(&self, id: SubvolId) -> SubvolId {
        match (self.extended.chain, self.access) {
            (SubvolId(0), Access::ReadOnly) => self.origin,
            (SubvolId(0), Access::Writable) => id,
            (chain, _) => chain,
        }
    }

    /// Where it stands in its chain: later ones are greater, what still changes is last.
    pub(crate) fn rank(&self) -> (bool, Txg) {
        (self.access == Access::Writable, self.birth)
    }

    /// Whether it is neither removed nor on its way there.
    pub fn is_there(&self) -> bool {
        self.extended.removal == Removal::None
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.extended.name).into_owned()
    }
}

impl LocalMap {
    /// Makes a read-only copy of a subvolume as it is now, by one commit. It has no name.
    pub fn snapshot(&self, of: SubvolId) -> Result<SubvolId, MapError> {
        self.make_snapshot(of, Vec::new(), 0)
    }

    /// The same with a name that no other snapshot of the subvolume has, made at `created` (seconds
    /// since 1970).
    pub fn create_snapshot(
        &self,
        of: SubvolId,
        name: &[u8],
        created: i64,
    ) -> Result<SubvolId, MapError> {
        if !is_snapshot_name(name) {
            return Err(Refusal::BadName(lossy(name)).into());
        }
        self.make_snapshot(of, name.to_vec(), created)
    }

    fn make_snapshot(
        &self,
        of: SubvolId,
        name: Vec<u8>,
        created: i64,
    ) -> Result<SubvolId, MapError> {
        self.write_back_all(&|_| true)?;
        let mut superblock = self.superblock.lock();
        self.check_changeable(of).map_err(|_| Refusal::Absent)?;
        self.check_name(of, &name)?;
        let id = next_subvol(&mut superblock)?;
        self.edit(&mut superblock, vec![Edit::Snapshot { of, id, name, created }])?;
        Ok(id)
    }

    /// Makes an empty subvolume. It is durable with the next commit: nothing in it may be, before.
    pub fn create_subvolume(&self) -> Result<SubvolId, MapError> {
        self.check_writable()?;
        let mut superblock = self.superblock.lock();
        let id = next_subvol(&mut superblock)?;
        self.subvols.write().insert(id, self.empty_record());
        self.forest_changed.store(true, std::sync::atomic::Ordering::Release);
        Ok(id)
    }

    /// Makes an empty subvolume that stands in `parent`, by one commit.
    pub fn add_subvolume(&self, parent: SubvolId, created: i64) -> Result<SubvolId, MapError> {
        let mut superblock = self.superblock.lock();
        let id = next_subvol(&mut superblock)?;
        let extended = Extended { created, ..Extended::default() };
        let record = SubvolRecord { parent, extended, ..self.empty_record() };
        self.edit(&mut superblock, vec![Edit::Put { id, record }])?;
        Ok(id)
    }

    fn empty_record(&self) -> SubvolRecord {
        SubvolRecord {
            access: Access::Writable,
            parent: SubvolId(0),
            origin: SubvolId(0),
            root: None,
            level: 0,
            birth: self.view.load().active.txg(),
            newest_snapshot_birth: Txg(0),
            newest_snapshot: SubvolId(0),
            next_ino: 1,
            nodes: 0,
            extended: Extended::default(),
        }
    }

    /// Makes a subvolume that begins as `snapshot` is, by one commit. It shares all blocks with it
    /// that neither of them changes.
    pub fn clone_snapshot(
        &self,
        snapshot: SubvolId,
        parent: SubvolId,
        created: i64,
    ) -> Result<SubvolId, MapError> {
        let mut superblock = self.superblock.lock();
        let source = self.snapshot_record(snapshot)?;
        let id = next_subvol(&mut superblock)?;
        let extended =
            Extended { base: snapshot, base_birth: source.birth, created, ..Extended::default() };
        let record = SubvolRecord {
            access: Access::Writable,
            parent,
            origin: snapshot,
            birth: self.view.load().active.txg(),
            newest_snapshot: SubvolId(0),
            newest_snapshot_birth: Txg(0),
            extended,
            ..source
        };
        self.edit(&mut superblock, vec![Edit::Put { id, record }])?;
        Ok(id)
    }

    /// Says in which other one a subvolume stands. `InItself`: that one stands in it.
    pub fn set_parent(&self, of: SubvolId, parent: SubvolId) -> Result<(), MapError> {
        let mut superblock = self.superblock.lock();
        self.check_changeable(of).map_err(|_| Refusal::Absent)?;
        self.check_changeable(parent).map_err(|_| Refusal::Absent)?;
        self.check_parent(of, parent)?;
        self.edit(&mut superblock, vec![Edit::Parent { of, parent }])
    }

    /// Fails if `parent` is `of` or stands in it, however deep.
    fn check_parent(&self, of: SubvolId, parent: SubvolId) -> Result<(), Refusal> {
        let subvols = self.subvols.read();
        let mut above = parent;
        // A damaged list may have a circle.
        for _ in 0..subvols.len() {
            if above == of {
                return Err(Refusal::InItself);
            }
            match subvols.get(&above) {
                Some(subvol) if subvol.record.parent != above => above = subvol.record.parent,
                _ => break,
            }
        }
        Ok(())
    }

    /// Makes a subvolume what its snapshot `to` is. What it was is kept as a snapshot with the name
    /// `keep_as`. Waits for the operations that are under way, and has others wait: each sees the
    /// subvolume as it was or as it is then. What somebody has found out before is no longer so.
    pub fn rollback(
        &self,
        of: SubvolId,
        to: SubvolId,
        keep_as: &[u8],
        created: i64,
    ) -> Result<SubvolId, MapError> {
        if !is_snapshot_name(keep_as) {
            return Err(Refusal::BadName(lossy(keep_as)).into());
        }
        self.write_back_all(&|_| true)?;
        let _passage = self.passage.write();
        // Nothing is accepted any more, so nothing is on its way after this.
        self.write_back_all(&|_| true)?;
        let mut superblock = self.superblock.lock();
        self.check_changeable(of).map_err(|_| Refusal::Absent)?;
        if self.snapshot_record(to)?.origin != of {
            return Err(Refusal::Absent.into());
        }
        self.check_name(of, keep_as)?;
        let id = next_subvol(&mut superblock)?;
        let chain = next_subvol(&mut superblock)?;
        let snapshot = Edit::Snapshot { of, id, name: keep_as.to_vec(), created };
        self.edit(&mut superblock, vec![snapshot, Edit::Rewind { of, to, chain }])?;
        self.files.forget(of);
        Ok(id)
    }

    /// Says whether a snapshot may be removed.
    pub fn set_hold(&self, of: SubvolId, hold: Hold) -> Result<(), MapError> {
        let mut superblock = self.superblock.lock();
        if self.snapshot_record(of)?.extended.hold == hold {
            return Ok(());
        }
        self.edit(&mut superblock, vec![Edit::Hold { of, hold }])
    }

    /// Removes subvolumes and snapshots, by one commit. Nobody sees them any more; what they alone
    /// have becomes free in the steps of [`LocalMap::remove_step`]. All or nothing is done.
    pub fn remove(&self, ids: &[SubvolId]) -> Result<(), MapError> {
        let mut superblock = self.superblock.lock();
        self.check_removable(ids)?;
        let marked = |of: &SubvolId| Edit::Removal { of: *of, removal: Removal::Marked };
        self.edit(&mut superblock, ids.iter().map(marked).collect())
    }

    /// Holds the snapshot `by`, and removes `olds`, held or not, all by one commit. Gives those of
    /// them that stay as they are, and why.
    pub fn supersede(
        &self,
        by: SubvolId,
        olds: &[SubvolId],
    ) -> Result<Vec<(SubvolId, Refusal)>, MapError> {
        let mut superblock = self.superblock.lock();
        self.snapshot_record(by)?;
        let (mut gone, mut stay) = (Vec::new(), Vec::new());
        for old in olds {
            let together = [gone.as_slice(), &[*old]].concat();
            match self.check(&together, Hold::Held) {
                Ok(()) => gone.push(*old),
                Err(refusal) => stay.push((*old, refusal)),
            }
        }
        let mut edits = vec![Edit::Hold { of: by, hold: Hold::Held }];
        for of in gone {
            edits.push(Edit::Hold { of, hold: Hold::Released });
            edits.push(Edit::Removal { of, removal: Removal::Marked });
        }
        self.edit(&mut superblock, edits)?;
        Ok(stay)
    }

    /// Fails unless all of `ids` can be removed together.
    pub fn check_removable(&self, ids: &[SubvolId]) -> Result<(), Refusal> {
        self.check(ids, Hold::Released)
    }

    /// The same where those with this hold may go, too.
    fn check(&self, ids: &[SubvolId], even: Hold) -> Result<(), Refusal> {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        let subvols = self.subvols.read();
        let there = subvols.iter().filter(|(_, subvol)| subvol.record.is_there());
        let stay = there.filter(|(id, _)| !ids.contains(id));
        let (mut bases, mut cloned, mut origins) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for record in stay.map(|(_, subvol)| &subvol.record) {
            bases.insert(record.extended.base);
            match record.access {
                Access::ReadOnly => drop(origins.insert(record.origin)),
                Access::Writable if record.extended.chain == SubvolId(0) => {
                    cloned.insert(record.extended.base);
                }
                Access::Writable => {}
            }
        }
        for id in &ids {
            let record = subvols.get(id).map(|subvol| &subvol.record);
            let record = record.filter(|record| record.is_there()).ok_or(Refusal::Absent)?;
            if record.extended.hold == Hold::Held && even != Hold::Held {
                return Err(Refusal::Held(record.name()));
            }
            if cloned.contains(id) {
                return Err(Refusal::HasClones(record.name()));
            }
            if bases.contains(id) {
                return Err(Refusal::RolledBackTo(record.name()));
            }
            if origins.contains(id) {
                return Err(Refusal::HasSnapshots);
            }
        }
        Ok(())
    }

    /// The snapshots of a subvolume that have a name, oldest first.
    pub fn snapshots(&self, of: SubvolId) -> Vec<(SubvolId, SubvolRecord)> {
        let subvols = self.subvols.read();
        let named = subvols.all_named(of);
        let mut found: Vec<_> = named.map(|(id, subvol)| (id, subvol.record.clone())).collect();
        found.sort_by_key(|(_, record)| record.birth);
        found
    }

    /// How many snapshots of a subvolume have a name, and when the newest of them was made, in
    /// seconds since 1970.
    pub fn count_snapshots(&self, of: SubvolId) -> (usize, Option<i64>) {
        let subvols = self.subvols.read();
        let created = subvols.all_named(of).map(|(_, subvol)| subvol.record.extended.created);
        (subvols.all_named(of).count(), created.max())
    }

    /// The snapshot of a subvolume that has this name.
    pub fn find_snapshot(&self, of: SubvolId, name: &[u8]) -> Option<SubvolId> {
        self.subvols.read().named(of, name)
    }

    /// All subvolumes that can be changed, oldest first.
    pub fn writable_subvolumes(&self) -> Vec<SubvolId> {
        let subvols = self.subvols.read();
        let there = subvols.writable().filter(|(_, subvol)| subvol.record.is_there());
        there.map(|(id, _)| id).collect()
    }

    /// Whether a subvolume or snapshot can be changed; `None` if it is not there.
    pub fn access(&self, id: SubvolId) -> Option<Access> {
        let subvols = self.subvols.read();
        let record = subvols.get(&id).map(|subvol| &subvol.record);
        record.filter(|record| record.is_there()).map(|record| record.access)
    }

    /// The snapshot that a subvolume was rolled back to last, if it was.
    pub fn rolled_back_to(&self, of: SubvolId) -> Option<SubvolRecord> {
        let subvols = self.subvols.pass();
        let extended = &subvols.get(&of)?.record.extended;
        let base = subvols.get(&extended.base).filter(|_| extended.chain != SubvolId(0))?;
        Some(base.record.clone())
    }

    /// What is known of a subvolume or snapshot.
    pub fn subvolume(&self, id: SubvolId) -> Option<SubvolRecord> {
        let subvols = self.subvols.read();
        subvols.get(&id).map(|subvol| subvol.record.clone()).filter(SubvolRecord::is_there)
    }

    /// Whether the first is a snapshot of the second, with a name.
    pub fn is_snapshot_of(&self, id: SubvolId, of: SubvolId) -> bool {
        let subvols = self.subvols.read();
        let record = subvols.get(&id).map(|subvol| &subvol.record);
        record.is_some_and(|record| subvols.named(of, &record.extended.name) == Some(id))
    }

    fn snapshot_record(&self, id: SubvolId) -> Result<SubvolRecord, Refusal> {
        let record = self.subvolume(id).ok_or(Refusal::Absent)?;
        match record.access {
            Access::ReadOnly => Ok(record),
            Access::Writable => Err(Refusal::NoSnapshot),
        }
    }

    fn check_name(&self, of: SubvolId, name: &[u8]) -> Result<(), Refusal> {
        match self.find_snapshot(of, name) {
            None => Ok(()),
            Some(_) => Err(Refusal::NameTaken(lossy(name))),
        }
    }

    /// Makes a commit that does this, too.
    pub(crate) fn edit(
        &self,
        superblock: &mut Superblock,
        edits: Vec<Edit>,
    ) -> Result<(), MapError> {
        self.commit_locked(superblock, Besides::Forest(ForestChange { edits, work: None }))
    }
}

/// An id that no subvolume ever had.
fn next_subvol(superblock: &mut Superblock) -> Result<SubvolId, MapError> {
    let id = superblock.next_subvol;
    superblock.next_subvol = SubvolId(id.0.checked_add(1).ok_or(MapError::NoSpace)?);
    Ok(id)
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
