//! What is saved: a snapshot, seen as objects that have numbers, names and bytes.

use std::ops::Range;

use gabion_backup::Object;

use crate::failure::Result;

/// The numbers of objects are below this: what is above tells which subvolume a mount means.
const INODES: u64 = 1 << 40;

/// A snapshot that can be read. Nothing in it ever changes.
pub trait Source: Sync {
    /// How it finds an object again.
    type Node: Clone + Send + Sync;

    /// The root directory.
    fn root(&self) -> Result<Self::Node>;

    /// The object with this number, which is at a path below the root, without a slash in front.
    fn at(&self, path: &[u8], ino: u64) -> Self::Node;

    /// What a directory has, in the order of names, without what belongs to other subvolumes.
    fn entries(&self, dir: &Self::Node) -> Result<Vec<(Vec<u8>, Self::Node)>>;

    /// An object and the number of its names. Its content is told to be fresh. Nothing if it
    /// belongs to another subvolume.
    fn object(&self, node: &Self::Node) -> Result<Option<(Object, u64)>>;

    /// Whether whoever reads a file in order finds the next bytes in memory.
    fn reads_ahead(&self) -> bool;

    /// Opens a regular file.
    fn open<'s>(&'s self, node: &Self::Node, reading: Reading) -> Result<Box<dyn Bytes + 's>>;
}

/// What of a file is going to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All of it, in order.
    Whole,
    /// Some parts: what is around them is of no use.
    Parts,
}

/// The bytes of a file.
pub trait Bytes {
    /// The next range at or after `from` that is no hole; nothing if there is none.
    fn data(&self, from: u64) -> Result<Option<Range<u64>>>;

    /// So many bytes from `offset`, or those that there are before the end.
    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>>;
}

/// An object's number within its subvolume, from the one that a mount shows.
pub fn within(number: u64) -> u64 {
    if number >> 63 == 1 { number % INODES } else { number }
}

/// What tells the subvolume of an object by the number that a mount shows.
pub fn subvolume(number: u64) -> u64 {
    if number >> 63 == 1 { number / INODES } else { 0 }
}
