//! Trials: an engine is driven by a workload, crashed everywhere, and judged.
//!
//! 1. A disk is formatted and mounted, its log starts.
//! 2. The operations run; each answer must be the model's ([`History`]). Then it is unmounted,
//!    which promises no less than a sync.
//!    If the disk is to fail, that ends with the first EIO, and nothing is asked of unmounting.
//! 3. For every crash of the log ([`CrashPoints`]) the image is mounted and written down, and
//!    [`verify`] says whether that may be.
//! 4. What was recovered has to be usable: more operations run on it and must have the answers,
//!    and the outcome, of a model that starts from what was written down.
//! 5. Some recoveries are crashed as well, everywhere.
//! 6. Some recovered filesystems live on: more operations run, and they are crashed once more.
//!
//! The filesystem may grow meanwhile, because its disk became longer. A crash then leaves it with
//! one of the two lengths, and with the new one after it was told. It is recovered on a disk of
//! the new length, and once more on one that has lost it again: what has not grown is recovered
//! there as well, what has grown must be refused.
//!
//! [`compare`] does steps 2 and 4 alone, for a system that is not crashed.

use std::fmt;
use std::sync::Arc;

use gabion_base::disk::Disk;

use crate::check::{Violation, verify};
use crate::crash::{CrashImage, CrashPlan, CrashPoints};
use crate::disk::SimDisk;
use crate::faults::Faults;
use crate::history::{Growth, History, Mismatch, Room, carried_out};
use crate::model::Model;
use crate::op::{Errno, Op, Value};
use crate::tree::{System, Tree};
use crate::workload::{Profile, Workload};

/// What is tried: something that keeps a filesystem on a disk.
pub trait Engine {
    /// The filesystem while it is mounted.
    type Mounted: System;

    /// Makes an empty filesystem, whose root belongs to root and has mode 755.
    fn format(&self, disk: Arc<dyn Disk>) -> Result<(), String>;

    /// Mounts, which after a crash means recovery. What is there afterwards is durable.
    fn mount(&self, disk: Arc<dyn Disk>) -> Result<Self::Mounted, String>;

    /// Unmounts; after that all is durable and the disk is left alone.
    fn unmount(&self, mounted: Self::Mounted) -> Result<(), String>;

    /// Has the filesystem grow to `blocks` blocks, which its disk has already. It may go on doing
    /// that while operations run.
    fn grow(&self, _mounted: &mut Self::Mounted, _blocks: u64) -> Result<(), String> {
        Err("it cannot grow".to_owned())
    }

    /// How many blocks the filesystem has, durably, if it can grow.
    fn blocks(&self, _mounted: &Self::Mounted) -> Option<u64> {
        None
    }
}

/// One trial.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What to do before the crash.
    pub ops: Vec<Op>,
    /// Length of the disk in blocks.
    pub blocks: u64,
    /// Before which operation the disk and the filesystem become how many blocks long, in order.
    pub growth: Vec<(usize, u64)>,
    /// Which crashes to make.
    pub plan: CrashPlan,
    /// How many operations to do after each recovery.
    pub afterwards: usize,
    /// Of how many recoveries one is crashed too; 0 for none.
    pub recovery_crashed_of: u64,
    /// Of how many recoveries one lives on and is crashed then; 0 for none.
    pub second_life_of: u64,
    /// How many operations a second life has.
    pub second_life: usize,
    /// Whether operations may be refused for lack of space.
    pub room: Room,
    /// From which operation on the disk fails, and how.
    pub breakdown: Option<(usize, Faults)>,
}

/// What happens in one life of a filesystem. See the fields of [`Trial`].
struct Script<'a> {
    ops: &'a [Op],
    growth: &'a [(usize, u64)],
    breakdown: Option<&'a (usize, Faults)>,
}

/// What a trial that found nothing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events on the disk.
    pub events: usize,
    /// Operations that were refused for lack of space.
    pub refused: usize,
    /// Crashes of the workload.
    pub crashes: u64,
    /// Crashes of recoveries.
    pub recovery_crashes: u64,
    /// Crashes of second lives.
    pub later_crashes: u64,
}

/// Why a trial failed.
#[derive(Clone, Debug)]
pub enum Reason {
    /// Formatting or mounting failed.
    Engine(String),
    /// An answer was wrong.
    Answer(Box<Mismatch>),
    /// The filesystem could not be written down.
    Unreadable(Errno),
    /// It is not what the operations lead to.
    Outcome(String),
    /// A crash broke a promise.
    Promise(Violation),
    /// A crash beside a growth left a filesystem of a length that it cannot have.
    Length {
        /// The growth.
        growth: Growth,
        /// The length that was found, in blocks.
        found: u64,
    },
}

/// A trial that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// After which crash, and after which crash of its recovery; empty if before any.
    pub crashes: Vec<String>,
    /// The last operations before the crash.
    pub last_ops: Vec<String>,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for crash in &self.crashes {
            writeln!(f, "after {crash}")?;
        }
        for op in &self.last_ops {
            writeln!(f, "  {op}")?;
        }
        match &self.reason {
            Reason::Engine(reason) => write!(f, "the engine failed: {reason}"),
            Reason::Answer(mismatch) => write!(f, "{mismatch}"),
            Reason::Unreadable(errno) => write!(f, "it cannot be read: {errno:?}"),
            Reason::Outcome(difference) => write!(f, "it is not as it should be: {difference}"),
            Reason::Promise(violation) => write!(f, "{violation}"),
            Reason::Length { growth, found } => write!(f, "it has {found} blocks after {growth:?}"),
        }
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { crashes: Vec::new(), last_ops: Vec::new(), reason }
    }
}

impl Trial {
    /// A trial of `count` operations of `seed`, with a few crashes of every kind.
    pub fn quick(seed: u64, count: usize, blocks: u64) -> Self {
        Self::of(seed, Workload::generate(seed, Profile::CRASHES, count), blocks)
    }

    /// A trial of `ops`, with a few crashes of every kind.
    pub fn of(seed: u64, ops: Vec<Op>, blocks: u64) -> Self {
        Self {
            ops,
            blocks,
            growth: Vec::new(),
            plan: CrashPlan::quick(seed),
            afterwards: 4,
            recovery_crashed_of: 50,
            second_life_of: 0,
            second_life: 0,
            room: Room::Ample,
            breakdown: None,
        }
    }

    /// Runs it.
    pub fn run<E: Engine>(&self, engine: &E) -> Result<Summary, Failure> {
        let room = self.growth.last().map_or(self.blocks, |(_, blocks)| *blocks);
        let disk = Arc::new(SimDisk::new(room).cut_to(self.blocks));
        engine.format(as_disk(&disk)).map_err(Reason::Engine)?;
        disk.restart_log();
        let mounted = engine.mount(as_disk(&disk)).map_err(Reason::Engine)?;
        let history = History::new(Model::new(), self.room);
        let breakdown = self.breakdown.as_ref();
        let script = Script { ops: &self.ops, growth: &self.growth, breakdown };
        let history = self.live(engine, &disk, mounted, history, script)?;
        let recording = disk.recording();
        let (events, refused) = (recording.events.len(), history.refused());
        let mut summary = Summary { events, refused, ..Summary::default() };
        for crash in CrashPoints::new(recording, self.plan) {
            self.recover(engine, &history, crash.position, &crash)
                .map_err(|reason| failure(&history, crash.position, &[&crash], reason))?;
            let made = summary.crashes;
            let chosen = |of: u64| of > 0 && made.is_multiple_of(of);
            summary.crashes += 1;
            if chosen(self.recovery_crashed_of) {
                summary.recovery_crashes += self.crash_recovery(engine, &history, &crash)?;
            }
            if chosen(self.second_life_of) {
                summary.later_crashes += self.crash_second_life(engine, &crash)?;
            }
        }
        Ok(summary)
    }

    /// Runs `ops` on what was mounted, and unmounts it.
    fn live<E: Engine>(
        &self,
        engine: &E,
        disk: &SimDisk,
        mut system: E::Mounted,
        mut history: History,
        script: Script<'_>,
    ) -> Result<History, Failure> {
        let Script { ops, growth, breakdown } = script;
        for (at, op) in ops.iter().enumerate() {
            if let Some((_, blocks)) = growth.iter().find(|(before, _)| *before == at) {
                history.begin_growth(disk.position(), disk.blocks(), *blocks);
                disk.lengthen(*blocks);
                engine.grow(&mut system, *blocks).map_err(Reason::Engine)?;
            }
            if let Some(blocks) = engine.blocks(&system) {
                history.end_growth(disk.position(), blocks);
            }
            if let Some((_, faults)) = breakdown.filter(|(after, _)| *after == at) {
                disk.set_faults(faults.clone());
            }
            let start = disk.position();
            let answered = system.apply(op);
            let events = start..disk.position();
            if breakdown.is_some() && answered == Err(Errno::EIO) {
                history.record_failed(op, events);
                return Ok(history);
            }
            if let Err(mismatch) = history.record(op, answered, events) {
                return Err(failure(&history, usize::MAX, &[], Reason::Answer(mismatch)));
            }
        }
        let start = disk.position();
        let unmounted = engine.unmount(system);
        let events = start..disk.position();
        if breakdown.is_some() && unmounted.is_err() {
            history.record_failed(&Op::Sync, events);
            return Ok(history);
        }
        unmounted.map_err(Reason::Engine)?;
        history.end_growth(disk.position(), disk.blocks());
        history.record(&Op::Sync, Ok(Value::Done), events).map_err(Reason::Answer)?;
        Ok(history)
    }

    /// Recovers from `crash`, on every length that the disk may have then.
    fn recover<E: Engine>(
        &self,
        engine: &E,
        history: &History,
        position: usize,
        crash: &CrashImage,
    ) -> Result<(), Reason> {
        let blocks = self.recover_on(engine, history, position, crash, crash.disk())?;
        let Some((growth, blocks)) = history.growth(position).zip(blocks) else { return Ok(()) };
        let done = growth.done.is_some_and(|done| done <= position);
        if blocks != growth.to && (done || blocks != growth.from) {
            return Err(Reason::Length { growth, found: blocks });
        }
        let short = crash.disk_of(growth.from);
        if blocks == growth.from {
            return self.recover_on(engine, history, position, crash, short).map(drop);
        }
        match engine.mount(Arc::new(short)) {
            Ok(_) => Err(Reason::Length { growth, found: growth.from }),
            Err(_) => Ok(()),
        }
    }

    /// Mounts a disk after `crash` and judges it as what is left of `history` at `position`.
    /// Returns how long the filesystem is.
    fn recover_on<E: Engine>(
        &self,
        engine: &E,
        history: &History,
        position: usize,
        crash: &CrashImage,
        disk: SimDisk,
    ) -> Result<Option<u64>, Reason> {
        let mut system = engine.mount(Arc::new(disk)).map_err(Reason::Engine)?;
        let blocks = engine.blocks(&system);
        let tree = system.dump().map_err(Reason::Unreadable)?;
        verify(history, position, position, &tree).map_err(Reason::Promise)?;
        if self.afterwards > 0 {
            let model = Model::from_tree(&tree);
            let seed = self.plan.seed ^ crash.number;
            let ops = Workload::continuing(seed, Profile::CRASHES, model.clone());
            let ops: Vec<Op> = ops.take(self.afterwards).collect();
            compare_with(model, &mut system, &ops, self.room)?;
        }
        engine.unmount(system).map_err(Reason::Engine)?;
        Ok(blocks)
    }

    fn crash_recovery<E: Engine>(
        &self,
        engine: &E,
        history: &History,
        crash: &CrashImage,
    ) -> Result<u64, Failure> {
        let disk = Arc::new(crash.disk());
        let mounted = engine.mount(as_disk(&disk)).map_err(Reason::Engine)?;
        engine.unmount(mounted).map_err(Reason::Engine)?;
        let mut made = 0;
        for again in CrashPoints::new(disk.recording(), self.plan) {
            self.recover(engine, history, crash.position, &again)
                .map_err(|reason| failure(history, crash.position, &[crash, &again], reason))?;
            made += 1;
        }
        Ok(made)
    }

    fn crash_second_life<E: Engine>(&self, engine: &E, crash: &CrashImage) -> Result<u64, Failure> {
        let disk = Arc::new(crash.disk());
        let mut mounted = engine.mount(as_disk(&disk)).map_err(Reason::Engine)?;
        let begin = disk.position();
        let model = Model::from_tree(&mounted.dump().map_err(Reason::Unreadable)?);
        let seed = !self.plan.seed ^ crash.number;
        let ops = Workload::continuing(seed, Profile::CRASHES, model.clone());
        let ops: Vec<Op> = ops.take(self.second_life).collect();
        let script = Script { ops: &ops, growth: &[], breakdown: None };
        let history = History::new(model, self.room);
        let history =
            self.live(engine, &disk, mounted, history, script).map_err(|mut failure| {
                failure.crashes.push(crash.to_string());
                failure
            })?;
        let mut made = 0;
        let later = CrashPoints::new(disk.recording(), self.plan);
        for again in later.filter(|again| again.position >= begin) {
            self.recover(engine, &history, again.position, &again)
                .map_err(|reason| failure(&history, again.position, &[crash, &again], reason))?;
            made += 1;
        }
        Ok(made)
    }
}

fn as_disk(disk: &Arc<SimDisk>) -> Arc<dyn Disk> {
    Arc::clone(disk) as Arc<dyn Disk>
}

/// What went wrong after `crashes`, and what `history` has before `position`.
fn failure(history: &History, position: usize, crashes: &[&CrashImage], reason: Reason) -> Failure {
    const LAST_OPS: usize = 8;
    let crashes = crashes.iter().map(|crash| crash.to_string()).collect();
    let (durable, started) = (history.durable(position), history.started(position));
    let steps = history.steps().iter().enumerate().take(started);
    let steps = steps.skip(durable.min(started.saturating_sub(LAST_OPS)));
    let last_ops = steps.map(|(at, step)| format!("{at} {:?}: {:?}", step.events, step.op));
    Failure { crashes, last_ops: last_ops.collect(), reason }
}

/// Runs `ops` on an empty system and says where it is not what the model is.
pub fn compare(system: &mut impl System, ops: &[Op]) -> Result<(), Failure> {
    Ok(compare_with(Model::new(), system, ops, Room::Ample)?)
}

fn compare_with(
    mut model: Model,
    system: &mut impl System,
    ops: &[Op],
    room: Room,
) -> Result<(), Reason> {
    for (step, op) in ops.iter().enumerate() {
        let answered = system.apply(op);
        let Some(carried_out) = carried_out(op, &answered, room) else { continue };
        let expected = model.apply(&carried_out);
        if expected != answered {
            let op = op.clone();
            return Err(Reason::Answer(Box::new(Mismatch { step, op, expected, answered })));
        }
    }
    let expected = System::dump(&mut model).map_err(Reason::Unreadable)?;
    let found = system.dump().map_err(Reason::Unreadable)?;
    match difference(&expected, &found) {
        Some(difference) => Err(Reason::Outcome(difference)),
        None => Ok(()),
    }
}

fn difference(expected: &Tree, found: &Tree) -> Option<String> {
    let names = expected.namespace.difference(&found.namespace);
    if !names.is_empty() {
        return Some(names);
    }
    for (path, object) in &expected.namespace.objects {
        let bytes = expected.files.get(&object.id);
        let found = found.files.get(&found.namespace.objects[path].id);
        if bytes != found {
            let sizes = (bytes.map(Vec::len), found.map(Vec::len));
            return Some(format!("{path:?} has other bytes (sizes {sizes:?})"));
        }
    }
    None
}

/// Leaves out operations as long as `fails` says that the rest still fails. Ends after at most
/// `attempts` questions.
pub fn shrink(ops: &[Op], attempts: usize, fails: impl Fn(&[Op]) -> bool) -> Vec<Op> {
    let mut ops = ops.to_vec();
    let mut left = attempts;
    let mut length = ops.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at < ops.len() && left > 0 {
            left -= 1;
            let end = (at + length).min(ops.len());
            let fewer = [&ops[..at], &ops[end..]].concat();
            if fails(&fewer) {
                ops = fewer;
            } else {
                at = end;
            }
        }
        length /= 2;
    }
    ops
}
