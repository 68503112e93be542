//! What the owner of a mirror asks for, from the request to the answer.
//!
//! ```text
//!  change   Queued -- range is free --> Intending -- intent is kept --> Sent -- all have answered
//!  flush    sent at once to all copies that get writes
//!  read     one copy after another, until one can
//! ```
//!
//! An answer to a change or a flush waits for the record if the record still trusts a copy that has
//! failed. On the last copy a request is tried again until its deadline if the copy seems to be
//! gone; if it is there and fails, the owner is told at once.

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskError, DiskRequest, Durability, Repair};
use gabion_base::ids::BlockAddr;

use super::flight::{Flight, Stage, Work, is_gone, placed};
use super::growth::work_request;
use super::ranges::Span;
use super::{FlightId, Mirror, Notice, Output, RETRY, RequestId, Trust};
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::{METADATA_BLOCKS, Slot};

/// Who is waiting for the end of something.
pub(super) enum Answer {
    Nobody,
    Request(RequestId),
    Repair(RequestId),
}

impl Answer {
    pub(super) fn is_somebody(&self) -> bool {
        !matches!(self, Self::Nobody)
    }
}

/// A request that concerns one copy.
pub(super) enum One {
    /// Read blocks, as they are there.
    Read { id: RequestId },
    /// Replace a block if it is bad.
    Repair { id: RequestId, copy: CopyIndex, addr: BlockAddr, bad: BlockSlice, good: BlockSlice },
    /// Write again what could not be read.
    Rewrite { copy: CopyIndex, addr: BlockAddr },
    /// The write at the end of a repair or of writing again.
    Write { repair: Option<RequestId>, copy: CopyIndex, addr: BlockAddr, count: u64 },
}

/// What a request of the owner is about.
pub(super) trait Request {
    fn operation(&self) -> &'static str;
    fn answer(&self) -> Answer;
}

impl Request for Work {
    fn operation(&self) -> &'static str {
        match self {
            Self::Change { request, .. } => request.operation(),
            Self::Flush { .. } | Self::SyncFlush { .. } => "flush",
            Self::Fill { .. } => "write zeroes",
            Self::Read { .. } | Self::Chunk(_) | Self::One(One::Read { .. }) => "read",
            Self::One(_) => "repair",
            Self::Page(_) => "write",
        }
    }

    fn answer(&self) -> Answer {
        match self {
            Self::Change { id, .. } | Self::Read { id, .. } | Self::One(One::Read { id }) => {
                Answer::Request(*id)
            }
            Self::Flush { id, .. } => id.map_or(Answer::Nobody, Answer::Request),
            Self::One(One::Repair { id, .. } | One::Write { repair: Some(id), .. }) => {
                Answer::Repair(*id)
            }
            _ => Answer::Nobody,
        }
    }
}

impl Mirror {
    pub(super) fn handle_request(&mut self, id: RequestId, request: DiskRequest) {
        if self.fenced.is_some() {
            let result = Err(self.fenced_error(request.operation()));
            return self.outputs.push_back(Output::Complete { id, result });
        }
        self.busy_at = self.now;
        let (addr, count) = request.extent();
        match request {
            DiskRequest::Read { addr, count } => {
                let tried = CopySet::EMPTY;
                let flight = self.start(Work::Read { id, addr, count, tried }, None);
                self.read_somewhere(flight);
            }
            DiskRequest::Flush => self.start_flush(Some(id)),
            request => {
                let span = Span { start: addr.0, end: addr.0 + count };
                let work = Work::Change { id, request, stage: Stage::Queued };
                let flight = self.start(work, Some(span));
                if self.ranges.take(span, flight) {
                    self.range_taken(flight);
                }
            }
        }
    }

    pub(super) fn handle_read_copy(
        &mut self,
        id: RequestId,
        copy: CopyIndex,
        addr: BlockAddr,
        count: usize,
    ) {
        if self.fenced.is_some() || !self.roster.in_sync().contains(copy) {
            let reason = format!("{copy} is not in sync");
            let result = Err(self.timed_out("read", addr, reason));
            return self.outputs.push_back(Output::Complete { id, result });
        }
        let flight = self.start(Work::One(One::Read { id }), None);
        let request = DiskRequest::Read { addr: addr.plus(METADATA_BLOCKS), count };
        self.send(flight, copy, request);
    }

    pub(super) fn handle_repair_copy(
        &mut self,
        id: RequestId,
        copy: CopyIndex,
        addr: BlockAddr,
        bad: BlockSlice,
        good: BlockSlice,
    ) {
        if self.fenced.is_some() || !self.roster.in_sync().contains(copy) {
            let result = Ok(Repair::Changed);
            return self.outputs.push_back(Output::Repaired { id, result });
        }
        let span = Span { start: addr.0, end: addr.0 + 1 };
        let one = One::Repair { id, copy, addr, bad, good };
        let flight = self.start(Work::One(one), Some(span));
        if self.ranges.take(span, flight) {
            self.range_taken(flight);
        }
    }

    /// It is the turn of `id` in its range.
    pub(super) fn range_taken(&mut self, id: FlightId) {
        let flight = self.flights.get_mut(&id).expect("who waits is under way");
        match &mut flight.work {
            Work::Change { request, stage, .. } => {
                *stage = Stage::Intending;
                let (addr, count) = request.extent();
                for region in self.geometry.regions_of(addr, count) {
                    self.intend(region);
                }
                self.send_if_intended(id);
            }
            Work::One(One::Repair { copy, addr, .. }) => {
                let (copy, addr) = (*copy, addr.plus(METADATA_BLOCKS));
                self.send(id, copy, DiskRequest::Read { addr, count: 1 });
            }
            Work::Chunk(_) => self.read_chunk(id),
            _ => unreachable!("only changes, repairs and chunks have ranges"),
        }
    }

    /// Sends a change whose regions are all in the intent of all copies.
    pub(super) fn send_if_intended(&mut self, id: FlightId) {
        let is_renewing = self.is_renewing();
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let Work::Change { request, stage, .. } = &mut flight.work else { return };
        let (addr, count) = request.extent();
        let mut regions = self.geometry.regions_of(addr, count);
        if *stage != Stage::Intending
            || !regions.all(|region| self.bitmaps.is_kept(Slot::Intent, region))
            || is_renewing
        {
            return;
        }
        *stage = Stage::Sent;
        let request = placed(request);
        for copy in self.roster.written_to().iter() {
            self.send(id, copy, request.clone());
        }
    }

    pub(super) fn start_flush(&mut self, id: Option<RequestId>) {
        let number = self.regions.flush_begins();
        let flight = self.start(Work::Flush { id, number }, None);
        for copy in self.roster.written_to().iter() {
            self.send(flight, copy, DiskRequest::Flush);
        }
    }

    /// Reads from one copy; from none if all have been tried.
    fn read_somewhere(&mut self, id: FlightId) {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let Work::Read { addr, count, tried, .. } = &flight.work else { return };
        let left = self.roster.in_sync().without(*tried);
        let Some(copy) = self.balance.begin(left, addr.0, *count as u64) else { return };
        let request = DiskRequest::Read { addr: addr.plus(METADATA_BLOCKS), count: *count };
        flight.attempt += 1;
        self.send(id, copy, request);
    }

    pub(super) fn handle_success(&mut self, id: FlightId, copy: CopyIndex, blocks: Option<Blocks>) {
        let mut flight = self.flights.remove(&id).expect("it is under way");
        match &mut flight.work {
            Work::Read { addr, count, tried, .. } => {
                let (addr, count, tried) = (*addr, *count, *tried);
                self.answer(&mut flight, Ok(blocks));
                for bad in tried.and(self.roster.in_sync()).iter() {
                    self.rewrite(bad, copy, addr, count);
                }
                return;
            }
            Work::One(One::Read { .. }) => return self.answer(&mut flight, Ok(blocks)),
            Work::One(One::Write { repair, copy, addr, count }) => {
                let (copy, addr, count) = (*copy, *addr, *count);
                match repair {
                    Some(id) if !flight.answered => {
                        flight.answered = true;
                        let result = Ok(Repair::Repaired);
                        self.outputs.push_back(Output::Repaired { id: *id, result });
                    }
                    Some(_) => {}
                    None => {
                        let notice = Notice::Rewritten { copy, addr, count };
                        self.outputs.push_back(Output::Notice(notice));
                    }
                }
            }
            Work::One(One::Repair { .. } | One::Rewrite { .. }) => {
                self.flights.insert(id, flight);
                return self.write_one(id, blocks);
            }
            Work::Chunk(chunk) => chunk.read(copy, blocks),
            Work::Fill { .. } => {
                self.flights.insert(id, flight);
                return self.fill_copy(id, copy, blocks);
            }
            _ => {}
        }
        self.flights.insert(id, flight);
    }

    /// Looks at what was read for a repair or for writing again, and writes if it is to be written.
    fn write_one(&mut self, id: FlightId, blocks: Option<Blocks>) {
        let Some(blocks) = blocks else { return };
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let (repair, copy, addr, content) = match &flight.work {
            Work::One(One::Repair { id: repair, copy, addr, bad, good }) => {
                if blocks.bytes() != bad.bytes() {
                    return self.finish(id, Ok(None));
                }
                (Some(*repair), *copy, *addr, good.clone())
            }
            Work::One(One::Rewrite { copy, addr, .. }) => {
                (None, *copy, *addr, BlockSlice::new(blocks))
            }
            _ => return,
        };
        let count = content.count() as u64;
        flight.work = Work::One(One::Write { repair, copy, addr, count });
        let addr = addr.plus(METADATA_BLOCKS);
        let request =
            DiskRequest::Write { addr, parts: vec![content], durability: Durability::Fua };
        self.send(id, copy, request);
    }

    /// Writes to `bad` again what it could not read, unless somebody writes there anyway.
    pub(super) fn rewrite(
        &mut self,
        bad: CopyIndex,
        good: CopyIndex,
        addr: BlockAddr,
        count: usize,
    ) {
        let span = Span { start: addr.0, end: addr.0 + count as u64 };
        if self.ranges.try_take(span) {
            let work = Work::One(One::Rewrite { copy: bad, addr });
            let id = self.start(work, Some(span));
            let addr = addr.plus(METADATA_BLOCKS);
            self.send(id, good, DiskRequest::Read { addr, count });
        }
    }

    pub(super) fn handle_failure(&mut self, id: FlightId, copy: CopyIndex, error: DiskError) {
        let reason = error.to_string();
        let gone = is_gone(&error);
        let flight = self.flights.get_mut(&id).expect("it is under way");
        flight.error = Some(error);
        if !gone && self.fill_unread(id, copy) {
            return;
        }
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let matters = match &mut flight.work {
            Work::Read { tried, .. } => {
                tried.insert(copy);
                gone
            }
            Work::Chunk(chunk) => chunk.failed(copy, gone),
            Work::One(One::Read { .. } | One::Repair { .. } | One::Rewrite { .. }) => gone,
            _ => true,
        };
        if self.roster.trust(copy) == Trust::InSync && self.roster.is_last(copy) {
            if gone && !self.last_fails {
                self.last_fails = true;
                let notice = Notice::LastCopyFails { copy, reason: reason.as_str().into() };
                self.outputs.push_back(Output::Notice(notice));
            }
        } else if matters {
            self.give_up(copy, &reason);
        }
    }

    /// Ends `id` if all that has to happen has happened.
    pub(super) fn settle(&mut self, id: FlightId) {
        let Some(flight) = self.flights.get(&id) else { return };
        if !flight.waiting.is_empty() || flight.again.is_some() {
            return;
        }
        match &flight.work {
            Work::Change { stage: Stage::Sent, .. } | Work::Flush { .. } => self.settle_all(id),
            Work::Change { .. } => {}
            Work::Read { tried, .. } => {
                if self.roster.in_sync().without(*tried).is_empty() {
                    self.retry_or_fail(id);
                } else {
                    self.read_somewhere(id);
                }
            }
            Work::One(_) if flight.failed.is_empty() && !self.is_written(flight) => {}
            Work::One(_) => self.end_one(id),
            Work::Page(index) => {
                let index = *index;
                if self.lacks_trusted(flight) {
                    return self.retry_later(id);
                }
                if self.awaits_record(flight) {
                    // Whoever opens the mirror next may trust a copy that has not got the page.
                    return;
                }
                self.flights.remove(&id);
                self.bitmaps.written(index);
                for id in self.flights.keys().copied().collect::<Vec<_>>() {
                    self.send_if_intended(id);
                }
            }
            Work::Chunk(_) => self.settle_chunk(id),
            Work::SyncFlush { .. } => self.settle_sync_flush(id),
            Work::Fill { .. } => self.settle_fill(id),
        }
    }

    fn is_written(&self, flight: &Flight) -> bool {
        matches!(flight.work, Work::One(One::Write { .. })) && !flight.succeeded.is_empty()
    }

    fn end_one(&mut self, id: FlightId) {
        let result = match self.flights[&id].failed.is_empty() {
            true => Ok(None),
            false => Err(self.take_error(id)),
        };
        self.finish(id, result);
    }

    fn take_error(&mut self, id: FlightId) -> DiskError {
        let flight = self.flights.get_mut(&id).expect("it is under way");
        let (error, operation) = (flight.error.take(), flight.work.operation());
        error.unwrap_or_else(|| {
            self.timed_out(operation, BlockAddr(0), "no copy is there to do it".to_owned())
        })
    }

    /// Whether a copy in sync has not done it, which then is the last one.
    pub(super) fn lacks_trusted(&self, flight: &Flight) -> bool {
        !flight.failed.and(self.roster.in_sync()).is_empty()
    }

    /// Whether the record trusts a copy that is not used any more and has not done it. That copy
    /// may have failed it, or may have been left out from the start.
    fn awaits_record(&self, flight: &Flight) -> bool {
        !self.roster.failing().without(flight.succeeded).is_empty()
    }

    fn settle_all(&mut self, id: FlightId) {
        let flight = &self.flights[&id];
        if self.lacks_trusted(flight) {
            return self.retry_or_fail(id);
        }
        if self.awaits_record(flight) && !flight.answered {
            return;
        }
        if let Work::Flush { id, number } = flight.work {
            self.regions.flush_ended(number);
            if id.is_none() {
                self.regions.own_flush_ended();
            }
        }
        self.finish(id, Ok(None));
    }

    /// The last copy has failed it.
    fn retry_or_fail(&mut self, id: FlightId) {
        let flight = &self.flights[&id];
        let gone = flight.error.as_ref().is_none_or(is_gone);
        if gone && !flight.answered {
            return self.retry_later(id);
        }
        if let Work::Flush { id: None, .. } = flight.work {
            self.regions.own_flush_ended();
        }
        let ahead = match flight.work {
            // Copies that catch up may have what the last one has not.
            Work::Change { .. } => self.roster.catching_up().and(flight.succeeded),
            _ => CopySet::EMPTY,
        };
        let error = self.take_error(id);
        self.finish(id, Err(error));
        for copy in ahead.iter() {
            self.give_up(copy, "it has a write that the last copy in sync refused");
        }
    }

    pub(super) fn retry_later(&mut self, id: FlightId) {
        let again = self.now + RETRY;
        self.flights.get_mut(&id).expect("it is under way").again = Some(again);
    }

    /// Asks the last copy again.
    pub(super) fn try_again(&mut self, id: FlightId) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.again = None;
        flight.error = None;
        flight.attempt += 1;
        let failed = flight.failed.and(self.roster.in_sync());
        let request = match &mut flight.work {
            Work::Read { tried, .. } => {
                *tried = CopySet::EMPTY;
                return self.read_somewhere(id);
            }
            Work::Page(index) => {
                let index = *index;
                self.flights.remove(&id);
                return self.bitmaps.not_written(index);
            }
            Work::Change { request, .. } => placed(request),
            work => work_request(work),
        };
        for copy in failed.iter() {
            self.send(id, copy, request.clone());
        }
        self.settle(id);
    }

    /// The deadline of a request is over.
    pub(super) fn run_out(&mut self, id: FlightId) {
        let Some(mut flight) = self.flights.remove(&id) else { return };
        let addr = flight.span.map_or(BlockAddr(0), |span| BlockAddr(span.start));
        let seconds = self.options.deadline.as_secs_f32();
        let silent: Vec<_> = flight.waiting.iter().map(|copy| copy.to_string()).collect();
        let unrecorded = self.awaits_record(&flight);
        let reason = match (&flight.work, &flight.error) {
            _ if !silent.is_empty() => format!("{} did not answer", silent.join(", ")),
            (Work::Change { stage: Stage::Queued, .. }, _) => "others write there".to_owned(),
            (Work::Change { stage: Stage::Intending, .. }, _) => {
                "the intent to write could not be noted".to_owned()
            }
            _ if !self.lacks_trusted(&flight) && unrecorded => {
                "the coordinator did not record the failure of a copy".to_owned()
            }
            (_, Some(error)) => error.to_string(),
            (_, None) => "it was not done".to_owned(),
        };
        let error = self.timed_out(flight.work.operation(), addr, format!("{reason}, {seconds} s"));
        self.answer(&mut flight, Err(error));
        let unsent = matches!(flight.work, Work::Change { stage, .. } if stage != Stage::Sent);
        flight.again = None;
        self.flights.insert(id, flight);
        match unsent {
            true => self.finish(id, Ok(None)),
            false => self.settle(id),
        }
    }
}
