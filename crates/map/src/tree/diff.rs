//! The difference of two states of a tree, at a cost that follows the change.
//!
//! Both trees are walked side by side by their lowest keys:
//!
//! 1. Where one side's top starts at a lower key, that key is on this side only: a subtree there
//!    is entered, an item is reported.
//! 2. Where both start at the same key, two subtrees with the same pointer are the same, and both
//!    are left out. Else the higher one is entered (or both), until two items can be compared.
//!
//! A node that both trees contain is therefore never loaded, unless the start of the range lies in
//! it: of two subtrees that start at one key the higher is entered first, so the shared node is
//! the top of both sides at some time. No rule about birth times is needed: if the new tree comes
//! from the old one, every node of it that is not younger than the old one is in both.
//!
//! What one node has and the one beside it has not is going to be entered. The store is told of
//! some of that at once, so that it need not be read one after the other.

use crate::error::MapError;
use crate::format::node::{ItemKey, NodePtr};
use crate::key::Key;
use crate::tree::path::{Path, Top};
use crate::tree::{Root, Tree};

/// The difference of two states of a tree, to be read piece by piece.
pub struct Diff<'a> {
    old: Path<'a>,
    new: Path<'a>,
    tree: Tree<'a>,
    /// The first key that does not count.
    until: Option<ItemKey>,
    /// The sides on which the caller was given what is at the top.
    given: Sides,
}

/// An item that is not the same in both trees: at least one of the values is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference<'d> {
    /// Its key, with the new tree's subvolume.
    pub key: Key,
    /// Its value in the old tree.
    pub old: Option<&'d [u8]>,
    /// Its value in the new tree.
    pub new: Option<&'d [u8]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sides {
    None,
    Old,
    New,
    Both,
}

/// What comes next.
enum Step {
    /// Go into the subtrees on these sides.
    Enter(Sides),
    /// Go past what is equal on both sides.
    Pass,
    /// Report the items on these sides.
    Report(Sides),
    /// Both trees have ended.
    End,
}

impl Sides {
    fn has_old(self) -> bool {
        matches!(self, Self::Old | Self::Both)
    }

    fn has_new(self) -> bool {
        matches!(self, Self::New | Self::Both)
    }
}

impl<'a> Diff<'a> {
    /// What changed from `old` to `new` at and after `from`, a key of `new`.
    pub fn new(mut old: Tree<'a>, mut new: Tree<'a>, from: Key) -> Result<Self, MapError> {
        let place = new.place(from);
        if old.root == new.root {
            (old.root, new.root) = (Root::EMPTY, Root::EMPTY);
        }
        Ok(Self {
            old: Path::seek(old, place)?,
            new: Path::seek(new, place)?,
            tree: new,
            until: None,
            given: Sides::None,
        })
    }

    /// Only what changed before `end`, a key of the new tree.
    #[must_use]
    pub fn until(mut self, end: Key) -> Self {
        self.until = Some(self.tree.place(end));
        self
    }

    /// The next change, in key order; `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "the item borrows from self")]
    pub fn next(&mut self) -> Result<Option<Difference<'_>>, MapError> {
        self.pass(self.given);
        loop {
            match self.step() {
                Step::Enter(sides) => {
                    self.foresee(sides);
                    if sides.has_old() {
                        self.old.enter()?;
                    }
                    if sides.has_new() {
                        self.new.enter()?;
                    }
                }
                Step::Pass => self.pass(Sides::Both),
                Step::Report(sides) => {
                    self.given = sides;
                    return Ok(Some(self.difference(sides)));
                }
                Step::End => {
                    self.given = Sides::None;
                    return Ok(None);
                }
            }
        }
    }

    /// Has the store get what is going to be entered on these sides.
    fn foresee(&mut self, sides: Sides) {
        let side = if sides.has_old() { &self.old } else { &self.new };
        let level = height(&side.top());
        let mut coming = Vec::new();
        if sides.has_old() {
            coming = self.old.coming(&self.new, self.until);
        }
        if sides.has_new() {
            coming.extend(self.new.coming(&self.old, self.until));
        }
        if coming.len() > 1 {
            self.tree.store.prefetch(&coming, level - 1);
        }
    }

    fn pass(&mut self, sides: Sides) {
        if sides.has_old() {
            self.old.step();
        }
        if sides.has_new() {
            self.new.step();
        }
    }

    fn step(&self) -> Step {
        let (old, new) = (self.old.top(), self.new.top());
        let counts = |key: &ItemKey| self.until.is_none_or(|until| *key < until);
        let sides = match (old.key().filter(counts), new.key().filter(counts)) {
            (None, None) => return Step::End,
            (Some(_), None) => Sides::Old,
            (None, Some(_)) => Sides::New,
            (Some(a), Some(b)) if a < b => Sides::Old,
            (Some(a), Some(b)) if a > b => Sides::New,
            _ => Sides::Both,
        };
        match (sides, height(&old), height(&new)) {
            (Sides::Old, 0, _) | (Sides::New, _, 0) => Step::Report(sides),
            (Sides::Both, 0, 0) if value(&old) == value(&new) => Step::Pass,
            (Sides::Both, 0, 0) => Step::Report(sides),
            (Sides::Both, a, b) if a > b => Step::Enter(Sides::Old),
            (Sides::Both, a, b) if a < b => Step::Enter(Sides::New),
            (Sides::Both, ..) if subtree(&old) == subtree(&new) => Step::Pass,
            _ => Step::Enter(sides),
        }
    }

    fn difference(&self, sides: Sides) -> Difference<'_> {
        let (old, new) = (self.old.top(), self.new.top());
        let key = if sides.has_old() { old.key() } else { new.key() };
        Difference {
            key: key.expect("a side that is reported has an item").of(self.tree.owner),
            old: value(&old).filter(|_| sides.has_old()),
            new: value(&new).filter(|_| sides.has_new()),
        }
    }
}

/// 0 for an item, else how many levels stand between it and the items.
fn height(top: &Top<'_>) -> u8 {
    match top {
        Top::Subtree { level, .. } => level + 1,
        Top::Item { .. } | Top::End => 0,
    }
}

fn value<'p>(top: &Top<'p>) -> Option<&'p [u8]> {
    match top {
        Top::Item { value, .. } => Some(value),
        Top::Subtree { .. } | Top::End => None,
    }
}

fn subtree(top: &Top<'_>) -> Option<NodePtr> {
    match top {
        Top::Subtree { ptr, .. } => Some(*ptr),
        Top::Item { .. } | Top::End => None,
    }
}
