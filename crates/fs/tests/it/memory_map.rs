//! A map in memory: the smallest thing that keeps the promises of [`Txn`].
//!
//! Changes of an attempt stand in an overlay until it returns `Ok`. The first touch of an object
//! in each operation, and the first stronger touch, ends the attempt with `Stop::Need`. Bytes
//! that are written count as unwritten until the driver flushes them.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::{Error, Result};
use gabion_map::txn::{FILE_SIZE_MAX, FileExtent, Removal, SeekTarget, VALUE_LENGTH_MAX};
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Payload, Stop, Txn, Value};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Attempts that an operation may need.
const ATTEMPTS_MAX: usize = 500;
/// Blocks that one call of `remove_bytes` removes.
const BLOCKS_PER_REMOVAL: usize = 4;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileBytes {
    size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    pub items: BTreeMap<Key, Value>,
    pub files: BTreeMap<FileId, FileBytes>,
    pub unwritten: BTreeSet<FileId>,
    pub is_full: bool,
    /// Flushes that operations have asked for.
    pub flushes: Vec<FileId>,
    /// How the objects of the last operation were locked.
    pub locked: BTreeMap<FileId, LockMode>,
    last_ino: u64,
}

impl MemoryMap {
    /// Drives an operation to its end.
    pub fn run<R>(&mut self, operation: impl Fn(&mut Attempt<'_>) -> Result<R>) -> Result<R> {
        self.locked.clear();
        for _ in 0..ATTEMPTS_MAX {
            let mut attempt = Attempt {
                items: BTreeMap::new(),
                files: BTreeMap::new(),
                fresh: BTreeSet::new(),
                has_written: false,
                map: self,
            };
            match operation(&mut attempt) {
                Ok(result) => {
                    let Attempt { items, files, fresh, .. } = attempt;
                    self.commit(items, files, &fresh);
                    return Ok(result);
                }
                Err(Error::Stop(Stop::Need { file, mode })) => {
                    let before = self.locked.insert(file, mode);
                    assert!(before < Some(mode), "{file:?} was locked {mode:?} already");
                }
                Err(Error::UnwrittenBytes(file)) => {
                    assert!(self.unwritten.remove(&file), "{file:?} is flushed already");
                    self.flushes.push(file);
                }
                Err(error) => return Err(error),
            }
        }
        panic!("the operation does not come to an end");
    }

    fn commit(
        &mut self,
        items: BTreeMap<Key, Option<Value>>,
        files: BTreeMap<FileId, FileBytes>,
        fresh: &BTreeSet<FileId>,
    ) {
        for (key, value) in items {
            let mode = self.locked.get(&key.file());
            assert!(mode == Some(&LockMode::Exclusive) || fresh.contains(&key.file()), "{key:?}");
            match value {
                Some(value) => self.items.insert(key, value),
                None => self.items.remove(&key),
            };
        }
        for (file, bytes) in files {
            if bytes == FileBytes::default() {
                self.files.remove(&file);
                self.unwritten.remove(&file);
            } else {
                self.files.insert(file, bytes);
            }
        }
    }
}

/// One attempt at one operation.
pub struct Attempt<'m> {
    map: &'m mut MemoryMap,
    items: BTreeMap<Key, Option<Value>>,
    files: BTreeMap<FileId, FileBytes>,
    fresh: BTreeSet<FileId>,
    has_written: bool,
}

impl Attempt<'_> {
    fn touch(&mut self, file: FileId, mode: LockMode) -> std::result::Result<(), Stop> {
        let granted = self.map.locked.get(&file);
        if self.fresh.contains(&file) || granted >= Some(&mode) {
            return Ok(());
        }
        Err(Stop::Need { file, mode })
    }

    fn touch_to_change(&mut self, file: FileId) -> std::result::Result<(), Stop> {
        assert!(!self.has_written, "bytes are written last");
        self.touch(file, LockMode::Exclusive)
    }

    fn bytes(&self, file: FileId) -> FileBytes {
        let bytes = self.files.get(&file).or_else(|| self.map.files.get(&file));
        bytes.cloned().unwrap_or_default()
    }

    fn change(
        &mut self,
        file: FileId,
        change: impl FnOnce(&mut FileBytes),
    ) -> std::result::Result<(), Stop> {
        self.touch_to_change(file)?;
        let mut bytes = self.bytes(file);
        change(&mut bytes);
        assert!(bytes.size <= FILE_SIZE_MAX);
        self.files.insert(file, bytes);
        Ok(())
    }
}

impl FileBytes {
    fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let length = self.size.saturating_sub(offset).min(into.len() as u64) as usize;
        for (i, byte) in into[..length].iter_mut().enumerate() {
            let at = offset + i as u64;
            let block = self.blocks.get(&(at / BLOCK));
            *byte = block.map_or(0, |block| block[(at % BLOCK) as usize]);
        }
        length
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = offset + i as u64;
            let block = self.blocks.entry(at / BLOCK).or_insert_with(|| vec![0; BLOCK_SIZE]);
            block[(at % BLOCK) as usize] = *byte;
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    fn punch(&mut self, from: u64, to: u64) {
        let keys: Vec<u64> = self.blocks.range(from / BLOCK..).map(|(key, _)| *key).collect();
        for key in keys {
            let (start, end) = (key * BLOCK, key * BLOCK + BLOCK);
            if start >= to {
                break;
            }
            if from <= start && to >= end.min(self.size) {
                self.blocks.remove(&key);
                continue;
            }
            let block = self.blocks.get_mut(&key).expect("the key was just listed");
            let cut = |at: u64| (at.clamp(start, end) - start) as usize;
            block[cut(from)..cut(to)].fill(0);
        }
    }

    fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, FILE_SIZE_MAX);
        }
        self.size = size;
    }

    fn shift(&mut self, from: u64, to: u64) {
        let moved = self.blocks.split_off(&(from / BLOCK));
        self.blocks.split_off(&(to / BLOCK));
        for (key, block) in moved {
            self.blocks.insert(key - from / BLOCK + to / BLOCK, block);
        }
        self.size = self.size - from + to;
    }
}

impl Txn for Attempt<'_> {
    fn lock(&mut self, file: FileId, mode: LockMode) -> std::result::Result<(), Stop> {
        self.touch(file, mode)
    }

    fn get(&mut self, key: Key) -> std::result::Result<Option<Value>, Stop> {
        self.touch(key.file(), LockMode::Shared)?;
        Ok(match self.items.get(&key) {
            Some(changed) => changed.clone(),
            None => self.map.items.get(&key).cloned(),
        })
    }

    fn scan(
        &mut self,
        from: Key,
        to: Key,
        limit: usize,
    ) -> std::result::Result<Vec<(Key, Value)>, Stop> {
        assert_eq!(from.file(), to.file());
        self.touch(from.file(), LockMode::Shared)?;
        let mut merged: BTreeMap<Key, Value> =
            self.map.items.range(from..=to).map(|(key, value)| (*key, value.clone())).collect();
        for (key, value) in self.items.range(from..=to) {
            match value {
                Some(value) => merged.insert(*key, value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    fn put(&mut self, key: Key, value: Vec<u8>) -> std::result::Result<(), Stop> {
        self.touch_to_change(key.file())?;
        assert!(!matches!(key.kind, Kind::FILE | Kind::DATA | Kind::REFERENCE), "{key:?}");
        assert!(value.len() <= VALUE_LENGTH_MAX, "{key:?} of {} bytes", value.len());
        self.items.insert(key, Some(value.into()));
        Ok(())
    }

    fn delete(&mut self, key: Key) -> std::result::Result<(), Stop> {
        self.touch_to_change(key.file())?;
        self.items.insert(key, None);
        Ok(())
    }

    fn new_inode(&mut self, subvol: SubvolId) -> std::result::Result<Ino, Stop> {
        self.map.last_ino += 1;
        let ino = Ino(self.map.last_ino);
        self.fresh.insert(FileId::new(subvol, ino));
        Ok(ino)
    }

    fn require_space(&mut self) -> std::result::Result<(), Stop> {
        if self.map.is_full { Err(MapError::NoSpace.into()) } else { Ok(()) }
    }

    fn file(&mut self, file: FileId) -> std::result::Result<FileExtent, Stop> {
        self.touch(file, LockMode::Shared)?;
        let bytes = self.bytes(file);
        Ok(FileExtent { size: bytes.size, blocks: bytes.blocks.len() as u64 })
    }

    fn set_size(&mut self, file: FileId, size: u64) -> std::result::Result<(), Stop> {
        self.change(file, |bytes| bytes.set_size(size))
    }

    fn punch(&mut self, file: FileId, from: u64, to: u64) -> std::result::Result<(), Stop> {
        self.change(file, |bytes| bytes.punch(from, to))
    }

    fn allocate(&mut self, file: FileId, from: u64, to: u64) -> std::result::Result<(), Stop> {
        self.change(file, |bytes| {
            for key in from / BLOCK..to.div_ceil(BLOCK) {
                bytes.blocks.entry(key).or_insert_with(|| vec![0; BLOCK_SIZE]);
            }
        })
    }

    fn share(
        &mut self,
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
    ) -> std::result::Result<(), Stop> {
        self.touch(source, LockMode::Exclusive)?;
        let from = self.bytes(source);
        assert!(source_offset.is_multiple_of(BLOCK) && target_offset.is_multiple_of(BLOCK));
        assert!(length.is_multiple_of(BLOCK) || source_offset + length >= from.size);
        self.change(target, |bytes| {
            bytes.punch(target_offset, target_offset + length);
            for key in 0..length.div_ceil(BLOCK) {
                if let Some(block) = from.blocks.get(&(source_offset / BLOCK + key)) {
                    bytes.blocks.insert(target_offset / BLOCK + key, block.clone());
                }
            }
            bytes.size = bytes.size.max(target_offset + length);
        })
    }

    fn collapse(
        &mut self,
        file: FileId,
        offset: u64,
        length: u64,
    ) -> std::result::Result<(), Stop> {
        self.change(file, |bytes| bytes.shift(offset + length, offset))
    }

    fn insert(&mut self, file: FileId, offset: u64, length: u64) -> std::result::Result<(), Stop> {
        self.change(file, |bytes| bytes.shift(offset, offset + length))
    }

    fn remove_bytes(&mut self, file: FileId) -> std::result::Result<Removal, Stop> {
        let mut removal = Removal::Complete;
        self.change(file, |bytes| {
            for _ in 0..BLOCKS_PER_REMOVAL {
                bytes.blocks.pop_last();
            }
            if !bytes.blocks.is_empty() {
                removal = Removal::Partial;
            } else {
                bytes.size = 0;
            }
        })?;
        Ok(removal)
    }

    fn seek(
        &mut self,
        file: FileId,
        offset: u64,
        target: SeekTarget,
    ) -> std::result::Result<Option<u64>, Stop> {
        self.touch(file, LockMode::Shared)?;
        let bytes = self.bytes(file);
        assert!(offset < bytes.size);
        let wants_data = target == SeekTarget::Data;
        let mut at = offset;
        while at < bytes.size {
            if bytes.blocks.contains_key(&(at / BLOCK)) == wants_data {
                return Ok(Some(at));
            }
            at = (at / BLOCK + 1) * BLOCK;
        }
        Ok((!wants_data).then_some(bytes.size))
    }

    fn read(
        &mut self,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> std::result::Result<usize, Stop> {
        self.touch(file, LockMode::Shared)?;
        Ok(self.bytes(file).read(offset, into))
    }

    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        payload: Payload<'_>,
    ) -> std::result::Result<(), Stop> {
        self.touch(file, LockMode::Shared)?;
        assert!(!self.files.contains_key(&file), "a step changes the map or writes bytes");
        self.has_written = true;
        if self.map.is_full {
            return Err(MapError::NoSpace.into());
        }
        self.map.files.entry(file).or_default().write(offset, payload.bytes());
        self.map.unwritten.insert(file);
        Ok(())
    }

    fn has_unwritten_bytes(&mut self, file: FileId) -> std::result::Result<bool, Stop> {
        self.touch(file, LockMode::Shared)?;
        Ok(self.map.unwritten.contains(&file))
    }
}
