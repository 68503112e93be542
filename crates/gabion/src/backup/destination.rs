//! Where a backup goes: to a place, by a name of its own or by one that it gets from the stream, or
//! to standard output.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;

use gabion_backup::StreamId;
use gabion_base::checksum::crc64;

use super::store::{self, EXTENSION, Store, Upload};
use super::streams::{self, Found};
use crate::date;
use crate::failure::{Failure, Result};

/// Where a stream goes.
pub enum Destination {
    /// Standard output.
    Output,
    /// A place.
    Store {
        /// The place.
        store: Box<dyn Store>,
        /// What the stream is to be called there, if that is not left to the place.
        name: Option<OsString>,
    },
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
        let (store, name) = store::store(text)?;
        Ok(Self::Store { store, name })
    }

    /// The place, if there is one.
    pub fn store(&self) -> Option<&dyn Store> {
        match self {
            Self::Output => None,
            Self::Store { store, .. } => Some(&**store),
        }
    }

    /// What tells this place from others, in the names of snapshots.
    pub fn tag(&self) -> String {
        let identity = self.store().map_or_else(|| b"-".to_vec(), Store::identity);
        format!("{:016x}", crc64(&identity))
    }

    /// Streams here that are complete, oldest first; none of standard output.
    pub fn streams(&self) -> Result<Vec<Found>> {
        let Self::Store { store, .. } = self else { return Ok(Vec::new()) };
        let (found, _) = streams::all(&**store)?;
        Ok(found.into_iter().filter(|found| found.is_complete).collect())
    }

    /// Streams that could be taken up again.
    pub fn partials(&self) -> Result<Vec<OsString>> {
        match self {
            Self::Output => Ok(Vec::new()),
            Self::Store { store, name } => store.partials(name.as_deref()),
        }
    }

    /// Begins a stream.
    pub fn begin(&self, stream: StreamId, created: i64) -> Result<Box<dyn Upload>> {
        let Self::Store { store, name } = self else { return Output::upload() };
        if let Some(name) = name {
            return store.begin(name, stream);
        }
        let date = date::seconds(created).replace(['-', ':', ' '], "");
        let name = format!("{date}-{}{EXTENSION}", &stream.to_string()[..8]);
        store.begin(name.as_ref(), stream)
    }
}

/// Standard output, without the buffer that it has for lines of text.
struct Output(File);

impl Output {
    fn upload() -> Result<Box<dyn Upload>> {
        let cloned = io::stdout().as_fd().try_clone_to_owned();
        let file = cloned.map_err(|error| Failure::of("cannot use standard output", &error))?;
        Ok(Box::new(Self(file.into())))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Upload for Output {
    fn finish(self: Box<Self>) -> Result<String> {
        Ok("standard output".to_owned())
    }
}
