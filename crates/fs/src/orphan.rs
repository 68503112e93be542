//! Objects without a name.
//!
//! ```text
//!   named --last name removed, open--> orphan --closed: reap, step by step--> gone
//!     ^                                  |
//!     '---- link (only O_TMPFILE) -------'
//! ```
//!
//! Invariant: an inode with `nlink` 0 has an ORPHAN item under inode 0 of its subvolume. So a
//! mount finds what a crash left behind by [`orphans`], and [`reap`] may be cut anywhere: the
//! ORPHAN item goes with the last step.

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::txn::Removal;
use gabion_map::{FileId, Key, Kind, LockMode, Txn};

use crate::error::Result;
use crate::format::inode::{Flags, Inode};
use crate::mode::FileType;
use crate::object;

/// Extended attributes that one step removes; bounds a transaction's size.
const ATTRIBUTES_PER_STEP: usize = 64;

/// At most `limit` orphans of a subvolume with numbers above `after`, in order.
pub fn orphans<T: Txn + ?Sized>(
    txn: &mut T,
    subvol: SubvolId,
    after: Ino,
    limit: usize,
) -> Result<Vec<FileId>> {
    let Some(first) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    let list = FileId::new(subvol, Ino(0));
    let items = txn.scan(list.key(Kind::ORPHAN, first), list.key(Kind::ORPHAN, u64::MAX), limit)?;
    Ok(items.into_iter().map(|(key, _)| FileId::new(subvol, Ino(key.at))).collect())
}

/// Removes the next part of an orphan that nobody has open. `Partial`: run it again, each time in
/// a transaction of its own. An object that has got a name meanwhile is left alone.
pub fn reap<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Removal> {
    txn.lock(file, LockMode::Exclusive)?;
    let Some(inode) = object::find(txn, file)? else {
        take(txn, file)?;
        return Ok(Removal::Complete);
    };
    if inode.nlink > 0 {
        return Ok(Removal::Complete);
    }
    let removal = remove_content(txn, file, &inode)?;
    if removal == Removal::Complete {
        take(txn, file)?;
    }
    Ok(removal)
}

/// Removes the next part of everything that belongs to the object, its inode last.
pub(crate) fn remove_content<T: Txn + ?Sized>(
    txn: &mut T,
    file: FileId,
    inode: &Inode,
) -> Result<Removal> {
    if inode.file_type == FileType::Regular && txn.remove_bytes(file)? == Removal::Partial {
        return Ok(Removal::Partial);
    }
    if inode.flags.has(Flags::ATTRIBUTES) {
        let (from, to) = (file.key(Kind::XATTR, 0), file.key(Kind::XATTR, u64::MAX));
        let items = txn.scan(from, to, ATTRIBUTES_PER_STEP)?;
        for (key, _) in &items {
            txn.delete(*key)?;
        }
        if items.len() == ATTRIBUTES_PER_STEP {
            return Ok(Removal::Partial);
        }
    }
    if inode.file_type == FileType::Symlink {
        txn.delete(file.key(Kind::SYMLINK, 0))?;
    }
    txn.delete(file.key(Kind::INODE, 0))?;
    Ok(Removal::Complete)
}

/// Enters the object into the list of orphans.
pub(crate) fn put<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<()> {
    Ok(txn.put(key_of(file), Vec::new())?)
}

/// Takes the object off the list of orphans.
pub(crate) fn take<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<()> {
    Ok(txn.delete(key_of(file))?)
}

fn key_of(file: FileId) -> Key {
    FileId::new(file.subvol, Ino(0)).key(Kind::ORPHAN, file.ino.0)
}
