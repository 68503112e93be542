//! Nodes that this thread used last.
//!
//! Nearly every operation passes the same few nodes near the root. From the cache that all threads
//! share, each of them costs writes to memory that every thread writes to: the lock of a part of
//! the cache, and the node's reference count. Two processors that do nothing else wait for each
//! other's cache lines most of the time. What a thread keeps here costs none of that.
//!
//! A node is known by its whole pointer, checksum included, and by the filesystem in use that it
//! was read for, so nothing kept here can be stale. Memory is bounded by [`INTERIOR`] and
//! [`LEAVES`] nodes of 16 KiB for each thread.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use crate::error::MapError;
use crate::format::node::{ItemKey, NODE_BLOCKS, Node, NodePtr};
use crate::txn::Value;

/// Interior nodes that a thread keeps. Leaves are many more and would drive them out.
const INTERIOR: usize = 16;
/// Leaves that a thread keeps: an operation looks for several items in each.
const LEAVES: usize = 8;

type Place = Option<(StoreId, Arc<Node>)>;

thread_local! {
    static RECENT: RefCell<Recent> = RefCell::default();
}

#[derive(Default)]
struct Recent {
    interior: [Place; INTERIOR],
    leaves: [Place; LEAVES],
    last: Option<Last>,
}

/// Where the last search of a tree ended.
struct Last {
    store: StoreId,
    root: NodePtr,
    leaf: NodePtr,
    /// Of the last item at or before the one that was looked for.
    index: usize,
}

impl Recent {
    fn place(&mut self, ptr: NodePtr, level: u8) -> &mut Place {
        let number = (ptr.addr.0 / NODE_BLOCKS as u64) as usize;
        match level {
            0 => &mut self.leaves[number % LEAVES],
            _ => &mut self.interior[number % INTERIOR],
        }
    }
}

/// Which store a node comes from. Never given twice in one process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreId(u64);

impl StoreId {
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, atomic::Ordering::Relaxed))
    }
}

/// Shows the node at `ptr`, which `load` gets if this thread has not used it lately.
pub(crate) fn visit(
    store: StoreId,
    ptr: NodePtr,
    level: u8,
    load: impl FnOnce() -> Result<Arc<Node>, MapError>,
    visitor: &mut dyn FnMut(&Node),
) -> Result<(), MapError> {
    RECENT.with_borrow_mut(|recent| {
        let place = recent.place(ptr, level);
        if let Some((from, node)) = place
            && *from == store
            && node.ptr() == ptr
        {
            visitor(node);
            return Ok(());
        }
        let node = load()?;
        visitor(&node);
        *place = Some((store, node));
        Ok(())
    })
}

/// Remembers that a search from `root` ended in `leaf`, after the item `index`.
pub(crate) fn ended(store: StoreId, root: NodePtr, leaf: NodePtr, index: usize) {
    RECENT.with_borrow_mut(|recent| recent.last = Some(Last { store, root, leaf, index }));
}

/// The value at `key`, or its absence, if that can be seen right behind where this thread's last
/// search ended: an object's items stand side by side.
pub(crate) fn next(store: StoreId, root: NodePtr, key: ItemKey) -> Option<Option<Value>> {
    RECENT.with_borrow_mut(|recent| {
        let Last { leaf, index, .. } =
            *recent.last.as_ref().filter(|last| last.store == store && last.root == root)?;
        let (from, node) = recent.place(leaf, 0).as_ref()?;
        if *from != store || node.ptr() != leaf {
            return None;
        }
        let items = node.items();
        if index + 1 == items.count() || key < items.key(index) {
            return None;
        }
        match key.cmp(&items.key(index + 1)) {
            Ordering::Less if key > items.key(index) => Some(None),
            Ordering::Equal => Some(Some(Value::from(items.value(index + 1)))),
            _ => None,
        }
    })
}
