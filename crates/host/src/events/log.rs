//! The log: lines of JSON in a folder, appended by several processes.
//!
//! ```text
//! FOLDER/log.jsonl       the newest records, oldest first
//! FOLDER/log.old.jsonl   those before
//! FOLDER/lock            held while records are numbered and written
//! ```
//!
//! The next number follows from the last line, so that there is no second place to disagree with
//! it. A line that a crash or a full disk has cut off is closed before the next one, and skipped by
//! readers.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::event::{Event, LINE_BYTES_MAX, Record, Sequence, Source};
use gabion_base::time::Timestamp;

/// The length at which the log becomes the old one, in bytes.
pub const LOG_BYTES_MAX: u64 = 4 << 20;
/// How long others may keep the lock. They need it for microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(2);
/// What is read from the end of a log to find its last record: two lines and more.
const TAIL_BYTES: u64 = 4 * LINE_BYTES_MAX as u64;

/// The log in a folder.
#[derive(Clone, Debug)]
pub(super) struct Log {
    folder: PathBuf,
    length_max: u64,
}

impl Log {
    /// The log in `folder`, which is made if it is missing.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Multicasts name it, so it needs one name.
        Ok(Self { folder: folder.canonicalize()?, length_max: LOG_BYTES_MAX })
    }

    #[cfg(test)]
    pub(super) fn with_length_max(self, length_max: u64) -> Self {
        Self { length_max, ..self }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn newest(&self) -> PathBuf {
        self.folder.join("log.jsonl")
    }

    pub(super) fn old(&self) -> PathBuf {
        self.folder.join("log.old.jsonl")
    }

    /// Numbers the events and appends them. What was written before a failure is written.
    pub(super) fn append(
        &self,
        source: &Source,
        events: &[(Timestamp, Event)],
    ) -> io::Result<Vec<Record>> {
        let _lock = self.lock()?;
        let mut sequence = self.last()?;
        let mut records = Vec::with_capacity(events.len());
        for (time, event) in events {
            sequence = Sequence(sequence.0.saturating_add(1));
            let (source, event) = (source.clone(), event.clone());
            let record = Record { sequence, time: *time, source, event };
            self.write(&record.to_line())?;
            records.push(record);
        }
        Ok(records)
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.folder.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL),
            }
        }
    }

    /// The number of the last record, 0 if there is none.
    pub(super) fn last(&self) -> io::Result<Sequence> {
        for path in [self.newest(), self.old()] {
            let Some(file) = open(&path)? else { continue };
            let length = file.metadata()?.len();
            let mut tail = vec![0; length.min(TAIL_BYTES) as usize];
            let read = file.read_at(&mut tail, length.saturating_sub(TAIL_BYTES))?;
            let lines = tail[..read].rsplit(|byte| *byte == b'\n');
            let mut records = lines.filter_map(|line| Record::from_line(line).ok());
            if let Some(record) = records.next() {
                return Ok(record.sequence);
            }
        }
        Ok(Sequence(0))
    }

    fn write(&self, line: &str) -> io::Result<()> {
        let newest = self.newest();
        let open =
            || File::options().append(true).read(true).create(true).mode(0o600).open(&newest);
        let mut file = open()?;
        let mut length = file.metadata()?.len();
        if length > 0 && length + line.len() as u64 >= self.length_max {
            fs::rename(&newest, self.old())?;
            file = open()?;
            length = 0;
        }
        let mut bytes = Vec::with_capacity(line.len() + 2);
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        if last != [b'\n'] {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        file.write_all(&bytes)
    }
}

/// Opens a file to read it, if it is there.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
