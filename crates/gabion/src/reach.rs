//! Paths that are longer than a system call takes (`PATH_MAX`): trees may be deeper.
//!
//! The folders on such a path are opened one after the other, some of them in one call, and what is
//! left of it begins at the last one, which `/proc/self/fd` has a name for.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// The longest path that is used as it is, in bytes. There is room for the name of a folder in
/// front and of a file behind it.
const LENGTH_MAX: usize = 3800;

/// A path that a system call takes, as long as this lives.
pub struct Reached<'p> {
    path: Cow<'p, Path>,
    _folder: Option<OwnedFd>,
}

impl Deref for Reached<'_> {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Reached<'_> {
    fn as_ref(&self) -> &Path {
        self
    }
}

/// Goes along `path` up to where the rest of it is short enough. Links at its end are not followed.
pub fn reach(path: &Path) -> io::Result<Reached<'_>> {
    match along(CWD, path, ResolveFlags::empty())? {
        (None, _) => Ok(Reached { path: Cow::Borrowed(path), _folder: None }),
        (Some(opened), rest) => Ok(Reached::behind(opened, &rest)),
    }
}

/// The same from an open folder. The path must not begin with `/`.
pub fn reach_below<'p>(folder: BorrowedFd<'p>, path: &Path) -> io::Result<Reached<'p>> {
    match along(folder, path, ResolveFlags::empty())? {
        (None, _) => Ok(Reached { path: Cow::Owned(behind(folder, path)), _folder: None }),
        (Some(opened), rest) => Ok(Reached::behind(opened, &rest)),
    }
}

/// Opens a folder by a path that has no links in it. It is an error if there is one by now.
pub fn open_real(path: &Path) -> io::Result<File> {
    let resolve = ResolveFlags::NO_SYMLINKS;
    let (folder, rest) = along(CWD, path, resolve)?;
    let (above, rest) = match &folder {
        Some(folder) => (folder.as_fd(), &*rest),
        None => (CWD, path),
    };
    Ok(open(above, rest, OFlags::RDONLY, resolve)?.into())
}

/// Opens a folder.
fn open(
    above: BorrowedFd<'_>,
    path: &Path,
    access: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if resolve.is_empty() {
        return rustix::fs::openat(above, path, flags, Mode::empty());
    }
    rustix::fs::openat2(above, path, flags, Mode::empty(), resolve)
}

/// Opens folders along `path` until the rest is short enough. No folder: all of it is.
fn along(
    from: BorrowedFd<'_>,
    path: &Path,
    resolve: ResolveFlags,
) -> io::Result<(Option<OwnedFd>, PathBuf)> {
    let mut folder: Option<OwnedFd> = None;
    let mut rest = PathBuf::new();
    if path.as_os_str().len() <= LENGTH_MAX {
        return Ok((folder, rest));
    }
    for part in path {
        if rest.as_os_str().len() + part.len() >= LENGTH_MAX {
            let above = folder.as_ref().map_or(from, AsFd::as_fd);
            folder = Some(open(above, &rest, OFlags::PATH, resolve)?);
            rest.clear();
        }
        rest.push(part);
    }
    Ok((folder, rest))
}

/// A path that begins at an open folder.
fn behind(folder: BorrowedFd<'_>, path: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(path)
}

impl Reached<'_> {
    fn behind(folder: OwnedFd, path: &Path) -> Self {
        Self { path: Cow::Owned(behind(folder.as_fd(), path)), _folder: Some(folder) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_deeper_than_a_path_can_be_is_reached() {
        let temporary = std::env::temp_dir().canonicalize().unwrap();
        let top = temporary.join(format!("gabion-reach-{}", std::process::id()));
        let mut deep = top.clone();
        fs::create_dir(&top).unwrap();
        while deep.as_os_str().len() < 20_000 {
            deep.push("x".repeat(200));
            fs::create_dir(reach(&deep).unwrap()).unwrap();
        }
        deep.push("file");
        assert!(fs::write(&deep, "there").is_err(), "no call takes it as it is");
        fs::write(reach(&deep).unwrap(), "there").unwrap();
        assert_eq!(fs::read(reach(&deep).unwrap()).unwrap(), b"there");
        assert_eq!(&*reach(&top).unwrap(), top);
        let folder = fs::File::open(&top).unwrap();
        let below = reach_below(folder.as_fd(), deep.strip_prefix(&top).unwrap()).unwrap();
        assert_eq!(fs::read(&below).unwrap(), b"there");
        drop(below);
        let real = deep.parent().unwrap();
        let opened = open_real(real).unwrap();
        let below = reach_below(opened.as_fd(), Path::new("file")).unwrap();
        assert_eq!(fs::read(&below).unwrap(), b"there");
        std::os::unix::fs::symlink(&top, top.join("link")).unwrap();
        assert!(open_real(&top.join("link")).is_err() && open_real(&top.join("link/x")).is_err());
        fs::remove_dir_all(&top).unwrap();
        assert!(reach(&deep).is_err() && open_real(real).is_err());
    }
}
