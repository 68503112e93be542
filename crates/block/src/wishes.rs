//! What administrators want of the copies of a mirror, and what follows from it.
//!
//! Wishes are in the record, so that whoever opens the volume next goes on with them. A copy is
//! replaced in these steps, between which anybody may die:
//!
//! 1. [`replace`]: in one change of the record the new copy is added, lacking everything, and the
//!    old one is to leave when that one is in sync.
//! 2. The new copy is filled while the old one serves.
//! 3. When the record says that the new one is in sync, [`orders`] has the old one taken out.
//!
//! If the new copy is taken out before it is in sync, the old one stays.

use gabion_base::ids::Uuid;

use crate::copies::{COPIES_MAX, CopyIndex};
use crate::epoch::Epoch;
use crate::mirror::{Order, Trust};
use crate::record::{CopyState, Layout, MirrorCopy, Wish};

/// Adds a copy that lacks everything; says where. There may be too many already.
pub fn add(copies: &mut Vec<MirrorCopy>, on: Layout) -> Option<CopyIndex> {
    let state = CopyState::Stale { full: true };
    let copy = MirrorCopy { state, wish: Wish::Use, since: Epoch(0), on };
    let at = match copies.iter().position(|copy| copy.state == CopyState::Removed) {
        Some(free) => {
            copies[free] = copy;
            free
        }
        None if copies.len() < COPIES_MAX => {
            copies.push(copy);
            copies.len() - 1
        }
        None => return None,
    };
    Some(CopyIndex(at as u8))
}

/// Adds a copy that takes the place of `old` when it is in sync; says where it is added.
pub fn replace(copies: &mut Vec<MirrorCopy>, old: CopyIndex, on: Layout) -> Option<CopyIndex> {
    let by = name(&on);
    let new = add(copies, on)?;
    copies[old.at()].wish = Wish::Replace { by };
    Some(new)
}

/// What tells a copy from all others, wherever it is in the list: its first member.
pub fn name(on: &Layout) -> Uuid {
    on.members().first().map(|member| member.uuid).unwrap_or_default()
}

/// What a mirror whose copies are to be trusted so is to be told.
pub fn orders(copies: &[MirrorCopy], trust: &[Trust]) -> Vec<Order> {
    let is_filled = |by: Uuid| {
        let mut all = copies.iter().zip(trust);
        all.any(|(copy, trust)| {
            let stays = matches!(copy.wish, Wish::Use | Wish::Suspend);
            name(&copy.on) == by && stays && *trust == Trust::InSync
        })
    };
    let order = |(number, copy): (usize, &MirrorCopy)| {
        let index = CopyIndex(number as u8);
        let is_there = copy.state != CopyState::Removed;
        Some(match (trust.get(number), copy.wish) {
            (None | Some(Trust::Removed), Wish::Remove) => return None,
            (None | Some(Trust::Removed), _) if is_there => Order::PutIn(index),
            (None | Some(Trust::Removed), _) => return None,
            (Some(Trust::Suspended), Wish::Use) => Order::Resume(index),
            (Some(Trust::Suspended), Wish::Suspend) | (Some(_), Wish::Use) => return None,
            (Some(_), Wish::Suspend) => Order::Suspend(index),
            (Some(_), Wish::Replace { by }) if !is_filled(by) => return None,
            (Some(_), Wish::Remove | Wish::Replace { .. }) => Order::TakeOut(index),
        })
    };
    copies.iter().enumerate().filter_map(order).collect()
}

/// Notes what a mirror wants the record to say of a copy that has been taken out. Says whether it
/// may: somebody may have put another one in its place, which the mirror is yet to be told.
pub fn leave(copy: &mut MirrorCopy) -> bool {
    if matches!(copy.wish, Wish::Use | Wish::Suspend) {
        return false;
    }
    (copy.state, copy.wish) = (CopyState::Removed, Wish::Remove);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Member;

    const OLD: CopyIndex = CopyIndex(1);
    const NEW: CopyIndex = CopyIndex(2);

    fn on(byte: u8) -> Layout {
        Layout::Member(Member { uuid: Uuid([byte; 16]), url: format!("/{byte}"), blocks: 1000 })
    }

    fn copies() -> Vec<MirrorCopy> {
        let copy = |byte| {
            let (state, wish) = (CopyState::InSync, Wish::Use);
            MirrorCopy { state, wish, since: Epoch(1), on: on(byte) }
        };
        vec![copy(1), copy(2)]
    }

    #[test]
    fn a_replaced_copy_leaves_when_the_new_one_is_in_sync() {
        let mut copies = copies();
        assert_eq!(replace(&mut copies, OLD, on(3)), Some(NEW));
        assert_eq!(copies[OLD.at()].wish, Wish::Replace { by: Uuid([3; 16]) });
        assert_eq!(orders(&copies, &[Trust::InSync; 2]), [Order::PutIn(NEW)]);
        for trust in [Trust::Stale, Trust::Syncing, Trust::Joining, Trust::Failing] {
            assert_eq!(orders(&copies, &[Trust::InSync, Trust::InSync, trust]), []);
        }
        assert_eq!(orders(&copies, &[Trust::InSync; 3]), [Order::TakeOut(OLD)]);
        assert!(leave(&mut copies[OLD.at()]));
        let trust = [Trust::InSync, Trust::Removed, Trust::InSync];
        assert_eq!(orders(&copies, &trust), []);
    }

    /// A single copy can be moved, too.
    #[test]
    fn a_replaced_copy_stays_if_the_new_one_is_taken_out() {
        let mut copies = copies();
        copies.truncate(1);
        assert_eq!(replace(&mut copies, CopyIndex(0), on(3)), Some(OLD));
        copies[1].wish = Wish::Remove;
        assert_eq!(orders(&copies, &[Trust::InSync; 2]), [Order::TakeOut(OLD)]);
        assert!(leave(&mut copies[1]));
        // Another one at its place is not the one that was meant.
        assert_eq!(add(&mut copies, on(4)), Some(OLD));
        assert_eq!(orders(&copies, &[Trust::InSync; 2]), []);
        assert!(!leave(&mut copies[1]), "it is to be used");
    }

    #[test]
    fn a_mirror_has_room_for_so_many() {
        let mut copies = copies();
        for byte in 3..=8 {
            assert!(add(&mut copies, on(byte)).is_some());
        }
        assert_eq!(replace(&mut copies, OLD, on(9)), None);
        assert_eq!(copies[OLD.at()].wish, Wish::Use);
        copies[4].state = CopyState::Removed;
        assert_eq!(replace(&mut copies, OLD, on(9)), Some(CopyIndex(4)));
    }
}
