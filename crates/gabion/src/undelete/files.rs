//! Files by their paths, whoever has them: a mount, or nobody.
//!
//! Paths are absolute. Nothing here follows a symbolic link in the last part of one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use gabion_backup::Attributes;

use crate::failure::Result;
use crate::scratch::Scratch;

/// Bytes that are copied at once.
pub const CHUNK: u64 = 64 << 20;

/// The name and the value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What is known of an object.
pub struct Stat {
    /// What tells it from all others.
    pub identity: (u64, u64),
    /// How many names it has.
    pub names: u64,
    /// As stat(2) says it, of folders, too.
    pub size: u64,
    /// What a copy is to have.
    pub attributes: Attributes,
}

/// A folder for what is not whole yet, which nobody else can reach into.
pub struct Claim {
    /// As it is called from now on, whatever becomes of its name.
    pub path: PathBuf,
    /// What it is where others could reach into it.
    pub scratch: Option<Scratch>,
}

/// Looks at files, and makes some.
pub trait Files {
    /// A path as people say it.
    fn shown(&self, path: &Path) -> String;

    /// The path without symbolic links, as far as it is there. What is not is taken as it is said.
    fn real(&self, path: &Path) -> Result<PathBuf>;

    /// The root of our filesystem that a folder is in; nothing if it is in none.
    fn top(&self, dir: &Path) -> Option<PathBuf>;

    /// What is at a path.
    fn stat(&self, path: &Path) -> io::Result<Stat>;

    /// The names in a folder, in its own order.
    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// The extended attributes of an object, of which ACLs are some.
    fn xattrs(&self, path: &Path) -> io::Result<Vec<Xattr>>;

    /// Makes an empty folder, for nobody but its owner yet.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes a pipe, socket or device, for nobody but its owner yet.
    fn make_node(&self, path: &Path, like: &Attributes) -> io::Result<()>;

    /// Makes a symbolic link with the target of another one.
    fn copy_symlink(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a file with the bytes and the holes of another one, for nobody but its owner yet.
    /// Tells of bytes that are done.
    fn copy_file(
        &self,
        from: &Path,
        to: &Path,
        length: u64,
        passed: &mut dyn FnMut(u64),
    ) -> io::Result<()>;

    /// Gives an object one more name.
    fn link(&self, first: &Path, to: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Removes a name of anything else.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Gives an object away.
    fn set_owner(&self, path: &Path, to: &Attributes) -> io::Result<()>;

    /// Sets the permissions of what is no symbolic link.
    fn set_permissions(&self, path: &Path, to: &Attributes) -> io::Result<()>;

    /// Sets an extended attribute.
    fn set_xattr(&self, path: &Path, xattr: &Xattr) -> io::Result<()>;

    /// Takes an extended attribute away.
    fn remove_xattr(&self, path: &Path, name: &[u8]) -> io::Result<()>;

    /// Sets the times of last reading and writing.
    fn set_times(&self, path: &Path, to: &Attributes) -> io::Result<()>;

    /// Makes an empty folder, or finds the one that was made before, for what is not whole yet, and
    /// keeps others out of it until the result is given back. `WouldBlock`: one of them has come
    /// before. `PermissionDenied`: it is there, and not one that only this user can have changed.
    fn claim(&self, folder: &Path) -> io::Result<Claim>;

    /// Gives what is called `name` in such a folder that name beside it, which nobody has.
    fn give(&self, claim: &Claim, name: &OsStr) -> io::Result<()>;

    /// Removes such a folder, which is empty.
    fn give_back(&self, claim: Claim) -> io::Result<()>;

    /// Whether there is a folder at a path.
    fn is_folder(&self, path: &Path) -> bool {
        self.stat(path).is_ok_and(|found| found.attributes.is_directory())
    }
}
