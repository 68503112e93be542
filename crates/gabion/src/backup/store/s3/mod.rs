//! Streams in object stores that speak as Amazon's S3 does.
//!
//! An object is written once and as a whole, so a stream is several: its parts, and what says that
//! they are all (`gabion_backup::format::parts`). Parts are sent while the stream is written, and
//! whoever goes on with it begins behind the last one.
//!
//! ```text
//!   settings   AWS_...: where the store is, and who we are
//!   objects    requests, one after the other or some at once; tokio and what it drives are here
//!   refusals   what a store answers, in sentences
//!   upload     a stream on its way
//! ```
//!
//! Nobody locks anything. A part is only written where none is, so of two who go on with the same
//! stream one finds that it is not alone; and before a stream is said to be whole, the parts that
//! are there are compared with those that were sent.

mod objects;
mod refusals;
mod settings;
mod upload;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Arc, OnceLock};

use gabion_backup::format::parts::{Parts, WHOLE, WHOLE_MAX, part_name, part_of_name};
use gabion_backup::{ReadAt, StreamId, reader};

use self::objects::Objects;
use self::upload::{Sending, Sent};
use super::window::Window;
use super::{EXTENSION, Opened, Shelf, Store, Unfinished, Upload};
use crate::backup::streams::of_stream;
use crate::failure::{Failure, Result};

/// What a place begins with that is in an object store.
pub const SCHEME: &str = "s3://";

/// A bucket, or all below a prefix in it.
pub struct Bucket {
    objects: Arc<Objects>,
    /// The names of streams, as they were when somebody first asked: a command looks once.
    names: OnceLock<Vec<OsString>>,
}

impl Bucket {
    /// What the rest of a URL behind [`SCHEME`] means: a place, and a stream there if it ends as
    /// the name of one does.
    pub fn of(rest: &str) -> Result<(Self, Option<OsString>)> {
        let wrong = |reason: &str| {
            Failure::new(format!("{SCHEME}{rest} is not possible: {reason}"))
                .next("Say s3://BUCKET/PREFIX")
        };
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong("there is no bucket"));
        }
        let path = path.trim_matches('/');
        let (prefix, name) = match path.rsplit_once('/').unwrap_or(("", path)) {
            (prefix, name) if name.ends_with(EXTENSION) => (prefix, Some(name.into())),
            _ => (path, None),
        };
        if path.split('/').any(|name| matches!(name, "." | ".." | "")) && !path.is_empty() {
            return Err(wrong("a name in it is empty or consists of dots"));
        }
        let objects = Objects::open(bucket, prefix)?;
        Ok((Self { objects: Arc::new(objects), names: OnceLock::new() }, name))
    }

    /// What is there of a stream: how long each object is, by name.
    fn look(&self, name: &OsStr) -> Result<BTreeMap<String, u64>> {
        self.objects.list(text(name)?)
    }

    /// What says that a stream is whole, if it is.
    fn whole(&self, name: &str) -> Result<Option<Parts>> {
        let key = format!("{name}/{WHOLE}");
        let Some(bytes) = self.objects.read(&key, WHOLE_MAX)? else { return Ok(None) };
        let parts = Parts::decode(&bytes);
        let what = || format!("{} is damaged", self.objects.path(&key));
        parts.map(Some).map_err(|error| Failure::of(what(), &error))
    }

    fn reader(&self, name: &str, lengths: &[u64]) -> PartsAt {
        let mut ends = Vec::with_capacity(lengths.len());
        let mut end = 0;
        for length in lengths {
            end += length;
            ends.push(end);
        }
        PartsAt { objects: Arc::clone(&self.objects), name: name.to_owned(), ends }
    }
}

/// Names that we have given are text.
fn text(name: &OsStr) -> Result<&str> {
    name.to_str().ok_or_else(|| Failure::new(format!("{} is no text", name.display())))
}

/// The lengths of parts from the first one on, as far as none is missing.
fn contiguous(found: &BTreeMap<String, u64>) -> Vec<u64> {
    (0..).map_while(|number| found.get(&part_name(number)).copied()).collect()
}

/// The keys of parts from the one with the number `first` on. What else is there is not ours.
fn behind(name: &str, found: &BTreeMap<String, u64>, first: usize) -> Vec<String> {
    let is_behind = |key: &&String| part_of_name(key).is_some_and(|part| part as usize >= first);
    found.keys().filter(is_behind).map(|key| format!("{name}/{key}")).collect()
}

impl Shelf for Bucket {
    fn name(&self) -> String {
        self.objects.path("")
    }

    fn path(&self, name: &OsStr) -> String {
        self.objects.path(&name.to_string_lossy())
    }

    fn names(&self) -> Result<Vec<OsString>> {
        if let Some(names) = self.names.get() {
            return Ok(names.clone());
        }
        let mut names = self.objects.folders()?;
        names.retain(|name| name.ends_with(EXTENSION));
        let names: Vec<_> = names.into_iter().map(OsString::from).collect();
        Ok(self.names.get_or_init(|| names).clone())
    }

    fn open(&self, name: &OsStr) -> Result<Opened> {
        let text = text(name)?;
        let (lengths, is_finished) = match self.whole(text)? {
            Some(parts) => (parts.lengths.into_iter().map(u64::from).collect(), true),
            None => {
                let found = self.look(name)?;
                if found.is_empty() {
                    return Err(Failure::new(format!("there is no backup {}", self.path(name)))
                        .next(format!("To see which there are: gabion backups {}", self.name())));
                }
                (contiguous(&found), false)
            }
        };
        let window = Window::new(self.reader(text, &lengths));
        let bytes = window.map_err(|error| Failure::of(self.path(name), &error))?;
        Ok(Opened { bytes: Box::new(bytes), is_finished })
    }
}

impl Store for Bucket {
    fn identity(&self) -> Vec<u8> {
        self.objects.identity().into_bytes()
    }

    fn partials(&self, name: Option<&OsStr>) -> Result<Vec<OsString>> {
        let mut names = self.names()?;
        names.retain(|found| name.is_none_or(|name| name == found));
        let mut partials = Vec::new();
        for name in names {
            if self.whole(text(&name)?)?.is_none() {
                partials.push(name);
            }
        }
        Ok(partials)
    }

    fn begin(&self, name: &OsStr, stream: StreamId) -> Result<Box<dyn Upload>> {
        let found = self.look(name)?;
        if found.contains_key(WHOLE) {
            return Err(Failure::new(format!("{} is there already", self.path(name)))
                .next("Name one that is not there, or a place."));
        }
        if !found.is_empty() {
            return Err(Failure::new(format!("something is at {} already", self.path(name)))
                .next("It is of another backup. Remove it if nobody goes on with that."));
        }
        let sent = Sent::default();
        Ok(Box::new(Sending::new(Arc::clone(&self.objects), text(name)?, stream, sent)))
    }

    fn take_up(&self, name: &OsStr) -> Result<Box<dyn Unfinished>> {
        let found = self.look(name)?;
        let (name, lengths) = (text(name)?.to_owned(), contiguous(&found));
        let reader = self.reader(&name, &lengths);
        let bytes = Window::new(self.reader(&name, &lengths));
        let bytes = bytes.map_err(|error| Failure::of(self.objects.path(&name), &error))?;
        Ok(Box::new(Begun { name, lengths, found, reader, bytes }))
    }

    fn remove(&self, name: &OsStr) -> Result<()> {
        let name = text(name)?;
        let found = self.look(name.as_ref())?;
        self.objects.remove(behind(name, &found, 0))
    }
}

/// The parts of a stream, as one.
struct PartsAt {
    objects: Arc<Objects>,
    name: String,
    /// Where each part ends.
    ends: Vec<u64>,
}

impl PartsAt {
    fn start(&self, part: usize) -> u64 {
        part.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

impl ReadAt for PartsAt {
    fn length(&self) -> io::Result<u64> {
        Ok(self.ends.last().copied().unwrap_or(0))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, into);
        let mut part = self.ends.partition_point(|end| *end <= offset);
        while !rest.is_empty() {
            let end = *self.ends.get(part).ok_or(io::ErrorKind::UnexpectedEof)?;
            let count = rest.len().min((end - at) as usize);
            let (now, later) = rest.split_at_mut(count);
            let start = self.start(part);
            let key = format!("{}/{}", self.name, part_name(part as u32));
            let read = self.objects.read_at(&key, at - start, now, end - start);
            read.map_err(io::Error::other)?;
            (at, rest, part) = (at + count as u64, later, part + 1);
        }
        Ok(())
    }
}

/// A stream that is not whole.
struct Begun {
    name: String,
    lengths: Vec<u64>,
    /// All that is there of it.
    found: BTreeMap<String, u64>,
    reader: PartsAt,
    bytes: Window<PartsAt>,
}

impl Unfinished for Begun {
    fn bytes(&self) -> &dyn ReadAt {
        &self.bytes
    }

    fn go_on(self: Box<Self>, length: u64) -> Result<Box<dyn Upload>> {
        let kept = self.reader.ends.partition_point(|end| *end <= length);
        // Where a part does not end, its beginning is sent once more.
        let start = self.reader.start(kept);
        let mut head = vec![0; (length - start) as usize];
        let read = self.bytes.read_at(start, &mut head);
        let path = self.reader.objects.path(&self.name);
        read.map_err(|error| Failure::of(format!("cannot go on with {path}"), &error))?;
        let header = reader::header(&self.bytes);
        let header = header.map_err(|error| of_stream(&path, &error))?;
        self.reader.objects.remove(behind(&self.name, &self.found, kept))?;
        let sent = Sent { lengths: self.lengths[..kept].to_vec(), head };
        Ok(Box::new(Sending::new(self.reader.objects, &self.name, header.stream, sent)))
    }
}
