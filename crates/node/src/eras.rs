//! Numbers by which a kernel knows objects, across rollbacks.
//!
//! A rollback makes another object of each that a subvolume has: a program that has one open must
//! not go on with what has its number now, nor a kernel with what it keeps of it. So
//!
//! ```text
//!   before          the number of the object             (numbering)
//!   after the k-th  its number in a subvolume that nobody has
//! ```
//!
//! and numbers of earlier eras stand for nothing. The root of the mount keeps its own: it is what
//! everything else is found from. What programs are told as an inode number is the same in all
//! eras.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::RwLock;
use gabion_map::FileId;

use crate::numbering;

/// The numbers of one mount.
#[derive(Default)]
pub struct Eras {
    /// Without a rollback there is nothing to look at.
    is_used: AtomicBool,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// By which subvolume objects of this one are known.
    current: BTreeMap<SubvolId, SubvolId>,
    /// For which one this stands or stood.
    meaning: BTreeMap<SubvolId, SubvolId>,
}

impl Eras {
    /// The number by which the kernel of a mount of `root` knows an object, which has `number`
    /// without rollbacks.
    pub fn number(&self, root: FileId, number: Ino, file: FileId) -> Ino {
        if !self.is_used.load(Ordering::Acquire) || file == root {
            return number;
        }
        match self.state.read().current.get(&file.subvol) {
            Some(known) => numbering::number(root.subvol, FileId::new(*known, file.ino)),
            None => number,
        }
    }

    /// The object that is meant where the number is that of `file`. `Err`: it was that object in
    /// an earlier era.
    pub fn file(&self, root: FileId, file: FileId) -> Result<FileId, FileId> {
        if !self.is_used.load(Ordering::Acquire) || file == root {
            return Ok(file);
        }
        let state = self.state.read();
        match state.meaning.get(&file.subvol) {
            Some(meant) => {
                let found = FileId::new(*meant, file.ino);
                let is_now = state.current.get(meant) == Some(&file.subvol);
                if is_now { Ok(found) } else { Err(found) }
            }
            None if state.current.contains_key(&file.subvol) => Err(file),
            None => Ok(file),
        }
    }

    /// Whether another era can begin.
    pub fn has_more(&self) -> bool {
        (self.state.read().meaning.len() as u32) < numbering::ERAS_MAX
    }

    /// Objects of the subvolume are known by other numbers from now on. To be called only if there
    /// are more.
    pub fn begin(&self, subvol: SubvolId) {
        let mut state = self.state.write();
        let era = state.meaning.len() as u32;
        assert!(era < numbering::ERAS_MAX, "there is no further era");
        let known = SubvolId(numbering::SUBVOLUMES_END + era);
        state.current.insert(subvol, known);
        state.meaning.insert(known, subvol);
        self.is_used.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: FileId = FileId::new(SubvolId(1), Ino(1));

    fn file(subvol: u32, ino: u64) -> FileId {
        FileId::new(SubvolId(subvol), Ino(ino))
    }

    fn number(eras: &Eras, file: FileId) -> Ino {
        eras.number(ROOT, numbering::number(ROOT.subvol, file), file)
    }

    fn found(eras: &Eras, number: Ino) -> Result<FileId, FileId> {
        eras.file(ROOT, numbering::file(ROOT.subvol, number))
    }

    #[test]
    fn numbers_of_earlier_eras_stand_for_nothing_and_those_of_others_stay() {
        let eras = Eras::default();
        let (mine, list, other) = (file(1, 77), file(1, 0), file(9, 77));
        let mut before = Vec::new();
        for era in 0..3 {
            for object in [mine, list] {
                let known = number(&eras, object);
                assert_eq!(found(&eras, known), Ok(object), "era {era}");
                assert!(!before.contains(&(known, object)), "era {era}");
                before.push((known, object));
            }
            let outlived = before.iter().filter(|(known, _)| found(&eras, *known).is_err());
            assert_eq!(outlived.count(), 2 * era);
            for stays in [ROOT, other] {
                assert_eq!(number(&eras, stays), numbering::number(ROOT.subvol, stays));
                assert_eq!(found(&eras, number(&eras, stays)), Ok(stays));
            }
            eras.begin(ROOT.subvol);
        }
        for (known, object) in before {
            assert_eq!(found(&eras, known), Err(object));
        }
        let known = number(&eras, other);
        eras.begin(other.subvol);
        assert_eq!(found(&eras, known), Err(other));
        assert_eq!(found(&eras, number(&eras, other)), Ok(other));
        assert!(eras.has_more());
    }
}
