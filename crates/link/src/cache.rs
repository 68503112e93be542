//! A client's copy of the ranges that it has leases on.
//!
//! Operations that only read run on it as they run on the map itself ([`CacheTxn`]); those that
//! change something, too, where the leases are exclusive ([`ChangeTxn`](crate::change::ChangeTxn)).
//! What they touch that is not covered is what has to be acquired; then they run again. Bytes of
//! files are covered, but not kept here: the kernel keeps them.
//!
//! Invariants: every item in a covered range is here, as it is at the server or, if the lease is
//! exclusive, as it will be there when all changes that were made here are applied. No item
//! outside of covered ranges is here at all. What is exclusive is covered. An object that is gone
//! is not covered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::format::item::decode_file;
use gabion_map::txn::{FileExtent, Payload, Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Stop, Txn, Value};

use crate::message::Grant;
use crate::range::{KeyRange, RangeSet};
use crate::table::Keep;

/// This part of the limit is given up at once, lest each new object should cost an old one.
const EXCESS_PART: usize = 16;

/// What is leased of one object.
#[derive(Debug, Default)]
struct Covered {
    all: RangeSet,
    exclusive: RangeSet,
    /// Whether it was looked at since it was last thought of giving it up.
    is_used: AtomicBool,
    /// It was named as one to be given up.
    is_leaving: bool,
}

/// Leased ranges and their items.
#[derive(Debug, Default)]
pub struct Cache {
    covered: BTreeMap<FileId, Covered>,
    items: BTreeMap<Key, Value>,
    /// Objects in the order in which it is thought of giving them up; some are gone already.
    queue: VecDeque<FileId>,
    leaving: usize,
}

impl Cache {
    /// Whether all of `range` is covered.
    pub fn covers(&self, range: &KeyRange) -> bool {
        self.covers_as(range, LockMode::Shared)
    }

    /// Whether all of `range` is covered as `mode` says.
    pub fn covers_as(&self, range: &KeyRange, mode: LockMode) -> bool {
        self.covered.get(&range.file()).is_some_and(|covered| {
            if !covered.is_used.load(Ordering::Relaxed) {
                covered.is_used.store(true, Ordering::Relaxed);
            }
            match mode {
                LockMode::Shared => covered.all.covers(range),
                LockMode::Exclusive => covered.exclusive.covers(range),
            }
        })
    }

    /// The covered parts of `range`.
    pub fn parts(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.covered.get(&range.file()).map_or_else(Vec::new, |covered| covered.all.parts(range))
    }

    /// The item at `key`, if it is covered and there.
    pub fn item(&self, key: Key) -> Option<&Value> {
        self.items.get(&key)
    }

    /// All items, in the order of their keys.
    pub fn items(&self) -> impl Iterator<Item = (Key, &Value)> {
        self.items.iter().map(|(key, value)| (*key, value))
    }

    /// The keys of all items in `range`.
    pub fn keys(&self, range: &KeyRange) -> impl Iterator<Item = Key> {
        self.items.range(range.first()..=range.last()).map(|(key, _)| *key)
    }

    /// Takes a lease with what is in it. What is exclusive already stays as it is: the server does
    /// not know it yet.
    pub fn grant(&mut self, grant: Grant) {
        let Grant { range, mode, items } = grant;
        let covered = self.covered(range.file());
        let parts = match mode {
            LockMode::Shared => covered.exclusive.gaps(&range),
            LockMode::Exclusive => vec![range],
        };
        covered.all.insert(&range);
        if mode == LockMode::Exclusive {
            covered.exclusive.insert(&range);
        }
        parts.iter().for_each(|part| self.clear(part));
        let inside = |(key, _): &(Key, Value)| parts.iter().any(|part| part.contains(*key));
        self.items.extend(items.into_iter().filter(inside));
    }

    /// Takes note of items as they are now.
    pub fn update(&mut self, updates: impl IntoIterator<Item = (Key, Option<Value>)>) {
        for (key, value) in updates {
            if !self.covers(&KeyRange::key(key)) {
                continue;
            }
            match value {
                Some(value) => drop(self.items.insert(key, value)),
                None if key.kind == Kind::INODE => self.revoke(&KeyRange::everything(key.file())),
                None => drop(self.items.remove(&key)),
            };
        }
    }

    fn covered(&mut self, file: FileId) -> &mut Covered {
        self.covered.entry(file).or_insert_with(|| {
            self.queue.push_back(file);
            Covered::default()
        })
    }

    /// If more than `limit` objects are leased: some that were not looked at for long, which had
    /// better be given up, and none that `is_needed`. Each is named once.
    pub fn excess(&mut self, limit: usize, is_needed: impl Fn(FileId) -> bool) -> Vec<FileId> {
        let mut victims = Vec::new();
        let staying = self.covered.len() - self.leaving;
        if staying <= limit {
            return victims;
        }
        let wanted = (staying - limit).max(limit / EXCESS_PART);
        let mut looks = 2 * self.queue.len();
        while victims.len() < wanted && looks > 0 {
            looks -= 1;
            let Some(file) = self.queue.pop_front() else { break };
            match self.covered.get_mut(&file) {
                None => {}
                Some(covered) if covered.is_leaving => {}
                Some(covered) if covered.is_used.swap(false, Ordering::Relaxed) => {
                    self.queue.push_back(file);
                }
                Some(_) if is_needed(file) => self.queue.push_back(file),
                Some(covered) => {
                    covered.is_leaving = true;
                    self.leaving += 1;
                    victims.push(file);
                }
            }
        }
        victims
    }

    /// All of a new object is this client's.
    pub fn made(&mut self, file: FileId) {
        let covered = self.covered(file);
        covered.all.insert(&KeyRange::object(file));
        covered.exclusive.insert(&KeyRange::object(file));
    }

    /// Forgets a range.
    pub fn revoke(&mut self, range: &KeyRange) {
        self.give_up(range, Keep::Nothing);
    }

    /// Gives up a range, but for what is to be kept of it.
    pub fn give_up(&mut self, range: &KeyRange, keep: Keep) {
        if keep == Keep::Nothing {
            self.clear(range);
        }
        if let Some(covered) = self.covered.get_mut(&range.file()) {
            covered.exclusive.remove(range);
            if keep == Keep::Nothing {
                covered.all.remove(range);
            }
            if covered.all.is_empty() {
                self.leaving -= usize::from(covered.is_leaving);
                self.covered.remove(&range.file());
            }
        }
    }

    /// Whether any bytes of the file are exclusively leased.
    pub fn has_bytes(&self, file: FileId) -> bool {
        let bytes = KeyRange::bytes_from(file, 0);
        self.covered.get(&file).is_some_and(|covered| covered.exclusive.overlaps(&bytes))
    }

    /// Gives up what is exclusive of the bytes of a file, of which nothing is kept here. Whether
    /// there was any.
    pub fn yield_bytes(&mut self, file: FileId) -> bool {
        let is_yielded = self.has_bytes(file);
        if is_yielded {
            let bytes = KeyRange::bytes_from(file, 0);
            let parts = self.covered[&file].exclusive.parts(&bytes);
            parts.iter().for_each(|part| self.give_up(part, Keep::Nothing));
        }
        is_yielded
    }

    /// Forgets everything.
    pub fn clear_all(&mut self) {
        *self = Self::default();
    }

    /// All ranges that are covered.
    pub fn ranges(&self) -> Vec<KeyRange> {
        self.covered.iter().flat_map(|(file, covered)| covered.all.of(*file)).collect()
    }

    /// Items that are kept.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no items are kept.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn clear(&mut self, range: &KeyRange) {
        // Ranges of bytes have no items here, and most others few.
        for key in self.keys(range).collect::<Vec<Key>>() {
            self.items.remove(&key);
        }
    }
}

/// One attempt at an operation that only reads.
pub struct CacheTxn<'c> {
    cache: &'c Cache,
    missing: Vec<KeyRange>,
    looked_at: Vec<FileId>,
}

impl<'c> CacheTxn<'c> {
    /// An attempt on `cache`.
    pub fn new(cache: &'c Cache) -> Self {
        Self { cache, missing: Vec::new(), looked_at: Vec::new() }
    }

    /// The objects that it has looked at so far, some of them several times.
    pub fn looked_at(&self) -> &[FileId] {
        &self.looked_at
    }

    /// What has to be acquired before the operation runs again.
    pub fn missing(&self) -> &[KeyRange] {
        &self.missing
    }

    /// The same, taken out.
    pub fn into_missing(self) -> Vec<KeyRange> {
        self.missing
    }

    fn look_at(&mut self, file: FileId) {
        if self.looked_at.last() != Some(&file) {
            self.looked_at.push(file);
        }
    }

    fn ensure(&mut self, range: KeyRange) -> Result<(), Stop> {
        self.look_at(range.file());
        if self.cache.covers(&range) {
            return Ok(());
        }
        self.missing.push(range);
        Err(Stop::Lease)
    }
}

/// What only operations that change something ask for: those run at the server.
fn not_here<T>() -> Result<T, Stop> {
    Err(Stop::Map(MapError::ReadOnly))
}

impl Txn for CacheTxn<'_> {
    fn lock(&mut self, _: FileId, mode: LockMode) -> Result<(), Stop> {
        match mode {
            LockMode::Shared => Ok(()),
            LockMode::Exclusive => not_here(),
        }
    }

    fn get(&mut self, key: Key) -> Result<Option<Value>, Stop> {
        self.ensure(KeyRange::around(key))?;
        Ok(self.cache.items.get(&key).cloned())
    }

    fn scan(&mut self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, Stop> {
        self.look_at(from.file());
        let wanted = KeyRange::new(from, to).expect("a scan of one object");
        let attributes = KeyRange::attributes(from.file());
        let wanted = if attributes.covers(&wanted) { attributes } else { wanted };
        // Of a range that is covered at its head only, the head may be all that is asked for.
        let head = self.cache.parts(&wanted).into_iter().next();
        let head = head.filter(|head| head.first() == wanted.first());
        let Some(head) = head else {
            self.missing.push(wanted);
            return Err(Stop::Lease);
        };
        let items = self.cache.items.range(from..=to.min(head.last()));
        let items: Vec<(Key, Value)> =
            items.take(limit).map(|(key, value)| (*key, Value::clone(value))).collect();
        if items.len() < limit && head.last() < wanted.last() {
            let rest = head.last().successor().and_then(|next| KeyRange::new(next, wanted.last()));
            self.missing.extend(rest);
            return Err(Stop::Lease);
        }
        Ok(items)
    }

    fn file(&mut self, file: FileId) -> Result<FileExtent, Stop> {
        let key = file.key(Kind::FILE, 0);
        match self.get(key)? {
            None => Ok(FileExtent::default()),
            Some(value) => {
                decode_file(&value).map_err(|source| MapError::BadItem { key, source }.into())
            }
        }
    }

    fn require_space(&mut self) -> Result<(), Stop> {
        not_here()
    }

    fn has_unwritten_bytes(&mut self, _: FileId) -> Result<bool, Stop> {
        not_here()
    }

    fn put(&mut self, _: Key, _: Vec<u8>) -> Result<(), Stop> {
        not_here()
    }

    fn delete(&mut self, _: Key) -> Result<(), Stop> {
        not_here()
    }

    fn new_inode(&mut self, _: SubvolId) -> Result<Ino, Stop> {
        not_here()
    }

    fn set_size(&mut self, _: FileId, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn punch(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn allocate(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn share(&mut self, _: FileId, _: u64, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn collapse(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn insert(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        not_here()
    }

    fn remove_bytes(&mut self, _: FileId) -> Result<Removal, Stop> {
        not_here()
    }

    fn seek(&mut self, _: FileId, _: u64, _: SeekTarget) -> Result<Option<u64>, Stop> {
        not_here()
    }

    fn read(&mut self, _: FileId, _: u64, _: &mut [u8]) -> Result<usize, Stop> {
        not_here()
    }

    fn write(&mut self, _: FileId, _: u64, _: Payload<'_>) -> Result<(), Stop> {
        not_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    fn lease(cache: &mut Cache, number: u64) {
        let range = KeyRange::attributes(file(number));
        cache.grant(Grant { range, mode: LockMode::Shared, items: Vec::new() });
    }

    #[test]
    fn what_was_not_looked_at_for_long_is_given_up_first_and_named_once() {
        let mut cache = Cache::default();
        let is_needed = |one: FileId| one == file(5);
        (1..=100).for_each(|number| lease(&mut cache, number));
        assert_eq!(cache.excess(100, is_needed), []);
        lease(&mut cache, 101);
        cache.covers(&KeyRange::attributes(file(1)));
        cache.covers(&KeyRange::attributes(file(3)));
        let given_up: Vec<FileId> = [2, 4, 6, 7, 8, 9].map(file).into();
        assert_eq!(cache.excess(100, is_needed), given_up);
        assert!(cache.excess(100, is_needed).iter().all(|file| !given_up.contains(file)));
    }

    #[test]
    fn what_is_needed_stays_though_there_is_no_room_for_it() {
        let mut cache = Cache::default();
        (1..=100).for_each(|number| lease(&mut cache, number));
        let given_up = cache.excess(10, |one| one.ino.0 > 20);
        assert_eq!(given_up, (1..=20).map(file).collect::<Vec<FileId>>());
        assert_eq!(cache.excess(10, |one| one.ino.0 > 20), []);
        assert_eq!(cache.excess(10, |_| false).len(), 70);
    }

    #[test]
    fn what_is_exclusive_is_not_replaced_by_what_the_server_knows() {
        let mut cache = Cache::default();
        let key = file(1).key(Kind::INODE, 0);
        let value = |text: &str| Value::from(text.as_bytes());
        cache.made(file(1));
        cache.update([(key, Some(value("new")))]);
        let range = KeyRange::attributes(file(1));
        let items = vec![(key, value("old"))];
        cache.grant(Grant { range, mode: LockMode::Shared, items });
        assert_eq!(cache.item(key), Some(&value("new")));
        cache.give_up(&range, Keep::Shared);
        assert!(cache.covers(&range) && !cache.covers_as(&range, LockMode::Exclusive));
        cache.update([(key, None)]);
        assert!(cache.is_empty() && cache.ranges().is_empty(), "what is gone is not covered");
    }
}
