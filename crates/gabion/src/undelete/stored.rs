//! Files as items of a map: on an image, a device or a volume that nobody has in use.
//!
//! The path is that in the filesystem, and symbolic links in it are not followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use gabion_backup::{Attributes, Time};
use gabion_base::time::Timestamp;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Caller, Changes, CopyRequest, Error, FileType, IfExists, IfTaken, Leave, OpenRequest,
    Privileges, RenameRequest, SetTime,
};
use gabion_map::FileId;
use gabion_map::txn::SeekTarget;
use gabion_node::LocalFs;

use super::files::{CHUNK, Claim, Files, Stat, Xattr};
use crate::backup::stored;
use crate::failure::{Failure, Result};

/// Permissions of a folder that is not finished.
const FOLDER: u32 = 0o700;
/// Permissions of anything else that is not finished.
const FILE: u32 = 0o600;

/// How often it is looked whether a thread has ended.
const GLANCE: Duration = Duration::from_millis(1);

/// Who may do everything, as he may who may write to the disk.
const CALLER: Caller = Caller::superuser();

/// The files of an open filesystem.
pub struct Stored<'f> {
    /// It.
    pub fs: &'f LocalFs,
    /// What people call it.
    pub name: &'f str,
}

/// Lets `act` change files of what people call `name`; the disk is written to meanwhile, as below a
/// mount. What was done is durable then. What clients will say again that had it from a server that
/// has died fits beside it.
pub fn changing<T>(fs: &LocalFs, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |error| Failure::of(format!("cannot write to {name}"), &error);
    fs.spare_sessions().map_err(failed)?;
    // A crash may have come between a quota and its count.
    fs.map().count_usages().map_err(|error| failed(error.into()))?;
    let done = thread::scope(|scope| {
        // What fails there fails here, too.
        let commit = scope.spawn(|| fs.keep_committed(&|_| {}));
        let _ending = Ending { fs, commit };
        act()
    });
    let closed = fs.close().map_err(failed);
    let done = done?;
    closed.map(|()| done)
}

/// Ends the thread that writes, however its scope is left.
struct Ending<'s, 'f> {
    fs: &'f LocalFs,
    commit: ScopedJoinHandle<'s, ()>,
}

impl Drop for Ending<'_, '_> {
    fn drop(&mut self) {
        while !self.commit.is_finished() {
            // It may have missed that, as it was about to wait.
            self.fs.end_background();
            thread::sleep(GLANCE);
        }
    }
}

/// What fails says the same in the words of both.
fn told(error: Error) -> io::Error {
    let kind = io::Error::from_raw_os_error(gabion_fs::errno(&error)).kind();
    io::Error::new(kind, error)
}

impl Stored<'_> {
    /// The object at a path.
    fn find(&self, path: &Path) -> io::Result<gabion_fs::Attributes> {
        let found = match path.parent() {
            None => self.fs.find(self.fs.root()),
            Some(_) => {
                let (dir, name) = self.resolve(path)?;
                self.fs.lookup(&CALLER, dir, name)
            }
        };
        let found = found.map_err(told)?;
        self.fs.forget(found.file, 1);
        Ok(found)
    }

    fn file(&self, path: &Path) -> io::Result<FileId> {
        Ok(self.find(path)?.file)
    }

    /// The folder that a path is in, and the name there.
    fn resolve<'p>(&self, path: &'p Path) -> io::Result<(FileId, &'p [u8])> {
        self.fs.resolve(path.as_os_str().as_bytes()).map_err(told)
    }

    /// What was made counts a lookup, which nobody needs.
    fn made(&self, made: gabion_fs::Result<gabion_fs::Attributes>) -> io::Result<()> {
        self.fs.forget(made.map_err(told)?.file, 1);
        Ok(())
    }

    fn change(&self, path: &Path, changes: &Changes) -> io::Result<()> {
        self.fs.setattr(&CALLER, self.file(path)?, changes).map(drop).map_err(told)
    }

    /// Gives an object another name, which nobody has.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (source_parent, source_name) = self.resolve(from)?;
        let (target_parent, target_name) = self.resolve(to)?;
        let request = RenameRequest {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken: IfTaken::Fail,
            leave: Leave::Nothing,
        };
        self.fs.rename(&CALLER, &request).map_err(told)
    }

    /// Gives a file that is empty the bytes and the holes of another one.
    fn fill(
        &self,
        (source, target): (FileId, FileId),
        length: u64,
        passed: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let size = Some((length, Privileges::Keep));
        let sized = self.fs.setattr(&CALLER, target, &Changes { size, ..Changes::default() });
        sized.map_err(told)?;
        let seek = |from, to| match self.fs.seek(source, from, to) {
            Err(Error::NoSuchOffset) => Ok(None),
            found => found.map(Some).map_err(told),
        };
        let mut end = 0;
        while let Some(mut at) = seek(end, SeekTarget::Data)? {
            end = seek(at, SeekTarget::Hole)?.unwrap_or(length);
            while at < end {
                let request = CopyRequest {
                    source,
                    source_offset: at,
                    target,
                    target_offset: at,
                    length: (end - at).min(CHUNK),
                };
                let copied = self.fs.copy_range(&CALLER, &request, Privileges::Keep);
                match copied.map_err(told)? {
                    // It has become shorter, which nothing in a snapshot does.
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => {
                        at += count;
                        passed(count);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Files for Stored<'_> {
    fn shown(&self, path: &Path) -> String {
        format!("{}:{}", self.name, path.display())
    }

    fn real(&self, path: &Path) -> Result<PathBuf> {
        Ok(path.to_owned())
    }

    fn top(&self, _dir: &Path) -> Option<PathBuf> {
        Some(PathBuf::from("/"))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let found = self.find(path)?;
        Ok(Stat {
            identity: (found.file.subvol.0.into(), found.file.ino.0),
            names: found.nlink.into(),
            size: found.size,
            attributes: stored::attributes(&found),
        })
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let entries = stored::entries(self.fs, self.file(dir)?).map_err(told)?;
        Ok(entries.into_iter().map(|(name, _)| OsString::from_vec(name)).collect())
    }

    fn xattrs(&self, path: &Path) -> io::Result<Vec<Xattr>> {
        stored::xattrs(self.fs, self.file(path)?).map_err(told)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.resolve(path)?;
        self.made(self.fs.mkdir(&CALLER, dir, name, FOLDER))
    }

    fn make_node(&self, path: &Path, like: &Attributes) -> io::Result<()> {
        let kind = FileType::of_mode(like.mode).ok_or(io::ErrorKind::InvalidData)?;
        let (dir, name) = self.resolve(path)?;
        self.made(self.fs.mknod(&CALLER, dir, name, kind, FILE, like.rdev))
    }

    fn copy_symlink(&self, from: &Path, to: &Path) -> io::Result<()> {
        let target = self.fs.readlink(self.file(from)?).map_err(told)?;
        let (dir, name) = self.resolve(to)?;
        self.made(self.fs.symlink(&CALLER, dir, name, &target))
    }

    fn copy_file(
        &self,
        from: &Path,
        to: &Path,
        length: u64,
        passed: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let source = self.file(from)?;
        let (dir, name) = self.resolve(to)?;
        let request = OpenRequest { access: Access::WRITE, truncate: None };
        let made = self.fs.create(&CALLER, dir, name, FILE, IfExists::Fail, &request);
        let (made, _) = made.map_err(told)?;
        let filled = self.fill((source, made.file), length, passed);
        self.fs.release(made.file);
        self.fs.forget(made.file, 1);
        filled
    }

    fn link(&self, first: &Path, to: &Path) -> io::Result<()> {
        let (dir, name) = self.resolve(to)?;
        self.made(self.fs.link(&CALLER, self.file(first)?, dir, name))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.resolve(path)?;
        self.fs.rmdir(&CALLER, dir, name).map_err(told)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.resolve(path)?;
        self.fs.unlink(&CALLER, dir, name).map_err(told)
    }

    fn set_owner(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        let (uid, gid) = (Some(to.uid), Some(to.gid));
        self.change(path, &Changes { uid, gid, ..Changes::default() })
    }

    fn set_permissions(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        let permissions = Some(to.mode & 0o7777);
        self.change(path, &Changes { permissions, ..Changes::default() })
    }

    fn set_xattr(&self, path: &Path, (name, value): &Xattr) -> io::Result<()> {
        let (condition, bit) = (SetCondition::Always, SetGroupBit::Keep);
        let file = self.file(path)?;
        self.fs.set_xattr(&CALLER, file, name, value, condition, bit).map_err(told)
    }

    fn remove_xattr(&self, path: &Path, name: &[u8]) -> io::Result<()> {
        self.fs.remove_xattr(&CALLER, self.file(path)?, name).map_err(told)
    }

    fn set_times(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        let time = |time: Time| SetTime::At(Timestamp::new(time.seconds, time.nanoseconds));
        let (atime, mtime) = (Some(time(to.read)), Some(time(to.written)));
        self.change(path, &Changes { atime, mtime, ..Changes::default() })
    }

    fn claim(&self, folder: &Path) -> io::Result<Claim> {
        // Nobody else has it open.
        match self.make_folder(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        Ok(Claim { path: folder.to_owned(), scratch: None })
    }

    fn give(&self, claim: &Claim, name: &OsStr) -> io::Result<()> {
        self.rename(&claim.path.join(name), &claim.path.with_file_name(name))
    }

    fn give_back(&self, claim: Claim) -> io::Result<()> {
        self.remove_folder(&claim.path)
    }
}
