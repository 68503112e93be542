//! Streams that lie in a folder, side by side with what else is there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gabion_backup::{Error, Header, ReadAt, StreamId, reader};

use crate::failure::{Failure, Result};

/// What the name of a stream ends with that is not complete.
pub const PARTIAL: &str = "partial";

/// A file that is read at offsets.
pub struct FileAt(pub File);

impl ReadAt for FileAt {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}

/// A stream that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether it has its tail.
    pub is_complete: bool,
}

/// Whether the stream is named by this beginning of its number, or by its snapshot.
pub fn is_named(stream: StreamId, text: &str) -> bool {
    let text = text.rsplit('-').next().unwrap_or_default();
    text.len() >= 4 && stream.to_string().starts_with(&text.to_ascii_lowercase())
}

/// Opens a stream's file.
pub fn open(path: &Path) -> Result<FileAt> {
    let opened = File::open(path).map(FileAt);
    opened.map_err(|error| Failure::of(format!("cannot open {}", path.display()), &error))
}

/// Looks at one stream.
pub fn look(path: &Path) -> Result<Found> {
    look_at(path)?.map_err(|error| of_stream(path, &error))
}

fn look_at(path: &Path) -> Result<std::result::Result<Found, Error>> {
    let file = open(path)?;
    let look = || -> std::result::Result<Found, Error> {
        let header = reader::header(&file)?;
        let is_complete = reader::has_tail(&file, &header)?;
        let length = file.length().map_err(|source| Error::Io { offset: 0, source })?;
        Ok(Found { path: path.to_owned(), header, length, is_complete })
    };
    Ok(look())
}

/// All streams in a folder, oldest first.
pub fn all(folder: &Path) -> Result<Vec<Found>> {
    let failed = |error| Failure::of(format!("cannot list {}", folder.display()), &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Links to files count, pipes and devices could keep us waiting.
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        match look_at(&path)? {
            Ok(stream) => found.push(stream),
            Err(Error::NotABackup) => {}
            Err(error) => eprintln!("gabion: {}", of_stream(&path, &error)),
        }
    }
    found.sort_by(|a, b| (a.header.created, &a.path).cmp(&(b.header.created, &b.path)));
    Ok(found)
}

/// The streams that `from` means, a folder or one of the streams in it; and that one, if it is one.
pub fn of(from: &Path) -> Result<(Vec<Found>, Option<Found>)> {
    let metadata = fs::metadata(from);
    let metadata = metadata
        .map_err(|error| Failure::of(format!("cannot look at {}", from.display()), &error))?;
    if metadata.is_dir() {
        return Ok((all(from)?, None));
    }
    let one = look(from)?;
    let folder = match from.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A full one needs none of its neighbours.
    let others = if one.header.base.is_some() { all(folder)? } else { vec![one.clone()] };
    Ok((others, Some(one)))
}

/// What is wrong with a stream.
pub fn of_stream(path: &Path, error: &Error) -> Failure {
    let failure = Failure::of(path.display(), error);
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
