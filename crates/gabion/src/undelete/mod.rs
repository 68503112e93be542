//! What snapshots still have of a path, and bringing it back.
//!
//! ```text
//!   /mnt/shelf/home/letters/old.txt       asked for; `letters` may be gone, too
//!   /mnt/shelf/home/.snapshots/           of the nearest folder above that has snapshots
//!                     monday/letters/old.txt
//!                     tuesday/letters/      has it no more
//! ```
//!
//! Files are reached by paths alone. On a mount, of a disk of this machine or of what another one
//! serves, the kernel has them, and everybody can bring back what he could read then. What nobody
//! has in use is opened for it.

mod copy;
mod files;
mod mounted;
mod stored;

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use gabion_base::checksum::crc64;

pub use self::files::{Files, Stat};
pub use self::mounted::Mounted;
pub use self::stored::{Stored, changing};
use crate::backup::progress::Progress;
use crate::failure::{Failure, Result};
use crate::print;

/// What the folder of the snapshots of a subvolume is called.
const SNAPSHOTS: &str = ".snapshots";

/// Something that a snapshot has.
pub struct Version {
    /// The snapshot's name.
    pub snapshot: String,
    /// Where it is in there.
    pub path: PathBuf,
    /// What it is.
    pub stat: Stat,
}

/// A path, and what has been there.
pub struct Lost<'f> {
    /// Who has it.
    files: &'f dyn Files,
    /// The path.
    pub path: PathBuf,
    /// The root of the subvolume that it is in.
    root: PathBuf,
    /// From there.
    within: PathBuf,
    /// In the snapshots that have it, the newest first.
    pub versions: Vec<Version>,
    /// How many snapshots there are.
    pub snapshots: usize,
}

/// Looks for `path` in the snapshots of the subvolume that it is or was in.
pub fn find<'f>(files: &'f dyn Files, path: &Path) -> Result<Lost<'f>> {
    let path = files.real(path)?;
    if files.top(&path).is_some_and(|top| top == path) {
        let what = format!("{} is a filesystem itself, and not in one", files.shown(&path));
        return Err(Failure::new(what).next("To make it what it was: gabion snapshot rollback"));
    }
    let Some((root, within)) = subvolume(files, &path) else {
        return Err(Failure::new(format!(
            "{} is not in a mounted Gabion filesystem whose snapshots can be seen",
            files.shown(&path)
        ))
        .next("To see what is mounted: gabion status. In what is not, say TARGET:/PATH."));
    };
    if within.starts_with(SNAPSHOTS) {
        let shown = files.shown(&path);
        return Err(Failure::new(format!("{shown} is in a snapshot itself"))
            .next("Say where it is to be, or copy it out with cp."));
    }
    let names = snapshots(files, &root)?;
    let mut versions = Vec::new();
    for name in names.iter().rev() {
        let path = root.join(SNAPSHOTS).join(name).join(&within);
        match files.stat(&path) {
            Ok(stat) => versions.push(Version { snapshot: name.clone(), path, stat }),
            // It was removed meanwhile, or had something else in place of a folder.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Failure::of(files.shown(&path), &error)),
        }
    }
    Ok(Lost { files, path, root, within, versions, snapshots: names.len() })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The nearest folder above that has snapshots, and the path from there.
fn subvolume(files: &dyn Files, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let there = path.ancestors().skip(1).find(|above| files.is_folder(above))?;
    let top = files.top(there)?;
    let has_snapshots = |dir: &&Path| files.is_folder(&dir.join(SNAPSHOTS));
    let inside = there.ancestors().take_while(|above| above.starts_with(&top));
    let root = inside.into_iter().find(has_snapshots)?;
    let within = path.strip_prefix(root).ok()?;
    Some((root.to_owned(), within.to_owned()))
}

/// The names of all snapshots, the oldest first. A mount of what is served lists them in any order;
/// a newer one has a higher number.
fn snapshots(files: &dyn Files, root: &Path) -> Result<Vec<String>> {
    let dir = root.join(SNAPSHOTS);
    let failed = |error| Failure::of(format!("cannot list {}", files.shown(&dir)), &error);
    let mut found = Vec::new();
    for name in files.names(&dir).map_err(failed)? {
        match files.stat(&dir.join(&name)) {
            Ok(stat) => found.push((stat.identity, name)),
            // It was removed meanwhile.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    found.sort();
    let names = found.into_iter().map(|(_, name)| {
        name.into_string().map_err(|name| Failure::new(format!("{} is no text", name.display())))
    });
    names.collect()
}

impl Lost<'_> {
    /// The version in the snapshot of this name, or the newest one.
    pub fn version(&self, from: Option<&str>) -> Result<&Version> {
        let path = self.files.shown(&self.path);
        let root = self.files.shown(&self.root);
        let found = match from {
            None => self.versions.first(),
            Some(from) => self.versions.iter().find(|version| version.snapshot == from),
        };
        found.ok_or_else(|| match (from, self.versions.is_empty(), self.snapshots) {
            (_, _, 0) => Failure::new(format!("{root} has no snapshots")),
            (None, ..) | (_, true, _) => Failure::new(format!(
                "no snapshot of {root} has {path}, of {} in all",
                self.snapshots
            ))
            .next(format!("To see them: gabion snapshot list {root}")),
            (Some(from), ..) => Failure::new(format!("the snapshot {from:?} has no {path}"))
                .next(format!("These have it: {}", self.choices())),
        })
    }

    /// The snapshots that have it.
    pub fn choices(&self) -> String {
        let shown = |version: &Version| print::printable(&version.snapshot);
        let names: Vec<_> = self.versions.iter().map(shown).collect();
        names.join(", ")
    }

    /// Makes `to` what a version is, all of it or nothing. There must be nothing. What was begun by
    /// one who was stopped is gone on with.
    pub fn restore(&self, version: &Version, to: &Path) -> Result<()> {
        let to = self.files.real(to)?;
        self.check_free(&to)?;
        let folders = match to == self.path {
            true => self.missing(version),
            false => Vec::new(),
        };
        // All of it gets its place in one step, with the folders above.
        let top = folders.first().map_or(&*to, |(_, folder)| folder);
        self.check_free(top)?;
        let restored = self.restore_as(version, &to, top, &folders);
        let Err(copy::Error { path, error }) = restored else { return Ok(()) };
        let shown = self.files.shown(&to);
        if error.kind() == io::ErrorKind::WouldBlock {
            let what = format!("{shown} is just being restored by somebody else");
            return Err(Failure::new(what).next("Wait until that has ended."));
        }
        if error.kind() == io::ErrorKind::AlreadyExists {
            self.check_free(top)?;
        }
        let what = match path == to {
            true => format!("cannot restore {shown}"),
            false => format!("cannot restore {shown}: {}", self.files.shown(&path)),
        };
        let failure = Failure::of(what, &error);
        Err(match error.kind() {
            io::ErrorKind::CrossesDevices => failure.next(format!(
                "Nothing was restored. Name a place in the same filesystem, or copy it: cp -a {}",
                self.files.shown(&version.path)
            )),
            _ => failure.next("Nothing was restored."),
        })
    }

    /// Makes `folders` (as they were, and where they are to be, the first of which is `top`) and in
    /// the last of them `to`. Whoever may write beside `top` cannot reach what is not whole.
    fn restore_as(
        &self,
        version: &Version,
        to: &Path,
        top: &Path,
        folders: &[(PathBuf, PathBuf)],
    ) -> std::result::Result<(), copy::Error> {
        let files = self.files;
        let beside = unfinished(version, to, top);
        let claimed = files.claim(&beside);
        let claim = claimed.map_err(|error| copy::Error { path: beside.clone(), error })?;
        let above = top.parent().unwrap_or(top);
        let inside = |path: &Path| claim.path.join(path.strip_prefix(above).unwrap_or(path));
        let made = self.copy_all(version, &inside(to), folders, inside);
        let made = made.and_then(|()| {
            let given = files.give(&claim, top.file_name().unwrap_or(OsStr::new("")));
            given.map_err(|error| copy::Error { path: top.to_owned(), error })
        });
        if made.is_err() {
            copy::remove(files, &inside(top));
        }
        let path = claim.path.clone();
        if let Err(error) = files.give_back(claim)
            && made.is_ok()
        {
            let beside = print::path(&beside);
            print::notice(format!("{beside} is still there: {error}"));
        }
        made.map_err(|copy::Error { path: at, error }| match at.strip_prefix(&path) {
            Ok(within) => copy::Error { path: above.join(within), error },
            Err(_) => copy::Error { path: at, error },
        })
    }

    /// Makes all of it, where nobody else is.
    fn copy_all(
        &self,
        version: &Version,
        to: &Path,
        folders: &[(PathBuf, PathBuf)],
        inside: impl Fn(&Path) -> PathBuf,
    ) -> std::result::Result<(), copy::Error> {
        let files = self.files;
        for (_, folder) in folders {
            // One that was stopped may have made it.
            if !files.is_folder(&inside(folder)) {
                copy::make_folder(files, &inside(folder))?;
            }
        }
        let progress = Progress::new(0, None);
        if io::stderr().is_terminal() {
            progress.expect(copy::bytes(files, &version.path)?);
        }
        let copied = copy::Copying::new(files, &progress).copy(&version.path, to);
        progress.end();
        copied?;
        // The innermost first: each change of one changes the times of the one above.
        let mut folders = folders.iter().rev();
        folders.try_for_each(|(was, folder)| copy::copy_attributes_of(files, was, &inside(folder)))
    }

    /// Fails if there is something at `to`.
    fn check_free(&self, to: &Path) -> Result<()> {
        let shown = self.files.shown(to);
        match self.files.stat(to) {
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(Failure::of(shown, &error)),
            Ok(_) => {
                Err(Failure::new(format!("{shown} is there, and stays as it is")).next(format!(
                    "To have an older one beside it, say --to PATH, and --from of: {}",
                    self.choices()
                )))
            }
        }
    }

    /// The folders above that are gone, too, the outermost first: as the snapshot has them, and
    /// where they were.
    fn missing(&self, version: &Version) -> Vec<(PathBuf, PathBuf)> {
        let depth = self.within.components().count();
        let above = self.path.ancestors().zip(version.path.ancestors()).take(depth).skip(1);
        let missing = above.take_while(|(path, _)| !self.files.is_folder(path));
        let mut folders: Vec<_> =
            missing.map(|(path, was)| (was.to_owned(), path.to_owned())).collect();
        folders.reverse();
        folders
    }
}

/// The folder beside `top` that all is made in until it is whole. Its name tells what becomes of
/// what.
fn unfinished(version: &Version, to: &Path, top: &Path) -> PathBuf {
    let [to, path] = [to, &version.path].map(|path| path.as_os_str().as_encoded_bytes());
    let number = crc64(&[path, b"\0", to].concat());
    top.with_file_name(format!(".undelete-{number:016x}"))
}
