//! Requests that are done elsewhere, and their way back to the client.
//!
//! ```text
//!   turn       read all requests that have come -> submit each to the disk, in one batch
//!   disk       has done it, on a thread of its own             -> answers
//!   replier    takes all answers that are there -> sends them together
//! ```
//!
//! A thread of the disk's must not wait for a client, so it only leaves the answer here. In flight
//! is what was submitted and not yet sent to the client; there is room for [`IN_FLIGHT_MAX`].

use std::io::{self, IoSlice};
use std::sync::Arc;

use gabion_base::batch::{self, Work};
use gabion_base::disk::{Disk, DiskRequest, DiskResult};
use gabion_base::sync::{Condvar, Mutex, MutexGuard};

use super::answer::Answer;
use super::execute::span;
use super::export::Export;
use crate::stream::Stream;
use crate::wire::request::Request;

/// Small requests of one client that are in flight at the same time.
const IN_FLIGHT_MAX: usize = 128;

/// What a client has in flight.
#[derive(Default)]
pub(super) struct Pipeline {
    state: Mutex<State>,
    /// There are answers, or there will be none any more.
    filled: Condvar,
    /// Answers have been sent.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    answers: Vec<Done>,
    ended: bool,
}

/// A request that was done, or has failed.
pub(super) struct Done {
    pub(super) request: Request,
    pub(super) result: DiskResult,
    /// Bytes it has of the room.
    pub(super) bytes: usize,
}

/// Blocks that are shared with other writers until this is dropped.
pub(super) struct Writing {
    export: Arc<Export>,
    id: u64,
}

impl Writing {
    /// Nothing if somebody else is alone there, or waits for that.
    pub(super) fn begin(export: &Arc<Export>, request: &Request) -> Option<Self> {
        let (addr, count, _) = span(request);
        let id = export.ranges.try_share(addr.0, addr.0 + count as u64)?;
        Some(Self { export: Arc::clone(export), id })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.export.ranges.leave(self.id);
    }
}

impl Pipeline {
    /// Has `disk` do what stands for the client's `request`, when there is room for it.
    pub(super) fn start(
        self: &Arc<Self>,
        disk: &dyn Disk,
        submitted: DiskRequest,
        (request, bytes, writing): (Request, usize, Option<Writing>),
    ) {
        let mut state = self.state.lock();
        if state.in_flight >= IN_FLIGHT_MAX {
            MutexGuard::unlocked(&mut state, batch::settle);
        }
        while state.in_flight >= IN_FLIGHT_MAX {
            self.emptied.wait(&mut state);
        }
        state.in_flight += 1;
        drop(state);
        let pipeline = Arc::clone(self);
        disk.submit(submitted).then(move |result| {
            drop(writing);
            pipeline.state.lock().answers.push(Done { request, result, bytes });
            batch::put_off(pipeline);
        });
    }

    /// Has `send` send answers, as many as there are at a time, until all has been answered after
    /// the end.
    pub(super) fn reply(&self, mut send: impl FnMut(Vec<Done>)) {
        let mut state = self.state.lock();
        loop {
            if state.answers.is_empty() {
                if state.ended && state.in_flight == 0 {
                    return;
                }
                self.filled.wait(&mut state);
                continue;
            }
            let answers = std::mem::take(&mut state.answers);
            let count = answers.len();
            MutexGuard::unlocked(&mut state, || send(answers));
            state.in_flight -= count;
            self.emptied.notify_one();
        }
    }
}

/// When this is dropped nothing more will be started.
pub(super) struct Ending<'a>(pub(super) &'a Pipeline);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.filled.notify_one();
    }
}

impl Work for Pipeline {
    fn run(&self) {
        self.filled.notify_one();
    }
}

/// Writes the parts of all answers side by side.
pub(super) fn write_all(stream: &Stream, answers: &[Answer]) -> io::Result<()> {
    let parts = answers.iter().flat_map(Answer::parts);
    let mut parts: Vec<_> = parts.map(IoSlice::new).collect();
    stream.write_parts(&mut parts)
}
