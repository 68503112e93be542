//! One attempt at an operation that changes something, on what a client has leased.
//!
//! It needs what it reads to be leased, and what it changes to be leased exclusively. What is
//! missing has to be acquired; then it runs again:
//!
//! ```text
//!   operation --ok------------> Made: items as they are from now on
//!             --Stop::Lease---> Lack::Leases   acquire, and run again
//!                               Lack::Number   be given numbers for new objects
//!                               Lack::Server   only the server can do it
//! ```
//!
//! - A new object belongs to whoever has made it: all of it is leased from the start.
//! - Items under inode 0 are the filesystem's own. The server changes them when it runs the same
//!   operation.
//! - Bytes are not looked at. Size and blocks are kept as they will be; how many blocks a file has
//!   is a guess until the server has told it.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{Ino, SubvolId};
use gabion_map::format::item::{decode_file, encode_file};
use gabion_map::txn::{FileExtent, Payload, Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Stop, Txn, Value};

use crate::cache::Cache;
use crate::range::KeyRange;
use crate::table::Want;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Why an attempt stopped with [`Stop::Lease`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// These leases are missing.
    Leases(Vec<Want>),
    /// There is no number for a new object.
    Number,
    /// What it needs is at the server only.
    Server,
}

/// What an attempt has changed.
#[derive(Debug, Default)]
pub struct Changed {
    /// Items as they are now.
    pub items: BTreeMap<Key, Option<Value>>,
    /// The object that is new.
    pub made: Option<FileId>,
}

impl Changed {
    /// Makes the changes in `cache`, and says which files they are about.
    pub fn apply(self, cache: &mut Cache) -> BTreeSet<FileId> {
        let mut files: BTreeSet<FileId> = self.items.keys().map(|key| key.file()).collect();
        if let Some(made) = self.made {
            cache.made(made);
            files.insert(made);
        }
        cache.update(self.items);
        files
    }
}

/// One attempt.
pub struct ChangeTxn<'c> {
    cache: &'c Cache,
    /// For a new object.
    number: Option<Ino>,
    changed: Changed,
    /// Objects that the operation is going to change.
    locked: Vec<FileId>,
    lack: Option<Lack>,
}

impl<'c> ChangeTxn<'c> {
    /// An attempt on `cache`. `number` is for a new object, if it makes one.
    pub fn new(cache: &'c Cache, number: Option<Ino>) -> Self {
        Self { cache, number, changed: Changed::default(), locked: Vec::new(), lack: None }
    }

    /// Why it stopped.
    pub fn into_lack(self) -> Lack {
        self.lack.unwrap_or(Lack::Server)
    }

    /// What it has changed.
    pub fn into_changed(self) -> Changed {
        self.changed
    }

    fn is_made(&self, file: FileId) -> bool {
        self.changed.made == Some(file)
    }

    fn ensure(&mut self, range: KeyRange, mode: LockMode) -> Result<(), Stop> {
        if self.is_made(range.file()) || self.cache.covers_as(&range, mode) {
            return Ok(());
        }
        match &mut self.lack {
            Some(Lack::Leases(missing)) => missing.push((range, mode)),
            lack => *lack = Some(Lack::Leases(vec![(range, mode)])),
        }
        Err(Stop::Lease)
    }

    fn at_server<T>(&mut self) -> Result<T, Stop> {
        self.lack = Some(Lack::Server);
        Err(Stop::Lease)
    }

    fn item(&self, key: Key) -> Option<Value> {
        match self.changed.items.get(&key) {
            Some(change) => change.clone(),
            None if self.is_made(key.file()) => None,
            None => self.cache.item(key).cloned(),
        }
    }

    /// What the file's size and blocks are from now on.
    fn put_extent(&mut self, file: FileId, extent: FileExtent) {
        let item = match extent == FileExtent::default() {
            true => None,
            false => Some(Value::from(encode_file(extent))),
        };
        self.changed.items.insert(file.key(Kind::FILE, 0), item);
    }
}

impl Txn for ChangeTxn<'_> {
    fn lock(&mut self, file: FileId, mode: LockMode) -> Result<(), Stop> {
        if mode == LockMode::Shared {
            return Ok(());
        }
        self.locked.push(file);
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)
    }

    fn get(&mut self, key: Key) -> Result<Option<Value>, Stop> {
        // What is locked is going to be changed: to ask for that at once saves a round trip.
        let mode = match self.locked.contains(&key.file()) {
            true => LockMode::Exclusive,
            false => LockMode::Shared,
        };
        self.ensure(KeyRange::around(key), mode)?;
        Ok(self.item(key))
    }

    fn scan(&mut self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, Stop> {
        let range = KeyRange::new(from, to).expect("a scan of one object");
        if !KeyRange::attributes(from.file()).covers(&range) {
            return self.at_server();
        }
        self.ensure(KeyRange::attributes(from.file()), LockMode::Shared)?;
        let mut keys: BTreeSet<Key> = self.cache.keys(&range).collect();
        keys.extend(self.changed.items.range(from..=to).map(|(key, _)| *key));
        let items = keys.into_iter().filter_map(|key| Some((key, self.item(key)?)));
        Ok(items.take(limit).collect())
    }

    fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), Stop> {
        if key.ino == Ino(0) {
            return Ok(());
        }
        self.ensure(KeyRange::around(key), LockMode::Exclusive)?;
        self.changed.items.insert(key, Some(Value::from(value)));
        Ok(())
    }

    fn delete(&mut self, key: Key) -> Result<(), Stop> {
        if key.ino == Ino(0) {
            return Ok(());
        }
        self.ensure(KeyRange::around(key), LockMode::Exclusive)?;
        self.changed.items.insert(key, None);
        Ok(())
    }

    fn new_inode(&mut self, subvol: SubvolId) -> Result<Ino, Stop> {
        let Some(ino) = self.number.filter(|_| self.changed.made.is_none()) else {
            self.lack = Some(Lack::Number);
            return Err(Stop::Lease);
        };
        self.changed.made = Some(FileId::new(subvol, ino));
        Ok(ino)
    }

    /// Who runs this sees to it that there is some.
    fn require_space(&mut self) -> Result<(), Stop> {
        Ok(())
    }

    fn file(&mut self, file: FileId) -> Result<FileExtent, Stop> {
        let key = file.key(Kind::FILE, 0);
        match self.get(key)? {
            None => Ok(FileExtent::default()),
            Some(value) => {
                decode_file(&value).map_err(|source| MapError::BadItem { key, source }.into())
            }
        }
    }

    fn set_size(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        let mut extent = self.file(file)?;
        let kept = extent.size.min(size);
        self.ensure(KeyRange::bytes_from(file, kept - kept % BLOCK), LockMode::Exclusive)?;
        extent.size = size;
        extent.blocks = extent.blocks.min(size.div_ceil(BLOCK));
        self.put_extent(file, extent);
        Ok(())
    }

    fn write(&mut self, file: FileId, offset: u64, payload: Payload<'_>) -> Result<(), Stop> {
        let length = payload.bytes().len() as u64;
        if length == 0 {
            return Ok(());
        }
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        let end = offset.saturating_add(length);
        self.ensure(KeyRange::bytes(file, offset, end), LockMode::Exclusive)?;
        let mut extent = self.file(file)?;
        // What was there before is taken for full, what is behind it for empty.
        let full = extent.size.div_ceil(BLOCK).max(offset / BLOCK);
        extent.blocks += end.div_ceil(BLOCK).saturating_sub(full);
        extent.size = extent.size.max(end);
        self.put_extent(file, extent);
        Ok(())
    }

    fn remove_bytes(&mut self, file: FileId) -> Result<Removal, Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        self.put_extent(file, FileExtent::default());
        Ok(Removal::Complete)
    }

    /// It is the server that has to write them.
    fn has_unwritten_bytes(&mut self, _: FileId) -> Result<bool, Stop> {
        Ok(false)
    }

    fn punch(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        self.at_server()
    }

    fn allocate(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        self.at_server()
    }

    fn share(&mut self, _: FileId, _: u64, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        self.at_server()
    }

    fn collapse(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        self.at_server()
    }

    fn insert(&mut self, _: FileId, _: u64, _: u64) -> Result<(), Stop> {
        self.at_server()
    }

    fn seek(&mut self, _: FileId, _: u64, _: SeekTarget) -> Result<Option<u64>, Stop> {
        self.at_server()
    }

    fn read(&mut self, _: FileId, _: u64, _: &mut [u8]) -> Result<usize, Stop> {
        self.at_server()
    }
}
