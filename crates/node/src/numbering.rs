//! The numbers that a front end has for objects.
//!
//! ```text
//!   bit 63 | 62 .. 40     | 39 .. 0
//!   0      | inode number                 of the subvolume that is in use
//!   1      | subvolume    | inode number  of a snapshot or of another subvolume
//! ```
//!
//! The last subvolumes there could be stand for others, as a mount has seen them rolled back
//! ([`crate::eras`]).
//!
//! So no two objects of a mount have one number, whatever they share, and an object has the same
//! number at each mount. Inode 0 of a subvolume is the directory of its snapshots.

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::FileId;

const FOREIGN: u64 = 1 << 63;
const INODE_BITS: u32 = 40;
const SUBVOLUME_BITS: u32 = 23;
/// Rollbacks that one mount can see.
pub(crate) const ERAS_MAX: u32 = 4096;
/// Behind the last subvolume whose objects can have a number.
pub(crate) const SUBVOLUMES_END: u32 = (1 << SUBVOLUME_BITS) - ERAS_MAX;

/// Whether the object can have a number where `home` is in use: else its inode number or its
/// subvolume's id is too large.
pub(crate) fn has_number(home: SubvolId, file: FileId) -> bool {
    is_native(home, file) || (file.ino.0 < 1 << INODE_BITS && file.subvol.0 < SUBVOLUMES_END)
}

/// The object's number where `home` is in use.
pub fn number(home: SubvolId, file: FileId) -> Ino {
    match is_native(home, file) {
        true => file.ino,
        false => Ino(FOREIGN | u64::from(file.subvol.0) << INODE_BITS | file.ino.0),
    }
}

/// The object with this number where `home` is in use.
pub(crate) fn file(home: SubvolId, number: Ino) -> FileId {
    if number.0 & FOREIGN == 0 {
        return FileId::new(home, number);
    }
    let rest = number.0 & !FOREIGN;
    let subvol = SubvolId((rest >> INODE_BITS) as u32);
    FileId::new(subvol, Ino(rest & ((1 << INODE_BITS) - 1)))
}

fn is_native(home: SubvolId, file: FileId) -> bool {
    file.subvol == home && file.ino != Ino(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: SubvolId = SubvolId(1);

    #[test]
    fn each_object_has_a_number_of_its_own_and_is_found_by_it() {
        let files =
            [(1, 1), (1, 1 << 62), (1, 0), (2, 1), (2, (1 << 40) - 1), (3, 0), (8_000_000, 9)];
        let mut numbers = Vec::new();
        for (subvol, ino) in files {
            let object = FileId::new(SubvolId(subvol), Ino(ino));
            assert!(has_number(HOME, object));
            assert_eq!(file(HOME, number(HOME, object)), object);
            numbers.push(number(HOME, object));
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), files.len());
        assert_eq!(number(HOME, FileId::new(HOME, Ino(77))), Ino(77));
        for (subvol, ino) in [(2, 1 << 40), (1 << 23, 1), (SUBVOLUMES_END, 1)] {
            assert!(!has_number(HOME, FileId::new(SubvolId(subvol), Ino(ino))));
        }
    }
}
