//! Taking a tree down that nobody reads any more, piece by piece.
//!
//! What an older state of the tree has, too, is not younger than that state: such subtrees are
//! left out, so the cost follows what only this tree has. From the first key to the last,
//!
//! 1. each item of a leaf is shown, then the leaf is;
//! 2. an interior node is shown once all its children were shown or left out.
//!
//! After a number of leaves it stops and says where to go on. Whoever is shown a node may use its
//! blocks for something else before the next call: nothing is loaded again that was shown, for the
//! separators on the way to the place are exact.

use std::sync::Arc;

use gabion_base::ids::Txg;

use crate::error::MapError;
use crate::format::node::{ItemKey, Node, NodePtr};
use crate::key::Key;
use crate::tree::Tree;

/// Who is shown what goes.
pub trait Pruner {
    /// An item of a leaf.
    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError>;

    /// A node all of whose content has been shown or is another's.
    fn node(&mut self, ptr: NodePtr) -> Result<(), MapError>;
}

struct Frame {
    node: Arc<Node>,
    index: usize,
    upper: Option<ItemKey>,
}

impl Frame {
    fn is_done(&self) -> bool {
        self.index >= self.node.items().count()
    }
}

impl Tree<'_> {
    /// Shows what is younger than `kept` from `place` on, at most `leaves` leaves of it. Returns
    /// where to go on; `None` at the end, when all was shown.
    pub fn prune(
        &self,
        place: ItemKey,
        kept: Txg,
        leaves: usize,
        pruner: &mut dyn Pruner,
    ) -> Result<Option<ItemKey>, MapError> {
        if self.root.ptr.is_none_or(|root| root.birth <= kept) {
            return Ok(None);
        }
        let mut frames = Vec::new();
        if let Some(node) = self.load_root()? {
            frames.push(Frame { index: start(&node, place), node, upper: None });
        }
        let mut shown = 0;
        while let Some(frame) = frames.last_mut() {
            if frame.is_done() {
                let done = frames.pop().expect("the frame just looked at");
                pruner.node(done.node.ptr())?;
                if let Some(parent) = frames.last_mut() {
                    parent.index += 1;
                }
                continue;
            }
            if shown >= leaves {
                return Ok(Some(frame.node.items().key(frame.index)));
            }
            if frame.node.level() == 0 {
                let items = frame.node.items();
                for index in frame.index..items.count() {
                    pruner.item(items.key(index).of(self.owner), items.value(index))?;
                }
                frame.index = items.count();
                shown += 1;
                continue;
            }
            if frame.node.items().child(frame.index).birth <= kept {
                frame.index += 1;
                continue;
            }
            let (node, upper) = self.load_child(&frame.node, frame.index, frame.upper)?;
            frames.push(Frame { index: start(&node, place), node, upper });
        }
        Ok(None)
    }
}

/// The first child or item that is not before `place`, or that holds it.
fn start(node: &Node, place: ItemKey) -> usize {
    node.items().at_or_before(place).unwrap_or(0)
}
