//! Makes files of a chain of streams.
//!
//! ```text
//!   one thread   walks the tree and makes directories   (when all that is done) links further
//!                                                       names, gives directories their attributes
//!   others       make what is in them, one object each
//! ```
//!
//! Directories get their attributes last, the inner ones first: what is made in them would change
//! their times. Until then nobody else can look into them. A file gets its time of change when it
//! is whole; so one that has it, and its size, is not made a second time by who goes on after it
//! was stopped.

mod segments;
mod sharing;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use gabion_backup::{Object, Tree};
use gabion_base::sync::Mutex;
use gabion_host::closing;

use self::segments::Segments;
use self::sharing::Sharing;
use super::chain::Chain;
use super::dress::{Inherited, Taking, dress, make_node, own, strip};
use super::losses::Losses;
use super::place::Site;
use super::progress::Progress;
use crate::failure::{Failure, Result};
use crate::print;

/// Threads that make files: each waits for the filesystem most of the time.
const MAKERS: usize = 8;
/// Files that wait for one of them.
const WAITING: usize = 256;

/// When bytes of files have to be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Whoever names the tree does it for all of them.
    InTheEnd,
    /// With each file, as nothing does it for all.
    EachFile,
}

/// A restoration under way.
pub struct Rebuilding<'c> {
    site: &'c Site,
    tree: &'c Tree,
    progress: &'c Progress,
    segments: Segments<'c>,
    sharing: Sharing<'c>,
    /// What the filesystem has not taken.
    lost: Mutex<Losses>,
    /// The first thing that went wrong.
    failure: Mutex<Option<Failure>>,
    has_failed: AtomicBool,
}

/// An object that is to be made, where at the site, and what it may have there that nobody gave to
/// it.
type Task<'t> = (&'t Object, PathBuf, Inherited);

impl<'c> Rebuilding<'c> {
    /// Prepares to make files of `tree`, the tree of `chain`, at `site`.
    pub fn new(chain: &'c Chain, tree: &'c Tree, progress: &'c Progress, site: &'c Site) -> Self {
        Self {
            site,
            tree,
            progress,
            segments: Segments::new(chain),
            sharing: Sharing::new(tree, site),
            lost: Mutex::new(Losses::default()),
            failure: Mutex::new(None),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Makes the object `ino` and all below it, where nothing is, or what was made before.
    pub fn run(self, ino: u64) -> Result<Losses> {
        let mut dirs = Vec::new();
        let mut links = Vec::new();
        thread::scope(|scope| {
            let (tasks, taken) = bounded::<Task<'_>>(WAITING);
            for _ in 0..MAKERS {
                let (taken, this) = (taken.clone(), &self);
                let make = move || taken.into_iter().for_each(|task| this.serve(task));
                let started =
                    thread::Builder::new().name("make".to_owned()).spawn_scoped(scope, make);
                started.map_err(|error| Failure::of("cannot start a thread", &error))?;
            }
            // When the tasks go, so do the threads.
            self.walk(ino, &self.site.object, &tasks, &mut dirs, &mut links)
        })?;
        if let Some(failure) = self.failure.lock().take() {
            return Err(failure);
        }
        for (object, first, path) in links {
            self.link(object, &first, &path).map_err(|error| self.unmade(&path, error))?;
        }
        for (object, path) in dirs.into_iter().rev() {
            let dressed = self.dress(object, &path, Inherited::MayBe);
            dressed.map_err(|error| self.unmade(&path, error))?;
        }
        Ok(self.lost.into_inner())
    }

    /// Makes the directories, and tasks of all else. Second names of objects are left in `links`,
    /// each behind a first one.
    fn walk(
        &self,
        ino: u64,
        path: &Path,
        tasks: &Sender<Task<'c>>,
        dirs: &mut Vec<(&'c Object, PathBuf)>,
        links: &mut Vec<(&'c Object, PathBuf, PathBuf)>,
    ) -> Result<()> {
        // The first name of each object that has several.
        let mut made: HashMap<u64, PathBuf> = HashMap::new();
        let mut waiting = vec![(ino, path.to_owned())];
        while let Some((ino, path)) = waiting.pop() {
            if self.has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let object = self.tree.object(ino).map_err(senseless)?;
            let is_first = dirs.is_empty();
            if !object.attributes.is_directory() {
                if let Some(first) = made.get(&ino) {
                    links.push((object, first.clone(), path));
                    continue;
                }
                if self.tree.is_linked(ino) {
                    made.insert(ino, path.clone());
                }
                let inherited = if is_first { Inherited::MayBe } else { Inherited::Nothing };
                // They take tasks for as long as this is there.
                let _ = tasks.send((object, path, inherited));
                continue;
            }
            let made = self.site.reach(&path).and_then(|path| directory(&path, is_first));
            made.map_err(|error| self.unmade(&path, error.into()))?;
            let names: Vec<_> = self.tree.names(ino).collect();
            for (name, ino) in names.into_iter().rev() {
                waiting.push((ino, path.join(OsStr::from_bytes(name))));
            }
            dirs.push((object, path));
        }
        Ok(())
    }

    fn serve(&self, (object, path, inherited): Task<'_>) {
        if self.has_failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.make(object, &path, inherited) {
            self.failure.lock().get_or_insert_with(|| self.unmade(&path, error));
            self.has_failed.store(true, Ordering::Relaxed);
        }
    }

    fn make(
        &self,
        object: &Object,
        path: &Path,
        inherited: Inherited,
    ) -> std::result::Result<(), Unmade> {
        match self.begin(object, path, inherited) {
            Err(Unmade::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        let reached = self.site.reach(path)?;
        if is_whole(object, &fs::symlink_metadata(&reached)?) {
            let bytes = self.tree.parts(object.ino).map(|(_, part)| u64::from(part.length));
            self.progress.advance(bytes.sum());
            return Ok(());
        }
        fs::remove_file(&reached)?;
        self.begin(object, path, inherited)
    }

    /// Makes an object where nothing is.
    fn begin(
        &self,
        object: &Object,
        path: &Path,
        inherited: Inherited,
    ) -> std::result::Result<(), Unmade> {
        if object.attributes.is_file() {
            self.file(object, path, inherited)?;
            return self.dress(object, path, inherited);
        }
        let reached = self.site.reach(path)?;
        let made = match object.attributes.is_symlink() {
            true => std::os::unix::fs::symlink(OsStr::from_bytes(&object.target), &reached),
            false => make_node(&object.attributes, &reached),
        };
        match made {
            Err(error) if self.site.taking().forgives(&error) => {
                *self.lost.lock() += Losses { nodes: 1, ..Losses::default() };
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(()) => self.dress(object, path, inherited),
        }
    }

    fn file(
        &self,
        object: &Object,
        path: &Path,
        inherited: Inherited,
    ) -> std::result::Result<(), Unmade> {
        // Nobody looks into a directory that is not complete; others may see what stands alone.
        let mode = match inherited {
            Inherited::Nothing => object.attributes.mode & 0o777,
            Inherited::MayBe => 0o600,
        };
        let reached = self.site.reach(path)?;
        let file = File::options().write(true).create_new(true).mode(mode).open(&reached)?;
        // Before there are bytes, which a change of the owner would have written first.
        own(&object.attributes, &reached, self.site.taking())?;
        let mut end = 0;
        for (at, part) in self.tree.parts(object.ino) {
            let write = || {
                let bytes = self.segments.get(part.stream, part.segment)?;
                let (from, length) = (part.at as usize, part.length as usize);
                Ok(file.write_all_at(&bytes[from..from + length], at)?)
            };
            self.sharing.put(&part, (&file, path, at), write)?;
            end = at + u64::from(part.length);
            self.progress.advance(part.length.into());
        }
        if end != object.attributes.size {
            file.set_len(object.attributes.size)?;
        }
        if self.site.durability() == Durability::EachFile {
            file.sync_data()?;
        }
        // Where the kernel collects writes, it says now that there was no room for them. Only then
        // may the file get its time: who goes on takes it for whole by that.
        Ok(closing::close(file)?)
    }

    fn dress(
        &self,
        object: &Object,
        path: &Path,
        inherited: Inherited,
    ) -> std::result::Result<(), Unmade> {
        let lost = dress(object, &self.site.reach(path)?, inherited, self.site.taking())?;
        *self.lost.lock() += lost;
        Ok(())
    }

    /// Gives an object that is at `first` a further name.
    fn link(&self, object: &Object, first: &Path, path: &Path) -> std::result::Result<(), Unmade> {
        let (reached, taking) = (self.site.reach(first)?, self.site.taking());
        let error = match link(&reached, &self.site.reach(path)?) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            // The object itself was left out.
            io::ErrorKind::NotFound
                if taking == Taking::WhatItCan && fs::symlink_metadata(&reached).is_err() => {}
            io::ErrorKind::TooManyLinks if taking == Taking::WhatItCan => {
                self.make(object, path, Inherited::Nothing)?;
            }
            _ if taking.forgives(&error) => self.make(object, path, Inherited::Nothing)?,
            _ => return Err(error.into()),
        }
        *self.lost.lock() += Losses { links: 1, ..Losses::default() };
        Ok(())
    }

    fn unmade(&self, path: &Path, error: Unmade) -> Failure {
        let error = match error {
            Unmade::Stream(failure) => return failure,
            Unmade::Io(error) => error,
        };
        let what = format!("cannot restore {}", print::path(&self.site.shown(path)));
        let failure = Failure::of(what, &error);
        match error.kind() {
            io::ErrorKind::PermissionDenied => failure.next("Only root can give files to others."),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.next("Make room, and run it again: it goes on.")
            }
            _ => failure,
        }
    }
}

/// Makes a directory that only its owner may look into, unless it was made before. What the first
/// one has inherited goes: what is made in it would inherit that, too.
fn directory(path: &Path, is_first: bool) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) if !is_first => Ok(()),
        Ok(()) => strip(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // It may have what it is to have in the end, which may keep its owner out.
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            strip(path)
        }
        Err(error) => Err(error),
    }
}

/// Makes `path` a name of what is at `first`, unless it is one already.
fn link(first: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(first, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        linked => return linked,
    }
    let identity = |path: &Path| {
        let found = fs::symlink_metadata(path)?;
        Ok::<_, io::Error>((found.dev(), found.ino()))
    };
    if identity(first)? == identity(path)? {
        return Ok(());
    }
    // One that was stopped has linked what had to be made once more.
    fs::remove_file(path)?;
    fs::hard_link(first, path)
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
