//! Reads a source into a stream: all of it, or what has changed.

use std::collections::HashSet;
use std::io::Write;
use std::ops::Range;

use gabion_backup::format::record::{Content, PIECE_MAX};
use gabion_backup::scan::Kept;
use gabion_backup::{Error, Object, Record, Writer};
use gabion_node::{Delta, Touched};

use super::progress::Progress;
use super::source::{Bytes, Reading, Source};
use crate::failure::{Failure, Result};

/// What a stream knows already that was cut off and is taken up again.
#[derive(Default)]
pub struct Known {
    complete: HashSet<u64>,
    begun: std::collections::HashMap<u64, u64>,
}

impl Known {
    /// What was kept of the stream.
    pub fn of(kept: &Kept) -> Self {
        Self { complete: kept.complete.clone(), begun: kept.begun.clone() }
    }
}

/// A saving under way.
pub struct Saving<'s, S: Source, W> {
    pub source: &'s S,
    pub writer: Writer<W>,
    pub known: Known,
    pub progress: &'s mut Progress,
}

impl<S: Source, W: Write> Saving<'_, S, W> {
    /// Saves everything.
    pub fn all(&mut self) -> Result<()> {
        let root = self.source.root()?;
        let Some((object, _)) = self.source.object(&root)? else { return Ok(()) };
        let mut linked = HashSet::new();
        let mut dirs = vec![(root, object)];
        while let Some((node, dir)) = dirs.pop() {
            let ino = dir.ino;
            let is_known = self.known.complete.contains(&ino);
            if !is_known {
                self.record(&Record::Object(dir))?;
            }
            let at = dirs.len();
            for (name, node) in self.source.entries(&node)? {
                let Some((object, links)) = self.source.object(&node)? else {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    self.progress.say(&format!("{name} is another subvolume and is left out"));
                    continue;
                };
                if !is_known {
                    self.record(&Record::Name { dir: ino, ino: object.ino, name })?;
                }
                if object.attributes.is_directory() {
                    dirs.push((node, object));
                } else if links < 2 || linked.insert(object.ino) {
                    self.whole(&node, object)?;
                }
            }
            // The first of them is to be the next.
            dirs[at..].reverse();
            if !is_known {
                self.record(&Record::Complete { ino })?;
            }
        }
        Ok(())
    }

    /// Saves what has changed.
    pub fn changes(&mut self, delta: &Delta) -> Result<()> {
        for ino in &delta.gone {
            self.record(&Record::NoObject { ino: ino.0 })?;
        }
        for (dir, name) in &delta.names_gone {
            self.record(&Record::NoName { dir: dir.0, name: name.clone() })?;
        }
        for (dir, name, ino) in &delta.names {
            self.record(&Record::Name { dir: dir.0, ino: ino.0, name: name.clone() })?;
        }
        for touched in &delta.touched {
            self.touched(touched)?;
        }
        Ok(())
    }

    fn touched(&mut self, touched: &Touched) -> Result<()> {
        let node = self.source.at(&touched.path)?;
        let ino = touched.ino.0;
        let found = self.source.object(&node)?.filter(|(object, _)| object.ino == ino);
        let Some((mut object, _)) = found else {
            let path = String::from_utf8_lossy(&touched.path).into_owned();
            return Err(Failure::new(format!("{path} is not object {ino} any more")));
        };
        if touched.is_new {
            return self.whole(&node, object);
        }
        if self.known.complete.contains(&ino) {
            self.progress.skip(touched.ranges.iter().map(|range| range.end - range.start).sum());
            return Ok(());
        }
        object.content = Content::Kept;
        let (is_file, size) = (object.attributes.is_file(), object.attributes.size);
        self.record(&Record::Object(object))?;
        if is_file && !touched.ranges.is_empty() {
            let mut bytes = Stretch::of(self.source.open(&node, Reading::Parts)?);
            for range in &touched.ranges {
                let range = range.start..range.end.min(size);
                if !range.is_empty() {
                    let Range { start: from, end: to } = range;
                    self.record(&Record::Hole { ino, from, to })?;
                    self.bytes(ino, &mut bytes, range)?;
                }
            }
        }
        self.record(&Record::Complete { ino })
    }

    /// Saves an object with all its bytes.
    fn whole(&mut self, node: &S::Node, object: Object) -> Result<()> {
        let (ino, size) = (object.ino, object.attributes.size);
        if self.known.complete.contains(&ino) {
            self.progress.skip(size);
            return Ok(());
        }
        let is_file = object.attributes.is_file();
        let begun = self.known.begun.get(&ino).copied();
        if begun.is_none() {
            self.record(&Record::Object(object))?;
        }
        if is_file && size > 0 {
            let from = begun.unwrap_or(0);
            self.progress.skip(from);
            let mut bytes = Stretch::of(self.source.open(node, Reading::Whole)?);
            self.bytes(ino, &mut bytes, from..size)?;
        }
        self.record(&Record::Complete { ino })
    }

    /// Saves what is no hole.
    fn bytes(&mut self, ino: u64, bytes: &mut Stretch<'_>, range: Range<u64>) -> Result<()> {
        const PIECE: u64 = PIECE_MAX as u64;
        let mut buffer = vec![0; PIECE_MAX.min((range.end - range.start) as usize)];
        let mut at = range.start;
        while at < range.end {
            let Some(data) = bytes.data(at)?.filter(|data| data.start < range.end) else { break };
            let (mut from, end) = (data.start.max(at), data.end.min(range.end));
            while from < end {
                // Pieces end where they would in any other file: equal parts are found so.
                let to = end.min((from / PIECE + 1) * PIECE);
                let piece = &mut buffer[..(to - from) as usize];
                if bytes.of.read(from, piece)? < piece.len() {
                    return Err(Failure::new(format!("object {ino} has become shorter")));
                }
                self.writer.piece(ino, from, piece).map_err(unwritten)?;
                self.progress.pass(to - from);
                from = to;
            }
            at = end.max(at + 1);
        }
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        self.writer.record(record).map_err(unwritten)
    }
}

/// A file, and the stretch between two holes that was found last: finding its end can take a look
/// at all of the rest, and many ranges lie in one.
struct Stretch<'s> {
    of: Box<dyn Bytes + 's>,
    last: Range<u64>,
}

impl<'s> Stretch<'s> {
    fn of(of: Box<dyn Bytes + 's>) -> Self {
        Self { of, last: 0..0 }
    }

    /// The next range at or after `from` that is no hole.
    fn data(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        if !self.last.contains(&from) {
            let Some(found) = self.of.data(from)? else { return Ok(None) };
            self.last = found;
        }
        Ok(Some(self.last.start.max(from)..self.last.end))
    }
}

/// Why a stream could not be written.
pub fn unwritten(error: Error) -> Failure {
    Failure::of("cannot write the backup", &error)
}
