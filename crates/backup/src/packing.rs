//! Segments on their way into a stream: packed and sealed by a thread for each processor, and given
//! back in the order in which they came.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::error::{Error, Result};
use crate::format::segment::{Frame, Kind, Packing};
use crate::seal::Key;

/// The level of zstd.
const LEVEL: i32 = 3;
/// Threads at most.
const THREADS_MAX: usize = 8;
/// Segments under way for each thread: one that it works on and one that waits.
const PER_THREAD: usize = 2;

/// A segment as it stands in the stream.
pub(crate) struct Packed {
    pub(crate) kind: Kind,
    /// Its frame.
    pub(crate) frame: Vec<u8>,
    /// What follows.
    pub(crate) bytes: Vec<u8>,
    /// How long it was before.
    pub(crate) raw: u32,
}

struct Job {
    kind: Kind,
    number: u32,
    raw: Vec<u8>,
    out: Sender<Result<Packed>>,
}

/// Segments under way.
pub(crate) struct Packers {
    jobs: Sender<Job>,
    begun: VecDeque<Receiver<Result<Packed>>>,
    most: usize,
}

impl Packers {
    /// Threads that seal with this key, if there is one, for a stream whose header has this digest.
    /// They end when this goes.
    pub(crate) fn start(key: Option<Key>, header: [u8; 32]) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let (jobs, taken) = unbounded::<Job>();
        let key = Arc::new(key);
        for _ in 0..threads {
            let (taken, key) = (taken.clone(), Arc::clone(&key));
            let mut zstd = zstd::bulk::Compressor::new(LEVEL)?;
            let pack = move || {
                for Job { kind, number, raw, out } in taken {
                    // Nobody waits for it if writing has failed.
                    let _ = out.send(pack(
                        &mut zstd,
                        key.as_ref().as_ref(),
                        &header,
                        kind,
                        number,
                        raw,
                    ));
                }
            };
            thread::Builder::new().name("pack".to_owned()).spawn(pack)?;
        }
        Ok(Self { jobs, begun: VecDeque::new(), most: threads * PER_THREAD })
    }

    /// Begins with a segment. There must be room.
    pub(crate) fn begin(&mut self, kind: Kind, number: u32, raw: Vec<u8>) {
        let (out, packed) = bounded(1);
        // There are threads for as long as this is there; one that died is seen below.
        let _ = self.jobs.send(Job { kind, number, raw, out });
        self.begun.push_back(packed);
    }

    /// Whether another one may begin.
    pub(crate) fn has_room(&self) -> bool {
        self.begun.len() < self.most
    }

    /// Waits for the oldest; nothing if none has begun.
    pub(crate) fn take(&mut self) -> Option<Result<Packed>> {
        let packed = self.begun.pop_front()?;
        let died = || Err(Error::Cipher("a thread died"));
        Some(packed.recv().unwrap_or_else(|_| died()))
    }
}

fn pack(
    zstd: &mut zstd::bulk::Compressor<'_>,
    key: Option<&Key>,
    header: &[u8; 32],
    kind: Kind,
    number: u32,
    raw: Vec<u8>,
) -> Result<Packed> {
    let length = raw.len() as u32;
    let packed = zstd.compress(&raw).map_err(|source| Error::Io { offset: 0, source })?;
    let (packing, mut bytes) = match packed.len() < raw.len() {
        true => (Packing::Zstd, packed),
        false => (Packing::Plain, raw),
    };
    let mut frame = Frame { kind, packing, number, raw: length, stored: 0 };
    if let Some(key) = key {
        bytes = key.seal(&[header, &frame.identity()], &bytes)?;
    }
    frame.stored = bytes.len() as u32;
    let frame = frame.encode(&bytes).to_vec();
    Ok(Packed { kind, frame, bytes, raw: length })
}
