//! Removing names, and with the last name the object.

use gabion_map::txn::Removal;
use gabion_map::{FileId, LockMode, Txn};

use crate::context::{Context, OpenState, Opens};
use crate::create;
use crate::entry;
use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::lookup::load_named;
use crate::object;
use crate::orphan;
use crate::permission;

/// What became of an object that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has others.
    Named,
    /// It is an orphan: somebody has it open, or it is too large to be removed at once. The
    /// driver has to [`reap`](crate::reap) it when it is closed.
    Orphaned,
    /// It is gone.
    Removed,
}

/// An object that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The object.
    pub file: FileId,
    /// What became of it.
    pub fate: Fate,
}

/// Removes a name of anything but a directory.
pub fn unlink<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    opens: &dyn Opens,
) -> Result<Unnamed> {
    if entry::is_dots(name) {
        return Err(Error::IsDirectory);
    }
    remove(txn, ctx, parent, name, opens, |inode| {
        if inode.is_directory() { Err(Error::IsDirectory) } else { Ok(()) }
    })
}

/// Removes an empty directory.
pub fn rmdir<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    opens: &dyn Opens,
) -> Result<Unnamed> {
    match name {
        b"." => return Err(Error::InvalidArgument),
        b".." => return Err(Error::NotEmpty),
        _ => {}
    }
    remove(txn, ctx, parent, name, opens, |inode| {
        if !inode.is_directory() {
            return Err(Error::NotDirectory);
        }
        if inode.length > 0 { Err(Error::NotEmpty) } else { Ok(()) }
    })
}

fn remove<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    opens: &dyn Opens,
    check_type: impl Fn(&Inode) -> Result<()>,
) -> Result<Unnamed> {
    let (mut parent_inode, place) = create::enter(txn, ctx, parent, name)?;
    let target = place.target().ok_or(Error::NotFound)?;
    target.check_is_object()?;
    let file = FileId::new(parent.subvol, target.ino);
    txn.lock(file, LockMode::Exclusive)?;
    let inode = load_named(txn, file)?;
    permission::check_change(txn, ctx, parent, &parent_inode)?;
    permission::check_sticky(ctx, &parent_inode, &inode)?;
    check_type(&inode)?;
    let was_named = (parent, place.position());
    place.remove(txn)?;
    parent_inode.length = parent_inode.length.saturating_sub(1);
    if inode.is_directory() {
        parent_inode.nlink = parent_inode.nlink.saturating_sub(1);
    }
    parent_inode.touch_content(ctx);
    object::store(txn, parent, &parent_inode)?;
    let fate = drop_name(txn, ctx, was_named, (file, inode), opens)?;
    Ok(Unnamed { file, fate })
}

/// Takes a name, at a position in a directory, from an object that is locked exclusively; its entry
/// is gone already.
pub(crate) fn drop_name<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    (parent, position): (FileId, u64),
    (file, mut inode): (FileId, Inode),
    opens: &dyn Opens,
) -> Result<Fate> {
    inode.touch(ctx);
    inode.lost_name(parent.ino, position);
    // A directory has one name, which the count of its links does not show.
    inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
    if inode.nlink > 0 {
        object::store(txn, file, &inode)?;
        return Ok(Fate::Named);
    }
    let is_closed = opens.open_state(file) == OpenState::Closed;
    if is_closed && orphan::remove_content(txn, file, &inode)? == Removal::Complete {
        return Ok(Fate::Removed);
    }
    object::store(txn, file, &inode)?;
    orphan::put(txn, file)?;
    Ok(Fate::Orphaned)
}
