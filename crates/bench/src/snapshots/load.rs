//! Programs that write small files, and how long each operation of theirs takes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::path_of;
use crate::random::Random;

/// Threads that write.
pub const THREADS: u64 = 2;
/// How long a thread waits between two operations: the load shall not be more than a disk bears.
const PAUSE: Duration = Duration::from_micros(500);
/// From one snapshot to the next.
const PERIOD: Duration = Duration::from_secs(1);
/// Bytes that are written at once.
const LENGTH: usize = 2048;

/// Works on the files below `root` for so long, calls `each` once in a second, and gives how long
/// each operation took, shortest first, and what `each` gave.
pub fn run(
    root: &Path,
    files: u64,
    time: Duration,
    mut each: impl FnMut() -> Result<Option<Duration>>,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = |thread| work(root, files, thread, &ends);
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        let begun = Instant::now();
        let mut made = Vec::new();
        let mut outcome = Ok(());
        for turn in 1.. {
            let next = (begun + PERIOD * turn).min(begun + time);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if begun.elapsed() >= time {
                break;
            }
            match each() {
                Ok(took) => made.extend(took),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        ends.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for thread in threads {
            latencies.extend(thread.join().expect("a thread of the load panicked")?);
        }
        latencies.sort();
        outcome.map(|()| (latencies, made))
    })
}

/// One thread: it overwrites, makes and removes files, and looks at some.
fn work(root: &Path, files: u64, thread: u64, ends: &AtomicBool) -> Result<Vec<Duration>> {
    let mut random = Random::new(100 + thread);
    let bytes = [7; LENGTH];
    let mut latencies = Vec::new();
    let own = root.join(format!("new-{thread}"));
    let mut turn = 0;
    while !ends.load(Ordering::Relaxed) {
        let path = path_of(root, random.below(files));
        let begun = Instant::now();
        match turn % 4 {
            0 => File::options().write(true).open(&path)?.write_all_at(&bytes, 0)?,
            1 => fs::write(&own, bytes)?,
            2 => fs::rename(&own, &path)?,
            _ => {
                fs::metadata(&path)?;
            }
        }
        latencies.push(begun.elapsed());
        turn += 1;
        thread::sleep(PAUSE);
    }
    Ok(latencies)
}
