//! Where a backup goes: a file with a name of its own, a file in a folder, or standard output.
//!
//! A stream that is not complete has a name that ends in `.partial`. It is renamed when it is
//! durable, so whatever has another name is whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use gabion_backup::StreamId;
use gabion_base::checksum::crc64;

use super::folder::{self, Found, PARTIAL};
use crate::date;
use crate::failure::{Failure, Result};

/// A place for streams.
pub enum Destination {
    /// Standard output.
    Output,
    /// This file.
    File(PathBuf),
    /// A file in this folder, which gets its name from the stream.
    Folder(PathBuf),
}

impl Destination {
    /// What `text` means.
    pub fn of(text: &Path) -> Result<Self> {
        if text == Path::new("-") {
            return match io::stdout().is_terminal() {
                true => Err(Failure::new("a backup is nothing that a terminal could show")
                    .next("Send it to a file or to a program: gabion backup PATH - | ...")),
                false => Ok(Self::Output),
            };
        }
        if text.to_str().is_some_and(|text| text.contains("://")) {
            return Err(Failure::new(format!("{} is no file", text.display()))
                .next("Send it to a program that stores it: gabion backup PATH - | ..."));
        }
        let failed = |error| Failure::of(format!("cannot write to {}", text.display()), &error);
        if text.is_dir() {
            return text.canonicalize().map(Self::Folder).map_err(failed);
        }
        if fs::symlink_metadata(text).is_ok() {
            return Err(Failure::new(format!("{} is there already", text.display()))
                .next("Name a file that is not there, or a folder."));
        }
        let absolute = std::path::absolute(text).map_err(failed)?;
        match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => {
                Ok(Self::File(parent.canonicalize().map_err(failed)?.join(name)))
            }
            _ => Err(Failure::new(format!("{} is no file", text.display()))),
        }
    }

    /// The folder that streams lie in.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Output => None,
            Self::File(path) => path.parent(),
            Self::Folder(path) => Some(path),
        }
    }

    /// What tells this place from others, in the names of snapshots.
    pub fn tag(&self) -> String {
        let name = self.folder().map_or(&b"-"[..], |path| path.as_os_str().as_encoded_bytes());
        format!("{:016x}", crc64(name))
    }

    /// Streams here that are complete, oldest first; none of standard output.
    pub fn streams(&self) -> Result<Vec<Found>> {
        let Some(folder) = self.folder() else { return Ok(Vec::new()) };
        Ok(folder::all(folder)?.into_iter().filter(|found| found.is_complete).collect())
    }

    /// Streams that could be taken up again.
    pub fn partials(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Output => Ok(Vec::new()),
            Self::File(path) => {
                let partial = partial(path);
                Ok(if partial.is_file() { vec![partial] } else { Vec::new() })
            }
            Self::Folder(folder) => {
                let failed =
                    |error| Failure::of(format!("cannot list {}", folder.display()), &error);
                let mut found = Vec::new();
                for entry in fs::read_dir(folder).map_err(failed)? {
                    let path = entry.map_err(failed)?.path();
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    if name.ends_with(&format!(".gabion.{PARTIAL}")) {
                        found.push(path);
                    }
                }
                found.sort();
                Ok(found)
            }
        }
    }

    /// Where a new stream is to be in the end; nothing for standard output.
    pub fn path(&self, stream: StreamId, created: i64) -> Option<PathBuf> {
        match self {
            Self::Output => None,
            Self::File(path) => Some(path.clone()),
            Self::Folder(folder) => {
                let date = date::seconds(created).replace(['-', ':', ' '], "");
                Some(folder.join(format!("{date}-{}.gabion", &stream.to_string()[..8])))
            }
        }
    }
}

/// The name of a stream that is not complete.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{PARTIAL}"));
    name.into()
}

/// What a stream is written to.
pub enum Sink {
    /// Standard output.
    Output(File),
    /// A file that is not complete.
    File(File),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Output(out) => out.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Output(out) => out.flush(),
            Self::File(file) => file.flush(),
        }
    }
}

impl Sink {
    /// Standard output, without the buffer that it has for lines of text.
    pub fn output() -> Result<Self> {
        let cloned = io::stdout().as_fd().try_clone_to_owned();
        let file = cloned.map_err(|error| Failure::of("cannot use standard output", &error))?;
        Ok(Self::Output(file.into()))
    }

    /// Makes a stream durable and gives it the name of one that is whole.
    pub fn finish(self, path: Option<&Path>) -> Result<()> {
        let (Self::File(file), Some(path)) = (self, path) else { return Ok(()) };
        let name = || -> io::Result<()> {
            file.sync_all()?;
            fs::rename(partial(path), path)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        name().map_err(|error| Failure::of(format!("cannot finish {}", path.display()), &error))
    }
}
