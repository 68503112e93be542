//! Inode items in and out of a transaction.

use gabion_base::codec::DecodeError;
use gabion_base::ids::Ino;
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Txn};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::format::inode::{self, Inode};
use crate::mode::FileType;

/// The number of every subvolume's root directory.
pub const ROOT: Ino = Ino(1);

/// Names that one object may have: what a signed 32-bit counter holds.
pub const LINKS_MAX: u32 = i32::MAX as u32;

/// Says that the item at `key` cannot be decoded.
pub(crate) fn bad_item(key: Key, source: DecodeError) -> Error {
    MapError::BadItem { key, source }.into()
}

/// The object's inode, if it exists.
pub(crate) fn find<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Option<Inode>> {
    let key = file.key(Kind::INODE, 0);
    let Some(value) = txn.get(key)? else { return Ok(None) };
    Inode::decode(&value).map(Some).map_err(|source| bad_item(key, source))
}

/// The object's inode.
pub(crate) fn load<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Inode> {
    find(txn, file)?.ok_or(Error::Stale)
}

/// The object's inode, to be changed.
pub(crate) fn load_exclusive<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Inode> {
    txn.lock(file, LockMode::Exclusive)?;
    load(txn, file)
}

/// The inode of a directory.
pub(crate) fn load_directory<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Inode> {
    let inode = load(txn, file)?;
    if inode.is_directory() { Ok(inode) } else { Err(Error::NotDirectory) }
}

/// The inode of a file with bytes.
pub(crate) fn require_regular(inode: &Inode) -> Result<()> {
    match inode.file_type {
        FileType::Regular => Ok(()),
        FileType::Directory => Err(Error::IsDirectory),
        _ => Err(Error::InvalidArgument),
    }
}

/// Puts the inode back.
pub(crate) fn store<T: Txn + ?Sized>(txn: &mut T, file: FileId, inode: &Inode) -> Result<()> {
    Ok(txn.put(file.key(Kind::INODE, 0), inode.encode())?)
}

impl Inode {
    /// Writes down a name that the object gets: at a position in a directory.
    pub(crate) fn named(&mut self, parent: Ino, position: u64) {
        self.parent = parent;
        if !self.is_device() {
            self.place = inode::place(position);
        }
    }

    /// Forgets a name that the object had, if it was that which is written down.
    pub(crate) fn lost_name(&mut self, parent: Ino, position: u64) {
        let place = if self.is_device() { 0 } else { inode::place(position) };
        if !self.is_directory() && (self.parent, self.place) == (parent, place) {
            (self.parent, self.place) = (Ino(0), 0);
        }
    }

    /// Records that something about the object changed.
    pub(crate) fn touch(&mut self, ctx: &Context) {
        self.ctime = ctx.now;
        self.change = self.change.wrapping_add(1);
    }

    /// Records that the object's content changed.
    pub(crate) fn touch_content(&mut self, ctx: &Context) {
        self.mtime = ctx.now;
        self.touch(ctx);
    }
}
