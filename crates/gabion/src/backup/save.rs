//! Reads a source into a stream: all of it, or what has changed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use gabion_backup::format::record::Content;
use gabion_backup::scan::Kept;
use gabion_backup::{Error, Object, Record, Writer};
use gabion_base::sync::Mutex;
use gabion_node::{Delta, Stretch, Touched};

use super::ahead::{self, Part, Taken, Wanted};
use super::progress::Progress;
use super::source::Source;
use crate::failure::{Failure, Result};
use crate::print;

/// Stretches of one reading at most.
const GROUP: usize = 16;
/// Bytes of one reading at most, but for what is too much of the last stretch.
const GROUP_BYTES: u64 = 1 << 20;

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

    /// From which byte on an object has still to be saved; nothing if it is complete.
    fn wants(&self, ino: u64) -> Option<u64> {
        if self.complete.contains(&ino) {
            return None;
        }
        Some(self.begun.get(&ino).copied().unwrap_or(0))
    }

    fn is_changed(&self, touched: &Touched) -> bool {
        !touched.is_new && self.complete.contains(&touched.ino.0)
    }
}

/// A saving under way.
pub struct Saving<'s, S: Source, W> {
    pub source: &'s S,
    pub writer: Writer<W>,
    pub known: Known,
    pub progress: &'s mut Progress,
}

/// A directory that is being saved.
struct Dir<N> {
    ino: u64,
    is_known: bool,
    /// Directories in it.
    dirs: Vec<(N, Object)>,
}

impl<S: Source, W: Write> Saving<'_, S, W> {
    /// Saves everything.
    pub fn all(mut self) -> Result<Writer<W>> {
        let root = self.source.root()?;
        let Some((object, _)) = self.source.object(&root)? else { return Ok(self.writer) };
        let known = std::mem::take(&mut self.known);
        let linked = Mutex::new(HashSet::new());
        let wants = |object: &Object, links: u64| {
            let ino = object.ino;
            let is_directory = object.attributes.is_directory();
            if is_directory || links > 1 && !linked.lock().insert(ino) {
                return None;
            }
            known.wants(ino)
        };
        ahead::reading(self.source, self.writer.hash(), wants, |ahead| {
            let mut waiting = vec![(root, object)];
            while let Some((node, object)) = waiting.pop() {
                let is_known = known.complete.contains(&object.ino);
                let mut dir = Dir { ino: object.ino, is_known, dirs: Vec::new() };
                if !is_known {
                    self.record(&Record::Object(object))?;
                }
                let mut entries = self.source.entries(&node)?.into_iter();
                loop {
                    while ahead.has_room()
                        && let Some((name, node)) = entries.next()
                    {
                        ahead.begin(node.clone(), Wanted::All, (name, node));
                    }
                    let Some((about, taken)) = ahead.take() else { break };
                    self.entry(&mut dir, about, taken, &known)?;
                }
                // The first of them is to be the next.
                waiting.extend(dir.dirs.into_iter().rev());
                if !is_known {
                    self.record(&Record::Complete { ino: dir.ino })?;
                }
            }
            Ok(())
        })?;
        Ok(self.writer)
    }

    fn entry(
        &mut self,
        dir: &mut Dir<S::Node>,
        (name, node): (Vec<u8>, S::Node),
        mut taken: Taken,
        known: &Known,
    ) -> Result<()> {
        let (object, from) = match taken.next().transpose()? {
            Some(Part::Object(object, from)) => (object, from),
            _ => {
                let name = print::path(Path::new(OsStr::from_bytes(&name)));
                self.progress.say(&format!("{name} is another subvolume and is left out"));
                return Ok(());
            }
        };
        if !dir.is_known {
            self.record(&Record::Name { dir: dir.ino, ino: object.ino, name })?;
        }
        match from {
            _ if object.attributes.is_directory() => dir.dirs.push((node, object)),
            Some(from) => self.whole(object, from, taken, known)?,
            None => self.progress.advance(object.attributes.size),
        }
        Ok(())
    }

    /// Saves what has changed.
    pub fn changes(mut self, delta: &Delta) -> Result<Writer<W>> {
        for ino in &delta.gone {
            self.record(&Record::NoObject { ino: ino.0 })?;
        }
        for (dir, name) in &delta.names_gone {
            self.record(&Record::NoName { dir: dir.0, name: name.clone() })?;
        }
        for (dir, name, ino) in &delta.names {
            self.record(&Record::Name { dir: dir.0, ino: ino.0, name: name.clone() })?;
        }
        let known = std::mem::take(&mut self.known);
        let wants = |object: &Object, _| known.wants(object.ino);
        ahead::reading(self.source, self.writer.hash(), wants, |ahead| {
            let mut readings = delta.touched.iter().flat_map(|touched| {
                let is_known = known.complete.contains(&touched.ino.0);
                readings(touched, is_known).into_iter().map(move |wanted| (touched, wanted))
            });
            let mut open: Option<(u64, u64)> = None;
            loop {
                while ahead.has_room()
                    && let Some((touched, wanted)) = readings.next()
                {
                    ahead.begin(self.source.at(&touched.path, touched.ino.0), wanted, touched);
                }
                let Some((touched, taken)) = ahead.take() else { break };
                let ino = touched.ino.0;
                if open.is_some_and(|(open, _)| open != ino) {
                    self.complete(&mut open)?;
                }
                match touched.is_new {
                    true => self.added(touched, taken, &known)?,
                    false => {
                        let size = open.map_or(0, |(_, size)| size);
                        open = Some((ino, self.changed(touched, size, taken)?));
                    }
                }
            }
            self.complete(&mut open)
        })?;
        let skipped = delta.touched.iter().filter(|touched| known.is_changed(touched));
        let bytes = skipped.flat_map(|touched| &touched.stretches);
        self.progress.advance(bytes.map(|stretch| stretch.to - stretch.from).sum());
        Ok(self.writer)
    }

    fn complete(&mut self, open: &mut Option<(u64, u64)>) -> Result<()> {
        match open.take() {
            Some((ino, _)) => self.record(&Record::Complete { ino }),
            None => Ok(()),
        }
    }

    fn added(&mut self, touched: &Touched, mut taken: Taken, known: &Known) -> Result<()> {
        match taken.next().transpose()? {
            Some(Part::Object(object, Some(from))) if object.ino == touched.ino.0 => {
                self.whole(object, from, taken, known)
            }
            Some(Part::Object(object, None)) if object.ino == touched.ino.0 => {
                self.progress.advance(object.attributes.size);
                Ok(())
            }
            _ => Err(moved(touched)),
        }
    }

    /// Saves some stretches of an object of this size, and first what it is if the reading tells.
    /// Gives its size.
    fn changed(&mut self, touched: &Touched, mut size: u64, taken: Taken) -> Result<u64> {
        let ino = touched.ino.0;
        for part in taken {
            match part? {
                Part::Object(mut object, _) if object.ino == ino => {
                    object.content = Content::Kept;
                    size = object.attributes.size;
                    self.record(&Record::Object(object))?;
                }
                Part::Object(..) | Part::Foreign => return Err(moved(touched)),
                // What was behind the end goes with the size.
                Part::Hole(range) if range.start >= size => {}
                Part::Hole(range) => {
                    self.part(ino, Part::Hole(range.start..range.end.min(size)))?
                }
                part => self.part(ino, part)?,
            }
        }
        Ok(size)
    }

    /// Saves an object with all its bytes, of which those before `from` are saved already.
    fn whole(&mut self, object: Object, from: u64, taken: Taken, known: &Known) -> Result<()> {
        let ino = object.ino;
        if known.begun.contains_key(&ino) {
            self.progress.advance(from);
        } else {
            self.record(&Record::Object(object))?;
        }
        for part in taken {
            self.part(ino, part?)?;
        }
        self.record(&Record::Complete { ino })
    }

    fn part(&mut self, ino: u64, part: Part) -> Result<()> {
        match part {
            Part::Piece(at, bytes, digest) => {
                let written = self.writer.digested(ino, at, &bytes, digest);
                written.map_err(unwritten)?;
                self.progress.pass(bytes.len() as u64);
                Ok(())
            }
            Part::Hole(range) => {
                self.record(&Record::Hole { ino, from: range.start, to: range.end })
            }
            Part::Object(..) | Part::Foreign => Ok(()),
        }
    }

    fn record(&mut self, record: &Record) -> Result<()> {
        self.writer.record(record).map_err(unwritten)
    }
}

/// What there is to be read of an object: stretches in several readings, so that several threads
/// have to do with it.
fn readings(touched: &Touched, is_known: bool) -> Vec<Wanted> {
    if touched.is_new {
        return vec![Wanted::All];
    }
    if is_known {
        return Vec::new();
    }
    let mut groups = vec![Vec::new()];
    let mut bytes = 0;
    for stretch in touched.stretches.iter().flat_map(|stretch| split(*stretch)) {
        let group = groups.last_mut().expect("there is one from the start");
        if group.len() >= GROUP || bytes >= GROUP_BYTES {
            groups.push(vec![stretch]);
            bytes = 0;
        } else {
            group.push(stretch);
        }
        bytes += if stretch.is_hole { 0 } else { stretch.to - stretch.from };
    }
    let mut groups = groups.into_iter();
    let first = groups.next().map(Wanted::First);
    first.into_iter().chain(groups.map(Wanted::More)).collect()
}

/// A stretch in parts that one reading can have.
fn split(stretch: Stretch) -> impl Iterator<Item = Stretch> {
    let step = if stretch.is_hole { u64::MAX } else { GROUP_BYTES };
    let mut from = stretch.from;
    std::iter::from_fn(move || {
        let to = stretch.to.min((from / step + 1).saturating_mul(step));
        let part = Stretch { from, to, ..stretch };
        from = to;
        (part.from < part.to).then_some(part)
    })
}

fn moved(touched: &Touched) -> Failure {
    let path = String::from_utf8_lossy(&touched.path).into_owned();
    Failure::new(format!("{path} is not object {} any more", touched.ino.0))
}

/// Why a stream could not be written.
pub fn unwritten(error: Error) -> Failure {
    Failure::of("cannot write the backup", &error)
}
