//! Disks that are not where they belong: two that change places, one of another volume at the place
//! of a member, both for a while; and an empty one at the place of a copy that is stale, for good.
//!
//! Whoever uses the volume must know a disk by what it is, not by where it is: one that does not
//! belong there is not used, and one of another volume is not even touched; an empty one is filled
//! from the beginning.

use gabion_base::ids::Uuid;
use gabion_block::format::header::Header;
use gabion_block::record::{CopyState, Layout};

use super::super::member::{Image, Member};
use super::faults::{Director, Fault};
use super::places::number_of;
use super::record;

/// Another volume's disk at the place of a member.
pub(super) struct Stranger {
    at: usize,
    /// What it held when it came.
    image: Image,
    /// The disk that belongs there.
    home: Member,
}

impl Director {
    /// Two members change places. Not an empty disk: it would become the member at whose place it
    /// then is.
    pub(super) fn exchange(&mut self, one: usize) -> Option<Fault> {
        let other = self.rng.below(self.members) as usize;
        if one == other || self.away.is_some() || self.exchanged.is_some() {
            return None;
        }
        let is_known = |at| self.world.ether.member(at, |it, _| it.header().is_some());
        if !is_known(one) || !is_known(other) {
            return None;
        }
        self.exchanged = Some((one, other));
        self.world.ether.exchange(one, other);
        self.world.baton.note(|| format!("members {one} and {other} change places"));
        Some(Fault::Exchanged)
    }

    pub(super) fn exchange_back(&mut self) {
        if let Some((one, other)) = self.exchanged.take() {
            self.world.ether.exchange(one, other);
        }
    }

    /// A disk of another volume stands at the place of a member.
    pub(super) fn put_stranger(&mut self, at: usize) -> Option<Fault> {
        if self.away.is_some() || self.exchanged.is_some() {
            return None;
        }
        let mut stranger = self.fresh_disk(at);
        let of_another = |byte| Uuid([byte; 16]);
        let header = Header {
            volume: of_another(0xcc),
            member: of_another(0xcd),
            sequence: 1,
            blocks: stranger.blocks,
            openings: Vec::new(),
        };
        stranger.write_header(&header).expect("it works");
        let image = stranger.image();
        let home = self.world.ether.replace(at, stranger);
        self.away = Some(Stranger { at, image, home });
        Some(Fault::Stranger)
    }

    pub(super) fn take_stranger_away(&mut self) {
        let Some(Stranger { at, image, home }) = self.away.take() else { return };
        let stranger = self.world.ether.replace(at, home);
        if !stranger.holds(&image) || stranger.fence() > 0 {
            self.world.baton.fail("a disk of another volume was written to");
        }
    }

    /// An empty disk comes to the place of a member that nothing is read from.
    pub(super) fn renew(&mut self, member: usize) {
        let known = record(&self.world.coordinator);
        let is_stale = known.is_some_and(|it| is_stale(&it.layout, member, false));
        if !is_stale || self.away.is_some() || self.exchanged.is_some() {
            return;
        }
        let fresh = self.fresh_disk(member);
        self.world.baton.note(|| format!("member {member} is renewed"));
        self.world.ether.replace(member, fresh);
        // What it holds behind its first MiB is not zero.
        for slot in self.world.all_slots() {
            for place in self.world.places(slot) {
                if place.member == member {
                    let rubbish = super::super::growth::rubbish();
                    self.world.ether.member(member, |it, _| place.put(it, rubbish));
                }
            }
        }
    }

    /// Another disk, as long as the one at `at`.
    fn fresh_disk(&mut self, at: usize) -> Member {
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        let mut member = Member::new(Uuid(bytes), 0);
        super::super::break_member(&mut member, self.world.ether.sabotage());
        member.blocks = self.world.ether.member(at, |it, _| it.blocks);
        member
    }
}

/// Whether the member belongs to a copy that is stale, or to something within one.
fn is_stale(layout: &Layout, member: usize, within: bool) -> bool {
    match layout {
        Layout::Member(it) => within && number_of(&it.url) == member,
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter().any(|part| is_stale(part, member, within))
        }
        Layout::Mirror { copies, .. } => copies.iter().any(|copy| {
            let stale = matches!(copy.state, CopyState::Stale { .. });
            is_stale(&copy.on, member, within || stale)
        }),
    }
}
