//! Where a restored tree goes. It is made under a name that nobody takes for a whole one, and gets
//! its own when it is complete.
//!
//! ```text
//!   nothing is at PATH             made in .NAME.restoring-STREAM beside it, then renamed
//!   an empty directory is there    made in .restoring-STREAM in it, then moved up entry by entry;
//!                                  as long as that directory is there, it is not complete
//! ```
//!
//! Where it is not all of the stream that is restored, another number stands in place of STREAM, so
//! that nobody goes on with what is to become something else.
//!
//! Who is stopped can go on: what has been made in there is kept, as far as it is whole. It is
//! locked meanwhile, as two could not tell what of it the other one is just making. Nobody but its
//! user can reach into it, also when the tree has its owner and its permissions already. While
//! entries are moved up it has the sticky bit, as from then on nothing is made any more.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gabion_backup::{Object, StreamId};
use gabion_base::checksum::crc64;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::dress::{Inherited, Taking, dress, strip};
use super::losses::Losses;
use super::rebuild::Durability;
use crate::failure::{Failure, Result};
use crate::mounts;
use crate::reach::Reached;
use crate::scratch::{self, Refused, Scratch};

/// Permissions of the directory that it is made in once it is only to be moved up.
const MOVING: u32 = 0o1000;

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
    /// What it is in when it has its name, and what it is made in before.
    folder: File,
    /// What that is called, and where people find it.
    name: OsString,
    scratch: PathBuf,
    is_within: bool,
    /// Something else is within already.
    is_filled: bool,
    /// All of it was made before and was just being moved up.
    is_moving: bool,
    kind: Kind,
    stream: StreamId,
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
    scratch: Scratch,
    /// Where the object is to be made, in there.
    pub object: PathBuf,
    /// All of it was made before, and is durable.
    pub is_made: bool,
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
        let restoring = format!("{RESTORING}{}", &number[..8]);
        let open = |folder: &Path, flags: OFlags| {
            let flags = (OFlags::DIRECTORY | flags).bits() as i32;
            File::options().read(true).custom_flags(flags).open(folder)
        };
        let (mut is_within, mut is_filled, mut is_moving) = (false, false, false);
        let (folder, name, scratch) = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let folder = open(&path, OFlags::NOFOLLOW).map_err(failed)?;
                let name = OsString::from(restoring);
                let mut others = Vec::new();
                for entry in fs::read_dir(scratch::path_of(&folder)).map_err(failed)? {
                    let entry = entry.map_err(failed)?.file_name();
                    if entry != name && entry != LOST_FOUND {
                        others.push(entry);
                    }
                }
                is_within = true;
                is_filled = !others.is_empty();
                is_moving = Scratch::find(&folder, &name).is_some_and(|mode| mode & MOVING > 0);
                if is_filled && !is_moving {
                    return Err(filled(&path, &others));
                }
                let scratch = path.join(&name);
                (folder, name, scratch)
            }
            Ok(_) => return Err(is_there(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(last)) = (path.parent(), path.file_name()) else {
                    let what = format!("{shown} is no name that could be given");
                    return Err(Failure::new(what));
                };
                let folder = open(parent, OFlags::empty()).map_err(|error| {
                    Failure::of(format!("cannot restore to {shown}: {}", parent.display()), &error)
                })?;
                let mut name = OsString::from(".");
                name.push(last);
                name.push(restoring);
                let scratch = path.with_file_name(&name);
                (folder, name, scratch)
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, folder, name, scratch, is_within, is_filled, is_moving, kind, stream })
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

    /// Begins to restore an object here, if nobody else does. `has` says whether it has something
    /// by a name.
    pub fn begin(self, root: &Object, has: impl Fn(&str) -> bool) -> Result<Site> {
        if self.is_within && !root.attributes.is_directory() {
            return Err(Failure::new(format!("{} is a directory", self.path.display()))
                .next("Name a path where nothing is for a file."));
        }
        let lost_found = self.path.join(LOST_FOUND);
        if self.is_within && !self.is_moving && has(LOST_FOUND) && !may_go(&lost_found) {
            let what = format!("{} is in the way: the backup has one", lost_found.display());
            return Err(Failure::new(what).next("Empty it, or name a path where nothing is."));
        }
        let shown = self.scratch.display();
        let failed = |error: io::Error| Failure::of(format!("cannot restore to {shown}"), &error);
        // What could not be written before this began is not to be told in its end.
        let was_kept = settle(&self.folder, self.kind);
        let scratch =
            Scratch::claim(&self.folder, &self.name).map_err(|refused| match refused {
                Refused::Busy => Failure::new(format!("another restoration is making {shown}"))
                    .next("Wait until it is done, or stop it."),
                Refused::Foreign => Failure::new(format!(
                    "{shown} is there, and others could have changed what is in it"
                ))
                .next("Remove it, or restore to another path."),
                Refused::Io(error) => failed(error),
            })?;
        // What is made in it would inherit that.
        strip(&scratch.path()).map_err(failed)?;
        let mode = scratch.folder().metadata().map_err(failed)?.mode();
        let is_made = self.is_within && mode & MOVING != 0;
        if self.is_filled && !is_made {
            return Err(filled(&self.path, &[]));
        }
        let object = PathBuf::from(format!("{}-{}", self.stream, root.ino));
        if scratch.names().map_err(failed)?.iter().any(|name| *name != *object) {
            return Err(Failure::new(format!("{shown} has something else in it"))
                .next("Go on with what was restored there, or remove it."));
        }
        if scratch.is_found && !is_made && was_kept.is_err() && self.kind == Kind::Other {
            // Of what was made before something may be missing, and nobody knows what.
            scratch.empty().map_err(failed)?;
        }
        Ok(Site { place: self, scratch, object, is_made })
    }
}

/// Why nothing can be restored to a directory that has something in it.
fn filled(path: &Path, others: &[OsString]) -> Failure {
    let is_unfinished = |name: &&OsString| {
        let name = name.as_encoded_bytes();
        name.starts_with(RESTORING.as_bytes())
    };
    let next = match others.iter().find(is_unfinished) {
        None => "Name a path where nothing is, or an empty directory.".to_owned(),
        Some(name) => format!("To go on with {} there, restore the same.", name.display()),
    };
    Failure::new(format!("{} is not empty", path.display())).next(next)
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

/// Whether what a filesystem has from the start can make room for what is restored.
fn may_go(lost_found: &Path) -> bool {
    match fs::read_dir(lost_found) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Makes what was written in the filesystem of a folder durable.
fn settle(folder: &File, kind: Kind) -> io::Result<()> {
    match kind {
        // What others had no room for is told to them.
        Kind::Gabion | Kind::Unsynced => mounts::hand_over(&scratch::path_of(folder))?,
        Kind::Other => rustix::fs::syncfs(folder)?,
    }
    // Where syncfs(2) reaches nobody, at least the names.
    folder.sync_all()
}

impl Site {
    /// What is at a path in the directory that it is made in.
    pub fn reach<'p>(&'p self, path: &'p Path) -> io::Result<Reached<'p>> {
        self.scratch.reach(path)
    }

    /// Where that will be.
    pub fn shown(&self, path: &Path) -> PathBuf {
        let within = path.strip_prefix(&self.object).unwrap_or(path);
        self.place.path.components().chain(within.components()).collect()
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

    /// Makes what was restored durable and gives it its name. `root` is what the tree's root is.
    /// Says what a directory that was there before has not taken of that.
    pub fn finish(self, root: &Object) -> Result<Losses> {
        let Place { path, folder, scratch: shown, kind, .. } = &self.place;
        let shown = shown.display();
        let failed = |error: io::Error| {
            let what = format!("what is restored in {shown} cannot be named {}", path.display());
            Failure::of(what, &error)
        };
        match (settle(folder, *kind), kind) {
            (Ok(()), _) => {}
            (Err(error), Kind::Other) if !self.is_made => {
                // Nobody knows what of it is not there.
                let failure = Failure::of(format!("not all of {shown} could be written"), &error);
                return Err(match self.scratch.empty() {
                    Ok(()) => failure.next("What was in it is removed: run it again."),
                    Err(_) => failure.next("Remove it, and run it again."),
                });
            }
            (Err(error), _) => return Err(failed(error)),
        }
        let mut losses = Losses::default();
        if self.place.is_within {
            let lost = self.move_up(root).map_err(failed)?;
            if self.is_made {
                // Else it was told when the root was made.
                losses = lost;
            }
        } else {
            let name = path.file_name().unwrap_or(OsStr::new("restored"));
            scratch::put((self.scratch.folder(), self.object.as_os_str()), (folder, name))
                .map_err(failed)?;
        }
        let taking = self.taking();
        let removed = self.scratch.remove();
        if self.place.is_within {
            // That it was there, too.
            let path = scratch::path_of(folder);
            dress(root, &path, Inherited::MayBe, taking).map_err(failed)?;
        }
        settle(folder, *kind).map_err(failed)?;
        removed.map_err(|error| {
            let what = format!("{} is restored, and {shown} is still there", path.display());
            Failure::of(what, &error).next("Remove it, if it is empty.")
        })?;
        Ok(losses)
    }

    /// Moves what is in the tree's root to the directory that is to be it.
    fn move_up(&self, root: &Object) -> io::Result<Losses> {
        let (folder, scratch) = (&self.place.folder, self.scratch.folder());
        let mode = scratch.metadata()?.mode() & 0o7777;
        // Where that cannot be set, only who is killed from here on cannot go on.
        let _ = rustix::fs::fchmod(scratch, Mode::from_raw_mode(mode | MOVING));
        let object = self.object.as_os_str();
        // What it has is taken out of it, whatever it allows.
        match rustix::fs::chmodat(scratch, object, Mode::RWXU, AtFlags::empty()) {
            Ok(()) => {
                let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(scratch, object, flags, Mode::empty())?.into();
                for entry in fs::read_dir(scratch::path_of(&inner))? {
                    let name = entry?.file_name();
                    if name == LOST_FOUND {
                        // Where it is not empty the renaming says so.
                        let _ = rustix::fs::unlinkat(folder, &name, AtFlags::REMOVEDIR);
                    }
                    scratch::put((&inner, &name), (folder, &name))?;
                }
                rustix::fs::unlinkat(scratch, object, AtFlags::REMOVEDIR)?;
            }
            // It was removed before.
            Err(Errno::NOENT) if self.is_made => {}
            Err(error) => return Err(error.into()),
        }
        dress(root, &scratch::path_of(folder), Inherited::MayBe, self.taking())
    }
}
