//! Whether what programs were answered can be told as a sequence, in which each answer is right.
//!
//! All names are one object, and each file's size, bytes and permissions are one. A sequence is
//! looked for each of them ([`search`]); if each has one, there is one of all calls.
//!
//! What may be lost, by the end of a session or by a crash of the server, is judged name by name
//! and grain by grain (`cell`): a rename may be lost by half, and what is left of
//! several writes need not be what there was at any moment. That is less strict than what is
//! promised, at which the simulation of a local filesystem looks closer.
//!
//! Two things are allowed besides:
//!
//! - A client that has not heard of a crash yet may see what was before, as long as nobody has
//!   changed anything since: its calls may stand before the crash in the sequence.
//! - A client sees its own change when it is complete; others may before, for the server asks for
//!   no lease of who changes something. What a client reads meanwhile may stand before the change.

use std::collections::{BTreeMap, BTreeSet};

use super::cell::{Author, Cell};
use super::history::{Event, Number, OnlyIf, Op, Outcome, Place};
use super::search::{Model, Verdict, search};

/// Numbers of files that are not known, because nobody heard of them, begin here.
const UNHEARD: Number = 1 << 63;
/// What a name stands for that is not there.
const NOTHING: Number = 0;
/// What an attribute's stamp is that is not there.
const UNSET: u32 = 0;
/// Names of extended attributes that programs use.
pub const XATTRS: u8 = 3;
/// Grains of a file that programs use on purpose.
pub const GRAINS_MAX: usize = 32;
/// Grains of a file that are judged; those who append do not know of each other.
const GRAINS_JUDGED: usize = 64;

fn author(event: &Event) -> Author {
    Author { client: event.client, first: event.session, last: event.last_session }
}

/// All names that there may be, and what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Names {
    cells: BTreeMap<Place, Cell<Number>>,
    /// What files that were made unheard have turned out to be.
    heard: BTreeSet<Number>,
}

struct NamesModel {
    /// Files that somebody was told he made: they are none of the unheard ones.
    made: BTreeSet<Number>,
}

impl Names {
    fn cell(&mut self, place: &Place) -> &mut Cell<Number> {
        self.cells.get_mut(place).expect("all places are known")
    }

    fn possible(&self, place: &Place) -> Vec<Number> {
        self.cells[place].possible().collect()
    }

    /// The states in which there is something at the place, with what it is.
    fn taken(&self, place: &Place, client: usize) -> Vec<(Self, Number)> {
        let there = self.possible(place).into_iter().filter(|held| *held != NOTHING);
        let seen = |held: Number| {
            let mut state = self.clone();
            state.cell(place).see(held, client);
            (state, held)
        };
        there.map(seen).collect()
    }

    /// The state in which there is nothing, if there may be nothing.
    fn free(&self, place: &Place, client: usize) -> Option<Self> {
        let mut state = self.clone();
        state.cell(place).see(NOTHING, client).then_some(state)
    }

    /// How many names a file has, at least and at most.
    fn count(&self, file: Number) -> (u32, u32) {
        let (mut least, mut most) = (0, 0);
        for cell in self.cells.values() {
            let mut values = cell.possible();
            least += u32::from(cell.possible().all(|held| held == file));
            most += u32::from(values.any(|held| held == file));
        }
        (least, most)
    }

    fn with(mut self, place: &Place, file: Number, event: &Event) -> Self {
        self.cell(place).set(file, author(event));
        self
    }
}

impl NamesModel {
    /// The states in which `place` stands for `told`.
    fn told(&self, state: &Names, place: &Place, told: Number, client: usize) -> Vec<Names> {
        let mut found = Vec::new();
        let mut known = state.clone();
        if known.cell(place).see(told, client) {
            found.push(known);
        }
        if told == NOTHING || self.made.contains(&told) || state.heard.contains(&told) {
            return found;
        }
        for held in state.possible(place).into_iter().filter(|held| *held >= UNHEARD) {
            let mut next = state.clone();
            next.cells.values_mut().for_each(|cell| cell.rename(held, told));
            next.heard.insert(told);
            next.cell(place).see(told, client);
            found.push(next);
        }
        found
    }

    fn listed(&self, state: &Names, dir: u8, told: &[(u8, Number)], client: usize) -> Vec<Names> {
        let told: BTreeMap<u8, Number> = told.iter().copied().collect();
        let places: Vec<Place> =
            state.cells.range((dir, 0)..=(dir, u8::MAX)).map(|(place, _)| *place).collect();
        let mut states = vec![state.clone()];
        for place in places {
            let held = told.get(&place.1).copied().unwrap_or(NOTHING);
            let next = states.iter().flat_map(|state| self.told(state, &place, held, client));
            states = next.collect();
        }
        states
    }

    fn renamed(
        &self,
        state: &Names,
        (from, to, replaces): (&Place, &Place, bool),
        event: &Event,
    ) -> Vec<Names> {
        let client = event.client;
        match event.outcome {
            Outcome::Absent => state.free(from, client).into_iter().collect(),
            // Kernels look both names up before, one after the other.
            Outcome::Exists if replaces => Vec::new(),
            Outcome::Exists => {
                state.taken(to, client).into_iter().map(|(state, _)| state).collect()
            }
            _ => {
                let mut after = Vec::new();
                for (state, source) in state.taken(from, client) {
                    for (next, target) in state.taken(to, client) {
                        match (replaces, source == target) {
                            (false, _) => {}
                            (true, true) => after.push(next),
                            (true, false) => after.push(moved(next, from, to, source, event)),
                        }
                    }
                    let free = state.free(to, client);
                    after.extend(free.map(|free| moved(free, from, to, source, event)));
                }
                after
            }
        }
    }
}

fn moved(state: Names, from: &Place, to: &Place, file: Number, event: &Event) -> Names {
    state.with(from, NOTHING, event).with(to, file, event)
}

impl Model for NamesModel {
    type State = Names;

    fn after(&self, state: &Names, event: &Event) -> Vec<Names> {
        let client = event.client;
        let seen = |place: &Place, told| self.told(state, place, told, client);
        let taken = |place: &Place| -> Vec<Names> {
            state.taken(place, client).into_iter().map(|(state, _)| state).collect()
        };
        let put = |place: &Place, file| -> Vec<Names> {
            let free = state.free(place, client).into_iter();
            free.map(|free| free.with(place, file, event)).collect()
        };
        let if_so = |holds: bool| if holds { vec![state.clone()] } else { Vec::new() };
        match (&event.op, &event.outcome) {
            (Op::Lookup { at }, Outcome::Found(told)) => seen(at, *told),
            (Op::Lookup { at }, _) => seen(at, NOTHING),
            (Op::Create { at, .. }, Outcome::Made(told, false)) => seen(at, *told),
            (Op::Create { at, .. } | Op::Link { at, .. }, Outcome::Exists) => taken(at),
            (Op::Create { at, .. }, Outcome::Made(told, true)) => put(at, *told),
            (Op::Create { at, .. }, _) => put(at, UNHEARD + event.invoked),
            (Op::Link { file, .. } | Op::Stat { file }, Outcome::Absent | Outcome::Gone) => {
                if_so(state.count(*file).0 == 0)
            }
            (Op::Link { file, at }, _) => match state.count(*file).1 {
                0 => Vec::new(),
                _ => put(at, *file),
            },
            (Op::Unlink { at }, Outcome::Absent) => seen(at, NOTHING),
            (Op::Unlink { at }, _) => {
                let gone = |state: Names| state.with(at, NOTHING, event);
                taken(at).into_iter().map(gone).collect()
            }
            (Op::Rename { from, to, replaces }, _) => {
                self.renamed(state, (from, to, *replaces), event)
            }
            (Op::List { dir }, Outcome::Names(told)) => self.listed(state, *dir, told, client),
            (Op::Stat { file }, Outcome::Status { nlink, .. }) => {
                let (least, most) = state.count(*file);
                if_so((least..=most).contains(nlink))
            }
            (Op::Fsync { .. } | Op::SyncAll | Op::Lost { .. } | Op::Crash { .. }, _) => {
                let mut next = state.clone();
                // A file that was made by who is lost has no names that others have given it.
                let is_built_on = match &event.op {
                    Op::Lost { by_crash, .. } => *by_crash,
                    Op::Crash { lost, .. } => !lost.is_empty(),
                    _ => false,
                };
                for cell in next.cells.values_mut() {
                    if is_built_on {
                        cell.crash_with_others();
                    }
                    happen(cell, event);
                }
                vec![next]
            }
            (op, outcome) => unreachable!("{op:?} {outcome:?} tells of names"),
        }
    }

    /// A name that is seen to stand for something stands for it, or may become so again, or one of
    /// the calls to come makes it so.
    fn is_hopeless(&self, state: &Names, left: &[&Event]) -> bool {
        let lost = Losses::of(left);
        let needs = left.iter().flat_map(|event| needs(event, state));
        needs.into_iter().any(|(place, told)| {
            let sets = |event: &&Event| match &event.op {
                Op::Create { at, .. } => *at == place && told != NOTHING,
                Op::Link { file, at } => *at == place && told == *file,
                Op::Unlink { at } => *at == place && told == NOTHING,
                Op::Rename { from, to, .. } => match told {
                    NOTHING => *from == place,
                    _ => *to == place,
                },
                _ => false,
            };
            let is_unheard = told != NOTHING && !self.made.contains(&told);
            let cell = &state.cells[&place];
            let may_be =
                lost.may_be(cell, told) || !lost.crashed.is_empty() && cell.was_since(told);
            !may_be && !is_unheard && !left.iter().any(sets)
        })
    }
}

/// What names have to stand for, for the answer to come.
fn needs(event: &Event, state: &Names) -> Vec<(Place, Number)> {
    match (&event.op, &event.outcome) {
        (Op::Lookup { at } | Op::Create { at, .. }, Outcome::Found(told)) => vec![(*at, *told)],
        (Op::Create { at, .. }, Outcome::Made(told, false)) => vec![(*at, *told)],
        (Op::Lookup { at } | Op::Unlink { at }, Outcome::Absent) => vec![(*at, NOTHING)],
        (Op::Rename { from, .. }, Outcome::Absent) => vec![(*from, NOTHING)],
        (Op::List { dir }, Outcome::Names(told)) => {
            let told: BTreeMap<u8, Number> = told.iter().copied().collect();
            let places = state.cells.range((*dir, 0)..=(*dir, u8::MAX));
            let need = |place: &Place| (*place, told.get(&place.1).copied().unwrap_or(NOTHING));
            places.map(|(place, _)| need(place)).collect()
        }
        _ => Vec::new(),
    }
}

/// What may still be lost.
struct Losses {
    sessions: Vec<u64>,
    crashed: Vec<u64>,
}

impl Losses {
    fn of(left: &[&Event]) -> Self {
        let (mut sessions, mut crashed) = (Vec::new(), Vec::new());
        for event in left {
            match &event.op {
                Op::Lost { session, by_crash } => {
                    sessions.push(*session);
                    crashed.extend(by_crash.then_some(*session));
                }
                Op::Crash { lost, .. } => crashed.extend(lost),
                _ => {}
            }
        }
        Self { sessions, crashed }
    }

    fn may_be<T: Ord + Copy>(&self, cell: &Cell<T>, value: T) -> bool {
        cell.may_become(value, &self.sessions, &self.crashed)
    }
}

/// What happens to all that there is.
fn happen<T: Ord + Copy>(cell: &mut Cell<T>, event: &Event) {
    match &event.op {
        Op::Lost { session, by_crash } => {
            if *by_crash {
                cell.crash(&[*session]);
            }
            cell.lose(*session);
        }
        Op::Crash { lost, .. } => cell.crash(lost),
        _ => cell.sync(event.client),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileState {
    size: Cell<u32>,
    mode: Cell<u32>,
    xattrs: Vec<Cell<u32>>,
    grains: Vec<Cell<u32>>,
}

impl FileState {
    fn new() -> Self {
        let grains = vec![Cell::is(0); GRAINS_JUDGED];
        let xattrs = vec![Cell::is(UNSET); usize::from(XATTRS)];
        Self { size: Cell::is(0), mode: Cell::is(0o644), xattrs, grains }
    }

    fn cells(&mut self) -> impl Iterator<Item = &mut Cell<u32>> {
        let one = [&mut self.size, &mut self.mode].into_iter();
        one.chain(&mut self.xattrs).chain(&mut self.grains)
    }

    fn put(&mut self, size: u32, (grain, count, stamp): (u32, u32, u32), author: Author) {
        let end = grain + count;
        let written = (grain as usize).min(GRAINS_JUDGED)..(end as usize).min(GRAINS_JUDGED);
        self.grains[written].iter_mut().for_each(|cell| cell.set(stamp, author));
        match end > size {
            true => self.size.set(end, author),
            // What has made the file longer may be lost, and this not.
            false => self.size.would_be(end),
        }
    }

    /// The states in which an attribute is set, or not, as somebody was told.
    fn with_xattr(&self, name: u8, is_set: bool, client: usize) -> Vec<Self> {
        let values = self.xattrs[usize::from(name)].possible();
        let seen = |value: u32| {
            let mut state = self.clone();
            state.xattrs[usize::from(name)].see(value, client);
            state
        };
        values.filter(|value| (*value != UNSET) == is_set).map(seen).collect()
    }

    /// The states after the attribute was set to something, or to nothing.
    fn after_xattr(&self, event: &Event) -> Vec<Self> {
        let (name, stamp, only_if) = match event.op {
            Op::SetXattr { name, stamp, only_if, .. } => (name, stamp, only_if),
            Op::RemoveXattr { name, .. } => (name, UNSET, OnlyIf::Present),
            _ => unreachable!("{:?} changes no attribute", event.op),
        };
        let before = |is_set| self.with_xattr(name, is_set, event.client);
        let from = match (&event.outcome, only_if) {
            (Outcome::Exists, _) => return before(true),
            (Outcome::Absent, _) => return before(false),
            (_, OnlyIf::Always) => vec![self.clone()],
            (_, OnlyIf::Absent) => before(false),
            (_, OnlyIf::Present) => before(true),
        };
        let set = |mut state: Self| {
            state.xattrs[usize::from(name)].set(stamp, author(event));
            state
        };
        from.into_iter().map(set).collect()
    }

    /// The states in which a file has these attributes.
    fn with_xattrs(&self, told: &[u8], client: usize) -> Vec<Self> {
        (0..XATTRS).fold(vec![self.clone()], |states, name| {
            let is_set = told.contains(&name);
            states.iter().flat_map(|state| state.with_xattr(name, is_set, client)).collect()
        })
    }

    /// One state for each size that it may have.
    fn sized(&self) -> Vec<(u32, Self)> {
        let sized = |size: u32| {
            let mut state = self.clone();
            state.size.assume(size);
            (size, state)
        };
        self.size.possible().map(sized).collect()
    }
}

struct FileModel;

impl Model for FileModel {
    type State = FileState;

    fn after(&self, state: &FileState, event: &Event) -> Vec<FileState> {
        let mut next = state.clone();
        let (client, author) = (event.client, author(event));
        let if_so = |holds: bool, next| if holds { vec![next] } else { Vec::new() };
        match (&event.op, &event.outcome) {
            (Op::Read { grain, .. }, Outcome::Grains(told)) => {
                let seen = next.grains[*grain as usize..].iter_mut().zip(told);
                let seen = seen.map(|(cell, told)| cell.see(*told, client));
                let holds = seen.fold(true, |all, one| all & one);
                if_so(holds, next)
            }
            (Op::Stat { .. }, Outcome::Status { size, mode, .. }) => {
                let holds = next.size.see(*size, client) & next.mode.see(*mode, client);
                if_so(holds, next)
            }
            (Op::Write { grain, count, stamp, .. }, _) => {
                let written = |(size, mut state): (u32, FileState)| {
                    state.put(size, (*grain, *count, *stamp), author);
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
                    state.put(size, (size, *count, *stamp), author);
                    state
                };
                state.sized().into_iter().filter(fits).map(appended).collect()
            }
            (Op::Resize { grains, .. }, _) => {
                next.size.set(*grains, author);
                let cut = next.grains[*grains as usize..].iter_mut();
                cut.for_each(|cell| cell.set(0, author));
                vec![next]
            }
            (Op::SetXattr { .. } | Op::RemoveXattr { .. }, _) => state.after_xattr(event),
            (Op::Xattr { name, .. }, Outcome::Absent) => state.with_xattr(*name, false, client),
            (Op::Xattr { name, .. }, Outcome::Value(told)) => {
                let holds = next.xattrs[usize::from(*name)].see(*told, client);
                if_so(holds, next)
            }
            (Op::Xattrs { .. }, Outcome::Attributes(told)) => state.with_xattrs(told, client),
            (Op::Chmod { mode, .. }, _) => {
                next.mode.set(*mode, author);
                vec![next]
            }
            (Op::Fsync { .. } | Op::SyncAll | Op::Lost { .. } | Op::Crash { .. }, _) => {
                next.cells().for_each(|cell| happen(cell, event));
                vec![next]
            }
            (op, outcome) => unreachable!("{op:?} {outcome:?} tells of a file"),
        }
    }

    /// Every write has its own stamp: what was read of it was there between that write and the next
    /// one.
    fn is_hopeless(&self, state: &FileState, left: &[&Event]) -> bool {
        let lost = Losses::of(left);
        let to_come: Vec<u32> = left
            .iter()
            .filter_map(|event| match event.op {
                Op::Write { stamp, .. } | Op::Append { stamp, .. } => Some(stamp),
                _ => None,
            })
            .collect();
        left.iter().any(|event| {
            let (Op::Read { grain, .. }, Outcome::Grains(told)) = (&event.op, &event.outcome)
            else {
                return false;
            };
            let cells = state.grains[*grain as usize..].iter().zip(told);
            cells.into_iter().any(|(cell, told)| {
                *told != 0 && !lost.may_be(cell, *told) && !to_come.contains(told)
            })
        })
    }
}

/// Which calls tell anything of names.
fn tells_of_names(event: &Event) -> bool {
    let Event { op, outcome, .. } = event;
    match op {
        Op::Write { .. } | Op::Append { .. } | Op::Read { .. } => false,
        Op::Resize { .. } | Op::Chmod { .. } => false,
        Op::SetXattr { .. } | Op::RemoveXattr { .. } => false,
        Op::Xattr { .. } | Op::Xattrs { .. } => false,
        Op::Lock { .. } | Op::Unlock { .. } => false,
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
        Op::Lost { .. } | Op::Crash { .. } => true,
        Op::Link { .. } | Op::Lock { .. } | Op::Unlock { .. } => false,
        Op::Fsync { .. } => *outcome == Outcome::Done && op.file() == Some(file),
        _ if op.file() != Some(file) => false,
        Op::Xattr { .. } => matches!(outcome, Outcome::Value(_) | Outcome::Absent),
        _ if op.only_reads() => {
            matches!(outcome, Outcome::Grains(_) | Outcome::Status { .. } | Outcome::Attributes(_))
        }
        _ => !matches!(outcome, Outcome::Refused | Outcome::Gone),
    }
}

/// A crash of the server.
struct Crash {
    life: u64,
    moment: u64,
    /// When the first change was complete that was made after it.
    changed: Option<u64>,
}

fn crashes(events: &[Event]) -> Vec<Crash> {
    let crash = |event: &Event| {
        let Op::Crash { life, .. } = event.op else { return None };
        let changes = events.iter().filter(|event| {
            event.life >= life && event.life != u64::MAX && has_changed(&event.outcome, &event.op)
        });
        let changed = changes.filter_map(|event| event.ended).min();
        Some(Crash { life, moment: event.invoked, changed })
    };
    events.iter().filter_map(crash).collect()
}

fn has_changed(outcome: &Outcome, op: &Op) -> bool {
    match outcome {
        Outcome::Made(_, is_new) => *is_new,
        Outcome::At(_) => true,
        Outcome::Done => {
            let is_lock = matches!(op, Op::Lock { .. } | Op::Unlock { .. });
            !is_lock && !matches!(op, Op::Fsync { .. } | Op::SyncAll)
        }
        _ => false,
    }
}

/// The calls as they are judged: from when on they may stand in the sequence. They are those of one
/// object.
fn placed(events: Vec<Event>, crashes: &[Crash]) -> Vec<Event> {
    let place = |event: &Event| {
        let missed = crashes.iter().filter(|crash| {
            event.life < crash.life && crash.changed.is_none_or(|changed| event.invoked < changed)
        });
        let missed = missed.map(|crash| crash.moment);
        let changing = events.iter().filter(|other| {
            event.op.only_reads()
                && !other.op.only_reads()
                && other.client == event.client
                && other.invoked < event.invoked
                && other.ended.is_none_or(|ended| ended > event.invoked)
        });
        let changing = changing.map(|other| other.invoked);
        let earliest = match event.op {
            Op::Lost { .. } | Op::Crash { .. } => None,
            _ => missed.chain(changing).min(),
        };
        let invoked = event.invoked.min(earliest.unwrap_or(u64::MAX));
        Event { invoked, ..event.clone() }
    };
    events.iter().map(place).collect()
}

/// What is wrong with a history that began with `entries`, if anything; else of how many objects
/// nothing was found out in time.
pub fn judge(entries: &BTreeMap<Place, Number>, events: &[Event]) -> Result<u64, String> {
    let crashes = crashes(events);
    let made = events.iter().filter_map(|event| match event.outcome {
        Outcome::Made(file, true) => Some(file),
        _ => None,
    });
    let made = made.chain(entries.values().copied()).collect();
    let own = events.iter().filter(|event| tells_of_names(event)).cloned().collect();
    let own = placed(own, &crashes);
    let cells = entries.iter().map(|(place, file)| (*place, Cell::is(*file))).collect();
    let names = Names { cells, heard: BTreeSet::new() };
    let mut undecided = complain("names", &own, search(&NamesModel { made }, names, &own))?;
    let files: BTreeSet<Number> = events.iter().filter_map(|event| event.op.file()).collect();
    for file in files {
        let own = events.iter().filter(|event| tells_of(event, file)).cloned().collect();
        let own = placed(own, &crashes);
        let verdict = search(&FileModel, FileState::new(), &own);
        undecided += complain(&format!("file {file}"), &own, verdict)?;
    }
    Ok(undecided)
}

fn complain(subject: &str, events: &[Event], verdict: Verdict) -> Result<u64, String> {
    let (longest, stuck) = match verdict {
        Verdict::Fits => return Ok(0),
        Verdict::Undecided => return Ok(1),
        Verdict::Impossible { longest, stuck } => (longest, stuck),
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
    let complaint = "no sequence explains the answers";
    Err(format!("{subject}: {complaint}\n  fits:\n{told}\n  stuck:\n{stuck}"))
}
