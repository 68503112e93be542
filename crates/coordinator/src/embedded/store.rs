//! The records of all volumes, and notes, in one redb file. Whoever calls holds the lock.
//!
//! ```text
//! table "records-1"    volume's name -> revision u64 | crc64 u64 | text      little-endian
//! table "notes-1"      a note's name -> the same
//! table "counters-1"   "revision"    -> the last revision that was given out
//! ```
//!
//! - All of the file is compared with its checksums when it is opened. Without that redb trusts a
//!   file that was closed in order, and panics if it should not have. The file is small, and calls
//!   are rare: some milliseconds are no matter.
//! - The crc64 is over name, revision and text, and finds what was wrong before it was written.
//!
//! A new file is made beside and renamed when it is complete, so that a crash leaves none or all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_block::coordinator::{RECORD_BYTES_MAX, Revision, Stored};
use redb::{
    Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, TableError,
};

/// A table of texts by names.
pub(super) type Texts = TableDefinition<'static, &'static str, &'static [u8]>;
pub(super) const RECORDS: Texts = TableDefinition::new("records-1");
pub(super) const NOTES: Texts = TableDefinition::new("notes-1");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters-1");
/// Memory for one call, in bytes.
const CACHE_BYTES: usize = 4 << 20;

/// Why the store did not do what it was asked.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The system or the disk failed.
    Failed(String),
    /// What is in the file is not what was written.
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            // So it says that the file does not begin like one of its own.
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Self::Damaged(error.to_string())
            }
            error @ (redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }) => Self::Damaged(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

pub(super) struct Store {
    path: PathBuf,
}

impl Store {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn volumes(&self) -> Result<Vec<String>, StoreError> {
        let names = self.reading(RECORDS, |table| {
            let mut names = Vec::new();
            for entry in table.iter()? {
                names.push(entry?.0.value().to_owned());
            }
            Ok(names)
        })?;
        Ok(names.unwrap_or_default())
    }

    pub(super) fn read(&self, among: Texts, volume: &str) -> Result<Option<Stored>, StoreError> {
        let stored = self.reading(among, |table| {
            let Some(found) = table.get(volume)? else { return Ok(None) };
            let damaged = |error: DecodeError| StoreError::Damaged(format!("{volume}: {error}"));
            decode(volume, found.value()).map(Some).map_err(damaged)
        })?;
        Ok(stored.flatten())
    }

    pub(super) fn write(
        &self,
        among: Texts,
        volume: &str,
        text: &str,
    ) -> Result<Revision, StoreError> {
        let database = self.open_writable()?;
        let writing = database.begin_write()?;
        let revision = {
            let mut counters = writing.open_table(COUNTERS)?;
            let last = counters.get("revision")?.map_or(0, |last| last.value());
            let next = last.checked_add(1);
            let next = next.ok_or_else(|| StoreError::Damaged("no revision is left".to_owned()))?;
            counters.insert("revision", next)?;
            let revision = Revision(next);
            writing.open_table(among)?.insert(volume, &*encode(volume, revision, text))?;
            revision
        };
        writing.commit()?;
        Ok(revision)
    }

    pub(super) fn remove(&self, volume: &str) -> Result<(), StoreError> {
        let database = self.open_writable()?;
        let writing = database.begin_write()?;
        writing.open_table(RECORDS)?.remove(volume)?;
        Ok(writing.commit()?)
    }

    /// Reads a table; nothing if it is not there yet.
    fn reading<T>(
        &self,
        among: Texts,
        read: impl FnOnce(&ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        if !is_there(&self.path)? {
            return Ok(None);
        }
        let database = builder().open(&self.path)?;
        match database.begin_read()?.open_table(among) {
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            table => read(&table?).map(Some),
        }
    }

    fn open_writable(&self) -> Result<Database, StoreError> {
        if !is_there(&self.path)? {
            self.make().map_err(redb::Error::Io)?;
        }
        Ok(builder().open(&self.path)?)
    }

    fn make(&self) -> io::Result<()> {
        let unfinished = self.path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let made = builder().create(&unfinished).map_err(io::Error::other)?;
        drop(made);
        File::open(&unfinished)?.sync_all()?;
        std::fs::rename(&unfinished, &self.path)?;
        let folder = self.path.parent().expect("the store is in the coordinator's folder");
        File::open(folder)?.sync_all()
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(true);
    builder
}

fn is_there(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|error| StorageError::Io(error).into())
}

fn checksum(volume: &str, revision: Revision, text: &[u8]) -> u64 {
    // The name's length keeps what belongs to the name apart from what follows.
    let length = (volume.len() as u64).to_le_bytes();
    crc64_of(&[&length, volume.as_bytes(), &revision.0.to_le_bytes(), text])
}

fn encode(volume: &str, revision: Revision, text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + text.len());
    bytes.put_u64(revision.0);
    bytes.put_u64(checksum(volume, revision, text.as_bytes()));
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn decode(volume: &str, bytes: &[u8]) -> Result<Stored, DecodeError> {
    let mut reader = Reader::new(bytes);
    let revision = Revision(reader.u64()?);
    let expected = reader.u64()?;
    let text = reader.rest();
    if text.len() > RECORD_BYTES_MAX {
        return Err(DecodeError::Invalid("the record's length"));
    }
    if checksum(volume, revision, text) != expected || revision == Revision::ABSENT {
        return Err(DecodeError::Invalid("the record's checksum"));
    }
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::Invalid("the record's text"))?;
    Ok(Stored { revision, text: text.to_owned() })
}
