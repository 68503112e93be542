//! Somebody who writes to a file, syncs after each record, and remembers what must be there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::stage::await_some;

/// Bytes of a record: not a whole number of blocks.
const RECORD: usize = 5000;

/// A thread that writes record after record.
pub struct Writer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// Records that fsync has said to be durable.
    synced: Arc<AtomicU64>,
    thread: JoinHandle<(Duration, io::Result<()>)>,
}

fn record(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..RECORD).map(|at| (number as usize * 7 + at / 64) as u8));
    bytes
}

impl Writer {
    /// Begins to write.
    pub fn start(path: &Path) -> Self {
        let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (own_stop, own_synced, own_path) =
            (Arc::clone(&stop), Arc::clone(&synced), path.to_owned());
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut write = || -> io::Result<()> {
                let mut file = File::create(&own_path)?;
                for number in 0.. {
                    let began = Instant::now();
                    file.write_all(&record(number))?;
                    file.sync_data()?;
                    longest = longest.max(began.elapsed());
                    own_synced.store(number + 1, Ordering::Release);
                    if own_stop.load(Ordering::Acquire) {
                        break;
                    }
                }
                Ok(())
            };
            let outcome = write();
            (longest, outcome)
        });
        Self { path: path.to_owned(), stop, synced, thread }
    }

    /// Waits until this many more records are durable.
    #[track_caller]
    pub fn await_more(&self, count: u64) {
        let wanted = self.synced.load(Ordering::Acquire) + count;
        await_some("what was written", || {
            assert!(!self.thread.is_finished(), "writing has failed");
            (self.synced.load(Ordering::Acquire) >= wanted).then_some(())
        });
    }

    /// Ends, and says how long the longest write and sync took.
    #[track_caller]
    pub fn finish(self) -> (Duration, Written) {
        self.stop.store(true, Ordering::Release);
        let (longest, outcome) = self.thread.join().unwrap();
        outcome.expect("writing goes on");
        (longest, Written { path: self.path, records: self.synced.load(Ordering::Acquire) })
    }

    /// Ends although the filesystem was taken away.
    pub fn finish_in_failure(self) -> Written {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.join().unwrap();
        Written { path: self.path, records: self.synced.load(Ordering::Acquire) }
    }
}

/// What must be there.
pub struct Written {
    path: PathBuf,
    records: u64,
}

impl Written {
    /// Asserts that it is there; a record that was under way may be there, too.
    #[track_caller]
    pub fn check(&self) {
        let bytes = fs::read(&self.path).unwrap();
        assert!(bytes.len() >= self.records as usize * RECORD, "{} bytes", bytes.len());
        for number in 0..self.records {
            let found = &bytes[number as usize * RECORD..][..RECORD];
            assert!(found == record(number), "record {number} of {}", self.records);
        }
        assert!(self.records > 0);
    }
}
