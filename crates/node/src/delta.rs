//! What a backup has to read to follow from one snapshot to another: objects by their numbers.
//!
//! As [`differences`](crate::differences), from the difference of the two trees, but complete: all
//! that has changed of an object counts but its time of reading, and of a file it is said which
//! bytes. Those are known from where they lie: a block that both snapshots have at one place of the
//! disk, written in one group of transactions, was not written since, for neither snapshot lets it
//! go.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::format::inode::Inode;
use gabion_fs::{ROOT, Result, subvolume};
use gabion_map::tree::{Diff, Difference, Tree};
use gabion_map::{FileId, Key, Kind, LocalMap, MapError};

use crate::differences::{Side, names};
use crate::stretches::{Run, Stretch, changed, run};
use crate::together::together;

/// Behind the number of every object.
const INO_END: Ino = Ino(u64::MAX);
/// So many differences are found by one thread, after which there may be very many.
const FEW: usize = 256;
/// No limit.
const MAX: usize = usize::MAX;
/// Into so many parts the rest is divided.
const PARTS: u64 = 64;

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
    pub stretches: Vec<Stretch>,
}

/// What has changed from the snapshot `old` to the snapshot `new`.
pub fn delta(map: &LocalMap, old: SubvolId, new: SubvolId) -> Result<Delta> {
    let pin = map.pin();
    let sides = Sides { old: pin.tree(old), new: pin.tree(new), subvol: new };
    let (mut found, next) = sides.part(Ino(0)..INO_END, FEW)?;
    if let Some(next) = next {
        let end = map.subvolume(new).map_or(Ino(0), |record| Ino(record.next_ino));
        for part in together(&ranges(next, end), |range| Ok(sides.part(range.clone(), MAX)?.0))? {
            found.join(part);
        }
    }
    found.finish(&mut Side::new(sides.new, new))
}

/// The same of objects at and after the number `from`, each complete, until `enough` is told: names
/// and stretches. Then the number of the first that is not told of; nothing if there is none.
pub fn delta_from(
    map: &LocalMap,
    old: SubvolId,
    new: SubvolId,
    from: Ino,
    enough: usize,
) -> Result<(Delta, Option<Ino>)> {
    let pin = map.pin();
    let sides = Sides { old: pin.tree(old), new: pin.tree(new), subvol: new };
    let (found, next) = sides.part(from..INO_END, enough)?;
    Ok((found.finish(&mut Side::new(sides.new, new))?, next))
}

/// Parts of the numbers from `next` on, so many that threads that are done have others to take.
fn ranges(next: Ino, end: Ino) -> Vec<Range<Ino>> {
    let step = (end.0.saturating_sub(next.0) / PARTS).max(1);
    let begin = |part: u64| Ino(next.0 + part * step);
    let range =
        |part| if part + 1 < PARTS { begin(part)..begin(part + 1) } else { begin(part)..INO_END };
    (0..PARTS).map(range).collect()
}

/// Both states.
struct Sides<'t> {
    old: Tree<'t>,
    new: Tree<'t>,
    subvol: SubvolId,
}

impl Sides<'_> {
    /// What is different of these objects, each complete, until `enough` is; and the number of the
    /// first among them that was not looked at.
    fn part(&self, of: Range<Ino>, enough: usize) -> Result<(Found, Option<Ino>)> {
        let mut found = Found::default();
        let first = |ino| FileId::new(self.subvol, ino).key(Kind(0), 0);
        let diff = Diff::new(self.old, self.new, first(of.start))?;
        let mut diff = diff.until(first(of.end));
        let (mut at, mut count) = (of.start, 0);
        let mut next = None;
        while let Some(difference) = diff.next()? {
            let ino = difference.key.ino;
            if ino != at && count >= enough {
                next = Some(ino);
                break;
            }
            at = ino;
            count += 1;
            found.take(&difference)?;
        }
        found.end_file();
        Ok((found, next))
    }
}

#[derive(Default)]
struct Found {
    delta: Delta,
    touched: BTreeMap<Ino, (bool, Vec<Stretch>)>,
    gone: BTreeSet<Ino>,
    /// The file whose DATA items are being gathered, in both snapshots.
    file: Option<Ino>,
    old: Vec<Run>,
    new: Vec<Run>,
}

impl Found {
    /// Adds what was found of objects with higher numbers.
    fn join(&mut self, mut other: Self) {
        self.delta.gone.append(&mut other.delta.gone);
        self.delta.names_gone.append(&mut other.delta.names_gone);
        self.delta.names.append(&mut other.delta.names);
        self.touched.append(&mut other.touched);
        self.gone.append(&mut other.gone);
    }

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
                let run = |value| run(key.at, value).map_err(|source| bad(key, source));
                self.old.extend(old.map(run).transpose()?);
                self.new.extend(new.map(run).transpose()?);
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
            // It was read: that makes no difference of snapshots one of everything.
            (Some(old), Some(new)) if Inode { atime: new.atime, ..old } == new => {}
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
        if let Some((false, stretches)) = self.touched.get_mut(&ino) {
            *stretches = changed(&old, &new);
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
        for (ino, (is_new, stretches)) in self.touched {
            // What has no path now has none that a reader could come by.
            if let Some(path) = paths.remove(&ino) {
                self.delta.touched.push(Touched { ino, path, is_new, stretches });
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
