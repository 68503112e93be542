//! Folders in which something is made until it is whole, beside the place where it is to be.
//!
//! Their names can be foreseen, so that who is stopped finds what he has begun. Where others may
//! write they could make one first, put links into it, or exchange it for another one at any
//! moment, and lead whoever works in it elsewhere. So it is one that nobody else can reach into,
//! whatever is in there, and it is opened once: what happens to its name later changes nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::reach::{Reached, reach_below};

/// Such a folder, used by nobody else.
pub struct Scratch {
    /// The folder that it is in.
    parent: File,
    name: OsString,
    /// Holds the lock.
    folder: File,
    /// Whether it was there already.
    pub is_found: bool,
}

/// Why there is none.
#[derive(Debug)]
pub enum Refused {
    /// Somebody else works in it, or has just ended.
    Busy,
    /// It is there, and others could have changed what is in it.
    Foreign,
    /// It cannot be made or opened.
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

impl Scratch {
    /// Makes the folder `name` in `parent`, or finds the one that this user has made before.
    pub fn claim(parent: &File, name: &OsStr) -> Result<Self, Refused> {
        let is_found = match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(error) => return Err(error.into()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(folder) => File::from(folder),
            // Whoever had made it has given what is in it its place.
            Err(Errno::NOENT) => return Err(Refused::Busy),
            // Something else is there, or what its user may not read.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Err(Refused::Foreign),
            Err(error) => return Err(error.into()),
        };
        let (outside, inside) = (parent.metadata()?, folder.metadata()?);
        // What somebody has mounted there shows what he likes.
        if outside.dev() != inside.dev()
            || !is_own(Owned::of(&outside), Owned::of(&inside), own_number())
        {
            return Err(Refused::Foreign);
        }
        // Not every filesystem has locks, so another error is none of ours.
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)
            == Err(Errno::WOULDBLOCK)
        {
            return Err(Refused::Busy);
        }
        let scratch = Self { parent: parent.try_clone()?, name: name.to_owned(), folder, is_found };
        match scratch.has_its_name() {
            true => Ok(scratch),
            false => Err(Refused::Busy),
        }
    }

    /// Whether this user has made a folder `name` in `parent`, and what it is.
    pub fn find(parent: &File, name: &OsStr) -> Option<u32> {
        let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let outside = parent.metadata().ok()?;
        let inside = Owned { uid: found.st_uid, mode: found.st_mode };
        let is_ours = found.st_dev == outside.dev()
            && FileType::from_raw_mode(found.st_mode).is_dir()
            && is_own(Owned::of(&outside), inside, own_number());
        is_ours.then_some(found.st_mode & 0o7777)
    }

    fn has_its_name(&self) -> bool {
        let found = rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(found), Ok(opened)) = (found, self.folder.metadata()) else { return false };
        (found.st_dev, found.st_ino) == (opened.dev(), opened.ino())
    }

    /// The folder itself.
    pub fn folder(&self) -> &File {
        &self.folder
    }

    /// A path to it, whatever its name is now.
    pub fn path(&self) -> PathBuf {
        path_of(&self.folder)
    }

    /// What is at a path in it.
    pub fn reach<'p>(&'p self, path: &'p Path) -> io::Result<Reached<'p>> {
        reach_below(self.folder.as_fd(), path)
    }

    /// The names in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(self.path())?.map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Removes all that is in it.
    pub fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Gives what is called `name` in it that name beside it, which nobody has.
    pub fn give(&self, name: &OsStr) -> io::Result<()> {
        put((&self.folder, name), (&self.parent, name))
    }

    /// Removes it, if it is empty and has its name still.
    pub fn remove(self) -> io::Result<()> {
        if !self.has_its_name() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "somebody has renamed it"));
        }
        Ok(rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR)?)
    }
}

/// A path to an open folder, which names the folder also where links are not followed.
pub fn path_of(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", folder.as_raw_fd()))
}

/// Gives an entry of a folder that nobody else can reach into another name in another one.
pub fn put((from, name): (&File, &OsStr), (to, new): (&File, &OsStr)) -> io::Result<()> {
    let rename = || match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // Not every filesystem has it.
        Err(Errno::INVAL) => rustix::fs::renameat(from, name, to, new),
        renamed => renamed,
    };
    match rename() {
        Err(Errno::ACCESS) => {}
        renamed => return Ok(renamed?),
    }
    // A folder that goes elsewhere is written to, which its own permissions may deny.
    let found = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !FileType::from_raw_mode(found.st_mode).is_dir() {
        return Err(Errno::ACCESS.into());
    }
    rustix::fs::chmodat(from, name, Mode::RWXU, AtFlags::empty())?;
    let moved = File::from(rustix::fs::openat(from, name, OFlags::CLOEXEC, Mode::empty())?);
    let renamed = rename();
    rustix::fs::fchmod(&moved, Mode::from_raw_mode(found.st_mode & 0o7777))?;
    Ok(renamed?)
}

fn own_number() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whose a folder is, and who may do what in it.
#[derive(Clone, Copy)]
struct Owned {
    uid: u32,
    mode: u32,
}

impl Owned {
    fn of(found: &Metadata) -> Self {
        Self { uid: found.uid(), mode: found.mode() }
    }
}

/// Whether only the user `own` can have made and changed the folder `inside`, which is in
/// `outside`.
fn is_own(outside: Owned, inside: Owned, own: u32) -> bool {
    // Some filesystems show permissions that nobody has given. There nobody else may have come as
    // far as this one.
    let is_closed = |of: Owned| of.mode & 0o022 == 0;
    let is_within_own = is_closed(outside) && [0, own].contains(&outside.uid);
    inside.uid == own && (inside.mode & 0o077 == 0 || is_closed(inside) && is_within_own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_what_nobody_else_can_have_changed_is_ones_own() {
        let of = |uid, mode| Owned { uid, mode };
        let shared = of(0, 0o1777);
        assert!(is_own(shared, of(7, 0o700), 7) && is_own(shared, of(7, 0o2700), 7));
        assert!(!is_own(shared, of(8, 0o700), 7) && !is_own(shared, of(8, 0o700), 0));
        assert!(!is_own(shared, of(7, 0o750), 7) && !is_own(shared, of(7, 0o701), 7));
        // A filesystem that shows one owner and one mode for all.
        assert!(is_own(of(7, 0o755), of(7, 0o755), 7) && is_own(of(0, 0o755), of(7, 0o755), 7));
        assert!(!is_own(of(7, 0o777), of(7, 0o777), 7) && !is_own(of(8, 0o755), of(7, 0o755), 7));
        assert!(!is_own(of(7, 0o755), of(7, 0o775), 7));
    }

    #[test]
    fn a_folder_stays_the_same_whatever_becomes_of_its_name() {
        let top = std::env::temp_dir().join(format!("gabion-scratch-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        let parent = File::open(&top).unwrap();
        let name = OsStr::new("scratch");
        let claim = || Scratch::claim(&parent, name);
        let scratch = claim().unwrap();
        assert!(!scratch.is_found && matches!(claim(), Err(Refused::Busy)));
        fs::create_dir(top.join("elsewhere")).unwrap();
        fs::rename(top.join("scratch"), top.join("moved")).unwrap();
        symlink("elsewhere", top.join("scratch")).unwrap();
        fs::write(scratch.reach(Path::new("file")).unwrap(), "there").unwrap();
        assert_eq!(fs::read(top.join("moved/file")).unwrap(), b"there");
        assert!(scratch.remove().is_err());
        assert!(matches!(claim(), Err(Refused::Foreign)) && Scratch::find(&parent, name).is_none());
        fs::remove_file(top.join("scratch")).unwrap();
        fs::rename(top.join("moved"), top.join("scratch")).unwrap();
        let scratch = claim().unwrap();
        assert!(scratch.is_found && scratch.names().unwrap() == ["file"]);
        scratch.empty().unwrap();
        scratch.remove().unwrap();
        fs::write(top.join("scratch"), "a file").unwrap();
        assert!(matches!(claim(), Err(Refused::Foreign)));
        fs::remove_file(top.join("scratch")).unwrap();
        fs::create_dir(top.join("scratch")).unwrap();
        fs::set_permissions(top.join("scratch"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(claim(), Err(Refused::Foreign)));
        fs::remove_dir_all(&top).unwrap();
    }
}
