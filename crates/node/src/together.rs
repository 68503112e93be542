//! Things that are to be read from a disk, by several threads: each waits for one at a time.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gabion_base::sync::Mutex;
use gabion_fs::Result;

/// Threads that read.
const READERS: usize = 8;

/// What `run` makes of each of these, in their order; or an error of one of them.
pub(crate) fn together<T: Sync, R: Send>(
    all: &[T],
    run: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(all.len()));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(index) else { return Ok(()) };
            match run(one) {
                Ok(outcome) => done.lock().push((index, outcome)),
                Err(error) => {
                    next.store(all.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        // Where the system has no thread to give, this one does it all.
        let start =
            |_| thread::Builder::new().name("read".to_owned()).spawn_scoped(scope, work).ok();
        let threads: Vec<_> = (1..READERS.min(all.len())).filter_map(start).collect();
        let mut outcome = work();
        for thread in threads {
            let other = thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause));
            outcome = outcome.and(other);
        }
        outcome
    })?;
    let mut done = done.into_inner();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}
