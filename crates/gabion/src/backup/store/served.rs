//! Streams as files of a filesystem that another machine serves.
//!
//! They are what [`Folder`](super::Folder) makes of them, so either reads what the other has
//! written. Nothing is mounted: this program is a client by itself, until it ends.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gabion_backup::{ReadAt, StreamId};
use gabion_fs::caller::Groups;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::{
    Access, Attributes, Caller, Changes, Detail, Error, FileType, IfExists, IfTaken, Leave,
    OpenRequest, Privileges, RenameRequest, WriteAt,
};
use gabion_map::{FileId, Payload};
use gabion_node::{Filesystem, Reader};

use super::folder::partial;
use super::window::Window;
use super::{EXTENSION, Opened, PARTIAL, Shelf, Store, Unfinished, Upload};
use crate::failure::{Failure, Result};
use crate::link::Connected;
use crate::remote::{self, RemoteTarget};

/// So many bytes are read or written at once.
const PAYLOAD: usize = 1 << 20;
/// Entries that are listed at once.
const ENTRIES: usize = 1000;
/// Who may read what is made: a backup has everything, whoever it belonged to.
const PERMISSIONS: u32 = 0o600;
/// How long a lock may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder at a server.
pub struct Served {
    session: Arc<Session>,
}

/// A client of the server, as whoever runs this program.
struct Session {
    connected: Connected,
    caller: Caller,
    target: RemoteTarget,
}

impl Served {
    /// What a URL means: a folder, and a stream in it if it ends as the name of one does.
    pub fn of(target: &RemoteTarget) -> Result<(Self, Option<OsString>)> {
        let (folder, last) = target.path().rsplit_once('/').unwrap_or(("", target.path()));
        let is_stream = [EXTENSION, PARTIAL].iter().any(|end| last.ends_with(end));
        let (folder, name) = match is_stream {
            true => (folder, Some(last.into())),
            false => (target.path(), None),
        };
        let target = target.at(folder);
        let connected = remote::session(&target, "backup")?;
        let groups = rustix::process::getgroups().unwrap_or_default();
        let groups: Vec<u32> = groups.into_iter().map(|group| group.as_raw()).collect();
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Groups::new(&groups),
            ..Caller::superuser()
        };
        Ok((Self { session: Arc::new(Session { connected, caller, target }) }, name))
    }
}

impl Session {
    fn path(&self, name: &OsStr) -> String {
        let folder = self.target.name();
        format!("{}/{}", folder.trim_end_matches('/'), name.display())
    }

    fn root(&self) -> FileId {
        self.connected.fs().root()
    }

    /// Does something there.
    fn ask<T>(
        &self,
        act: impl FnOnce(&dyn Filesystem, &Caller) -> gabion_fs::Result<T>,
    ) -> gabion_fs::Result<T> {
        let fs = &**self.connected.fs();
        let done = act(fs, &self.caller);
        // Nobody is told by the kernel here; without this, revocations would wait for it.
        fs.answered();
        done
    }

    fn find(&self, name: &OsStr) -> gabion_fs::Result<Attributes> {
        self.ask(|fs, caller| fs.lookup(caller, self.root(), name.as_bytes()))
    }

    /// Opens a regular file.
    fn open(self: &Arc<Self>, name: &OsStr, access: Access) -> gabion_fs::Result<File> {
        let found = self.find(name)?;
        if FileType::of_mode(found.mode) != Some(FileType::Regular) {
            return Err(Error::InvalidArgument);
        }
        let request = OpenRequest { access, truncate: None };
        let opened = self.ask(|fs, caller| fs.open_file(caller, found.file, &request))?;
        Ok(File { session: Arc::clone(self), file: found.file, length: opened.size })
    }
}

/// A file that is open, and how long it was then.
struct File {
    session: Arc<Session>,
    file: FileId,
    length: u64,
}

impl File {
    /// Locks it for as long as this program is a client, if nobody has it locked.
    fn lock(&self) -> gabion_fs::Result<()> {
        let lock = Lock {
            file: self.file,
            class: LockClass::Flock,
            owner: LockOwner { client: 0, number: 1 },
            pid: std::process::id(),
            strength: Strength::Exclusive,
            range: LockRange::WHOLE,
        };
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let end = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.session.ask(|fs, _| {
            fs.lock(lock, Wait::No, end);
            receiver.recv_timeout(PATIENCE).unwrap_or(Err(Error::WouldBlock))
        })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let fs = self.session.connected.fs();
        fs.release(self.file);
        fs.forget(self.file, 1);
        fs.answered();
    }
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            let end = into.len().min(filled + PAYLOAD);
            let (at, some) = (offset + filled as u64, &mut into[filled..end]);
            let read = self
                .session
                .ask(|fs, caller| fs.read(caller, self.file, at, some, Reader::Program));
            match read.map_err(io::Error::other)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }
}

impl Shelf for Served {
    fn name(&self) -> String {
        self.session.target.name()
    }

    fn path(&self, name: &OsStr) -> String {
        self.session.path(name)
    }

    fn names(&self) -> Result<Vec<OsString>> {
        let failed = |error| Failure::of(format!("cannot list {}", self.name()), &error);
        let root = self.session.root();
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let listing = self
                .session
                .ask(|fs, caller| fs.readdir(caller, root, cookie, ENTRIES, Detail::Names));
            let listing = listing.map_err(failed)?;
            for entry in &listing.entries {
                cookie = entry.cookie;
                if entry.file_type == FileType::Regular {
                    names.push(OsString::from_vec(entry.name().to_vec()));
                }
            }
            if listing.is_complete || listing.entries.is_empty() {
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &OsStr) -> Result<Opened> {
        let failed = |error: &dyn std::error::Error| {
            Failure::of(format!("cannot open {}", self.path(name)), error)
        };
        let file = self.session.open(name, Access::READ).map_err(|error| failed(&error))?;
        let bytes = Window::new(file).map_err(|error| failed(&error))?;
        Ok(Opened { bytes: Box::new(bytes), is_finished: true })
    }
}

impl Store for Served {
    fn identity(&self) -> Vec<u8> {
        self.name().into_bytes()
    }

    fn partials(&self, name: Option<&OsStr>) -> Result<Vec<OsString>> {
        let mut names = self.names()?;
        match name.map(partial) {
            Some(wanted) => names.retain(|name| *name == wanted),
            None => {
                let end = [EXTENSION, PARTIAL].concat();
                names.retain(|name| name.as_bytes().ends_with(end.as_bytes()));
            }
        }
        Ok(names)
    }

    fn begin(&self, name: &OsStr, _: StreamId) -> Result<Box<dyn Upload>> {
        if self.session.find(name).is_ok() {
            return Err(Failure::new(format!("{} is there already", self.path(name)))
                .next("Name a file that is not there, or a folder."));
        }
        let partial = partial(name);
        let request = OpenRequest { access: Access::READ | Access::WRITE, truncate: None };
        let root = self.session.root();
        let made = self.session.ask(|fs, caller| {
            let name = partial.as_bytes();
            fs.create(caller, root, name, PERMISSIONS, IfExists::Fail, &request)
        });
        let (made, _) = made.map_err(|error| {
            let failure = Failure::of(format!("cannot make {}", self.path(&partial)), &error);
            match error {
                Error::Exists => {
                    failure.next("It is of another backup. Remove it if nobody goes on with that.")
                }
                Error::AccessDenied => failure.next(
                    "Let this user write to the folder there; the superuser may be nobody there.",
                ),
                _ => failure,
            }
        })?;
        let file = File { session: Arc::clone(&self.session), file: made.file, length: 0 };
        let file = locked(file, &self.path(&partial))?;
        Ok(Box::new(Writing { file, at: 0, partial, name: name.to_owned() }))
    }

    fn take_up(&self, partial: &OsStr) -> Result<Box<dyn Unfinished>> {
        let path = self.path(partial);
        let failed =
            |error: &dyn std::error::Error| Failure::of(format!("cannot go on with {path}"), error);
        let open = || self.session.open(partial, Access::READ | Access::WRITE);
        let file = locked(open().map_err(|error| failed(&error))?, &path)?;
        let bytes = Window::new(open().map_err(|error| failed(&error))?);
        let bytes = bytes.map_err(|error| failed(&error))?;
        Ok(Box::new(Begun { file, bytes, partial: partial.to_owned() }))
    }

    fn remove(&self, partial: &OsStr) -> Result<()> {
        let root = self.session.root();
        let removed = self.session.ask(|fs, caller| fs.unlink(caller, root, partial.as_bytes()));
        removed
            .map_err(|error| Failure::of(format!("cannot remove {}", self.path(partial)), &error))
    }
}

/// The same file, if no other backup is writing to it.
fn locked(file: File, path: &str) -> Result<File> {
    match file.lock() {
        Ok(()) => Ok(file),
        Err(Error::WouldBlock) => Err(Failure::new(format!("another backup is writing to {path}"))
            .next("Wait until it is done, or stop it.")),
        Err(error) => Err(Failure::of(format!("cannot lock {path}"), &error)),
    }
}

struct Begun {
    file: File,
    bytes: Window<File>,
    partial: OsString,
}

impl Unfinished for Begun {
    fn bytes(&self) -> &dyn ReadAt {
        &self.bytes
    }

    fn go_on(self: Box<Self>, length: u64) -> Result<Box<dyn Upload>> {
        let Self { file, partial, .. } = *self;
        let changes = Changes { size: Some((length, Privileges::Keep)), ..Changes::default() };
        let cut = file.session.ask(|fs, caller| fs.setattr(caller, file.file, &changes));
        let path = file.session.path(&partial);
        cut.map_err(|error| Failure::of(format!("cannot go on with {path}"), &error))?;
        let name = Path::new(&partial).file_stem().unwrap_or(&partial).to_owned();
        Ok(Box::new(Writing { file, at: length, partial, name }))
    }
}

struct Writing {
    file: File,
    at: u64,
    partial: OsString,
    name: OsString,
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(PAYLOAD)];
        let (file, at) = (self.file.file, WriteAt::Offset(self.at));
        let written = self
            .file
            .session
            .ask(|fs, caller| fs.write(caller, file, at, &Payload::Copied(some), Privileges::Keep));
        let written = written.map_err(io::Error::other)?;
        self.at += written.length as u64;
        Ok(written.length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for Writing {
    fn finish(self: Box<Self>) -> Result<String> {
        let Self { file, partial, name, .. } = *self;
        let session = Arc::clone(&file.session);
        let root = session.root();
        let request = RenameRequest {
            source_parent: root,
            source_name: partial.as_bytes(),
            target_parent: root,
            target_name: name.as_bytes(),
            if_taken: IfTaken::Fail,
            leave: Leave::Nothing,
        };
        let named = session.ask(|fs, caller| {
            fs.fsync(file.file)?;
            fs.rename(caller, &request)?;
            fs.syncfs()
        });
        let path = session.path(&name);
        named.map_err(|error| Failure::of(format!("cannot finish {path}"), &error))?;
        Ok(path)
    }
}
