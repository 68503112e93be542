//! One file: its size, bytes, permissions and attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::cell::{Author, Cell};
use super::super::history::{Event, OnlyIf, Op, Outcome, SnapshotNumber};
use super::super::search::Model;
use super::snapshots::{self, Forest};
use super::{GRAINS_JUDGED, Losses, UNSET, XATTRS, author, happen};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileState {
    size: Cell<u32>,
    mode: Cell<u32>,
    xattrs: Vec<Cell<u32>>,
    grains: Vec<Cell<u32>>,
    snapshots: BTreeMap<SnapshotNumber, Arc<FileState>>,
}

impl FileState {
    pub(super) fn new() -> Self {
        let grains = vec![Cell::is(0); GRAINS_JUDGED];
        let xattrs = vec![Cell::is(UNSET); usize::from(XATTRS)];
        let snapshots = BTreeMap::new();
        Self { size: Cell::is(0), mode: Cell::is(0o644), xattrs, grains, snapshots }
    }

    fn cells(&mut self) -> impl Iterator<Item = &mut Cell<u32>> {
        let one = [&mut self.size, &mut self.mode].into_iter();
        one.chain(&mut self.xattrs).chain(&mut self.grains)
    }

    fn put(&mut self, size: u32, (grain, count, stamp): (u32, u32, u32), author: Author) {
        let end = grain + count;
        let written = (grain as usize).min(GRAINS_JUDGED)..(end as usize).min(GRAINS_JUDGED);
        self.grains[written].iter_mut().for_each(|cell| cell.set(stamp, author));
        self.grow(size, end, author);
    }

    fn grow(&mut self, size: u32, end: u32, author: Author) {
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

pub(super) struct FileModel;

impl Forest for FileState {
    type Kept = Arc<FileState>;

    fn snapshots(&mut self) -> &mut BTreeMap<SnapshotNumber, Self::Kept> {
        &mut self.snapshots
    }

    fn keep(&self) -> Self::Kept {
        let frozen = |cells: &[Cell<u32>]| cells.iter().map(Cell::frozen).collect();
        Arc::new(Self {
            size: self.size.frozen(),
            mode: self.mode.frozen(),
            xattrs: frozen(&self.xattrs),
            grains: frozen(&self.grains),
            snapshots: BTreeMap::new(),
        })
    }

    fn swap(&mut self, kept: &mut Self::Kept) {
        let kept = Arc::make_mut(kept);
        std::mem::swap(self, kept);
        std::mem::swap(&mut self.snapshots, &mut kept.snapshots);
    }

    fn cannot_be(kept: &Self::Kept, op: &Op, outcome: &Outcome) -> bool {
        match (op, outcome) {
            (Op::Read { grain, .. }, Outcome::Grains(told)) => {
                let cells = kept.grains[*grain as usize..].iter().zip(told);
                cells.into_iter().any(|(cell, told)| !cell.possible().any(|value| value == *told))
            }
            (Op::Stat { .. }, Outcome::Status { size, mode, .. }) => {
                !kept.size.possible().any(|value| value == *size)
                    || !kept.mode.possible().any(|value| value == *mode)
            }
            _ => false,
        }
    }
}

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
            (Op::Reserve { grain, count, .. }, _) => {
                let reserved = |(size, mut state): (u32, FileState)| {
                    state.grow(size, grain + count, author);
                    state
                };
                state.sized().into_iter().map(reserved).collect()
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
                let cut = next.grains[(*grains as usize).min(GRAINS_JUDGED)..].iter_mut();
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
            (
                Op::Snapshot { .. }
                | Op::RemoveSnapshot { .. }
                | Op::Rollback { .. }
                | Op::InSnapshot { .. },
                _,
            ) => snapshots::after(self, state, event),
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
        if snapshots::are_hopeless(&state.snapshots, left, FileState::cannot_be) {
            return true;
        }
        if snapshots::may_come_back(left) {
            return false;
        }
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
