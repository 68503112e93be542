//! Nodes on the device and in the cache.
//!
//! Nodes are immutable and their pointers carry birth and checksum, so a cached node can never be
//! stale: the cache is keyed by address and birth, and needs no invalidation when blocks are used
//! again.

use std::collections::HashMap;
use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::Disk;
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
    /// Nodes of a commit that are not on disk yet, which the cache must not forget.
    fresh: RwLock<HashMap<u64, Arc<Node>>>,
}

impl NodeCache {
    /// A cache of at most `bytes`.
    pub fn new(disk: Arc<dyn Disk>, uuid: Uuid, bytes: u64) -> Self {
        let items = (bytes / NODE_SIZE as u64).max(16) as usize;
        let cache = Cache::with_weighter(items, bytes.max(16 * NODE_SIZE as u64), OneNode);
        Self { disk, uuid, cache, id: StoreId::unique(), fresh: RwLock::default() }
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
