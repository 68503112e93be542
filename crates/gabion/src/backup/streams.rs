//! Streams that lie at one place.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use gabion_backup::{Error, Header, ReadAt, StreamId, reader};

use super::store::{self, EXTENSION, PARTIAL, Shelf};
use crate::failure::{Exit, Failure, Result};
use crate::print;

/// So many digits of a stream's number name it.
pub const DIGITS_MIN: usize = 4;

/// A stream that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name at its place.
    pub name: OsString,
    /// What people call it.
    pub path: String,
    /// Its header.
    pub header: Header,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether it has its tail, and its place takes it for finished.
    pub is_complete: bool,
    /// Whether its place takes it for finished, and it has no tail: so it is not whole any more, or
    /// a copy that was not made to its end.
    pub is_cut_off: bool,
}

/// A place with what a command line means there.
pub struct Streams {
    /// The place.
    pub shelf: Box<dyn Shelf>,
    /// The streams there, oldest first.
    pub found: Vec<Found>,
    /// The one that is meant, if one is.
    pub named: Option<Found>,
    /// What else is there.
    pub unknown: Unknown,
}

/// Streams that do not say what they are. They were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// They are damaged where they should.
    pub damaged: usize,
    /// They could not be read there, or this program does not understand them.
    pub unread: usize,
}

impl Streams {
    /// What `from` means: a place, or one of the streams in it.
    pub fn of(from: &Path) -> Result<Self> {
        let (shelf, name) = store::shelf(from)?;
        let Some(name) = name else {
            let (found, unknown) = all(&*shelf)?;
            return Ok(Self { shelf, found, named: None, unknown });
        };
        let one = look(&*shelf, &name)?;
        // A full one needs none of its neighbours.
        let (found, unknown) = match one.header.base {
            Some(_) => all(&*shelf)?,
            None => (vec![one.clone()], Unknown::default()),
        };
        Ok(Self { shelf, found, named: Some(one), unknown })
    }
}

/// Whether the stream is named by this beginning of its number, or by its snapshot.
pub fn is_named(stream: StreamId, text: &str) -> bool {
    let text = text.rsplit('-').next().unwrap_or_default();
    text.len() >= DIGITS_MIN && stream.to_string().starts_with(&text.to_ascii_lowercase())
}

/// Looks at one stream.
pub fn look(shelf: &dyn Shelf, name: &OsStr) -> Result<Found> {
    let (_, found) = look_at(shelf, name)?;
    found.map_err(|error| of_stream(&shelf.path(name), &error))
}

/// What is there by this name, and whether its place takes that for finished.
fn look_at(shelf: &dyn Shelf, name: &OsStr) -> Result<(bool, std::result::Result<Found, Error>)> {
    let opened = shelf.open(name)?;
    let bytes = &opened.bytes;
    let look = || -> std::result::Result<Found, Error> {
        let header = reader::header(bytes)?;
        let is_complete = opened.is_finished && reader::has_tail(bytes, &header)?;
        let is_begun = name.as_encoded_bytes().ends_with(PARTIAL.as_bytes());
        let is_cut_off = opened.is_finished && !is_begun && !is_complete;
        let length = bytes.length().map_err(|source| Error::Io { offset: 0, source })?;
        let (name, path) = (name.to_owned(), shelf.path(name));
        Ok(Found { name, path, header, length, is_complete, is_cut_off })
    };
    Ok((opened.is_finished, look()))
}

/// All streams at a place, oldest first; and those of which it is not known which they are.
pub fn all(shelf: &dyn Shelf) -> Result<(Vec<Found>, Unknown)> {
    let (mut found, mut unknown) = (Vec::new(), Unknown::default());
    for name in shelf.names()? {
        let has_end = |end: &str| name.as_encoded_bytes().ends_with(end.as_bytes());
        let (is_finished, stream) = look_at(shelf, &name)?;
        match stream {
            Ok(stream) => found.push(stream),
            Err(Error::NotABackup) if !has_end(EXTENSION) => {}
            Err(error) => {
                print::notice(of_stream(&shelf.path(&name), &error));
                match is_damage(&error) || matches!(error, Error::NotABackup) {
                    // Of one that was only begun that is no wonder.
                    _ if !is_finished || has_end(PARTIAL) => {}
                    true => unknown.damaged += 1,
                    false => unknown.unread += 1,
                }
            }
        }
    }
    found.sort_by(|a, b| (a.header.created, &a.name).cmp(&(b.header.created, &b.name)));
    Ok((found, unknown))
}

/// Whether it is the stream that is wrong, and not its secret, this program, or what it is kept in.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Unfinished(_)
        | Error::Damaged { .. }
        | Error::Senseless { .. }
        | Error::NotTheNext => true,
        Error::Io { .. }
        | Error::NotABackup
        | Error::Version(_)
        | Error::Locked(_)
        | Error::WrongSecret(_)
        | Error::Cipher(_)
        | Error::TooLarge { .. } => false,
    }
}

/// What is wrong with a stream.
pub fn of_stream(path: &str, error: &Error) -> Failure {
    let failure = Failure::of(path, error);
    let failure = if is_damage(error) { failure.exit(Exit::Damaged) } else { failure };
    match error {
        Error::Locked(what) => {
            let option = if *what == "passphrase" { "--passphrase-file" } else { "--key-file" };
            failure.next(format!("Name it with {option} FILE."))
        }
        Error::Unfinished(_) => {
            failure.next("Run the backup to the same place again: it goes on. A copy, make again.")
        }
        _ => failure,
    }
}
