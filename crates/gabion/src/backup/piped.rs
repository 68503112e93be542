//! Streams that come through standard input, one after the other.
//!
//! ```text
//!   verify    they pass, and nothing of them is kept
//!   restore   they pass into a file without a name, beside what is to be made, and are read there
//!             as any others: their records come last, and point back. If standard input is a
//!             file itself, nothing is copied.
//! ```
//!
//! All of a stream is compared with its checksums while it passes, so what is damaged or cut off is
//! refused before anything was made.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gabion_backup::forward::{self, Passed};
use gabion_backup::{ReadAt, Secret, StreamId, Tree};
use rustix::fs::{Mode, OFlags};

use super::progress::Progress;
use super::store::{Opened, Shelf};
use super::streams::{Found, Streams, Unknown, of_stream};
use crate::failure::{Exit, Failure, Result};

/// What the command line calls standard input.
pub const NAME: &str = "-";
/// What comes is read in so many bytes.
const BUFFER: usize = 1 << 20;

/// Whether streams are to come through standard input.
pub fn is_meant(from: &Path) -> bool {
    from == Path::new(NAME)
}

/// What people call the streams, by their number.
fn path(number: usize) -> String {
    match number {
        1 => "standard input".to_owned(),
        number => format!("standard input, stream {number}"),
    }
}

fn input() -> Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::new("a terminal brings no backup")
            .next("Let a program or a file bring it: ... | gabion restore - PATH"));
    }
    let cloned = stdin.as_fd().try_clone_to_owned();
    cloned.map(File::from).map_err(|error| Failure::of("cannot use standard input", &error))
}

/// Lets streams pass, each of them followed by those that build upon it. Tells `each` what they
/// are called, how many objects there are in the end and how many bytes.
pub fn verify(
    secret: Option<&Secret>,
    progress: &mut Progress,
    mut each: impl FnMut(&str, u64, u64) -> Result<()>,
) -> Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, input()?);
    let mut last: Option<StreamId> = None;
    let mut tree = Tree::default();
    for number in 0..=u16::MAX {
        let path = path(usize::from(number) + 1);
        let failed = |error| of_stream(&path, &error);
        let Some(coming) = forward::next(&mut input, secret).map_err(failed)? else {
            return match number {
                0 => Err(Failure::new("nothing came through standard input")),
                _ => Ok(()),
            };
        };
        match coming.header().base {
            None => tree = Tree::default(),
            Some(base) if Some(base) == last => {}
            Some(base) => {
                let what = format!("{path} builds upon backup {base}, which did not come before");
                return Err(Failure::new(what)
                    .exit(Exit::Damaged)
                    .next("Let the full one come first, then those that build upon it in order."));
            }
        }
        let passed = coming.pass(|it| tree.apply(number, it), |bytes| progress.pass(bytes));
        let checked = passed.and_then(|Passed { header, .. }| {
            last = Some(header.stream);
            tree.check(header.root)
        });
        let checked = checked.map_err(failed);
        let (objects, bytes) = checked?;
        each(&path, objects, bytes)?;
    }
    Err(Failure::new("more streams came than a chain can have"))
}

/// Lets streams pass, and keeps them beside `path` to restore them from there, unless standard
/// input is a file.
pub fn keep(path: &Path, secret: Option<&Secret>, progress: &mut Progress) -> Result<Streams> {
    let mut input = input()?;
    let failed = |error| Failure::of("cannot use standard input", &error);
    let is_file = input.metadata().map_err(failed)?.is_file();
    let mut at = if is_file { input.stream_position().map_err(failed)? } else { 0 };
    let (of, spool) = match is_file {
        true => (input.try_clone().map_err(failed)?, None),
        false => {
            let spool = spool(path)?;
            (spool.try_clone().map_err(failed)?, Some(spool))
        }
    };
    let of = Arc::new(of);
    let mut tee = Tee { input: BufReader::with_capacity(BUFFER, input), spool };
    let mut piped = Piped { spans: Vec::new() };
    let mut found = Vec::new();
    loop {
        let number = found.len() + 1;
        let path = self::path(number);
        let failed = |error| of_stream(&path, &error);
        let Some(coming) = forward::next(&mut tee, secret).map_err(failed)? else { break };
        let passed = coming.pass(|_| Ok(()), |bytes| progress.pass(bytes));
        let Passed { header, length, .. } = passed.map_err(failed)?;
        piped.spans.push(Span { of: Arc::clone(&of), at, length });
        at += length;
        let name = OsString::from(number.to_string());
        let (is_complete, is_cut_off) = (true, false);
        found.push(Found { name, path, header, length, is_complete, is_cut_off });
    }
    if found.is_empty() {
        return Err(Failure::new("nothing came through standard input"));
    }
    // Whether there was room is sometimes told late.
    tee.spool.as_ref().map_or(Ok(()), File::sync_data).map_err(|error| no_room(&error))?;
    found.sort_by_key(|found| found.header.created);
    Ok(Streams { shelf: Box::new(piped), found, named: None, unknown: Unknown::default() })
}

/// A file without a name, in the folder that `path` is or will be in.
fn spool(path: &Path) -> Result<File> {
    let absolute = std::path::absolute(path);
    let absolute = absolute.map_err(|error| Failure::of(path.display(), &error))?;
    let folder = match absolute.is_dir() {
        true => absolute,
        false => absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned),
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(error) => {
            let what = format!("cannot keep what comes through the pipe in {}", folder.display());
            Err(Failure::of(what, &error)
                .next("Put it into a file, and restore that: gabion restore FILE PATH"))
        }
    }
}

fn no_room(error: &io::Error) -> Failure {
    Failure::of("cannot keep what comes through the pipe beside PATH", error)
        .next("Put it where there is room, and restore that: gabion restore FILE PATH")
}

/// What comes, which is written to a file on its way.
struct Tee {
    input: BufReader<File>,
    spool: Option<File>,
}

impl Read for Tee {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(into)?;
        if let Some(spool) = &mut self.spool {
            let kept = spool.write_all(&into[..count]);
            kept.map_err(|error| io::Error::other(no_room(&error)))?;
        }
        Ok(count)
    }
}

/// A stream in a file with others.
#[derive(Clone)]
struct Span {
    of: Arc<File>,
    at: u64,
    length: u64,
}

impl ReadAt for Span {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64).filter(|end| *end <= self.length);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.of.read_exact_at(into, self.at + offset)
    }
}

/// The streams that have come, by their numbers.
struct Piped {
    spans: Vec<Span>,
}

impl Piped {
    fn number(name: &OsStr) -> usize {
        name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0)
    }
}

impl Shelf for Piped {
    fn name(&self) -> String {
        path(1)
    }

    fn path(&self, name: &OsStr) -> String {
        path(Self::number(name))
    }

    fn names(&self) -> Result<Vec<OsString>> {
        Ok((1..=self.spans.len()).map(|number| number.to_string().into()).collect())
    }

    fn open(&self, name: &OsStr) -> Result<Opened> {
        let span = Self::number(name).checked_sub(1).and_then(|at| self.spans.get(at));
        let span = span.ok_or_else(|| Failure::new(format!("there is no {}", self.path(name))))?;
        Ok(Opened { bytes: Box::new(span.clone()), is_finished: true })
    }
}
