//! Names of other subvolumes: where the root of one stands in a directory of another.
//!
//! Such an entry has a number that no object has: `ENTRY` and the subvolume's id. It is no name
//! of an object here, so nothing but [`attach`] and [`detach`] makes or removes it, and a lookup
//! ends there ([`Error::CrossSubvolume`]): whoever knows the other subvolume goes on in it.

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::{FileId, LockMode, Txn};

use crate::context::Context;
use crate::create;
use crate::entry::{self, Place, Target};
use crate::error::{Error, Result};
use crate::mode::FileType;
use crate::object;
use crate::permission;

/// What the number of an entry has that stands for a subvolume: inode numbers are smaller.
const ENTRY: u64 = 1 << 63;

impl Target {
    /// The subvolume that it stands for, if it does.
    pub(crate) fn subvolume(self) -> Option<SubvolId> {
        of_entry(self.ino)
    }

    /// Fails with `Busy` if it stands for a subvolume.
    pub(crate) fn check_is_object(self) -> Result<()> {
        if self.subvolume().is_some() { Err(Error::Busy) } else { Ok(()) }
    }
}

/// The subvolume that an entry with this number stands for; `None` if it stands for an object.
pub fn of_entry(ino: Ino) -> Option<SubvolId> {
    let id = u32::try_from(ino.0.checked_sub(ENTRY)?).ok()?;
    (id != 0).then_some(SubvolId(id))
}

/// The number of an entry that stands for this subvolume.
pub fn entry_of(subvol: SubvolId) -> Ino {
    Ino(ENTRY | u64::from(subvol.0))
}

/// The subvolume that `name` in `parent` stands for. `NotFound`: none, or something else.
pub fn named<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
) -> Result<SubvolId> {
    let place = Place::find(txn, ctx, parent, name)?;
    place.target().and_then(Target::subvolume).ok_or(Error::NotFound)
}

/// Gives a subvolume the name `name` in the directory `parent` of another one.
pub fn attach<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    subvol: SubvolId,
) -> Result<()> {
    if entry::is_dots(name) {
        return Err(Error::Exists);
    }
    let (mut inode, place) = create::enter(txn, ctx, parent, name)?;
    if place.target().is_some() {
        return Err(Error::Exists);
    }
    create::check_addition(txn, ctx, parent, &inode, FileType::Directory)?;
    txn.require_space()?;
    place.insert(txn, Target { ino: entry_of(subvol), file_type: FileType::Directory })?;
    inode.nlink += 1;
    inode.length += 1;
    inode.touch_content(ctx);
    object::store(txn, parent, &inode)
}

/// Takes its name from a subvolume.
pub fn detach<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
) -> Result<SubvolId> {
    txn.lock(parent, LockMode::Exclusive)?;
    let (mut inode, place) = create::enter(txn, ctx, parent, name)?;
    permission::check_change(txn, ctx, parent, &inode)?;
    let subvol = place.target().and_then(Target::subvolume).ok_or(Error::NotFound)?;
    place.remove(txn)?;
    inode.nlink = inode.nlink.saturating_sub(1);
    inode.length = inode.length.saturating_sub(1);
    inode.touch_content(ctx);
    object::store(txn, parent, &inode)?;
    Ok(subvol)
}
