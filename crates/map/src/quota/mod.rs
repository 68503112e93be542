//! How much a subvolume may refer to, and how much it does.
//!
//! ```text
//! blocks of the files' bytes    as FILE items say: shared ones count fully, snapshots' do not
//! + one block for each object   as there are INODE items
//! + blocks of accepted bytes    that no item has yet ([`Owed`])
//! + what operations are about to add
//! + what is pledged             to who may change something elsewhere, in whichever subvolume
//! <= the limit
//! ```
//!
//! A subvolume is counted as long as it has a quota. The count changes with the batch that changes
//! the items, stands in the subvolume's record, and is exact after every crash: a replay counts as
//! the first time. When a quota is set, the count begins at a commit: from there on changes are
//! noted, while the tree of that commit is read once.
//!
//! What was accepted is never refused later. So writes are charged for each block that is new to
//! the file when they are accepted, and writeback is not asked again. Everything else is charged
//! when it is about to be applied.

mod count;
mod owed;

use std::collections::BTreeSet;
use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_base::sync::Mutex;

use crate::edits::Edit;
use crate::error::MapError;
use crate::format::subvolume::{COUNT_MAX, Count, Most, Quota, Schedule};
use crate::key::{Key, Kind};
use crate::map::{LocalMap, SpaceReport};
use crate::memtable::Change;
use crate::space::Space;
use crate::subvolumes::Refusal;

use self::count::weigh;
pub use self::owed::Owed;

/// Whether an operation keeps to the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paying {
    /// Yes, and leaves what is pledged.
    #[default]
    Fully,
    /// Yes, and it may use what is pledged: somebody was told already that it is done.
    FromPledged,
    /// What it adds was there before a crash, within the limits. What was removed then may yet have
    /// to be removed again.
    Again,
    /// It was charged before.
    Already,
}

/// What an operation has to leave of what the limits leave.
#[derive(Clone, Copy, Default)]
pub(crate) struct Terms<'a> {
    /// What is pledged here.
    leaves: Option<&'a Space>,
    /// It has room, whatever there is.
    is_admitted: bool,
}

impl Terms<'_> {
    /// Blocks and objects.
    fn left_alone(self) -> Count {
        let number = |number: i64| number.max(0) as u64;
        self.leaves.map_or(Count::default(), |space| Count {
            blocks: number(space.pledged()),
            objects: number(space.pledged_objects()),
        })
    }
}

/// By how much an operation changes what a subvolume refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    blocks: i64,
    objects: i64,
}

/// What a subvolume with a quota refers to, now.
pub struct Usage {
    state: Mutex<State>,
}

struct State {
    most: Most,
    /// In items. Of what is not counted yet: by how much they have changed.
    blocks: i64,
    objects: i64,
    is_counted: bool,
    /// What is pledged may be used here.
    has_pledges: bool,
    /// Not in items yet.
    reserved_blocks: u64,
    reserved_objects: u64,
}

impl State {
    fn charged_blocks(&self) -> u64 {
        let items = self.blocks.saturating_add(self.objects).max(0) as u64;
        items + self.reserved_blocks + self.reserved_objects
    }

    fn charged_objects(&self) -> u64 {
        self.objects.max(0) as u64 + self.reserved_objects
    }

    /// Whether so much more keeps to the limits. What makes less is always welcome.
    fn admits(&self, delta: Delta, left_alone: Count) -> bool {
        let fits = |most: Option<u64>, now: u64, more: i64, left_alone: u64| {
            let then = now.saturating_add(left_alone).saturating_add(more.max(0) as u64);
            more <= 0 || most.is_none_or(|most| then <= most)
        };
        let blocks = delta.blocks.saturating_add(delta.objects);
        let (has_blocks, has_objects) = (self.charged_blocks(), self.charged_objects());
        !self.is_counted
            || fits(self.most.blocks, has_blocks, blocks, left_alone.blocks)
                && fits(self.most.objects, has_objects, delta.objects, left_alone.objects)
    }
}

impl Usage {
    /// As the record of a subvolume tells.
    pub(crate) fn new(quota: &Quota) -> Self {
        let count = quota.count.unwrap_or_default();
        let state = State {
            most: quota.most,
            blocks: count.blocks as i64,
            objects: count.objects as i64,
            is_counted: quota.count.is_some(),
            has_pledges: true,
            reserved_blocks: 0,
            reserved_objects: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// The limits are these now.
    pub(crate) fn limit(&self, most: Most) {
        self.state.lock().most = most;
    }

    /// So much there was when this began to note changes.
    pub(crate) fn begin_at(&self, count: Count) {
        let mut state = self.state.lock();
        // Forged items can count for more than there can be.
        let number = |number: u64| number.min(COUNT_MAX) as i64;
        state.blocks = state.blocks.saturating_add(number(count.blocks));
        state.objects = state.objects.saturating_add(number(count.objects));
        state.is_counted = true;
    }

    /// What the subvolume's items refer to; `None` if that is not known yet.
    pub(crate) fn count(&self) -> Option<Count> {
        let state = self.state.lock();
        let number = |number: i64| (number.max(0) as u64).min(COUNT_MAX);
        let count = Count { blocks: number(state.blocks), objects: number(state.objects) };
        state.is_counted.then_some(count)
    }

    /// Whether something is charged that no item has yet.
    pub(crate) fn is_waited_for(&self) -> bool {
        let state = self.state.lock();
        state.reserved_blocks > 0 || state.reserved_objects > 0
    }

    /// Charges for what is about to be added, until it is released: blocks and objects.
    fn take(&self, delta: Delta, terms: Terms<'_>) -> Result<(u64, u64), MapError> {
        let mut state = self.state.lock();
        // Whoever pledges more looks at this state after that.
        let left_alone = if state.has_pledges { terms.left_alone() } else { Count::default() };
        if !terms.is_admitted && !state.admits(delta, left_alone) {
            return Err(MapError::OverQuota);
        }
        let (blocks, objects) = (delta.blocks.max(0) as u64, delta.objects.max(0) as u64);
        state.reserved_blocks += blocks;
        state.reserved_objects += objects;
        Ok((blocks, objects))
    }

    /// The same, until what is returned is dropped.
    fn reserve(self: &Arc<Self>, delta: Delta, terms: Terms<'_>) -> Result<Reserved, MapError> {
        let (blocks, objects) = self.take(delta, terms)?;
        Ok(Reserved { usage: Arc::clone(self), blocks, objects })
    }

    fn release(&self, blocks: u64, objects: u64) {
        let mut state = self.state.lock();
        state.reserved_blocks -= blocks;
        state.reserved_objects -= objects;
    }

    /// Items have changed by so much.
    fn add(&self, delta: Delta) {
        let mut state = self.state.lock();
        state.blocks = state.blocks.saturating_add(delta.blocks);
        state.objects = state.objects.saturating_add(delta.objects);
    }

    /// What can be added for sure.
    fn room(&self) -> Room {
        let left = match self.count() {
            Some(_) => self.left().1,
            None => Most { blocks: Some(0), objects: Some(0) },
        };
        Room { blocks: left.blocks.unwrap_or(u64::MAX), objects: left.objects }
    }

    /// What can still be added: bytes in blocks, and objects if their number is limited.
    fn left(&self) -> (Most, Most) {
        let state = self.state.lock();
        let left = |most: Option<u64>, now: u64| most.map(|most| most.saturating_sub(now));
        let blocks = left(state.most.blocks, state.charged_blocks());
        let objects = left(state.most.objects, state.charged_objects());
        match state.is_counted {
            true => (state.most, Most { blocks, objects }),
            false => (state.most, state.most),
        }
    }
}

/// What was charged for an operation until its items are there.
pub(crate) struct Reserved {
    usage: Arc<Usage>,
    blocks: u64,
    objects: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.usage.release(self.blocks, self.objects);
    }
}

/// What can still be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Blocks.
    pub blocks: u64,
    /// Objects, if a quota limits them.
    pub objects: Option<u64>,
}

/// What an operation does to the usage of the subvolumes with a quota that it touches.
pub(crate) type Measured = Vec<(Arc<Usage>, Delta)>;

impl LocalMap {
    /// Limits what a subvolume may refer to, or limits it no longer. When this returns, its content
    /// was counted, and the limits hold.
    pub fn set_quota(&self, of: SubvolId, most: Most) -> Result<(), MapError> {
        // What nothing can reach is no limit.
        let limit = |number: Option<u64>| number.filter(|number| *number < COUNT_MAX);
        let most = Most { blocks: limit(most.blocks), objects: limit(most.objects) };
        {
            let mut superblock = self.superblock.lock();
            self.check_changeable(of).map_err(|_| Refusal::Absent)?;
            self.edit(&mut superblock, vec![Edit::Quota { of, most }])?;
        }
        self.count_usage(of)
    }

    /// The limits of a subvolume and what it refers to; `None`: it has no quota.
    pub fn quota(&self, of: SubvolId) -> Option<Quota> {
        let subvols = self.subvols.read();
        let subvol = subvols.get(&of).filter(|subvol| subvol.record.is_there())?;
        let (quota, usage) = (subvol.record.extended.quota?, subvol.usage.as_ref()?);
        Some(Quota { count: usage.count(), ..quota })
    }

    /// Whether any subvolume has a quota.
    pub fn has_quotas(&self) -> bool {
        let subvols = self.subvols.read();
        subvols.writable().any(|(_, subvol)| subvol.usage.is_some())
    }

    /// Says which snapshots of a subvolume are made by themselves.
    pub fn set_schedule(&self, of: SubvolId, schedule: Option<Schedule>) -> Result<(), MapError> {
        let mut superblock = self.superblock.lock();
        self.check_changeable(of).map_err(|_| Refusal::Absent)?;
        let schedule = schedule.filter(|schedule| *schedule != Schedule::default());
        self.edit(&mut superblock, vec![Edit::Schedule { of, schedule }])
    }

    /// The subvolumes of which snapshots are made by themselves.
    pub fn schedules(&self) -> Vec<(SubvolId, Schedule)> {
        let subvols = self.subvols.read();
        let there = subvols.writable().filter(|(_, subvol)| subvol.record.is_there());
        there.filter_map(|(id, subvol)| Some((id, subvol.record.extended.schedule?))).collect()
    }

    /// Counts the subvolumes with a quota that were not counted yet: a crash came in between, or
    /// they were rolled back to a time before they had one.
    pub fn count_usages(&self) -> Result<(), MapError> {
        let writable = self.writable_subvolumes();
        writable.into_iter().try_for_each(|of| self.count_usage(of))
    }

    fn count_usage(&self, of: SubvolId) -> Result<(), MapError> {
        let is_counted = || self.quota(of).is_none_or(|quota| quota.count.is_some());
        if is_counted() {
            return Ok(());
        }
        let _one_at_a_time = self.counting.lock();
        let Some(quota) = self.quota(of).filter(|quota| quota.count.is_none()) else {
            return Ok(());
        };
        let usage = Arc::new(Usage::new(&quota));
        let counted = {
            let mut superblock = self.superblock.lock();
            let edit = Edit::Recount { of, usage: Arc::clone(&usage) };
            self.edit(&mut superblock, vec![edit])?;
            self.pin_at(&superblock)
        };
        let count = counted.count(of)?;
        drop(counted);
        let mut superblock = self.superblock.lock();
        self.edit(&mut superblock, vec![Edit::Counted { of, usage, count }])
    }

    /// Space in numbers, as whoever adds to a subvolume finds it.
    pub fn space_of(&self, of: SubvolId) -> SpaceReport {
        let all = self.space();
        let Some(usage) = self.usage(of) else { return all };
        let (most, left) = usage.left();
        let total = most.blocks.map_or(all.total, |most| most.min(all.total));
        let available = left.blocks.map_or(all.available, |left| left.min(all.available));
        let used = total.saturating_sub(left.blocks.unwrap_or(available));
        let (objects, objects_left) = (most.objects, left.objects);
        SpaceReport { total, available, used, objects, objects_left }
    }

    /// What the quotas of subvolumes leave. One that is not counted yet leaves nothing for sure.
    pub fn rooms(&self) -> Vec<(SubvolId, Room)> {
        let subvols = self.subvols.read();
        let limited = subvols.writable().filter_map(|(id, subvol)| {
            subvol.record.is_there().then_some((id, subvol.usage.as_ref()?))
        });
        limited.map(|(id, usage)| (id, usage.room())).collect()
    }

    /// In these subvolumes nobody uses what is pledged, and in all others whoever it is pledged to
    /// may. Nothing may be pledged while one of them becomes one of the others.
    pub fn pledge_nothing_in(&self, subvols: &BTreeSet<SubvolId>) {
        for (id, subvol) in self.subvols.read().writable() {
            if let Some(usage) = &subvol.usage {
                usage.state.lock().has_pledges = !subvols.contains(&id);
            }
        }
    }

    /// What can be added, wherever what is pledged may be used: as little as in the subvolume whose
    /// quota leaves least.
    pub fn room_everywhere(&self) -> Room {
        let mut room = Room { blocks: self.space().available, objects: None };
        let subvols = self.subvols.read();
        for (_, subvol) in subvols.writable().filter(|(_, subvol)| subvol.record.is_there()) {
            let Some(usage) = subvol.usage.as_ref().filter(|it| it.state.lock().has_pledges) else {
                continue;
            };
            let left = usage.room();
            room.blocks = room.blocks.min(left.blocks);
            room.objects = match (room.objects, left.objects) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        room
    }

    /// What an operation that pays like this has to leave.
    pub(crate) fn terms(&self, paying: Paying) -> Terms<'_> {
        let leaves = (paying == Paying::Fully).then_some(&self.space);
        Terms { leaves, is_admitted: matches!(paying, Paying::Again | Paying::Already) }
    }

    pub(crate) fn usage(&self, of: SubvolId) -> Option<Arc<Usage>> {
        self.subvols.read().usage(of).cloned()
    }

    /// What changes of items do to quotas. The objects are locked.
    pub(crate) fn measure<'a>(
        &self,
        items: impl Iterator<Item = (&'a Key, &'a Change)>,
    ) -> Result<Measured, MapError> {
        let mut measured = Measured::new();
        let mut known: Option<(SubvolId, Option<Arc<Usage>>)> = None;
        for (key, new) in items.filter(|(key, _)| matches!(key.kind, Kind::FILE | Kind::INODE)) {
            if known.as_ref().is_none_or(|(subvol, _)| *subvol != key.subvol) {
                known = Some((key.subvol, self.usage(key.subvol)));
            }
            let Some((_, Some(usage))) = &known else { continue };
            let old = self.reading(|view, store| view.get(store, *key))?;
            let (old, new) = (weigh(*key, old.as_deref())?, weigh(*key, new.as_deref())?);
            if !measured.last().is_some_and(|(of, _)| Arc::ptr_eq(of, usage)) {
                measured.push((Arc::clone(usage), Delta::default()));
            }
            if let Some((_, delta)) = measured.last_mut() {
                delta.blocks = delta.blocks.saturating_add(new.blocks.saturating_sub(old.blocks));
                delta.objects += new.objects - old.objects;
            }
        }
        Ok(measured)
    }

    /// Charges for an operation that is about to be applied.
    pub(crate) fn admit<'a>(
        &self,
        items: impl Iterator<Item = (&'a Key, &'a Change)>,
        paying: Paying,
    ) -> Result<Vec<Reserved>, (MapError, Option<Arc<Usage>>)> {
        if paying == Paying::Already {
            return Ok(Vec::new());
        }
        let measured = self.measure(items).map_err(|error| (error, None))?;
        let charge = |(usage, delta): &(Arc<Usage>, Delta)| {
            usage
                .reserve(*delta, self.terms(paying))
                .map_err(|error| (error, Some(Arc::clone(usage))))
        };
        measured.iter().map(charge).collect()
    }

    /// Whether the counts of the last commit are what its trees say; what is wrong, of each
    /// subvolume.
    pub(crate) fn check_counts(&self) -> Vec<(SubvolId, MapError)> {
        let pin = self.pin();
        let limited = self.writable_subvolumes();
        let limited = limited.into_iter().filter(|of| self.usage(*of).is_some());
        let check = |of| Some((of, pin.check_count(of).err()?));
        limited.filter_map(check).collect()
    }
}

/// Notes in the usages what an operation has done to them.
pub(crate) fn note(measured: Measured) {
    for (usage, delta) in measured {
        usage.add(delta);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use gabion_base::disk::{Disk, MemDisk};
    use gabion_base::ids::{Ino, Uuid};

    use super::*;
    use crate::key::FileId;
    use crate::map::{Limits, OpenMode};
    use crate::open::{FormatOptions, format};
    use crate::scrub::scrub;
    use crate::txn::Txn;

    pub(super) fn usage(blocks: u64) -> Arc<Usage> {
        let most = Most { blocks: Some(blocks), objects: None };
        Arc::new(Usage::new(&Quota { most, count: Some(Count::default()) }))
    }

    #[test]
    fn what_is_over_the_limit_is_refused_and_charges_nothing() {
        let usage = usage(10);
        let owed = Owed::default();
        owed.charge(&usage, &[(0, 8)], Terms::default()).expect("room");
        assert!(owed.charge(&usage, &[(4, 11)], Terms::default()).is_err());
        assert_eq!(usage.left().1.blocks, Some(2));
        owed.charge(&usage, &[(4, 10)], Terms::default()).expect("room for two");
        assert_eq!(usage.left().1.blocks, Some(0));
        // What takes no more is not refused, and neither is what was there before.
        owed.charge(&usage, &[(0, 10)], Terms::default()).expect("nothing new");
        let again = Terms { is_admitted: true, ..Terms::default() };
        owed.charge(&usage, &[(20, 30)], again).expect("there before");
    }

    #[test]
    fn a_scrub_finds_a_wrong_count_and_a_new_one_is_right() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(8192));
        let (uuid, label) = (Uuid([7; 16]), String::new());
        let options = FormatOptions { uuid, label, name_seed: 5, created: 0, blocks: None };
        format(&disk, &options).expect("a large enough disk");
        let map = LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(0)).expect("whole");
        let of = map.create_subvolume().expect("room");
        let most = Most { blocks: Some(100), objects: None };
        map.set_quota(of, most).expect("a working disk");
        let findings = || {
            map.sync().expect("a working disk");
            let go_on = &mut |_: &_| std::ops::ControlFlow::Continue(());
            scrub(&map, go_on).expect("readable").findings
        };
        let put = |ino| {
            let key = FileId::new(of, Ino(ino)).key(Kind::INODE, 0);
            map.transact(|txn| txn.put(key, vec![1])).expect("room");
        };
        put(5);
        assert!(findings().is_empty());
        map.usage(of).expect("it is limited").add(Delta { blocks: 1, objects: 0 });
        put(6);
        let found = findings();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].error.to_string().contains("quota"), "{found:?}");
        map.set_quota(of, Most::default()).expect("a working disk");
        map.set_quota(of, most).expect("a working disk");
        assert!(findings().is_empty());
        assert_eq!(map.quota(of).and_then(|quota| quota.count).map(|count| count.objects), Some(2));
    }

    #[test]
    fn a_limit_that_nothing_can_reach_is_none() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(8192));
        let (uuid, label) = (Uuid([7; 16]), String::new());
        let options = FormatOptions { uuid, label, name_seed: 5, created: 0, blocks: None };
        format(&disk, &options).expect("a large enough disk");
        let open = || LocalMap::open(Arc::clone(&disk), OpenMode::ReadWrite, Limits::within(0));
        let map = open().expect("whole");
        let of = map.create_subvolume().expect("room");
        let most = Most { blocks: None, objects: Some(u64::MAX) };
        map.set_quota(of, most).expect("a working disk");
        map.commit().expect("a working disk");
        drop(map);
        assert_eq!(open().expect("it can be read").quota(of), None);
    }

    #[test]
    fn a_new_object_needs_a_block_and_an_object() {
        let usage = usage(1);
        let object = Delta { blocks: 0, objects: 1 };
        let first = usage.reserve(object, Terms::default()).expect("room for one");
        assert!(usage.reserve(object, Terms::default()).is_err());
        drop(first);
        usage.limit(Most { blocks: None, objects: Some(0) });
        assert!(usage.reserve(object, Terms::default()).is_err());
        let swap = Delta { blocks: 100, objects: -1 };
        assert!(usage.reserve(swap, Terms::default()).is_ok());
    }
}
