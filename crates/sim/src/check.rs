//! What a crash may leave behind.
//!
//! With `durable` and `started` as [`History`] has them for the moment of the crash:
//!
//! 1. The names and attributes of what is found are those of some state `P` with
//!    `durable <= P <= started`: a prefix of the operations, and all that was promised.
//! 2. Every file has one of the sizes, and every 4 KiB block of it is that block, of the versions
//!    between the last one that is known at `P` and the last one that was begun. Past its end a
//!    version has zeros. So a synced file that nobody touched is exact, no file ever shows bytes
//!    of another or older bytes than promised, and a file that took another's place by a rename
//!    is complete.
//!
//! Sizes of files are no attributes in this sense, because they follow the bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::history::{BLOCK, FileHistory, History};
use crate::model::Number;
use crate::op::Kind;
use crate::tree::Tree;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The names are those of a state that is too old.
    Lost {
        /// The state that was found.
        found: usize,
        /// The state that was promised.
        durable: usize,
    },
    /// The names are those of no state.
    Names {
        /// The first state that is allowed.
        durable: usize,
        /// The last one.
        started: usize,
        /// The state that resembles it most.
        nearest: usize,
        /// What is different from that.
        difference: String,
    },
    /// A file has a size that it never had in the time in question.
    Size {
        /// A path of the file.
        path: String,
        /// The state whose names were found.
        prefix: usize,
        /// The size that was found.
        found: usize,
        /// The sizes that are allowed.
        allowed: BTreeSet<usize>,
    },
    /// A file has bytes that it never had there in the time in question.
    Bytes {
        /// A path of the file.
        path: String,
        /// The state whose names were found.
        prefix: usize,
        /// Which block of the file.
        block: usize,
        /// Whose bytes they are.
        origin: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { found, durable } => {
                write!(f, "state {found} was found, and {durable} was promised")
            }
            Self::Names { durable, started, nearest, difference } => {
                writeln!(f, "the names are of none of the states {durable} to {started};")?;
                write!(f, "compared with state {nearest}:\n{difference}")
            }
            Self::Size { path, prefix, found, allowed } => {
                write!(f, "{path:?} has {found} bytes at state {prefix}, allowed: {allowed:?}")
            }
            Self::Bytes { path, prefix, block, origin } => {
                write!(f, "block {block} of {path:?} at state {prefix} is {origin}")
            }
        }
    }
}

/// Judges what was found after a crash at which the disk's events before `acknowledged` were
/// acknowledged and those before `issued` were begun.
pub fn verify(
    history: &History,
    acknowledged: usize,
    issued: usize,
    found: &Tree,
) -> Result<(), Violation> {
    let (durable, started) = (history.durable(acknowledged), history.started(issued));
    let digest = found.namespace.digest();
    let mut violation = None;
    for prefix in durable..=started {
        let (names, names_digest) = history.names(prefix);
        // Of a run of states with the very same names the first allows most.
        let tried = prefix > durable && Arc::ptr_eq(names, history.names(prefix - 1).0);
        if tried || names_digest != digest {
            continue;
        }
        match verify_files(history, prefix, started, found) {
            Ok(()) => return Ok(()),
            Err(broken) => violation = Some(broken),
        }
    }
    Err(violation.unwrap_or_else(|| judge_names(history, durable, started, found)))
}

fn judge_names(history: &History, durable: usize, started: usize, found: &Tree) -> Violation {
    let digest = found.namespace.digest();
    if let Some(found) = (0..durable).rev().find(|state| history.names(*state).1 == digest) {
        return Violation::Lost { found, durable };
    }
    let difference = |state: usize| history.names(state).0.difference(&found.namespace);
    let lines = |state: &usize| difference(*state).lines().count();
    let nearest = (durable..=started).min_by_key(lines).unwrap_or(durable);
    Violation::Names { durable, started, nearest, difference: difference(nearest) }
}

fn verify_files(
    history: &History,
    prefix: usize,
    started: usize,
    found: &Tree,
) -> Result<(), Violation> {
    let names = history.names(prefix).0;
    for path in names.paths(Kind::File) {
        let number: Number = names.objects[path].id;
        let file = history.file(number).expect("every file has its history");
        let id = found.namespace.objects[path].id;
        let bytes = found.files.get(&id).map_or(&[][..], Vec::as_slice);
        verify_file(history, file, (prefix, started), (path, bytes))?;
    }
    Ok(())
}

fn verify_file(
    history: &History,
    file: &FileHistory,
    (prefix, started): (usize, usize),
    (path, bytes): (&str, &[u8]),
) -> Result<(), Violation> {
    let window = file.window(prefix, started);
    if !window.iter().any(|version| version.size == bytes.len()) {
        let allowed = window.iter().map(|version| version.size).collect();
        let path = path.to_owned();
        return Err(Violation::Size { path, prefix, found: bytes.len(), allowed });
    }
    for (block, chunk) in bytes.chunks(BLOCK).enumerate() {
        if !window.iter().rev().any(|version| version.block_starts_with(block, chunk)) {
            let (path, origin) = (path.to_owned(), origin(history, file, block, chunk));
            return Err(Violation::Bytes { path, prefix, block, origin });
        }
    }
    Ok(())
}

/// Says whose bytes these are, for whoever has to find out.
fn origin(history: &History, file: &FileHistory, block: usize, bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeros".to_owned();
    }
    if let Some(version) = file.versions().iter().find(|at| at.block_starts_with(block, bytes)) {
        return format!("the file's own of state {}", version.state);
    }
    for (number, other) in history.files() {
        for version in other.versions() {
            let mut blocks = 0..version.blocks.len();
            if let Some(index) = blocks.find(|index| version.block_starts_with(*index, bytes)) {
                let state = version.state;
                return format!("block {index} of file {number} of state {state}");
            }
        }
    }
    "nobody's".to_owned()
}
