//! A transaction that touches only what nobody else has leased.
//!
//! Each access is first held in the table of leases. If somebody stands against it the attempt
//! stops with [`Stop::Lease`], and the driver parks the request until all of it is free. What is
//! changed is written down, because the client that asked has leases on it that stay.
//!
//! Items under inode 0 are the filesystem's own and no client's: nobody leases them.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::Mutex;
use gabion_link::range::KeyRange;
use gabion_link::table::{ClientId, RequestId, Want};
use gabion_map::format::item::encode_file;
use gabion_map::txn::{FileExtent, Payload, Removal, SeekTarget};
use gabion_map::{FileId, Key, Kind, LockMode, Stop, Txn, Value};

use super::grants::Grants;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What one request holds, wants and has changed, over all of its attempts.
pub(super) struct Grip<'g> {
    grants: &'g Mutex<Grants>,
    request: RequestId,
    client: ClientId,
    /// The number of the object that a client has made already.
    made: Option<Ino>,
    denied: Vec<Want>,
    changed: BTreeMap<Key, Option<Value>>,
    /// Files whose size or blocks may have changed.
    resized: BTreeSet<FileId>,
}

impl<'g> Grip<'g> {
    pub(super) fn new(grants: &'g Mutex<Grants>, request: RequestId, client: ClientId) -> Self {
        Self {
            grants,
            request,
            client,
            made: None,
            denied: Vec::new(),
            changed: BTreeMap::new(),
            resized: BTreeSet::new(),
        }
    }

    /// The request comes after all that its client has changed, and may touch what the client has
    /// exclusively.
    pub(super) fn begin_informed(&self) {
        self.grants.lock().table.begin_informed(self.request, self.client);
    }

    /// The same, and the client is going to cache bytes.
    pub(super) fn begin_caching(&self) {
        self.grants.lock().table.begin_caching(self.request, self.client);
    }

    /// What is done was done by the client before, who gave a new object the number `made`.
    pub(super) fn begin_change(&mut self, made: Option<Ino>) {
        self.grants.lock().table.begin_change(self.request, self.client);
        self.made = made;
    }

    /// Begins an attempt on `inner`.
    pub(super) fn on<'a, T: Txn + ?Sized>(&'a mut self, inner: &'a mut T) -> Guarded<'a, 'g, T> {
        self.denied.clear();
        self.changed.clear();
        self.resized.clear();
        Guarded { inner, grip: self }
    }

    /// What others stand against.
    pub(super) fn denied(&self) -> &[Want] {
        &self.denied
    }

    /// What the last attempt has changed.
    pub(super) fn into_changed(self) -> BTreeMap<Key, Option<Value>> {
        self.changed
    }

    /// Whether `want` is held now. It is not waited for.
    pub(super) fn try_hold(&self, want: Want) -> bool {
        self.grants.lock().table.try_hold(self.request, self.client, want)
    }

    /// Whether the client may change all of `range` by itself.
    pub(super) fn owns(&self, range: &KeyRange) -> bool {
        self.grants.lock().table.owns(self.client, range)
    }

    /// Whether there are at least `count` parts of `range`, not none, that the client may read.
    pub(super) fn has_parts(&self, range: &KeyRange, count: usize) -> bool {
        self.grants.lock().table.has_parts(self.client, range, count)
    }

    /// Holds `want`, or remembers that it is needed.
    pub(super) fn ensure(&mut self, want: Want) -> Result<(), Stop> {
        if self.try_hold(want) {
            return Ok(());
        }
        self.denied.push(want);
        Err(Stop::Lease)
    }
}

/// One attempt.
pub(super) struct Guarded<'a, 'g, T: Txn + ?Sized> {
    inner: &'a mut T,
    grip: &'a mut Grip<'g>,
}

impl<T: Txn + ?Sized> Guarded<'_, '_, T> {
    fn ensure(&mut self, range: KeyRange, mode: LockMode) -> Result<(), Stop> {
        if range.file().ino == Ino(0) {
            return Ok(());
        }
        self.grip.ensure((range, mode))
    }

    /// Holds more than the operation itself has touched.
    pub(super) fn hold(&mut self, range: KeyRange, mode: LockMode) -> Result<(), Stop> {
        self.ensure(range, mode)
    }

    /// The bytes `from..to` of `file` are to be changed, and its size or blocks with them.
    fn change_bytes(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        self.grip.resized.insert(file);
        match from < to {
            true => self.ensure(KeyRange::bytes(file, from, to), LockMode::Exclusive),
            false => Ok(()),
        }
    }

    fn change_bytes_from(&mut self, file: FileId, from: u64) -> Result<(), Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        self.grip.resized.insert(file);
        self.ensure(KeyRange::bytes_from(file, from), LockMode::Exclusive)
    }

    fn record(&mut self, key: Key, value: Option<Value>) {
        if key.ino != Ino(0) {
            self.grip.changed.insert(key, value);
        }
    }

    /// What it touches nobody has leased, as it is the filesystem's own.
    pub(super) fn inner(&mut self) -> &mut T {
        self.inner
    }

    /// To be called when the operation is through: writes down how long the files are that it
    /// changed.
    pub(super) fn settle(&mut self) -> Result<(), Stop> {
        for file in std::mem::take(&mut self.grip.resized) {
            let is_gone = self.grip.changed.get(&file.key(Kind::INODE, 0)) == Some(&None);
            let extent = match is_gone {
                true => None,
                false => Some(Value::from(encode_file(self.inner.file(file)?))),
            };
            self.grip.changed.insert(file.key(Kind::FILE, 0), extent);
        }
        Ok(())
    }
}

impl<T: Txn + ?Sized> Txn for Guarded<'_, '_, T> {
    fn lock(&mut self, file: FileId, mode: LockMode) -> Result<(), Stop> {
        self.inner.lock(file, mode)
    }

    fn get(&mut self, key: Key) -> Result<Option<Value>, Stop> {
        self.ensure(KeyRange::around(key), LockMode::Shared)?;
        self.inner.get(key)
    }

    fn prefetch(&mut self, keys: &[Key]) -> Result<(), Stop> {
        self.inner.prefetch(keys)
    }

    fn scan(&mut self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>, Stop> {
        let range = KeyRange::new(from, to).expect("a scan of one object");
        let attributes = KeyRange::attributes(from.file());
        let range = if attributes.covers(&range) { attributes } else { range };
        self.ensure(range, LockMode::Shared)?;
        self.inner.scan(from, to, limit)
    }

    fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), Stop> {
        self.ensure(KeyRange::around(key), LockMode::Exclusive)?;
        self.record(key, Some(Value::from(&value[..])));
        self.inner.put(key, value)
    }

    fn delete(&mut self, key: Key) -> Result<(), Stop> {
        self.ensure(KeyRange::around(key), LockMode::Exclusive)?;
        self.record(key, None);
        self.inner.delete(key)
    }

    fn new_inode(&mut self, subvol: SubvolId) -> Result<Ino, Stop> {
        let Some(ino) = self.grip.made else { return self.inner.new_inode(subvol) };
        let file = FileId::new(subvol, ino);
        self.ensure(KeyRange::object(file), LockMode::Exclusive)?;
        self.inner.lock(file, LockMode::Exclusive)?;
        // Numbers are used once, whatever a client says.
        match self.inner.get(file.key(Kind::INODE, 0))? {
            None => Ok(ino),
            Some(_) => Err(Stop::Lease),
        }
    }

    fn require_space(&mut self) -> Result<(), Stop> {
        self.inner.require_space()
    }

    fn file(&mut self, file: FileId) -> Result<FileExtent, Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Shared)?;
        self.inner.file(file)
    }

    fn set_size(&mut self, file: FileId, size: u64) -> Result<(), Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Exclusive)?;
        // Whoever has the page at the end knows zeros behind it.
        let kept = self.inner.file(file)?.size.min(size);
        self.change_bytes_from(file, kept - kept % BLOCK)?;
        self.inner.set_size(file, size)
    }

    fn punch(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.change_bytes(file, from, to)?;
        self.inner.punch(file, from, to)
    }

    fn allocate(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.change_bytes(file, from, to)?;
        self.inner.allocate(file, from, to)
    }

    fn share(
        &mut self,
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
    ) -> Result<(), Stop> {
        let end = |offset: u64| offset.saturating_add(length).next_multiple_of(BLOCK);
        self.ensure(KeyRange::attributes(source), LockMode::Shared)?;
        if length > 0 {
            let read = KeyRange::bytes(source, source_offset, end(source_offset));
            self.ensure(read, LockMode::Shared)?;
        }
        self.change_bytes(target, target_offset, end(target_offset))?;
        self.inner.share(source, source_offset, target, target_offset, length)
    }

    fn collapse(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop> {
        self.change_bytes_from(file, offset)?;
        self.inner.collapse(file, offset, length)
    }

    fn insert(&mut self, file: FileId, offset: u64, length: u64) -> Result<(), Stop> {
        self.change_bytes_from(file, offset)?;
        self.inner.insert(file, offset, length)
    }

    /// Who still caches bytes of an object that is gone does no harm.
    fn remove_bytes(&mut self, file: FileId) -> Result<Removal, Stop> {
        self.change_bytes(file, 0, 0)?;
        self.inner.remove_bytes(file)
    }

    fn seek(&mut self, file: FileId, offset: u64, target: SeekTarget) -> Result<Option<u64>, Stop> {
        self.ensure(KeyRange::bytes_from(file, offset), LockMode::Shared)?;
        self.inner.seek(file, offset, target)
    }

    fn read(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize, Stop> {
        self.ensure(KeyRange::attributes(file), LockMode::Shared)?;
        if !into.is_empty() {
            let end = offset.saturating_add(into.len() as u64);
            self.ensure(KeyRange::bytes(file, offset, end), LockMode::Shared)?;
        }
        self.inner.read(file, offset, into)
    }

    fn write(&mut self, file: FileId, offset: u64, payload: Payload<'_>) -> Result<(), Stop> {
        let end = offset.saturating_add(payload.bytes().len() as u64);
        self.change_bytes(file, offset, end)?;
        self.inner.write(file, offset, payload)
    }

    fn has_unwritten_bytes(&mut self, file: FileId) -> Result<bool, Stop> {
        self.inner.has_unwritten_bytes(file)
    }
}
