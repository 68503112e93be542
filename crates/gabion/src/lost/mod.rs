//! What mounts have lost, kept aside in the state folder until somebody has looked at it.
//!
//! ```text
//!   lost+20261128T201500Z-4711/changes.txt    what was done, in order, a line each
//!                              inode-12       bytes that were written, at their places; else holes
//! ```
//!
//! - The folder of each loss is readable for its user alone, as the bytes may be secret.
//! - Losses that are there already and the new one have [`KEPT_BYTES_MAX`] bytes together. What
//!   does not fit is told and not kept.
//! - What was written can be lost again by a crash only until the event is told.
//!
//! Absent: doing the changes again, for others may have done something else meanwhile.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::event::{ClientEvent, Event, Sink};
use gabion_fs::WriteAt;
use gabion_host::clock;
use gabion_link::message::{Call, Change};
use gabion_map::FileId;
use gabion_node::remote::Loss;

use crate::date;
use crate::failure::chain;

/// What the folder of a loss begins with.
const PREFIX: &str = "lost+";
/// All that is kept has so many bytes on the disk, about: a client has at most 64 MiB of changes
/// under way.
const KEPT_BYTES_MAX: u64 = 256 << 20;
/// Losses of the same second by one process.
const FOLDERS_MAX: usize = 100;

/// Keeps what one mount loses, and tells of it.
pub struct Keeper {
    /// The state folder.
    pub state: PathBuf,
    /// Where events go.
    pub sink: Arc<dyn Sink>,
    /// What is mounted.
    pub filesystem: String,
    /// What the server calls this client.
    pub client: String,
    /// Where it is mounted.
    pub mountpoint: String,
}

/// Bytes that a change has written, with their place.
struct Written<'a> {
    /// Which of the changes, from 0.
    index: usize,
    offset: u64,
    bytes: &'a [u8],
}

/// What was kept of a loss.
#[derive(Debug, Default)]
struct Kept {
    /// Bytes of files.
    bytes: u64,
    /// Changes whose bytes are not there.
    without: BTreeSet<usize>,
    /// What went wrong first.
    problem: Option<io::Error>,
}

impl Keeper {
    /// Keeps a loss, as far as that is possible, and tells of it.
    pub fn keep(&self, loss: &Loss) {
        let written = written(&loss.changes);
        let bytes = written.values().flatten().map(|one| one.bytes.len() as u64).sum();
        let (folder, kept) = match self.keep_in_folder(loss, &written) {
            Ok((folder, kept)) => (folder.display().to_string(), kept),
            Err(error) => {
                let place = format!("nowhere in {}", self.state.display());
                (place, Kept { problem: Some(error), ..Kept::default() })
            }
        };
        let reason = match &kept.problem {
            None => loss.reason.clone(),
            Some(problem) => {
                format!("{}; not all of it could be kept: {}", loss.reason, chain(problem))
            }
        };
        let event = ClientEvent::ChangesLost {
            mount: self.mountpoint.clone(),
            count: loss.changes.len() as u64,
            bytes,
            kept: kept.bytes,
            folder,
            reason,
        };
        let (filesystem, client) = (self.filesystem.clone(), self.client.clone());
        let event = Event::Client { filesystem, client, event };
        eprintln!("gabion: {event}");
        self.sink.publish(event);
    }

    fn keep_in_folder(
        &self,
        loss: &Loss,
        written: &BTreeMap<FileId, Vec<Written<'_>>>,
    ) -> io::Result<(PathBuf, Kept)> {
        let mut room = KEPT_BYTES_MAX.saturating_sub(occupied(&self.state)?);
        let folder = self.new_folder()?;
        let mut kept = Kept::default();
        for (file, parts) in written {
            let path = folder.join(format!("inode-{}", file.ino.0));
            keep_bytes(&path, parts, &mut room, &mut kept);
        }
        let told = self.tell(&folder.join("changes.txt"), loss, &kept);
        let synced = told.and_then(|()| File::open(&folder)?.sync_all());
        kept.problem = kept.problem.or(synced.err());
        Ok((folder, kept))
    }

    /// A folder that was not there.
    fn new_folder(&self) -> io::Result<PathBuf> {
        let now = date::seconds(clock::now().seconds).replace([':', '-'], "");
        let name = format!("{PREFIX}{now}-{}", process::id());
        let mut outcome = Err(io::ErrorKind::AlreadyExists.into());
        for number in 0..FOLDERS_MAX {
            let name = if number == 0 { name.clone() } else { format!("{name}-{number}") };
            let folder = self.state.join(name);
            outcome = DirBuilder::new().mode(0o700).create(&folder).map(|()| folder);
            match &outcome {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                _ => break,
            }
        }
        outcome
    }

    /// Writes what was done.
    fn tell(&self, path: &Path, loss: &Loss, kept: &Kept) -> io::Result<()> {
        let mut out = BufWriter::new(new_file(path)?);
        writeln!(out, "May be lost at {}, {}: {}.", self.mountpoint, self.filesystem, loss.reason)?;
        writeln!(out, "Bytes are in the files inode-NUMBER here, at their places.")?;
        writeln!(out)?;
        for (index, change) in loss.changes.iter().enumerate() {
            let is_without = kept.without.contains(&index);
            let end = if is_without { " (these bytes are not kept)" } else { "" };
            writeln!(out, "{}{end}", text::of(change, &loss.paths))?;
        }
        if let Some(problem) = &kept.problem {
            writeln!(out, "\nNot all of it could be kept: {problem}")?;
        }
        out.into_inner()?.sync_all()
    }
}

/// What was written to each file, in order.
fn written(changes: &[Change]) -> BTreeMap<FileId, Vec<Written<'_>>> {
    let mut written: BTreeMap<FileId, Vec<Written<'_>>> = BTreeMap::new();
    for (index, change) in changes.iter().enumerate() {
        if let Call::Write { file, at: WriteAt::Offset(offset), bytes, .. } = &change.call {
            let one = Written { index, offset: *offset, bytes };
            written.entry(*file).or_default().push(one);
        }
    }
    written
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Keeps what was written to one file.
fn keep_bytes(path: &Path, parts: &[Written<'_>], room: &mut u64, kept: &mut Kept) {
    let mut outcome = new_file(path);
    for part in parts {
        let length = part.bytes.len() as u64;
        // It may begin and end within a block.
        let blocks = length.next_multiple_of(BLOCK_SIZE as u64) + BLOCK_SIZE as u64;
        let file = match &outcome {
            Ok(file) if blocks <= *room => file,
            Ok(_) => {
                let full = format!("there are {} MiB already", KEPT_BYTES_MAX >> 20);
                kept.problem.get_or_insert_with(|| io::Error::other(full));
                kept.without.insert(part.index);
                continue;
            }
            Err(_) => {
                kept.without.insert(part.index);
                continue;
            }
        };
        match file.write_all_at(part.bytes, part.offset) {
            Ok(()) => {
                *room -= blocks;
                kept.bytes += length;
            }
            Err(error) => {
                kept.without.insert(part.index);
                outcome = Err(error);
            }
        }
    }
    let synced = outcome.and_then(|file| file.sync_all());
    if let Err(error) = synced {
        kept.problem.get_or_insert(error);
    }
}

/// Bytes on the disk of all losses that are kept in `state`.
fn occupied(state: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Somebody may be removing it this moment.
        let Ok(files) = fs::read_dir(entry.path()) else { continue };
        let metadata = files.flatten().filter_map(|file| file.metadata().ok());
        bytes += metadata.map(|file| file.blocks() * 512).sum::<u64>();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
