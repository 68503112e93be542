//! A world of hosts, members and a coordinator, in which one volume is used and broken.
//!
//! ```text
//!   host 0 ─┬─ clients ── requests, delayed, reordered, lost ──► members 0 .. 4: disks with caches
//!   host 1 ─┘     │                                                 ▲ power, freezes, bad blocks
//!      └──────────┴── record, cut off, answers lost ──► coordinator
//! ```
//!
//! One seed decides everything, and time is a number. A host that has the volume open runs the
//! product's own [`gabion_block::mirror::Mirror`] and opens by the product's own decisions
//! ([`gabion_block::opening`]); what carries requests (`client`) and the order of an opening
//! (`opening`, `attach`) are written down here a second time, as short as they can be.
//!
//! 1. A volume of 2 to 5 copies is opened and used: writes, with FUA or not, zeros, discards,
//!    reads, flushes, repairs.
//! 2. Meanwhile things fail (`faults`): power, in the middle of blocks, too; disks, some blocks of
//!    which rot (`rot`); the network, hosts (also while they open the
//!    volume or bring copies up to date), the coordinator; hosts take the volume from each other;
//!    administrators suspend copies, replace them, take them out and put new ones in, and have the
//!    volume grow (`growth`); disks are swapped.
//! 3. Everything is healed, and progress is demanded: within [`HEALING_MAX`] all copies are in
//!    sync.
//! 4. At the end all blocks are read, the mirror settles, and the copies are compared.
//!
//! Broken on purpose ([`Sabotage`]), each promise is seen to be broken.
//!
//! Not here: more than one mirror, and several members in a copy; these are in [`nested`].

mod attach;
mod client;
mod coordinator;
mod faults;
mod growth;
mod host;
mod judge;
mod member;
pub mod nested;
mod opening;
mod rot;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{DiskRequest, DiskResult};
use gabion_base::ids::Uuid;
use gabion_base::rng::Rng;
use gabion_block::copies::CopyIndex;
use gabion_block::epoch::Epoch;
use gabion_block::geometry::{Geometry, METADATA_BLOCKS};
use gabion_block::mirror::{Input, Options, Sent};
use gabion_block::record::{CopyState, Layout, Member as Place, MirrorCopy, Record, Wish};

use self::client::{ClientId, Letter};
use self::coordinator::Coordinator;
use self::faults::Fault;
use self::host::{Host, Life};
use self::judge::Judge;
use self::member::{Grant, Image, Member};

/// How long healing may take, in the world's time.
pub const HEALING_MAX: Duration = Duration::from_secs(90);
/// Events of one trial, at most: a world that is busy without getting on is stopped.
const EVENTS_MAX: u64 = 400_000;
/// How long a trial lasts in which only the power goes.
const SHORT: Duration = Duration::from_millis(900);
/// Lines that are kept for whoever looks at a failure.
const LOG_MAX: usize = 60;
const MIRROR: Uuid = Uuid([0xaa; 16]);
const VOLUME: Uuid = Uuid([0xbb; 16]);
const MEMBER_BLOCKS: u64 = 1 << 16;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    Nothing,
    /// Members acknowledge flushes and lose what they have on a power cut.
    IgnoredFlushes,
    /// One copy acknowledges some writes that it does not do.
    LostWrites,
    /// Members let everybody write.
    IgnoredFences,
    /// Mirrors are told that the record was changed, and it was not.
    ForgottenRecord,
    /// Clients do not repeat what a member may have lost.
    NoReplay,
    /// Disks that are other disks are attached as if they were known.
    TrustedForeign,
    /// Copies that may differ are all kept at an opening.
    AllKept,
    /// An opening does not flush what it finds.
    UnflushedOpening,
    /// Copies are repaired without looking at them.
    BlindRepairs,
    /// Members that cannot read a block say that it is zero.
    ZerosForUnreadable,
    /// Members acknowledge zeros and do not write them.
    ForgottenZeros,
    /// Members discard more than they are told to.
    WideDiscards,
    /// Copies that are replaced are taken out at once.
    EarlyReplacement,
    /// Requests are not answered.
    LostAnswers,
    /// Copies are never attached.
    NeverAttach,
    /// A power cut tears what was flushed.
    TornFlushed,
    /// Hosts believe what they read, whatever it is.
    BelievedRot,
    /// Hosts do not put copies right that have rotted.
    Unrepaired,
    /// Mirrors that grow find zeros behind their ends, whatever is there.
    RubbishBehindTheEnd,
    /// Mirrors are told that the record has their new length, and it has not.
    ForgottenLength,
    /// Nobody tells mirrors to grow.
    NeverGrown,
}

/// What a trial that found nothing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests that succeeded.
    pub succeeded: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Things that happened.
    pub events: u64,
    /// The epoch at the end.
    pub epoch: u64,
    /// The power of everything has gone, as was asked for.
    pub was_cut: bool,
    /// A sum over all that was noted, to compare two runs.
    pub digest: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What decided everything.
    pub seed: u64,
    /// What is wrong.
    pub violation: String,
    /// What happened last.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// Something that happens at its time.
enum Event {
    Deliver {
        letter: Letter,
        request: DiskRequest,
    },
    Reply {
        client: ClientId,
        grant: Grant,
        cookie: u64,
        result: DiskResult,
    },
    Answer {
        life: Life,
        sent: Sent,
        result: DiskResult,
    },
    Reconnect {
        client: ClientId,
    },
    Tick {
        life: Life,
    },
    Record {
        life: Life,
        states: Vec<CopyState>,
    },
    NotRecorded {
        life: Life,
    },
    LengthNotRecorded {
        life: Life,
    },
    RecordLength {
        life: Life,
        blocks: u64,
    },
    LateReplacement {
        known: u64,
        record: Box<Record>,
    },
    Open {
        life: Life,
    },
    Attach {
        life: Life,
        copy: CopyIndex,
        turn: u64,
    },
    Attached {
        life: Life,
        copy: CopyIndex,
        turn: u64,
        grant: Grant,
        full: bool,
    },
    Repair {
        life: Life,
        copy: CopyIndex,
        addr: u64,
        content: BlockSlice,
    },
    Recover {
        life: Life,
        addr: u64,
    },
    PutRight {
        life: Life,
        copy: CopyIndex,
        addr: u64,
        bad: BlockSlice,
        good: BlockSlice,
    },
    Work {
        life: Life,
    },
    Fault,
    /// The power of all members goes, soon after an opening.
    Strike,
    Undo(Fault),
    Heal,
    Check,
}

/// How far a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Breaking,
    Healing { since: Duration },
    Reading,
    Settling,
    Over,
}

struct World {
    sabotage: Sabotage,
    rng: Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    scheduled: u64,
    phase: Phase,
    options: Options,
    members: Vec<Member>,
    backups: Vec<Option<(Epoch, Image)>>,
    clients: Vec<client::Client>,
    hosts: [Host; 2],
    coordinator: Coordinator,
    /// Which hosts cannot reach which copies.
    cuts: Vec<[bool; 2]>,
    judge: Judge,
    /// Blocks that are used, some of them at a time.
    hot: Vec<u64>,
    /// Blocks that are used once the volume is longer.
    later: Vec<u64>,
    /// Blocks that have rotted on some copy.
    rotten: BTreeSet<u64>,
    /// How long the volume was when it was used last.
    longest: u64,
    stamp: u64,
    summary: Summary,
    log: VecDeque<String>,
    violation: Option<String>,
}

/// Runs the trial of `seed`.
pub fn run(seed: u64, sabotage: Sabotage) -> Result<Summary, Failure> {
    let mut world = World::new(seed, sabotage);
    world.schedule(Duration::from_secs(1), Event::Fault);
    let healing = Duration::from_secs(5 + world.rng.below(20));
    world.schedule(healing, Event::Heal);
    world.run(seed, None)
}

/// Runs a short trial of `seed` in which nothing fails but the power of everything, host and
/// members, after `cut_after` events. Nothing if it has fewer.
pub fn run_until_cut(
    seed: u64,
    cut_after: u64,
    sabotage: Sabotage,
) -> Result<Option<Summary>, Failure> {
    let mut world = World::new(seed, sabotage);
    world.schedule(SHORT, Event::Heal);
    let summary = world.run(seed, Some(cut_after))?;
    Ok(summary.was_cut.then_some(summary))
}

impl World {
    /// Runs to the end; all power goes after so many events, if nothing was healed by then.
    fn run(mut self, seed: u64, cut_after: Option<u64>) -> Result<Summary, Failure> {
        while self.violation.is_none() && self.phase != Phase::Over {
            let Some(((then, _), event)) = self.queue.pop_first() else {
                self.violated("nothing happens any more".to_owned());
                break;
            };
            self.now = then;
            self.summary.events += 1;
            if self.summary.events > EVENTS_MAX {
                self.violated(format!(
                    "{EVENTS_MAX} events, and no end at {then:?}, {:?}",
                    self.phase
                ));
            }
            self.happen(event);
            if cut_after == Some(self.summary.events) && self.phase == Phase::Breaking {
                self.summary.was_cut = true;
                self.cut_all();
            }
        }
        match self.violation {
            None => Ok(Summary { epoch: self.coordinator.record.epoch().0, ..self.summary }),
            Some(violation) => Err(Failure { seed, violation, log: self.log.into() }),
        }
    }

    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = Rng::new(seed);
        let copies = 2 + [0, 0, 0, 1, 1, 1, 2, 3][rng.below(8) as usize];
        let blocks = [300, 2100, 4000][rng.below(3) as usize];
        let geometry = Geometry::of_copies(blocks + METADATA_BLOCKS).expect("some blocks");
        let mut hot: Vec<_> = (0..12).map(|_| rng.below(blocks - 3)).collect();
        hot.sort_unstable();
        let grown = blocks + [1200, 5000][rng.below(2) as usize];
        let mut later: Vec<_> = (0..8).map(|_| blocks + rng.below(grown - blocks - 3)).collect();
        later.sort_unstable();
        let options = Options {
            deadline: Duration::from_secs(8),
            settle: Duration::from_millis(500 + rng.below(1500)),
            copy_patience: Duration::from_secs(3),
            busy_blocks_per_second: 2000 + rng.below(10_000),
        };
        let members: Vec<_> =
            (0..copies).map(|at| Self::member(geometry, at as u8, &later)).collect();
        let record = first_record(&members, blocks + METADATA_BLOCKS);
        let mut world = Self {
            sabotage,
            rng,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            scheduled: 0,
            phase: Phase::Breaking,
            options,
            backups: members.iter().map(|_| None).collect(),
            cuts: vec![[false; 2]; members.len()],
            members,
            clients: Vec::new(),
            hosts: Default::default(),
            coordinator: Coordinator::new(record),
            judge: Judge::default(),
            hot,
            later,
            rotten: BTreeSet::new(),
            longest: blocks,
            stamp: 0,
            summary: Summary::default(),
            log: VecDeque::new(),
            violation: None,
        };
        world.sabotage_members();
        for copy in world.copies() {
            let record = world.coordinator.record.clone();
            world.write_header(&record, copy);
        }
        world.open(0);
        world
    }

    fn sabotage_members(&mut self) {
        for member in &mut self.members {
            // Some disks cannot discard.
            member.keeps_discarded = member.uuid.0[0] % 2 == 0;
            break_member(member, self.sabotage);
        }
    }

    /// A new disk with empty bitmaps, and without a header.
    fn member(geometry: Geometry, number: u8, rubbish: &[u64]) -> Member {
        let mut member = Member::new(Uuid([number + 1; 16]), 0);
        member.format(geometry);
        for addr in rubbish.iter().flat_map(|addr| *addr..addr + 3) {
            member.put(growth::on_disk(addr), growth::rubbish());
        }
        member
    }

    fn copies(&self) -> impl Iterator<Item = CopyIndex> + use<> {
        (0..self.members.len() as u8).map(CopyIndex)
    }

    fn schedule(&mut self, wait: Duration, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now + wait, self.scheduled), event);
    }

    /// Some time, up to `most`.
    fn delay(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.rng.below(most.as_micros() as u64 + 1))
    }

    fn is_cut(&self, host: usize, copy: CopyIndex) -> bool {
        self.cuts[copy.at()][host]
    }

    fn reaches(&self, host: usize, copy: CopyIndex) -> bool {
        !self.is_cut(host, copy) && self.members[copy.at()].answers(self.now)
    }

    fn note(&mut self, text: String) {
        for byte in text.bytes() {
            let digest = self.summary.digest ^ u64::from(byte);
            self.summary.digest = digest.wrapping_mul(0x0100_0000_01b3);
        }
        if self.log.len() >= LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:>9.3} {text}", self.now.as_secs_f64()));
    }

    fn violated(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    fn count(&mut self, succeeded: bool) {
        match succeeded {
            true => self.summary.succeeded += 1,
            false => self.summary.failed += 1,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { letter, request } => self.deliver(letter, request),
            Event::Reply { client, grant, cookie, result } => {
                self.reply(client, grant, cookie, result);
            }
            Event::Answer { life, sent, result } => self.answer(life, Input::Done { sent, result }),
            Event::Reconnect { client } => self.reconnect(client),
            Event::Tick { life } => self.tick(life),
            Event::Record { life, states } => self.tell_record(life, &states),
            Event::NotRecorded { life } => self.answer(life, Input::NotRecorded),
            Event::LengthNotRecorded { life } => self.answer(life, Input::LengthNotRecorded),
            Event::RecordLength { life, blocks } => self.record_length(life, blocks),
            Event::LateReplacement { known, record } => drop(self.replace_now(known, *record)),
            Event::Open { life } => self.go_on_opening(life),
            Event::Attach { life, copy, turn } => self.attach(life, copy, turn),
            Event::Attached { life, copy, turn, grant, full } => {
                self.attach_now((life, copy, turn), grant, full);
            }
            Event::Repair { life, copy, addr, content } => self.repair(life, copy, addr, content),
            Event::Recover { life, addr } => self.recover(life, addr),
            Event::PutRight { life, copy, addr, bad, good } => {
                self.put_right(life, copy, addr, (bad, good));
            }
            Event::Work { life } => self.go_on_working(life),
            Event::Fault => self.fail(),
            Event::Strike => self.strike(),
            Event::Undo(fault) => self.undo(fault),
            Event::Heal => self.heal(),
            Event::Check => self.check(),
        }
    }

    /// Asks for something, and again after a while: now and then nothing for so long that the
    /// mirror settles.
    fn go_on_working(&mut self, life: Life) {
        if self.session(life).is_none() || self.phase != Phase::Breaking {
            return;
        }
        self.work(life);
        let wait = match self.rng.below(200) {
            0 => Duration::from_secs(4),
            1..40 => Duration::from_micros(100),
            _ => self.delay(Duration::from_millis(60)),
        };
        self.schedule(wait, Event::Work { life });
    }
}

/// Has a member do wrong what is broken on purpose.
fn break_member(member: &mut Member, sabotage: Sabotage) {
    member.forgets_zeros = sabotage == Sabotage::ForgottenZeros;
    member.discards_more = sabotage == Sabotage::WideDiscards;
    member.ignores_flushes = sabotage == Sabotage::IgnoredFlushes;
    member.ignores_fences = sabotage == Sabotage::IgnoredFences;
    member.invents_zeros = sabotage == Sabotage::ZerosForUnreadable;
    member.tears_what_is_durable = sabotage == Sabotage::TornFlushed;
}

fn first_record(members: &[Member], blocks: u64) -> Record {
    let copy = |member: &Member| MirrorCopy {
        state: CopyState::InSync,
        wish: Wish::Use,
        since: Epoch(0),
        on: place(member.uuid),
    };
    let copies = members.iter().map(copy).collect();
    Record {
        name: "tank".to_owned(),
        uuid: VOLUME,
        openings: Vec::new(),
        completed: Epoch(0),
        compare: 0,
        layout: Layout::Mirror { uuid: MIRROR, blocks, grows_to: blocks, copies },
        append: None,
    }
}

fn place(uuid: Uuid) -> Layout {
    let url = format!("nbd://host/{uuid}");
    Layout::Member(Place { uuid, url, blocks: MEMBER_BLOCKS })
}
