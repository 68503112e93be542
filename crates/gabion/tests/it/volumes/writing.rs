//! Somebody who writes to a file, syncs after each record, and remembers what must be there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::stage::PATIENCE;

/// Bytes of a record: not a whole number of blocks.
const RECORD: usize = 5000;

/// A thread that writes record after record.
pub struct Writer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    thread: JoinHandle<(Duration, io::Result<()>)>,
}

/// How far a writer is, and who waits for that.
#[derive(Default)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Records that fsync has said to be durable.
    synced: u64,
    /// Nothing more is written.
    is_over: bool,
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn synced(&self) -> u64 {
        self.state.lock().unwrap().synced
    }
}

fn record(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..RECORD).map(|at| (number as usize * 7 + at / 64) as u8));
    bytes
}

impl Writer {
    /// Begins to write to the file `log` in `folder`.
    pub fn start(folder: &Path) -> Self {
        let path = folder.join("log");
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::<Progress>::default());
        let (own_stop, own_progress, own_path) =
            (Arc::clone(&stop), Arc::clone(&progress), path.clone());
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut write = || -> io::Result<()> {
                let mut file = File::create(&own_path)?;
                for number in 0.. {
                    let began = Instant::now();
                    file.write_all(&record(number))?;
                    file.sync_data()?;
                    longest = longest.max(began.elapsed());
                    own_progress.change(|state| state.synced = number + 1);
                    if own_stop.load(Ordering::Acquire) {
                        break;
                    }
                }
                Ok(())
            };
            let outcome = write();
            own_progress.change(|state| state.is_over = true);
            (longest, outcome)
        });
        Self { path, stop, progress, thread }
    }

    /// Waits until this many more records are durable.
    #[track_caller]
    pub fn await_more(&self, count: u64) {
        let state = self.progress.state.lock().unwrap();
        let wanted = state.synced + count;
        let is_wanting = |state: &mut State| !state.is_over && state.synced < wanted;
        let waited = self.progress.changed.wait_timeout_while(state, PATIENCE, is_wanting);
        let state = *waited.unwrap().0;
        assert!(!state.is_over, "writing has failed");
        assert!(state.synced >= wanted, "{} of {wanted} records are written", state.synced);
    }

    /// Ends. Everything was written, however long it took.
    #[track_caller]
    pub fn finish(self) -> Written {
        self.finish_within(Duration::MAX)
    }

    /// Ends. No write and sync took longer than `limit`.
    #[track_caller]
    pub fn finish_within(self, limit: Duration) -> Written {
        self.stop.store(true, Ordering::Release);
        let (longest, outcome) = self.thread.join().unwrap();
        outcome.expect("writing goes on");
        println!("longest pause: {longest:?}");
        assert!(longest < limit, "{longest:?}");
        Written { path: self.path, records: self.progress.synced() }
    }

    /// Ends although the filesystem was taken away.
    pub fn finish_in_failure(self) -> Written {
        self.stop.store(true, Ordering::Release);
        let _ = self.thread.join().unwrap();
        Written { path: self.path, records: self.progress.synced() }
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
