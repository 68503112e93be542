//! Streams as files of this machine.
//!
//! A stream that is not complete has a name that ends in `.partial`, and a lock of who writes it.
//! It is renamed when it is durable, so whatever has another name is whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gabion_backup::{ReadAt, StreamId};
use rustix::fs::{Advice, CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{EXTENSION, Opened, PARTIAL, Shelf, Store, Unfinished, Upload};
use crate::failure::{Failure, Result};

/// A folder.
pub struct Folder {
    path: PathBuf,
}

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

impl Folder {
    /// The folder that `path` is, or that it is a file in.
    pub fn of_existing(path: &Path) -> Result<(Self, Option<OsString>)> {
        let metadata = fs::metadata(path);
        let metadata = metadata
            .map_err(|error| Failure::of(format!("cannot look at {}", path.display()), &error))?;
        if metadata.is_dir() {
            return Ok((Self { path: path.to_owned() }, None));
        }
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Self { path: parent }, path.file_name().map(OsStr::to_owned)))
    }

    /// The folder that `path` is, or that a file is to be made in, where none is.
    pub fn of_new(path: &Path) -> Result<(Self, Option<OsString>)> {
        let failed = |error| Failure::of(format!("cannot write to {}", path.display()), &error);
        if path.is_dir() {
            return path.canonicalize().map(|path| (Self { path }, None)).map_err(failed);
        }
        if fs::symlink_metadata(path).is_ok() {
            return Err(Failure::new(format!("{} is there already", path.display()))
                .next("Name a file that is not there, or a folder."));
        }
        if is_folder_by_name(path) {
            let shown = path.display();
            return Err(Failure::new(format!("there is no folder {shown}")).next(format!(
                "Make it: mkdir {shown}. For a file of that name leave out the slash at the end."
            )));
        }
        let absolute = std::path::absolute(path).map_err(failed)?;
        match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => {
                let path = parent.canonicalize().map_err(failed)?;
                Ok((Self { path }, Some(name.to_owned())))
            }
            _ => Err(Failure::new(format!("{} is no file", path.display()))),
        }
    }

    /// The folder's path, also if it is where we are.
    fn listed(&self) -> &Path {
        if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path }
    }

    /// Opens a file to go on with it, if nobody else can have put it there to have what is saved.
    fn own(&self, path: &Path) -> Result<File> {
        let failed = |error: io::Error| not_continued(path, &error);
        let foreign = || {
            Failure::new(format!("cannot go on with {}: it is of somebody else", path.display()))
                .next("Remove it, or save to a folder that nobody else writes to.")
        };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = match File::options().read(true).write(true).custom_flags(flags).open(path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
                return Err(foreign());
            }
            opened => opened.map_err(failed)?,
        };
        let found = file.metadata().map_err(failed)?;
        // What root makes belongs to another one on some filesystems, as does the folder then.
        let of_folder = || fs::metadata(self.listed()).is_ok_and(|of| of.uid() == found.uid());
        match found.uid() == rustix::process::geteuid().as_raw() || of_folder() {
            true if found.is_file() => Ok(file),
            _ => Err(foreign()),
        }
    }

    fn files(&self) -> Result<Vec<OsString>> {
        let failed = |error| Failure::of(format!("cannot list {}", self.path.display()), &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.listed()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Links to files count, pipes and devices could keep us waiting.
            if fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()) {
                names.push(entry.file_name());
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Shelf for Folder {
    fn name(&self) -> String {
        self.listed().display().to_string()
    }

    fn path(&self, name: &OsStr) -> String {
        self.path.join(name).display().to_string()
    }

    fn names(&self) -> Result<Vec<OsString>> {
        self.files()
    }

    fn open(&self, name: &OsStr) -> Result<Opened> {
        let opened = File::open(self.path.join(name));
        let file = opened
            .map_err(|error| Failure::of(format!("cannot open {}", self.path(name)), &error))?;
        Ok(Opened { bytes: Box::new(FileAt(file)), is_finished: true })
    }
}

impl Store for Folder {
    fn identity(&self) -> Vec<u8> {
        self.path.as_os_str().as_encoded_bytes().to_vec()
    }

    fn partials(&self, name: Option<&OsStr>) -> Result<Vec<OsString>> {
        if let Some(name) = name {
            let partial = partial(name);
            let is_there = self.path.join(&partial).is_file();
            return Ok(is_there.then_some(partial).into_iter().collect());
        }
        let end = [EXTENSION, PARTIAL].concat();
        let mut names = self.files()?;
        names.retain(|name| name.as_encoded_bytes().ends_with(end.as_bytes()));
        Ok(names)
    }

    fn begin(&self, name: &OsStr, _: StreamId) -> Result<Box<dyn Upload>> {
        let partial = self.path.join(partial(name));
        let made = File::options().write(true).create_new(true).open(&partial);
        let file = made.map_err(|error| {
            let failure = Failure::of(format!("cannot make {}", partial.display()), &error);
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    failure.next("It is of another backup. Remove it if nobody goes on with that.")
                }
                _ => failure,
            }
        })?;
        let file = locked(file, &partial)?;
        Ok(Box::new(Writing { file, path: self.path.join(name), partial }))
    }

    fn take_up(&self, name: &OsStr) -> Result<Box<dyn Unfinished>> {
        let partial = self.path.join(name);
        let file = self.own(&partial)?;
        let whole = name.as_encoded_bytes().strip_suffix(PARTIAL.as_bytes());
        let whole = whole.map_or(name, |_| Path::new(name).file_stem().unwrap_or(name));
        let path = self.path.join(whole);
        let file = locked(file, &partial)?;
        drop_unwritten(&file);
        Ok(Box::new(Begun { file: FileAt(file), path, partial }))
    }

    fn remove(&self, name: &OsStr) -> Result<()> {
        let removed = fs::remove_file(self.path.join(name));
        removed.map_err(|error| Failure::of(format!("cannot remove {}", self.path(name)), &error))
    }
}

/// Whether a path can be that of a folder only, as it ends with a slash.
fn is_folder_by_name(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

/// The name of a stream that is not complete.
pub(super) fn partial(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    name.push(PARTIAL);
    name
}

/// The same file, if no other backup is writing to it.
fn locked(file: File, path: &Path) -> Result<File> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(Failure::new(format!("another backup is writing to {}", path.display()))
            .next("Wait until it is done, or stop it.")),
    }
}

/// Has the kernel forget what it shows of a file. For what was written and could not be stored it
/// goes on showing that, and nobody who opens the file now is told: it must be read from where it
/// is stored.
fn drop_unwritten(file: &File) {
    // A failure was that of whoever wrote it. What is not there now will be found missing.
    let _ = file.sync_all();
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

fn not_continued(path: &Path, error: &io::Error) -> Failure {
    Failure::of(format!("cannot go on with {}", path.display()), error)
}

struct Begun {
    file: FileAt,
    path: PathBuf,
    partial: PathBuf,
}

impl Unfinished for Begun {
    fn bytes(&self) -> &dyn ReadAt {
        &self.file
    }

    fn go_on(self: Box<Self>, length: u64) -> Result<Box<dyn Upload>> {
        let Self { file: FileAt(mut file), path, partial } = *self;
        let cut = file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0)));
        cut.map_err(|error| not_continued(&partial, &error))?;
        Ok(Box::new(Writing { file, path, partial }))
    }
}

struct Writing {
    file: File,
    path: PathBuf,
    partial: PathBuf,
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Upload for Writing {
    fn finish(self: Box<Self>) -> Result<String> {
        let Self { file, path, partial } = *self;
        let name = || -> io::Result<()> {
            file.sync_all()?;
            // Somebody may have made something by that name meanwhile.
            match rustix::fs::renameat_with(CWD, &partial, CWD, &path, RenameFlags::NOREPLACE) {
                // Not every filesystem has it.
                Err(Errno::INVAL) => fs::rename(&partial, &path)?,
                renamed => renamed?,
            }
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        let named = name();
        named.map_err(|error| Failure::of(format!("cannot finish {}", path.display()), &error))?;
        Ok(path.display().to_string())
    }
}
