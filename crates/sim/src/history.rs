//! What was asked of a filesystem and answered, and all that its files ever held.
//!
//! ```text
//! step      0     1     2     3           state i: after i steps, as the model has it
//! state  0     1     2     3     4
//! events   0..2  2..2  2..7  7..9         on the disk's time line, per step
//! ```
//!
//! For each file the history keeps every version of its bytes, and at which states the file was
//! *clean*: all its bytes are known to be durable as soon as the names of that state are. A file
//! is clean when it is made, when it is synced, when nothing is left of it, and when it took
//! another file's place by a rename; writing bytes ends that. Changes of size and layout do not:
//! they are durable together with the names.
//!
//! Blocks that two versions share are kept once.
//!
//! Beside the operations the filesystem may grow ([`Growth`]), which changes no state.
//!
//! Two answers need not be the model's ([`carried_out`]): a copy may end early, and where space is
//! scarce an operation that adds something may have no room and then has done nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::model::{Effect, Model, Number};
use crate::op::{Errno, Op, Outcome, Value};
use crate::tree::Namespace;

/// In what units bytes survive a crash.
pub const BLOCK: usize = 4096;

/// An operation that was carried out.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was asked.
    pub op: Op,
    /// Position on the disk's time line when it was asked, and when it was answered.
    pub events: Range<usize>,
    /// Whether the answer promised that all names up to here are durable.
    pub barrier: bool,
}

/// A block's bytes; `None` stands for zeros.
pub type Block = Option<Arc<[u8]>>;

/// What a file held from some state on.
#[derive(Clone, Debug)]
pub struct Version {
    /// The first state that has it.
    pub state: usize,
    /// In bytes.
    pub size: usize,
    /// The bytes, padded with zeros to whole blocks.
    pub blocks: Vec<Block>,
}

impl Version {
    /// Whether the first bytes of block `index` are `bytes`. Past the end there are zeros.
    pub fn block_starts_with(&self, index: usize, bytes: &[u8]) -> bool {
        match self.blocks.get(index) {
            Some(Some(block)) => block[..bytes.len()] == *bytes,
            Some(None) | None => bytes.iter().all(|byte| *byte == 0),
        }
    }
}

/// A file's life.
#[derive(Clone, Debug, Default)]
pub struct FileHistory {
    versions: Vec<Version>,
    /// From which states on it was clean, or not. The first entry is its birth, clean.
    clean_from: Vec<(usize, bool)>,
}

impl FileHistory {
    /// All versions, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The versions that a crash may mix, if the names are those of state `prefix` and no step
    /// from state `started` on was begun.
    pub fn window(&self, prefix: usize, started: usize) -> &[Version] {
        let known = self.clean_until(prefix);
        let from = self.versions.partition_point(|version| version.state <= known);
        let to = self.versions.partition_point(|version| version.state <= started);
        &self.versions[from.saturating_sub(1)..to]
    }

    /// The last state up to `prefix` at which the file was clean.
    fn clean_until(&self, prefix: usize) -> usize {
        let past = self.clean_from.partition_point(|(state, _)| *state <= prefix);
        match self.clean_from[..past].last() {
            Some((_, true)) | None => prefix,
            Some((state, false)) => state - 1,
        }
    }

    fn add_version(&mut self, state: usize, bytes: &[u8]) {
        let before = self.versions.last();
        let block = |(index, chunk): (usize, &[u8])| {
            if chunk.iter().all(|byte| *byte == 0) {
                return None;
            }
            let same = before.filter(|before| {
                before.blocks.get(index).is_some_and(Option::is_some)
                    && before.block_starts_with(index, chunk)
                    && chunk.len() == BLOCK
            });
            if let Some(same) = same {
                return same.blocks[index].clone();
            }
            let mut padded = chunk.to_vec();
            padded.resize(BLOCK, 0);
            Some(Arc::from(padded))
        };
        let blocks = bytes.chunks(BLOCK).enumerate().map(block).collect();
        self.versions.push(Version { state, size: bytes.len(), blocks });
    }

    fn set_clean(&mut self, state: usize, clean: bool) {
        if self.clean_from.last().is_none_or(|(_, before)| *before != clean) {
            self.clean_from.push((state, clean));
        }
    }
}

struct State {
    namespace: Arc<Namespace>,
    digest: u64,
}

/// An answer that is not the model's.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Which operation, counted from 0.
    pub step: usize,
    /// What was asked.
    pub op: Op,
    /// What the model answers.
    pub expected: Outcome,
    /// What the system answered.
    pub answered: Outcome,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, op, expected, answered } = self;
        writeln!(f, "operation {step}: {op:?}")?;
        write!(f, "expected {expected:?}\nanswered {answered:?}")
    }
}

/// How much space there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More than the operations need: having none is a wrong answer.
    Ample,
    /// Perhaps too little, on the disk or by a quota: whatever adds something may be refused.
    Scarce,
}

/// The operation that the model has to do for `op`, going by its answer. `None` for none at all.
pub fn carried_out(op: &Op, answered: &Outcome, room: Room) -> Option<Op> {
    let mut op = op.clone();
    match (&mut op, answered) {
        (op, Err(Errno::ENOSPC | Errno::EDQUOT)) if room == Room::Scarce && op.adds() => {
            return None;
        }
        (Op::CopyRange { length, .. }, Ok(Value::Count(copied @ 1..))) => {
            *length = (*length).min(*copied);
        }
        _ => {}
    }
    Some(op)
}

/// The filesystem became longer.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Position on the disk's time line when it was asked for.
    pub begun: usize,
    /// And when the filesystem said that it has its new length, if it has.
    pub done: Option<usize>,
    /// Its length before, in blocks.
    pub from: u64,
    /// Its length afterwards, in blocks.
    pub to: u64,
}

/// The record of a run.
pub struct History {
    model: Model,
    room: Room,
    steps: Vec<Step>,
    growths: Vec<Growth>,
    refused: usize,
    states: Vec<State>,
    files: BTreeMap<Number, FileHistory>,
}

impl History {
    /// The record of a filesystem that is `model` now, all of it durable.
    pub fn new(model: Model, room: Room) -> Self {
        let namespace = Arc::new(model.namespace());
        let digest = namespace.digest();
        let states = vec![State { namespace, digest }];
        let mut history = Self {
            model,
            room,
            steps: Vec::new(),
            growths: Vec::new(),
            refused: 0,
            states,
            files: BTreeMap::new(),
        };
        history.record_births(0);
        history
    }

    /// Adds an operation that was asked and answered between two positions of the disk.
    pub fn record(
        &mut self,
        op: &Op,
        answered: Outcome,
        events: Range<usize>,
    ) -> Result<(), Box<Mismatch>> {
        let Some(carried_out) = carried_out(op, &answered, self.room) else {
            self.refused += 1;
            self.steps.push(Step { op: op.clone(), events, barrier: false });
            self.record_state();
            return Ok(());
        };
        let expected = self.model.apply(&carried_out);
        if expected != answered {
            let (step, op) = (self.steps.len(), op.clone());
            return Err(Box::new(Mismatch { step, op, expected, answered }));
        }
        let state = self.steps.len() + 1;
        self.record_births(state);
        let mut barrier = false;
        for effect in self.model.effects().to_vec() {
            barrier |= matches!(effect, Effect::Synced(_) | Effect::SyncedAll);
            self.record_effect(effect, state);
        }
        self.steps.push(Step { op: op.clone(), events, barrier });
        self.record_state();
        Ok(())
    }

    /// Adds an operation that failed because the disk did: it may have happened or not, and
    /// promises nothing. The last one of a run.
    pub fn record_failed(&mut self, op: &Op, events: Range<usize>) {
        let _ = self.model.apply(op);
        let state = self.steps.len() + 1;
        self.record_births(state);
        for effect in self.model.effects().to_vec() {
            if !matches!(effect, Effect::Synced(_) | Effect::SyncedAll) {
                self.record_effect(effect, state);
            }
        }
        self.steps.push(Step { op: op.clone(), events, barrier: false });
        self.record_state();
    }

    /// The filesystem was asked to grow. It does that while operations go on, until
    /// [`History::end_growth`].
    pub fn begin_growth(&mut self, begun: usize, from: u64, to: u64) {
        self.growths.push(Growth { begun, done: None, from, to });
    }

    /// The filesystem has `blocks` blocks: if that is what it was asked for, it has grown.
    pub fn end_growth(&mut self, position: usize, blocks: u64) {
        let growing = self.growths.last_mut().filter(|growth| growth.to == blocks);
        if let Some(growth) = growing {
            growth.done.get_or_insert(position);
        }
    }

    /// The last growth that was begun before position `issued`.
    pub fn growth(&self, issued: usize) -> Option<Growth> {
        self.growths.iter().rev().find(|growth| growth.begun < issued).copied()
    }

    fn record_births(&mut self, state: usize) {
        for number in self.model.files() {
            self.files.entry(number).or_insert_with(|| {
                // Files of the beginning have bytes, later ones get theirs by an effect.
                let bytes = self.model.file_bytes(number).filter(|_| state == 0);
                let mut file = FileHistory::default();
                file.add_version(state, bytes.unwrap_or_default());
                file.set_clean(state, true);
                file
            });
        }
    }

    fn record_effect(&mut self, effect: Effect, state: usize) {
        let (number, clean) = match effect {
            Effect::Bytes(number) => (number, Some(false)),
            Effect::Shape(number) => (number, None),
            Effect::Emptied(number) | Effect::RenamedOver(number) | Effect::Synced(number) => {
                (number, Some(true))
            }
            Effect::SyncedAll => {
                self.files.values_mut().for_each(|file| file.set_clean(state, true));
                return;
            }
        };
        let Some(file) = self.files.get_mut(&number) else { return };
        if let (Effect::Bytes(_) | Effect::Shape(_) | Effect::Emptied(_), Some(bytes)) =
            (effect, self.model.file_bytes(number))
        {
            file.add_version(state, bytes);
        }
        if let Some(clean) = clean {
            file.set_clean(state, clean);
        }
    }

    fn record_state(&mut self) {
        let namespace = self.model.namespace();
        let before = &self.states[self.states.len() - 1];
        let state = if *before.namespace == namespace {
            State { namespace: Arc::clone(&before.namespace), digest: before.digest }
        } else {
            State { digest: namespace.digest(), namespace: Arc::new(namespace) }
        };
        self.states.push(state);
    }

    /// All operations.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many operations were refused for lack of space.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// The names of state `state`, and their digest.
    pub fn names(&self, state: usize) -> (&Arc<Namespace>, u64) {
        (&self.states[state].namespace, self.states[state].digest)
    }

    /// The life of a file.
    pub fn file(&self, number: Number) -> Option<&FileHistory> {
        self.files.get(&number)
    }

    /// All files that ever were.
    pub fn files(&self) -> impl Iterator<Item = (Number, &FileHistory)> {
        self.files.iter().map(|(number, file)| (*number, file))
    }

    /// The earliest state whose names a crash may leave, if the disk's events before position
    /// `acknowledged` were acknowledged.
    pub fn durable(&self, acknowledged: usize) -> usize {
        let durable = |step: &Step| step.barrier && step.events.end <= acknowledged;
        self.steps.iter().rposition(durable).map_or(0, |step| step + 1)
    }

    /// The latest state that a crash may leave, if no event from position `issued` on was begun.
    pub fn started(&self, issued: usize) -> usize {
        let begun = |step: &Step| step.events.start < issued || step.events.end <= issued;
        self.steps.partition_point(begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Target, Value};

    fn target() -> Target {
        Target::Path("a".to_owned())
    }

    fn write(stamp: u64) -> Op {
        Op::Write { file: target(), offset: 0, length: 5000, stamp }
    }

    fn history(ops: &[Op]) -> History {
        let (mut history, mut model) = (History::new(Model::new(), Room::Ample), Model::new());
        for (at, op) in ops.iter().enumerate() {
            let answered = model.apply(op);
            history.record(op, answered, at..at + 1).expect("the model agrees with itself");
        }
        history
    }

    #[test]
    fn the_window_opens_at_the_last_clean_state() {
        let make =
            Op::Mknod { path: "a".to_owned(), kind: crate::op::Kind::File, mode: 0o600, rdev: 0 };
        let sync = Op::Fsync { object: target() };
        let cut = Op::SetSize { file: target(), size: 4096 };
        let history = history(&[make, write(1), write(2), sync, cut, write(3)]);
        let (_, file) = history.files().next().expect("one file");
        let states = |prefix, started| -> Vec<usize> {
            file.window(prefix, started).iter().map(|version| version.state).collect()
        };
        assert_eq!(states(1, 1), [1]);
        assert_eq!(states(3, 3), [1, 2, 3]);
        assert_eq!(states(4, 4), [3]);
        assert_eq!(states(5, 5), [5]);
        assert_eq!(states(4, 6), [3, 5, 6]);
        assert_eq!(states(6, 6), [5, 6]);
        assert_eq!((history.durable(3), history.durable(4), history.started(5)), (0, 4, 5));
    }

    #[test]
    fn an_answer_that_is_not_the_models_is_reported() {
        let mut history = History::new(Model::new(), Room::Ample);
        let mismatch = history.record(&write(1), Ok(Value::Done), 0..0);
        assert!(mismatch.is_err_and(|mismatch| mismatch.to_string().contains("ENOENT")));
    }

    #[test]
    fn an_operation_without_room_has_done_nothing_and_removing_never_lacks_room() {
        let full = || Err(Errno::ENOSPC);
        let make =
            Op::Mknod { path: "a".to_owned(), kind: crate::op::Kind::File, mode: 0o600, rdev: 0 };
        let remove = Op::Unlink { path: "a".to_owned() };
        let mut history = History::new(Model::new(), Room::Scarce);
        assert!(history.record(&make, full(), 0..1).is_ok());
        assert_eq!(history.files().count(), 0);
        assert!(history.record(&make, Ok(Value::Done), 1..2).is_ok());
        assert!(history.record(&remove, full(), 2..3).is_err());
        let mut history = History::new(Model::new(), Room::Ample);
        assert!(history.record(&make, full(), 0..1).is_err());
    }

    #[test]
    fn a_copy_may_end_early_but_not_before_it_begins() {
        let copy = |length| Op::CopyRange {
            from: target(),
            from_offset: 0,
            to: target(),
            to_offset: 8192,
            length,
        };
        let answered = |count| Ok(Value::Count(count));
        assert_eq!(carried_out(&copy(100), &answered(60), Room::Ample), Some(copy(60)));
        assert_eq!(carried_out(&copy(100), &answered(0), Room::Ample), Some(copy(100)));
    }
}
