//! Nodes in memory, which are encoded, decoded and counted as on a disk, and a checker of all
//! that a tree promises about its shape.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::buffer::BlockSlice;
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};
use gabion_base::sync::Mutex;

use gabion_map::format::node::{Expected, ItemKey, NODE_CAPACITY, Node, NodePtr};
use gabion_map::tree::{Change, NodeStore, NodeWriter, Root, Tree, Visit, Visitor};
use gabion_map::{FileId, Key, Kind, MapError, Value};

pub const OWNER: SubvolId = SubvolId(3);
pub const UUID: Uuid = Uuid([9; 16]);

/// What a tree should hold.
pub type Model = BTreeMap<Key, Value>;

/// A node's bytes, and what they were found to be when they were first loaded.
struct Stored {
    blocks: BlockSlice,
    decoded: Option<Arc<Node>>,
}

impl Stored {
    fn new(node: &Node) -> Self {
        Self { blocks: node.blocks().clone(), decoded: None }
    }
}

/// Nodes by address. Nothing is ever overwritten, so old roots stay readable.
#[derive(Default)]
pub struct Memory {
    nodes: Mutex<HashMap<BlockAddr, Stored>>,
    /// What the newest tree should consist of.
    live: Mutex<HashMap<BlockAddr, NodePtr>>,
    next: AtomicU64,
    birth: AtomicU64,
    loads: AtomicU64,
    writes: AtomicU64,
    /// Nodes that were said to be loaded soon, and their levels.
    foreseen: Mutex<HashSet<(BlockAddr, u8)>>,
    /// Allocations left before the space is used up.
    room: Option<AtomicU64>,
}

impl Memory {
    pub fn new() -> Self {
        Self { next: AtomicU64::new(4), birth: AtomicU64::new(1), ..Self::default() }
    }

    /// A store that has room for so many more nodes.
    pub fn with_room(nodes: u64) -> Self {
        Self { room: Some(AtomicU64::new(nodes)), ..Self::new() }
    }

    pub fn tree(&self, root: Root) -> Tree<'_> {
        Tree::new(self, root, OWNER)
    }

    /// Merges as the next transaction group, and checks nothing.
    pub fn merge(&self, root: Root, changes: &[Change], threads: usize) -> Root {
        self.birth.fetch_add(1, Ordering::Relaxed);
        self.tree(root).merge(self, changes, threads).expect("nothing is damaged")
    }

    /// Nodes loaded since the last call.
    pub fn take_loads(&self) -> u64 {
        self.loads.swap(0, Ordering::Relaxed)
    }

    /// Nodes that were foreseen and never loaded.
    pub fn foreseen(&self) -> usize {
        self.foreseen.lock().len()
    }

    /// Nodes written since the last call.
    pub fn take_writes(&self) -> u64 {
        self.writes.swap(0, Ordering::Relaxed)
    }

    /// Takes a node that no merge made.
    pub fn insert(&self, node: &Node) {
        self.nodes.lock().insert(node.ptr().addr, Stored::new(node));
        self.live.lock().insert(node.ptr().addr, node.ptr());
    }

    /// Checks that the tree at `root` holds `model`, has the promised shape, and consists of
    /// exactly the nodes that were written and not released.
    pub fn check(&self, root: Root, model: &Model) {
        let mut seen = Seen::default();
        self.tree(root).walk(&mut seen).expect("nothing is damaged");
        assert_eq!(seen.items.len(), model.len());
        for ((key, value), (model_key, model_value)) in seen.items.iter().zip(model) {
            assert_eq!((key, value), (model_key, model_value));
        }
        assert_eq!(seen.nodes, *self.live.lock(), "live nodes and reachable nodes");
        if let Some(ptr) = root.ptr {
            self.check_shape(ptr, root.level, true, true);
        }
    }

    fn check_shape(&self, ptr: NodePtr, level: u8, is_root: bool, on_the_edge: bool) -> ItemKey {
        let node = self.load(ptr, OWNER, level).expect("a node that was just walked over");
        let items = node.items();
        if is_root {
            assert!(level == 0 || items.count() > 1, "a root with one child");
        } else if !on_the_edge {
            assert!(items.used() >= NODE_CAPACITY / 4, "{node:?} uses {}", items.used());
        }
        if level > 0 {
            for index in 0..items.count() {
                let edge = on_the_edge && index + 1 == items.count();
                let first = self.check_shape(items.child(index), level - 1, false, edge);
                assert_eq!(first, items.key(index), "separators are lowest keys");
            }
        }
        items.key(0)
    }

    /// Forgets a merge that failed.
    pub fn forget(&self, live: HashMap<BlockAddr, NodePtr>) {
        *self.live.lock() = live;
    }

    /// The nodes that the newest tree consists of.
    pub fn live(&self) -> HashMap<BlockAddr, NodePtr> {
        self.live.lock().clone()
    }
}

impl NodeStore for Memory {
    fn prefetch(&self, ptrs: &[NodePtr], level: u8) {
        self.foreseen.lock().extend(ptrs.iter().map(|ptr| (ptr.addr, level)));
    }

    fn load(&self, ptr: NodePtr, owner: SubvolId, level: u8) -> Result<Arc<Node>, MapError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.foreseen.lock().remove(&(ptr.addr, level));
        let mut nodes = self.nodes.lock();
        let Some(stored) = nodes.get_mut(&ptr.addr) else {
            let (structure, reason) = ("node", "nothing is there");
            return Err(MapError::Corrupt { structure, addr: ptr.addr, reason });
        };
        if let Some(node) = &stored.decoded
            && (node.ptr(), node.owner(), node.level()) == (ptr, owner, level)
        {
            return Ok(Arc::clone(node));
        }
        let expected = Expected { ptr, uuid: UUID, owner: Some(owner), level };
        let node = Arc::new(Node::decode(stored.blocks.clone(), &expected)?);
        stored.decoded = Some(Arc::clone(&node));
        Ok(node)
    }
}

impl NodeWriter for Memory {
    fn allocate(&self) -> Result<BlockAddr, MapError> {
        if let Some(room) = &self.room {
            let less = |left: u64| left.checked_sub(1);
            room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .map_err(|_| MapError::NoSpace)?;
        }
        Ok(BlockAddr(self.next.fetch_add(4, Ordering::Relaxed)))
    }

    fn write(&self, ptr: NodePtr, node: Node) -> Result<(), MapError> {
        assert_eq!(ptr, node.ptr());
        self.writes.fetch_add(1, Ordering::Relaxed);
        assert!(self.live.lock().insert(ptr.addr, ptr).is_none(), "{ptr:?} was written twice");
        self.nodes.lock().insert(ptr.addr, Stored::new(&node));
        Ok(())
    }

    fn release(&self, ptr: NodePtr) {
        assert_eq!(self.live.lock().remove(&ptr.addr), Some(ptr), "released but not live");
    }

    fn birth(&self) -> Txg {
        Txg(self.birth.load(Ordering::Relaxed))
    }

    fn uuid(&self) -> Uuid {
        UUID
    }
}

/// Everything a walk meets.
#[derive(Default)]
pub struct Seen {
    pub items: Vec<(Key, Value)>,
    pub nodes: HashMap<BlockAddr, NodePtr>,
}

impl Visitor for Seen {
    fn node(&mut self, ptr: NodePtr, _level: u8) -> Result<Visit, MapError> {
        assert!(self.nodes.insert(ptr.addr, ptr).is_none(), "a node is met once");
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        self.items.push((key, Value::from(value)));
        Ok(())
    }
}

/// A key that spreads `number` over inodes, kinds and places, in the order of the numbers.
pub fn key(number: u64) -> Key {
    let kind = Kind((number % 12 / 4) as u8 + 1);
    FileId::new(OWNER, Ino(number / 12)).key(kind, number % 4 * 1000)
}

pub fn value(length: usize, seed: u64) -> Value {
    let mut bytes = vec![seed as u8; length];
    for (byte, seed) in bytes.iter_mut().zip(seed.to_le_bytes()) {
        *byte = seed;
    }
    bytes.into()
}

/// Applies changes to what a tree should hold.
pub fn apply(model: &mut Model, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(model.insert(*key, value.clone())),
            None => drop(model.remove(key)),
        }
    }
}
