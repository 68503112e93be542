//! How a host connects to a copy that is to be brought up to date.
//!
//! 1. It is fenced with a higher number than whatever this host has sent there before.
//! 2. Its header says whether it is what the record knows. If nothing on it can be used, and the
//!    record does not say so yet, nothing is written: the mirror has the record say it first.
//! 3. It gets the current header, and the record says that it has it. Then the mirror is told.

use std::time::Duration;

use gabion_block::copies::CopyIndex;
use gabion_block::epoch::Epoch;
use gabion_block::mirror::Input;
use gabion_block::opening::{Findings, Found, plan_copy};
use gabion_block::record::Record;

use super::host::{Life, copies_mut};
use super::member::Grant;
use super::{Event, Sabotage, World};

/// An attempt to attach a copy, told from earlier ones by its number.
#[derive(Default)]
pub(super) struct Attaching {
    turn: u64,
    wanted: bool,
}

impl Attaching {
    pub(super) fn begin(&mut self) -> u64 {
        self.turn += 1;
        self.wanted = true;
        self.turn
    }

    pub(super) fn end(&mut self) {
        self.wanted = false;
    }
}

/// Why it has to be tried again.
struct Later;

impl World {
    fn is_wanted(&mut self, life: Life, copy: CopyIndex, turn: u64) -> bool {
        let attaching = self.session(life).map(|session| &session.attaching[copy.at()]);
        attaching.is_some_and(|it| it.wanted && it.turn == turn)
    }

    /// Tries to attach a copy, whose header is written some time later.
    pub(super) fn attach(&mut self, life: Life, copy: CopyIndex, turn: u64) {
        if !self.is_wanted(life, copy, turn) {
            return;
        }
        match self.look_at_copy(life, copy) {
            Ok((grant, full)) => {
                let wait = self.delay(Duration::from_millis(30));
                self.schedule(wait, Event::Attached { life, copy, turn, grant, full });
            }
            Err(Later) => {
                let wait = Duration::from_millis(200) + self.delay(Duration::from_millis(200));
                self.schedule(wait, Event::Attach { life, copy, turn });
            }
        }
    }

    fn look_at_copy(&mut self, life: Life, copy: CopyIndex) -> Result<(Grant, bool), Later> {
        if !self.reaches(life.host, copy) {
            return Err(Later);
        }
        let session = self.session(life).ok_or(Later)?;
        session.attachments += 1;
        let fence = Epoch(session.epoch).fence(session.attachments);
        let (grant, record) =
            (Grant { fence, nonce: session.nonce, connection: 0 }, session.record.clone());
        let member = &mut self.members[copy.at()];
        member.claim(grant).map_err(|_| Later)?;
        let found = member.header().map_or(Found::Blank, Found::Header);
        let told = copies_mut(&mut record.clone())[copy.at()].clone();
        let place = told.on.members()[0].uuid;
        let findings = Findings::from([(place, found)]);
        let known = match plan_copy(&record, &told, &findings) {
            Ok(plan) => plan.is_some(),
            Err(error) => {
                self.violated(format!("{copy} went apart, and yet nobody did: {error}"));
                return Err(Later);
            }
        };
        let full = !known && self.sabotage != Sabotage::TrustedForeign;
        Ok((grant, full || told.state.is_full()))
    }

    /// The second half: the header, the record, and the mirror.
    pub(super) fn attach_now(
        &mut self,
        (life, copy, turn): (Life, CopyIndex, u64),
        grant: Grant,
        full: bool,
    ) {
        if !self.is_wanted(life, copy, turn) {
            return;
        }
        let again = Event::Attach { life, copy, turn };
        let Some(session) = self.session(life) else { return };
        let mut record = session.record.clone();
        let told = copies_mut(&mut record)[copy.at()].clone();
        if !self.reaches(life.host, copy) || !self.members[copy.at()].is_held_by(grant.fence) {
            return self.schedule(Duration::from_millis(200), again);
        }
        if !full || told.state.is_full() {
            let written = self.write_header(&record, copy);
            let change = |record: &mut Record, epoch| copies_mut(record)[copy.at()].since = epoch;
            let recorded = self.change_record(life, change);
            match recorded {
                Some(Input::Recorded) if written => {}
                Some(input @ Input::Fenced { .. }) => return self.answer(life, input),
                _ => return self.schedule(Duration::from_millis(200), again),
            }
        }
        let client = self.connect(life, copy, grant);
        let Some(session) = self.session(life) else { return };
        session.attaching[copy.at()].end();
        session.clients[copy.at()] = Some(client);
        self.answer(life, Input::Attached { copy, full });
    }
}
