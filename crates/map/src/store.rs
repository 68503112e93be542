//! Nodes on the device and in the cache.
//!
//! Nodes are immutable and their pointers carry birth and checksum, so a cached node can never be
//! stale: the cache is keyed by address and birth, and needs no invalidation when blocks are used
//! again.

use std::collections::HashMap;
use std::sync::Arc;

use gabion_base::batch::Batch;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::ids::{SubvolId, Uuid};
use gabion_base::sync::RwLock;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::copies;
use crate::error::MapError;
use crate::format::node::{Expected, ItemKey, NODE_BLOCKS, NODE_SIZE, Node, NodePtr};
use crate::recent::{self, StoreId};
use crate::tree::NodeStore;
use crate::txn::Value;

/// Nodes that are read at once, before anybody asks for them: as many as keep a disk busy.
const PREFETCHED_MAX: usize = 64;
/// Fewer are left to whoever asks for them: to hand reads on and to be woken by the last one takes
/// as long as some two or three of them, where a disk is fast.
const PREFETCHED_MIN: usize = 4;
/// The most are this part of the cache, lest they should be gone before they are used.
const PREFETCHED_PART: usize = 4;

#[derive(Clone)]
struct OneNode;

impl Weighter<(u64, u64), Arc<Node>> for OneNode {
    fn weight(&self, _: &(u64, u64), _: &Arc<Node>) -> u64 {
        NODE_SIZE as u64
    }
}

/// The nodes of one filesystem.
pub struct NodeCache {
    disk: Arc<dyn Disk>,
    uuid: Uuid,
    cache: Cache<(u64, u64), Arc<Node>, OneNode>,
    id: StoreId,
    /// Nodes that are read at once, before anybody asks for them.
    prefetched_max: usize,
    /// Nodes of a commit that are not on disk yet, which the cache must not forget.
    fresh: RwLock<HashMap<u64, Arc<Node>>>,
}

impl NodeCache {
    /// A cache of at most `bytes`.
    pub fn new(disk: Arc<dyn Disk>, uuid: Uuid, bytes: u64) -> Self {
        let items = (bytes / NODE_SIZE as u64).max(16) as usize;
        let cache = Cache::with_weighter(items, bytes.max(16 * NODE_SIZE as u64), OneNode);
        let prefetched_max = (items / PREFETCHED_PART).min(PREFETCHED_MAX);
        let (id, fresh) = (StoreId::unique(), RwLock::default());
        Self { disk, uuid, cache, id, prefetched_max, fresh }
    }

    /// Takes a node that is not on disk yet.
    pub fn hold(&self, node: Node) {
        self.fresh.write().insert(node.ptr().addr.0, Arc::new(node));
    }

    /// Drops a node that nobody needs any more, if it is held.
    pub fn abandon(&self, ptr: NodePtr) {
        self.fresh.write().remove(&ptr.addr.0);
    }

    /// All held nodes by address, to be written.
    pub fn held(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.fresh.read().values().cloned().collect();
        nodes.sort_unstable_by_key(|node| node.ptr().addr);
        nodes
    }

    /// How many nodes are held.
    pub fn held_count(&self) -> usize {
        self.fresh.read().len()
    }

    /// `nodes`, which were held, are on disk: they become ordinary ones.
    pub fn settle(&self, nodes: &[Arc<Node>]) {
        // First into the cache, so that a reader finds them in one of both.
        for node in nodes {
            self.cache.insert(cache_key(node.ptr()), Arc::clone(node));
        }
        let mut fresh = self.fresh.write();
        for node in nodes {
            fresh.remove(&node.ptr().addr.0);
        }
    }

    /// Reads and verifies a node, past the cache.
    pub fn read(&self, ptr: NodePtr, level: u8) -> Result<Arc<Node>, MapError> {
        let decode = |blocks: &BlockSlice| self.verify(ptr, level, blocks);
        copies::read_right(&*self.disk, ptr.addr, NODE_BLOCKS, decode)
    }

    /// The node in `blocks`, if it is the one that `ptr` points to.
    pub fn verify(
        &self,
        ptr: NodePtr,
        level: u8,
        blocks: &BlockSlice,
    ) -> Result<Arc<Node>, MapError> {
        let expected = Expected { ptr, uuid: self.uuid, owner: None, level };
        Ok(Arc::new(Node::decode(blocks.clone(), &expected)?))
    }
}

impl NodeStore for NodeCache {
    fn load(&self, ptr: NodePtr, _owner: SubvolId, level: u8) -> Result<Arc<Node>, MapError> {
        if let Some(node) = self.cache.get(&cache_key(ptr)) {
            return Ok(node);
        }
        if let Some(node) = self.fresh.read().get(&ptr.addr.0) {
            return Ok(Arc::clone(node));
        }
        let node = self.read(ptr, level)?;
        self.cache.insert(cache_key(ptr), Arc::clone(&node));
        Ok(node)
    }

    fn visit(
        &self,
        ptr: NodePtr,
        owner: SubvolId,
        level: u8,
        visitor: &mut dyn FnMut(&Node),
    ) -> Result<(), MapError> {
        recent::visit(self.id, ptr, level, || self.load(ptr, owner, level), visitor)
    }

    fn prefetch(&self, ptrs: &[NodePtr], level: u8) {
        let is_lacking = |ptr: &&NodePtr| {
            self.cache.peek(&cache_key(**ptr)).is_none()
                && !self.fresh.read().contains_key(&ptr.addr.0)
        };
        let lacking: Vec<NodePtr> =
            ptrs.iter().filter(is_lacking).take(self.prefetched_max).copied().collect();
        if lacking.len() < PREFETCHED_MIN {
            return;
        }
        let batch = Batch::begin();
        let read = |ptr: &NodePtr| DiskRequest::Read { addr: ptr.addr, count: NODE_BLOCKS };
        let reads: Vec<Ticket> = lacking.iter().map(|ptr| self.disk.submit(read(ptr))).collect();
        drop(batch);
        for (ptr, read) in lacking.into_iter().zip(reads) {
            // Whoever asks for a node that is not right looks for another copy, or fails.
            let Ok(Some(blocks)) = read.wait() else { continue };
            if let Ok(node) = self.verify(ptr, level, &BlockSlice::new(blocks)) {
                self.cache.insert(cache_key(ptr), node);
            }
        }
    }

    fn ended(&self, root: NodePtr, leaf: NodePtr, index: usize) {
        recent::ended(self.id, root, leaf, index);
    }

    fn next(&self, root: NodePtr, key: ItemKey) -> Option<Option<Value>> {
        recent::next(self.id, root, key)
    }
}

fn cache_key(ptr: NodePtr) -> (u64, u64) {
    (ptr.addr.0, ptr.birth.0)
}
