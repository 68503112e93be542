//! How a host opens the volume, in steps between which anything may happen.
//!
//! 1. `Take`: the record gets a new opening.
//! 2. `Look`: each copy is fenced and its header read, one after the other.
//! 3. `Judge`: the plan, the bitmaps, and who is kept if a write was under way.
//! 4. `Write`: what is kept is flushed, and gets the new header.
//! 5. `Complete`: the record says so.

use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::DiskRequest;
use gabion_base::ids::BlockAddr;
use gabion_block::copies::CopyIndex;
use gabion_block::epoch::{Epoch, Opening, remember};
use gabion_block::format::header::{Header, MEMBER_DATA_START};
use gabion_block::geometry::METADATA_BLOCKS;
use gabion_block::mirror::{Input, Loaded, Mirror};
use gabion_block::opening::{Findings, Found, complete, keep_one, plan};
use gabion_block::record::{CopyState, Record};

use super::coordinator::Replaced;
use super::growth::geometry_of;
use super::host::{Life, Session, copies_mut};
use super::member::Grant;
use super::{Event, MIRROR, Sabotage, World};

/// How far an opening has come.
pub(super) struct Opener {
    step: Step,
    record: Record,
    revision: u64,
    findings: Findings,
    loaded: Loaded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Take,
    Look(u8),
    Judge,
    Write,
    Complete,
}

/// Why an opening is begun again.
struct Again(String);

impl World {
    /// A host begins to open the volume.
    pub(super) fn open(&mut self, host: usize) {
        self.crash(host);
        let life = Life { host, number: self.hosts[host].life };
        self.open_again(life);
    }

    fn open_again(&mut self, life: Life) {
        let opener = Opener {
            step: Step::Take,
            record: self.coordinator.record.clone(),
            revision: 0,
            findings: Findings::new(),
            loaded: Loaded::empty(geometry_of(&self.coordinator.record)),
        };
        self.hosts[life.host].opener = Some(opener);
        let wait = self.delay(Duration::from_millis(500));
        self.schedule(wait, Event::Open { life });
    }

    /// The next step of an opening.
    pub(super) fn go_on_opening(&mut self, life: Life) {
        if !self.is_alive(life) {
            return;
        }
        let Some(mut opener) = self.hosts[life.host].opener.take() else { return };
        let done = match opener.step {
            Step::Take => self.take(life, &mut opener),
            Step::Look(copy) => self.look(life, &mut opener, CopyIndex(copy)),
            Step::Judge => self.decide(life, &mut opener),
            Step::Write => self.write_headers(life, &mut opener),
            Step::Complete => return self.complete_opening(life, opener),
        };
        match done {
            Ok(next) => {
                opener.step = next;
                self.hosts[life.host].opener = Some(opener);
                let wait = self.delay(Duration::from_millis(30));
                self.schedule(wait, Event::Open { life });
            }
            Err(Again(reason)) => {
                self.note(format!("{life:?} cannot open: {reason}"));
                self.open_again(life);
            }
        }
    }

    fn take(&mut self, life: Life, opener: &mut Opener) -> Result<Step, Again> {
        let (mut record, known) =
            self.read_record(life.host).ok_or_else(|| Again("no coordinator".to_owned()))?;
        let epoch = Epoch(record.epoch().0 + 1);
        let nonce = self.rng.next_u64();
        let holder = format!("host {}", life.host);
        remember(&mut record.openings, Opening { epoch, nonce, seconds: 0, holder });
        match self.replace_record(life.host, known, record.clone()) {
            Replaced::Done(revision) => {
                opener.loaded = Loaded::empty(geometry_of(&record));
                (opener.record, opener.revision) = (record, revision);
                self.note(format!("{life:?} opens with {epoch}"));
                Ok(Step::Look(0))
            }
            Replaced::Conflict => Err(Again("somebody else changed the record".to_owned())),
            Replaced::Unknown => Err(Again("the coordinator does not answer".to_owned())),
        }
    }

    fn look(&mut self, life: Life, opener: &mut Opener, copy: CopyIndex) -> Result<Step, Again> {
        let opening = opener.record.openings.last().expect("it was added");
        let grant = Grant { fence: opening.epoch.fence(0), nonce: opening.nonce, connection: 0 };
        let reached = self.reaches(life.host, copy);
        let member = &mut self.members[copy.at()];
        let found = match reached {
            false => Found::Unreachable("no answer".to_owned()),
            true => {
                member.claim(grant).map_err(|_| Again("somebody was later".to_owned()))?;
                member.header().map_or(Found::Blank, Found::Header)
            }
        };
        opener.findings.insert(self.place_of(&mut opener.record, copy), found);
        let next = copy.0 + 1;
        Ok(if copy.at() + 1 < self.members.len() { Step::Look(next) } else { Step::Judge })
    }

    /// The identity that the record expects at a place.
    fn place_of(&self, record: &mut Record, copy: CopyIndex) -> gabion_base::ids::Uuid {
        copies_mut(record)[copy.at()].on.members()[0].uuid
    }

    fn decide(&mut self, life: Life, opener: &mut Opener) -> Result<Step, Again> {
        opener.record.layout = plan(&opener.record, &opener.findings).map_err(|error| {
            if matches!(error, gabion_block::opening::OpeningError::Apart { .. }) {
                self.violated(format!("nobody went apart, and yet: {error}"));
            }
            Again(error.to_string())
        })?;
        let mut area = Vec::new();
        for copy in self.copies() {
            let state = &mut copies_mut(&mut opener.record)[copy.at()].state;
            if !state.is_in_sync() {
                continue;
            }
            area.clear();
            if self.reaches(life.host, copy) {
                let (addr, count) = (BlockAddr(MEMBER_DATA_START), METADATA_BLOCKS as usize);
                let read = DiskRequest::Read { addr, count };
                if let Ok(Some(blocks)) = self.members[copy.at()].perform(&read) {
                    area.extend_from_slice(blocks.bytes());
                }
            }
            match area.len() == METADATA_BLOCKS as usize * BLOCK_SIZE {
                true => drop(opener.loaded.add(MIRROR, &area)),
                false => *state = CopyState::Stale { full: false },
            }
        }
        let copies = copies_mut(&mut opener.record);
        if !copies.iter().any(|copy| copy.state.is_in_sync()) {
            return Err(Again("no bitmap can be read".to_owned()));
        }
        if opener.loaded.is_unclean() && self.sabotage != Sabotage::AllKept {
            keep_one(copies);
        }
        Ok(Step::Write)
    }

    fn write_headers(&mut self, life: Life, opener: &mut Opener) -> Result<Step, Again> {
        for copy in self.copies() {
            if !copies_mut(&mut opener.record)[copy.at()].state.is_in_sync() {
                continue;
            }
            if !self.reaches(life.host, copy) {
                return Err(Again("a copy has gone".to_owned()));
            }
            let fence = opener.record.epoch().fence(0);
            if !self.members[copy.at()].is_held_by(fence) {
                return Err(Again("somebody was later".to_owned()));
            }
            if self.sabotage != Sabotage::UnflushedOpening {
                self.members[copy.at()].flush();
            }
            if !self.write_header(&opener.record, copy) {
                return Err(Again("a header cannot be written".to_owned()));
            }
        }
        Ok(Step::Complete)
    }

    /// Writes the record's openings to the header of a copy.
    pub(super) fn write_header(&mut self, record: &Record, copy: CopyIndex) -> bool {
        let member = &mut self.members[copy.at()];
        let sequence = member.header().map_or(0, |header| header.sequence);
        let header = Header {
            volume: record.uuid,
            member: member.uuid,
            sequence: sequence + 1,
            blocks: super::MEMBER_BLOCKS,
            openings: record.openings.clone(),
        };
        member.write_header(&header).is_ok()
    }

    fn complete_opening(&mut self, life: Life, mut opener: Opener) {
        complete(&mut opener.record);
        let record = opener.record.clone();
        let Replaced::Done(revision) = self.replace_record(life.host, opener.revision, record)
        else {
            self.note(format!("{life:?} does not know whether it has the volume"));
            return self.open_again(life);
        };
        let mut record = opener.record;
        let states: Vec<_> = copies_mut(&mut record).iter().map(|copy| copy.state).collect();
        self.note(format!("{life:?} has opened: {states:?}"));
        let opening = record.openings.last().expect("it was added").clone();
        let grant = Grant { fence: opening.epoch.fence(0), nonce: opening.nonce, connection: 0 };
        let clients = self
            .copies()
            .map(|copy| states[copy.at()].is_in_sync().then(|| self.connect(life, copy, grant)));
        let clients: Vec<_> = clients.collect();
        let mirror = Mirror::new(
            "mirror".into(),
            MIRROR,
            geometry_of(&record),
            &states,
            opener.loaded,
            self.options,
        );
        self.judge.opened(opening.epoch.0);
        self.check_length(mirror.blocks());
        let session = Session::new(life, mirror, clients, (record, revision), self.now);
        self.hosts[life.host].session = Some(session);
        self.answer(life, Input::Tick);
        self.schedule(Duration::ZERO, Event::Work { life });
        if self.rng.chance(1, 4) {
            let soon = Duration::from_millis(100) + self.delay(Duration::from_millis(300));
            self.schedule(soon, Event::Strike);
        }
    }
}
