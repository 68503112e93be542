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
//! The machine is spread over these modules:
//!
//! | what is known                         | what is done                            |
//! |---------------------------------------|-----------------------------------------|
//! | `ranges`: who writes where            | `flight`: sends, and takes answers      |
//! | `bitmaps`: what may differ            | `foreground`: requests of the owner     |
//! | `roster`: whom to trust               | `attendance`: copies come and go        |
//! | `regions`: what is settled            | `resync`: copies catch up, are compared |
//! | `scan`: which blocks are next in that | `growth`: the mirror becomes longer     |
//! | `balance`: which copy is read         |                                         |

mod attendance;
mod balance;
mod bitmaps;
mod flight;
mod foreground;
mod growth;
mod interface;
mod ranges;
mod regions;
mod resync;
mod roster;
mod scan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::{DiskRequest, Durability};
use gabion_base::ids::Uuid;

pub use self::bitmaps::{Loaded, blank_pages};
pub use self::interface::{Compared, CopyStatus, Input, Notice, Options, Order, Output, RequestId};
pub use self::roster::Trust;

use self::balance::Balance;
use self::bitmaps::Bitmaps;
use self::flight::{Flight, Work};
use self::foreground::Request;
use self::growth::Growth;
use self::ranges::Ranges;
use self::regions::Regions;
use self::roster::Roster;
use self::scan::Scan;
use crate::copies::{CopyIndex, CopySet};
use crate::geometry::Geometry;
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
    /// Blocks that can be used; less than the geometry has while the record is told of more.
    length: u64,
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
    balance: Balance,
    /// When the owner has last asked for something.
    busy_at: Duration,
    /// Whether it was said that the last copy fails.
    last_fails: bool,
    growth: Option<Growth>,
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
            length: geometry.blocks(),
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
            balance: Balance::default(),
            busy_at: Duration::ZERO,
            last_fails: false,
            growth: None,
        };
        mirror.go_on();
        mirror
    }

    /// Takes note of something that has happened at `now`, counted from any fixed moment.
    pub fn handle(&mut self, now: Duration, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Request { id, request } => self.handle_request(id, request),
            Input::ReadCopy { id, copy, addr, count } => {
                self.handle_read_copy(id, copy, addr, count);
            }
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
            Input::LengthRecorded => self.handle_length_recorded(),
            Input::LengthNotRecorded => self.handle_length_not_recorded(),
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
            && self.growth.is_none()
            && self.attach_again.iter().all(|then| *then <= self.now);
        (!resting && self.fenced.is_none()).then_some(TICK)
    }

    /// Blocks of data that can be used.
    pub fn blocks(&self) -> u64 {
        self.length
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

    /// Copies that can be asked for blocks by [`Input::ReadCopy`].
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
        self.go_on_growing();
        self.go_on_syncing();
        self.go_on_comparing();
        if self.is_draining() {
            return;
        }
        while let Some((index, addr, block)) = self.bitmaps.next_write() {
            let id = self.start(Work::Page(index), None);
            let durability = Durability::Fua;
            let request = DiskRequest::Write { addr, parts: vec![block], durability };
            for copy in self.roster.written_to().iter() {
                self.send(id, copy, request.clone());
            }
        }
    }
}
