//! From names to objects.

use gabion_base::codec::DecodeError;
use gabion_map::{FileId, Kind, Txn};

use crate::attributes::{self, Attributes};
use crate::context::Context;
use crate::entry::{self, Place};
use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::object;
use crate::permission;

/// The object that `name` stands for in the directory `parent`. `CrossSubvolume`: it stands for
/// another subvolume ([`crate::subvolume`]).
pub fn lookup<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
) -> Result<Attributes> {
    entry::check_name(name)?;
    // The kernel never asks for the dots and has checked the parent: then its inode is not read.
    if ctx.caller.is_checked_here() || entry::is_dots(name) {
        let inode = object::load_directory(txn, parent)?;
        permission::check_search(txn, ctx, parent, &inode)?;
        match name {
            b"." => return attributes::of_inode(txn, parent, &inode),
            b".." => return lookup_parent(txn, parent),
            _ => {}
        }
    }
    let place = Place::find(txn, ctx, parent, name)?;
    let target = place.target().ok_or(Error::NotFound)?;
    if target.subvolume().is_some() {
        return Err(Error::CrossSubvolume);
    }
    let file = FileId::new(parent.subvol, target.ino);
    let inode = load_named(txn, file)?;
    attributes::of_inode(txn, file, &inode)
}

/// The directory that holds the directory `dir` (".."); the root holds itself.
pub fn lookup_parent<T: Txn + ?Sized>(txn: &mut T, dir: FileId) -> Result<Attributes> {
    let inode = object::load_directory(txn, dir)?;
    let parent = FileId::new(dir.subvol, inode.parent);
    attributes::stat(txn, parent)
}

/// The inode of an object that an entry names. It cannot be absent.
pub(crate) fn load_named<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Inode> {
    let inode = object::find(txn, file)?;
    inode.ok_or_else(|| {
        let source = DecodeError::Invalid("the absence of an object that has a name");
        object::bad_item(file.key(Kind::INODE, 0), source)
    })
}
