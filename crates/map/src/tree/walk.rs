//! A walk over a whole tree, node by node and item by item, in key order.

use crate::error::MapError;
use crate::format::node::NodePtr;
use crate::key::Key;
use crate::tree::Tree;
use crate::tree::path::{Path, Top};

/// What a walk does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// Load it and go on with what is in it.
    Enter,
    /// Leave it and all below it out.
    Skip,
}

/// Who is told what a walk meets. An error from any of its functions ends the walk.
pub trait Visitor {
    /// A node, before it is loaded; parents come before their children.
    fn node(&mut self, ptr: NodePtr, level: u8) -> Result<Visit, MapError>;

    /// An item of a leaf.
    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError>;

    /// A node that could not be loaded. `Ok` goes on after it and all below it.
    fn damage(&mut self, ptr: NodePtr, level: u8, error: MapError) -> Result<(), MapError> {
        let _ = (ptr, level);
        Err(error)
    }
}

impl Tree<'_> {
    /// Shows every node and every item to `visitor`.
    pub fn walk(&self, visitor: &mut dyn Visitor) -> Result<(), MapError> {
        let Some(ptr) = self.root.ptr else { return Ok(()) };
        if visitor.node(ptr, self.root.level)? == Visit::Skip {
            return Ok(());
        }
        let mut path = match Path::new(*self) {
            Ok(path) => path,
            Err(error) => return visitor.damage(ptr, self.root.level, error),
        };
        loop {
            match path.top() {
                Top::Subtree { ptr, level, .. } => {
                    if visitor.node(ptr, level)? == Visit::Enter {
                        match path.enter() {
                            Ok(()) => continue,
                            Err(error) => visitor.damage(ptr, level, error)?,
                        }
                    }
                }
                Top::Item { key, value } => visitor.item(key.of(self.owner), value)?,
                Top::End => return Ok(()),
            }
            path.step();
        }
    }
}
