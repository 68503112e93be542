//! The end at which events go in.

use std::io;
use std::iter;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use gabion_base::event::{Event, LogEvent, Record, Sequence, Sink, Source};
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;

use super::log::Log;
use super::netlink;
use crate::clock;

/// Events that wait to be written; more are dropped and counted.
const QUEUE_MAX: usize = 1024;
/// Events that are written below one lock.
const BATCH_MAX: usize = 64;
/// How long the end of a program waits for the last events to be written.
const END_PATIENCE: Duration = Duration::from_secs(3);

enum Noted {
    Event(Timestamp, Event),
    /// Somebody waits until all before it is written, which closes this.
    Awaited(#[expect(dead_code, reason = "it is only dropped")] Sender<()>),
}

/// Publishes events of this process. Dropping it waits, for a short time, until all are written.
#[derive(Debug)]
pub struct Publisher {
    /// Nothing only while it is dropped.
    queue: Option<Sender<Noted>>,
    /// Closed by the thread when it ends.
    ended: Receiver<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Publisher {
    /// Publishes to the log in `folder`, which is made if it is missing. `program` is how this
    /// process is called in records.
    ///
    /// It starts a thread, so a program that goes to the background does so before.
    pub fn start(folder: &Path, program: &str) -> io::Result<Self> {
        Self::with_log(Log::open(folder)?, program)
    }

    pub(super) fn with_log(log: Log, program: &str) -> io::Result<Self> {
        let (queue, noted) = bounded(QUEUE_MAX);
        let (ending, ended) = bounded(0);
        let shared = Arc::new(Shared::default());
        let source = Source { program: program.to_owned(), pid: std::process::id() };
        // Without it followers look at the log by themselves.
        let sender = netlink::Sender::new().ok();
        let writer = Writer { log, source, sender, shared: Arc::clone(&shared) };
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            writer.run(&noted);
            drop(ending);
        })?;
        Ok(Self { queue: Some(queue), ended, shared })
    }

    /// Why the log could not be written to at last, if it still cannot.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().clone()
    }

    /// Waits, for a short time, until all is written that was published before.
    pub fn finish(&self) {
        let Some(queue) = &self.queue else { return };
        let (awaited, written) = bounded(0);
        if queue.send_timeout(Noted::Awaited(awaited), END_PATIENCE).is_ok() {
            // Either way it is over: it is written, or it has had its time.
            let _ = written.recv_timeout(END_PATIENCE);
        }
    }
}

impl Sink for Publisher {
    fn publish(&self, event: Event) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(Noted::Event(clock::now(), event)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.queue = None;
        // Either way it is over: the thread has ended, or it has had its time.
        let _ = self.ended.recv_timeout(END_PATIENCE);
    }
}

/// The thread's part.
struct Writer {
    log: Log,
    source: Source,
    sender: Option<netlink::Sender>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&self, noted: &Receiver<Noted>) {
        while let Ok(first) = noted.recv() {
            let (mut batch, mut awaited) = (Vec::new(), Vec::new());
            for noted in iter::once(first).chain(noted.try_iter().take(BATCH_MAX - 1)) {
                match noted {
                    Noted::Event(time, event) => batch.push((time, event)),
                    Noted::Awaited(_) => awaited.push(noted),
                }
            }
            let count = self.shared.dropped.swap(0, Ordering::Relaxed);
            if count > 0 {
                let program = self.source.program.clone();
                let event = Event::Log { program, event: LogEvent::Dropped { count } };
                batch.push((clock::now(), event));
            }
            if !batch.is_empty() {
                self.write(batch);
            }
            drop(awaited);
        }
    }

    fn write(&self, batch: Vec<(Timestamp, Event)>) {
        let written = self.log.append(&self.source, &batch);
        let problem = written.as_ref().err();
        let problem = problem.map(|error| {
            format!("cannot write events to {}: {error}", self.log.folder().display())
        });
        *self.shared.problem.lock() = problem;
        let records = written.unwrap_or_else(|_| {
            let unwritten = batch.into_iter().map(|(time, event)| {
                let source = self.source.clone();
                Record { sequence: Sequence(0), time, source, event }
            });
            unwritten.collect()
        });
        let Some(sender) = &self.sender else { return };
        for record in &records {
            // Nobody to tell: what is lost here is in the log.
            let _ = sender.send(self.log.folder(), record);
        }
    }
}
