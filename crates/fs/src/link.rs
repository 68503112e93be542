//! Hard links, and reading symbolic ones.

use gabion_base::codec::DecodeError;
use gabion_map::{FileId, Kind, LockMode, Txn};

use crate::attributes::{self, Attributes};
use crate::context::Context;
use crate::create;
use crate::entry::{self, Target};
use crate::error::{Error, Result};
use crate::format::inode::Flags;
use crate::mode::FileType;
use crate::object::{self, LINKS_MAX};
use crate::orphan;

/// Gives `file` one more name. One made by `O_TMPFILE` is no orphan any more.
pub fn link<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    parent: FileId,
    name: &[u8],
) -> Result<Attributes> {
    if file.subvol != parent.subvol {
        return Err(Error::CrossSubvolume);
    }
    if entry::is_dots(name) {
        return Err(Error::Exists);
    }
    txn.lock(file, LockMode::Exclusive)?;
    let (mut parent_inode, place) = create::enter(txn, ctx, parent, name)?;
    if place.target().is_some() {
        return Err(Error::Exists);
    }
    let mut inode = object::load(txn, file)?;
    create::check_addition(txn, ctx, parent, &parent_inode, FileType::Regular)?;
    if inode.is_directory() {
        return Err(Error::NotPermitted);
    }
    if inode.nlink == 0 {
        if !inode.flags.has(Flags::LINKABLE) {
            return Err(Error::NotFound);
        }
        inode.flags.clear(Flags::LINKABLE);
        orphan::take(txn, file)?;
    }
    if inode.nlink >= LINKS_MAX {
        return Err(Error::TooManyLinks);
    }
    txn.require_space()?;
    inode.nlink += 1;
    inode.named(parent.ino, place.position());
    inode.touch(ctx);
    object::store(txn, file, &inode)?;
    place.insert(txn, Target { ino: file.ino, file_type: inode.file_type })?;
    parent_inode.length += 1;
    parent_inode.touch_content(ctx);
    object::store(txn, parent, &parent_inode)?;
    attributes::of_inode(txn, file, &inode)
}

/// The target of a symbolic link.
pub fn readlink<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Vec<u8>> {
    let inode = object::load(txn, file)?;
    if inode.file_type != FileType::Symlink {
        return Err(Error::InvalidArgument);
    }
    let key = file.key(Kind::SYMLINK, 0);
    let target = txn.get(key)?;
    let target = target.filter(|target| target.len() as u64 == inode.length);
    let source = DecodeError::Invalid("the length of a symbolic link's target");
    Ok(target.ok_or_else(|| object::bad_item(key, source))?.to_vec())
}
