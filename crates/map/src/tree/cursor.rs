//! A position among a tree's items that moves forward. It keeps its path, so that the next item
//! costs no search.

use crate::error::MapError;
use crate::key::Key;
use crate::tree::Tree;
use crate::tree::path::{Path, Top};

/// A position among the items of one state of a tree.
pub struct Cursor<'a> {
    tree: Tree<'a>,
    path: Path<'a>,
}

impl<'a> Tree<'a> {
    /// A cursor at the first item at or after `from`.
    pub fn cursor(&self, from: Key) -> Result<Cursor<'a>, MapError> {
        let mut cursor = Cursor { tree: *self, path: Path::seek(*self, self.place(from))? };
        cursor.path.descend()?;
        Ok(cursor)
    }
}

impl Cursor<'_> {
    /// The item here; `None` at the end.
    pub fn item(&self) -> Option<(Key, &[u8])> {
        match self.path.top() {
            Top::Item { key, value } => Some((key.of(self.tree.owner), value)),
            Top::Subtree { .. } => unreachable!("a cursor rests on items"),
            Top::End => None,
        }
    }

    /// Goes to the next item. At the end it stays there.
    pub fn advance(&mut self) -> Result<(), MapError> {
        self.path.step();
        self.path.descend()
    }

    /// Goes to the first item at or after `key`, forward or backward.
    pub fn seek(&mut self, key: Key) -> Result<(), MapError> {
        *self = self.tree.cursor(key)?;
        Ok(())
    }
}
