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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::MapError;
use crate::format::node::{NODE_BLOCKS, Node, NodePtr};

/// Interior nodes that a thread keeps. Leaves are many more and would drive them out.
const INTERIOR: usize = 16;
/// Leaves that a thread keeps: an operation looks for several items in each.
const LEAVES: usize = 8;

type Place = Option<(StoreId, Arc<Node>)>;

thread_local! {
    static RECENT: RefCell<([Place; INTERIOR], [Place; LEAVES])> = RefCell::default();
}

/// Which store a node comes from. Never given twice in one process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreId(u64);

impl StoreId {
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
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
    RECENT.with_borrow_mut(|(interior, leaves)| {
        let number = (ptr.addr.0 / NODE_BLOCKS as u64) as usize;
        let place = match level {
            0 => &mut leaves[number % LEAVES],
            _ => &mut interior[number % INTERIOR],
        };
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
