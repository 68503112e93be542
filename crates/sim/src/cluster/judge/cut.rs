//! Whether what a snapshot has is of one moment of all files.
//!
//! ```text
//!   first   |----|            a write that the snapshot lacks: there it is what it was before
//!   second          |----|    a write that the snapshot has
//! ```
//!
//! Each file by itself has a moment in the sequence of its calls at which it was what the snapshot
//! has of it. If there is one moment of all, nothing that the snapshot lacks was complete before
//! something began that it has.
//!
//! What was lost by a crash or with a session, or has come back, says nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::super::history::{Event, Number, Op, Outcome, SnapshotNumber};

/// Grain of a file.
type Place = (Number, u32);

/// A write.
struct Write<'a> {
    event: &'a Event,
    file: Number,
    stamp: u32,
    grains: std::ops::Range<u32>,
}

fn writes(events: &[Event]) -> Vec<Write<'_>> {
    fn write(event: &Event) -> Option<Write<'_>> {
        let Event { op, outcome, .. } = event;
        let (file, stamp, grains) = match (op, outcome) {
            (Op::Write { file, grain, count, stamp }, Outcome::Done | Outcome::Unknown) => {
                (*file, *stamp, *grain..grain + count)
            }
            (Op::Append { file, count, stamp }, Outcome::At(at)) => {
                (*file, *stamp, *at..at + count)
            }
            (Op::Append { file, stamp, .. }, Outcome::Unknown) => (*file, *stamp, 0..0),
            _ => return None,
        };
        Some(Write { event, file, stamp, grains })
    }
    events.iter().filter_map(write).collect()
}

/// What was seen of each snapshot.
fn seen(events: &[Event]) -> BTreeMap<SnapshotNumber, BTreeSet<(Place, u32)>> {
    let mut seen: BTreeMap<SnapshotNumber, BTreeSet<(Place, u32)>> = BTreeMap::new();
    for event in events {
        let Op::InSnapshot { snapshot, op } = &event.op else { continue };
        let (Op::Read { file, grain, .. }, Outcome::Grains(stamps)) = (&**op, &event.outcome)
        else {
            continue;
        };
        let places = (*grain..).map(|grain| (*file, grain));
        seen.entry(*snapshot).or_default().extend(places.zip(stamps.iter().copied()));
    }
    seen
}

/// What is wrong with the snapshots that somebody has looked at.
pub fn judge(events: &[Event]) -> Result<(), String> {
    let writes = writes(events);
    let by_stamp: BTreeMap<u32, &Write<'_>> =
        writes.iter().map(|write| (write.stamp, write)).collect();
    for (snapshot, seen) in seen(events) {
        let made = events.iter().find(|event| match event.op {
            Op::Snapshot { snapshot: made } | Op::Rollback { keep: made, .. } => made == snapshot,
            _ => false,
        });
        let Some(made) = made.and_then(|made| made.responded) else { continue };
        let disturbs = |event: &Event| match event.op {
            Op::Lost { .. } | Op::Crash { .. } => true,
            Op::Rollback { keep, .. } => keep != snapshot,
            _ => false,
        };
        let disturbed = events.iter().filter(|event| disturbs(event) && event.invoked < made);
        let disturbed = disturbed.map(|event| event.ended.unwrap_or(u64::MAX)).max().unwrap_or(0);
        let has = seen.iter().filter_map(|(_, stamp)| by_stamp.get(stamp));
        let Some(last) = has.max_by_key(|write| write.event.invoked) else { continue };
        for ((file, grain), stamp) in &seen {
            let Some(there) = by_stamp.get(stamp).and_then(|write| write.event.responded) else {
                continue;
            };
            let lacks = |write: &&Write<'_>| {
                write.file == *file
                    && write.grains.contains(grain)
                    && write.event.invoked > there.max(disturbed)
                    && write.event.responded.is_some_and(|ended| ended < last.event.invoked)
            };
            if let Some(first) = writes.iter().find(lacks) {
                let told = |event: &Event| {
                    let Event { client, op, invoked, responded, .. } = event;
                    let end = responded.map_or("..".to_owned(), |moment| moment.to_string());
                    format!("client {client} {invoked}-{end}: {op:?}")
                };
                return Err(format!(
                    "snapshot {snapshot} is of no moment: it lacks\n    {}\n  and has\n    {}",
                    told(first.event),
                    told(last.event),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::history::History;
    use super::*;

    fn write(file: Number, stamp: u32) -> (Op, Outcome) {
        (Op::Write { file, grain: 0, count: 1, stamp }, Outcome::Done)
    }

    /// A snapshot that was made in the end has these stamps of two files.
    fn told(calls: &[(Op, Outcome)], seen: [u32; 2]) -> Result<(), String> {
        let snapshot = 1;
        let look = |(file, stamp): (Number, u32)| {
            let op = Box::new(Op::Read { file, grain: 0, count: 1 });
            (Op::InSnapshot { snapshot, op }, Outcome::Grains(vec![stamp]))
        };
        let made = (Op::Snapshot { snapshot }, Outcome::Done);
        let looks = [(7, seen[0]), (8, seen[1])].map(look);
        let history = History::default();
        for (op, outcome) in calls.iter().cloned().chain([made]).chain(looks) {
            let call = history.invoke(0, 1, 1, op);
            history.respond(call, 1, outcome);
        }
        judge(&history.events())
    }

    #[test]
    fn what_a_snapshot_lacks_was_not_complete_before_something_began_that_it_has() {
        let calls = [write(7, 1), write(8, 2), write(7, 3), write(8, 4)];
        for right in [[1, 2], [3, 2], [3, 4]] {
            assert_eq!(told(&calls, right), Ok(()));
        }
        let wrong = told(&calls, [1, 4]).unwrap_err();
        assert!(wrong.contains("stamp: 3") && wrong.contains("stamp: 4"), "{wrong}");
        // What a crash has taken need not be there.
        let lost = (Op::Crash { life: 2, lost: Vec::new() }, Outcome::Done);
        let calls = [write(7, 1), write(7, 3), lost, write(8, 4)];
        assert_eq!(told(&calls, [1, 4]), Ok(()));
    }
}
