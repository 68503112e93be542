//! Volumes that become longer without a block being moved.
//!
//! ```text
//!   a member       has become longer: its record says so first, then its header
//!   linear         as its last part does; or another part comes behind that
//!   stripe         once all parts are longer
//!   mirror         is to grow once all copies are longer; whoever has it open sees to it
//! ```
//!
//! What was asked for is in the record, so that whoever opens the volume next goes on with it: a
//! part to be appended in [`Record::append`], and how long a mirror is to be in its `grows_to`. A
//! mirror's `blocks` follow when its copies are equal there and their bitmaps reach so far.
//!
//! [`Record::append`]: crate::record::Record::append

use std::collections::BTreeMap;

use gabion_base::ids::Uuid;

use crate::format::header::MEMBER_DATA_START;
use crate::geometry::Geometry;
use crate::record::{CopyState, Layout, Record};

/// How many blocks members have by now, with their headers; only of those that could be asked.
pub type Lengths = BTreeMap<Uuid, u64>;

/// Has `layout` use what its members have become longer by, wherever that lengthens it.
pub fn lengthen(layout: &mut Layout, lengths: &Lengths) {
    match layout {
        Layout::Member(member) => {
            let found = lengths.get(&member.uuid).copied().unwrap_or_default();
            member.blocks = member.blocks.max(found);
        }
        // What lies behind the others must stay where it is.
        Layout::Linear(parts) => parts.iter_mut().rev().take(1).for_each(|last| {
            lengthen(last, lengths);
        }),
        Layout::Stripe { parts, .. } => {
            parts.iter_mut().for_each(|part| lengthen(part, lengths));
        }
        Layout::Mirror { grows_to, copies, .. } => {
            let mut least = u64::MAX;
            for copy in copies.iter_mut().filter(|copy| copy.state != CopyState::Removed) {
                lengthen(&mut copy.on, lengths);
                least = least.min(reach(&copy.on).unwrap_or_default());
            }
            if least != u64::MAX {
                *grows_to = least.max(*grows_to);
            }
        }
    }
}

/// Blocks that the device has when all that is wanted has happened.
pub fn reach(layout: &Layout) -> Option<u64> {
    match layout {
        Layout::Member(member) => member.blocks.checked_sub(MEMBER_DATA_START),
        Layout::Linear(parts) => {
            parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(reach(part)?))
        }
        Layout::Stripe { chunk_blocks, parts } => {
            let least = parts.iter().map(reach).min().flatten()?;
            (least / chunk_blocks * chunk_blocks).checked_mul(parts.len() as u64)
        }
        Layout::Mirror { grows_to, .. } => Some(Geometry::of_copies(*grows_to)?.blocks()),
    }
}

/// Whether a part can be put behind `layout`, which is in use with so many blocks: its end must not
/// move afterwards.
pub fn has_its_end(layout: &Layout, blocks: u64) -> bool {
    layout.blocks() == Some(blocks) && wanted(layout).is_empty()
}

/// Puts `part` behind the end of `layout`, which must be where it stays.
pub fn append(layout: &mut Layout, part: Layout) {
    match layout {
        Layout::Linear(parts) => parts.push(part),
        other => {
            let first = std::mem::replace(other, Layout::Linear(Vec::new()));
            *other = Layout::Linear(vec![first, part]);
        }
    }
}

/// The mirrors that are to grow, inner ones first, with the blocks of each copy that they are to
/// use.
pub fn wanted(layout: &Layout) -> Vec<(Uuid, u64)> {
    match layout {
        Layout::Member(_) => Vec::new(),
        Layout::Linear(parts) => parts.last().map_or_else(Vec::new, wanted),
        Layout::Stripe { parts, .. } => parts.iter().flat_map(wanted).collect(),
        Layout::Mirror { uuid, blocks, grows_to, copies } => {
            let inner = copies.iter().flat_map(|copy| wanted(&copy.on));
            inner.chain((grows_to > blocks).then_some((*uuid, *grows_to))).collect()
        }
    }
}

/// Whether all copies of a mirror have so many blocks in the record, wherever they are: a copy that
/// is a mirror itself, or has one in it, only once that has grown.
pub fn fits(layout: &Layout, mirror: Uuid, blocks: u64) -> bool {
    let mirrors = layout.mirrors();
    let copies = mirrors.iter().find(|(uuid, _)| *uuid == mirror);
    copies.is_some_and(|(_, copies)| {
        let mut there = copies.iter().filter(|copy| copy.state != CopyState::Removed);
        there.all(|copy| copy.on.blocks().is_some_and(|on| on >= blocks))
    })
}

/// Whether something is wanted that has not happened.
pub fn is_under_way(record: &Record) -> bool {
    record.append.is_some() || !wanted(&record.layout).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Epoch;
    use crate::record::{Member, MirrorCopy, Wish};

    fn member(byte: u8, blocks: u64) -> Layout {
        Layout::Member(Member { uuid: Uuid([byte; 16]), url: format!("/{byte}"), blocks })
    }

    fn mirror(blocks: u64, on: [Layout; 2]) -> Layout {
        let (state, wish, since) = (CopyState::InSync, Wish::Use, Epoch(1));
        let copies = on.map(|on| MirrorCopy { state, wish, since, on }).into();
        Layout::Mirror { uuid: Uuid([99; 16]), blocks, grows_to: blocks, copies }
    }

    fn lengths(all: &[(u8, u64)]) -> Lengths {
        all.iter().map(|(byte, blocks)| (Uuid([*byte; 16]), *blocks)).collect()
    }

    #[test]
    fn only_the_last_part_of_a_line_becomes_longer() {
        let mut line = Layout::Linear(vec![member(1, 1000), member(2, 1000)]);
        lengthen(&mut line, &lengths(&[(1, 5000), (2, 1500)]));
        assert_eq!(line, Layout::Linear(vec![member(1, 1000), member(2, 1500)]));
    }

    /// What lies behind a part would move with its end.
    #[test]
    fn a_part_that_has_another_one_behind_it_stays_as_long_as_it_is() {
        let on = || [member(1, 1000), member(2, 1000)];
        let mut line = mirror(744, on());
        assert!(has_its_end(&line, 488));
        lengthen(&mut line, &lengths(&[(1, 2000), (2, 2000)]));
        assert!(!has_its_end(&line, 488), "it is to grow");
        assert!(!has_its_end(&mirror(744, on()), 400), "it is not used up to its end");
        let mut line = mirror(744, on());
        append(&mut line, member(3, 1000));
        let before = line.clone();
        lengthen(&mut line, &lengths(&[(1, 2000), (2, 2000)]));
        assert_eq!((&line, wanted(&line)), (&before, Vec::new()));
    }

    #[test]
    fn a_stripe_grows_with_its_shortest_part() {
        let parts = vec![member(1, 1280), member(2, 1280)];
        let mut stripe = Layout::Stripe { chunk_blocks: 64, parts };
        assert_eq!(stripe.blocks(), Some(2048));
        lengthen(&mut stripe, &lengths(&[(1, 9000)]));
        assert_eq!((stripe.blocks(), reach(&stripe)), (Some(2048), Some(2048)));
        lengthen(&mut stripe, &lengths(&[(2, 2304)]));
        assert_eq!((stripe.blocks(), reach(&stripe)), (Some(4096), Some(4096)));
    }

    #[test]
    fn a_mirror_is_to_grow_when_all_its_copies_are_longer_and_inner_ones_go_first() {
        let pair = |byte, blocks| {
            let mut inner = mirror(blocks - 256, [member(byte, blocks), member(byte + 1, blocks)]);
            let Layout::Mirror { uuid, .. } = &mut inner else { unreachable!("a mirror") };
            *uuid = Uuid([90 + byte; 16]);
            inner
        };
        let mut outer = mirror(1488, [pair(1, 2000), pair(3, 2000)]);
        lengthen(&mut outer, &lengths(&[(1, 3000), (2, 3000), (3, 3000)]));
        assert_eq!(wanted(&outer), [(Uuid([91; 16]), 2744)], "a copy is as long as before");
        let before = outer.blocks();
        lengthen(&mut outer, &lengths(&[(4, 2500)]));
        let steps = [(Uuid([91; 16]), 2744), (Uuid([93; 16]), 2244), (Uuid([99; 16]), 1988)];
        assert_eq!(wanted(&outer), steps);
        assert_eq!((outer.blocks(), reach(&outer)), (before, Some(1988 - 256)));
        let outermost = Uuid([99; 16]);
        assert!(fits(&outer, Uuid([91; 16]), 2744) && !fits(&outer, outermost, 1988));
        let Layout::Mirror { copies, .. } = &mut outer else { unreachable!("a mirror") };
        for copy in copies {
            let Layout::Mirror { blocks, .. } = &mut copy.on else { unreachable!("a mirror") };
            assert_eq!(copy.state, CopyState::InSync, "stale ones count, too");
            copy.state = CopyState::Stale { full: false };
            *blocks = 2244;
        }
        assert!(fits(&outer, outermost, 1988));
    }

    #[test]
    fn a_copy_that_was_taken_out_holds_nobody_up() {
        let mut mirror = mirror(744, [member(1, 1000), member(2, 1000)]);
        let Layout::Mirror { copies, .. } = &mut mirror else { unreachable!("a mirror") };
        copies[1].state = CopyState::Removed;
        lengthen(&mut mirror, &lengths(&[(1, 4256)]));
        assert_eq!(wanted(&mirror), [(Uuid([99; 16]), 4000)]);
    }
}
