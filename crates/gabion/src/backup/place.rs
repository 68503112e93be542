//! Where a restored tree goes. It is made under a name that nobody takes for a whole one, and gets
//! its own when it is complete.
//!
//! ```text
//!   nothing is at PATH             made as .NAME.restoring-STREAM beside it, then renamed; what is
//!                                  no directory is made in a directory of that name
//!   an empty directory is there    made as .restoring-STREAM in it, then moved up entry by entry;
//!                                  as long as that directory is there, it is not complete
//! ```
//!
//! Where it is not all of the stream that is restored, another number stands in place of STREAM, so
//! that nobody goes on with what is to become something else.
//!
//! Who is stopped can go on: what has been made under that name is kept, as far as it is whole. It
//! is locked meanwhile, as two could not tell what of it the other one is just making. Nobody else
//! may look into it, let alone change it: that could lead a restoration anywhere.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown,
};
use std::path::{Path, PathBuf};

use gabion_backup::{Object, StreamId};
use gabion_base::checksum::crc64;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

use super::dress::{Inherited, Taking, dress};
use super::losses::Losses;
use super::rebuild::Durability;
use crate::failure::{Failure, Result};
use crate::mounts;

/// What many filesystems have in their root from the start.
const LOST_FOUND: &str = "lost+found";
/// How the names of trees that are not complete begin, in the directories that they become.
const RESTORING: &str = ".restoring-";

/// What is to be restored of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The object with this number, and what is below it.
    Below(u64),
}

/// A place for a tree.
pub struct Place {
    path: PathBuf,
    /// The directory that it is made in or as.
    scratch: PathBuf,
    is_within: bool,
    kind: Kind,
}

/// What kind of filesystem a place is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Tells of each file, when it is closed, that it had no room for it.
    Gabion,
    /// The same, but syncfs(2) does not reach its daemon.
    Unsynced,
    /// May tell it in the end only, of all files.
    Other,
}

/// A place that is being used, by nobody else.
pub struct Site {
    place: Place,
    /// Where the object is to be made.
    pub object: PathBuf,
    /// Holds the lock.
    _scratch: File,
}

impl Place {
    /// Looks whether something of a stream can be restored to `path`, for which that must be on
    /// Gabion unless `anywhere`.
    pub fn of(path: &Path, stream: StreamId, part: Part, anywhere: bool) -> Result<Self> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::of(format!("cannot restore to {shown}"), &error);
        let path = std::path::absolute(path).map_err(failed)?;
        let kind = Self::check(&path, anywhere)?;
        let number = match part {
            Part::Whole => stream.to_string(),
            Part::Below(ino) => {
                let number = crc64(&[&stream.0[..], &ino.to_le_bytes()].concat());
                format!("{number:016x}")
            }
        };
        let short = &number[..8];
        let within = path.join(format!("{RESTORING}{short}"));
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                for entry in fs::read_dir(&path).map_err(failed)? {
                    let entry = entry.map_err(failed)?.path();
                    if entry == within || entry.file_name() == Some(LOST_FOUND.as_ref()) {
                        continue;
                    }
                    let failure = Failure::new(format!("{shown} is not empty"));
                    return Err(failure.next(match is_unfinished(&entry) {
                        false => "Name a path where nothing is, or an empty directory.".to_owned(),
                        true => format!("To go on with {} there, restore the same.", {
                            entry.file_name().unwrap_or_default().display()
                        }),
                    }));
                }
                Ok(Self { path, scratch: within, is_within: true, kind })
            }
            Ok(_) => Err(is_there(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = path.file_name().ok_or_else(|| {
                    Failure::new(format!("{shown} is no name that could be given"))
                })?;
                let mut scratch = OsString::from(".");
                scratch.push(name);
                scratch.push(format!("{RESTORING}{short}"));
                let scratch = path.with_file_name(scratch);
                Ok(Self { path, scratch, is_within: false, kind })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Fails unless `path` is on Gabion, or may be `anywhere`.
    fn check(path: &Path, anywhere: bool) -> Result<Kind> {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
            return Err(is_there(path));
        }
        match mounts::of_path(path)? {
            Some(mount) if mounts::is_synced(&mount) => return Ok(Kind::Gabion),
            Some(_) => return Ok(Kind::Unsynced),
            None if anywhere => return Ok(Kind::Other),
            None => {}
        }
        let shown = path.display();
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        if let Some(parent) = parent {
            let what = format!("cannot restore to {shown}: {}", parent.display());
            match fs::metadata(parent) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(Failure::new(format!("{what} is no directory"))),
                Err(error) => return Err(Failure::of(what, &error)),
            }
        }
        Err(Failure::new(format!("{shown} is on no Gabion filesystem that is mounted"))
            .next("Mount it first, or say --to-directory if another filesystem is meant."))
    }

    /// Fails unless something can be restored to `path`, whatever it will be.
    pub fn check_path(path: &Path, anywhere: bool) -> Result<()> {
        Self::check(path, anywhere).map(drop)
    }

    /// The folder that it is in when it has its name.
    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !self.is_within => parent,
            _ => &self.path,
        }
    }

    /// Begins to restore an object here, if nobody else does. `has` says whether it has something
    /// by a name.
    pub fn begin(self, root: &Object, has: impl Fn(&str) -> bool) -> Result<Site> {
        let is_directory = root.attributes.is_directory();
        let lost_found = self.path.join(LOST_FOUND);
        if self.is_within && has(LOST_FOUND) && !may_go(&lost_found) {
            let what = format!("{} is in the way: the backup has one", lost_found.display());
            return Err(Failure::new(what).next("Empty it, or name a path where nothing is."));
        }
        if self.is_within && !is_directory {
            return Err(Failure::new(format!("{} is a directory", self.path.display()))
                .next("Name a path where nothing is for a file."));
        }
        let failed = |error: io::Error| {
            Failure::of(format!("cannot restore to {}", self.scratch.display()), &error)
        };
        // What could not be written before this began is not to be told in its end.
        let was_kept = settle(self.folder(), self.kind);
        let is_new = match DirBuilder::new().mode(0o700).create(&self.scratch) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        let scratch = locked(&self.scratch)?;
        if !is_new && was_kept.is_err() && self.kind == Kind::Other {
            // Of what was made before something may be missing, and nobody knows what.
            empty(&self.scratch).map_err(failed)?;
        }
        let name = self.path.file_name().unwrap_or(OsStr::new("restored"));
        let object = if is_directory { self.scratch.clone() } else { self.scratch.join(name) };
        Ok(Site { place: self, object, _scratch: scratch })
    }
}

/// The directory `scratch`, which was there just now, locked.
fn locked(scratch: &Path) -> Result<File> {
    let failed =
        |error: io::Error| Failure::of(format!("cannot restore to {}", scratch.display()), &error);
    let busy = || {
        let what = format!("another restoration is making {}", scratch.display());
        Failure::new(what).next("Wait until it is done, or stop it.")
    };
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    let file = match File::options().read(true).custom_flags(flags).open(scratch) {
        // Whoever had made it has given it its name.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(busy()),
        opened => opened.map_err(failed)?,
    };
    // Not every filesystem has locks, so another error is none of ours.
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    if locked == Err(Errno::WOULDBLOCK) {
        return Err(busy());
    }
    let (found, locked) = (fs::symlink_metadata(scratch), file.metadata().map_err(failed)?);
    // Where others could change something they could lead it elsewhere.
    if locked.uid() != rustix::process::geteuid().as_raw() || locked.mode() & 0o077 != 0 {
        let what = format!("{} is there, and was not made for this", scratch.display());
        return Err(Failure::new(what).next("Move it away."));
    }
    match found.is_ok_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino())) {
        true => Ok(file),
        false => Err(busy()),
    }
}

/// Why nothing can be restored to where something is.
fn is_there(path: &Path) -> Failure {
    let shown = path.display();
    let is_disk = |found: fs::Metadata| found.is_file() || found.file_type().is_block_device();
    let next = match fs::metadata(path).is_ok_and(is_disk) {
        true => format!(
            "Name a path where nothing is, or an empty directory; if that is an image or a device, \
             one in it: {shown}:/PATH"
        ),
        false => "Name a path where nothing is, or an empty directory.".to_owned(),
    };
    Failure::new(format!("{shown} is there already")).next(next)
}

fn is_unfinished(entry: &Path) -> bool {
    let name = entry.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(RESTORING.as_bytes())
}

/// Whether what a filesystem has from the start can make room for what is restored.
fn may_go(lost_found: &Path) -> bool {
    match fs::read_dir(lost_found) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes all that is in a directory.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Makes what was written in the filesystem of a folder durable.
fn settle(folder: &Path, kind: Kind) -> io::Result<()> {
    match kind {
        // What others had no room for is told to them.
        Kind::Gabion | Kind::Unsynced => mounts::hand_over(folder)?,
        Kind::Other => rustix::fs::syncfs(File::open(folder)?)?,
    }
    // Where syncfs(2) reaches nobody, at least the names.
    File::open(folder)?.sync_all()
}

impl Site {
    /// Whether the tree's root has to become a directory that is there.
    fn is_within(&self) -> bool {
        self.place.is_within
    }

    /// Who has to make the bytes of files durable.
    pub fn durability(&self) -> Durability {
        match self.place.kind {
            Kind::Unsynced => Durability::EachFile,
            Kind::Gabion | Kind::Other => Durability::InTheEnd,
        }
    }

    /// What is to be done where not all is taken.
    pub fn taking(&self) -> Taking {
        match self.place.kind {
            Kind::Gabion | Kind::Unsynced => Taking::All,
            Kind::Other => Taking::WhatItCan,
        }
    }

    /// What other restorations to the same path have left that were stopped.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let Place { path, scratch, .. } = &self.place;
        let mut begins = OsString::from(".");
        begins.push(path.file_name().unwrap_or_default());
        begins.push(RESTORING);
        let begins = begins.as_encoded_bytes();
        let entries = fs::read_dir(path.with_file_name("")).into_iter().flatten();
        let found = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|entry| {
            let name = entry.file_name().unwrap_or_default().as_encoded_bytes();
            name.starts_with(begins) && entry != scratch
        });
        found.collect()
    }

    /// Makes what was restored durable, gives it its name, and a directory what it has itself.
    /// `root` is what the tree's root is. Says what of that was not taken.
    pub fn finish(&self, root: &Object) -> Result<Losses> {
        let Place { path, scratch, kind, .. } = &self.place;
        let failed = |error: io::Error| {
            let what = format!("{} is restored, and cannot be named", scratch.display());
            Failure::of(what, &error)
        };
        let folder = self.place.folder();
        match (settle(folder, *kind), kind) {
            (Ok(()), _) => {}
            (Err(error), Kind::Gabion | Kind::Unsynced) => return Err(failed(error)),
            (Err(error), Kind::Other) => {
                // Nobody knows what of it is not there.
                let what = format!("not all of {} could be written", scratch.display());
                let failure = Failure::of(what, &error);
                return Err(match empty(scratch) {
                    Ok(()) => failure.next("It was removed: run it again."),
                    Err(_) => failure.next("Remove it, and run it again."),
                });
            }
        }
        let rename = |from: &Path, to: &Path| {
            match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                // Not every filesystem has it.
                Err(Errno::INVAL) => fs::rename(from, to).map_err(failed),
                renamed => renamed.map_err(|error| failed(error.into())),
            }
        };
        let dress =
            |path: &Path| dress(root, path, Inherited::MayBe, self.taking()).map_err(failed);
        let mut losses = Losses::default();
        if self.is_within() {
            for entry in fs::read_dir(scratch).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let to = path.join(entry.file_name());
                if entry.file_name() == LOST_FOUND {
                    // Where it is not empty the renaming says so.
                    let _ = fs::remove_dir(&to);
                }
                rename(&entry.path(), &to)?;
            }
            fs::remove_dir(scratch).map_err(failed)?;
            losses = dress(path)?;
        } else if self.object == *scratch {
            losses = dress(scratch)?;
            rename(scratch, path).inspect_err(|_| {
                // Who goes on with it is to know that nobody else could look into it.
                let _ = fs::set_permissions(scratch, fs::Permissions::from_mode(0o700));
                let own = rustix::process::geteuid().as_raw();
                let _ = lchown(scratch, Some(own), None);
            })?;
        } else {
            rename(&self.object, path)?;
            fs::remove_dir(scratch).map_err(failed)?;
        }
        settle(folder, *kind).map_err(failed)?;
        Ok(losses)
    }
}
