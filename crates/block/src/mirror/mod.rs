//! The same blocks on several devices, of which any may fail.
//!
//! A mirror is a machine: it is told what happens ([`Input`]) and when, and says what is to be done
//! ([`Output`]). It never waits, has no thread and reads no clock. Its owner gives it requests,
//! sends what it says to the copies, and tells it their answers.
//!
//! # What holds
//!
//! 1. A write, zeroing, discard or flush is acknowledged when every copy that the record trusts has
//!    acknowledged it, and there is one. A copy that fails is first recorded as stale.
//! 2. Before a write is sent to any copy, the intent bitmap of all of them has its region, durably.
//!    The bit goes only once the write is durable on all copies in sync, and noted as missing for
//!    those that are not.
//! 3. Two writes to one block are never in flight together, so all copies get them in one order.
//! 4. A copy is trusted again when it has got every region that it lacked, everything that was
//!    written meanwhile, and a flush after that; and when the record says so.
//! 5. The last copy that is in sync is never given up. What fails on it is tried again until the
//!    request's deadline.
//! 6. Once somebody else has opened the volume, everything fails, for ever.
//!
//! The machine is spread over these modules: `ranges` (who writes where), `bitmaps` (what may
//! differ), `roster` (whom to trust), `regions` (what is settled), `foreground` (requests of the
//! owner), `resync` (copies that catch up, and comparing), `scan` (which blocks of them are next).

mod bitmaps;
mod foreground;
mod interface;
mod ranges;
mod regions;
mod resync;
mod roster;
mod scan;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::{DiskError, DiskRequest, DiskResult, Durability, Repair};
use gabion_base::ids::{BlockAddr, Uuid};

pub use self::bitmaps::{Loaded, blank_pages};
pub use self::interface::{Compared, CopyStatus, Input, Notice, Options, Order, Output, RequestId};
pub use self::roster::Trust;

use self::bitmaps::{Bitmaps, PageIndex};
use self::foreground::{Answer, Request};
use self::ranges::{Ranges, Span};
use self::regions::Regions;
use self::resync::Chunk;
use self::roster::Roster;
use self::scan::Scan;
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::{Geometry, METADATA_BLOCKS};
use crate::record::CopyState;

/// How often time matters while something is under way.
pub const TICK: Duration = Duration::from_millis(100);
/// How long to wait before the record, or the last copy, is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long to wait before a copy is tried again that could not be brought up to date, as what it
/// lacks could not be read: attaching it costs changes of the record and its header.
const ATTACH_RETRY: Duration = Duration::from_secs(2);

/// Something that is under way inside the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct FlightId(u64);

/// A request to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    flight: FlightId,
    copy: CopyIndex,
    attempt: u32,
}

/// The machine.
pub struct Mirror {
    name: Arc<str>,
    geometry: Geometry,
    options: Options,
    now: Duration,
    roster: Roster,
    bitmaps: Bitmaps,
    ranges: Ranges,
    regions: Regions,
    flights: BTreeMap<FlightId, Flight>,
    next_flight: u64,
    outputs: VecDeque<Output>,
    /// Why nothing is done any more.
    fenced: Option<Arc<str>>,
    /// When to tell the record again.
    record_again: Option<Duration>,
    /// Copies whose owner was told to attach them.
    attaching: CopySet,
    /// Before this a copy is left alone, as it cannot be brought up to date now.
    attach_again: [Duration; crate::copies::COPIES_MAX],
    scans: BTreeMap<CopyIndex, Scan>,
    comparing: Option<Scan>,
    /// Reads in flight of each copy.
    reading: [u32; crate::copies::COPIES_MAX],
    /// The copy that was asked last.
    last_read: CopyIndex,
    /// When the owner has last asked for something.
    busy_at: Duration,
    /// Whether it was said that the last copy fails.
    last_fails: bool,
}

/// Something that is under way.
struct Flight {
    work: Work,
    span: Option<Span>,
    since: Duration,
    /// When a copy was last asked.
    sent: Duration,
    attempt: u32,
    waiting: CopySet,
    succeeded: CopySet,
    failed: CopySet,
    /// The owner has got an answer; what is left is to be ended properly.
    answered: bool,
    /// Tried again then, on the last copy.
    again: Option<Duration>,
    error: Option<DiskError>,
}

enum Work {
    /// A write, zeroing or discard.
    Change { id: RequestId, request: DiskRequest, stage: Stage },
    /// A flush; nobody waits for the mirror's own.
    Flush { id: Option<RequestId>, number: u64 },
    /// A read, of whichever copy.
    Read { id: RequestId, addr: BlockAddr, count: usize, tried: CopySet },
    /// A request to one copy only.
    One(foreground::One),
    /// A page of a bitmap.
    Page(PageIndex),
    /// A piece that is compared, and copied if that is wanted.
    Chunk(Chunk),
    /// A flush of a copy that catches up.
    SyncFlush { copy: CopyIndex, regions: Vec<u64> },
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Others write there.
    Queued,
    /// Its regions are not in the intent yet.
    Intending,
    /// It was sent.
    Sent,
}

impl Mirror {
    /// A mirror of copies with these states; those in sync are connected. `loaded` is what they
    /// keep in their bitmaps.
    pub fn new(
        name: Arc<str>,
        uuid: Uuid,
        geometry: Geometry,
        states: &[CopyState],
        loaded: Loaded,
        options: Options,
    ) -> Self {
        let roster = Roster::new(states);
        assert!(!roster.in_sync().is_empty(), "a mirror needs a copy that is in sync");
        let mut bitmaps = Bitmaps::new(uuid, loaded);
        for copy in roster.left_out().iter() {
            bitmaps.add_intent(copy);
            if roster.is_full(copy) {
                bitmaps.set_all(crate::geometry::Slot::Missing(copy));
            }
        }
        for copy in roster.in_sync().iter() {
            // What it had lacked when a writer stopped who had just told the record.
            bitmaps.clear_all(crate::geometry::Slot::Missing(copy));
        }
        let regions = Regions::new(geometry, &bitmaps);
        let mut mirror = Self {
            name,
            geometry,
            options,
            now: Duration::ZERO,
            roster,
            bitmaps,
            ranges: Ranges::default(),
            regions,
            flights: BTreeMap::new(),
            next_flight: 0,
            outputs: VecDeque::new(),
            fenced: None,
            record_again: None,
            attaching: CopySet::EMPTY,
            attach_again: [Duration::ZERO; crate::copies::COPIES_MAX],
            scans: BTreeMap::new(),
            comparing: None,
            reading: [0; crate::copies::COPIES_MAX],
            last_read: CopyIndex(0),
            busy_at: Duration::ZERO,
            last_fails: false,
        };
        mirror.go_on();
        mirror
    }

    /// Takes note of something that has happened at `now`, counted from any fixed moment.
    pub fn handle(&mut self, now: Duration, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Request { id, request } => self.handle_request(id, request),
            Input::ReadCopy { id, copy, addr } => self.handle_read_copy(id, copy, addr),
            Input::RepairCopy { id, copy, addr, bad, good } => {
                self.handle_repair_copy(id, copy, addr, bad, good);
            }
            Input::Done { sent, result } => self.handle_done(sent, result),
            Input::Recorded => self.handle_recorded(),
            Input::NotRecorded => {
                self.roster.not_recorded();
                self.record_again = Some(self.now + RETRY);
            }
            Input::Fenced { reason } => self.fence(reason),
            Input::Attached { copy, full } => self.handle_attached(copy, full),
            Input::Lost { copy, reason } => self.give_up(copy, &reason),
            Input::Order(order) => self.handle_order(order),
            Input::Tick => self.handle_tick(),
        }
        self.go_on();
    }

    /// What is to be done next, in this order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to tell [`Input::Tick`] at the latest, as a distance from now.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let resting = self.flights.is_empty()
            && self.regions.is_settled()
            && self.record_again.is_none()
            && self.scans.is_empty()
            && self.comparing.is_none()
            && self.attach_again.iter().all(|then| *then <= self.now);
        (!resting && self.fenced.is_none()).then_some(TICK)
    }

    /// Blocks of data.
    pub fn blocks(&self) -> u64 {
        self.geometry.blocks()
    }

    /// How each copy is.
    pub fn copies(&self) -> Vec<CopyStatus> {
        let status = |copy| {
            let slot = crate::geometry::Slot::Missing(copy);
            let trust = self.roster.trust(copy);
            let missing = match trust {
                Trust::InSync | Trust::Joining | Trust::Removed => 0,
                _ => self.bitmaps.count(slot) * self.geometry.region_blocks(),
            };
            let unreadable_blocks = self.scans.get(&copy).map_or(0, Scan::unreadable_blocks);
            let missing_blocks = missing.min(self.geometry.blocks());
            CopyStatus { trust, missing_blocks, unreadable_blocks }
        };
        self.roster.all().map(status).collect()
    }

    /// Copies that can be asked for a block by [`Input::ReadCopy`].
    pub fn readable(&self) -> CopySet {
        self.roster.in_sync()
    }

    /// How far comparing is, while it is under way.
    pub fn compared(&self) -> Option<Compared> {
        self.comparing.as_ref().map(Scan::compared)
    }

    /// Whether nothing is under way and nothing is left to be settled: then the bitmaps of the
    /// copies say that they are equal.
    pub fn is_settled(&self) -> bool {
        self.flights.is_empty() && self.regions.is_settled()
    }

    /// Has what is written settled now, not some time after the last write.
    pub fn settle_soon(&mut self) {
        self.regions.settle_soon();
    }

    fn handle_recorded(&mut self) {
        let before = self.roster.in_sync();
        self.roster.recorded();
        for copy in self.roster.in_sync().without(before).iter() {
            self.outputs.push_back(Output::Notice(Notice::SyncFinished { copy }));
        }
        // Their writes may be waiting for just that.
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            self.settle(id);
        }
    }

    fn handle_order(&mut self, order: Order) {
        // Whoever gives the order has looked before; meanwhile things may have changed.
        if self.fenced.is_some() || !self.roster.fits(order) {
            return;
        }
        match order {
            Order::Suspend(copy) if self.may_leave(copy) => {
                self.leave(copy, "it was suspended", Roster::suspend);
            }
            Order::TakeOut(copy) if self.may_leave(copy) => {
                self.leave(copy, "it was taken out", Roster::take_out);
            }
            Order::Suspend(_) | Order::TakeOut(_) => {}
            Order::Resume(copy) => self.roster.resume(copy),
            Order::PutIn(copy) => {
                self.roster.put_in(copy);
                self.bitmaps.set_all(crate::geometry::Slot::Missing(copy));
            }
            Order::Compare => self.comparing = Some(Scan::start(self.next_flight)),
        }
    }

    /// Whether the mirror can do without `copy`.
    fn may_leave(&self, copy: CopyIndex) -> bool {
        !self.roster.in_sync().contains(copy) || !self.roster.is_last(copy)
    }

    fn leave(&mut self, copy: CopyIndex, reason: &str, how: fn(&mut Roster, CopyIndex)) {
        self.give_up(copy, reason);
        how(&mut self.roster, copy);
        if self.attaching.remove(copy) {
            self.outputs.push_back(Output::Detach(copy));
        }
    }

    /// Nothing more is done: somebody else has the volume.
    fn fence(&mut self, reason: Arc<str>) {
        if self.fenced.is_some() {
            return;
        }
        self.outputs.push_back(Output::Notice(Notice::Fenced { reason: Arc::clone(&reason) }));
        self.fenced = Some(reason);
        for (id, mut flight) in std::mem::take(&mut self.flights) {
            let error = self.fenced_error(flight.work.operation());
            self.answer(&mut flight, Err(error));
            self.ranges.forget(id);
        }
        for copy in self.roster.all() {
            self.outputs.push_back(Output::Detach(copy));
        }
        self.scans.clear();
        self.comparing = None;
    }

    fn fenced_error(&self, operation: &'static str) -> DiskError {
        let reason = self.fenced.clone().expect("it was fenced");
        DiskError::Fenced { device: Arc::clone(&self.name), operation, reason }
    }

    /// Does without `copy` from now on, if that is possible.
    fn give_up(&mut self, copy: CopyIndex, reason: &str) {
        let trust = self.roster.trust(copy);
        if trust == Trust::InSync && self.roster.is_last(copy) {
            return;
        }
        if !self.roster.written_to().contains(copy) {
            return;
        }
        self.bitmaps.add_intent(copy);
        self.roster.give_up(copy);
        self.scans.remove(&copy);
        self.reading[copy.at()] = 0;
        self.outputs.push_back(Output::Detach(copy));
        let notice = Notice::Stale { copy, reason: reason.into() };
        self.outputs.push_back(Output::Notice(notice));
        // Whatever it was asked is not going to be answered.
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            let Some(flight) = self.flights.get_mut(&id) else { continue };
            if flight.waiting.remove(copy) {
                flight.failed.insert(copy);
            }
            self.settle(id);
        }
    }

    fn handle_attached(&mut self, copy: CopyIndex, full: bool) {
        if self.roster.trust(copy) != Trust::Stale || self.fenced.is_some() {
            self.outputs.push_back(Output::Detach(copy));
            return;
        }
        self.attaching.remove(copy);
        let slot = crate::geometry::Slot::Missing(copy);
        if full {
            self.roster.set_full(copy, true);
        }
        if self.roster.is_full(copy) {
            self.bitmaps.set_all(slot);
        }
        if !self.roster.fullness_is_recorded(copy) {
            self.outputs.push_back(Output::Detach(copy));
            return;
        }
        self.bitmaps.add_intent(copy);
        self.roster.attached(copy);
        self.bitmaps.renew();
        self.scans.insert(copy, Scan::start(self.next_flight));
        let blocks = self.bitmaps.count(slot) * self.geometry.region_blocks();
        let blocks = blocks.min(self.geometry.blocks());
        self.outputs.push_back(Output::Notice(Notice::SyncStarted { copy, blocks }));
    }

    fn handle_tick(&mut self) {
        self.settle_regions();
        let deadline = self.options.deadline;
        let (mut overdue, mut again) = (Vec::new(), Vec::new());
        let mut silent = CopySet::EMPTY;
        for (id, flight) in &self.flights {
            if self.now.saturating_sub(flight.sent) >= self.options.copy_patience {
                silent = silent.or(flight.waiting);
            }
            // What nobody waits for is tried again for ever.
            let is_awaited = !flight.answered && flight.work.answer().is_somebody();
            if is_awaited && self.now.saturating_sub(flight.since) >= deadline {
                overdue.push(*id);
            } else if flight.again.is_some_and(|then| then <= self.now) {
                again.push(*id);
            }
        }
        for copy in silent.iter() {
            let seconds = self.options.copy_patience.as_secs_f32();
            self.give_up(copy, &format!("no answer for {seconds} s"));
        }
        for id in overdue {
            self.run_out(id);
        }
        for id in again {
            self.try_again(id);
        }
    }

    /// All that follows from what is known now, and is nobody's answer.
    fn go_on(&mut self) {
        if self.fenced.is_some() {
            return;
        }
        if self.record_again.is_none_or(|then| then <= self.now) {
            self.record_again = None;
            if let Some(states) = self.roster.next_record() {
                self.outputs.push_back(Output::Record(states));
            }
        }
        for copy in self.roster.all() {
            let is_wanted = self.roster.trust(copy) == Trust::Stale;
            // Whoever attaches a copy makes it look like one whose content is known.
            let may_come = is_wanted
                && self.roster.fullness_is_recorded(copy)
                && self.attach_again[copy.at()] <= self.now;
            if may_come && !self.attaching.contains(copy) {
                self.attaching.insert(copy);
                self.outputs.push_back(Output::Attach(copy));
            }
        }
        self.go_on_syncing();
        self.go_on_comparing();
        while let Some((index, addr, block)) = self.bitmaps.next_write() {
            let id = self.start(Work::Page(index), None);
            let durability = Durability::Fua;
            let request = DiskRequest::Write { addr, parts: vec![block], durability };
            for copy in self.roster.written_to().iter() {
                self.send(id, copy, request.clone());
            }
        }
    }

    fn start(&mut self, work: Work, span: Option<Span>) -> FlightId {
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
    fn send(&mut self, id: FlightId, copy: CopyIndex, request: DiskRequest) {
        let flight = self.flights.get_mut(&id).expect("only what is under way is sent");
        flight.waiting.insert(copy);
        flight.failed.remove(copy);
        flight.sent = self.now;
        let sent = Sent { flight: id, copy, attempt: flight.attempt };
        self.outputs.push_back(Output::Send { copy, sent, request });
    }

    /// Ends a flight: the owner has its answer, and others may have its range.
    fn finish(&mut self, id: FlightId, result: DiskResult) {
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

    fn handle_done(&mut self, sent: Sent, result: DiskResult) {
        let Some(flight) = self.flights.get_mut(&sent.flight) else { return };
        if flight.attempt != sent.attempt || !flight.waiting.remove(sent.copy) {
            return;
        }
        if let Work::Read { .. } = flight.work {
            let reading = &mut self.reading[sent.copy.at()];
            *reading = reading.saturating_sub(1);
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
    fn answer(&mut self, flight: &mut Flight, result: DiskResult) {
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

    fn timed_out(&self, operation: &'static str, addr: BlockAddr, reason: String) -> DiskError {
        let source = Arc::new(io::Error::new(io::ErrorKind::TimedOut, reason));
        DiskError::Io { device: Arc::clone(&self.name), operation, addr, source }
    }
}

/// The same request, moved behind the mirror's own blocks.
fn placed(request: &DiskRequest) -> DiskRequest {
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
fn is_gone(error: &DiskError) -> bool {
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
