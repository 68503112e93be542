//! Snapshots, for each object by itself: what it was at one moment is kept, can be looked at, and
//! may come back. Whether that is one moment of all objects is in `cut`.

use std::collections::BTreeMap;

use super::super::history::{Event, Op, Outcome, SnapshotNumber};
use super::super::search::Model;

/// A state that can be kept.
pub(super) trait Forest: Clone {
    /// As it is kept.
    type Kept: Clone;

    /// What is kept.
    fn snapshots(&mut self) -> &mut BTreeMap<SnapshotNumber, Self::Kept>;

    /// What there is now, durably.
    fn keep(&self) -> Self::Kept;

    /// What is kept becomes what there is, and the other way round.
    fn swap(&mut self, kept: &mut Self::Kept);

    /// Whether it is plain that what is kept cannot be as somebody was told.
    fn cannot_be(kept: &Self::Kept, op: &Op, outcome: &Outcome) -> bool;
}

/// The states after an event that has to do with snapshots.
pub(super) fn after<M>(model: &M, state: &M::State, event: &Event) -> Vec<M::State>
where
    M: Model,
    M::State: Forest,
{
    let mut next = state.clone();
    let mut has = |snapshot: &SnapshotNumber| next.snapshots().contains_key(snapshot);
    let is_absent = event.outcome == Outcome::NoSnapshot;
    match &event.op {
        Op::Snapshot { snapshot } => {
            if has(snapshot) {
                return Vec::new();
            }
            let kept = next.keep();
            next.snapshots().insert(*snapshot, kept);
        }
        Op::RemoveSnapshot { snapshot } => {
            if is_absent && has(snapshot) {
                return Vec::new();
            }
            next.snapshots().remove(snapshot);
        }
        Op::InSnapshot { snapshot, .. } | Op::Rollback { to: snapshot, .. } if is_absent => {
            if has(snapshot) {
                return Vec::new();
            }
        }
        Op::Rollback { to, keep } => {
            let Some(mut content) = next.snapshots().get(to).cloned() else { return Vec::new() };
            let kept = next.keep();
            next.swap(&mut content);
            next.snapshots().insert(*keep, kept);
        }
        Op::InSnapshot { snapshot, op } => {
            let Some(mut kept) = next.snapshots().remove(snapshot) else { return Vec::new() };
            next.swap(&mut kept);
            next.snapshots().insert(*snapshot, kept);
            let inner = Event { op: Op::clone(op), ..event.clone() };
            let put_back = |mut state: M::State| {
                let mut live = state.snapshots().remove(snapshot)?;
                state.swap(&mut live);
                state.snapshots().insert(*snapshot, live);
                Some(state)
            };
            return model.after(&next, &inner).into_iter().filter_map(put_back).collect();
        }
        op => unreachable!("{op:?} has not to do with snapshots"),
    }
    vec![next]
}

/// Whether it is plain that one of the answers about what is kept cannot be: what is kept does not
/// change any more.
pub(super) fn are_hopeless<K>(
    kept: &BTreeMap<SnapshotNumber, K>,
    left: &[&Event],
    cannot_be: fn(&K, &Op, &Outcome) -> bool,
) -> bool {
    left.iter().any(|event| {
        let Op::InSnapshot { snapshot, op } = &event.op else { return false };
        kept.get(snapshot).is_some_and(|kept| cannot_be(kept, op, &event.outcome))
    })
}

/// Whether something may come back from a snapshot.
pub(super) fn may_come_back(left: &[&Event]) -> bool {
    left.iter().any(|event| matches!(event.op, Op::Rollback { .. }))
}
