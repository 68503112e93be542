//! The forest as a commit writes it: records, deadlists, and what removals do to both.
//!
//! A draft collects the changes of the forest's tree over the one of the last commit; at the end
//! they are merged into it like those of any other tree.

use std::collections::BTreeMap;

use gabion_base::ids::{BlockAddr, SubvolId, Txg};

use crate::error::MapError;
use crate::format::item::{Dead, SubvolRecord};
use crate::format::journal::Run;
use crate::key::{Key, Kind};
use crate::memtable::Change;
use crate::removal::list_key;
use crate::tree::Tree;
use crate::txn::Value;

/// Changes of the forest.
pub(crate) struct Draft<'a> {
    tree: Tree<'a>,
    changes: BTreeMap<Key, Change>,
}

impl<'a> Draft<'a> {
    /// No changes of `tree`.
    pub(crate) fn new(tree: Tree<'a>) -> Self {
        Self { tree, changes: BTreeMap::new() }
    }

    /// Puts an item.
    pub(crate) fn put(&mut self, key: Key, value: Vec<u8>) {
        self.changes.insert(key, Some(Value::from(value)));
    }

    /// Removes an item.
    pub(crate) fn delete(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    /// Puts a subvolume's record, if it is not there already.
    pub(crate) fn put_record(&mut self, key: Key, record: &SubvolRecord) -> Result<(), MapError> {
        let value = record.encode();
        if self.tree.get(key)?.is_none_or(|known| *known != value[..]) {
            self.put(key, value);
        }
        Ok(())
    }

    /// Puts a run of blocks that has died onto the deadlist of `snapshot`.
    pub(crate) fn put_dead(
        &mut self,
        snapshot: SubvolId,
        run: Run,
        birth: Txg,
    ) -> Result<(), MapError> {
        let key = list_key(snapshot, Kind::DEAD, run.addr.0);
        let known = match self.changes.get(&key) {
            Some(change) => change.clone(),
            None => self.tree.get(key)?,
        };
        let mut item = Dead { count: run.count, owners: 1, birth };
        if let Some(value) = known {
            let known = Dead::decode(&value).map_err(|source| MapError::BadItem { key, source })?;
            item.owners = item.owners.saturating_add(known.owners);
            item.count = item.count.max(known.count);
        }
        self.put(key, item.encode());
        Ok(())
    }

    /// At most `limit` items of the last commit's forest from `from` on, of its subvolume, up to
    /// those of kind `last`.
    pub(crate) fn scan(
        &self,
        from: Key,
        last: Kind,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>, MapError> {
        self.tree.scan(from, Key { kind: last, at: u64::MAX, ..from }, limit)
    }

    /// The items of one list that are at `from` or after it and not behind `to`, and the one before
    /// them; those of the draft included.
    pub(crate) fn around(&self, from: Key, to: u64) -> Result<Vec<(Key, Value)>, MapError> {
        let first = Key { at: 0, ..from };
        let last = Key { at: to, ..from };
        let mut found = BTreeMap::new();
        let before = self.tree.at_or_before(from)?.filter(|item| item.key() >= first);
        found.extend(before.map(|item| (item.key(), Some(item.to_value()))));
        let after = self.tree.scan(from, last, usize::MAX)?;
        found.extend(after.into_iter().map(|(key, value)| (key, Some(value))));
        let own = |(key, change): (&Key, &Change)| (*key, change.clone());
        found.extend(self.changes.range(first..from).next_back().map(own));
        found.extend(self.changes.range(from..=last).map(own));
        Ok(found.into_iter().filter_map(|(key, change)| Some((key, change?))).collect())
    }

    /// The changes, in order.
    pub(crate) fn into_changes(self) -> Vec<(Key, Change)> {
        self.changes.into_iter().collect()
    }
}

/// A node's place as a run of blocks.
pub(crate) fn node_run(addr: BlockAddr) -> Run {
    Run { addr, count: crate::format::node::NODE_BLOCKS as u32 }
}
