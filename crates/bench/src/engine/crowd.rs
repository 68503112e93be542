//! Threads that do the same at once, and what it took them.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};

/// What something took.
#[derive(Clone, Copy, Debug)]
pub struct Lap {
    /// From the common start to the last thread's end.
    pub seconds: f64,
    /// Processor time of all threads.
    pub cpu_seconds: f64,
    /// How often a thread gave up the processor to wait for something.
    pub waits: u64,
}

/// Runs `work` on each of some threads, which are named for profilers.
pub fn lap<T: Send>(
    name: &str,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<(Lap, Vec<T>)> {
    let barrier = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let mut workers = Vec::with_capacity(threads);
        for thread in 0..threads {
            let (barrier, work) = (&barrier, &work);
            workers.push(thread::Builder::new().name(name.to_owned()).spawn_scoped(
                scope,
                move || {
                    barrier.wait();
                    let (cpu, waits) = (cpu_seconds(), waits()?);
                    let result = work(thread)?;
                    Ok::<_, anyhow::Error>((result, cpu_seconds() - cpu, self::waits()? - waits))
                },
            )?);
        }
        barrier.wait();
        let start = Instant::now();
        let mut lap = Lap { seconds: 0.0, cpu_seconds: 0.0, waits: 0 };
        let mut results = Vec::with_capacity(threads);
        for worker in workers {
            let (result, cpu_seconds, waits) =
                worker.join().map_err(|_| anyhow!("a thread panicked"))??;
            results.push(result);
            lap.cpu_seconds += cpu_seconds;
            lap.waits += waits;
        }
        lap.seconds = start.elapsed().as_secs_f64();
        Ok((lap, results))
    })
}

/// Processor time of this thread.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Voluntary context switches of this thread.
fn waits() -> Result<u64> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|line| line.trim().parse().ok()).context("/proc has no context switches")
}
