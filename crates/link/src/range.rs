//! Ranges of keys of one object, and sets of them.
//!
//! Within an object keys are ordered by kind and place, so a range is two numbers:
//!
//! ```text
//!   INODE FILE SYMLINK XATTR.. | DIRENT 0 ..... DIRENT max | DATA 0 ...... DATA max | LOCK ..
//!   '------ attributes ------'   '------- names -------'     '------ bytes -----'   'locks'
//!   '------------------------------- object --------------------------------'
//!   '------------------------------------- everything -------------------------------------'
//! ```
//!
//! Attributes and locks are leased as a whole; names and bytes in parts. There are no items of
//! locks: who has the lease knows them, and nobody else does.

use std::fmt;

use gabion_map::{FileId, Key, Kind};

/// A place within an object: kind, then `at`.
type Place = u128;

const fn place(kind: Kind, at: u64) -> Place {
    (kind.0 as u128) << 64 | at as u128
}

/// Keys of one object from one to another, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    file: FileId,
    first: Place,
    last: Place,
}

impl KeyRange {
    /// The keys from `first` to `last`, unless they are of two objects or in the wrong order.
    pub fn new(first: Key, last: Key) -> Option<Self> {
        let (from, to) = (place(first.kind, first.at), place(last.kind, last.at));
        (first.file() == last.file() && from <= to).then_some(Self {
            file: first.file(),
            first: from,
            last: to,
        })
    }

    /// One key.
    pub fn key(key: Key) -> Self {
        let at = place(key.kind, key.at);
        Self { file: key.file(), first: at, last: at }
    }

    /// All keys of an object that stand for something which lasts.
    pub fn object(file: FileId) -> Self {
        let (first, last) = (place(Kind::INODE, 0), place(Kind::DATA, u64::MAX));
        Self { file, first, last }
    }

    /// All keys of an object, those of its advisory locks, too.
    pub fn everything(file: FileId) -> Self {
        Self { last: place(Kind::LOCK, u64::MAX), ..Self::object(file) }
    }

    /// All advisory locks of a file.
    pub fn locks(file: FileId) -> Self {
        let (first, last) = (place(Kind::LOCK, 0), place(Kind::LOCK, u64::MAX));
        Self { file, first, last }
    }

    /// All attributes of an object: inode, size, target, extended attributes.
    pub fn attributes(file: FileId) -> Self {
        let (first, last) = (place(Kind::INODE, 0), place(Kind::XATTR, u64::MAX));
        Self { file, first, last }
    }

    /// All names in a directory.
    pub fn names(dir: FileId) -> Self {
        let (first, last) = (place(Kind::DIRENT, 0), place(Kind::DIRENT, u64::MAX));
        Self { file: dir, first, last }
    }

    /// The bytes `from..to` of a file; `from < to`.
    pub fn bytes(file: FileId, from: u64, to: u64) -> Self {
        assert!(from < to, "{from}..{to} of {file:?}");
        let (first, last) = (place(Kind::DATA, from), place(Kind::DATA, to - 1));
        Self { file, first, last }
    }

    /// All bytes of a file from `from` on.
    pub fn bytes_from(file: FileId, from: u64) -> Self {
        let (first, last) = (place(Kind::DATA, from), place(Kind::DATA, u64::MAX));
        Self { file, first, last }
    }

    /// What has to be leased to know or change the item at `key`.
    pub fn around(key: Key) -> Self {
        if key.kind <= Kind::XATTR { Self::attributes(key.file()) } else { Self::key(key) }
    }

    /// The object.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// The first key.
    pub fn first(&self) -> Key {
        self.key_at(self.first)
    }

    /// The last key.
    pub fn last(&self) -> Key {
        self.key_at(self.last)
    }

    fn key_at(&self, place: Place) -> Key {
        self.file.key(Kind((place >> 64) as u8), place as u64)
    }

    /// The kind of its keys, if it is one.
    pub fn kind(&self) -> Option<Kind> {
        let (first, last) = (self.first().kind, self.last().kind);
        (first == last).then_some(first)
    }

    /// Whether both have a key in common.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.file == other.file && self.first <= other.last && other.first <= self.last
    }

    /// What both have in common.
    pub fn intersection(&self, other: &KeyRange) -> Option<KeyRange> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (self.file == other.file && first <= last).then_some(Self { first, last, ..*self })
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: Key) -> bool {
        self.overlaps(&Self::key(key))
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &KeyRange) -> bool {
        self.file == other.file && self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first(), self.last());
        write!(f, "{:?} {:?}@{}", self.file, first.kind, first.at)?;
        match self.first == self.last {
            true => Ok(()),
            false => write!(f, "..={:?}@{}", last.kind, last.at),
        }
    }
}

/// Ranges of one object, sorted, without overlaps, neighbours joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(Place, Place)>,
}

impl RangeSet {
    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it takes to say what is in it.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges that end at or after `place`.
    fn from(&self, place: Place) -> usize {
        self.ranges.partition_point(|(_, last)| *last < place)
    }

    /// Whether all of `range` is in it.
    pub fn covers(&self, range: &KeyRange) -> bool {
        let found = self.ranges.get(self.from(range.first));
        found.is_some_and(|(first, last)| *first <= range.first && range.last <= *last)
    }

    /// Whether any of `range` is in it.
    pub fn overlaps(&self, range: &KeyRange) -> bool {
        self.ranges.get(self.from(range.first)).is_some_and(|(first, _)| *first <= range.last)
    }

    /// The parts of `range` that are in it.
    pub fn parts(&self, range: &KeyRange) -> Vec<KeyRange> {
        let begin = self.from(range.first);
        let within = self.ranges[begin..].iter().take_while(|(first, _)| *first <= range.last);
        let cut = |(first, last): &(Place, Place)| KeyRange {
            first: range.first.max(*first),
            last: range.last.min(*last),
            ..*range
        };
        within.map(cut).collect()
    }

    /// Whether at least `count` parts of `range` are in it, which is at least one.
    pub fn has_parts(&self, range: &KeyRange, count: usize) -> bool {
        let last = self.ranges.get(self.from(range.first) + count - 1);
        last.is_some_and(|(first, _)| *first <= range.last)
    }

    /// The parts of `range` that are not in it.
    pub fn gaps(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut gaps = Vec::new();
        let mut next = Some(range.first);
        for part in self.parts(range) {
            if let Some(from) = next.filter(|from| *from < part.first) {
                gaps.push(KeyRange { first: from, last: part.first - 1, ..*range });
            }
            next = part.last.checked_add(1);
        }
        if let Some(from) = next.filter(|from| *from <= range.last) {
            gaps.push(KeyRange { first: from, ..*range });
        }
        gaps
    }

    /// Adds `range`.
    pub fn insert(&mut self, range: &KeyRange) {
        // Neighbours count as overlapping here: they become one range.
        let begin = self.ranges.partition_point(|(_, last)| last.saturating_add(1) < range.first);
        let end = self.ranges.partition_point(|(first, _)| *first <= range.last.saturating_add(1));
        let (mut first, mut last) = (range.first, range.last);
        if let Some((low, _)) = self.ranges[begin..end].first() {
            first = first.min(*low);
        }
        if let Some((_, high)) = self.ranges[begin..end].last() {
            last = last.max(*high);
        }
        self.ranges.splice(begin..end, [(first, last)]);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: &KeyRange) {
        let begin = self.from(range.first);
        let end = self.ranges.partition_point(|(first, _)| *first <= range.last);
        if begin >= end {
            return;
        }
        let ((low, _), (_, high)) = (self.ranges[begin], self.ranges[end - 1]);
        let before = (low < range.first).then(|| (low, range.first - 1));
        let after = (high > range.last).then(|| (range.last + 1, high));
        self.ranges.splice(begin..end, before.into_iter().chain(after));
    }

    /// All ranges, as ranges of `file`.
    pub fn of(&self, file: FileId) -> impl Iterator<Item = KeyRange> {
        self.ranges.iter().map(move |(first, last)| KeyRange { file, first: *first, last: *last })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gabion_base::ids::{Ino, SubvolId};
    use proptest::prelude::*;

    use super::*;

    const FILE: FileId = FileId::new(SubvolId(1), Ino(7));

    fn bytes(from: u64, to: u64) -> KeyRange {
        KeyRange::bytes(FILE, from, to)
    }

    #[test]
    fn the_parts_of_an_object_do_not_touch() {
        let parts = [
            KeyRange::attributes(FILE),
            KeyRange::names(FILE),
            KeyRange::bytes_from(FILE, 0),
            KeyRange::locks(FILE),
        ];
        for (index, part) in parts.iter().enumerate() {
            for (other, against) in parts.iter().enumerate() {
                assert_eq!(part.overlaps(against), index == other);
            }
        }
        assert_eq!(KeyRange::around(FILE.key(Kind::FILE, 0)), parts[0]);
        assert!(parts[1].covers(&KeyRange::around(FILE.key(Kind::DIRENT, 5))));
        assert!(parts.iter().all(|part| KeyRange::everything(FILE).covers(part)));
        assert!(!KeyRange::object(FILE).overlaps(&parts[3]));
        let mut set = RangeSet::default();
        parts.iter().for_each(|part| set.insert(part));
        let (object, locks) = (KeyRange::object(FILE), KeyRange::locks(FILE));
        assert_eq!(set.parts(&KeyRange::everything(FILE)), [object, locks]);
    }

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set_of_numbers(
            steps in prop::collection::vec((any::<bool>(), 0..60_u64, 1..20_u64), 1..40),
        ) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (adds, from, length) in steps {
                let range = bytes(from, from + length);
                let numbers = from..from + length;
                let before = model.clone();
                let inside: Vec<_> = numbers.clone().filter(|n| before.contains(n)).collect();
                prop_assert_eq!(set.overlaps(&range), !inside.is_empty());
                prop_assert_eq!(set.covers(&range), inside.len() == length as usize);
                let count = |parts: Vec<KeyRange>| -> u64 {
                    parts.iter().map(|part| part.last().at - part.first().at + 1).sum()
                };
                prop_assert_eq!(count(set.parts(&range)), inside.len() as u64);
                for least in 1..5 {
                    let has_parts = set.parts(&range).len() >= least;
                    prop_assert_eq!(set.has_parts(&range, least), has_parts);
                }
                prop_assert_eq!(count(set.gaps(&range)), length - inside.len() as u64);
                if adds {
                    set.insert(&range);
                    model.extend(numbers);
                } else {
                    set.remove(&range);
                    model.retain(|n| !numbers.contains(n));
                }
                let held: Vec<u64> =
                    set.of(FILE).flat_map(|r| r.first().at..=r.last().at).collect();
                prop_assert_eq!(held, model.iter().copied().collect::<Vec<_>>());
                let begins = |n: &&u64| n.checked_sub(1).is_none_or(|b| !model.contains(&b));
                let runs = model.iter().filter(begins);
                prop_assert_eq!(set.len(), runs.count());
            }
        }
    }
}
