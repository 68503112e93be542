//! What a backup has to read to follow from one snapshot to another: objects by their numbers.
//!
//! As [`differences`](crate::differences), from the difference of the two trees, but complete: all
//! that has changed of an object counts, and of a file it is said which bytes. Those are known from
//! where they lie: a block that both snapshots have at one place of the disk, written in one group
//! of transactions, was not written since, for neither snapshot lets it go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::format::inode::Inode;
use gabion_fs::{ROOT, Result, subvolume};
use gabion_map::format::item::FileData;
use gabion_map::tree::{Diff, Difference};
use gabion_map::{Key, Kind, LocalMap, MapError};

use crate::differences::{Side, names};

/// The difference of two snapshots. Names that stand for other subvolumes are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Objects that have no name any more, or stand for something else now.
    pub gone: Vec<Ino>,
    /// Names that are gone, and their directories.
    pub names_gone: Vec<(Ino, Vec<u8>)>,
    /// Names that are new or stand for something else, with their directories and objects.
    pub names: Vec<(Ino, Vec<u8>, Ino)>,
    /// Objects that are new, or not what they were.
    pub touched: Vec<Touched>,
}

/// An object that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Its number.
    pub ino: Ino,
    /// One of its paths in the newer snapshot, below the root and without a slash in front.
    pub path: Vec<u8>,
    /// Whether the older snapshot does not have it.
    pub is_new: bool,
    /// The bytes that may be others, in order; nothing of what is new, which is so altogether.
    pub ranges: Vec<Range<u64>>,
}

/// What has changed from the snapshot `old` to the snapshot `new`.
pub fn delta(map: &LocalMap, old: SubvolId, new: SubvolId) -> Result<Delta> {
    let pin = map.pin();
    let (old_tree, new_tree) = (pin.tree(old), pin.tree(new));
    let mut found = Found::default();
    let mut diff = Diff::new(old_tree, new_tree, Key::first(new))?;
    while let Some(difference) = diff.next()? {
        found.take(&difference)?;
    }
    found.end_file();
    found.finish(&mut Side::new(new_tree, new))
}

#[derive(Default)]
struct Found {
    delta: Delta,
    touched: BTreeMap<Ino, (bool, Vec<Range<u64>>)>,
    gone: BTreeSet<Ino>,
    /// The file whose DATA items are being gathered, in both snapshots.
    file: Option<Ino>,
    old: Vec<Run>,
    new: Vec<Run>,
}

impl Found {
    fn take(&mut self, difference: &Difference<'_>) -> Result<()> {
        let Difference { key, old, new } = *difference;
        match key.kind {
            Kind::INODE => self.take_inode(key, old, new)?,
            Kind::DIRENT => self.take_names(key, old, new)?,
            Kind::DATA => {
                if self.file != Some(key.ino) {
                    self.end_file();
                    self.file = Some(key.ino);
                }
                self.old.extend(run(key, old)?);
                self.new.extend(run(key, new)?);
            }
            Kind::FILE | Kind::SYMLINK | Kind::XATTR => self.touch(key.ino),
            _ => {}
        }
        Ok(())
    }

    fn touch(&mut self, ino: Ino) {
        if !self.gone.contains(&ino) {
            self.touched.entry(ino).or_default();
        }
    }

    /// An object's INODE item comes before its others.
    fn take_inode(&mut self, key: Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let decode = |value| Inode::decode(value).map_err(|source| bad(key, source));
        let named = |inode: &Inode| inode.nlink > 0;
        let old = old.map(decode).transpose()?.filter(named);
        let new = new.map(decode).transpose()?.filter(named);
        let same = |old: &Inode, new: &Inode| {
            old.file_type == new.file_type && old.generation == new.generation
        };
        match (old, new) {
            (None, None) => {
                self.gone.insert(key.ino);
            }
            (Some(_), None) => {
                self.gone.insert(key.ino);
                self.delta.gone.push(key.ino);
            }
            (None, Some(_)) => {
                self.touched.insert(key.ino, (true, Vec::new()));
            }
            (Some(old), Some(new)) => {
                let is_new = !same(&old, &new);
                self.touched.insert(key.ino, (is_new, Vec::new()));
            }
        }
        Ok(())
    }

    fn take_names(&mut self, key: Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let (old, new) = (names(key, old)?, names(key, new)?);
        let is_object = |ino: Ino| subvolume::of_entry(ino).is_none();
        let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
        self.delta.names_gone.extend(gone.map(|(name, _)| (key.ino, name.clone())));
        for (name, ino) in new.iter().filter(|(name, ino)| old.get(*name) != Some(*ino)) {
            match is_object(*ino) {
                true => self.delta.names.push((key.ino, name.clone(), *ino)),
                false => self.delta.names_gone.push((key.ino, name.clone())),
            }
        }
        Ok(())
    }

    /// All DATA items of a file that differ have been seen.
    fn end_file(&mut self) {
        let Some(ino) = self.file.take() else { return };
        let (old, new) = (std::mem::take(&mut self.old), std::mem::take(&mut self.new));
        self.touch(ino);
        if let Some((false, ranges)) = self.touched.get_mut(&ino) {
            *ranges = changed(&old, &new);
        }
    }

    /// Finds where the objects are that have been touched.
    fn finish(mut self, side: &mut Side<'_>) -> Result<Delta> {
        let mut paths = BTreeMap::new();
        let mut rest: BTreeSet<Ino> = self.touched.keys().copied().collect();
        if rest.remove(&ROOT) {
            paths.insert(ROOT, Vec::new());
        }
        for (dir, name, ino) in &self.delta.names {
            if rest.remove(ino) {
                paths.insert(*ino, side.path_of(&(*dir, name.clone()))?);
            }
        }
        for (ino, name) in side.names_of(rest)? {
            paths.insert(ino, side.path_of(&name)?);
        }
        for (ino, (is_new, ranges)) in self.touched {
            // What has no path now has none that a reader could come by.
            if let Some(path) = paths.remove(&ino) {
                self.delta.touched.push(Touched { ino, path, is_new, ranges });
            }
        }
        // Directories before what is in them: whoever reads the files goes through few at a time.
        self.delta.touched.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(self.delta)
    }
}

fn bad(key: Key, source: gabion_base::codec::DecodeError) -> gabion_fs::Error {
    MapError::BadItem { key, source }.into()
}

/// Blocks of a file, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
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

fn run(key: Key, value: Option<&[u8]>) -> Result<Option<Run>> {
    let Some(value) = value else { return Ok(None) };
    let data = FileData::decode(value).map_err(|source| bad(key, source))?;
    let first = key.at / BLOCK_SIZE as u64;
    let (count, what) = match &data {
        FileData::Inline(_) => (1, What::Inline),
        FileData::Extent(extent) => {
            let what = What::Written(extent.addr.0, extent.birth.0);
            (extent.checksums.len() as u64, what)
        }
        FileData::Unwritten(run) => (run.count.into(), What::Zeros),
    };
    Ok(Some(Run { first, count, what }))
}

/// The bytes that are not the same in two files with these runs, of which only those are given
/// whose items differ. Both are in order.
fn changed(old: &[Run], new: &[Run]) -> Vec<Range<u64>> {
    let runs = || old.iter().chain(new);
    let ends = runs().flat_map(|run| [run.first, run.first.saturating_add(run.count)]);
    let ends: BTreeSet<u64> = ends.collect();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (from, to) in ends.iter().zip(ends.iter().skip(1)) {
        let (before, after) = (at(old, *from), at(new, *from));
        if before == after && before != Some(What::Inline) {
            continue;
        }
        let bytes = |block: u64| block.saturating_mul(BLOCK_SIZE as u64);
        match ranges.last_mut() {
            Some(last) if last.end == bytes(*from) => last.end = bytes(*to),
            _ => ranges.push(bytes(*from)..bytes(*to)),
        }
    }
    ranges
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

    #[test]
    fn a_block_in_the_middle_is_all_that_changed() {
        let old = [written(0, 256, 1000, 5)];
        let new = [written(0, 10, 1000, 5), written(10, 1, 7, 9), written(11, 245, 1011, 5)];
        assert_eq!(changed(&old, &new), [Range { start: 10 * B, end: 11 * B }]);
        assert_eq!(changed(&new, &old), [Range { start: 10 * B, end: 11 * B }]);
    }

    #[test]
    fn what_was_written_again_at_the_same_place_has_changed() {
        let (old, new) = ([written(3, 2, 50, 5)], [written(3, 2, 50, 6)]);
        assert_eq!(changed(&old, &new), [Range { start: 3 * B, end: 5 * B }]);
    }

    #[test]
    fn holes_that_come_and_go_and_inline_bytes_have_changed() {
        let (old, new) = ([written(0, 2, 50, 5)], [written(1, 1, 51, 5)]);
        assert_eq!(changed(&old, &new), [Range { start: 0, end: B }]);
        let inline = [Run { first: 0, count: 1, what: What::Inline }];
        assert_eq!(changed(&inline, &inline), [Range { start: 0, end: B }]);
        let all = [written(0, 1, 50, 5), written(1, 1, 90, 6)];
        assert_eq!(changed(&inline, &all), [Range { start: 0, end: 2 * B }]);
    }
}
