//! A client's copy of the ranges that it has leases on.
//!
//! Operations that only read run on it as they run on the map itself. What they touch that is not
//! covered is what has to be acquired; then they run again. Bytes of files are covered, but not
//! kept here: the kernel keeps them.
//!
//! Invariant: every item in a covered range is here as it is at the server, and no item outside of
//! covered ranges is here at all.

use std::collections::BTreeMap;

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::format::item::decode_file;
use gabion_map::txn::{FileExtent, Payload, Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Stop, Txn, Value};

use crate::message::Grant;
use crate::range::{KeyRange, RangeSet};

/// Leased ranges and their items.
#[derive(Debug, Default)]
pub struct Cache {
    covered: BTreeMap<FileId, RangeSet>,
    items: BTreeMap<Key, Value>,
}

impl Cache {
    /// Whether all of `range` is covered.
    pub fn covers(&self, range: &KeyRange) -> bool {
        self.covered.get(&range.file()).is_some_and(|set| set.covers(range))
    }

    /// The covered parts of `range`.
    pub fn parts(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.covered.get(&range.file()).map_or_else(Vec::new, |set| set.parts(range))
    }

    /// Takes a lease with what is in it.
    pub fn grant(&mut self, grant: Grant) {
        self.clear(&grant.range);
        self.covered.entry(grant.range.file()).or_default().insert(&grant.range);
        let inside = grant.items.into_iter().filter(|(key, _)| grant.range.contains(*key));
        self.items.extend(inside);
    }

    /// Takes note of items as they are now.
    pub fn update(&mut self, updates: Vec<(Key, Option<Value>)>) {
        for (key, value) in updates {
            if !self.covers(&KeyRange::key(key)) {
                continue;
            }
            match value {
                Some(value) => self.items.insert(key, value),
                None => self.items.remove(&key),
            };
        }
    }

    /// Forgets a range.
    pub fn revoke(&mut self, range: &KeyRange) {
        self.clear(range);
        if let Some(set) = self.covered.get_mut(&range.file()) {
            set.remove(range);
            if set.is_empty() {
                self.covered.remove(&range.file());
            }
        }
    }

    /// Forgets everything.
    pub fn clear_all(&mut self) {
        self.covered.clear();
        self.items.clear();
    }

    /// All ranges that are covered.
    pub fn ranges(&self) -> Vec<KeyRange> {
        self.covered.iter().flat_map(|(file, set)| set.of(*file)).collect()
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
        let keys: Vec<Key> =
            self.items.range(range.first()..=range.last()).map(|(key, _)| *key).collect();
        for key in keys {
            self.items.remove(&key);
        }
    }
}

/// One attempt at an operation that only reads.
pub struct CacheTxn<'c> {
    cache: &'c Cache,
    missing: Vec<KeyRange>,
}

impl<'c> CacheTxn<'c> {
    /// An attempt on `cache`.
    pub fn new(cache: &'c Cache) -> Self {
        Self { cache, missing: Vec::new() }
    }

    /// What has to be acquired before the operation runs again.
    pub fn missing(&self) -> &[KeyRange] {
        &self.missing
    }

    /// The same, taken out.
    pub fn into_missing(self) -> Vec<KeyRange> {
        self.missing
    }

    fn ensure(&mut self, range: KeyRange) -> Result<(), Stop> {
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
