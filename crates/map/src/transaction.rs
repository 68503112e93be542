//! Operations on the local map: the driver of [`Txn`] and its implementation.
//!
//! [`LocalMap::transact`] runs an operation until it has what it needs:
//!
//! 1. Lock what is known to be needed, in order; run the operation.
//! 2. It asks for a lock: give up all locks, remember, start again.
//! 3. It asks for space that only a commit can free, for a file's accepted bytes to be in its
//!    items, or for a writeback to end that it would write over: give up all locks, commit, write
//!    back or wait, start again.
//! 4. It is done: apply its changes, give up the locks, help if memory is short.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_base::ids::{Ino, SubvolId};

use crate::changes::Changes;
use crate::error::MapError;
use crate::file::FileState;
use crate::format::item::Access;
use crate::key::{FileId, INO_END, Key, Kind};
use crate::locks::{Held, Wanted};
use crate::map::LocalMap;
use crate::quota::{Paying, Reserved, Usage};
use crate::space::Claim;
use crate::txn::{
    Failure, FileExtent, LockMode, Payload, Removal, SeekTarget, Stop, Txn, VALUE_LENGTH_MAX, Value,
};

/// Commits that an operation waits for in the hope of space, before it fails for lack of it: one
/// frees what was removed before it, a second what the first one's own work replaced.
const COMMITS_FOR_SPACE: usize = 2;
/// The same while others' bytes are being written, whose blocks count twice until that is done, or
/// others hold blocks, which they may not get. A commit waits for what is being written, and more
/// may begin meanwhile.
const COMMITS_IN_FLIGHT: usize = 16;
/// Blocks that an operation without file bytes must find available.
const ITEM_BLOCKS: u64 = 8;

/// One attempt at one operation on the local map.
pub struct LocalTxn<'m> {
    pub(crate) map: &'m LocalMap,
    pub(crate) held: Held<'m>,
    pub(crate) changes: Changes,
    wants: Option<Wants>,
    /// Commits that were waited for so far.
    commits: usize,
    effect: Effect,
    paying: Paying,
}

/// Whether an operation used memory that somebody has to write out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Changed,
}

/// What the driver does with all locks given up.
#[derive(Clone, Copy)]
enum Wants {
    /// Commit, so that freed blocks can be used.
    Space,
    /// Write a file's accepted bytes.
    Settled(FileId),
    /// Wait until the file may be written.
    Unfenced(FileId),
}

impl LocalMap {
    /// Runs an operation and applies its changes. See [`Txn`] for what it may do. No locks may be
    /// held: it may have to commit.
    pub fn transact<T, E: Failure>(
        &self,
        operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let passage = self.passage.pass();
        let (value, effect) = self.run(operation)?;
        drop(passage);
        if effect == Effect::Changed {
            self.relieve().map_err(Stop::from)?;
        }
        Ok(value)
    }

    /// Runs an operation and applies its changes. Only an operation that asks for space or for a
    /// settled file makes it wait for more than locks.
    pub(crate) fn attempt<T, E: Failure>(
        &self,
        operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.run(operation).map(|(value, _)| value)
    }

    fn run<T, E: Failure>(
        &self,
        mut operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T, E>,
    ) -> Result<(T, Effect), E> {
        let mut wanted = Wanted::default();
        let mut commits = 0;
        loop {
            let mut txn = LocalTxn {
                map: self,
                held: Held::acquire(&self.locks, &wanted),
                changes: Changes::default(),
                wants: None,
                commits,
                effect: Effect::None,
                paying: Paying::default(),
            };
            let outcome = operation(&mut txn).and_then(|value| Ok((value, txn.admit()?)));
            let LocalTxn { changes, held, wants, mut effect, .. } = txn;
            match outcome {
                Ok((value, _reserved)) => {
                    if !changes.is_empty() {
                        effect = Effect::Changed;
                        self.apply(changes).map_err(Stop::from)?;
                    }
                    drop(held);
                    return Ok((value, effect));
                }
                Err(error) => {
                    for run in changes.set_aside {
                        self.alloc.give_back(run).map_err(Stop::from)?;
                    }
                    if let Some(wants) = wants {
                        drop(held);
                        match wants {
                            Wants::Space => {
                                commits += 1;
                                self.commit().map_err(Stop::from)?;
                            }
                            Wants::Settled(file) => {
                                self.flush_file(file).map_err(Stop::from)?;
                            }
                            Wants::Unfenced(file) => {
                                if let Some(state) = self.files.find(file) {
                                    state.fence.wait();
                                }
                            }
                        }
                        continue;
                    }
                    let Some((file, mode)) = error.need() else { return Err(error) };
                    held.remember(&mut wanted);
                    wanted.add(file, mode);
                }
            }
        }
    }
}

impl LocalMap {
    /// Takes `count` inode numbers of `subvol` that nobody has used, and gives the first. What is
    /// not used of them before a crash may be given once more after it, unless a commit came
    /// between.
    pub fn reserve_inodes(&self, subvol: SubvolId, count: u64) -> Result<Ino, MapError> {
        self.check_writable()?;
        let subvols = self.subvols.read();
        let found = subvols.get(&subvol).filter(|s| s.record.access == Access::Writable);
        let found = found.ok_or(MapError::ReadOnly)?;
        let number = |next: u64| next.checked_add(count).filter(|end| *end <= INO_END);
        let first = found.next_ino.fetch_update(Ordering::Relaxed, Ordering::Relaxed, number);
        if count > 1 {
            // Nothing else says that there is something to commit.
            self.forest_changed.store(true, Ordering::Release);
        }
        first.map(Ino).map_err(|_| MapError::NoSpace)
    }
}

impl LocalTxn<'_> {
    /// Locks `file` or stops.
    pub(crate) fn ensure(&mut self, file: FileId, mode: LockMode) -> Result<(), Stop> {
        if self.held.ensure(file, mode) { Ok(()) } else { Err(Stop::Need { file, mode }) }
    }

    /// Stops unless `blocks` more can be promised.
    pub(crate) fn ensure_space(&mut self, blocks: u64) -> Result<(), Stop> {
        self.ensure_space_for(0, blocks)
    }

    /// Stops unless the blocks that it holds, `own` of all that are held, can be promised.
    pub(crate) fn ensure_held(&mut self, own: u64) -> Result<(), Stop> {
        self.ensure_space_for(own, 0)
    }

    fn ensure_space_for(&mut self, own: u64, blocks: u64) -> Result<(), Stop> {
        let due = self.map.space.due(self.map.uncommitted());
        let commits_max = match due.in_flight > 0 || due.held > own as i64 {
            false => COMMITS_FOR_SPACE,
            true => COMMITS_IN_FLIGHT,
        };
        let free = self.map.alloc.free();
        let claim = match self.paying {
            Paying::Fully => Claim::New,
            Paying::FromPledged | Paying::Already => Claim::Pledged,
            Paying::Again => Claim::Again,
        };
        let available = self.map.space.available(due, free, claim);
        let enough = available >= blocks as i64;
        if enough && self.map.space.covers(due, free, blocks) {
            return Ok(());
        }
        let is_hopeless = self.map.space.is_hopeless(due, free, own + blocks, claim);
        if is_hopeless || self.commits >= commits_max {
            return Err(Stop::Map(MapError::NoSpace));
        }
        // Any stop will do: the driver looks at what is wanted first.
        self.wants = Some(Wants::Space);
        Err(Stop::Map(MapError::NoSpace))
    }

    /// The operation was done elsewhere, where it was promised room: it may use what is pledged.
    pub fn pay_from_pledged(&mut self) {
        self.paying = Paying::FromPledged;
    }

    /// The operation is done again, as a crash has undone it.
    pub fn pay_again(&mut self) {
        self.paying = Paying::Again;
    }

    /// What the operation adds was charged when it was accepted.
    pub(crate) fn pay_already(&mut self) {
        self.paying = Paying::Already;
    }

    /// Charges quotas for all changes, or stops.
    fn admit(&mut self) -> Result<Vec<Reserved>, Stop> {
        self.map.admit(self.changes.items.iter(), self.paying).map_err(|(error, usage)| {
            if let Some(usage) = usage {
                self.wait_for_usage(&usage);
            }
            Stop::Map(error)
        })
    }

    /// Charges the file's subvolume for blocks `from..to` as far as they are new to it, or stops.
    /// The blocks are locked.
    pub(crate) fn charge(&mut self, state: &FileState, from: u64, to: u64) -> Result<(), Stop> {
        let Some(usage) = self.map.usage(state.file.subvol) else { return Ok(()) };
        let mut new = Vec::new();
        let mut at = from;
        for piece in self.pieces(state.file, from, to, usize::MAX)? {
            // Inline bytes have no block.
            if piece.run().is_some() {
                new.extend((at < piece.block).then_some((at, piece.block)));
                at = at.max(piece.end());
            }
        }
        new.extend((at < to).then_some((at, to)));
        state.owed.charge(&usage, &new, self.map.terms(self.paying)).map_err(|error| {
            self.wait_for_usage(&usage);
            Stop::Map(error)
        })
    }

    /// What others have accepted may take less than it was charged for, once it is written.
    fn wait_for_usage(&mut self, usage: &Usage) {
        if self.commits < COMMITS_FOR_SPACE && usage.is_waited_for() {
            self.wants = Some(Wants::Space);
        }
    }

    /// What was wanted turned out not to be needed.
    pub(crate) fn forget_wants(&mut self) {
        self.wants = None;
    }

    /// Stops unless all bytes of `file` are in its items.
    pub(crate) fn ensure_settled(&mut self, file: FileId) -> Result<(), Stop> {
        if self.has_unwritten_bytes(file)? {
            self.wants = Some(Wants::Settled(file));
            return Err(Stop::Map(MapError::NoSpace));
        }
        Ok(())
    }

    /// Stops as long as a writeback keeps writers away from the file, which is locked.
    pub(crate) fn ensure_unfenced(&mut self, state: &FileState) -> Result<(), Stop> {
        if state.fence.is_up() {
            self.wants = Some(Wants::Unfenced(state.file));
            return Err(Stop::Map(MapError::NoSpace));
        }
        Ok(())
    }

    /// The state of a file in motion.
    pub(crate) fn state(&self, file: FileId) -> Option<Arc<FileState>> {
        self.map.files.find(file)
    }

    /// A file's FILE item as this operation sees it.
    pub(crate) fn extent(&mut self, file: FileId) -> Result<FileExtent, Stop> {
        let key = file.key(Kind::FILE, 0);
        match self.get(key)? {
            None => Ok(FileExtent::default()),
            Some(value) => Ok(crate::format::item::decode_file(&value)
                .map_err(|source| MapError::BadItem { key, source })?),
        }
    }

    pub(crate) fn put_extent(&mut self, file: FileId, extent: FileExtent) {
        let value = crate::format::item::encode_file(extent);
        self.changes.items.insert(file.key(Kind::FILE, 0), Some(Value::from(value)));
    }

    /// The last item with `from <= key <= to`.
    pub(crate) fn last(&mut self, from: Key, to: Key) -> Result<Option<(Key, Value)>, Stop> {
        self.ensure(from.file(), LockMode::Shared)?;
        let overlay = &self.changes.items;
        Ok(self.map.reading(|view, store| view.last(store, overlay, from, to))?)
    }
}

impl Txn for LocalTxn<'_> {
    fn lock(&mut self, file: FileId, mode: LockMode) -> Result<(), Stop> {
        self.ensure(file, mode)
    }

    fn get(&mut self, key: Key) -> Result<Option<Value>, Stop> {
        self.ensure(key.file(), LockMode::Shared)?;
        if let Some(change) = self.changes.items.get(&key) {
            return Ok(change.clone());
        }
        Ok(self.map.reading(|view, store| view.get(store, key))?)
    }

    fn prefetch(&mut self, keys: &[Key]) -> Result<(), Stop> {
        Ok(self.map.reading(|view, store| view.prefetch(store, keys))?)
    }

    fn scan(&mut self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, Stop> {
        assert_eq!(from.file(), to.file(), "a scan of one object");
        self.ensure(from.file(), LockMode::Shared)?;
        let overlay = &self.changes.items;
        Ok(self.map.reading(|view, store| view.scan(store, overlay, from, to, limit))?)
    }

    fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), Stop> {
        if value.len() > VALUE_LENGTH_MAX {
            return Err(Stop::Map(MapError::ItemTooLong { key, length: value.len() }));
        }
        self.ensure(key.file(), LockMode::Exclusive)?;
        self.changes.items.insert(key, Some(Value::from(value)));
        Ok(())
    }

    fn delete(&mut self, key: Key) -> Result<(), Stop> {
        self.ensure(key.file(), LockMode::Exclusive)?;
        self.changes.items.insert(key, None);
        Ok(())
    }

    fn new_inode(&mut self, subvol: SubvolId) -> Result<Ino, Stop> {
        let ino = self.map.reserve_inodes(subvol, 1)?;
        self.ensure(FileId::new(subvol, ino), LockMode::Exclusive)?;
        Ok(ino)
    }

    fn require_space(&mut self) -> Result<(), Stop> {
        self.ensure_space(ITEM_BLOCKS)
    }

    fn file(&mut self, file: FileId) -> Result<FileExtent, Stop> {
        let mut extent = self.extent(file)?;
        if let Some((_, size)) = self.changes.sizes.iter().rev().find(|(id, _)| *id == file) {
            extent.size = *size;
        } else if let Some(state) = self.state(file) {
            extent.size = state.size();
            extent.blocks += state.dirty_blocks();
        }
        Ok(extent)
    }

    fn set_size(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        self.resize(file, size)
    }

    fn punch(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.punch_hole(file, from, to)
    }

    fn allocate(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.set_aside(file, from, to)
    }

    fn share(
        &mut self,
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
    ) -> Result<(), Stop> {
        self.share_range(source, source_offset, target, target_offset, length)
    }

    fn collapse(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop> {
        self.collapse_range(file, offset, length)
    }

    fn insert(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop> {
        self.insert_range(file, offset, length)
    }

    fn remove_bytes(&mut self, file: FileId) -> Result<Removal, Stop> {
        self.remove_extents(file)
    }

    fn seek(&mut self, file: FileId, offset: u64, target: SeekTarget) -> Result<Option<u64>, Stop> {
        self.seek_range(file, offset, target)
    }

    fn read(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize, Stop> {
        self.ensure(file, LockMode::Shared)?;
        self.read_bytes(file, offset, into)
    }

    fn write(&mut self, file: FileId, offset: u64, payload: Payload<'_>) -> Result<(), Stop> {
        self.ensure(file, LockMode::Shared)?;
        self.map.check_writable()?;
        self.map.check_changeable(file.subvol)?;
        self.effect = Effect::Changed;
        self.write_bytes(file, offset, payload)
    }

    fn has_unwritten_bytes(&mut self, file: FileId) -> Result<bool, Stop> {
        self.ensure(file, LockMode::Shared)?;
        Ok(self.state(file).is_some_and(|state| !state.is_settled()))
    }
}
