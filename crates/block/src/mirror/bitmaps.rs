//! What the copies keep about each other: which regions may differ, and which copy lacks what.
//!
//! For each page there are the bits as they are *wanted*, those of the write that is *in flight*,
//! and those that are *kept* by all copies for certain. A bit that is being cleared is not kept
//! from the moment its page is sent, one that is being set is kept only once the page has arrived.
//!
//! What must hold on disk, at any instant:
//!
//! 1. `intent` has the region of every write that may have reached some of the copies, and is not
//!    durable on all that are in sync.
//! 2. `missing(c) ∪ intent` has every region in which copy `c`, not in sync, may lack something.

use std::collections::BTreeSet;

use gabion_base::buffer::BlockSlice;
use gabion_base::ids::{BlockAddr, Uuid};

use crate::copies::CopyIndex;
use crate::format::bitmap::{Bits, PAGE_BITS, PAGE_WORDS, PageIdentity};
use crate::geometry::{Geometry, SLOTS, Slot};

/// A page among all of all slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageIndex(usize);

struct Page {
    wanted: Box<Bits>,
    kept: Box<Bits>,
    flying: Option<Box<Bits>>,
    /// It must be written, whatever its bits are.
    renew: bool,
}

impl Page {
    fn new(bits: Bits) -> Self {
        let bits = Box::new(bits);
        Self { wanted: bits.clone(), kept: bits, flying: None, renew: false }
    }
}

/// Bitmaps as they were read from copies.
pub struct Loaded {
    geometry: Geometry,
    pages: Vec<Bits>,
}

impl Loaded {
    /// No bit set.
    pub fn empty(geometry: Geometry) -> Self {
        let pages = SLOTS * geometry.pages();
        Self { geometry, pages: vec![[0; PAGE_WORDS]; pages] }
    }

    /// Adds what one copy keeps. `area` is the head of that copy, as far as it could be read; what
    /// is not there, or not a page of this mirror, counts as all bits set. Gives how many pages
    /// that was.
    pub fn add(&mut self, mirror: Uuid, area: &[u8]) -> usize {
        let mut strange = 0;
        for index in 0..self.pages.len() {
            let identity = identity(self.geometry, mirror, PageIndex(index));
            let start = index * gabion_base::BLOCK_SIZE;
            let block = area.get(start..start + gabion_base::BLOCK_SIZE).unwrap_or_default();
            let bits = identity.decode(block).unwrap_or_else(|_| {
                strange += 1;
                Box::new([u64::MAX; PAGE_WORDS])
            });
            let first = (index % self.geometry.pages() * PAGE_BITS) as u64;
            let left = self.geometry.regions() - first;
            for (number, more) in bits.iter().enumerate() {
                self.pages[index][number] |= more & regions_in_word(left, number as u64);
            }
        }
        strange
    }

    /// Whether a write may have been under way when the mirror was last used.
    pub fn is_unclean(&self) -> bool {
        self.pages[..self.geometry.pages()].iter().any(|page| page.iter().any(|word| *word != 0))
    }
}

/// The pages of a mirror that nobody has written to, as blocks for the head of each copy.
pub fn blank_pages(geometry: Geometry, mirror: Uuid) -> Vec<(BlockAddr, BlockSlice)> {
    let blank = |index| {
        let block = identity(geometry, mirror, PageIndex(index)).encode(&[0; PAGE_WORDS]);
        (BlockAddr(index as u64), BlockSlice::new(block))
    };
    (0..SLOTS * geometry.pages()).map(blank).collect()
}

fn identity(geometry: Geometry, mirror: Uuid, index: PageIndex) -> PageIdentity {
    PageIdentity {
        mirror,
        slot: (index.0 / geometry.pages()) as u16,
        page: (index.0 % geometry.pages()) as u32,
        region_blocks: geometry.region_blocks(),
    }
}

/// The bits of a page's word that stand for regions, if there are `left` from its first bit on.
fn regions_in_word(left: u64, word: u64) -> u64 {
    match left.saturating_sub(word * 64) {
        count @ 0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}

fn place(region: u64) -> (usize, usize, u64) {
    let bit = region as usize % PAGE_BITS;
    (region as usize / PAGE_BITS, bit / 64, 1 << (bit % 64))
}

pub(super) struct Bitmaps {
    geometry: Geometry,
    mirror: Uuid,
    pages: Vec<Page>,
    /// Pages to be looked at by [`Bitmaps::next_write`].
    changed: BTreeSet<PageIndex>,
}

impl Bitmaps {
    pub(super) fn new(mirror: Uuid, loaded: Loaded) -> Self {
        let pages = loaded.pages.into_iter().map(Page::new).collect();
        Self { geometry: loaded.geometry, mirror, pages, changed: BTreeSet::new() }
    }

    /// The same bits as the bitmaps of a longer mirror have them. All pages are to be written, and
    /// none may be under way.
    pub(super) fn lengthen(&mut self, geometry: Geometry) {
        assert!(self.pages.iter().all(|page| page.flying.is_none()), "a page is under way");
        let pages = Loaded::empty(geometry).pages.into_iter().map(Page::new).collect();
        let mut longer = Self { geometry, mirror: self.mirror, pages, changed: BTreeSet::new() };
        for slot in Slot::all() {
            let mut from = 0;
            while let Some(region) = self.next_set(slot, from) {
                let (start, _) = self.geometry.extent(region);
                longer.set(slot, *geometry.regions_of(start, 1).start());
                from = region + 1;
            }
        }
        longer.renew();
        *self = longer;
    }

    fn index(&self, slot: Slot, page: usize) -> PageIndex {
        PageIndex(slot.number() * self.geometry.pages() + page)
    }

    /// Whether a bit is set, or going to be.
    pub(super) fn is_set(&self, slot: Slot, region: u64) -> bool {
        let (page, word, mask) = place(region);
        self.pages[self.index(slot, page).0].wanted[word] & mask != 0
    }

    /// Whether a bit is set on all copies for certain.
    pub(super) fn is_kept(&self, slot: Slot, region: u64) -> bool {
        let (page, word, mask) = place(region);
        self.pages[self.index(slot, page).0].kept[word] & mask != 0
    }

    pub(super) fn set(&mut self, slot: Slot, region: u64) {
        let (page, word, mask) = place(region);
        let index = self.index(slot, page);
        self.pages[index.0].wanted[word] |= mask;
        self.changed.insert(index);
    }

    pub(super) fn clear(&mut self, slot: Slot, region: u64) {
        let (page, word, mask) = place(region);
        let index = self.index(slot, page);
        self.pages[index.0].wanted[word] &= !mask;
        self.changed.insert(index);
    }

    /// Sets all bits of a slot that stand for regions.
    pub(super) fn set_all(&mut self, slot: Slot) {
        for region in 0..self.geometry.regions() {
            self.set(slot, region);
        }
    }

    /// Clears all bits of a slot.
    pub(super) fn clear_all(&mut self, slot: Slot) {
        let mut from = 0;
        while let Some(region) = self.next_set(slot, from) {
            self.clear(slot, region);
            from = region + 1;
        }
    }

    /// Whether all bits that are set are kept.
    pub(super) fn all_kept(&self, slot: Slot) -> bool {
        let start = self.index(slot, 0).0;
        let pages = &self.pages[start..start + self.geometry.pages()];
        pages.iter().all(|page| page.wanted.iter().zip(page.kept.iter()).all(|(w, k)| w & !k == 0))
    }

    /// The first region from `from` on whose bit is set.
    pub(super) fn next_set(&self, slot: Slot, from: u64) -> Option<u64> {
        let start = self.index(slot, 0).0;
        let mut region = from;
        while region < self.geometry.regions() {
            let (page, word, mask) = place(region);
            let rest = self.pages[start + page].wanted[word] & !(mask - 1);
            if rest != 0 {
                let bit = word * 64 + rest.trailing_zeros() as usize;
                let found = (page * PAGE_BITS + bit) as u64;
                return (found < self.geometry.regions()).then_some(found);
            }
            region = (page * PAGE_BITS + (word + 1) * 64) as u64;
        }
        None
    }

    /// Number of bits that are set.
    pub(super) fn count(&self, slot: Slot) -> u64 {
        let start = self.index(slot, 0).0;
        let pages = &self.pages[start..start + self.geometry.pages()];
        let words = pages.iter().flat_map(|page| page.wanted.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// What copy `copy` lacks: what it lacked already, and all that is not settled.
    pub(super) fn add_intent(&mut self, copy: CopyIndex) {
        let mut from = 0;
        while let Some(region) = self.next_set(Slot::Intent, from) {
            self.set(Slot::Missing(copy), region);
            from = region + 1;
        }
    }

    /// All pages must be written again, as there is a copy that has not got them.
    pub(super) fn renew(&mut self) {
        for (index, page) in self.pages.iter_mut().enumerate() {
            page.renew = true;
            self.changed.insert(PageIndex(index));
        }
    }

    /// Whether all pages have arrived since [`Bitmaps::renew`].
    pub(super) fn is_renewed(&self) -> bool {
        self.pages.iter().all(|page| !page.renew && page.flying.is_none())
    }

    /// A page that is to be written now, with its place on each copy. One page is in flight once.
    pub(super) fn next_write(&mut self) -> Option<(PageIndex, BlockAddr, BlockSlice)> {
        loop {
            let ready = |index: &PageIndex| self.pages[index.0].flying.is_none();
            let index = self.changed.iter().copied().find(ready)?;
            self.changed.remove(&index);
            let page = &mut self.pages[index.0];
            if page.wanted == page.kept && !page.renew {
                continue;
            }
            page.renew = false;
            for (kept, wanted) in page.kept.iter_mut().zip(page.wanted.iter()) {
                *kept &= wanted;
            }
            page.flying = Some(page.wanted.clone());
            let block = identity(self.geometry, self.mirror, index).encode(&page.wanted);
            return Some((index, BlockAddr(index.0 as u64), BlockSlice::new(block)));
        }
    }

    /// The page has been written to all copies that count.
    pub(super) fn written(&mut self, index: PageIndex) {
        let page = &mut self.pages[index.0];
        page.kept = page.flying.take().expect("only what flies arrives");
    }

    /// The page could not be written; it is tried again.
    pub(super) fn not_written(&mut self, index: PageIndex) {
        let page = &mut self.pages[index.0];
        page.flying = None;
        page.renew = true;
        self.changed.insert(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmaps() -> Bitmaps {
        let geometry = Geometry::of_copies(1 << 28).unwrap();
        Bitmaps::new(Uuid([5; 16]), Loaded::empty(geometry))
    }

    #[test]
    fn a_bit_is_kept_only_once_its_page_has_arrived() {
        let mut bitmaps = bitmaps();
        bitmaps.set(Slot::Intent, 40_000);
        assert!(bitmaps.is_set(Slot::Intent, 40_000) && !bitmaps.is_kept(Slot::Intent, 40_000));
        let (index, addr, _) = bitmaps.next_write().unwrap();
        assert_eq!(addr, BlockAddr(1));
        bitmaps.set(Slot::Intent, 40_001);
        assert!(bitmaps.next_write().is_none(), "the page is in flight");
        bitmaps.written(index);
        assert!(bitmaps.is_kept(Slot::Intent, 40_000));
        assert!(!bitmaps.is_kept(Slot::Intent, 40_001));
        bitmaps.clear(Slot::Intent, 40_000);
        let (index, ..) = bitmaps.next_write().unwrap();
        assert!(!bitmaps.is_kept(Slot::Intent, 40_000), "it may be gone already");
        bitmaps.not_written(index);
        let (index, ..) = bitmaps.next_write().unwrap();
        bitmaps.written(index);
        assert!(bitmaps.is_kept(Slot::Intent, 40_001) && bitmaps.next_write().is_none());
    }

    #[test]
    fn set_bits_are_found_in_their_order() {
        let mut bitmaps = bitmaps();
        let slot = Slot::Missing(CopyIndex(7));
        let last = bitmaps.geometry.regions() - 1;
        for region in [0, 63, 64, 32_256, last] {
            bitmaps.set(slot, region);
        }
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(region) = bitmaps.next_set(slot, from) {
            found.push(region);
            from = region + 1;
        }
        assert_eq!(found, [0, 63, 64, 32_256, last]);
        assert_eq!(bitmaps.count(slot), 5);
    }

    #[test]
    fn what_cannot_be_read_counts_as_set() {
        let geometry = Geometry::of_copies(1 << 20).unwrap();
        let mut area = Vec::new();
        for (_, block) in blank_pages(geometry, Uuid([5; 16])) {
            area.extend_from_slice(block.bytes());
        }
        let mut loaded = Loaded::empty(geometry);
        assert_eq!(loaded.add(Uuid([5; 16]), &area), 0);
        assert!(!loaded.is_unclean());
        area[100] ^= 1;
        assert_eq!(loaded.add(Uuid([5; 16]), &area), 1);
        assert!(loaded.is_unclean());
        let mut bitmaps = Bitmaps::new(Uuid([5; 16]), loaded);
        for region in 0..geometry.regions() {
            bitmaps.clear(Slot::Intent, region);
        }
        let (_, _, block) = bitmaps.next_write().unwrap();
        area[..gabion_base::BLOCK_SIZE].copy_from_slice(block.bytes());
        let mut again = Loaded::empty(geometry);
        assert_eq!(again.add(Uuid([5; 16]), &area), 0);
        assert!(!again.is_unclean(), "bits that stand for nothing are not set");
        let mut other = Loaded::empty(geometry);
        assert_eq!(other.add(Uuid([6; 16]), &area), SLOTS * geometry.pages());
    }
}
