//! Makes files of a chain of streams.
//!
//! Directories get their attributes last, the inner ones first: what is made in them would change
//! their times. A file gets its time of change when it is whole; so one that has it, and its size,
//! is not made a second time by who goes on after it was stopped.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gabion_backup::tree::Part;
use gabion_backup::{Object, Tree};

use super::chain::Chain;
use super::dress::dress;
use super::progress::Progress;
use super::streams::of_stream;
use crate::failure::{Failure, Result};

/// So many segments are kept: files that are neighbours share them.
const SEGMENTS: usize = 16;
/// Shorter parts are written again rather than shared.
const SHARED_MIN: u32 = 4096;

/// What was not kept of a tree, because the filesystem has no room for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Extended attributes.
    pub attributes: u64,
}

/// The stream and number of a segment, and its bytes.
type Segment = ((u16, u32), Arc<Vec<u8>>);

/// A restoration under way.
pub struct Rebuilding<'c> {
    chain: &'c Chain,
    tree: &'c Tree,
    progress: &'c mut Progress,
    segments: VecDeque<Segment>,
    /// Parts that more than one place in files has.
    shared: HashSet<(u16, u32, u32)>,
    /// Where such a part was written first.
    written: HashMap<(u16, u32, u32), (PathBuf, u64, u32)>,
    /// The first name that an object got.
    made: HashMap<u64, PathBuf>,
    losses: Losses,
}

impl<'c> Rebuilding<'c> {
    /// Prepares to make files of `tree`, the tree of `chain`.
    pub fn new(chain: &'c Chain, tree: &'c Tree, progress: &'c mut Progress) -> Self {
        Self {
            chain,
            tree,
            progress,
            segments: VecDeque::new(),
            shared: tree.shared(),
            written: HashMap::new(),
            made: HashMap::new(),
            losses: Losses::default(),
        }
    }

    /// Makes the object `ino` and all below it at `path`, where nothing is, or what was made
    /// before.
    pub fn run(mut self, ino: u64, path: &Path) -> Result<Losses> {
        let mut dirs = Vec::new();
        let mut waiting = vec![(ino, path.to_owned())];
        while let Some((ino, path)) = waiting.pop() {
            let object = self.tree.object(ino).map_err(senseless)?;
            if !object.attributes.is_directory() {
                self.other(object, &path).map_err(|error| unmade(&path, error))?;
                continue;
            }
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(unmade(&path, Unmade::Io(error)));
                }
                _ => {}
            }
            let names: Vec<_> = self.tree.names(ino).collect();
            for (name, ino) in names.into_iter().rev() {
                waiting.push((ino, path.join(OsStr::from_bytes(name))));
            }
            dirs.push((object, path));
        }
        for (object, path) in dirs.into_iter().rev() {
            self.dress(object, &path).map_err(|error| unmade(&path, error))?;
        }
        Ok(self.losses)
    }

    fn other(&mut self, object: &Object, path: &Path) -> std::result::Result<(), Unmade> {
        if let Some(first) = self.made.get(&object.ino) {
            return match fs::hard_link(first, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => Ok(linked?),
            };
        }
        let is_linked = self.tree.is_linked(object.ino);
        if is_linked {
            self.made.insert(object.ino, path.to_owned());
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if is_whole(object, &found) {
                let bytes = self.tree.parts(object.ino).map(|(_, part)| u64::from(part.length));
                self.progress.skip(bytes.sum());
                return Ok(());
            }
            fs::remove_file(path)?;
        }
        if object.attributes.is_file() {
            self.file(object, path)?;
        } else if object.attributes.is_symlink() {
            std::os::unix::fs::symlink(OsStr::from_bytes(&object.target), path)?;
        } else {
            super::dress::make_node(&object.attributes, path)?;
        }
        self.dress(object, path)
    }

    fn file(&mut self, object: &Object, path: &Path) -> std::result::Result<(), Unmade> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let tree = self.tree;
        for (at, part) in tree.parts(object.ino) {
            if !self.copy(&file, path, at, &part) {
                let bytes = self.segment(part.stream, part.segment)?;
                let (from, length) = (part.at as usize, part.length as usize);
                file.write_all_at(&bytes[from..from + length], at)?;
            }
            self.progress.pass(part.length.into());
        }
        file.set_len(object.attributes.size)?;
        Ok(())
    }

    /// Lets a part share its blocks with where it was written before, if the filesystem can; else
    /// remembers where it is now.
    fn copy(&mut self, file: &File, path: &Path, at: u64, part: &Part) -> bool {
        let key = (part.stream, part.segment, part.at);
        if part.length < SHARED_MIN || !self.shared.contains(&key) {
            return false;
        }
        let first = self.written.entry(key);
        let is_new = matches!(first, std::collections::hash_map::Entry::Vacant(_));
        let (first, from, length) =
            first.or_insert_with(|| (path.to_owned(), at, part.length)).clone();
        if is_new || length < part.length {
            return false;
        }
        let Ok(source) = File::open(&first) else { return false };
        let (mut from, mut to) = (from, at);
        let end = at + u64::from(part.length);
        while to < end {
            let left = (end - to) as usize;
            let copied =
                rustix::fs::copy_file_range(&source, Some(&mut from), file, Some(&mut to), left);
            if !matches!(copied, Ok(count) if count > 0) {
                return false;
            }
        }
        true
    }

    fn segment(&mut self, stream: u16, number: u32) -> std::result::Result<Arc<Vec<u8>>, Unmade> {
        let key = (stream, number);
        if let Some((_, bytes)) = self.segments.iter().find(|(found, _)| *found == key) {
            return Ok(Arc::clone(bytes));
        }
        let (path, of) = &self.chain.streams[usize::from(stream)];
        let bytes = of.segment(number);
        let bytes = bytes.map_err(|error| Unmade::Stream(of_stream(path, &error)))?;
        let bytes = Arc::new(bytes);
        if self.segments.len() >= SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back((key, Arc::clone(&bytes)));
        Ok(bytes)
    }

    fn dress(&mut self, object: &Object, path: &Path) -> std::result::Result<(), Unmade> {
        self.losses.attributes += dress(object, path)?;
        Ok(())
    }
}

/// Why something could not be made.
enum Unmade {
    Io(io::Error),
    Stream(Failure),
}

impl From<io::Error> for Unmade {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn unmade(path: &Path, error: Unmade) -> Failure {
    let error = match error {
        Unmade::Stream(failure) => return failure,
        Unmade::Io(error) => error,
    };
    let failure = Failure::of(format!("cannot restore {}", path.display()), &error);
    match error.kind() {
        io::ErrorKind::PermissionDenied => failure.next("Only root can give files to others."),
        io::ErrorKind::StorageFull => failure.next("Make room, and run it again: it goes on."),
        _ => failure,
    }
}

fn senseless(error: gabion_backup::Error) -> Failure {
    Failure::new(error.to_string())
}

/// Whether it was made before, all of it.
fn is_whole(object: &Object, found: &fs::Metadata) -> bool {
    let wanted = &object.attributes;
    let size = !wanted.is_file() || found.size() == wanted.size;
    let time = (found.mtime(), found.mtime_nsec());
    size && found.mode() == wanted.mode
        && time == (wanted.written.seconds, wanted.written.nanoseconds.into())
}
