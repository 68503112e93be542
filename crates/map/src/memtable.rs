//! Items changed since a commit, in memory.
//!
//! Sharded by object, so that operations on different objects rarely meet; all items of one object
//! are in one shard, so a scan looks into one. A removed item is remembered as `None`, because the
//! tree below still has it. After the freeze a memtable never changes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::ids::Txg;
use gabion_base::sync::{CachePadded, RwLock};

use crate::key::{FileId, Key};
use crate::txn::Value;

const SHARDS: usize = 64;
/// What an item costs in memory beyond its value: key, pointers, and its part of a tree node.
const ITEM_OVERHEAD: u64 = 96;

/// Items changed by one transaction group.
pub struct Memtable {
    txg: Txg,
    shards: Vec<CachePadded<RwLock<Shard>>>,
    bytes: CachePadded<AtomicU64>,
    objects: CachePadded<AtomicU64>,
}

#[derive(Default)]
struct Shard {
    items: BTreeMap<Key, Option<Value>>,
    objects: BTreeSet<FileId>,
}

/// What a memtable says about a key.
pub type Change = Option<Value>;

impl Memtable {
    /// The empty memtable of `txg`.
    pub fn new(txg: Txg) -> Self {
        Self {
            txg,
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            bytes: CachePadded::default(),
            objects: CachePadded::default(),
        }
    }

    /// The transaction group whose changes it holds.
    pub fn txg(&self) -> Txg {
        self.txg
    }

    /// Memory that the items take, roughly, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of objects that were touched.
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.objects() == 0
    }

    /// The change of `key`, if there is one.
    pub fn get(&self, key: Key) -> Option<Change> {
        self.shard(key.file()).read().items.get(&key).cloned()
    }

    /// The first `limit` changes with `from <= key <= to`, both of one object.
    pub fn scan(&self, from: Key, to: Key, limit: usize) -> Vec<(Key, Change)> {
        let shard = self.shard(from.file()).read();
        let range = shard.items.range(from..=to).take(limit);
        range.map(|(key, change)| (*key, change.clone())).collect()
    }

    /// The last change with `from <= key <= to`, both of one object.
    pub fn last(&self, from: Key, to: Key) -> Option<(Key, Change)> {
        let shard = self.shard(from.file()).read();
        shard.items.range(from..=to).next_back().map(|(key, change)| (*key, change.clone()))
    }

    /// Records changes.
    pub fn apply(&self, changes: &[(Key, Change)]) {
        let mut rest = changes;
        while let Some((first, _)) = rest.first() {
            let file = first.file();
            let count = rest.iter().take_while(|(key, _)| key.file() == file).count();
            let (same, others) = rest.split_at(count);
            rest = others;
            let mut bytes = 0_i64;
            let mut shard = self.shard(file).write();
            if shard.objects.insert(file) {
                self.objects.fetch_add(1, Ordering::Relaxed);
            }
            for (key, change) in same {
                bytes += size(change) as i64;
                match shard.items.insert(*key, change.clone()) {
                    Some(old) => bytes -= size(&old) as i64,
                    None => bytes += ITEM_OVERHEAD as i64,
                }
            }
            drop(shard);
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// All changes in key order.
    pub fn sorted(&self) -> Vec<(Key, Change)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            all.extend(shard.items.iter().map(|(key, change)| (*key, change.clone())));
        }
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    fn shard(&self, file: FileId) -> &RwLock<Shard> {
        &self.shards[(spread(file) >> 32) as usize % SHARDS]
    }
}

fn size(change: &Change) -> u64 {
    change.as_ref().map_or(0, |value| value.len() as u64)
}

/// Spreads consecutive inode numbers over all bits (Fibonacci hashing).
pub fn spread(file: FileId) -> u64 {
    (file.ino.0 ^ u64::from(file.subvol.0) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;
    use crate::key::Kind;

    #[test]
    fn removals_are_remembered_and_counted() {
        let table = Memtable::new(Txg(1));
        let file = FileId::new(SubvolId(1), Ino(5));
        let key = |at| file.key(Kind::DATA, at);
        table.apply(&[(key(0), Some(Value::from([1; 10]))), (key(8), None)]);
        assert_eq!(table.get(key(8)), Some(None));
        assert_eq!(table.get(key(9)), None);
        assert_eq!(table.last(key(0), key(7)), Some((key(0), Some(Value::from([1; 10])))));
        assert_eq!(table.scan(key(0), key(99), 9).len(), 2);
        assert_eq!(table.bytes(), 2 * ITEM_OVERHEAD + 10);
        table.apply(&[(key(0), None)]);
        assert_eq!(table.bytes(), 2 * ITEM_OVERHEAD);
        assert_eq!(table.objects(), 1);
    }
}
