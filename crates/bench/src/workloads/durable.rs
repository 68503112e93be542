//! Small appends, each made durable: logs and databases.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::Supplies;
use crate::figures::{Metric, Sample};
use crate::systems::System;

/// Bytes of an append.
const LENGTH: usize = 200;
/// How long appends are made.
const DURATION: Duration = Duration::from_millis(700);

const ONE: Metric = Metric::operations("append 200 B + fsync, 1 writer").of_ext4(1.0);
const FOUR: Metric = Metric::operations("append 200 B + fsync, 4 writers").of_ext4(1.0);

/// One file.
pub fn one_writer(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    Ok(vec![append(system, 1, ONE)?])
}

/// Four files at once: those who wait can share a write.
pub fn four_writers(system: &mut dyn System, _: &Supplies) -> Result<Vec<Sample>> {
    Ok(vec![append(system, 4, FOUR)?])
}

fn append(system: &mut dyn System, writers: usize, metric: Metric) -> Result<Sample> {
    let directory = system.root().join(format!("logs.{writers}"));
    std::fs::create_dir_all(&directory)?;
    system.sync()?;
    let barrier = Barrier::new(writers + 1);
    let append = |writer: usize| -> Result<u64> {
        let path = directory.join(writer.to_string());
        let file = OpenOptions::new().create(true).append(true).open(path);
        barrier.wait();
        let (mut file, line) = (file?, [b'x'; LENGTH]);
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < DURATION {
            file.write_all(&line)?;
            file.sync_all()?;
            count += 1;
        }
        Ok(count)
    };
    let (count, seconds) = thread::scope(|scope| {
        let append = &append;
        let start = |writer| scope.spawn(move || append(writer));
        let threads: Vec<_> = (0..writers).map(start).collect();
        barrier.wait();
        let start = Instant::now();
        let mut count = 0;
        for thread in threads {
            count += thread.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok::<_, anyhow::Error>((count, start.elapsed().as_secs_f64()))
    })?;
    std::fs::remove_dir_all(&directory)?;
    Ok(metric.sample(count as f64, seconds))
}
