//! The volume becomes longer while it is used and all else fails: its members do, or a mirror is
//! put behind its end. What administrators do for that is tried again until it is in the record;
//! the rest is up to whoever has the volume.
//!
//! Behind the old ends of members there is rubbish, which nobody must ever read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_base::ids::Uuid;
use gabion_block::growth::{self, Lengths};
use gabion_block::record::{Layout, Record};
use gabion_volume::create::{Content, Occupied, prepare_part};
use gabion_volume::layout;
use gabion_volume::register::{RegisterError, change};

use super::super::growth::rubbish;
use super::faults::Director;
use super::places::{number_of, places};
use super::{LAYOUTS, SLOT_BLOCKS, SPARES, VOLUME, record};

/// What members become longer by, and the places that are used then.
const MORE_BLOCKS: u64 = 700;
const MORE_SLOTS: u64 = 3;
/// How often an administrator tries again.
const AGAIN: Duration = Duration::from_secs(2);

/// How a trial's volume becomes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// All members do, and what is made of them.
    Members,
    /// A mirror of two spare members is put behind the end.
    Part,
}

/// What an administrator is at.
pub(super) struct Growing {
    how: Growth,
    next: Duration,
    /// What is put behind the end, once it is fit for that.
    part: Option<Layout>,
    is_wanted: bool,
}

impl Director {
    /// When the volume begins to become longer, in half of all trials: with the seed, so that few
    /// of them meet both ways, and many of them each with each layout.
    pub(super) fn plan_growth(&mut self, seed: u64, before: Duration) {
        let how = [Some(Growth::Members), None, Some(Growth::Part), None];
        let how = how[((seed + seed / LAYOUTS.len() as u64) % 4) as usize];
        let now = self.world.baton.now();
        let then = now + Duration::from_micros(self.rng.below((before - now).as_micros() as u64));
        self.world.is_to_grow.store(how.is_some(), Ordering::Relaxed);
        self.plan = how.map(|how| (then, how));
    }

    /// The volume is to become longer, if it is time, and all disks are where they belong.
    pub(super) fn begin_to_grow(&mut self, now: Duration) {
        if self.exchanged.is_some() || self.away.is_some() {
            return;
        }
        let Some((_, how)) = self.plan.take_if(|(then, _)| *then <= now) else { return };
        self.world.baton.note(|| format!("growth begins: {how:?}"));
        if how == Growth::Members {
            self.lengthen_members();
        }
        let next = self.world.baton.now();
        self.growing = Some(Growing { how, next, part: None, is_wanted: false });
    }

    /// Does what is left for the administrator, if it is time.
    pub(super) fn go_on_growing(&mut self) {
        let now = self.world.baton.now();
        let Some(mut growing) = self.growing.take() else { return };
        if !growing.is_wanted && growing.next <= now {
            growing.next = now + AGAIN;
            growing.is_wanted = match growing.how {
                Growth::Members => self.measure(),
                Growth::Part => self.append(&mut growing.part),
            };
            if growing.is_wanted {
                self.world.is_to_grow.store(false, Ordering::Relaxed);
                self.world.baton.note(|| "the record has what is wanted".to_owned());
            }
        }
        self.growing = Some(growing);
    }

    fn lengthen_members(&mut self) {
        let Some(Record { layout, .. }) = record(&self.world.coordinator) else { return };
        let mut lengths = Lengths::new();
        for member in layout.members() {
            lengths.insert(member.uuid, member.blocks + MORE_BLOCKS);
        }
        let mut longer = layout.clone();
        growth::lengthen(&mut longer, &lengths);
        let (old, new) = (layout.blocks().unwrap_or_default(), growth::reach(&longer));
        for member in 0..self.members as usize {
            self.world.ether.member(member, |it, _| it.blocks += MORE_BLOCKS);
        }
        let slots = self.choose_more_slots(old, new.unwrap_or_default());
        for addr in slots.iter().flat_map(|slot| *slot..*slot + SLOT_BLOCKS) {
            for place in places(&longer, addr) {
                self.world.ether.member(place.member, |it, _| {
                    if !place.is_before(it.blocks - MORE_BLOCKS) {
                        place.put(it, rubbish());
                    }
                });
            }
        }
    }

    /// Places between the old end and the new one, one of which lies before all others.
    fn choose_more_slots(&mut self, old: u64, new: u64) -> Vec<u64> {
        assert!(new >= old + MORE_SLOTS * SLOT_BLOCKS, "from {old} to {new}");
        let step = (new - old) / MORE_SLOTS;
        let mut slots = vec![old];
        for number in 1..MORE_SLOTS {
            slots.push(old + number * step + self.rng.below(step - SLOT_BLOCKS + 1));
        }
        self.world.more_slots.set(slots.clone()).expect("it grows once");
        slots
    }

    /// `gabion volume grow`: measures the members that answer. Says whether that was all of them.
    fn measure(&self) -> bool {
        let Some(known) = record(&self.world.coordinator) else { return false };
        let (now, mut lengths) = (self.world.baton.now(), Lengths::new());
        let mut is_all = true;
        for member in known.layout.members() {
            let answer = |uuid: Uuid| {
                self.world.ether.member(number_of(&member.url), |it, _| {
                    it.answers(now).then_some((uuid, it.blocks))
                })
            };
            match answer(member.uuid) {
                Some((uuid, blocks)) => drop(lengths.insert(uuid, blocks)),
                None => is_all = false,
            }
        }
        let changed = change::<_, RegisterError>(&self.world.coordinator, VOLUME, |record| {
            growth::lengthen(&mut record.layout, &lengths);
            Ok(())
        });
        changed.is_ok() && is_all
    }

    /// `gabion volume grow` with a part. Says whether the record wants it.
    fn append(&mut self, part: &mut Option<Layout>) -> bool {
        let Some(known) = record(&self.world.coordinator) else { return false };
        if part.is_none() {
            let Some(surroundings) = self.administrator() else { return false };
            let spare = |number: u64| char::from(b'a' + (self.members + number) as u8);
            let text = format!("mirror({},{})", spare(0), spare(1));
            let layout = layout::parse(&text).expect("a layout");
            let (content, occupied) = (Content::Equal, Occupied::Overwrite);
            *part = prepare_part(&known, layout, content, occupied, &surroundings).ok();
        }
        let Some(part) = part else { return false };
        let changed = change::<_, RegisterError>(&self.world.coordinator, VOLUME, |record| {
            record.append = Some(part.clone());
            Ok(())
        });
        let (old, more) = (known.layout.blocks(), part.blocks());
        if changed.is_ok() && self.world.more_slots.get().is_none() {
            let old = old.unwrap_or_default();
            self.choose_more_slots(old, old + more.unwrap_or_default());
            self.members += SPARES as u64;
        }
        changed.is_ok()
    }
}
