//! One allocation group: its bitmaps and what follows from them.
//!
//! - `busy` says what may not be given out now: blocks in use, and blocks that were freed but may
//!   still be referenced by the last durable commit or the journal.
//! - `next` is what the next commit writes: blocks in use by its trees, nothing else.
//! - `after` is what the commit after that one will write, as far as it is known.
//!
//! Operations of the transaction group after the one that is being committed change `busy` at
//! once, but must not show in the page that the commit writes: they change `after`, which becomes
//! `next` when the page has been captured. While nothing waits for that, both are the same.
//!
//! Invariants: a bit that is set in `next` or in `after` is set in `busy`; `free` counts the clear
//! bits of `busy`; `clusters` counts its clear aligned nibbles (four blocks, room for a tree node).

use gabion_base::ids::Txg;

use crate::layout::GROUP_BLOCKS;

/// Words of a bitmap.
const WORDS: usize = (GROUP_BLOCKS / 64) as usize;

/// One bit a block; a set bit is a block in use.
#[derive(Clone)]
pub struct Bitmap {
    words: Box<[u64; WORDS]>,
}

impl Bitmap {
    /// All blocks free.
    pub fn empty() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }

    /// Decodes a page.
    pub fn from_page(page: &[u8]) -> Self {
        let mut bitmap = Self::empty();
        for (word, bytes) in bitmap.words.iter_mut().zip(page.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        bitmap
    }

    /// The page.
    pub fn to_page(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether `block` is in use.
    pub fn is_set(&self, block: u64) -> bool {
        self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// Sets `count` bits from `start`; all of them must be clear.
    pub fn set(&mut self, start: u64, count: u64) {
        for_masks(start, count, |word, mask| {
            assert_eq!(self.words[word] & mask, 0, "blocks {start}+{count} are in use already");
            self.words[word] |= mask;
        });
    }

    /// Clears `count` bits from `start`; all of them must be set.
    pub fn clear(&mut self, start: u64, count: u64) {
        for_masks(start, count, |word, mask| {
            assert_eq!(self.words[word] & mask, mask, "blocks {start}+{count} are not in use");
            self.words[word] &= !mask;
        });
    }

    /// Whether all of `count` bits from `start` have the value `set`.
    pub fn all(&self, start: u64, count: u64, set: bool) -> bool {
        let mut all = true;
        for_masks(start, count, |word, mask| {
            all &= self.words[word] & mask == if set { mask } else { 0 };
        });
        all
    }

    /// Whether every bit that `other` has set is set here.
    pub fn contains(&self, other: &Self) -> bool {
        self.words.iter().zip(other.words.iter()).all(|(ours, theirs)| theirs & !ours == 0)
    }

    /// Runs (first, count) of bits that are set here and clear in `other`.
    pub fn runs_beyond(&self, other: &Self) -> Vec<(u64, u64)> {
        let mut only = self.clone();
        let words = only.words.iter_mut().zip(other.words.iter());
        words.for_each(|(ours, theirs)| *ours &= !theirs);
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some(start) = only.next_bit(from, true) {
            from = only.next_bit(start, false).unwrap_or(GROUP_BLOCKS);
            runs.push((start, from - start));
        }
        runs
    }

    /// Number of set bits.
    pub fn count_set(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Number of aligned groups of four clear bits.
    pub fn count_clusters(&self) -> u64 {
        self.words.iter().map(|word| u64::from(clear_nibbles(*word))).sum()
    }

    fn clusters_in(&self, start: u64, count: u64) -> u64 {
        let first = (start / 64) as usize;
        let last = ((start + count - 1) / 64) as usize;
        self.words[first..=last].iter().map(|word| u64::from(clear_nibbles(*word))).sum()
    }

    /// The first clear run at or after `from`, at most `want` long.
    fn clear_run(&self, from: u64, want: u64) -> Option<(u64, u64)> {
        let start = self.next_bit(from, false)?;
        let end = self.next_bit(start, true).unwrap_or(GROUP_BLOCKS);
        Some((start, (end - start).min(want)))
    }

    fn next_bit(&self, from: u64, set: bool) -> Option<u64> {
        if from >= GROUP_BLOCKS {
            return None;
        }
        let mut index = (from / 64) as usize;
        let view = |word: u64| if set { word } else { !word };
        let mut word = view(self.words[index]) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = view(*self.words.get(index)?);
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The first aligned clear nibble at or after `from`.
    fn clear_cluster(&self, from: u64) -> Option<u64> {
        let mut mask = u64::MAX << (from.next_multiple_of(4) % 64);
        let mut index = (from.next_multiple_of(4) / 64) as usize;
        while index < WORDS {
            let word = nibble_heads(self.words[index]) & mask;
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            mask = u64::MAX;
            index += 1;
        }
        None
    }

    /// The first clear bit at or after `from` whose nibble is not all clear, with its run within
    /// the nibble.
    fn fragment(&self, from: u64, want: u64) -> Option<(u64, u64)> {
        let mut at = from;
        loop {
            let start = self.next_bit(at, false)?;
            let head = start & !3;
            if nibble_heads(self.words[(head / 64) as usize]) >> (head % 64) & 1 == 1 {
                at = head + 4;
                continue;
            }
            let mut count = 1;
            while count < want && (start + count) < head + 4 && !self.is_set(start + count) {
                count += 1;
            }
            return Some((start, count));
        }
    }
}

/// A bit at the head of each all-clear nibble.
fn nibble_heads(word: u64) -> u64 {
    let clear = !word;
    let pairs = clear & (clear >> 1);
    pairs & (pairs >> 2) & 0x1111_1111_1111_1111
}

fn clear_nibbles(word: u64) -> u32 {
    nibble_heads(word).count_ones()
}

fn for_masks(start: u64, count: u64, mut f: impl FnMut(usize, u64)) {
    assert!(start + count <= GROUP_BLOCKS, "blocks {start}+{count} of a group");
    let (mut at, end) = (start, start + count);
    while at < end {
        let upto = end.min((at / 64 + 1) * 64);
        let mask = (u64::MAX >> (64 - (upto - at))) << (at % 64);
        f((at / 64) as usize, mask);
        at = upto;
    }
}

/// What blocks are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A tree node: four blocks at a multiple of four.
    Node,
    /// Up to so many blocks side by side.
    Data(u64),
    /// Up to so many blocks, only where no whole cluster is broken.
    Fragment(u64),
}

/// A group whose bitmap is in memory.
pub struct Group {
    busy: Bitmap,
    next: Bitmap,
    after: Bitmap,
    /// The transaction group whose changes are in `after` only.
    waiting: Option<Txg>,
    free: u64,
    clusters: u64,
    cursor: u64,
    /// Whether `next` differs from the page on disk.
    pub dirty: bool,
}

/// How a change of a group changed the counts of what is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Blocks.
    pub blocks: i64,
    /// Clusters.
    pub clusters: i64,
}

impl Group {
    /// A group whose page on disk is `bitmap`.
    pub fn new(bitmap: Bitmap) -> Self {
        let free = GROUP_BLOCKS - bitmap.count_set();
        let clusters = bitmap.count_clusters();
        let (next, after) = (bitmap.clone(), bitmap.clone());
        let (waiting, cursor, dirty) = (None, 0, false);
        Self { busy: bitmap, next, after, waiting, free, clusters, cursor, dirty }
    }

    /// Blocks that can be given out now.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Clusters that can be given out now.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Blocks in use as the next commit will see it.
    pub fn next(&self) -> &Bitmap {
        &self.next
    }

    /// Blocks that may not be given out now.
    pub fn busy(&self) -> &Bitmap {
        &self.busy
    }

    /// Whether memory holds nothing that disk does not.
    pub fn is_idle(&self) -> bool {
        let unused = GROUP_BLOCKS - self.next.count_set();
        !self.dirty && self.waiting.is_none() && unused == self.free
    }

    /// Finds blocks, beginning where the last search ended.
    pub fn find(&mut self, want: Want) -> Option<(u64, u64)> {
        let search = |from: u64| match want {
            Want::Node => self.busy.clear_cluster(from).map(|start| (start, 4)),
            Want::Data(count) => self.busy.clear_run(from, count),
            Want::Fragment(count) => self.busy.fragment(from, count),
        };
        let found = search(self.cursor).or_else(|| search(0))?;
        self.cursor = found.0 + found.1;
        Some(found)
    }

    /// Takes blocks that [`Group::find`] found or the journal names. Nothing on disk knows of it
    /// until [`Group::own`].
    pub fn take(&mut self, start: u64, count: u64) -> Delta {
        let before = self.busy.clusters_in(start, count);
        self.busy.set(start, count);
        self.account(before, start, count, -(count as i64))
    }

    /// The commit `txg` and later ones use these blocks, which were taken before. `captured` is the
    /// last commit whose page is written.
    pub fn own(&mut self, start: u64, count: u64, txg: Txg, captured: Txg) {
        assert!(self.busy.all(start, count, true), "blocks {start}+{count} were not taken");
        let shows = self.turn_to(txg, captured);
        self.after.set(start, count);
        if shows {
            self.next.set(start, count);
        }
    }

    /// The commit `txg` and later ones no longer use these blocks. They stay busy until
    /// [`Group::release`]. False, and nothing is done, if they are not in use: a damaged tree named
    /// them twice.
    pub fn retire(&mut self, start: u64, count: u64, txg: Txg, captured: Txg) -> bool {
        let shows = self.turn_to(txg, captured);
        let used = self.after.all(start, count, true);
        if !used || (shows && !self.next.all(start, count, true)) {
            return false;
        }
        self.after.clear(start, count);
        if shows {
            self.next.clear(start, count);
        }
        true
    }

    /// Blocks that were retired, or taken and never owned, may be given out again.
    pub fn release(&mut self, start: u64, count: u64) -> Delta {
        let before = self.busy.clusters_in(start, count);
        self.busy.clear(start, count);
        self.account(before, start, count, count as i64)
    }

    /// Applies what waited for the page of commit `captured` to be written. Whether there was
    /// anything.
    pub fn settle(&mut self, captured: Txg) -> bool {
        let Some(_) = self.waiting.take_if(|waiting| *waiting <= captured.next()) else {
            return false;
        };
        self.next.clone_from(&self.after);
        self.dirty = true;
        true
    }

    /// Prepares for a change of `txg`: whether it shows in the page that is written next.
    fn turn_to(&mut self, txg: Txg, captured: Txg) -> bool {
        self.settle(captured);
        let shows = txg <= captured.next();
        if shows {
            self.dirty = true;
        } else {
            self.waiting = Some(txg);
        }
        shows
    }

    fn account(&mut self, clusters_before: u64, start: u64, count: u64, blocks: i64) -> Delta {
        let clusters = self.busy.clusters_in(start, count) as i64 - clusters_before as i64;
        self.free = self.free.strict_add_signed(blocks);
        self.clusters = self.clusters.strict_add_signed(clusters);
        Delta { blocks, clusters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_clusters_and_fragments_are_found() {
        let mut group = Group::new(Bitmap::empty());
        group.take(0, 5);
        assert_eq!(group.find(Want::Node), Some((8, 4)));
        assert_eq!(group.clusters(), GROUP_BLOCKS / 4 - 2);
        let mut group = Group::new(Bitmap::empty());
        group.take(0, 5);
        assert_eq!(group.find(Want::Fragment(8)), Some((5, 3)));
        assert_eq!(group.find(Want::Data(100)), Some((8, 100)));
        group.take(60, 10);
        group.cursor = 6;
        assert_eq!(group.find(Want::Data(100)), Some((6, 54)));
    }

    #[test]
    fn a_page_round_trips_with_its_counts() {
        let mut group = Group::new(Bitmap::empty());
        group.take(100, 1000);
        group.own(100, 1000, Txg(1), Txg(0));
        let again = Group::new(Bitmap::from_page(&group.next().to_page()));
        assert_eq!((again.free(), again.clusters()), (group.free(), group.clusters()));
    }

    #[test]
    fn what_comes_during_a_commit_does_not_show_in_its_page() {
        let (now, later, captured) = (Txg(1), Txg(2), Txg(0));
        let mut group = Group::new(Bitmap::empty());
        group.take(0, 20);
        group.own(0, 4, now, captured);
        group.own(4, 4, later, captured);
        assert!(group.retire(4, 2, later, captured));
        assert!(group.retire(0, 1, later, captured));
        // The commit goes on allocating and retiring in the same group meanwhile.
        group.own(16, 4, now, captured);
        assert!(group.retire(3, 1, now, captured));
        assert!(!group.settle(captured), "the page is not written yet");
        let in_use = |bitmap: &Bitmap| (0..20).filter(|block| bitmap.is_set(*block)).collect();
        let page: Vec<u64> = in_use(group.next());
        assert_eq!(page, [0, 1, 2, 16, 17, 18, 19]);
        assert!(group.settle(now));
        let page: Vec<u64> = in_use(group.next());
        assert_eq!(page, [1, 2, 6, 7, 16, 17, 18, 19]);
        assert!(group.busy().all(0, 20, true));
        group.release(4, 2);
        assert!(group.busy().all(4, 2, false));
    }

    #[test]
    fn blocks_are_retired_once_whoever_comes_first() {
        let (now, later, captured) = (Txg(1), Txg(2), Txg(0));
        let mut group = Group::new(Bitmap::empty());
        group.take(0, 8);
        group.own(0, 6, now, captured);
        assert!(group.retire(0, 2, later, captured));
        assert!(!group.retire(1, 2, later, captured), "twice by operations after the freeze");
        assert!(!group.retire(0, 1, now, captured), "once by such a one, once by the commit");
        assert!(group.retire(2, 2, now, captured));
        assert!(!group.retire(2, 2, later, captured), "the other way round");
        assert!(!group.retire(6, 1, later, captured), "taken, but not owned");
        group.settle(now);
        assert!(group.next().all(4, 2, true) && group.next().all(0, 4, false));
    }

    #[test]
    #[should_panic(expected = "in use already")]
    fn taking_a_block_twice_is_a_broken_invariant() {
        let mut group = Group::new(Bitmap::empty());
        group.take(7, 1);
        group.take(7, 1);
    }
}
