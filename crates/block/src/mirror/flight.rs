//! What is under way inside a mirror: from its start, over what copies answer, to its end.
//!
//! A flight is sent to some copies, which then are `waiting`, and `succeeded` or `failed` once they
//! have answered. What follows from an answer depends on the work and is decided where that work is
//! (`foreground`, `resync`); here is what all work has in common.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::{DiskError, DiskRequest, DiskResult, Repair};
use gabion_base::ids::BlockAddr;

use super::bitmaps::PageIndex;
use super::foreground::{Answer, One, Request};
use super::ranges::Span;
use super::resync::Chunk;
use super::{FlightId, Mirror, Output, RequestId, Sent};
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::METADATA_BLOCKS;

/// Something that is under way.
pub(super) struct Flight {
    pub(super) work: Work,
    pub(super) span: Option<Span>,
    pub(super) since: Duration,
    /// When a copy was last asked.
    pub(super) sent: Duration,
    pub(super) attempt: u32,
    pub(super) waiting: CopySet,
    pub(super) succeeded: CopySet,
    pub(super) failed: CopySet,
    /// The owner has got an answer; what is left is to be ended properly.
    pub(super) answered: bool,
    /// Tried again then, on the last copy.
    pub(super) again: Option<Duration>,
    pub(super) error: Option<DiskError>,
}

pub(super) enum Work {
    /// A write, zeroing or discard.
    Change { id: RequestId, request: DiskRequest, stage: Stage },
    /// A flush; nobody waits for the mirror's own.
    Flush { id: Option<RequestId>, number: u64 },
    /// A read, of whichever copy.
    Read { id: RequestId, addr: BlockAddr, count: usize, tried: CopySet },
    /// A request to one copy only.
    One(One),
    /// A page of a bitmap.
    Page(PageIndex),
    /// A piece that is compared, and copied if that is wanted.
    Chunk(Chunk),
    /// A flush of a copy that catches up.
    SyncFlush { copy: CopyIndex, regions: Vec<u64> },
    /// Zeros behind the end of a mirror that grows; no blocks, and it is a flush.
    Fill { addr: BlockAddr, count: u64, zeroed: CopySet },
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Others write there.
    Queued,
    /// Its regions are not in the intent yet.
    Intending,
    /// It was sent.
    Sent,
}

impl Mirror {
    pub(super) fn start(&mut self, work: Work, span: Option<Span>) -> FlightId {
        let id = FlightId(self.next_flight);
        self.next_flight += 1;
        let flight = Flight {
            work,
            span,
            since: self.now,
            sent: self.now,
            attempt: 0,
            waiting: CopySet::EMPTY,
            succeeded: CopySet::EMPTY,
            failed: CopySet::EMPTY,
            answered: false,
            again: None,
            error: None,
        };
        self.flights.insert(id, flight);
        id
    }

    /// Sends a request for the mirror's metadata, or one whose addresses are the copy's already.
    pub(super) fn send(&mut self, id: FlightId, copy: CopyIndex, request: DiskRequest) {
        let flight = self.flights.get_mut(&id).expect("only what is under way is sent");
        flight.waiting.insert(copy);
        flight.failed.remove(copy);
        flight.sent = self.now;
        let sent = Sent { flight: id, copy, attempt: flight.attempt };
        self.outputs.push_back(Output::Send { copy, sent, request });
    }

    /// Ends a flight: the owner has its answer, and others may have its range.
    pub(super) fn finish(&mut self, id: FlightId, result: DiskResult) {
        let mut flight = self.flights.remove(&id).expect("what ends was under way");
        self.answer(&mut flight, result);
        self.end_change(&flight.work);
        if let Work::Change { stage: Stage::Queued, .. } = flight.work {
            self.ranges.forget(id);
        } else if let Some(span) = flight.span {
            for next in self.ranges.release(span) {
                self.range_taken(next);
            }
        }
    }

    pub(super) fn handle_done(&mut self, sent: Sent, result: DiskResult) {
        let Some(flight) = self.flights.get_mut(&sent.flight) else { return };
        if flight.attempt != sent.attempt || !flight.waiting.remove(sent.copy) {
            return;
        }
        if let Work::Read { .. } = flight.work {
            self.balance.end(sent.copy);
        }
        match result {
            Err(DiskError::Fenced { reason, .. }) => return self.fence(reason),
            Ok(blocks) => {
                flight.succeeded.insert(sent.copy);
                if self.last_fails && self.roster.in_sync().contains(sent.copy) {
                    self.last_fails = false;
                }
                self.handle_success(sent.flight, sent.copy, blocks);
            }
            Err(error) => {
                flight.failed.insert(sent.copy);
                self.handle_failure(sent.flight, sent.copy, error);
            }
        }
        self.settle(sent.flight);
    }

    /// Gives the owner the answer, if it has none yet.
    pub(super) fn answer(&mut self, flight: &mut Flight, result: DiskResult) {
        if std::mem::replace(&mut flight.answered, true) {
            return;
        }
        match flight.work.answer() {
            Answer::Nobody => {}
            Answer::Request(id) => self.outputs.push_back(Output::Complete { id, result }),
            Answer::Repair(id) => {
                let result = result.map(|_| Repair::Changed);
                self.outputs.push_back(Output::Repaired { id, result });
            }
        }
    }

    pub(super) fn timed_out(
        &self,
        operation: &'static str,
        addr: BlockAddr,
        reason: String,
    ) -> DiskError {
        let source = Arc::new(io::Error::new(io::ErrorKind::TimedOut, reason));
        DiskError::Io { device: Arc::clone(&self.name), operation, addr, source }
    }
}

/// The same request, moved behind the mirror's own blocks.
pub(super) fn placed(request: &DiskRequest) -> DiskRequest {
    let mut request = request.clone();
    match &mut request {
        DiskRequest::Read { addr, .. }
        | DiskRequest::Write { addr, .. }
        | DiskRequest::Discard { addr, .. }
        | DiskRequest::WriteZeroes { addr, .. } => *addr = addr.plus(METADATA_BLOCKS),
        DiskRequest::Flush => {}
    }
    request
}

/// Whether an error means that a device is not there, rather than that it cannot do something.
pub(super) fn is_gone(error: &DiskError) -> bool {
    let DiskError::Io { source, .. } = error else { return false };
    matches!(
        source.kind(),
        io::ErrorKind::TimedOut
            | io::ErrorKind::NotConnected
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}
