//! Requests in flight on a few threads: for kernels that offer no io_uring, and for the requests
//! that a ring has no operation for.
//!
//! At most [`QUEUED_MAX`] requests wait for a thread; submitting one more waits for room. Dropping
//! the workers waits until every request has completed.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use gabion_base::disk::{Completion, DiskRequest, Ticket};

use super::AbortOnPanic;
use super::backing::Backing;

/// Requests that wait for a thread.
const QUEUED_MAX: usize = 128;
/// Enough to keep a disk's queue busy, few enough to cost nothing when idle.
const THREADS: usize = 4;

struct Job {
    request: DiskRequest,
    completion: Completion,
}

/// Threads that do requests.
pub(super) struct Workers {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Fails only if not even one thread can be started.
    pub(super) fn start(backing: &Arc<Backing>) -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUED_MAX);
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let (backing, jobs) = (Arc::clone(backing), receiver.clone());
            let thread = thread::Builder::new().name("disk".into());
            match thread.spawn(move || work(&backing, &jobs)) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(Self { jobs: Some(sender), threads })
    }

    /// Waits for room in the queue.
    pub(super) fn submit(&self, request: DiskRequest) -> Ticket {
        let (ticket, completion) = Ticket::pair();
        let jobs = self.jobs.as_ref().expect("the queue is closed by drop only");
        if jobs.send(Job { request, completion }).is_err() {
            unreachable!("the workers run until the queue is closed");
        }
        ticket
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // It ends with the queue; had it panicked, the process would have ended before.
            let _ = thread.join();
        }
    }
}

fn work(backing: &Backing, jobs: &Receiver<Job>) {
    let _abort = AbortOnPanic;
    for Job { request, completion } in jobs {
        completion.complete(backing.execute(request));
    }
}
