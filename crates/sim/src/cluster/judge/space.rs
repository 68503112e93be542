//! Whether there was no room when somebody was told so.
//!
//! ```text
//!   room of the empty disk
//!     - what hogs have set aside at most: from when they asked for it until it was durably
//!       given back
//!     - what the answer was about
//!     < SLACK                         else there was room
//! ```
//!
//! Hogs are files that only space is set aside for, each by one client. All other files together,
//! with everything else that a filesystem keeps, take less than the slack. What clients are
//! promised for what they have not changed yet is no excuse: they do not need it.

use super::super::history::{Event, Number, Op, Outcome};
use super::super::programs::PAGE_GRAINS;

/// Blocks that are not counted.
const SLACK: u64 = 3 << 10;

/// What is wrong with the answers that there was no room, of which an empty disk has `room` blocks.
pub fn judge(room: u64, hogs: &[Number], events: &[Event]) -> Result<(), String> {
    for event in events.iter().filter(|event| event.outcome == Outcome::Full) {
        let taken: u64 = hogs.iter().map(|hog| most(*hog, event, events)).sum();
        let asked = blocks(&event.op);
        if taken + asked + SLACK <= room {
            let Event { client, op, .. } = event;
            return Err(format!(
                "there was room for it: client {client}: {op:?} takes {asked} of {room} blocks, \
                 of which {taken} at most were taken"
            ));
        }
    }
    Ok(())
}

/// Blocks that a call needs.
fn blocks(op: &Op) -> u64 {
    let grains = match *op {
        Op::Write { count, .. } | Op::Append { count, .. } | Op::Reserve { count, .. } => count,
        _ => 0,
    };
    u64::from(grains.div_ceil(PAGE_GRAINS))
}

/// Blocks that a hog has at most while `told` is under way.
fn most(hog: Number, told: &Event, events: &[Event]) -> u64 {
    let until = told.responded.unwrap_or(u64::MAX);
    let own = events.iter().filter(|event| event.op.file() == Some(hog) && event.invoked < until);
    let (mut most, mut is_cut) = (0, false);
    for event in own {
        let is_done = event.outcome == Outcome::Done;
        match event.op {
            Op::Reserve { .. } if event.outcome == Outcome::Full => {}
            Op::Reserve { grain, count, .. } => {
                most = most.max(u64::from((grain + count).div_ceil(PAGE_GRAINS)));
                is_cut = false;
            }
            Op::Resize { grains: 0, .. } => is_cut = is_done,
            Op::Fsync { .. } if is_cut && is_done && event.ended < Some(told.invoked) => most = 0,
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::super::super::history::History;
    use super::*;

    const HOG: Number = 5;
    const BLOCKS: u32 = 10_000;
    const ROOM: u64 = BLOCKS as u64 + SLACK;

    fn told(calls: &[(Op, Outcome)]) -> Result<(), String> {
        let history = History::default();
        for (op, outcome) in calls {
            let call = history.invoke(0, 1, 1, op.clone());
            history.respond(call, 1, outcome.clone());
        }
        judge(ROOM, &[HOG], &history.events())
    }

    #[test]
    fn a_disk_is_full_of_what_was_not_durably_given_back() {
        let taken = (Op::Reserve { file: HOG, grain: 0, count: BLOCKS * 8 }, Outcome::Done);
        let cut = (Op::Resize { file: HOG, grains: 0 }, Outcome::Done);
        let synced = (Op::Fsync { file: HOG }, Outcome::Done);
        let full = (Op::Write { file: 7, grain: 0, count: 1, stamp: 1 }, Outcome::Full);
        let is_right = |calls: &[&(Op, Outcome)]| {
            told(&calls.iter().map(|call| (*call).clone()).collect::<Vec<_>>()).is_ok()
        };
        assert!(!is_right(&[&full]));
        assert!(is_right(&[&taken, &full]));
        assert!(is_right(&[&taken, &cut, &full]));
        assert!(is_right(&[&taken, &synced, &full]));
        assert!(!is_right(&[&taken, &cut, &synced, &full]));
        assert!(is_right(&[&taken, &cut, &synced, &taken, &full]));
    }
}
