//! Putting a batch of changes into the tree.
//!
//! 1. The sorted changes are routed down: each child gets the part that lies between its
//!    separators, and children without a part are not loaded.
//! 2. A leaf's part is combined with its items and divided among new leaves. If nothing changes,
//!    the leaf stays, and so does everything above it that stays throughout.
//! 3. On the way up, an interior node's new children are [settled](super::settle): loose ones are
//!    put together with neighbours, then all are written, and the node's new list of children is
//!    divided among new nodes in the same way.
//! 4. At the top, levels are added while there is more than one node, and removed while the root
//!    has a single child.
//!
//! So every touched node is written once, after all its children, and only when it is known that
//! it will not be united with a neighbour.
//!
//! The children of a node are halves of work for two threads, as long as there are spare ones: a
//! thread that is done becomes spare for whatever is being merged then. The shape of the new tree
//! does not depend on threads; only the addresses of its nodes do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};

use crate::error::MapError;
use crate::format::node::{Draft, ItemKey, LEVEL_MAX, Node, NodePtr, Place, corrupt};
use crate::tree::pack::{Entry, Fill, Growth, LOOSE_BELOW, combine, divide, entry_size};
use crate::tree::{Change, NodeWriter, Root, Tree};
use crate::txn::VALUE_LENGTH_MAX;

/// The least number of changes that are worth another thread: about a millisecond of work.
const FORK_CHANGES_MIN: usize = 512;

/// A merge under way.
pub(super) struct Merge<'a> {
    pub(super) tree: Tree<'a>,
    pub(super) writer: &'a dyn NodeWriter,
    spare_threads: AtomicUsize,
}

/// A node of the new tree, by the lowest key in it.
pub(super) struct Child {
    pub(super) key: ItemKey,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// On disk: an untouched node, or one of this merge that needs no more thought.
    Kept(NodePtr),
    /// Packed but not written. Its children, if it has any, are written.
    Fresh(Draft),
    /// An interior node with one child only, which is loose and needs a neighbour first.
    Chain(Box<Child>),
}

/// A child of some node and the changes that belong there.
struct Part<'c> {
    index: usize,
    changes: &'c [Change],
}

/// New nodes in place of an old one; `None` if it stays.
type Replaced = Option<Vec<Child>>;

impl Tree<'_> {
    /// Applies `changes`, which must be sorted by key without duplicates, and gives the root of
    /// the new tree. The old tree stays readable until its nodes are reused.
    ///
    /// Runs on at most `threads` threads, this one included. Fails with
    /// [`MapError::ItemTooLong`] before anything is written, or with what the store or the writer
    /// fails with; then what was allocated and released so far has to be forgotten.
    pub fn merge(
        &self,
        writer: &dyn NodeWriter,
        changes: &[Change],
        threads: usize,
    ) -> Result<Root, MapError> {
        for (key, value) in changes {
            self.place(*key);
            if let Some(value) = value.as_ref().filter(|value| value.len() > VALUE_LENGTH_MAX) {
                return Err(MapError::ItemTooLong { key: *key, length: value.len() });
            }
        }
        assert!(changes.is_sorted_by(|a, b| a.0 < b.0), "changes in the order of their keys");
        if let Some(ptr) = self.root.ptr.filter(|ptr| ptr.birth > writer.birth()) {
            return Err(corrupt(ptr, "from a later transaction group"));
        }
        let spare_threads = AtomicUsize::new(threads.saturating_sub(1));
        let merge = Merge { tree: *self, writer, spare_threads };
        let replaced = match self.load_root()? {
            Some(node) if !changes.is_empty() => merge.node(&node, changes, None)?,
            Some(_) => None,
            None => merge.leaf(None, changes, None)?,
        };
        let Some(nodes) = replaced else { return Ok(self.root) };
        if let Some(ptr) = self.root.ptr {
            writer.release(ptr);
        }
        // An empty tree has no level, whatever a forged root says.
        merge.root(nodes, if self.root.ptr.is_some() { self.root.level } else { 0 })
    }
}

impl Child {
    /// A packed node.
    pub(super) fn fresh(draft: Draft) -> Self {
        Self { key: draft.items().key(0), body: Body::Fresh(draft) }
    }

    /// Whether it should not be written without an attempt to unite it with a neighbour.
    pub(super) fn is_loose(&self) -> bool {
        match &self.body {
            Body::Kept(_) => false,
            Body::Fresh(draft) => draft.items().used() < LOOSE_BELOW,
            Body::Chain(_) => true,
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(self.body, Body::Kept(_))
    }
}

impl Merge<'_> {
    /// What becomes of `node`, all of whose keys are below `upper`.
    fn node(
        &self,
        node: &Node,
        changes: &[Change],
        upper: Option<ItemKey>,
    ) -> Result<Replaced, MapError> {
        if node.level() == 0 {
            self.leaf(Some(node), changes, upper)
        } else {
            self.interior(node, changes, upper)
        }
    }

    fn leaf(
        &self,
        node: Option<&Node>,
        changes: &[Change],
        upper: Option<ItemKey>,
    ) -> Result<Replaced, MapError> {
        let Some((entries, growth)) = combine(node.map(Node::items), changes) else {
            return Ok(None);
        };
        let fill = match (growth, upper) {
            (Growth::Anywhere, _) => Fill::Even,
            (Growth::AtEnd, Some(_)) => Fill::Packed,
            (Growth::AtEnd, None) => Fill::Open,
        };
        self.leaves(&entries, fill).map(Some)
    }

    /// Packs items into leaves. Those between the first and the last are written at once: no
    /// neighbour will ever be put together with them.
    pub(super) fn leaves(&self, entries: &[Entry<'_>], fill: Fill) -> Result<Vec<Child>, MapError> {
        let sizes: Vec<usize> = entries.iter().map(entry_size).collect();
        let ends = divide(&sizes, fill);
        let mut leaves = Vec::with_capacity(ends.len());
        let mut start = 0;
        for (number, end) in ends.iter().enumerate() {
            let mut leaf = Child::fresh(Draft::leaf(&entries[start..*end]));
            if number > 0 && number + 1 < ends.len() {
                let key = leaf.key;
                leaf = Child { key, body: Body::Kept(self.seal(leaf)?) };
            }
            leaves.push(leaf);
            start = *end;
        }
        Ok(leaves)
    }

    fn interior(
        &self,
        node: &Node,
        changes: &[Change],
        upper: Option<ItemKey>,
    ) -> Result<Replaced, MapError> {
        let parts = route(node, changes);
        let replaced = self.parts(node, &parts, upper)?;
        if replaced.iter().all(Option::is_none) {
            return Ok(None);
        }
        let items = node.items();
        let count = items.count();
        let mut children = Vec::with_capacity(2 * count);
        let mut parts = parts.iter().zip(replaced).peekable();
        for index in 0..count {
            let part = parts.next_if(|(part, _)| part.index == index);
            if let Some((_, Some(nodes))) = part {
                self.writer.release(items.child(index));
                children.extend(nodes);
            } else {
                children
                    .push(Child { key: items.key(index), body: Body::Kept(items.child(index)) });
            }
        }
        let last = items.key(count - 1);
        let appended = children.iter().rev().take_while(|child| child.key > last).count();
        let grown = children.len().saturating_sub(count);
        let fill = if upper.is_none() && 2 * appended > grown { Fill::Open } else { Fill::Even };
        self.assemble(node.level(), children, upper, fill).map(Some)
    }

    /// Merges the parts of `node` on this thread, or half of them on another one.
    fn parts(
        &self,
        node: &Node,
        parts: &[Part<'_>],
        upper: Option<ItemKey>,
    ) -> Result<Vec<Replaced>, MapError> {
        if let [part] = parts {
            let (child, upper) = self.tree.load_child(node, part.index, upper)?;
            return Ok(vec![self.node(&child, part.changes, upper)?]);
        }
        let total: usize = parts.iter().map(|part| part.changes.len()).sum();
        let (left, right) = parts.split_at(half(parts, total));
        let (left, right) = if total >= FORK_CHANGES_MIN && self.take_thread() {
            self.fork(|| self.parts(node, left, upper), || self.parts(node, right, upper))
        } else {
            (Ok(self.parts(node, left, upper)?), self.parts(node, right, upper))
        };
        let mut replaced = left?;
        replaced.extend(right?);
        Ok(replaced)
    }

    /// Does `left` here and `right` on a thread that was taken, or both here if the system has no
    /// thread to give.
    fn fork<T: Send>(&self, left: impl Fn() -> T, right: impl Fn() -> T + Sync) -> (T, T) {
        let away = || {
            let result = right();
            self.spare_threads.fetch_add(1, Ordering::Relaxed);
            result
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("merge".to_owned());
            let started = thread.spawn_scoped(scope, away);
            let left = left();
            let right = match started {
                Ok(thread) => thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause)),
                Err(_) => away(),
            };
            (left, right)
        })
    }

    fn take_thread(&self) -> bool {
        let less = |spare: usize| spare.checked_sub(1);
        self.spare_threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// The root over all nodes of the highest level, which is `level`.
    fn root(&self, mut nodes: Vec<Child>, mut level: u8) -> Result<Root, MapError> {
        loop {
            if nodes.len() > 1 {
                level += 1;
                if level > LEVEL_MAX {
                    let ptr = self.tree.root.ptr.expect("only a forged tree was that high before");
                    return Err(corrupt(ptr, "a tree higher than any disk is large"));
                }
                nodes = self.assemble(level, nodes, None, Fill::Even)?;
                continue;
            }
            let Some(node) = nodes.pop() else { return Ok(Root::EMPTY) };
            match node.body {
                Body::Chain(child) => {
                    nodes.push(*child);
                    level -= 1;
                }
                Body::Fresh(draft) if level > 0 && draft.items().count() == 1 => {
                    return self.lower(draft.items().child(0), level - 1);
                }
                Body::Fresh(_) => {
                    return Ok(Root { ptr: Some(self.seal(node)?), level });
                }
                Body::Kept(ptr) => return self.lower(ptr, level),
            }
        }
    }

    /// The root of a tree whose nodes are all written, without nodes that have one child only.
    fn lower(&self, mut ptr: NodePtr, mut level: u8) -> Result<Root, MapError> {
        while level > 0 {
            let node = self.tree.load(ptr, level, None, None)?;
            if node.items().count() > 1 {
                break;
            }
            self.writer.release(ptr);
            ptr = node.items().child(0);
            level -= 1;
        }
        Ok(Root { ptr: Some(ptr), level })
    }

    /// Writes a node (and, where it is a chain, what hangs on it), if that was not done yet.
    pub(super) fn seal(&self, child: Child) -> Result<NodePtr, MapError> {
        let mut links = 0;
        let mut body = child.body;
        while let Body::Chain(below) = body {
            links += 1;
            body = below.body;
        }
        let draft = match body {
            Body::Fresh(draft) => draft,
            Body::Kept(ptr) => {
                assert_eq!(links, 0, "nothing hangs on a chain but loose nodes");
                return Ok(ptr);
            }
            Body::Chain(_) => unreachable!("the loop above ends at the last link"),
        };
        let level = draft.level();
        let mut ptr = self.write(draft)?;
        for link in 1..=links {
            ptr = self.write(Draft::interior(level + link, &[(child.key, ptr)]))?;
        }
        Ok(ptr)
    }

    fn write(&self, draft: Draft) -> Result<NodePtr, MapError> {
        let node = draft.seal(&Place {
            uuid: self.writer.uuid(),
            addr: self.writer.allocate()?,
            birth: self.writer.birth(),
            owner: self.tree.owner,
        });
        let ptr = node.ptr();
        self.writer.write(ptr, node)?;
        Ok(ptr)
    }
}

/// Which changes belong to which child of `node`. Changes before the first child belong to it.
fn route<'c>(node: &Node, changes: &'c [Change]) -> Vec<Part<'c>> {
    let items = node.items();
    let mut parts = Vec::with_capacity(changes.len().min(items.count()));
    let mut rest = changes;
    while let Some((key, _)) = rest.first() {
        let index = items.at_or_before((*key).into()).unwrap_or(0);
        let count = if index + 1 < items.count() {
            let upper = items.key(index + 1);
            rest.partition_point(|(key, _)| ItemKey::from(*key) < upper)
        } else {
            rest.len()
        };
        let (changes, others) = rest.split_at(count);
        parts.push(Part { index, changes });
        rest = others;
    }
    parts
}

/// Where to divide two or more parts so that both sides have about as many changes.
fn half(parts: &[Part<'_>], total: usize) -> usize {
    let mut before = 0;
    let mut middle = 0;
    while middle + 1 < parts.len() && (middle == 0 || 2 * before < total) {
        before += parts[middle].changes.len();
        middle += 1;
    }
    middle
}
