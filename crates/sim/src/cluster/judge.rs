//! Whether what programs were answered can be told as a sequence, in which each answer is right.
//!
//! All names are one object, and each file's size, bytes and permissions are one. A sequence is
//! looked for each of them ([`search`]); if each has one, there is one of all calls.
//!
//! Crashes of the server may take back what was not made durable:
//!
//! - names as a whole, to what they were at some moment since the last call that made anything
//!   durable;
//! - of a file each grain, the size and the permissions on their own, to what they were since the
//!   file was made durable. That is less strict than what is promised of a local filesystem, whose
//!   own simulation looks closer.
//!
//! Two things are allowed besides:
//!
//! - A client that has not heard of a crash yet may see what was before: its calls may stand before
//!   it in the sequence.
//! - A client sees its own change when it is complete; others may before, for the server asks for
//!   no lease of who changes something. What a client reads meanwhile may stand before the change.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::history::{Event, Number, Op, Outcome, Place};
use super::search::{Model, Verdict, search};

/// Numbers of files that are not known, because nobody heard of them, begin here.
const UNHEARD: Number = 1 << 63;
/// Grains of a file that programs use on purpose.
pub const GRAINS_MAX: usize = 32;
/// Grains of a file that are judged; those who append do not know of each other.
const GRAINS_JUDGED: usize = 64;

type Entries = BTreeMap<Place, Number>;

/// All names, and what they were since something was durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Names {
    entries: Rc<Entries>,
    since: Vec<Rc<Entries>>,
    /// Files that were made unheard, and what they turned out to be.
    heard: BTreeMap<Number, Number>,
}

struct NamesModel {
    /// Files that somebody was told he made: they are none of the unheard ones.
    made: BTreeSet<Number>,
    has_crashes: bool,
}

impl NamesModel {
    fn with(&self, state: &Names, change: impl FnOnce(&mut Entries)) -> Names {
        let mut next = state.clone();
        if self.has_crashes {
            next.since.push(Rc::clone(&state.entries));
        }
        change(Rc::make_mut(&mut next.entries));
        next
    }

    /// The state in which `held` stands for `told`, if it can.
    fn told(&self, state: &Names, held: Number, told: Number) -> Option<Names> {
        let heard = *state.heard.get(&held).unwrap_or(&held);
        if heard == told {
            return Some(state.clone());
        }
        let is_free = heard >= UNHEARD
            && !self.made.contains(&told)
            && !state.heard.values().any(|other| *other == told);
        is_free.then(|| {
            let mut next = state.clone();
            next.heard.insert(held, told);
            next
        })
    }

    fn count(state: &Names, file: Number) -> u32 {
        let is_it = |held: &&Number| *state.heard.get(held).unwrap_or(held) == file;
        state.entries.values().filter(is_it).count() as u32
    }

    fn listed(&self, state: &Names, dir: u8, told: &[(u8, Number)]) -> Option<Names> {
        let held: Vec<(u8, Number)> = state
            .entries
            .range((dir, 0)..=(dir, u8::MAX))
            .map(|(at, file)| (at.1, *file))
            .collect();
        let mut told = told.to_vec();
        told.sort_unstable();
        if held.len() != told.len() {
            return None;
        }
        held.iter().zip(&told).try_fold(state.clone(), |state, (held, told)| {
            (held.0 == told.0).then(|| self.told(&state, held.1, told.1)).flatten()
        })
    }
}

fn unless(wrong: bool, state: &Names) -> Vec<Names> {
    if wrong { Vec::new() } else { vec![state.clone()] }
}

impl Model for NamesModel {
    type State = Names;

    fn after(&self, state: &Names, event: &Event) -> Vec<Names> {
        let at = |place: &Place| state.entries.get(place).copied();
        let known = event.outcome != Outcome::Unknown;
        match (&event.op, &event.outcome) {
            (Op::Lookup { at: place }, Outcome::Found(told)) => {
                at(place).and_then(|held| self.told(state, held, *told)).into_iter().collect()
            }
            (Op::Lookup { at: place }, _) => unless(at(place).is_some(), state),
            (Op::Create { at: place, .. }, Outcome::Made(told, false)) => {
                at(place).and_then(|held| self.told(state, held, *told)).into_iter().collect()
            }
            (Op::Create { at: place, .. }, Outcome::Exists) => unless(at(place).is_none(), state),
            (Op::Create { at: place, .. }, outcome) => {
                let file = match outcome {
                    Outcome::Made(told, _) => *told,
                    _ => UNHEARD + event.invoked,
                };
                if at(place).is_some() {
                    return Vec::new();
                }
                vec![self.with(state, |entries| {
                    entries.insert(*place, file);
                })]
            }
            (Op::Link { at: place, .. }, Outcome::Exists) => unless(at(place).is_none(), state),
            (Op::Link { file, .. }, Outcome::Absent | Outcome::Gone) => {
                unless(Self::count(state, *file) > 0, state)
            }
            (Op::Link { file, at: place }, _) => {
                if at(place).is_some() || Self::count(state, *file) == 0 {
                    return Vec::new();
                }
                vec![self.with(state, |entries| {
                    entries.insert(*place, *file);
                })]
            }
            (Op::Unlink { at: place }, Outcome::Absent) => unless(at(place).is_some(), state),
            (Op::Unlink { at: place }, _) => match at(place) {
                None => Vec::new(),
                Some(_) => vec![self.with(state, |entries| {
                    entries.remove(place);
                })],
            },
            (Op::Rename { from, to, replaces }, outcome) => {
                self.renamed(state, (from, to, *replaces), outcome)
            }
            (Op::List { dir }, Outcome::Names(told)) => {
                self.listed(state, *dir, told).into_iter().collect()
            }
            (Op::Stat { file }, Outcome::Status { nlink, .. }) => {
                unless(Self::count(state, *file) != *nlink, state)
            }
            (Op::Stat { file }, _) => unless(Self::count(state, *file) > 0, state),
            (Op::Fsync { .. } | Op::SyncAll, _) if known => {
                vec![Names { since: Vec::new(), ..state.clone() }]
            }
            (Op::Crash { .. }, _) => {
                let mut left: Vec<&Rc<Entries>> = state.since.iter().collect();
                left.push(&state.entries);
                left.dedup();
                let after = |entries: &Rc<Entries>| Names {
                    entries: Rc::clone(entries),
                    since: Vec::new(),
                    heard: state.heard.clone(),
                };
                left.into_iter().map(after).collect()
            }
            (op, outcome) => unreachable!("{op:?} {outcome:?} tells of names"),
        }
    }
}

impl NamesModel {
    fn renamed(
        &self,
        state: &Names,
        (from, to, replaces): (&Place, &Place, bool),
        outcome: &Outcome,
    ) -> Vec<Names> {
        let (source, target) = (state.entries.get(from), state.entries.get(to));
        let is = |held: &Number| *state.heard.get(held).unwrap_or(held);
        match outcome {
            Outcome::Absent => unless(source.is_some(), state),
            Outcome::Exists => unless(source.is_none() || target.is_none() || replaces, state),
            _ => match (source, target) {
                (None, _) => Vec::new(),
                (_, Some(_)) if !replaces => Vec::new(),
                (Some(source), Some(target)) if is(source) == is(target) => vec![state.clone()],
                (Some(source), _) => {
                    let file = *source;
                    vec![self.with(state, |entries| {
                        entries.remove(from);
                        entries.insert(*to, file);
                    })]
                }
            },
        }
    }
}

/// What something may be, and what it may become again by a crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Value {
    now: u32,
    /// What it may be instead, since a crash.
    or: Vec<u32>,
    since: Vec<u32>,
}

fn insert(values: &mut Vec<u32>, value: u32) {
    if let Err(at) = values.binary_search(&value) {
        values.insert(at, value);
    }
}

impl Value {
    fn is(value: u32) -> Self {
        Self { now: value, or: Vec::new(), since: Vec::new() }
    }

    fn set(&mut self, value: u32) {
        insert(&mut self.since, self.now);
        for old in std::mem::take(&mut self.or) {
            insert(&mut self.since, old);
        }
        self.now = value;
    }

    /// It is seen to be this. Whether it can be.
    fn see(&mut self, value: u32) -> bool {
        let can_be = self.now == value || self.or.contains(&value);
        self.now = value;
        self.or.clear();
        can_be
    }

    fn crash(&mut self) {
        for old in std::mem::take(&mut self.since) {
            if old != self.now {
                insert(&mut self.or, old);
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileState {
    size: Value,
    mode: Value,
    grains: Vec<Value>,
}

impl FileState {
    fn new() -> Self {
        let grains = vec![Value::is(0); GRAINS_JUDGED];
        Self { size: Value::is(0), mode: Value::is(0o644), grains }
    }

    fn values(&mut self) -> impl Iterator<Item = &mut Value> {
        [&mut self.size, &mut self.mode].into_iter().chain(&mut self.grains)
    }

    fn put(&mut self, size: u32, grain: u32, count: u32, stamp: u32) {
        let end = grain + count;
        let written = (grain as usize).min(GRAINS_JUDGED)..(end as usize).min(GRAINS_JUDGED);
        self.grains[written].iter_mut().for_each(|value| value.set(stamp));
        if end > size {
            self.size.set(end);
        }
    }

    /// One state for each size that it may have.
    fn sized(&self) -> Vec<(u32, Self)> {
        let sized = |size: u32| {
            let mut state = self.clone();
            state.size.see(size);
            (size, state)
        };
        [self.size.now].into_iter().chain(self.size.or.iter().copied()).map(sized).collect()
    }
}

struct FileModel;

impl Model for FileModel {
    type State = FileState;

    fn after(&self, state: &FileState, event: &Event) -> Vec<FileState> {
        let mut next = state.clone();
        match (&event.op, &event.outcome) {
            (Op::Read { grain, .. }, Outcome::Grains(told)) => {
                let seen = next.grains[*grain as usize..].iter_mut().zip(told);
                match seen.map(|(value, told)| value.see(*told)).fold(true, |all, one| all & one) {
                    true => vec![next],
                    false => Vec::new(),
                }
            }
            (Op::Stat { .. }, Outcome::Status { size, mode, .. }) => {
                match next.size.see(*size) & next.mode.see(*mode) {
                    true => vec![next],
                    false => Vec::new(),
                }
            }
            (Op::Write { grain, count, stamp, .. }, _) => {
                let written = |(size, mut state): (u32, FileState)| {
                    state.put(size, *grain, *count, *stamp);
                    state
                };
                state.sized().into_iter().map(written).collect()
            }
            (Op::Append { count, stamp, .. }, outcome) => {
                let fits = |(size, _): &(u32, FileState)| match outcome {
                    Outcome::At(at) => at == size,
                    _ => true,
                };
                let appended = |(size, mut state): (u32, FileState)| {
                    state.put(size, size, *count, *stamp);
                    state
                };
                state.sized().into_iter().filter(fits).map(appended).collect()
            }
            (Op::Resize { grains, .. }, _) => {
                next.size.set(*grains);
                next.grains[*grains as usize..].iter_mut().for_each(|value| value.set(0));
                vec![next]
            }
            (Op::Chmod { mode, .. }, _) => {
                next.mode.set(*mode);
                vec![next]
            }
            (Op::Fsync { .. } | Op::SyncAll, _) => {
                next.values().for_each(|value| value.since.clear());
                vec![next]
            }
            (Op::Crash { .. }, _) => {
                next.values().for_each(Value::crash);
                vec![next]
            }
            (op, outcome) => unreachable!("{op:?} {outcome:?} tells of a file"),
        }
    }
}

/// Which calls tell anything of names.
fn tells_of_names(event: &Event) -> bool {
    let Event { op, outcome, .. } = event;
    match op {
        Op::Write { .. } | Op::Append { .. } | Op::Read { .. } => false,
        Op::Resize { .. } | Op::Chmod { .. } => false,
        Op::Lookup { .. } | Op::List { .. } | Op::Stat { .. } | Op::Fsync { .. } | Op::SyncAll => {
            !matches!(outcome, Outcome::Unknown | Outcome::Refused)
        }
        _ => *outcome != Outcome::Refused,
    }
}

/// Which calls tell anything of the file.
fn tells_of(event: &Event, file: Number) -> bool {
    let Event { op, outcome, .. } = event;
    match op {
        Op::SyncAll => *outcome == Outcome::Done,
        Op::Crash { .. } => true,
        Op::Link { .. } => false,
        Op::Fsync { .. } => *outcome == Outcome::Done && op.file() == Some(file),
        _ if op.file() != Some(file) => false,
        _ if op.only_reads() => matches!(outcome, Outcome::Grains(_) | Outcome::Status { .. }),
        _ => !matches!(outcome, Outcome::Refused | Outcome::Gone),
    }
}

/// The calls as they are judged: from when on they may stand in the sequence. They are those of one
/// object.
fn placed(events: Vec<Event>, crashes: &[(u64, u64)]) -> Vec<Event> {
    let place = |event: &Event| {
        let missed = crashes.iter().filter(|(life, _)| event.life < *life);
        let missed = missed.map(|(_, moment)| *moment);
        let changing = events.iter().filter(|other| {
            event.op.only_reads()
                && !other.op.only_reads()
                && other.client == event.client
                && other.invoked < event.invoked
                && other.ended.is_none_or(|ended| ended > event.invoked)
        });
        let changing = changing.map(|other| other.invoked);
        let earliest = match event.op {
            Op::Crash { .. } => None,
            _ => missed.chain(changing).min(),
        };
        let invoked = event.invoked.min(earliest.unwrap_or(u64::MAX));
        Event { invoked, ..event.clone() }
    };
    events.iter().map(place).collect()
}

/// What is wrong with a history that began with `entries`, if anything.
pub fn judge(entries: &Entries, events: &[Event]) -> Result<(), String> {
    let crashes: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| match event.op {
            Op::Crash { life } => Some((life, event.invoked)),
            _ => None,
        })
        .collect();
    let made = events.iter().filter_map(|event| match event.outcome {
        Outcome::Made(file, true) => Some(file),
        _ => None,
    });
    let made = made.chain(entries.values().copied()).collect();
    let own = events.iter().filter(|event| tells_of_names(event)).cloned().collect();
    let own = placed(own, &crashes);
    let entries = Rc::new(entries.clone());
    let names = Names { entries, since: Vec::new(), heard: BTreeMap::new() };
    let model = NamesModel { made, has_crashes: !crashes.is_empty() };
    complain("names", &own, search(&model, names, &own))?;
    let files: BTreeSet<Number> = events.iter().filter_map(|event| event.op.file()).collect();
    for file in files {
        let own = events.iter().filter(|event| tells_of(event, file)).cloned().collect();
        let own = placed(own, &crashes);
        let verdict = search(&FileModel, FileState::new(), &own);
        complain(&format!("file {file}"), &own, verdict)?;
    }
    Ok(())
}

fn complain(subject: &str, events: &[Event], verdict: Verdict) -> Result<(), String> {
    let (complaint, longest, stuck) = match verdict {
        Verdict::Fits => return Ok(()),
        Verdict::Impossible { longest, stuck } => {
            ("no sequence explains the answers", longest, stuck)
        }
        Verdict::Undecided { longest, stuck } => {
            ("the search for a sequence takes too long", longest, stuck)
        }
    };
    let line = |at: &usize| {
        let Event { client, op, outcome, invoked, responded, .. } = &events[*at];
        let end = responded.map_or("..".to_owned(), |moment| moment.to_string());
        format!("    client {client} {invoked}-{end}: {op:?} -> {outcome:?}")
    };
    let skipped = longest.len().saturating_sub(40);
    let told: Vec<String> = longest[skipped..].iter().map(line).collect();
    let stuck: Vec<String> = stuck.iter().map(line).collect();
    let (told, stuck) = (told.join("\n"), stuck.join("\n"));
    Err(format!("{subject}: {complaint}\n  fits:\n{told}\n  stuck:\n{stuck}"))
}
