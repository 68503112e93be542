//! Listing a directory in batches.
//!
//! Entries come in the order of their cookies: "." is 1, ".." is 2, then the names by hash. A
//! listing goes on after any cookie that it gave out, whatever was added and removed meanwhile:
//! what was there all the time comes exactly once.

use gabion_base::ids::Ino;
use gabion_map::{FileId, Key, Kind, Stop, Txn, Value};

use crate::attributes::{self, Attributes};
use crate::error::{Error, Result};
use crate::format::dirent::{self, Dirents, FIRST_POSITION};
use crate::lookup::load_named;
use crate::mode::FileType;
use crate::object::{self, bad_item};
use crate::subvolume;

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// How much a listing tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Names, types and numbers.
    Names,
    /// The attributes of each object as well, but for ".", ".." and other subvolumes.
    Attributes,
}

/// One entry of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The object's number.
    pub ino: Ino,
    /// What it is.
    pub file_type: FileType,
    /// Where to go on after this entry.
    pub cookie: u64,
    /// The object's attributes, if asked for.
    pub attributes: Option<Attributes>,
    name: Name,
}

#[derive(Clone, Debug)]
enum Name {
    Dots(&'static [u8]),
    Stored { item: Value, start: usize, end: usize },
}

impl Listed {
    /// An entry of a directory that no item lists.
    pub fn new(ino: Ino, file_type: FileType, cookie: u64, name: &[u8]) -> Self {
        let name = Name::Stored { item: Value::from(name), start: 0, end: name.len() };
        Self { ino, file_type, cookie, attributes: None, name }
    }

    /// The name.
    pub fn name(&self) -> &[u8] {
        match &self.name {
            Name::Dots(name) => name,
            Name::Stored { item, start, end } => &item[*start..*end],
        }
    }
}

/// A part of a directory's entries.
#[derive(Clone, Debug)]
pub struct Listing {
    /// In the order of their cookies.
    pub entries: Vec<Listed>,
    /// Whether the directory ends here.
    pub is_complete: bool,
}

/// At most `limit` (and at least one) entries after `cookie` of a directory that is open for
/// reading; 0 starts.
pub fn readdir<T: Txn + ?Sized>(
    txn: &mut T,
    dir: FileId,
    cookie: u64,
    limit: usize,
    detail: Detail,
) -> Result<Listing> {
    let inode = object::load_directory(txn, dir)?;
    if inode.nlink == 0 {
        return Err(Error::NotFound);
    }
    let limit = limit.max(1);
    let mut entries = Vec::with_capacity(limit.min(inode.length as usize + 2));
    for (at, name, ino) in [(DOT, &b"."[..], dir.ino), (DOT_DOT, &b".."[..], inode.parent)] {
        if cookie < at && entries.len() < limit {
            let file_type = FileType::Directory;
            let name = Name::Dots(name);
            entries.push(Listed { ino, file_type, cookie: at, attributes: None, name });
        }
    }
    let mut is_complete = false;
    if entries.len() < limit {
        is_complete = append_names(txn, dir, cookie, limit, &mut entries)?;
    }
    if detail == Detail::Attributes {
        let is_object = |entry: &Listed| {
            entry.cookie >= FIRST_POSITION && subvolume::of_entry(entry.ino).is_none()
        };
        let objects = entries.iter().filter(|entry| is_object(entry));
        let inode = |entry: &Listed| FileId::new(dir.subvol, entry.ino).key(Kind::INODE, 0);
        txn.prefetch(&objects.map(inode).collect::<Vec<Key>>())?;
        // Whoever lacks leases learns of all that are lacking.
        let mut lacking = Ok(());
        for entry in entries.iter_mut().filter(|entry| is_object(entry)) {
            match attributes_of(txn, FileId::new(dir.subvol, entry.ino)) {
                Ok(found) => entry.attributes = Some(found),
                Err(Error::Stop(Stop::Lease)) => lacking = Err(Error::Stop(Stop::Lease)),
                Err(error) => return Err(error),
            }
        }
        lacking?;
    }
    Ok(Listing { entries, is_complete })
}

fn attributes_of<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Attributes> {
    let inode = load_named(txn, file)?;
    attributes::of_inode(txn, file, &inode)
}

/// Whether the directory has no more entries than those.
fn append_names<T: Txn + ?Sized>(
    txn: &mut T,
    dir: FileId,
    cookie: u64,
    limit: usize,
    entries: &mut Vec<Listed>,
) -> Result<bool> {
    let from = dir.key(Kind::DIRENT, dirent::position_of_cookie(cookie));
    let to = dir.key(Kind::DIRENT, u64::MAX);
    // One more than is wanted: the first item may hold nothing after the cookie.
    let count = limit - entries.len() + 1;
    let items = txn.scan(from, to, count)?;
    let is_last = items.len() < count;
    for (key, item) in items {
        if !append_item(key, &item, cookie, limit, entries)? {
            return Ok(false);
        }
    }
    Ok(is_last)
}

/// Whether all entries of the item found room.
fn append_item(
    key: Key,
    item: &Value,
    cookie: u64,
    limit: usize,
    entries: &mut Vec<Listed>,
) -> Result<bool> {
    let mut list = Dirents::decode(item).map_err(|source| bad_item(key, source))?;
    while let Some(entry) = list.next_entry().map_err(|source| bad_item(key, source))? {
        let at = entry.cookie(key.at);
        if at <= cookie {
            continue;
        }
        if entries.len() == limit {
            return Ok(false);
        }
        entries.push(Listed {
            ino: entry.ino,
            file_type: entry.file_type,
            cookie: at,
            attributes: None,
            name: Name::Stored {
                item: Value::clone(item),
                start: entry.name_start(),
                end: entry.end(),
            },
        });
    }
    Ok(true)
}
