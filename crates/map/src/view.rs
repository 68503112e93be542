//! One state of the map to be read: two memtables over the trees of the last commit.
//!
//! ```text
//! changes of the operation itself     (if it has any)
//! the active memtable                 grows
//! the frozen memtable                 while a commit is under way
//! the tree of the last commit         immutable
//! ```
//!
//! The uppermost layer that knows a key decides. A view is replaced, never changed, when a commit
//! freezes and when it is done; a reader loads the current one for every single read, after it has
//! the object's lock, so that it sees what was applied under that lock before.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::ids::SubvolId;

use crate::catalogue::Roots;
use crate::error::MapError;
use crate::key::Key;
use crate::memtable::{Change, Memtable};
use crate::tree::{NodeStore, Tree};
use crate::txn::Value;

/// Changes that an operation has made so far.
pub type Overlay = BTreeMap<Key, Change>;

/// The layers of the map.
#[derive(Clone)]
pub struct View {
    /// Takes new changes.
    pub active: Arc<Memtable>,
    /// Is being committed.
    pub frozen: Option<Arc<Memtable>>,
    /// Roots of the last commit.
    pub roots: Arc<Roots>,
}

impl View {
    fn tree<'a>(&self, store: &'a dyn NodeStore, subvol: SubvolId) -> Tree<'a> {
        Tree::new(store, self.roots.root(subvol), subvol)
    }

    /// The item at `key`.
    pub fn get(&self, store: &dyn NodeStore, key: Key) -> Result<Option<Value>, MapError> {
        if let Some(change) = self.active.get(key) {
            return Ok(change);
        }
        if let Some(change) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return Ok(change);
        }
        self.tree(store, key.subvol).get(key)
    }

    /// At most `limit` items with `from <= key <= to`, both of one object, in order.
    pub fn scan(
        &self,
        store: &dyn NodeStore,
        overlay: &Overlay,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>, MapError> {
        let tree = self.tree(store, from.subvol);
        let mut found = Vec::new();
        let mut from = from;
        loop {
            // Ask each layer for as many as are missing. Where a layer gave all that was asked
            // for, it may have more behind its last key: what is merged ends there.
            let want = limit - found.len();
            let mut horizon = to;
            let mut merged: BTreeMap<Key, Change> = BTreeMap::new();
            let mut add = |layer: Vec<(Key, Change)>| {
                if layer.len() == want
                    && let Some((last, _)) = layer.last()
                {
                    horizon = horizon.min(*last);
                }
                merged.extend(layer);
            };
            let items = tree.scan(from, to, want)?;
            add(items.into_iter().map(|(key, value)| (key, Some(value))).collect());
            if let Some(frozen) = &self.frozen {
                add(frozen.scan(from, to, want));
            }
            add(self.active.scan(from, to, want));
            let own = overlay.range(from..=to).take(want);
            add(own.map(|(key, change)| (*key, change.clone())).collect());
            for (key, change) in merged.range(..=horizon) {
                if let Some(value) = change
                    && found.len() < limit
                {
                    found.push((*key, Arc::clone(value)));
                }
            }
            match horizon.successor() {
                Some(next) if horizon < to && found.len() < limit => from = next,
                _ => return Ok(found),
            }
        }
    }

    /// Has what the trees know of `keys`, all of one subvolume, read at once.
    pub fn prefetch(&self, store: &dyn NodeStore, keys: &[Key]) -> Result<(), MapError> {
        let Some(first) = keys.first() else { return Ok(()) };
        self.tree(store, first.subvol).prefetch(keys)
    }

    /// The last item with `from <= key <= to`, both of one object.
    pub fn last(
        &self,
        store: &dyn NodeStore,
        overlay: &Overlay,
        from: Key,
        to: Key,
    ) -> Result<Option<(Key, Value)>, MapError> {
        let tree = self.tree(store, from.subvol);
        let mut to = to;
        loop {
            // Lowest layer first: of two changes of one key the later candidate replaces it.
            let mut best: Option<(Key, Change)> = None;
            let mut offer = |candidate: Option<(Key, Change)>| {
                if let Some((key, change)) = candidate
                    && best.as_ref().is_none_or(|(best, _)| key >= *best)
                {
                    best = Some((key, change));
                }
            };
            let item = tree.at_or_before(to)?.filter(|item| item.key() >= from);
            offer(item.map(|item| (item.key(), Some(item.to_value()))));
            if let Some(frozen) = &self.frozen {
                offer(frozen.last(from, to));
            }
            offer(self.active.last(from, to));
            let own = overlay.range(from..=to).next_back();
            offer(own.map(|(key, change)| (*key, change.clone())));
            match best {
                None => return Ok(None),
                Some((key, Some(value))) => return Ok(Some((key, value))),
                // Removed in an upper layer: look before it.
                Some((key, None)) if key > from => to = before(key),
                Some(_) => return Ok(None),
            }
        }
    }
}

/// The key right before `key`, within its object and kind or at the end of an earlier kind.
fn before(key: Key) -> Key {
    if let Some(at) = key.at.checked_sub(1) {
        Key { at, ..key }
    } else {
        Key { kind: crate::key::Kind(key.kind.0 - 1), at: u64::MAX, ..key }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, Txg};

    use super::*;
    use crate::format::node::{Node, NodePtr};
    use crate::key::{FileId, Kind};

    /// The trees of these tests are empty.
    struct NoNodes;

    impl NodeStore for NoNodes {
        fn load(&self, _: NodePtr, _: SubvolId, _: u8) -> Result<Arc<Node>, MapError> {
            unreachable!("an empty tree has no nodes")
        }
    }

    #[test]
    fn upper_layers_decide_and_removed_items_are_skipped() {
        let file = FileId::new(SubvolId(1), Ino(1));
        let key = |at| file.key(Kind::DATA, at);
        let value = |byte: u8| Some(Value::from([byte]));
        let frozen = Memtable::new(Txg(1));
        frozen.apply(&(0..20).map(|at| (key(at), value(1))).collect::<Vec<_>>());
        let active = Memtable::new(Txg(2));
        active.apply(&(5..15).map(|at| (key(at), None)).collect::<Vec<_>>());
        let view = View {
            active: Arc::new(active),
            frozen: Some(Arc::new(frozen)),
            roots: Arc::default(),
        };
        let overlay = Overlay::from([(key(7), value(3)), (key(19), None)]);
        let keys = |limit| -> Vec<u64> {
            let items = view.scan(&NoNodes, &overlay, key(0), key(99), limit).expect("no disk");
            items.into_iter().map(|(key, _)| key.at).collect()
        };
        assert_eq!(keys(100), vec![0, 1, 2, 3, 4, 7, 15, 16, 17, 18]);
        assert_eq!(keys(6), vec![0, 1, 2, 3, 4, 7]);
        let last = |to| view.last(&NoNodes, &overlay, key(0), key(to)).expect("no disk");
        assert_eq!(last(99).map(|item| item.0.at), Some(18));
        assert_eq!(last(14).map(|item| item.0.at), Some(7));
        assert_eq!(last(6).map(|item| item.0.at), Some(4));
    }
}
