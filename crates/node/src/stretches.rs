//! Which bytes of a file may not be what they were, from the items of it that differ.

use std::collections::BTreeSet;

use gabion_base::BLOCK_SIZE;
use gabion_base::codec::DecodeError;
use gabion_map::format::item::FileData;

/// Bytes of a file that may be others than they were, by whole blocks: the last may end behind the
/// file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first.
    pub from: u64,
    /// The one behind the last.
    pub to: u64,
    /// Whether nothing is there now, so that there is nothing to read.
    pub is_hole: bool,
}

/// Blocks of a file, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first, counted from the beginning of the file.
    first: u64,
    count: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Bytes inside of the item, which differ.
    Inline,
    /// Written blocks, the first of them at this address, of this birth.
    Written(u64, u64),
    /// Zeros.
    Zeros,
}

impl What {
    /// The same, so many blocks further.
    fn skip(self, blocks: u64) -> Self {
        match self {
            Self::Written(address, birth) => Self::Written(address + blocks, birth),
            other => other,
        }
    }
}

/// What a DATA item at this offset says.
pub(crate) fn run(at: u64, value: &[u8]) -> Result<Run, DecodeError> {
    let first = at / BLOCK_SIZE as u64;
    let (count, what) = match &FileData::decode(value)? {
        FileData::Inline(_) => (1, What::Inline),
        FileData::Extent(extent) => {
            let what = What::Written(extent.addr.0, extent.birth.0);
            (extent.checksums.len() as u64, what)
        }
        FileData::Unwritten(run) => (run.count.into(), What::Zeros),
    };
    Ok(Run { first, count, what })
}

/// The bytes that are not the same in two files with these runs, of which only those are given
/// whose items differ. Both are in order.
pub(crate) fn changed(old: &[Run], new: &[Run]) -> Vec<Stretch> {
    let runs = || old.iter().chain(new);
    let ends = runs().flat_map(|run| [run.first, run.first.saturating_add(run.count)]);
    let ends: BTreeSet<u64> = ends.collect();
    let mut stretches: Vec<Stretch> = Vec::new();
    for (from, to) in ends.iter().zip(ends.iter().skip(1)) {
        let (before, after) = (at(old, *from), at(new, *from));
        if before == after && before != Some(What::Inline) {
            continue;
        }
        let bytes = |block: u64| block.saturating_mul(BLOCK_SIZE as u64);
        let is_hole = matches!(after, None | Some(What::Zeros));
        match stretches.last_mut() {
            Some(last) if last.to == bytes(*from) && last.is_hole == is_hole => {
                last.to = bytes(*to);
            }
            _ => stretches.push(Stretch { from: bytes(*from), to: bytes(*to), is_hole }),
        }
    }
    stretches
}

/// What a block is. A hole and zeros that have been set aside are no different for a reader, but
/// are for who restores them.
fn at(runs: &[Run], block: u64) -> Option<What> {
    let index = runs.partition_point(|run| run.first <= block);
    let run = runs.get(index.checked_sub(1)?)?;
    (block - run.first < run.count).then(|| run.what.skip(block - run.first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = BLOCK_SIZE as u64;

    fn written(first: u64, count: u64, address: u64, birth: u64) -> Run {
        Run { first, count, what: What::Written(address, birth) }
    }

    fn data(from: u64, to: u64) -> Stretch {
        Stretch { from: from * B, to: to * B, is_hole: false }
    }

    fn hole(from: u64, to: u64) -> Stretch {
        Stretch { is_hole: true, ..data(from, to) }
    }

    #[test]
    fn a_block_in_the_middle_is_all_that_changed() {
        let old = [written(0, 256, 1000, 5)];
        let new = [written(0, 10, 1000, 5), written(10, 1, 7, 9), written(11, 245, 1011, 5)];
        assert_eq!(changed(&old, &new), [data(10, 11)]);
        assert_eq!(changed(&new, &old), [data(10, 11)]);
    }

    #[test]
    fn what_was_written_again_at_the_same_place_has_changed() {
        let (old, new) = ([written(3, 2, 50, 5)], [written(3, 2, 50, 6)]);
        assert_eq!(changed(&old, &new), [data(3, 5)]);
    }

    #[test]
    fn holes_that_come_and_go_and_inline_bytes_have_changed() {
        let (old, new) = ([written(0, 2, 50, 5)], [written(1, 1, 51, 5)]);
        assert_eq!(changed(&old, &new), [hole(0, 1)]);
        assert_eq!(changed(&new, &old), [data(0, 1)]);
        let zeros = [Run { first: 0, count: 1, what: What::Zeros }, written(1, 1, 70, 9)];
        assert_eq!(changed(&old, &zeros), [hole(0, 1), data(1, 2)]);
        let inline = [Run { first: 0, count: 1, what: What::Inline }];
        assert_eq!(changed(&inline, &inline), [data(0, 1)]);
        let all = [written(0, 1, 50, 5), written(1, 1, 90, 6)];
        assert_eq!(changed(&inline, &all), [data(0, 2)]);
    }
}
