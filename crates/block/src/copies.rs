//! Small sets of copies, by their numbers.

use std::fmt;

/// Copies that a mirror can have.
pub const COPIES_MAX: usize = 8;

/// Which copy of a mirror: its place in the record, which also names its slot of the bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyIndex(pub u8);

impl CopyIndex {
    /// As an index of a vector with an entry for each copy.
    pub fn at(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for CopyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy {}", self.0)
    }
}

/// A set of copies.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CopySet(u8);

impl CopySet {
    /// The set of none.
    pub const EMPTY: Self = Self(0);

    /// The set of one.
    pub fn only(copy: CopyIndex) -> Self {
        assert!(copy.at() < COPIES_MAX, "{copy}");
        Self(1 << copy.0)
    }

    /// Adds `copy`.
    pub fn insert(&mut self, copy: CopyIndex) {
        self.0 |= Self::only(copy).0;
    }

    /// Takes `copy` out; says whether it was in.
    pub fn remove(&mut self, copy: CopyIndex) -> bool {
        let had = self.contains(copy);
        self.0 &= !Self::only(copy).0;
        had
    }

    /// Whether `copy` is in.
    pub fn contains(self, copy: CopyIndex) -> bool {
        self.0 & Self::only(copy).0 != 0
    }

    /// Whether none is in.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are in.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this one only.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// All, in order.
    pub fn iter(self) -> impl Iterator<Item = CopyIndex> {
        (0..COPIES_MAX as u8).map(CopyIndex).filter(move |copy| self.contains(*copy))
    }
}

impl FromIterator<CopyIndex> for CopySet {
    fn from_iter<I: IntoIterator<Item = CopyIndex>>(copies: I) -> Self {
        let mut set = Self::EMPTY;
        copies.into_iter().for_each(|copy| set.insert(copy));
        set
    }
}

impl fmt::Debug for CopySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|copy| copy.0)).finish()
    }
}
