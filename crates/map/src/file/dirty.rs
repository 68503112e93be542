//! Bytes of one file that were accepted but are not in an extent yet.
//!
//! The unit is a segment: blocks side by side in one shared buffer. A segment's bytes never change:
//! a write over it puts new segments in its place, so whoever writes it to disk meanwhile reads
//! what it saw. Bytes past the end of the file within its last block are zeros.
//!
//! Segments never cross a stripe of 1 MiB. Stripes are spread over independently locked parts, so
//! that writers of different ranges of one file do not meet.

use std::collections::BTreeMap;

use gabion_base::buffer::BlockSlice;
use gabion_base::sync::Mutex;

/// Blocks of a stripe: as many as the longest extent has.
pub const STRIPE_BLOCKS: u64 = 256;
const PARTS: u64 = 8;

/// Whether the journal already holds a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InJournal {
    /// No.
    No,
    /// Yes: an fsync wrote them there.
    Yes,
    /// It holds older bytes of these blocks, and nothing else does: they were promised to be
    /// durable, so a commit that leaves them behind has to keep these instead.
    Older,
}

/// Blocks that wait to be written.
#[derive(Clone, Debug)]
pub struct Segment {
    /// First block within the file.
    pub block: u64,
    /// The bytes.
    pub slice: BlockSlice,
    /// Whether the journal holds them.
    pub journaled: InJournal,
}

impl Segment {
    /// The block after the last.
    pub fn end(&self) -> u64 {
        self.block + self.slice.count() as u64
    }

    /// The part within blocks `from..to`.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Self {
        let slice = self.slice.part((from - self.block) as usize, (to - from) as usize);
        Self { block: from, slice, journaled: self.journaled }
    }
}

/// The accepted bytes of one file.
#[derive(Default)]
pub struct DirtyBytes {
    parts: [Mutex<BTreeMap<u64, Segment>>; PARTS as usize],
}

impl DirtyBytes {
    /// Puts `segment` (within one stripe) over whatever is there. Returns how many of its blocks
    /// were dirty before.
    pub fn insert(&self, segment: Segment) -> u64 {
        assert_eq!(
            segment.block / STRIPE_BLOCKS,
            (segment.end() - 1) / STRIPE_BLOCKS,
            "a segment within one stripe"
        );
        let mut part = self.part(segment.block).lock();
        let mut pieces = vec![segment.clone()];
        if segment.journaled == InJournal::No {
            pieces = over_journaled(&part, &segment);
        }
        let overlapped = cut_out(&mut part, segment.block, segment.end());
        for piece in pieces {
            part.insert(piece.block, piece);
        }
        overlapped
    }

    /// Forgets blocks `from..to`. Returns how many of them were dirty.
    pub fn remove(&self, from: u64, to: u64) -> u64 {
        let mut removed = 0;
        for part in &self.parts {
            removed += cut_out(&mut part.lock(), from, to);
        }
        removed
    }

    /// The segment that holds `block`.
    pub fn at(&self, block: u64) -> Option<Segment> {
        let part = self.part(block).lock();
        let (_, segment) = part.range(..=block).next_back()?;
        (segment.end() > block).then(|| segment.clone())
    }

    /// The parts of segments within blocks `from..to`, in order.
    pub fn within(&self, from: u64, to: u64) -> Vec<Segment> {
        let mut found = Vec::new();
        let (first, last) = (from / STRIPE_BLOCKS, (to - 1) / STRIPE_BLOCKS);
        let parts = (last - first + 1).min(PARTS);
        for index in 0..parts {
            let part = self.parts[((first + index) % PARTS) as usize].lock();
            for segment in overlapping(&part, from, to) {
                found.push(segment.cut(segment.block.max(from), segment.end().min(to)));
            }
        }
        found.sort_unstable_by_key(|segment| segment.block);
        found
    }

    /// All segments, in order.
    pub fn all(&self) -> Vec<Segment> {
        let mut found = Vec::new();
        for part in &self.parts {
            found.extend(part.lock().values().cloned());
        }
        found.sort_unstable_by_key(|segment| segment.block);
        found
    }

    /// Whether the journal holds everything that is here.
    pub fn is_journaled(&self) -> bool {
        let journaled = |segment: &Segment| segment.journaled == InJournal::Yes;
        self.parts.iter().all(|part| part.lock().values().all(journaled))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.lock().is_empty())
    }

    /// Of the blocks of `written`, those ranges (first, past the last) that still are what they
    /// were, because nobody wrote over them or cut them off.
    pub fn unchanged(&self, written: &Segment) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for now in self.within(written.block, written.end()) {
            let offset = (now.block - written.block) as usize;
            if !now.slice.is_part_of(&written.slice, offset) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.1 == now.block => last.1 = now.end(),
                _ => ranges.push((now.block, now.end())),
            }
        }
        ranges
    }

    /// Whether somebody wrote over some of `written`, and neither cut it off nor put into the
    /// journal what is there now.
    pub fn is_overwritten(&self, written: &Segment) -> bool {
        let is_other = |now: &Segment| {
            now.journaled != InJournal::Yes
                && !now.slice.is_part_of(&written.slice, (now.block - written.block) as usize)
        };
        self.within(written.block, written.end()).iter().any(is_other)
    }

    /// Remembers that the journal holds the bytes of `segment`, where they are unchanged.
    pub fn mark_journaled(&self, segment: &Segment) {
        for (from, to) in self.unchanged(segment) {
            let mut journaled = segment.cut(from, to);
            journaled.journaled = InJournal::Yes;
            self.insert(journaled);
        }
    }

    fn part(&self, block: u64) -> &Mutex<BTreeMap<u64, Segment>> {
        &self.parts[(block / STRIPE_BLOCKS % PARTS) as usize]
    }
}

/// A new segment divided by what the journal holds of its blocks.
fn over_journaled(part: &BTreeMap<u64, Segment>, new: &Segment) -> Vec<Segment> {
    let mut pieces = Vec::with_capacity(1);
    let mut at = new.block;
    for old in overlapping(part, new.block, new.end()) {
        if old.journaled == InJournal::No {
            continue;
        }
        let (from, to) = (old.block.max(at), old.end().min(new.end()));
        if at < from {
            pieces.push(new.cut(at, from));
        }
        pieces.push(Segment { journaled: InJournal::Older, ..new.cut(from, to) });
        at = to;
    }
    if at < new.end() {
        pieces.push(new.cut(at, new.end()));
    }
    pieces
}

/// The segments that overlap blocks `from..to`, whole and in order.
fn overlapping(
    part: &BTreeMap<u64, Segment>,
    from: u64,
    to: u64,
) -> impl Iterator<Item = &Segment> {
    let start = part
        .range(..from)
        .next_back()
        .filter(|(_, segment)| segment.end() > from)
        .map_or(from, |(block, _)| *block);
    part.range(start..to).map(|(_, segment)| segment)
}

/// Removes blocks `from..to`, keeping what segments have outside of it.
fn cut_out(part: &mut BTreeMap<u64, Segment>, from: u64, to: u64) -> u64 {
    let touched: Vec<u64> = overlapping(part, from, to).map(|segment| segment.block).collect();
    let mut removed = 0;
    for block in touched {
        let segment = part.remove(&block).expect("just seen");
        let (cut_from, cut_to) = (segment.block.max(from), segment.end().min(to));
        removed += cut_to - cut_from;
        if segment.block < cut_from {
            part.insert(segment.block, segment.cut(segment.block, cut_from));
        }
        if cut_to < segment.end() {
            part.insert(cut_to, segment.cut(cut_to, segment.end()));
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use gabion_base::buffer::Blocks;
    use gabion_base::rng::Rng;

    use super::*;

    fn segment(block: u64, count: usize, fill: u8) -> Segment {
        let mut blocks = Blocks::zeroed(count);
        blocks.bytes_mut().fill(fill);
        Segment { block, slice: BlockSlice::new(blocks), journaled: InJournal::No }
    }

    #[test]
    fn overlapping_segments_agree_with_a_plain_array() {
        let mut rng = Rng::new(1);
        let dirty = DirtyBytes::default();
        let mut model = vec![None; 2048];
        for step in 0..2000 {
            let stripe = rng.below(8) * 256;
            let from = stripe + rng.below(256);
            let to = from + 1 + rng.below(stripe + 256 - from);
            let before = model[from as usize..to as usize].iter().flatten().count() as u64;
            if rng.chance(1, 4) {
                assert_eq!(dirty.remove(from, to), before);
                model[from as usize..to as usize].fill(None);
            } else {
                let fill = (step % 250) as u8;
                assert_eq!(dirty.insert(segment(from, (to - from) as usize, fill)), before);
                model[from as usize..to as usize].fill(Some(fill));
            }
            let (a, b) = (rng.below(2048), rng.below(2048));
            let (a, b) = (a.min(b), a.max(b) + 1);
            let mut seen = vec![None; 2048];
            for part in dirty.within(a, b) {
                for index in part.block..part.end() {
                    seen[index as usize] = Some(part.slice.bytes()[0]);
                }
            }
            assert_eq!(seen[a as usize..b as usize], model[a as usize..b as usize]);
        }
    }

    #[test]
    fn what_was_overwritten_meanwhile_is_not_unchanged() {
        let dirty = DirtyBytes::default();
        let whole = segment(0, 10, 1);
        dirty.insert(whole.clone());
        assert_eq!(dirty.unchanged(&whole), vec![(0, 10)]);
        dirty.insert(segment(3, 2, 2));
        dirty.remove(9, 10);
        assert_eq!(dirty.unchanged(&whole), vec![(0, 3), (5, 9)]);
        dirty.mark_journaled(&whole);
        assert_eq!(dirty.at(0).map(|s| s.journaled), Some(InJournal::Yes));
        assert_eq!(dirty.at(3).map(|s| s.journaled), Some(InJournal::No));
        assert_eq!(dirty.unchanged(&whole), vec![(0, 3), (5, 9)]);
    }

    #[test]
    fn what_covers_journaled_bytes_is_remembered_until_it_is_journaled_itself() {
        use InJournal::{No, Older, Yes};
        let dirty = DirtyBytes::default();
        let whole = segment(0, 8, 1);
        dirty.insert(whole.clone());
        dirty.mark_journaled(&whole);
        let state =
            || (0..12).map_while(|at| dirty.at(at)).map(|s| s.journaled).collect::<Vec<_>>();
        let newer = segment(2, 8, 2);
        dirty.insert(newer.clone());
        assert_eq!(state(), [vec![Yes; 2], vec![Older; 6], vec![No; 2]].concat());
        dirty.insert(segment(1, 3, 3));
        assert_eq!(state(), [vec![Yes; 1], vec![Older; 7], vec![No; 2]].concat());
        assert!(!dirty.is_journaled());
        dirty.mark_journaled(&newer);
        assert_eq!(state(), [vec![Yes; 1], vec![Older; 3], vec![Yes; 6]].concat());
    }
}
