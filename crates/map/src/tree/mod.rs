//! The copy-on-write B+tree.
//!
//! A tree is its [`Root`]: nodes are never changed in place, so a root names one state of the tree
//! for as long as nobody frees its nodes, and readers need no lock. A commit [merges](Tree::merge)
//! all changes of a transaction group at once and gets a new root, which shares every untouched
//! node with the old one.
//!
//! ```text
//!             [ a      g      p ]                  level 2: the root
//!              /       |       \
//!      [ a  c  e ]  [ g  k ]  [ p  t ]             level 1
//!       /  |  \      /  \      /  \
//!     leaves: items, in order                      level 0
//! ```
//!
//! Invariants:
//!
//! - An interior node holds the *lowest key* of each child, exactly. Every node holds an item.
//! - A node that is not on the right edge uses at least a quarter of its space, counted when it
//!   was last changed. On the right edge nodes may be nearly empty, so that a tree that grows at
//!   its end has full nodes behind it.
//! - A child is one level below its parent, and its keys lie between the parent's separators.
//!   Both are checked on every descent, so a forged image ends in [`MapError::Corrupt`]: levels
//!   only fall, and no node can be reached in two ways within one tree.
//!
//! Recursion is by level only, and [`LEVEL_MAX`] bounds it.
//!
//! Absent: locks, caches, allocation and disk. They are behind [`NodeStore`] and [`NodeWriter`].

mod cursor;
mod diff;
mod merge;
mod pack;
mod path;
mod prefetch;
mod prune;
mod settle;
mod walk;

use std::sync::Arc;

use gabion_base::ids::{BlockAddr, SubvolId, Txg, Uuid};

pub use self::cursor::Cursor;
pub use self::diff::{Diff, Difference};
pub use self::prune::Pruner;
pub use self::walk::{Visit, Visitor};
use crate::error::MapError;
use crate::format::node::{ItemKey, LEVEL_MAX, Node, NodePtr, corrupt};
use crate::key::Key;
use crate::txn::Value;

/// Where nodes come from: the cache, and the disk behind it.
pub trait NodeStore: Sync {
    /// The node that `ptr` points to, decoded with these expectations. It must also find nodes
    /// that a merge under way has handed to [`NodeWriter::write`].
    fn load(&self, ptr: NodePtr, owner: SubvolId, level: u8) -> Result<Arc<Node>, MapError>;

    /// Shows the same node to `visitor`, which must not ask for another one meanwhile.
    fn visit(
        &self,
        ptr: NodePtr,
        owner: SubvolId,
        level: u8,
        visitor: &mut dyn FnMut(&Node),
    ) -> Result<(), MapError> {
        self.load(ptr, owner, level).map(|node| visitor(&node))
    }

    /// These nodes, all of one level, are going to be asked for. A store that would have to wait
    /// for each of them gets them all at the same time, as far as it has room.
    fn prefetch(&self, _ptrs: &[NodePtr], _level: u8) {}

    /// A search from `root` ended in `leaf`, at or after the item `index`.
    fn ended(&self, _root: NodePtr, _leaf: NodePtr, _index: usize) {}

    /// What a search for `key` would find, if that is known from where the last one ended.
    fn next(&self, _root: NodePtr, _key: ItemKey) -> Option<Option<Value>> {
        None
    }
}

/// Where a merge puts its nodes. Its calls may come from several threads.
///
/// When a merge fails, its caller takes back all that it allocated, and releases nothing.
pub trait NodeWriter: Sync {
    /// Room for one node.
    fn allocate(&self) -> Result<BlockAddr, MapError>;
    /// Takes a finished node, which is to stand at `ptr`.
    fn write(&self, ptr: NodePtr, node: Node) -> Result<(), MapError>;
    /// The new tree does not contain this node any more. Called once for each such node: nearly
    /// always one of the old tree, rarely one that the same merge wrote.
    fn release(&self, ptr: NodePtr);
    /// The transaction group that is being written.
    fn birth(&self) -> Txg;
    /// The filesystem.
    fn uuid(&self) -> Uuid;
}

/// One state of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The root node; `None` in an empty tree.
    pub ptr: Option<NodePtr>,
    /// The root node's level; 0 in an empty tree.
    pub level: u8,
}

impl Root {
    /// The tree without items.
    pub const EMPTY: Self = Self { ptr: None, level: 0 };
}

/// A change of one item: its new value, or `None` where it is to go.
pub type Change = (Key, Option<Value>);

/// One state of a tree, to be read. Copying it costs nothing.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    store: &'a dyn NodeStore,
    root: Root,
    owner: SubvolId,
}

impl<'a> Tree<'a> {
    /// The tree at `root`. `owner` is the subvolume of the keys that it takes and gives, and what
    /// it tells the store to expect.
    pub fn new(store: &'a dyn NodeStore, root: Root, owner: SubvolId) -> Self {
        Self { store, root, owner }
    }

    /// Its root.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The value at `key`.
    pub fn get(&self, key: Key) -> Result<Option<Value>, MapError> {
        let place = self.place(key);
        let Some(mut ptr) = self.root.ptr else { return Ok(None) };
        if let Some(known) = self.store.next(ptr, place) {
            return Ok(known);
        }
        let root = ptr;
        let mut level = self.root_level()?;
        let (mut first, mut upper) = (None, None);
        loop {
            let mut step = Ok(Step::Nowhere);
            self.store.visit(ptr, self.owner, level, &mut |node| {
                step = check(node, ptr, level, first, upper).map(|()| step_towards(node, place));
            })?;
            match step? {
                Step::Nowhere => return Ok(None),
                Step::Ended { index, value } => {
                    self.store.ended(root, ptr, index);
                    return Ok(value);
                }
                Step::Down { child, lowest, next } => {
                    (ptr, level) = (child, level - 1);
                    (first, upper) = (Some(lowest), next.or(upper));
                }
            }
        }
    }

    /// The last item at or before `key`.
    pub fn at_or_before(&self, key: Key) -> Result<Option<Item>, MapError> {
        let place = self.place(key);
        let Some(mut node) = self.load_root()? else { return Ok(None) };
        let mut upper = None;
        loop {
            // Separators are the exact lowest keys, so the item is below the one that routes to it.
            let Some(index) = node.items().at_or_before(place) else { return Ok(None) };
            if node.level() == 0 {
                return Ok(Some(Item { leaf: node, index, owner: self.owner }));
            }
            (node, upper) = self.load_child(&node, index, upper)?;
        }
    }

    /// At most `limit` items with `from <= key <= to`, in key order.
    pub fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, MapError> {
        let mut found = Vec::new();
        let mut cursor = self.cursor(from)?;
        while let Some((key, value)) = cursor.item() {
            if key > to || found.len() == limit {
                break;
            }
            found.push((key, Value::from(value)));
            cursor.advance()?;
        }
        Ok(found)
    }

    /// `key` as the tree's nodes know it.
    fn place(&self, key: Key) -> ItemKey {
        assert_eq!(key.subvol, self.owner, "a key of another subvolume");
        key.into()
    }

    /// The root node, if the tree has one.
    fn load_root(&self) -> Result<Option<Arc<Node>>, MapError> {
        let Some(ptr) = self.root.ptr else { return Ok(None) };
        self.load(ptr, self.root_level()?, None, None).map(Some)
    }

    fn root_level(&self) -> Result<u8, MapError> {
        match self.root {
            Root { ptr: Some(ptr), level } if level > LEVEL_MAX => {
                Err(corrupt(ptr, "impossible level"))
            }
            Root { level, .. } => Ok(level),
        }
    }

    /// Child `index` of `parent`, all of whose keys are below `upper`; and the child's own bound.
    fn load_child(
        &self,
        parent: &Node,
        index: usize,
        upper: Option<ItemKey>,
    ) -> Result<(Arc<Node>, Option<ItemKey>), MapError> {
        let children = parent.items();
        let upper =
            if index + 1 < children.count() { Some(children.key(index + 1)) } else { upper };
        let first = Some(children.key(index));
        let child = self.load(children.child(index), parent.level() - 1, first, upper)?;
        Ok((child, upper))
    }

    /// A node whose lowest key must be `first` (if given) and whose keys must be below `upper`.
    fn load(
        &self,
        ptr: NodePtr,
        level: u8,
        first: Option<ItemKey>,
        upper: Option<ItemKey>,
    ) -> Result<Arc<Node>, MapError> {
        let node = self.store.load(ptr, self.owner, level)?;
        check(&node, ptr, level, first, upper)?;
        Ok(node)
    }
}

/// Fails unless `node` is the one at `ptr` and `level`, its lowest key is `first` (if given) and
/// all its keys are below `upper`.
fn check(
    node: &Node,
    ptr: NodePtr,
    level: u8,
    first: Option<ItemKey>,
    upper: Option<ItemKey>,
) -> Result<(), MapError> {
    if node.level() != level || node.ptr() != ptr {
        return Err(corrupt(ptr, "not the node that was asked for"));
    }
    let items = node.items();
    if first.is_some_and(|first| items.key(0) != first) {
        return Err(corrupt(ptr, "its lowest key is not what its parent says"));
    }
    if upper.is_some_and(|upper| items.key(items.count() - 1) >= upper) {
        return Err(corrupt(ptr, "keys past its parent's next child"));
    }
    Ok(())
}

/// Where a search goes from a node.
enum Step {
    /// Everything is after it.
    Nowhere,
    /// It is the leaf's item `index`, or would be behind that.
    Ended { index: usize, value: Option<Value> },
    /// To a child, with its lowest key and the one that follows it in the parent.
    Down { child: NodePtr, lowest: ItemKey, next: Option<ItemKey> },
}

fn step_towards(node: &Node, place: ItemKey) -> Step {
    let items = node.items();
    // Separators are the exact lowest keys, so the item is below the one that routes to it.
    let Some(index) = items.at_or_before(place) else { return Step::Nowhere };
    let lowest = items.key(index);
    match node.level() {
        0 => {
            let value = (lowest == place).then(|| Value::from(items.value(index)));
            Step::Ended { index, value }
        }
        _ => {
            let next = (index + 1 < items.count()).then(|| items.key(index + 1));
            Step::Down { child: items.child(index), lowest, next }
        }
    }
}

/// An item, which keeps its leaf alive.
#[derive(Clone, Debug)]
pub struct Item {
    leaf: Arc<Node>,
    index: usize,
    owner: SubvolId,
}

impl Item {
    /// Its key.
    pub fn key(&self) -> Key {
        self.leaf.items().key(self.index).of(self.owner)
    }

    /// Its value, in place.
    pub fn value(&self) -> &[u8] {
        self.leaf.items().value(self.index)
    }

    /// A copy of its value.
    pub fn to_value(&self) -> Value {
        Value::from(self.value())
    }
}
