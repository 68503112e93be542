//! Streams that lie at one place.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use gabion_backup::{Error, Header, ReadAt, StreamId, reader};

use super::store::{self, Shelf};
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
}

/// A place with what a command line means there.
pub struct Streams {
    /// The place.
    pub shelf: Box<dyn Shelf>,
    /// The streams there, oldest first.
    pub found: Vec<Found>,
    /// The one that is meant, if one is.
    pub named: Option<Found>,
}

impl Streams {
    /// What `from` means: a place, or one of the streams in it.
    pub fn of(from: &Path) -> Result<Self> {
        let (shelf, name) = store::shelf(from)?;
        let Some(name) = name else {
            let found = all(&*shelf)?;
            return Ok(Self { shelf, found, named: None });
        };
        let one = look(&*shelf, &name)?;
        // A full one needs none of its neighbours.
        let found = if one.header.base.is_some() { all(&*shelf)? } else { vec![one.clone()] };
        Ok(Self { shelf, found, named: Some(one) })
    }
}

/// Whether the stream is named by this beginning of its number, or by its snapshot.
pub fn is_named(stream: StreamId, text: &str) -> bool {
    let text = text.rsplit('-').next().unwrap_or_default();
    text.len() >= DIGITS_MIN && stream.to_string().starts_with(&text.to_ascii_lowercase())
}

/// Looks at one stream.
pub fn look(shelf: &dyn Shelf, name: &OsStr) -> Result<Found> {
    look_at(shelf, name)?.map_err(|error| of_stream(&shelf.path(name), &error))
}

fn look_at(shelf: &dyn Shelf, name: &OsStr) -> Result<std::result::Result<Found, Error>> {
    let opened = shelf.open(name)?;
    let bytes = &opened.bytes;
    let look = || -> std::result::Result<Found, Error> {
        let header = reader::header(bytes)?;
        let is_complete = opened.is_finished && reader::has_tail(bytes, &header)?;
        let length = bytes.length().map_err(|source| Error::Io { offset: 0, source })?;
        let (name, path) = (name.to_owned(), shelf.path(name));
        Ok(Found { name, path, header, length, is_complete })
    };
    Ok(look())
}

/// All streams at a place, oldest first.
pub fn all(shelf: &dyn Shelf) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for name in shelf.names()? {
        match look_at(shelf, &name)? {
            Ok(stream) => found.push(stream),
            Err(Error::NotABackup) => {}
            Err(error) => print::notice(of_stream(&shelf.path(&name), &error)),
        }
    }
    found.sort_by(|a, b| (a.header.created, &a.name).cmp(&(b.header.created, &b.name)));
    Ok(found)
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
            failure.next("To go on with it, run the backup to the same place again.")
        }
        _ => failure,
    }
}
