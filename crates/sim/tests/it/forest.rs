//! Snapshots, clones, rollbacks, removals and quotas, in any order, with crashes everywhere: what
//! is there afterwards is a state that the naive forest had, no older than was promised, and in use
//! are the blocks that somebody needs, to the block.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::rng::Rng;
use gabion_map::audit::audit;
use gabion_map::format::item::Access;
use gabion_map::format::subvolume::{Hold, Most};
use gabion_map::open::{FormatOptions, format};
use gabion_map::removal::Removing;
use gabion_map::scrub::scrub;
use gabion_map::txn::Removal;
use gabion_map::{FileId, Limits, LocalMap, MapError, OpenMode, Payload, Stop, Txn};
use gabion_sim::crash::{CrashPlan, CrashPoints};
use gabion_sim::disk::SimDisk;
use gabion_sim::forest::{Act, BLOCK, FIRST, Forest, Number, Outcome, Refused, Volume};
use gabion_sim::op::bytes;

use crate::seeds::seeds;

/// Inode numbers of files begin here.
const INOS: u64 = 10;
/// Things that are done on what a crash has left.
const AFTERWARDS: usize = 6;
/// Things of a second life, which is crashed as well.
const SECOND_LIFE: usize = 30;
/// Of so many crashes one has a second life.
const SECOND_LIFE_OF: usize = 12;

fn limits(seed: u64) -> Limits {
    match seed % 3 {
        0 => Limits::within(4 << 20),
        1 => Limits { nodes: 1 << 20, dirty: 128 << 10, items: 64 << 10 },
        // It has to write, and to commit, by itself all the time.
        _ => Limits { nodes: 256 << 10, dirty: 48 << 10, items: 3 << 10 },
    }
}

fn formatted(blocks: u64) -> Arc<SimDisk> {
    let disk = Arc::new(SimDisk::new(blocks));
    let options = FormatOptions {
        uuid: Uuid([3; 16]),
        label: "forest".to_owned(),
        name_seed: 1,
        created: 0,
        blocks: None,
    };
    let as_disk = Arc::clone(&disk) as Arc<dyn Disk>;
    format(&as_disk, &options).expect("a large enough disk");
    let map = LocalMap::open(as_disk, OpenMode::ReadWrite, limits(0)).expect("just made");
    assert_eq!(map.create_subvolume().expect("writable"), SubvolId(FIRST));
    map.sync().expect("a working disk");
    disk
}

/// The filesystem under trial.
struct Engine(LocalMap);

fn id(volume: Number, file: u64) -> FileId {
    FileId::new(SubvolId(volume), Ino(INOS + file))
}

fn told(outcome: Result<(), Stop>) -> Result<Outcome, String> {
    match outcome {
        Ok(()) => Ok(Ok(())),
        Err(Stop::Map(MapError::OverQuota)) => Ok(Err(Refused::Quota)),
        Err(Stop::Map(MapError::Subvolume(_))) => Ok(Err(Refused::Needed)),
        Err(error) => Err(format!("{error:?}")),
    }
}

fn done<T>(outcome: Result<T, MapError>) -> Result<(), Stop> {
    outcome.map(drop).map_err(Stop::Map)
}

impl Engine {
    fn open(disk: &Arc<SimDisk>, seed: u64) -> Result<Self, String> {
        let disk = Arc::clone(disk) as Arc<dyn Disk>;
        let map = LocalMap::open(disk, OpenMode::ReadWrite, limits(seed));
        let map = map.map_err(|error| format!("it cannot be opened: {error}"))?;
        map.count_usages().map_err(|error| format!("usages cannot be counted: {error}"))?;
        Ok(Self(map))
    }

    fn apply(&self, act: &Act, name: &str) -> Result<Outcome, String> {
        let map = &self.0;
        told(match act {
            Act::Write { volume, file, block, count, stamp } => {
                let content = bytes(*stamp, block * BLOCK, count * BLOCK);
                map.transact(|txn| {
                    txn.write(id(*volume, *file), block * BLOCK, Payload::Copied(&content))
                })
            }
            Act::Cut { volume, file, blocks } => {
                map.transact(|txn| txn.set_size(id(*volume, *file), blocks * BLOCK))
            }
            Act::Punch { volume, file, block, count } => map.transact(|txn| {
                txn.punch(id(*volume, *file), block * BLOCK, (block + count) * BLOCK)
            }),
            Act::Share { volume, from, block, to, target, count } => {
                let (from, to) = (id(*volume, *from), id(*volume, *to));
                done(map.flush_file(from).and_then(|()| map.flush_file(to))).and_then(|()| {
                    map.transact(|txn| {
                        txn.share(from, block * BLOCK, to, target * BLOCK, count * BLOCK)
                    })
                })
            }
            Act::Drop { volume, file } => loop {
                match map.transact(|txn| txn.remove_bytes(id(*volume, *file))) {
                    Ok(Removal::Partial) => {}
                    outcome => break outcome.map(drop),
                }
            },
            Act::Snapshot { of } => done(map.create_snapshot(SubvolId(*of), name.as_bytes(), 0)),
            Act::Clone { of } => done(map.clone_snapshot(SubvolId(*of), SubvolId(FIRST), 0)),
            Act::Rollback { of, to } => {
                let done = map.rollback(SubvolId(*of), SubvolId(*to), name.as_bytes(), 0);
                done.and_then(|_| map.count_usages()).map_err(Stop::Map)
            }
            Act::Remove { ids } => {
                done(map.remove(&ids.iter().map(|id| SubvolId(*id)).collect::<Vec<_>>()))
            }
            Act::Hold { of, is_held } => {
                let hold = if *is_held { Hold::Held } else { Hold::Released };
                done(map.set_hold(SubvolId(*of), hold))
            }
            Act::Quota { of, most } => {
                done(map.set_quota(SubvolId(*of), Most { blocks: *most, objects: None }))
            }
            Act::Step => done(map.remove_step()),
            Act::WriteBack => done(map.write_back_some()),
            Act::Commit => done(map.commit()),
            Act::Sync => done(map.sync()),
            Act::Fsync { volume, file } => done(self.sync_one(*volume, *file)),
        })
    }

    /// Writes all files and then makes one durable: what came before is with it.
    fn sync_one(&self, volume: Number, file: u64) -> Result<(), MapError> {
        for of in self.0.writable_subvolumes() {
            for file in 0..gabion_sim::forest::FILES {
                self.0.flush_file(id(of.0, file))?;
            }
        }
        self.0.sync_file(id(volume, file))
    }

    /// All that is there. Of files what is read: their bytes.
    fn seen(&self) -> Result<Seen, String> {
        let mut seen = Seen::new();
        for (subvol, record) in self.0.subvolumes() {
            let of = (record.access == Access::ReadOnly).then_some(record.origin.0);
            let mut files = BTreeMap::new();
            for file in 0..gabion_sim::forest::FILES {
                let id = id(subvol.0, file);
                let read = self.0.transact(|txn| {
                    let size = txn.file(id)?.size;
                    let mut bytes = vec![0xee; size as usize + 1];
                    let read = txn.read(id, 0, &mut bytes)?;
                    bytes.truncate(read);
                    Ok::<_, Stop>(bytes)
                });
                let bytes = read.map_err(|error| format!("{subvol} {file}: {error:?}"))?;
                if !bytes.is_empty() {
                    files.insert(file, bytes);
                }
            }
            let name = String::from_utf8_lossy(&record.extended.name).into_owned();
            let is_held = record.extended.hold == Hold::Held;
            let quota = record.extended.quota.and_then(|quota| quota.most.blocks);
            seen.insert(subvol.0, (Outside { of, name, is_held, quota }, files));
        }
        Ok(seen)
    }

    /// Every block that is reachable is sound, in use are just those, and quotas count what is
    /// there.
    fn check(&self, forest: &Forest) -> Result<(), String> {
        self.0.sync().map_err(|error| error.to_string())?;
        let report = scrub(&self.0, &mut |_| ControlFlow::Continue(()));
        let report = report.map_err(|error| error.to_string())?;
        if !report.findings.is_empty() {
            return Err(format!("damage: {:?}", report.findings));
        }
        let audit = audit(&self.0).map_err(|error| error.to_string())?;
        if !audit.is_exact() {
            return Err(format!("the allocation is wrong: {audit:?}"));
        }
        for (id, volume) in forest.volumes.iter().filter(|(_, volume)| volume.is_writable()) {
            let quota = self.0.quota(SubvolId(*id));
            let count = quota.map(|quota| quota.count.map(|count| count.blocks));
            let expected = volume.quota.map(|_| Some(volume.usage()));
            if count != expected {
                return Err(format!("{id} counts {count:?} and has {expected:?}"));
            }
        }
        Ok(())
    }
}

/// What can be seen of a volume beside its files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outside {
    of: Option<Number>,
    name: String,
    is_held: bool,
    quota: Option<u64>,
}

type Files = BTreeMap<u64, Vec<u8>>;
type Seen = BTreeMap<Number, (Outside, Files)>;

fn files(volume: &Volume) -> Files {
    let files = volume.files.iter().map(|(file, content)| (*file, content.bytes()));
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn outside(volume: &Volume) -> Outside {
    let Volume { of, name, is_held, quota, .. } = volume.clone();
    Outside { of, name, is_held, quota }
}

fn seen(forest: &Forest) -> Seen {
    let volumes = forest.volumes.iter();
    volumes.map(|(id, volume)| (*id, (outside(volume), files(volume)))).collect()
}

/// How a filesystem differs from what it should be.
fn difference(expected: &Seen, found: &Seen) -> String {
    let mut lines = Vec::new();
    let ids: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for id in ids {
        match (expected.get(id), found.get(id)) {
            (Some(expected), Some(found)) if expected.0 != found.0 => {
                lines.push(format!("{id} is {:?} and should be {:?}", found.0, expected.0));
            }
            (Some(expected), Some(found)) => {
                for (file, bytes) in &expected.1 {
                    let found = found.1.get(file).cloned().unwrap_or_default();
                    let blocks = bytes.chunks(BLOCK as usize).zip(found.chunks(BLOCK as usize));
                    let others: Vec<_> = (0..).zip(blocks).filter(|(_, (a, b))| a != b).collect();
                    let others: Vec<usize> = others.into_iter().map(|(at, _)| at).collect();
                    if *bytes != found {
                        let lengths = (bytes.len(), found.len());
                        lines.push(format!("{id} file {file}: {lengths:?}, blocks {others:?}"));
                    }
                }
                let more = found.1.keys().filter(|file| !expected.1.contains_key(file));
                lines.extend(more.map(|file| format!("{id} has file {file}")));
            }
            (expected, _) => lines.push(format!("{id}: expected {}", expected.is_some())),
        }
    }
    lines.join("\n")
}

/// Something that was done.
struct Done {
    act: Act,
    /// The disk's events meanwhile.
    events: Range<usize>,
    /// Whether it has promised that all is durable.
    is_barrier: bool,
}

/// What was done in one life, and what was there after each thing.
struct History {
    acts: Vec<Done>,
    states: Vec<Forest>,
    /// The position from which on crashes are this life's.
    begin: usize,
}

impl History {
    /// Does `count` things with `forest`, from a seed. Each answer must be the forest's.
    fn live(disk: &Arc<SimDisk>, forest: Forest, count: usize, seed: u64) -> Result<Self, String> {
        let engine = Engine::open(disk, seed)?;
        let mut rng = Rng::new(seed);
        let begin = disk.position();
        let mut history = Self { acts: Vec::new(), states: vec![forest], begin };
        for _ in 0..count {
            history.go_on(&engine, disk, &mut rng)?;
        }
        engine.check(history.last())?;
        Ok(history)
    }

    fn last(&self) -> &Forest {
        &self.states[self.states.len() - 1]
    }

    fn go_on(&mut self, engine: &Engine, disk: &SimDisk, rng: &mut Rng) -> Result<(), String> {
        let mut forest = self.last().clone();
        let act = Act::choose(&forest, rng);
        let name = forest.next_name();
        let start = disk.position();
        let answered = engine.apply(&act, &name)?;
        let expected = forest.apply(&act);
        if answered != expected {
            return Err(format!("{act:?} answered {answered:?} and not {expected:?}"));
        }
        let is_barrier = act.is_barrier() && answered.is_ok();
        self.acts.push(Done { act, events: start..disk.position(), is_barrier });
        self.states.push(forest);
        Ok(())
    }

    /// The states that a crash at `position` may leave.
    fn window(&self, position: usize) -> std::ops::RangeInclusive<usize> {
        let is_durable = |done: &Done| done.is_barrier && done.events.end <= position;
        let durable = self.acts.iter().rposition(is_durable).map_or(0, |act| act + 1);
        let begun = |done: &Done| done.events.start < position || done.events.end <= position;
        durable..=self.acts.partition_point(begun).max(durable)
    }

    /// The state that was found after a crash at `position`, if that is one.
    fn judge(&self, position: usize, found: &Seen) -> Result<Option<Forest>, String> {
        let window = self.window(position);
        let exact = window.clone().find(|state| seen(&self.states[*state]) == *found);
        if let Some(state) = exact {
            return Ok(Some(self.states[state].clone()));
        }
        // Files go into the journal one after the other.
        let last = *window.end();
        let is_under_way =
            |done: &Done| matches!(done.act, Act::Fsync { .. }) && done.events.end > position;
        let is_syncing = last > 0 && is_under_way(&self.acts[last - 1]);
        if is_syncing && window.clone().any(|state| self.is_mixed(state, window.clone(), found)) {
            return Ok(None);
        }
        let nearest = seen(&self.states[last]);
        Err(format!(
            "it is none of the states {window:?}; compared with the last:\n{}",
            difference(&nearest, found)
        ))
    }

    /// Whether the volumes are those of `state`, and each file what it was in some state of
    /// `window`.
    fn is_mixed(
        &self,
        state: usize,
        window: std::ops::RangeInclusive<usize>,
        found: &Seen,
    ) -> bool {
        let forest = &self.states[state];
        if forest.volumes.len() != found.len() {
            return false;
        }
        found.iter().all(|(id, (its, content))| {
            let is_same = |volume: &Volume| outside(volume) == *its;
            let were = |file: &u64| {
                window.clone().any(|state| {
                    let volume = self.states[state].volumes.get(id);
                    let was = volume.and_then(|it| it.files.get(file)).map(|it| it.bytes());
                    was.unwrap_or_default() == content.get(file).cloned().unwrap_or_default()
                })
            };
            forest.volumes.get(id).is_some_and(is_same)
                && (0..gabion_sim::forest::FILES).all(|file| were(&file))
        })
    }

    /// Crashes it everywhere. `lives` says how many lives may follow.
    fn crash(&self, disk: &SimDisk, plan: CrashPlan, lives: usize) -> Result<usize, String> {
        let mut crashes = 0;
        for crash in CrashPoints::new(disk.recording(), plan) {
            if crash.position < self.begin {
                continue;
            }
            let again = Arc::new(crash.disk());
            let found = self.recover(&again, crash.position, plan.seed ^ crash.number);
            let found = found.map_err(|error| self.explain(crash.position, &crash, error))?;
            crashes += 1;
            let Some(forest) = found.filter(|_| lives > 0 && crashes % SECOND_LIFE_OF == 0) else {
                continue;
            };
            let seed = !plan.seed ^ crash.number;
            let again = Arc::new(crash.disk());
            let later = Self::live(&again, forest, SECOND_LIFE, seed)
                .map_err(|error| self.explain(crash.position, &crash, error))?;
            crashes += later
                .crash(&again, CrashPlan { seed, ..plan }, lives - 1)
                .map_err(|error| self.explain(crash.position, &crash, error))?;
        }
        Ok(crashes)
    }

    /// Opens what a crash has left, judges it, and goes on with it.
    fn recover(
        &self,
        disk: &Arc<SimDisk>,
        position: usize,
        seed: u64,
    ) -> Result<Option<Forest>, String> {
        let engine = Engine::open(disk, seed)?;
        let Some(forest) = self.judge(position, &engine.seen()?)? else { return Ok(None) };
        engine.check(&forest)?;
        let mut later = Self { acts: Vec::new(), states: vec![forest.clone()], begin: 0 };
        let mut rng = Rng::new(seed);
        for _ in 0..AFTERWARDS {
            later.go_on(&engine, disk, &mut rng)?;
        }
        loop {
            match engine.0.remove_step() {
                Ok(Removing::Step) => {}
                Ok(Removing::Nothing) => break,
                Err(error) => return Err(format!("a removal failed: {error}")),
            }
        }
        engine.check(later.last())?;
        let (expected, found) = (seen(later.last()), engine.seen()?);
        match expected == found {
            true => Ok(Some(forest)),
            false => Err(format!("afterwards: {}", difference(&expected, &found))),
        }
    }

    fn explain(&self, position: usize, crash: &impl std::fmt::Display, error: String) -> String {
        let window = self.window(position);
        let first = window.start().saturating_sub(4);
        let acts = self.acts[first..*window.end()].iter().enumerate();
        let acts: Vec<_> =
            acts.map(|(at, it)| format!("{} {:?} {:?}", first + at, it.events, it.act)).collect();
        format!("after {crash}\n{}\n{error}", acts.join("\n"))
    }
}

fn run(seed: u64, count: usize, one_of: u64) -> Result<usize, String> {
    let disk = formatted(8192);
    disk.restart_log();
    let history = History::live(&disk, Forest::default(), count, seed)?;
    let plan = match env::var("GABION_THOROUGH") {
        Ok(_) => CrashPlan::thorough(seed),
        Err(_) => CrashPlan { one_of, ..CrashPlan::quick(seed) },
    };
    history.crash(&disk, plan, 1)
}

#[test]
fn forests_are_what_they_were_after_any_crash_and_no_block_is_lost() {
    for seed in seeds(2) {
        match run(seed, 120, 60) {
            Err(error) => panic!("seed {seed}: {error}"),
            Ok(crashes) if env::var("GABION_SEEDS").is_ok() => {
                eprintln!("seed {seed}: {crashes} crashes");
            }
            Ok(_) => {}
        }
    }
}
