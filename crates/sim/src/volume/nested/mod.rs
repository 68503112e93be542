//! A world for volumes of mirrors, stripes and lines within each other.
//!
//! ```text
//!   host 0 ── users ── Volume: mirrors over mirrors, with all their threads
//!   host 1 ──────┘        │ lines, cut and lost ──► members a .. f: disks with caches
//!      └───────────────── record, cut off, answers lost ──► MemCoordinator
//! ```
//!
//! Other than in the world beside it, everything above the members is the product's own:
//! [`gabion_volume::volume::Volume`] opens, keeps the record, attaches copies and watches, on its
//! own threads, which run one at a time ([`crate::cluster::baton`]). What carries requests is
//! `line`, as `gabion_nbd` cannot do without sockets.
//!
//! 1. A volume of a layout by seed is opened and used by several users: writes, with FUA or not,
//!    zeros, reads, flushes.
//! 2. Meanwhile things fail (`faults`): the power of members, in the middle of blocks, too, of one
//!    or of all; the network; disks, some blocks of which cannot be read for a while; hosts, which
//!    open the volume again or take it from each other; the coordinator. Blocks rot (`rot`); disks
//!    change places, and others come where they do not belong (`media`); the volume becomes longer
//!    (`growing`).
//! 3. Everything is healed, and progress is demanded: within [`HEALING_MAX`] all copies of all
//!    mirrors are in sync, and the volume is as long as it is to be.
//! 4. One more block rots. Users look at what may have rotted, all blocks are read, the volume
//!    compares its copies and is closed, and the other host, which opens it then, has nothing to
//!    catch up and reads the same.
//!
//! Not here: replacing copies, and discards.

mod ether;
mod faults;
mod growing;
mod host;
mod line;
mod media;
mod places;
mod rot;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use gabion_base::event::{Event, Sink};
use gabion_base::ids::Uuid;
use gabion_base::rng::Rng;
use gabion_block::mirror::Options;
use gabion_block::record::Record;
use gabion_coordinator::MemCoordinator;
use gabion_volume::surroundings::Surroundings;

use self::ether::{COURIER, Ether};
use self::faults::Director;
use self::line::Wire;
use super::judge::Judge;
use super::member::Member;
use super::{Failure, HEALING_MAX, Sabotage, Summary};
use crate::cluster::baton::Baton;

/// Hosts that open the volume, one after the other or against each other.
const HOSTS: usize = 2;
/// The machine that all else is on.
const WORLD: usize = 0;
/// The volume's name.
const VOLUME: &str = "tank";
/// What is tried. Letters are members.
const LAYOUTS: &[&str] = &[
    "mirror(a,b)",
    "stripe(mirror(a,b),mirror(c,d))",
    "mirror(linear(a,b),stripe(c,d))",
    "mirror(mirror(a,b),c)",
    "mirror(mirror(a,b),mirror(c,d))",
    "linear(mirror(a,b),mirror(c,d,e))",
    "mirror(stripe(mirror(a,b),c),linear(d,mirror(e,f)))",
    "stripe(mirror(a,linear(b,c)),mirror(d,e))",
];
/// The length of a member: two regions behind the bitmaps of two mirrors, as to compare them costs
/// most of a trial's time.
const MEMBER_BLOCKS: u64 = 2600;
/// Members that are in no layout at first, and how long they are.
const SPARES: usize = 2;
const SPARE_BLOCKS: u64 = 1000;
/// Blocks that users write, side by side, so that none crosses into another's.
const SLOT_BLOCKS: u64 = 4;
/// How many of these there are.
const SLOTS: u64 = 12;

/// How far a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Things fail.
    Breaking,
    /// Nothing fails any more: whoever has the volume sees to it that all copies are in sync.
    Healing,
    /// Somebody has looked at everything and has closed the volume.
    Closed,
}

/// What everybody knows.
struct World {
    baton: Arc<Baton>,
    ether: Ether,
    judge: Mutex<Judge>,
    /// Whom the director asks.
    coordinator: MemCoordinator,
    options: Options,
    /// The first blocks of the slots.
    slots: OnceLock<Vec<u64>>,
    /// Those that come when the volume becomes longer.
    more_slots: OnceLock<Vec<u64>>,
    /// Blocks that have rotted on some member.
    rotten: Mutex<BTreeSet<u64>>,
    /// Whether somebody is about to have it longer.
    is_to_grow: AtomicBool,
    /// How long it was when it was used last.
    longest: AtomicU64,
    phase: Mutex<Phase>,
    /// Lives of hosts, counted; 0 for one that is down.
    alive: [AtomicU64; HOSTS],
    /// The epoch of a host's session, while it has one that was not fenced.
    has_volume: [AtomicU64; HOSTS],
    stamps: AtomicU64,
    connections: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// The other host has seen what was closed.
    is_over: AtomicBool,
}

impl World {
    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rotten(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.rotten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots by their numbers, also those that the volume is not long enough for.
    fn all_slots(&self) -> Vec<u64> {
        let lists = [self.slots.get(), self.more_slots.get()];
        lists.into_iter().flatten().flatten().copied().collect()
    }

    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn is_alive(&self, host: usize, life: u64) -> bool {
        self.alive[host].load(Ordering::Relaxed) == life
    }

    fn next_connection(&self) -> u64 {
        // Those that follow when one is lost are counted from there.
        self.connections.fetch_add(1 << 20, Ordering::Relaxed)
    }

    fn sleep_up_to(&self, most: Duration) {
        let micros = self.baton.draw(most.as_micros() as u64 + 1);
        self.baton.sleep(Duration::from_micros(micros));
    }

    fn judged(&self, verdict: Result<(), String>) {
        if let Err(reason) = verdict {
            self.baton.fail(&reason);
        }
    }

    fn surroundings(
        self: &Arc<Self>,
        host: usize,
        life: u64,
        coordinator: Arc<MemCoordinator>,
    ) -> Surroundings {
        let sabotage = self.ether.sabotage();
        Surroundings {
            connector: Arc::new(Wire { world: Arc::clone(self), host, life, sabotage }),
            coordinator,
            sink: Arc::new(Notes { baton: Arc::clone(&self.baton), host }),
            holder: format!("host {host}, life {life}"),
            random: || Baton::own().draw(u64::MAX),
            options: self.options,
        }
    }
}

/// Writes events down.
struct Notes {
    baton: Arc<Baton>,
    host: usize,
}

impl Sink for Notes {
    fn publish(&self, event: Event) {
        self.baton.note(|| format!("host {}: {event:?}", self.host));
    }
}

/// Runs the trial of `seed`, with a layout by seed.
pub fn run(seed: u64, sabotage: Sabotage) -> Result<Summary, Failure> {
    let layout = LAYOUTS[(seed % LAYOUTS.len() as u64) as usize];
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let ending = Baton::run(seed, move |baton| {
        let world = Arc::new(made(&baton, seed, layout, sabotage));
        *keep.lock().expect("nobody panics here") = Some(Arc::clone(&world));
        let courier = Arc::clone(&world);
        baton.spawn(WORLD, "courier", move || carry(&courier));
        baton.note(|| format!("the layout is {layout}"));
        Director::new(world, seed).direct(layout);
    });
    if let Some(violation) = ending.failure {
        return Err(Failure { seed, violation, log: ending.log });
    }
    let world = kept.lock().expect("nobody panics here").take().expect("the director has begun");
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    Ok(Summary {
        succeeded: count(&world.succeeded),
        failed: count(&world.failed),
        events: ending.steps,
        was_cut: false,
        epoch: record(&world.coordinator).map_or(0, |record| record.epoch().0),
        digest: ending.digest,
    })
}

fn made(baton: &Arc<Baton>, seed: u64, layout: &str, sabotage: Sabotage) -> World {
    let mut rng = Rng::new(seed);
    let count = layout.bytes().filter(|byte| (b'a'..=b'f').contains(byte));
    let names = count.collect::<BTreeSet<_>>();
    let is_member =
        |name: &u8| layout.split(['(', ')', ',']).any(|part| part.as_bytes() == [*name]);
    let in_use = names.iter().filter(|name| is_member(name)).count();
    let members = (0..in_use + SPARES).map(|number| {
        let mut member = Member::new(Uuid([b'a' + number as u8; 16]), 0);
        member.blocks = if number < in_use { MEMBER_BLOCKS } else { SPARE_BLOCKS };
        super::break_member(&mut member, sabotage);
        member
    });
    let options = Options {
        deadline: Duration::from_secs(8),
        settle: Duration::from_millis(500 + rng.below(1500)),
        copy_patience: Duration::from_secs(3),
        busy_blocks_per_second: 4000 + rng.below(10_000),
    };
    let members = members.collect();
    let lease = Duration::from_millis(500 + rng.below(2500));
    World {
        baton: Arc::clone(baton),
        ether: Ether::new(seed, members, sabotage),
        judge: Mutex::default(),
        coordinator: MemCoordinator::with_lease(lease),
        options,
        slots: OnceLock::new(),
        more_slots: OnceLock::new(),
        rotten: Mutex::default(),
        is_to_grow: AtomicBool::new(false),
        longest: AtomicU64::new(0),
        phase: Mutex::new(Phase::Breaking),
        alive: Default::default(),
        has_volume: Default::default(),
        stamps: AtomicU64::new(0),
        connections: AtomicU64::new(1),
        succeeded: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    }
}

/// Brings what is on its way, for ever.
fn carry(world: &World) {
    loop {
        let (wait, woken) = world.ether.bring(world.baton.now());
        woken.into_iter().for_each(|line| world.baton.wake(COURIER + 1 + line));
        world.baton.wait(COURIER, wait);
    }
}

/// The volume's record, as it is kept.
fn record(coordinator: &MemCoordinator) -> Option<Record> {
    use gabion_block::coordinator::Coordinator;
    let stored = coordinator.read(VOLUME).ok().flatten()?;
    Record::decode(&stored.text).ok()
}
