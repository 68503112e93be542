//! How items are put together and divided among nodes. Pure: no store, no writer.

use crate::format::node::{INTERIOR_SLOT, ItemKey, Items, LEAF_SLOT, NODE_CAPACITY};
use crate::tree::Change;

/// A node that uses less is loose: it is put together with a neighbour. Half of a node that was
/// divided once more, so that an item that comes and goes does not divide and unite for ever.
pub(super) const LOOSE_BELOW: usize = NODE_CAPACITY / 4;
/// How far a node is filled where items are added at an end: later changes of single items should
/// not divide it at once.
const PACKED: usize = NODE_CAPACITY * 95 / 100;

/// How items are divided among nodes when one does not hold them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Equally: changes are expected anywhere.
    Even,
    /// Nodes as full as is good for them, for items that came at the end. None is loose.
    Packed,
    /// The same at the tree's end, where more will follow: the last node may be loose.
    Open,
}

/// An item of a leaf to be.
pub(super) type Entry<'v> = (ItemKey, &'v [u8]);

/// Bytes that an item takes in a leaf.
pub(super) fn entry_size(entry: &Entry<'_>) -> usize {
    LEAF_SLOT + entry.1.len()
}

/// The items of a leaf after `changes`, and whether most of what was put came after its last old
/// item. `None` if nothing changes.
pub(super) fn combine<'v>(
    old: Option<Items<'v>>,
    changes: &'v [Change],
) -> Option<(Vec<Entry<'v>>, Growth)> {
    let count = old.map_or(0, |items| items.count());
    let mut entries = Vec::with_capacity(count + changes.len());
    let mut next = 0;
    let mut changed = false;
    let (mut inside, mut appended) = (0, 0);
    for (key, value) in changes {
        let key = ItemKey::from(*key);
        let mut present = None;
        if let Some(items) = old {
            while next < count && items.key(next) < key {
                entries.push((items.key(next), items.value(next)));
                next += 1;
            }
            if next < count && items.key(next) == key {
                present = Some(items.value(next));
                next += 1;
            }
        }
        let value = value.as_deref();
        changed |= value != present;
        if let Some(value) = value {
            let end = next == count && present.is_none();
            *(if end { &mut appended } else { &mut inside }) += 1;
            entries.push((key, value));
        }
    }
    if !changed {
        return None;
    }
    if let Some(items) = old {
        entries.extend((next..count).map(|index| (items.key(index), items.value(index))));
    }
    let growth = if appended > inside { Growth::AtEnd } else { Growth::Anywhere };
    Some((entries, growth))
}

/// Where a node's new items came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// Most of them after all old ones.
    AtEnd,
    /// All over.
    Anywhere,
}

/// Divides items of these sizes among nodes: gives the end of each node's items. Every node of
/// several uses at least [`LOOSE_BELOW`] bytes, but for the last one of [`Fill::Open`].
pub(super) fn divide(sizes: &[usize], fill: Fill) -> Vec<usize> {
    let total: usize = sizes.iter().sum();
    if sizes.is_empty() {
        return Vec::new();
    }
    if total <= NODE_CAPACITY {
        return vec![sizes.len()];
    }
    if fill == Fill::Even {
        return divide_evenly(sizes, total);
    }
    let mut ends = Vec::with_capacity(total / PACKED + 2);
    let mut used = 0;
    for (index, size) in sizes.iter().enumerate() {
        if used + size > PACKED && index > 0 {
            ends.push(index);
            used = 0;
        }
        used += size;
    }
    if fill == Fill::Packed && used < LOOSE_BELOW {
        ends.pop();
        let start = ends.last().copied().unwrap_or(0);
        let tail = &sizes[start..];
        let divided = divide_evenly(tail, tail.iter().sum());
        ends.extend(divided.iter().map(|end| start + end));
    } else {
        ends.push(sizes.len());
    }
    ends
}

/// Divides by taking, for each node, an equal share of what is left, to the nearest item. An item
/// is at most a third of a node, so no share gets near [`LOOSE_BELOW`].
fn divide_evenly(sizes: &[usize], total: usize) -> Vec<usize> {
    let mut ends = Vec::with_capacity(total / NODE_CAPACITY + 2);
    let mut rest = total;
    let mut index = 0;
    while rest > NODE_CAPACITY {
        let share = rest / rest.div_ceil(NODE_CAPACITY);
        let mut used = 0;
        while let Some(size) = sizes.get(index) {
            if used + size > NODE_CAPACITY || used + size / 2 > share {
                break;
            }
            used += size;
            index += 1;
        }
        rest -= used;
        ends.push(index);
    }
    ends.push(sizes.len());
    ends
}

/// The sizes of `count` children of an interior node.
pub(super) fn child_sizes(count: usize) -> Vec<usize> {
    vec![INTERIOR_SLOT; count]
}

#[cfg(test)]
mod tests {
    use gabion_base::rng::Rng;

    use super::*;
    use crate::txn::VALUE_LENGTH_MAX;

    fn used(sizes: &[usize], ends: &[usize]) -> Vec<usize> {
        let mut start = 0;
        let part = |end: &usize| {
            let start = std::mem::replace(&mut start, *end);
            sizes[start..*end].iter().sum()
        };
        ends.iter().map(part).collect()
    }

    #[test]
    fn divided_nodes_hold_all_items_and_none_is_loose() {
        let mut rng = Rng::new(3);
        for round in 0..2000 {
            let longest = [10, 200, VALUE_LENGTH_MAX as u64][round % 3];
            let count = rng.below(if longest > 200 { 40 } else { 2000 }) as usize;
            let size = |_| LEAF_SLOT + rng.below(longest + 1) as usize;
            let sizes: Vec<usize> = (0..count).map(size).collect();
            for fill in [Fill::Even, Fill::Packed, Fill::Open] {
                let ends = divide(&sizes, fill);
                assert_eq!(ends.last().copied().unwrap_or(0), count);
                let used = used(&sizes, &ends);
                assert!(used.iter().all(|used| *used <= NODE_CAPACITY));
                let tight = if fill == Fill::Open { 1 } else { 0 };
                if used.len() > 1 {
                    let inner = &used[..used.len() - tight];
                    assert!(inner.iter().all(|used| *used >= LOOSE_BELOW), "{fill:?} {used:?}");
                }
            }
        }
    }

    #[test]
    fn items_at_the_end_leave_full_nodes() {
        let sizes = vec![100; 1000];
        let ends = divide(&sizes, Fill::Open);
        assert_eq!(used(&sizes, &ends)[..6], [15_500; 6]);
        let ends = divide(&sizes, Fill::Even);
        let even = used(&sizes, &ends);
        assert_eq!(even.len(), 7);
        assert!(even.iter().all(|used| (14_200..14_400).contains(used)), "{even:?}");
    }

    #[test]
    fn changes_that_change_nothing_are_noticed() {
        use gabion_base::ids::SubvolId;

        use crate::format::node::Draft;
        use crate::key::{FileId, Kind};
        use crate::txn::Value;

        let key = |at| FileId::new(SubvolId(1), gabion_base::ids::Ino(1)).key(Kind::INODE, at);
        let leaf = Draft::leaf(&[(key(2).into(), b"two"), (key(4).into(), b"four")]);
        let put = |at, value: &[u8]| (key(at), Some(Value::from(value)));
        let unchanged = [(key(1), None), put(2, b"two"), (key(3), None), (key(9), None)];
        assert!(combine(Some(leaf.items()), &unchanged).is_none());
        assert!(combine(None, &unchanged[..1]).is_none());
        let changes = [put(3, b"three"), (key(4), None), put(5, b"five"), put(6, b"six")];
        let (entries, growth) = combine(Some(leaf.items()), &changes).expect("a change");
        assert_eq!(growth, Growth::AtEnd);
        let values: Vec<&[u8]> = entries.iter().map(|entry| entry.1).collect();
        assert_eq!(values, [&b"two"[..], b"three", b"five", b"six"]);
    }
}
