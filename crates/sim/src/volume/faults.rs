//! What goes wrong, for how long, and what administrators want meanwhile.

use std::time::Duration;

use gabion_block::copies::CopyIndex;
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_block::geometry::METADATA_BLOCKS;
use gabion_block::mirror::{Order, Trust};
use gabion_block::record::{CopyState, Record, Wish};
use gabion_block::wishes;

use super::host::{Life, copies_mut};
use super::member::Image;
use super::{Event, Member, Phase, Sabotage, World};

/// Something that ends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Power(CopyIndex),
    Cut(usize, CopyIndex),
    Slow(CopyIndex),
    CoordinatorCut(usize),
    LosesAnswers,
    /// Some blocks of a copy cannot be read until it is over, or they are written.
    Unreadable(CopyIndex),
    /// The host is down.
    Host(usize),
}

impl World {
    /// The next fault, and the time of the one after it.
    pub(super) fn fail(&mut self) {
        if self.phase != Phase::Breaking {
            return;
        }
        let next = match self.rng.below(4) {
            0 => Duration::from_millis(30),
            _ => Duration::from_millis(1500),
        };
        let next = self.delay(next);
        self.schedule(next, Event::Fault);
        let copy = CopyIndex(self.rng.below(self.members.len() as u64) as u8);
        let host = self.rng.below(2) as usize;
        let short = Duration::from_millis(10) + self.delay(Duration::from_secs(2));
        let long = Duration::from_millis(100) + self.delay(Duration::from_secs(8));
        match self.rng.below(100) {
            0..12 => self.begin(Fault::Power(copy), long),
            12..15 => self.strike(),
            15..27 => self.begin(Fault::Cut(host, copy), short),
            27..33 => self.begin(Fault::Cut(host, copy), long),
            33..39 => self.members[copy.at()].frozen = self.now + long,
            39..44 => self.begin(Fault::Slow(copy), long),
            44..52 => self.begin(Fault::CoordinatorCut(host), long),
            52..56 => self.begin(Fault::LosesAnswers, long),
            56..64 => self.begin(Fault::Host(host), short),
            64..68 => self.take_over(host),
            68..73 => self.members[copy.at()].failing_writes = 1 + self.rng.below(3) as u32,
            73..77 => self.begin(Fault::Unreadable(copy), long),
            77..79 => self.back_up(copy),
            79..82 => self.rot(copy),
            82..87 => self.swap(copy),
            87..90 => self.want_more(),
            _ => self.order_something(copy),
        }
    }

    /// The power of all members goes for a short time.
    pub(super) fn strike(&mut self) {
        if self.phase == Phase::Breaking {
            let short = Duration::from_millis(10) + self.delay(Duration::from_secs(2));
            self.copies().for_each(|copy| self.begin(Fault::Power(copy), short));
        }
    }

    /// The power of the host that has the volume and of all members goes at this moment.
    pub(super) fn cut_all(&mut self) {
        let short = Duration::from_millis(10);
        self.copies().for_each(|copy| self.begin(Fault::Power(copy), short));
        self.crash(0);
    }

    fn begin(&mut self, fault: Fault, duration: Duration) {
        self.note(format!("{fault:?} for {duration:?}"));
        match fault {
            Fault::Power(copy) => {
                let under_way = self.under_way_to(copy);
                let member = &mut self.members[copy.at()];
                member.cut_power(&mut self.rng);
                for request in under_way {
                    if self.rng.chance(1, 2) {
                        member.be_interrupted(&request, &mut self.rng);
                    }
                }
                self.lose_all(copy);
            }
            Fault::Cut(host, copy) => self.cuts[copy.at()][host] = true,
            Fault::Slow(copy) => self.members[copy.at()].latency = Duration::from_millis(400),
            Fault::CoordinatorCut(host) => self.coordinator.cut[host] = true,
            Fault::LosesAnswers => self.coordinator.loses_answers = true,
            Fault::Unreadable(copy) => self.spoil(copy),
            Fault::Host(host) => self.crash(host),
        }
        self.schedule(duration, Event::Undo(fault));
    }

    pub(super) fn undo(&mut self, fault: Fault) {
        match fault {
            Fault::Power(copy) => self.members[copy.at()].powered = true,
            Fault::Cut(host, copy) => self.cuts[copy.at()][host] = false,
            Fault::Slow(copy) => self.members[copy.at()].latency = Duration::from_millis(2),
            Fault::CoordinatorCut(host) => self.coordinator.cut[host] = false,
            Fault::LosesAnswers => self.coordinator.loses_answers = false,
            Fault::Unreadable(copy) if self.phase == Phase::Breaking => {
                self.members[copy.at()].unreadable.clear();
            }
            // A write makes it good, too.
            Fault::Unreadable(_) => {}
            Fault::Host(host) => {
                let is_down =
                    self.hosts.iter().all(|it| it.session.is_none() && it.opener.is_none());
                if self.phase == Phase::Breaking && is_down {
                    self.open(host);
                }
            }
        }
    }

    /// The other host opens the volume; who has it may live on, and may be cut off from anything.
    fn take_over(&mut self, host: usize) {
        let other = 1 - host;
        if self.rng.chance(1, 2) {
            self.begin(Fault::CoordinatorCut(other), Duration::from_secs(4));
        }
        for copy in self.copies() {
            if self.rng.chance(1, 4) {
                let who = if self.rng.chance(1, 2) { host } else { other };
                self.begin(Fault::Cut(who, copy), Duration::from_secs(3));
            }
        }
        self.open(host);
    }

    /// Some blocks go bad, whether the copy is the last one or not.
    fn spoil(&mut self, copy: CopyIndex) {
        for _ in 0..1 + self.rng.below(4) {
            let addr = self.hot[self.rng.below(self.hot.len() as u64) as usize];
            let number = addr + METADATA_BLOCKS + MEMBER_DATA_START;
            self.members[copy.at()].unreadable.insert(number);
        }
    }

    fn back_up(&mut self, copy: CopyIndex) {
        let epoch = self.coordinator.record.epoch();
        self.backups[copy.at()] = Some((epoch, self.members[copy.at()].image()));
    }

    /// Somebody puts an empty disk, or an old state of the disk, at the place of a stale copy.
    fn swap(&mut self, copy: CopyIndex) {
        let told = copies_mut(&mut self.coordinator.record)[copy.at()].clone();
        let is_unused = |session: &super::host::Session| {
            matches!(session.trust(copy), Trust::Stale | Trust::Suspended)
        };
        let late = |event: &Event| matches!(event, Event::LateReplacement { .. });
        let in_use = matches!(told.state, CopyState::InSync | CopyState::Removed)
            || !self.hosts.iter().flat_map(|host| &host.session).all(is_unused)
            || self.hosts.iter().any(|host| host.opener.is_some())
            || self.queue.values().any(late);
        if in_use {
            return;
        }
        let backup = self.backups[copy.at()].take();
        let image = match backup {
            // A state of the opening in which the copy was last used cannot be told from the disk.
            Some((epoch, image)) if epoch < told.since => image,
            _ => Image::new(),
        };
        self.note(format!("{copy} is swapped, {} blocks", image.len()));
        let member = &mut self.members[copy.at()];
        member.boot += 1;
        member.restore(image);
        self.lose_all(copy);
    }

    /// Whoever has the volume, as far as is known.
    pub(super) fn owner(&self) -> Option<Life> {
        let epoch = self.coordinator.record.epoch().0;
        let sessions = self.hosts.iter().flat_map(|host| &host.session);
        sessions.filter(|it| it.epoch == epoch && !it.fenced).map(|it| it.life).next()
    }

    fn order_something(&mut self, copy: CopyIndex) {
        let Some(owner) = self.owner() else { return };
        let order = match self.rng.below(10) {
            0 | 1 => Order::Suspend(copy),
            2..=4 => Order::Resume(copy),
            5 if self.is_replaced(copy) => return,
            5 => Order::TakeOut(copy),
            6 => return self.put_in(owner, copy, None),
            7 | 8 => return self.replace(owner, copy),
            _ => Order::Compare,
        };
        self.order(owner, order);
    }

    fn is_replaced(&mut self, copy: CopyIndex) -> bool {
        let told = &copies_mut(&mut self.coordinator.record)[copy.at()];
        matches!(told.wish, Wish::Replace { .. })
    }

    /// A new disk, at a place that is free, is to take over from `old`.
    fn replace(&mut self, owner: Life, old: CopyIndex) {
        let copies = copies_mut(&mut self.coordinator.record);
        let free = copies.iter().position(|copy| copy.state == CopyState::Removed);
        if let (Some(free), false) = (free, copies[old.at()].state == CopyState::Removed) {
            self.note(format!("copy {free} is to replace {old}"));
            self.put_in(owner, CopyIndex(free as u8), Some(old));
        }
    }

    /// What follows from what is wanted in the record, and can be done now.
    pub(super) fn replacements(&mut self, life: Life) -> Vec<Order> {
        let early = self.sabotage == Sabotage::EarlyReplacement;
        let Some(session) = self.session(life) else { return Vec::new() };
        let trust: Vec<_> = session.mirror.copies().iter().map(|copy| copy.trust).collect();
        let mut record = session.record.clone();
        let copies = copies_mut(&mut record);
        let is_replaced = |copy: CopyIndex| {
            let told = &copies[copy.at()];
            let is_there = trust[copy.at()] != Trust::Removed;
            matches!(told.wish, Wish::Replace { .. }) && is_there
        };
        if early {
            let all = (0..copies.len() as u8).map(CopyIndex);
            return all.filter(|copy| is_replaced(*copy)).map(Order::TakeOut).collect();
        }
        let mut orders = wishes::orders(copies, &trust);
        orders.retain(|order| matches!(order, Order::TakeOut(copy) if is_replaced(*copy)));
        orders
    }

    /// Puts a new disk at the place of a copy that was taken out, for `old` if it replaces one.
    pub(super) fn put_in(&mut self, owner: Life, copy: CopyIndex, old: Option<CopyIndex>) {
        let told = copies_mut(&mut self.coordinator.record)[copy.at()].clone();
        let trust = self.session(owner).map(|session| session.trust(copy));
        if told.state != CopyState::Removed || trust != Some(Trust::Removed) {
            return;
        }
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        let uuid = gabion_base::ids::Uuid(bytes);
        let mut member = Member::new(uuid, self.members[copy.at()].boot + 1);
        member.ignores_flushes = self.members[copy.at()].ignores_flushes;
        member.ignores_fences = self.members[copy.at()].ignores_fences;
        member.forgets_zeros = self.members[copy.at()].forgets_zeros;
        member.discards_more = self.members[copy.at()].discards_more;
        member.invents_zeros = self.members[copy.at()].invents_zeros;
        member.tears_what_is_durable = self.members[copy.at()].tears_what_is_durable;
        self.members[copy.at()] = member;
        self.backups[copy.at()] = None;
        self.lose_all(copy);
        let change = |record: &mut Record, _| {
            let copies = copies_mut(record);
            (copies[copy.at()].on, copies[copy.at()].wish) = (super::place(uuid), Wish::Use);
            if let Some(old) = old {
                copies[old.at()].wish = Wish::Replace { by: uuid };
            }
        };
        let changed = self.change_record(owner, change);
        if changed.is_some_and(|it| matches!(it, gabion_block::mirror::Input::Recorded)) {
            self.order(owner, Order::PutIn(copy));
        }
    }
}
