//! The files of one moment: the records of a chain of streams, one upon the other.
//!
//! Everything is in memory, some hundred bytes for each object and each piece of a file. What the
//! bytes are stays in the streams.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Error, Result};
use crate::format::record::{Attributes, Content, Object, Record};

/// A part of a file: bytes of a DATA segment of one of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// How many bytes.
    pub length: u32,
    /// Which of the streams, from 0.
    pub stream: u16,
    /// Which of its segments.
    pub segment: u32,
    /// Where in that.
    pub at: u32,
}

/// The names and objects of one moment.
#[derive(Debug, Default)]
pub struct Tree {
    objects: BTreeMap<u64, Object>,
    names: BTreeMap<u64, BTreeMap<Vec<u8>, u64>>,
    parts: BTreeMap<u64, BTreeMap<u64, Part>>,
    /// Objects that were found to have more than one name.
    linked: BTreeSet<u64>,
}

impl Tree {
    /// Puts a record of the stream `stream` upon what is there.
    pub fn apply(&mut self, stream: u16, record: Record) -> Result<()> {
        match record {
            Record::Object(object) => self.set_object(object),
            Record::Name { dir, ino, name } => {
                self.names.entry(dir).or_default().insert(name, ino);
                Ok(())
            }
            Record::NoName { dir, name } => {
                if let Entry::Occupied(mut names) = self.names.entry(dir) {
                    names.get_mut().remove(&name);
                    if names.get().is_empty() {
                        names.remove();
                    }
                }
                Ok(())
            }
            Record::Pieces { ino, pieces } => {
                self.check_file(ino)?;
                for piece in pieces {
                    let end = piece.offset + u64::from(piece.length);
                    self.cut(ino, piece.offset, end);
                    let parts = self.parts.entry(ino).or_default();
                    let (segment, at) = (piece.segment, piece.at);
                    let part = Part { length: piece.length, stream, segment, at };
                    parts.insert(piece.offset, part);
                }
                Ok(())
            }
            Record::Hole { ino, from, to } => {
                self.check_file(ino)?;
                self.cut(ino, from, to);
                Ok(())
            }
            Record::NoObject { ino } => {
                self.objects.remove(&ino);
                self.parts.remove(&ino);
                Ok(())
            }
            Record::Complete { .. } => Ok(()),
        }
    }

    fn set_object(&mut self, object: Object) -> Result<()> {
        let ino = object.ino;
        match object.content {
            Content::Fresh => {
                self.parts.remove(&ino);
            }
            Content::Kept if !self.objects.contains_key(&ino) => {
                return Err(Error::Senseless { ino, what: "it builds upon something unknown" });
            }
            Content::Kept => self.cut(ino, object.attributes.size, u64::MAX),
        }
        self.objects.insert(ino, object);
        Ok(())
    }

    fn check_file(&self, ino: u64) -> Result<()> {
        match self.objects.get(&ino).is_some_and(|object| object.attributes.is_file()) {
            true => Ok(()),
            false => Err(Error::Senseless { ino, what: "it has bytes and is no file" }),
        }
    }

    /// Takes away what a file has from `from` to `to`.
    fn cut(&mut self, ino: u64, from: u64, to: u64) {
        let Some(parts) = self.parts.get_mut(&ino) else { return };
        let before = parts.range(..from).next_back().map(|(at, part)| (*at, *part));
        if let Some((at, part)) = before {
            let end = at + u64::from(part.length);
            if end > from {
                parts.insert(at, Part { length: (from - at) as u32, ..part });
            }
            if end > to {
                parts.insert(to, rest(part, to - at));
            }
        }
        let within: Vec<u64> = parts.range(from..to).map(|(at, _)| *at).collect();
        for at in within {
            let part = parts.remove(&at).expect("it was just found");
            if at + u64::from(part.length) > to {
                parts.insert(to, rest(part, to - at));
            }
        }
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// An object. `Senseless`: there is none with this number.
    pub fn object(&self, ino: u64) -> Result<&Object> {
        self.objects.get(&ino).ok_or(Error::Senseless { ino, what: "it has a name and is missing" })
    }

    /// The names in a directory, and what they stand for.
    pub fn names(&self, dir: u64) -> impl Iterator<Item = (&[u8], u64)> {
        let names = self.names.get(&dir).into_iter().flatten();
        names.map(|(name, ino)| (&name[..], *ino))
    }

    /// What `name` stands for in a directory.
    pub fn lookup(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.names.get(&dir)?.get(name).copied()
    }

    /// The parts of a file with their places, within its size; between them are holes.
    pub fn parts(&self, ino: u64) -> impl Iterator<Item = (u64, Part)> {
        let size = self.objects.get(&ino).map_or(0, |object| object.attributes.size);
        let parts = self.parts.get(&ino).into_iter().flatten();
        parts.take_while(move |(at, _)| **at < size).map(move |(at, part)| {
            let length = u64::from(part.length).min(size - at) as u32;
            (*at, Part { length, ..*part })
        })
    }

    /// Whether an object has more than one name, once [`Tree::check`] has looked.
    pub fn is_linked(&self, ino: u64) -> bool {
        self.linked.contains(&ino)
    }

    /// Stream, segment and place in it of parts that more than one place in files has.
    pub fn shared(&self) -> HashSet<(u16, u32, u32)> {
        let mut seen = HashSet::new();
        let all = self.parts.values().flat_map(BTreeMap::values);
        let keys = all.map(|part| (part.stream, part.segment, part.at));
        keys.filter(|key| !seen.insert(*key)).collect()
    }

    /// Fails unless everything below `root` is there, each directory has exactly one name, and
    /// nothing but directories has names below it. Gives the number of objects and bytes below.
    pub fn check(&mut self, root: u64) -> Result<(u64, u64)> {
        if !self.object(root)?.attributes.is_directory() {
            return Err(Error::Senseless { ino: root, what: "the root is no directory" });
        }
        let mut linked = BTreeSet::new();
        let found = self.walk(root, &mut linked)?;
        self.linked = linked;
        Ok(found)
    }

    /// How many objects there are at and below one, and how many bytes they have.
    pub fn size(&self, ino: u64) -> Result<(u64, u64)> {
        self.walk(ino, &mut BTreeSet::new())
    }

    fn walk(&self, root: u64, linked: &mut BTreeSet<u64>) -> Result<(u64, u64)> {
        let senseless = |ino, what| Err(Error::Senseless { ino, what });
        let bytes_of = |ino| self.parts(ino).map(|(_, part)| u64::from(part.length)).sum::<u64>();
        let mut seen = BTreeSet::from([root]);
        let mut waiting = vec![root];
        let mut bytes = 0;
        while let Some(at) = waiting.pop() {
            bytes += bytes_of(at);
            for (_, ino) in self.names(at) {
                let attributes: &Attributes = &self.object(ino)?.attributes;
                let is_new = seen.insert(ino);
                if attributes.is_directory() && !is_new {
                    return senseless(ino, "a directory has two names");
                }
                if !attributes.is_directory() && self.names.contains_key(&ino) {
                    return senseless(ino, "there are names below what is no directory");
                }
                match is_new {
                    true => waiting.push(ino),
                    false => _ = linked.insert(ino),
                }
            }
        }
        Ok((seen.len() as u64, bytes))
    }
}

fn rest(part: Part, skip: u64) -> Part {
    let skip = skip as u32;
    Part { length: part.length - skip, at: part.at + skip, ..part }
}
