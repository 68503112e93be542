//! After the faults: progress, and whether the copies are what they should be.

use std::time::Duration;

use gabion_base::disk::Durability;
use gabion_block::copies::CopyIndex;
use gabion_block::format::bitmap::PageIdentity;
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_block::geometry::{METADATA_BLOCKS, SLOTS};
use gabion_block::mirror::{Order, Trust};

use super::growth::{geometry_of, lengths};
use super::host::Life;
use super::judge::{Seen, seen};
use super::{Event, HEALING_MAX, MIRROR, Phase, World};

/// How often somebody looks.
const LOOK: Duration = Duration::from_millis(200);

impl World {
    /// All that was broken is repaired, and one host has the volume.
    pub(super) fn heal(&mut self) {
        self.note("everything is healed".to_owned());
        // What cannot be read is either readable again, or somebody writes it.
        let is_readable = self.rng.chance(1, 2);
        self.phase = Phase::Healing { since: self.now };
        self.coordinator.cut = [false; 2];
        self.coordinator.loses_answers = false;
        for copy in self.copies() {
            self.cuts[copy.at()] = [false; 2];
            let member = &mut self.members[copy.at()];
            member.powered = true;
            member.frozen = self.now;
            member.latency = Duration::from_millis(2);
            member.failing_writes = 0;
            if is_readable {
                member.unreadable.clear();
            }
        }
        let owner = self.owner();
        for host in 0..2 {
            if owner.is_none_or(|owner| owner.host != host) {
                self.crash(host);
            }
        }
        if owner.is_none() {
            self.open(0);
        }
        self.schedule(LOOK, Event::Check);
    }

    /// Looks whether the next part of the end can begin.
    pub(super) fn check(&mut self) {
        self.schedule(LOOK, Event::Check);
        let Some(owner) = self.owner() else {
            // Somebody else's change may have come in between.
            if self.hosts.iter().all(|host| host.opener.is_none()) {
                self.open(0);
            }
            return self.check_time();
        };
        match self.phase {
            Phase::Healing { .. } => {
                self.check_time();
                if self.all_in_sync(owner) {
                    self.phase = Phase::Reading;
                    let copy = self.rng.below(self.members.len() as u64) as u8;
                    self.rot(CopyIndex(copy));
                    self.read_all(owner);
                }
            }
            Phase::Reading => {
                let Some(session) = self.session(owner) else { return };
                if session.asks() == 0 {
                    session.mirror.settle_soon();
                    self.phase = Phase::Settling;
                    self.answer(owner, gabion_block::mirror::Input::Tick);
                }
            }
            Phase::Settling => {
                let copies = self.copies();
                let Some(session) = self.session(owner) else { return };
                if copies.map(|copy| session.trust(copy)).any(|trust| trust != Trust::InSync) {
                    // It did not answer for too long, which began before it was healed.
                    self.phase = Phase::Healing { since: self.now };
                } else if session.mirror.is_settled() {
                    self.phase = Phase::Over;
                    self.compare_copies();
                }
            }
            Phase::Breaking | Phase::Over => {}
        }
    }

    fn check_time(&mut self) {
        if let Phase::Healing { since } = self.phase
            && self.now - since > HEALING_MAX
        {
            let states = self
                .owner()
                .and_then(|owner| self.session(owner).map(|session| session.mirror.copies()));
            self.violated(format!("{HEALING_MAX:?} after all was healed: {states:?}"));
        }
    }

    fn all_in_sync(&mut self, owner: Life) -> bool {
        let mut all = true;
        for copy in self.copies() {
            let Some(session) = self.session(owner) else { return false };
            match session.trust(copy) {
                Trust::InSync => continue,
                Trust::Suspended => self.order(owner, Order::Resume(copy)),
                Trust::Removed => self.put_in(owner, copy, None),
                // It may have been told to leave after it has failed.
                _ => self.resume_quietly(owner, copy),
            }
            all = false;
        }
        all &= self.replacements(owner).is_empty() && self.is_grown(owner);
        // Nobody who looks at all copies would find out that such a block has rotted, too.
        all &= !self.write_what_is_unreadable(owner);
        // A request that does not end keeps the trial from ending, too; one is always tried.
        self.work(owner);
        all
    }

    /// Writes a block that some copy cannot read, as an administrator would who was told. Whether
    /// there is one.
    fn write_what_is_unreadable(&mut self, owner: Life) -> bool {
        let bad = self.members.iter().find_map(|member| member.unreadable.first().copied());
        if let Some(number) = bad {
            self.write(owner, number - METADATA_BLOCKS - MEMBER_DATA_START, 1, Durability::Cached);
        }
        bad.is_some()
    }

    fn resume_quietly(&mut self, owner: Life, copy: CopyIndex) {
        self.answer(owner, gabion_block::mirror::Input::Order(Order::Resume(copy)));
    }

    fn compare_copies(&mut self) {
        let first = self.members[0].image();
        let end = lengths(&self.coordinator.record).0 + MEMBER_DATA_START;
        for copy in self.copies() {
            self.check_bitmaps(copy);
            let image = self.members[copy.at()].image();
            let begin = METADATA_BLOCKS + MEMBER_DATA_START;
            let numbers = first.keys().chain(image.keys());
            let numbers = numbers.filter(|number| (begin..end).contains(*number));
            let stamp = |image: &super::Image, number: u64| {
                let addr = number - begin;
                image.get(&number).map_or(Seen::Whole(0), |it| seen(addr, it.bytes()))
            };
            let mut kept =
                numbers.copied().filter(|number| !self.judge.is_discarded(number - begin));
            let differs = kept.find(|it| stamp(&first, *it) != stamp(&image, *it));
            if let Some(number) = differs {
                let addr = number - begin;
                let (a, b) = (stamp(&first, number), stamp(&image, number));
                self.violated(format!("{copy} has {b:?} at block {addr}, and copy 0 {a:?}"));
            }
        }
    }

    fn check_bitmaps(&mut self, copy: CopyIndex) {
        let geometry = geometry_of(&self.coordinator.record);
        let pages = geometry.pages();
        for index in 0..SLOTS * pages {
            let identity = PageIdentity {
                mirror: MIRROR,
                slot: (index / pages) as u16,
                page: (index % pages) as u32,
                region_blocks: geometry.region_blocks(),
            };
            let block = self.members[copy.at()].block(index as u64);
            let bits = block.and_then(|block| identity.decode(block.bytes()).ok());
            if bits.is_none_or(|bits| bits.iter().any(|word| *word != 0)) {
                self.violated(format!("the bitmap {index} of {copy} is not clean"));
            }
        }
    }
}
