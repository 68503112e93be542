//! Uniting loose nodes with their neighbours.
//!
//! A node that uses less than a quarter of its space is *loose*. It is put together with a
//! neighbour under the same parent, and the items of both are divided anew: into one node or two
//! equal ones. An interior node that is left with a loose child alone has no neighbour to offer,
//! so the child stays unwritten (a [`Body::Chain`]) until the interior node was itself put together
//! with its neighbour: then the children of both are settled as one list. At the root the chain
//! is taken off, and the tree has lost a level.
//!
//! On the tree's right edge, a loose node is put together with its neighbour only if one node
//! holds both. Else a tree that grows at its end would leave half empty nodes behind.
//!
//! Putting together recurses one level down at a time, so its depth is the tree's.

use std::sync::Arc;

use crate::error::MapError;
use crate::format::node::{Draft, INTERIOR_SLOT, ItemKey, Items, NODE_CAPACITY, Node};
use crate::tree::merge::{Body, Child, Merge};
use crate::tree::pack::{Entry, Fill, child_sizes, divide};

/// A node to be put together with another one, and its content if it had to be loaded.
struct Opened {
    child: Child,
    node: Option<Arc<Node>>,
}

impl Opened {
    fn used(&self) -> usize {
        self.items().map_or(INTERIOR_SLOT, |items| items.used())
    }

    /// Its items; `None` for a chain.
    fn items(&self) -> Option<Items<'_>> {
        match (&self.child.body, &self.node) {
            (Body::Fresh(draft), _) => Some(draft.items()),
            (_, Some(node)) => Some(node.items()),
            _ => None,
        }
    }

    /// The children of an interior node.
    fn into_children(self) -> Vec<Child> {
        let kept = |items: Items<'_>| {
            let child =
                |index| Child { key: items.key(index), body: Body::Kept(items.child(index)) };
            (0..items.count()).map(child).collect()
        };
        match (self.child.body, self.node) {
            (Body::Chain(child), _) => vec![*child],
            (Body::Fresh(draft), _) => kept(draft.items()),
            (Body::Kept(_), node) => {
                kept(node.expect("a kept node is loaded to be opened").items())
            }
        }
    }
}

impl Merge<'_> {
    /// Settles and writes `children`, and packs nodes of `level` out of them. All their keys are
    /// below `upper`. Gives no node if there are no children, and a chain if only a loose one.
    pub(super) fn assemble(
        &self,
        level: u8,
        children: Vec<Child>,
        upper: Option<ItemKey>,
        fill: Fill,
    ) -> Result<Vec<Child>, MapError> {
        let mut children = self.settle(level - 1, children, upper)?;
        if children.len() == 1
            && let Some(child) = children.pop_if(|child| child.is_loose())
        {
            return Ok(vec![Child { key: child.key, body: Body::Chain(Box::new(child)) }]);
        }
        let written: Vec<_> = children
            .into_iter()
            .map(|child| Ok((child.key, self.seal(child)?)))
            .collect::<Result<_, MapError>>()?;
        let mut start = 0;
        let node = |end: usize| {
            let children = &written[std::mem::replace(&mut start, end)..end];
            Child::fresh(Draft::interior(level, children))
        };
        Ok(divide(&child_sizes(written.len()), fill).into_iter().map(node).collect())
    }

    /// Puts loose ones of these nodes of `level` together with neighbours. What is left loose is
    /// alone, or on the right edge of the tree.
    fn settle(
        &self,
        level: u8,
        nodes: Vec<Child>,
        upper: Option<ItemKey>,
    ) -> Result<Vec<Child>, MapError> {
        let mut settled: Vec<Child> = Vec::with_capacity(nodes.len());
        let mut rest = nodes.into_iter().peekable();
        while let Some(node) = rest.next() {
            let next = rest.peek();
            // Between two neighbours, the one that is written anyway is better.
            let waits = |left: &Child| left.is_kept() && next.is_some_and(|next| !next.is_kept());
            let unite = |left: &mut Child| left.is_loose() || (node.is_loose() && !waits(left));
            let upper = next.map(|next| next.key).or(upper);
            match settled.pop_if(unite) {
                Some(left) => settled.extend(self.unite(level, left, node, upper)?),
                None => settled.push(node),
            }
        }
        // One that waited for a neighbour which was itself loose may be last now.
        if settled.len() > 1
            && upper.is_some()
            && let Some(right) = settled.pop_if(|last| last.is_loose())
        {
            let left = settled.pop().expect("there were two");
            settled.extend(self.unite(level, left, right, upper)?);
        }
        Ok(settled)
    }

    /// Puts two neighbours together, into one node or two.
    fn unite(
        &self,
        level: u8,
        left: Child,
        right: Child,
        upper: Option<ItemKey>,
    ) -> Result<Vec<Child>, MapError> {
        let on_the_edge = upper.is_none() && !left.is_loose();
        let left = self.open(level, left, Some(right.key))?;
        let right = self.open(level, right, upper)?;
        if on_the_edge && left.used() + right.used() > NODE_CAPACITY {
            return Ok(vec![left.child, right.child]);
        }
        for opened in [&left, &right] {
            if let Body::Kept(ptr) = opened.child.body {
                self.writer.release(ptr);
            }
        }
        if level > 0 {
            let mut children = left.into_children();
            children.extend(right.into_children());
            return self.assemble(level, children, upper, Fill::Even);
        }
        let entries: Vec<Entry<'_>> = [&left, &right]
            .into_iter()
            .filter_map(Opened::items)
            .flat_map(|items| (0..items.count()).map(move |i| (items.key(i), items.value(i))))
            .collect();
        self.leaves(&entries, Fill::Even)
    }

    /// Loads a node if it was not packed just now.
    fn open(&self, level: u8, child: Child, upper: Option<ItemKey>) -> Result<Opened, MapError> {
        let node = match child.body {
            Body::Kept(ptr) => Some(self.tree.load(ptr, level, Some(child.key), upper)?),
            Body::Fresh(_) | Body::Chain(_) => None,
        };
        Ok(Opened { child, node })
    }
}
