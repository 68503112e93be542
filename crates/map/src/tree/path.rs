//! A path from the root to a place in the tree: what cursors, walks and differences stand on.
//!
//! A path names one *top*: a child of an interior node that was not entered yet, or an item of a
//! leaf. Invariant: `index < count` in every frame, so the empty path is the tree's end.

use std::sync::Arc;

use crate::error::MapError;
use crate::format::node::{ItemKey, Node, NodePtr};
use crate::tree::Tree;

/// Subtrees that are told at once before they are entered.
const FORESEEN: usize = 32;

struct Frame {
    node: Arc<Node>,
    index: usize,
    upper: Option<ItemKey>,
    /// Behind the last child that [`Path::coming`] has looked at.
    foreseen: usize,
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
            path.frames.push(Frame { node, index: 0, upper: None, foreseen: 0 });
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
        self.frames.push(Frame { node, index: 0, upper, foreseen: 0 });
        Ok(())
    }

    /// Goes down to the first item of the subtree, if it is not at an item.
    pub(super) fn descend(&mut self) -> Result<(), MapError> {
        while self.frames.last().is_some_and(|frame| frame.node.level() > 0) {
            self.enter()?;
        }
        Ok(())
    }

    /// Subtrees that are going to be entered if all are that `other` does not have beside them and
    /// that start before `until`: the top, which is one, and some of those behind it. Nothing if
    /// the top was among those that were told before.
    pub(super) fn coming(&mut self, other: &Self, until: Option<ItemKey>) -> Vec<NodePtr> {
        let Some(frame) = self.frames.last_mut() else { return Vec::new() };
        if frame.index < frame.foreseen {
            return Vec::new();
        }
        let level = frame.node.level();
        let beside = other.frames.iter().rfind(|frame| frame.node.level() == level);
        let is_shared = |key: ItemKey, ptr: NodePtr| {
            let items = beside.map(|frame| frame.node.items());
            let found = items.and_then(|items| Some(items.child(items.at_or_before(key)?)));
            found == Some(ptr)
        };
        let (items, mut coming) = (frame.node.items(), vec![]);
        frame.foreseen = frame.index;
        while frame.foreseen < items.count() && coming.len() < FORESEEN {
            let (key, ptr) = (items.key(frame.foreseen), items.child(frame.foreseen));
            if until.is_some_and(|until| key >= until) {
                break;
            }
            frame.foreseen += 1;
            if !is_shared(key, ptr) {
                coming.push(ptr);
            }
        }
        // The top has been looked at in any case.
        frame.foreseen = frame.foreseen.max(frame.index + 1);
        coming
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
