//! Names: what each of them stands for, all directories together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::cell::Cell;
use super::super::history::{Event, Number, Op, Outcome, Place, SnapshotNumber};
use super::super::search::Model;
use super::snapshots::{self, Forest};
use super::{Losses, NOTHING, UNHEARD, author, happen};

/// All names that there may be, and what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Names {
    cells: BTreeMap<Place, Cell<Number>>,
    /// What files that were made unheard have turned out to be.
    heard: BTreeSet<Number>,
    snapshots: BTreeMap<SnapshotNumber, Arc<BTreeMap<Place, Cell<Number>>>>,
}

pub(super) struct NamesModel {
    /// Files that somebody was told he made: they are none of the unheard ones.
    pub(super) made: BTreeSet<Number>,
}

impl Names {
    /// What there is in the beginning.
    pub(super) fn new(entries: &BTreeMap<Place, Number>) -> Self {
        let cells = entries.iter().map(|(place, file)| (*place, Cell::is(*file))).collect();
        Self { cells, heard: BTreeSet::new(), snapshots: BTreeMap::new() }
    }

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

impl Forest for Names {
    type Kept = Arc<BTreeMap<Place, Cell<Number>>>;

    fn snapshots(&mut self) -> &mut BTreeMap<SnapshotNumber, Self::Kept> {
        &mut self.snapshots
    }

    fn keep(&self) -> Self::Kept {
        Arc::new(self.cells.iter().map(|(place, cell)| (*place, cell.frozen())).collect())
    }

    fn swap(&mut self, kept: &mut Self::Kept) {
        std::mem::swap(&mut self.cells, Arc::make_mut(kept));
    }

    fn cannot_be(kept: &Self::Kept, op: &Op, outcome: &Outcome) -> bool {
        let cannot = |place: &Place, told: Number| {
            let is_it = |value| value == told || told != NOTHING && value >= UNHEARD;
            !kept[place].possible().any(is_it)
        };
        match (op, outcome) {
            (Op::Lookup { at }, Outcome::Found(told)) => cannot(at, *told),
            (Op::Lookup { at }, Outcome::Absent) => cannot(at, NOTHING),
            (Op::List { dir }, Outcome::Names(told)) => {
                let told: BTreeMap<u8, Number> = told.iter().copied().collect();
                let places = kept.range((*dir, 0)..=(*dir, u8::MAX)).map(|(place, _)| place);
                let told = |place: &Place| told.get(&place.1).copied().unwrap_or(NOTHING);
                places.into_iter().any(|place| cannot(place, told(place)))
            }
            _ => false,
        }
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
            let kept = next.snapshots.values_mut();
            let kept = kept.flat_map(|kept| Arc::make_mut(kept).values_mut());
            next.cells.values_mut().chain(kept).for_each(|cell| cell.rename(held, told));
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

/// What is said again after a crash moves what goes by the name then, which may be another file if
/// what its name was given to is lost.
fn moved(state: Names, from: &Place, to: &Place, file: Number, event: &Event) -> Names {
    let others: Vec<Number> = state.cells[from].before().filter(|old| *old != NOTHING).collect();
    let mut next = state.with(from, NOTHING, event).with(to, file, event);
    others.into_iter().for_each(|other| next.cell(to).might_be(other, author(event)));
    next
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
            (
                Op::Snapshot { .. }
                | Op::RemoveSnapshot { .. }
                | Op::Rollback { .. }
                | Op::InSnapshot { .. },
                _,
            ) => snapshots::after(self, state, event),
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
        if snapshots::are_hopeless(&state.snapshots, left, Names::cannot_be) {
            return true;
        }
        if snapshots::may_come_back(left) {
            return false;
        }
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

#[cfg(test)]
mod tests {
    use super::super::super::history::History;
    use super::super::judge;
    use super::*;

    const FROM: Place = (0, 0);
    const TO: Place = (0, 1);
    const OLD: Number = 7;
    const REPLACED: Number = 8;
    const NEW: Number = 9;

    /// One client has put a new file where an old one was, another one has moved it, and then the
    /// server has crashed. Whether the name that it was moved to may stand for `told` then.
    fn may_be(told: Number, is_synced: bool, is_lost: bool) -> bool {
        let history = History::default();
        let call = |client: usize, op, outcome| {
            let call = history.invoke(client, 1, client as u64, op);
            history.respond(call, client as u64, outcome);
        };
        call(2, Op::Unlink { at: FROM }, Outcome::Done);
        call(2, Op::Create { at: FROM, is_exclusive: true }, Outcome::Made(NEW, true));
        call(1, Op::Lookup { at: FROM }, Outcome::Found(NEW));
        if is_synced {
            call(1, Op::SyncAll, Outcome::Done);
        }
        call(1, Op::Rename { from: FROM, to: TO, replaces: true }, Outcome::Done);
        history.crash(2);
        if is_lost {
            history.lost(2, true);
        }
        call(1, Op::List { dir: 0 }, Outcome::Names(vec![(TO.1, told)]));
        let entries = [(FROM, OLD), (TO, REPLACED)].into();
        judge(&entries, &history.events()).is_ok()
    }

    #[test]
    fn what_is_moved_again_is_what_was_there_before_what_is_lost() {
        assert!(may_be(OLD, false, true));
        assert!(!may_be(OLD, false, false), "nothing was lost");
        assert!(!may_be(OLD, true, true), "it was durable that there was another one");
        assert!(!may_be(OLD + 100, false, true), "it was never there");
        for (is_synced, is_lost) in [(false, true), (false, false), (true, true)] {
            assert!(may_be(NEW, is_synced, is_lost));
        }
    }
}
