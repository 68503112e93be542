//! What goes wrong, for how long, and what is demanded at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_base::rng::Rng;
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_coordinator::{MemCoordinator, Reach};
use gabion_volume::create::{Content, Occupied, create};
use gabion_volume::layout;
use gabion_volume::surroundings::Surroundings;

use super::growing::{Growing, Growth};
use super::host::Host;
use super::media::Stranger;
use super::{HEALING_MAX, HOSTS, Phase, SLOT_BLOCKS, SLOTS, VOLUME, World, record};

/// How often the director looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long reading, comparing and closing may take.
const CLOSING_MAX: Duration = Duration::from_secs(60);
/// Blocks that rot in a trial, at most.
const ROTTEN_MAX: usize = 4;

/// Something that ends again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Power(usize),
    Cut(usize, usize),
    Slow(usize),
    /// Some blocks of a member cannot be read.
    Unreadable(usize),
    Coordinator(usize, Reach),
    /// The host is down.
    Host(usize),
    /// Two disks have changed places.
    Exchanged,
    /// A disk of another volume is at the place of a member.
    Stranger,
}

/// Who breaks everything, and heals it.
pub(super) struct Director {
    pub(super) world: Arc<World>,
    pub(super) rng: Rng,
    seed: u64,
    /// Members that are in use.
    pub(super) members: u64,
    /// When and how the volume is to begin to become longer.
    pub(super) plan: Option<(Duration, Growth)>,
    pub(super) growing: Option<Growing>,
    pub(super) exchanged: Option<(usize, usize)>,
    pub(super) away: Option<Stranger>,
    /// What ends when.
    under_way: Vec<(Duration, Fault)>,
    /// How the present lives of hosts reach the coordinator.
    peers: [Option<Arc<MemCoordinator>>; HOSTS],
    lives: u64,
}

impl Director {
    pub(super) fn new(world: Arc<World>, seed: u64) -> Self {
        Self {
            world,
            rng: Rng::new(seed ^ 0xd17e_0000),
            seed,
            members: 0,
            plan: None,
            growing: None,
            exchanged: None,
            away: None,
            under_way: Vec::new(),
            peers: [None, None],
            lives: 0,
        }
    }

    /// The whole trial.
    pub(super) fn direct(mut self, layout: &str) {
        self.make(layout);
        self.start(0);
        let end = self.now() + Duration::from_secs(5) + self.delay(Duration::from_secs(20));
        let mut next = self.now() + Duration::from_secs(1);
        self.plan_growth(self.seed, end);
        while self.now() < end && !self.world.baton.has_failed() {
            self.world.baton.sleep(LOOK);
            self.end_what_is_over();
            self.begin_to_grow(self.now());
            self.go_on_growing();
            while next <= self.now() {
                self.fail();
                let most = [30, 1500, 1500, 1500][self.rng.below(4) as usize];
                next += self.delay(Duration::from_millis(most)) + Duration::from_micros(1);
            }
        }
        self.heal();
        self.until(HEALING_MAX + CLOSING_MAX, |world| world.phase() == Phase::Closed);
        let reader = 1 - self.peers.iter().position(Option::is_some).unwrap_or(0);
        let host = self.life(reader);
        self.world.baton.spawn(1 + reader, "checker", move || host.check());
        let is_over = |world: &World| world.is_over.load(Ordering::Relaxed);
        self.until(HEALING_MAX, is_over);
    }

    fn make(&mut self, text: &str) {
        let world = Arc::clone(&self.world);
        let host = self.life(0);
        let (made, blocks) = match layout::parse(text) {
            Ok(layout) => {
                let (content, occupied) = (Content::Equal, Occupied::Refuse);
                let record = create(VOLUME, layout, content, occupied, &host.surroundings);
                let record = record.expect("all members are there");
                self.members = record.layout.members().len() as u64;
                (true, record.layout.blocks().unwrap_or_default())
            }
            Err(_) => (false, 0),
        };
        assert!(made && blocks > 4 * SLOTS * SLOT_BLOCKS, "{text} has {blocks} blocks");
        // Slots lie across the ends of turns of stripes, and across the middle of the volume.
        let mut slots: Vec<u64> = vec![blocks / 2 / SLOT_BLOCKS];
        while (slots.len() as u64) < SLOTS {
            let number = 1 + self.rng.below(blocks / SLOT_BLOCKS - 2);
            let number = if self.rng.chance(1, 3) { number.next_multiple_of(16) } else { number };
            if !slots.contains(&number) && number < blocks / SLOT_BLOCKS - 1 {
                slots.push(number);
            }
        }
        let slots = slots.into_iter().map(|number| number * SLOT_BLOCKS - SLOT_BLOCKS / 2);
        world.slots.set(slots.collect()).expect("they are chosen once");
    }

    fn now(&self) -> Duration {
        self.world.baton.now()
    }

    fn delay(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.rng.below(most.as_micros() as u64 + 1))
    }

    fn until(&mut self, patience: Duration, is_so: impl Fn(&World) -> bool) {
        let since = self.now();
        while !is_so(&self.world) && !self.world.baton.has_failed() {
            self.world.baton.sleep(LOOK);
            self.go_on_growing();
            if self.now() - since > patience {
                let layout = record(&self.world.coordinator).map(|record| record.layout);
                let reason = format!("{patience:?} after all was healed: {layout:?}");
                return self.world.baton.fail(&reason);
            }
        }
    }

    /// What an administrator has who works at a host that is up.
    pub(super) fn administrator(&self) -> Option<Surroundings> {
        let host = self.peers.iter().position(Option::is_some)?;
        let life = self.world.alive[host].load(Ordering::Relaxed);
        Some(self.world.surroundings(host, life, Arc::new(self.world.coordinator.peer())))
    }

    /// A new life of a host.
    fn life(&mut self, host: usize) -> Host {
        self.lives += 1;
        self.world.alive[host].store(self.lives, Ordering::Relaxed);
        let peer = Arc::new(self.world.coordinator.peer());
        self.peers[host] = Some(Arc::clone(&peer));
        let surroundings = self.world.surroundings(host, self.lives, peer);
        Host { world: Arc::clone(&self.world), number: host, surroundings }
    }

    fn start(&mut self, number: usize) {
        self.world.baton.note(|| format!("host {number} starts"));
        let host = self.life(number);
        self.world.baton.spawn(1 + number, "host", move || host.run());
    }

    fn crash(&mut self, host: usize) {
        let Some(peer) = self.peers[host].take() else { return };
        self.world.baton.note(|| format!("host {host} crashes"));
        self.world.alive[host].store(0, Ordering::Relaxed);
        self.world.has_volume[host].store(0, Ordering::Relaxed);
        peer.set_reach(Reach::None);
        self.world.baton.crash(1 + host);
    }

    /// The next fault.
    fn fail(&mut self) {
        let member = self.rng.below(self.members) as usize;
        let host = self.rng.below(HOSTS as u64) as usize;
        let short = Duration::from_millis(10) + self.delay(Duration::from_secs(2));
        let long = Duration::from_millis(100) + self.delay(Duration::from_secs(8));
        match self.rng.below(100) {
            0..17 => self.begin(Fault::Power(member), long),
            17..22 => (0..self.members).for_each(|at| self.begin(Fault::Power(at as usize), short)),
            22..34 => self.begin(Fault::Cut(host, member), short),
            34..41 => self.begin(Fault::Cut(host, member), long),
            41..47 => {
                let until = self.now() + long;
                self.world.ether.member(member, |member, _| member.frozen = until);
            }
            47..51 => self.begin(Fault::Slow(member), long),
            51..55 => self.begin(Fault::Coordinator(host, Reach::None), long),
            55..58 => self.begin(Fault::Coordinator(host, Reach::AnswersLost), short),
            58..63 => self.begin(Fault::Unreadable(member), long),
            63..66 => {
                let count = 1 + self.rng.below(3) as u32;
                self.world.ether.member(member, |member, _| member.failing_writes = count);
            }
            66..75 => self.begin(Fault::Host(host), short),
            75..81 => self.take_over(host),
            81..89 => self.rot(),
            89..93 => {
                let fault = self.exchange(member);
                fault.into_iter().for_each(|fault| self.begin(fault, long));
            }
            93..96 => {
                let fault = self.put_stranger(member);
                fault.into_iter().for_each(|fault| self.begin(fault, long));
            }
            _ => self.renew(member),
        }
    }

    fn begin(&mut self, fault: Fault, time: Duration) {
        self.world.baton.note(|| format!("{fault:?} for {time:?}"));
        let ether = &self.world.ether;
        match fault {
            Fault::Power(member) => ether.cut_power(member),
            Fault::Cut(host, member) => ether.set_cut(host, member, true),
            Fault::Slow(member) => {
                ether.member(member, |it, _| it.latency = Duration::from_millis(400));
            }
            Fault::Unreadable(member) => self.spoil(member),
            Fault::Coordinator(host, reach) => {
                self.peers[host].iter().for_each(|peer| peer.set_reach(reach));
            }
            Fault::Host(host) => self.crash(host),
            Fault::Exchanged | Fault::Stranger => {}
        }
        self.under_way.push((self.now() + time, fault));
    }

    fn end_what_is_over(&mut self) {
        let now = self.now();
        let (over, left) = self.under_way.drain(..).partition(|(then, _)| *then <= now);
        self.under_way = left;
        let over: Vec<(Duration, Fault)> = over;
        for (_, fault) in over {
            self.undo(fault);
        }
    }

    fn undo(&mut self, fault: Fault) {
        let ether = &self.world.ether;
        match fault {
            Fault::Power(member) => ether.member(member, |it, _| it.powered = true),
            Fault::Cut(host, member) => ether.set_cut(host, member, false),
            Fault::Slow(member) => {
                ether.member(member, |it, _| it.latency = Duration::from_millis(2));
            }
            Fault::Unreadable(member) => ether.member(member, |it, _| it.unreadable.clear()),
            Fault::Coordinator(host, _) => {
                self.peers[host].iter().for_each(|peer| peer.set_reach(Reach::Full));
            }
            Fault::Host(host) => {
                if self.peers[host].is_none() && self.peers[1 - host].is_none() {
                    self.start(host);
                }
            }
            Fault::Exchanged => self.exchange_back(),
            Fault::Stranger => self.take_stranger_away(),
        }
    }

    /// The other host opens the volume; who has it lives on, and may be cut off from anything.
    fn take_over(&mut self, host: usize) {
        let other = 1 - host;
        self.crash(host);
        if self.rng.chance(1, 2) {
            self.begin(Fault::Coordinator(other, Reach::None), Duration::from_secs(4));
        }
        for member in 0..self.members as usize {
            if self.rng.chance(1, 4) {
                let who = if self.rng.chance(1, 2) { host } else { other };
                self.begin(Fault::Cut(who, member), Duration::from_secs(3));
            }
        }
        self.world.coordinator.expire_claim(VOLUME);
        self.start(host);
    }

    /// Some blocks that are in use cannot be read any more.
    fn spoil(&mut self, member: usize) {
        let slots = self.world.all_slots();
        for _ in 0..1 + self.rng.below(4) {
            let near = slots[self.rng.below(slots.len() as u64) as usize];
            let number = MEMBER_DATA_START + (near + self.rng.below(600)) % 1500;
            self.world.ether.member(member, |it, _| it.unreadable.insert(number));
        }
    }

    /// A block of a member is not what was written any more.
    fn rot(&mut self) {
        if self.exchanged.is_none() && self.away.is_none() {
            self.world.rot(ROTTEN_MAX, |below| self.rng.below(below));
        }
    }

    /// Nothing fails any more, and one host has the volume.
    fn heal(&mut self) {
        self.world.baton.note(|| "everything is healed".to_owned());
        self.exchange_back();
        self.take_stranger_away();
        self.begin_to_grow(Duration::MAX);
        for member in 0..self.members as usize {
            (0..HOSTS).for_each(|host| self.world.ether.set_cut(host, member, false));
            let now = self.now();
            self.world.ether.member(member, |it, _| {
                it.powered = true;
                it.frozen = now;
                it.latency = Duration::from_millis(2);
                it.failing_writes = 0;
                it.unreadable.clear();
            });
        }
        self.under_way.clear();
        self.peers.iter().flatten().for_each(|peer| peer.set_reach(Reach::Full));
        let epoch = record(&self.world.coordinator).map_or(0, |record| record.epoch().0);
        let has_it = |host: &usize| self.world.has_volume[*host].load(Ordering::Relaxed) == epoch;
        let owner = (0..HOSTS).find(has_it);
        for host in (0..HOSTS).filter(|host| Some(*host) != owner) {
            self.crash(host);
        }
        self.world.set_phase(Phase::Healing);
        if owner.is_none() {
            self.world.coordinator.expire_claim(VOLUME);
            self.start(0);
        }
    }
}
