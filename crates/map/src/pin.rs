//! Keeping an older state readable while commits go on.
//!
//! A reader that walks a whole tree takes longer than a commit. While it holds a pin, blocks that
//! the pinned state references are not given out again. Pins cost space, so a long walk takes a new
//! one from time to time and goes on in the newer state.

use std::sync::Arc;

use gabion_base::ids::{SubvolId, Txg};

use crate::catalogue::Roots;
use crate::format::superblock::Superblock;
use crate::map::LocalMap;
use crate::tree::{Root, Tree};

/// A committed state that stays readable.
pub struct Pin<'m> {
    map: &'m LocalMap,
    txg: Txg,
    roots: Arc<Roots>,
    forest: Root,
}

impl LocalMap {
    /// Pins the last committed state.
    pub fn pin(&self) -> Pin<'_> {
        self.pin_at(&self.superblock.lock())
    }

    /// The same for who holds the commit lock.
    pub(crate) fn pin_at(&self, superblock: &Superblock) -> Pin<'_> {
        let txg = superblock.txg;
        *self.pins.lock().entry(txg).or_default() += 1;
        let roots = Arc::clone(&self.view.load().roots);
        let forest = Root { ptr: superblock.forest, level: superblock.forest_level };
        Pin { map: self, txg, roots, forest }
    }

    /// Whether blocks that `retired` gave up are still needed by a pinned state.
    pub(crate) fn is_pinned(&self, retired: Txg) -> bool {
        self.pins.lock().first_key_value().is_some_and(|(pinned, _)| *pinned < retired)
    }
}

impl Pin<'_> {
    /// Which commit it is.
    pub fn txg(&self) -> Txg {
        self.txg
    }

    /// Subvolumes that have a tree in it.
    pub fn subvolumes(&self) -> Vec<SubvolId> {
        self.roots.iter().map(|(id, _)| id).collect()
    }

    /// A subvolume's tree. [`SubvolId`] 0 is the forest.
    pub fn tree(&self, subvol: SubvolId) -> Tree<'_> {
        let root =
            if subvol == crate::commit::FOREST { self.forest } else { self.roots.root(subvol) };
        Tree::new(&self.map.nodes, root, subvol)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut pins = self.map.pins.lock();
        let count = pins.get_mut(&self.txg).expect("it is pinned");
        *count -= 1;
        if *count == 0 {
            pins.remove(&self.txg);
        }
    }
}
