//! One name in one directory: found once, then inserted, replaced or removed without reading the
//! directory again.

use gabion_base::ids::Ino;
use gabion_map::{FileId, Key, Kind, Txn, Value};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::format::dirent::{self, Dirent, Dirents, NAME_LENGTH_MAX};
use crate::mode::FileType;
use crate::object::bad_item;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) ino: Ino,
    pub(crate) file_type: FileType,
}

/// Where a name stands or would stand in a directory.
///
/// It knows the item as it was when it was found. Of two places with the same key, only one may
/// be changed; then the other has to be found anew.
#[derive(Clone, Debug)]
pub(crate) struct Place<'n> {
    key: Key,
    name: &'n [u8],
    item: Option<Value>,
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    target: Target,
    slot: u8,
    start: usize,
}

/// Fails unless `name` can be the name of an entry. "." and ".." can, as far as this goes.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Error::NotFound);
    }
    if name.len() > NAME_LENGTH_MAX {
        return Err(Error::NameTooLong);
    }
    if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Error::InvalidArgument);
    }
    Ok(())
}

/// Whether `name` is "." or "..".
pub(crate) fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

impl<'n> Place<'n> {
    /// Finds `name` in `dir`, whether it is there or not.
    pub(crate) fn find<T: Txn + ?Sized>(
        txn: &mut T,
        ctx: &Context,
        dir: FileId,
        name: &'n [u8],
    ) -> Result<Self> {
        let key = dir.key(Kind::DIRENT, dirent::position(name, ctx.seed));
        let item = txn.get(key)?;
        let mut found = None;
        if let Some(item) = &item {
            let entries = Dirents::decode(item).map_err(|source| bad_item(key, source))?;
            let entry = entries.find(name).map_err(|source| bad_item(key, source))?;
            found = entry.map(|entry| Found {
                target: Target { ino: entry.ino, file_type: entry.file_type },
                slot: entry.slot,
                start: entry.start,
            });
        }
        Ok(Self { key, name, item, found })
    }

    /// The position of the name in its directory.
    pub(crate) fn position(&self) -> u64 {
        self.key.at
    }

    /// What the name stands for now.
    pub(crate) fn target(&self) -> Option<Target> {
        self.found.map(|found| found.target)
    }

    /// Whether a change of one place makes the other one outdated.
    pub(crate) fn shares_item_with(&self, other: &Place<'_>) -> bool {
        self.key == other.key
    }

    /// Adds the name. It must be absent.
    pub(crate) fn insert<T: Txn + ?Sized>(self, txn: &mut T, target: Target) -> Result<()> {
        assert!(self.found.is_none(), "a name is inserted once");
        let item = match &self.item {
            None => dirent::encode_first(self.name, target.ino, target.file_type),
            Some(item) => dirent::insert(item, self.name, target.ino, target.file_type)
                .map_err(|source| bad_item(self.key, source))?
                .ok_or(Error::ObjectFull)?,
        };
        Ok(txn.put(self.key, item)?)
    }

    /// Lets the name stand for something else. It must be present.
    pub(crate) fn replace<T: Txn + ?Sized>(self, txn: &mut T, target: Target) -> Result<()> {
        let (item, entry) = self.present();
        Ok(txn.put(self.key, dirent::replace(item, &entry, target.ino, target.file_type))?)
    }

    /// Removes the name. It must be present.
    pub(crate) fn remove<T: Txn + ?Sized>(self, txn: &mut T) -> Result<()> {
        let (item, entry) = self.present();
        match dirent::remove(item, &entry) {
            Some(item) => txn.put(self.key, item)?,
            None => txn.delete(self.key)?,
        }
        Ok(())
    }

    fn present(&self) -> (&[u8], Dirent<'n>) {
        let item = self.item.as_deref().expect("the name was found in an item");
        let found = self.found.expect("the caller has seen that the name is present");
        let Target { ino, file_type } = found.target;
        let (slot, start) = (found.slot, found.start);
        (item, Dirent { ino, file_type, slot, name: self.name, start })
    }
}
