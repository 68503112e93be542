//! A path from the root to a place in the tree: what cursors, walks and differences stand on.
//!
//! A path names one *top*: a child of an interior node that was not entered yet, or an item of a
//! leaf. Invariant: `index < count` in every frame, so the empty path is the tree's end.

use std::sync::Arc;

use crate::error::MapError;
use crate::format::node::{ItemKey, Node, NodePtr};
use crate::tree::Tree;

struct Frame {
    node: Arc<Node>,
    index: usize,
    upper: Option<ItemKey>,
}

pub(super) struct Path<'a> {
    tree: Tree<'a>,
    frames: Vec<Frame>,
}

/// What a path names.
pub(super) enum Top<'p> {
    /// A child that was not entered.
    Subtree { first: ItemKey, ptr: NodePtr, level: u8 },
    /// An item.
    Item { key: ItemKey, value: &'p [u8] },
    /// Nothing is left.
    End,
}

impl Top<'_> {
    /// The lowest key in it.
    pub(super) fn key(&self) -> Option<ItemKey> {
        match self {
            Self::Subtree { first, .. } => Some(*first),
            Self::Item { key, .. } => Some(*key),
            Self::End => None,
        }
    }
}

impl<'a> Path<'a> {
    /// A path to the root's first child or item.
    pub(super) fn new(tree: Tree<'a>) -> Result<Self, MapError> {
        let mut path = Self { tree, frames: Vec::new() };
        if let Some(node) = tree.load_root()? {
            path.frames.push(Frame { node, index: 0, upper: None });
        }
        Ok(path)
    }

    /// A path to the first item at or after `key`.
    pub(super) fn seek(tree: Tree<'a>, key: ItemKey) -> Result<Self, MapError> {
        let mut path = Self::new(tree)?;
        while let Some(frame) = path.frames.last_mut() {
            let items = frame.node.items();
            let before = items.at_or_before(key);
            if frame.node.level() > 0 {
                frame.index = before.unwrap_or(0);
                path.enter()?;
                continue;
            }
            match before {
                Some(index) if items.key(index) == key => frame.index = index,
                Some(index) => {
                    frame.index = index;
                    path.step();
                }
                None => {}
            }
            break;
        }
        Ok(path)
    }

    /// What the path names.
    pub(super) fn top(&self) -> Top<'_> {
        let Some(Frame { node, index, .. }) = self.frames.last() else { return Top::End };
        let items = node.items();
        let key = items.key(*index);
        if node.level() == 0 {
            Top::Item { key, value: items.value(*index) }
        } else {
            Top::Subtree { first: key, ptr: items.child(*index), level: node.level() - 1 }
        }
    }

    /// Goes from a subtree to its first child or item.
    pub(super) fn enter(&mut self) -> Result<(), MapError> {
        let frame = self.frames.last().expect("only a subtree is entered");
        let (node, upper) = self.tree.load_child(&frame.node, frame.index, frame.upper)?;
        self.frames.push(Frame { node, index: 0, upper });
        Ok(())
    }

    /// Goes down to the first item of the subtree, if it is not at an item.
    pub(super) fn descend(&mut self) -> Result<(), MapError> {
        while self.frames.last().is_some_and(|frame| frame.node.level() > 0) {
            self.enter()?;
        }
        Ok(())
    }

    /// Goes past the top, to whatever comes next on its level or above.
    pub(super) fn step(&mut self) {
        while let Some(frame) = self.frames.last_mut() {
            frame.index += 1;
            if frame.index < frame.node.items().count() {
                return;
            }
            self.frames.pop();
        }
    }
}
