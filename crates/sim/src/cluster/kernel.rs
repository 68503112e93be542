//! The kernel of a client: what it keeps, what it asks for, and what it forgets when it is told.
//!
//! Each method is a system call. It does what Linux's FUSE does, as far as caches are concerned:
//!
//! - Names and attributes are kept if the filesystem says that they may be, until it is told
//!   otherwise or changes them itself. An answer to a question that was asked before that is used
//!   and not kept.
//! - Who changes names of a directory has the directory to himself; who looks a name up that is
//!   not kept shares it. Who appends to a file or changes its attributes has the file to himself.
//! - A page is locked while it is read. Dropping it waits for that.
//! - Files that are written are written past the pages.
//! - A request is answered when the kernel has done with it what it does.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::sync::RwLock;
use gabion_base::time::Timestamp;
use gabion_fs::{
    Access, Attributes, Caller, Changes, Detail, Disposition, Error, IfExists, IfTaken, Leave,
    OpenRequest, Privileges, RenameRequest, Result, SpaceRequest, Trust, WriteAt,
};
use gabion_map::{FileId, MapError, Payload, Stop};
use gabion_node::remote::RemoteFs;
use gabion_node::{Filesystem, Kept};

use super::Sabotage;
use super::baton::Baton;
use super::client::Traits;
use super::directories::{Directories, Names};

mod copying;
mod forgetting;
mod locks;
mod snapshots;
mod xattrs;

/// Where threads wait for pages of kernels, from this place on.
const PLACES: usize = 500;
/// Where they wait for locks, from this place on.
const LOCK_PLACES: usize = 600;
/// How long a thread waits for a page or a lock before it looks again.
const LOOK: Duration = Duration::from_secs(1);
const PAGE: u64 = BLOCK_SIZE as u64;
const ENTRIES_MAX: usize = 1000;
/// How long a program may stand still in the kernel, in microseconds.
const PAUSE_MAX: u64 = 400;
/// Entries of a listing that are no names.
const DOTS: usize = 2;

/// A page of a file.
type PageKey = (FileId, u64);

#[derive(Clone)]
enum Page {
    Locked,
    There(Arc<Vec<u8>>),
}

/// How often objects' attributes changed or were forgotten.
#[derive(Clone, Default)]
struct Versions {
    /// How often all objects became others.
    era: u64,
    of: BTreeMap<FileId, u64>,
}

impl Versions {
    fn get(&self, file: FileId) -> (u64, u64) {
        (self.era, self.of.get(&file).copied().unwrap_or(0))
    }
}

#[derive(Default)]
struct Caches {
    epoch: u64,
    names: BTreeMap<(FileId, Vec<u8>), Option<FileId>>,
    attributes: BTreeMap<FileId, Attributes>,
    versions: Versions,
    pages: BTreeMap<PageKey, Page>,
    /// What no kernel keeps, but a broken one.
    xattrs: BTreeMap<(FileId, Vec<u8>), Vec<u8>>,
    directories: Directories,
}

impl Caches {
    fn version(&self, file: FileId) -> (u64, u64) {
        self.versions.get(file)
    }

    fn forget_attributes(&mut self, file: FileId) {
        *self.versions.of.entry(file).or_default() += 1;
        self.attributes.remove(&file);
    }
}

/// One client's kernel.
pub struct Kernel {
    baton: Arc<Baton>,
    place: usize,
    /// Where threads wait for locks.
    locks: usize,
    traits: Traits,
    /// Of the positions of names.
    seed: u64,
    /// Whether it has to forget at once.
    is_in_haste: AtomicBool,
    sabotage: Sabotage,
    caches: Mutex<Caches>,
    /// The locks of directories and files.
    objects: Mutex<BTreeMap<FileId, Arc<RwLock<()>>>>,
}

impl Kernel {
    /// That of `client`.
    pub fn new(
        baton: Arc<Baton>,
        client: usize,
        (traits, seed): (Traits, u64),
        sabotage: Sabotage,
    ) -> Self {
        let (is_in_haste, caches, objects) = Default::default();
        let (place, locks) = (PLACES + client, LOCK_PLACES + client);
        Self { baton, place, locks, traits, seed, is_in_haste, sabotage, caches, objects }
    }

    fn caches(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others may go on here.
    fn pause(&self) {
        self.baton.sleep(Duration::from_micros(self.baton.draw(PAUSE_MAX)));
    }

    fn object(&self, file: FileId) -> Arc<RwLock<()>> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(objects.entry(file).or_default())
    }
}

/// A mount: the kernel's system calls on one filesystem.
pub struct Mount {
    /// The filesystem.
    pub fs: Arc<RemoteFs>,
    /// The kernel.
    pub kernel: Arc<Kernel>,
}

/// Somebody whose kernel has checked permissions.
fn caller() -> Caller {
    Caller { trust: Trust::CheckedByKernel, ..Caller::superuser() }
}

/// What the kernel knew when it asked.
struct Asked {
    epoch: u64,
    version: (u64, u64),
}

impl Mount {
    fn asked(&self, file: Option<FileId>) -> Asked {
        let caches = self.kernel.caches();
        let version = file.map_or((caches.versions.era, 0), |file| caches.version(file));
        Asked { epoch: caches.epoch, version }
    }

    /// Keeps a name, if that is allowed and nothing has changed since it was asked for.
    fn keep_name(&self, dir: FileId, name: &[u8], found: Option<FileId>, asked: &Asked) {
        let is_kept = self.fs.is_kept(Kept::Name { dir, name });
        let mut caches = self.kernel.caches();
        match is_kept && caches.epoch == asked.epoch {
            true => caches.names.insert((dir, name.to_vec()), found),
            false => caches.names.remove(&(dir, name.to_vec())),
        };
    }

    /// The same for attributes. Of objects that were not known before, any version will do.
    fn keep_attributes(&self, found: &Attributes, version: (u64, u64)) {
        let file = found.file;
        let is_kept = self.fs.is_kept(Kept::Attributes(file));
        let mut caches = self.kernel.caches();
        if is_kept && caches.version(file) == version {
            caches.attributes.insert(file, found.clone());
        } else {
            caches.attributes.remove(&file);
        }
    }

    /// The kernel has changed names of the directory itself.
    fn changed(&self, files: &[FileId]) {
        let mut caches = self.kernel.caches();
        for file in files {
            caches.forget_attributes(*file);
            caches.directories.changed(*file);
        }
    }

    /// Versions of everything, for answers that tell of objects that were not asked for.
    fn versions(&self) -> Versions {
        self.kernel.caches().versions.clone()
    }

    fn find(&self, dir: FileId, name: &[u8]) -> Result<Option<FileId>> {
        if let Some(found) = self.kernel.caches().names.get(&(dir, name.to_vec())) {
            return Ok(*found);
        }
        let (asked, versions) = (self.asked(None), self.versions());
        let found = match self.fs.lookup(&caller(), dir, name) {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        };
        if let Ok(found) = &found {
            self.keep_name(dir, name, found.as_ref().map(|found| found.file), &asked);
        }
        if let Ok(Some(found)) = &found {
            self.keep_attributes(found, versions.get(found.file));
        }
        self.fs.answered();
        Ok(found?.map(|found| found.file))
    }

    /// What a name stands for.
    pub fn lookup(&self, dir: FileId, name: &[u8]) -> Result<Option<FileId>> {
        if let Some(found) = self.kernel.caches().names.get(&(dir, name.to_vec())) {
            return Ok(*found);
        }
        let object = self.kernel.object(dir);
        let _shared = object.read();
        self.find(dir, name)
    }

    /// Makes and opens a file, or opens what is there.
    pub fn create(
        &self,
        dir: FileId,
        name: &[u8],
        if_exists: IfExists,
    ) -> Result<(FileId, Disposition)> {
        let object = self.kernel.object(dir);
        let _own = object.write();
        let (asked, versions) = (self.asked(None), self.versions());
        let request = OpenRequest { access: Access::EXISTS, truncate: None };
        let made = self.fs.create(&caller(), dir, name, 0o644, if_exists, &request);
        match &made {
            Ok((made, _)) => {
                self.keep_name(dir, name, Some(made.file), &asked);
                self.changed(&[dir]);
                self.keep_attributes(made, versions.get(made.file));
            }
            Err(error) => self.doubt(error, dir, name),
        }
        self.fs.answered();
        made.map(|(made, disposition)| (made.file, disposition))
    }

    /// The kernel forgets names that turn out to be, or not to be.
    fn doubt(&self, error: &Error, dir: FileId, name: &[u8]) {
        if matches!(error, Error::Exists | Error::NotFound | Error::Interrupted) {
            self.kernel.caches().names.remove(&(dir, name.to_vec()));
        }
    }

    /// Gives a file one more name.
    pub fn link(&self, file: FileId, dir: FileId, name: &[u8]) -> Result<()> {
        let object = self.kernel.object(dir);
        let _own = object.write();
        if self.find(dir, name)?.is_some() {
            return Err(Error::Exists);
        }
        let asked = self.asked(Some(file));
        let linked = self.fs.link(&caller(), file, dir, name);
        match &linked {
            Ok(linked) => {
                self.keep_name(dir, name, Some(linked.file), &asked);
                self.changed(&[dir]);
                self.keep_attributes(linked, asked.version);
            }
            Err(error) => self.doubt(error, dir, name),
        }
        self.fs.answered();
        linked.map(drop)
    }

    /// Takes a file's name away.
    pub fn unlink(&self, dir: FileId, name: &[u8]) -> Result<()> {
        let object = self.kernel.object(dir);
        let _own = object.write();
        let Some(found) = self.find(dir, name)? else { return Err(Error::NotFound) };
        let removed = self.fs.unlink(&caller(), dir, name);
        match &removed {
            Ok(()) => {
                self.kernel.caches().names.remove(&(dir, name.to_vec()));
                self.changed(&[dir, found]);
            }
            Err(error) => self.doubt(error, dir, name),
        }
        self.fs.answered();
        removed
    }

    /// Gives a file another name. False: both names seem to be of one file, so nothing is to be
    /// done; but they were not looked up at the same moment.
    pub fn rename(
        &self,
        (from_dir, from): (FileId, &[u8]),
        (to_dir, to): (FileId, &[u8]),
        if_taken: IfTaken,
    ) -> Result<bool> {
        let objects = [from_dir.min(to_dir), from_dir.max(to_dir)];
        let objects = objects.map(|dir| self.kernel.object(dir));
        let _first = objects[0].write();
        let _second = (from_dir != to_dir).then(|| objects[1].write());
        let Some(source) = self.find(from_dir, from)? else { return Err(Error::NotFound) };
        let target = self.find(to_dir, to)?;
        if target.is_some() && if_taken == IfTaken::Fail {
            return Err(Error::Exists);
        }
        if target == Some(source) {
            return Ok(false);
        }
        let renamed = self.fs.rename(
            &caller(),
            &RenameRequest {
                source_parent: from_dir,
                source_name: from,
                target_parent: to_dir,
                target_name: to,
                if_taken,
                leave: Leave::Nothing,
            },
        );
        match &renamed {
            Ok(()) => {
                // What was kept moves along in the kernel, which asks again all the same.
                let mut caches = self.kernel.caches();
                caches.names.remove(&(from_dir, from.to_vec()));
                caches.names.remove(&(to_dir, to.to_vec()));
                drop(caches);
                self.changed(&[from_dir, to_dir, source]);
                self.changed(&target.into_iter().collect::<Vec<_>>());
            }
            Err(error) => {
                self.doubt(error, from_dir, from);
                self.doubt(error, to_dir, to);
            }
        }
        self.fs.answered();
        renamed.map(|()| true)
    }

    /// All names of a directory.
    pub fn list(&self, dir: FileId, detail: Detail) -> Result<Names> {
        let object = self.kernel.object(dir);
        let _shared = object.read();
        let modified = match self.kernel.sabotage {
            Sabotage::KernelKeepsListings => Timestamp::default(),
            _ => self.stat(dir)?.mtime,
        };
        if let Some(kept) = self.kernel.caches().directories.begin(dir, modified) {
            return Ok(kept);
        }
        let (asked, versions) = (self.asked(None), self.versions());
        let listing = self.fs.readdir(&caller(), dir, 0, ENTRIES_MAX, detail);
        self.fs.record_reading(&caller(), dir);
        let mut found = Vec::new();
        let entries = listing.as_ref().map_or(&[][..], |listing| &listing.entries);
        // The first two are the directory itself and its parent.
        for entry in entries.iter().skip(DOTS) {
            let file = self.fs.file(entry.ino);
            if let Some(attributes) = &entry.attributes {
                self.keep_name(dir, entry.name(), Some(file), &asked);
                self.keep_attributes(attributes, versions.get(file));
            }
            found.push((entry.name().to_vec(), file));
        }
        // What was told counts as told before the kernel has made use of it.
        self.fs.answered();
        let end = listing?.entries.last().map_or(0, |entry| entry.cookie);
        self.kernel.pause();
        let mut caches = self.kernel.caches();
        if caches.versions.era == versions.era {
            caches.directories.collect(dir, &found, end);
        }
        drop(caches);
        self.end_listing(dir, end, versions.era)?;
        Ok(found)
    }

    /// Hears of a directory's end.
    fn end_listing(&self, dir: FileId, end: u64, era: u64) -> Result<()> {
        let rest = self.fs.readdir(&caller(), dir, end, ENTRIES_MAX, Detail::Names);
        let is_end = rest.as_ref().is_ok_and(|rest| rest.entries.is_empty());
        let is_kept = is_end && self.fs.is_kept(Kept::Listing(dir));
        self.fs.answered();
        self.kernel.pause();
        let mut caches = self.kernel.caches();
        if is_kept && caches.versions.era == era {
            caches.directories.end(dir, end);
        }
        drop(caches);
        rest.map(drop)
    }

    /// An object's attributes.
    pub fn stat(&self, file: FileId) -> Result<Attributes> {
        if let Some(found) = self.kernel.caches().attributes.get(&file) {
            return Ok(found.clone());
        }
        let asked = self.asked(Some(file));
        let found = self.fs.stat(file);
        if let Ok(found) = &found {
            self.keep_attributes(found, asked.version);
        }
        self.fs.answered();
        found
    }

    /// Opens a file that was found.
    pub fn open(&self, file: FileId) -> Result<()> {
        let request = OpenRequest { access: Access::EXISTS, truncate: None };
        let opened = self.fs.open_file(&caller(), file, &request);
        self.fs.answered();
        opened.map(drop)
    }

    /// Closes it.
    pub fn close(&self, file: FileId) {
        self.fs.release(file);
        self.fs.answered();
    }

    /// Changes attributes.
    pub fn setattr(&self, file: FileId, changes: &Changes) -> Result<()> {
        let object = self.kernel.object(file);
        let _own = object.write();
        let changed = self.fs.setattr(&caller(), file, changes);
        if let Ok(found) = &changed {
            let version = {
                let mut caches = self.kernel.caches();
                caches.forget_attributes(file);
                caches.version(file)
            };
            self.keep_attributes(found, version);
        }
        self.fs.answered();
        changed.map(drop)
    }

    /// Sets space aside for a file, or takes it away.
    pub fn reserve(
        &self,
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let object = self.kernel.object(file);
        let _own = object.write();
        let keep = Privileges::Keep;
        let reserved = self.fs.fallocate(&caller(), file, request, offset, length, keep);
        if reserved.is_ok() {
            self.changed(&[file]);
        }
        self.fs.answered();
        reserved
    }

    /// Writes past the pages; where, if the end is meant.
    pub fn write(&self, file: FileId, at: WriteAt, bytes: &[u8]) -> Result<u64> {
        let object = self.kernel.object(file);
        let is_inside = match at {
            WriteAt::End => false,
            WriteAt::Offset(offset) => {
                let kept = self.kernel.caches().attributes.get(&file).map(|found| found.size);
                kept.is_some_and(|size| offset + bytes.len() as u64 <= size)
            }
        };
        let _shared = is_inside.then(|| object.read());
        let _own = (!is_inside).then(|| object.write());
        if self.kernel.sabotage == Sabotage::ImaginaryFullness && self.kernel.baton.draw(20) == 0 {
            return Err(Error::Stop(Stop::Map(MapError::NoSpace)));
        }
        let payload = Payload::Copied(bytes);
        let written = self.fs.write(&caller(), file, at, &payload, Privileges::Keep);
        if written.is_ok() {
            self.changed(&[file]);
        }
        self.fs.answered();
        written.map(|written| written.offset)
    }

    /// Reads past the pages.
    pub fn read_now(&self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let read = self.fs.read_now(&caller(), file, offset, &mut bytes);
        self.fs.record_reading(&caller(), file);
        self.fs.answered();
        // What is behind the end counts as zeros.
        read.map(|_| bytes)
    }

    /// A page, read together with those behind it, up to `ahead` of them, if it is not there.
    pub fn read_page(&self, file: FileId, page: u64, ahead: u64) -> Result<Arc<Vec<u8>>> {
        let (count, era) = loop {
            let mut caches = self.kernel.caches();
            match caches.pages.get(&(file, page)) {
                Some(Page::There(bytes)) => return Ok(Arc::clone(bytes)),
                Some(Page::Locked) => {}
                None => {
                    let is_absent = |more: &u64| !caches.pages.contains_key(&(file, page + more));
                    let count = (0..=ahead).take_while(is_absent).count();
                    for more in 0..count as u64 {
                        caches.pages.insert((file, page + more), Page::Locked);
                    }
                    break (count, caches.versions.era);
                }
            }
            drop(caches);
            self.kernel.baton.wait(self.kernel.place, LOOK);
        };
        let mut bytes = vec![0; count * BLOCK_SIZE];
        let read = self.fs.read_pages(&caller(), file, page * PAGE, &mut bytes);
        self.fs.record_reading(&caller(), file);
        {
            let mut caches = self.kernel.caches();
            // Pages of objects that are others by now are nobody's.
            let count = if caches.versions.era == era { count } else { 0 };
            for (at, part) in (page..).zip(bytes.chunks(BLOCK_SIZE)).take(count) {
                match read.is_ok() {
                    true => {
                        caches.pages.insert((file, at), Page::There(Arc::new(part.to_vec())));
                    }
                    false => drop(caches.pages.remove(&(file, at))),
                }
            }
        }
        self.kernel.baton.wake(self.kernel.place);
        self.fs.answered();
        bytes.truncate(BLOCK_SIZE);
        read.map(|_| Arc::new(bytes))
    }

    /// Makes a file durable.
    pub fn fsync(&self, file: FileId) -> Result<()> {
        let synced = self.fs.fsync(file);
        self.fs.answered();
        synced
    }

    /// Makes everything durable.
    pub fn syncfs(&self) -> Result<()> {
        let synced = self.fs.syncfs();
        self.fs.answered();
        synced
    }
}
