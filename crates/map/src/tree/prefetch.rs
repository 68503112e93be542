//! All nodes on the way to many keys, read at once.
//!
//! A search waits for one node after the other. Whoever is going to look for many keys, as of all
//! objects of a directory, would wait for each node of the last level by itself. Here the store
//! is told of all nodes of a level together:
//!
//! 1. The nodes on the way: at first the root.
//! 2. The store gets those that it does not have, all at the same time.
//! 3. Of each, the children on the way to some of the keys are the nodes of the next level; go to
//!    2.
//!
//! It is a favour to searches that follow. What is wrong with a node is for those to find.

use std::ops::Range;

use crate::error::MapError;
use crate::format::node::{ItemKey, NodePtr};
use crate::key::Key;
use crate::tree::{Tree, check};

impl Tree<'_> {
    /// Has the store get what searches for `keys` are going to need.
    pub fn prefetch(&self, keys: &[Key]) -> Result<(), MapError> {
        let Some(root) = self.root.ptr else { return Ok(()) };
        let mut level = self.root_level()?;
        let mut places: Vec<ItemKey> = keys.iter().map(|key| self.place(*key)).collect();
        places.sort_unstable();
        let mut nodes: Vec<(NodePtr, Range<usize>)> = vec![(root, 0..places.len())];
        loop {
            let wanted: Vec<NodePtr> = nodes.iter().map(|(ptr, _)| *ptr).collect();
            self.store.prefetch(&wanted, level);
            if level == 0 {
                return Ok(());
            }
            let mut below: Vec<(NodePtr, Range<usize>)> = Vec::new();
            for (ptr, range) in nodes {
                let node = self.store.load(ptr, self.owner, level)?;
                check(&node, ptr, level, None, None)?;
                let items = node.items();
                for index in range {
                    let Some(child) = items.at_or_before(places[index]) else { continue };
                    let child = items.child(child);
                    match below.last_mut() {
                        Some((last, range)) if *last == child => range.end = index + 1,
                        _ => below.push((child, index..index + 1)),
                    }
                }
            }
            (nodes, level) = (below, level - 1);
        }
    }
}
