//! What snapshots still have of a path, and bringing it back.
//!
//! ```text
//!   /mnt/shelf/home/letters/old.txt       asked for; `letters` may be gone, too
//!   /mnt/shelf/home/.snapshots/           of the nearest folder above that has snapshots
//!                     monday/letters/old.txt
//!                     tuesday/letters/      has it no more
//! ```
//!
//! Only paths are used, so it is the same whether a disk of this machine is mounted or what another
//! machine serves, and everybody can bring back what he could read then.

mod copy;

use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::RenameFlags;

use self::copy::Copier;
use crate::failure::{Failure, Result};
use crate::mounts;

/// What the folder of the snapshots of a subvolume is called.
const SNAPSHOTS: &str = ".snapshots";

/// Something that a snapshot has.
pub struct Version {
    /// The snapshot's name.
    pub snapshot: String,
    /// Where it is in there.
    pub path: PathBuf,
    /// What it is.
    pub metadata: Metadata,
}

/// A path, and what has been there.
pub struct Lost {
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
pub fn find(path: &Path) -> Result<Lost> {
    let path = real(path)?;
    let Some((root, within)) = subvolume(&path) else {
        return Err(Failure::new(format!(
            "{} is not in a mounted Gabion filesystem whose snapshots can be seen",
            path.display()
        ))
        .next("To see what is mounted: gabion status"));
    };
    if within.starts_with(SNAPSHOTS) {
        let shown = path.display();
        return Err(Failure::new(format!("{shown} is in a snapshot itself"))
            .next("Say where it is to be, or copy it out with cp."));
    }
    let names = snapshots(&root)?;
    let mut versions = Vec::new();
    for name in names.iter().rev() {
        let path = root.join(SNAPSHOTS).join(name).join(&within);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => versions.push(Version { snapshot: name.clone(), path, metadata }),
            // It was removed meanwhile, or had something else in place of a folder.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Failure::of(path.display(), &error)),
        }
    }
    Ok(Lost { path, root, within, versions, snapshots: names.len() })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The path without symbolic links, as far as it is there. What is not is taken as it is said.
fn real(path: &Path) -> Result<PathBuf> {
    let failed = |error: io::Error| Failure::of(path.display(), &error);
    let absolute = std::path::absolute(path).map_err(failed)?;
    if absolute.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::new(format!("{} has \"..\" in it", path.display()))
            .next("Say the path without it."));
    }
    // The last part is meant itself, also if it is a link.
    let Some(name) = absolute.file_name() else { return Ok(absolute) };
    let mut missing = PathBuf::from(name);
    let mut above = absolute.with_file_name("");
    loop {
        match above.canonicalize() {
            Ok(real) => return Ok(real.join(missing)),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        let Some(name) = above.file_name() else { return Ok(absolute) };
        missing = Path::new(name).join(missing);
        above = above.with_file_name("");
    }
}

/// The nearest folder above that has snapshots, and the path from there.
fn subvolume(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let there = path.ancestors().skip(1).find(|above| above.is_dir())?;
    let (mount, _) = mounts::containing(there).ok()??;
    let has_snapshots = |dir: &&Path| dir.join(SNAPSHOTS).is_dir();
    let inside = there.ancestors().take_while(|above| above.starts_with(&mount.mountpoint));
    let root = inside.into_iter().find(has_snapshots)?;
    let within = path.strip_prefix(root).ok()?;
    Some((root.to_owned(), within.to_owned()))
}

/// The names of all snapshots, the oldest first, which is how they are listed.
fn snapshots(root: &Path) -> Result<Vec<String>> {
    let dir = root.join(SNAPSHOTS);
    let failed = |error: &io::Error| Failure::of(format!("cannot list {}", dir.display()), error);
    let entries = fs::read_dir(&dir).map_err(|error| failed(&error))?;
    let names = entries.map(|entry| {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        name.into_string().map_err(|name| Failure::new(format!("{} is no text", name.display())))
    });
    names.collect()
}

impl Lost {
    /// The version in the snapshot of this name, or the newest one.
    pub fn version(&self, from: Option<&str>) -> Result<&Version> {
        let path = self.path.display();
        let found = match from {
            None => self.versions.first(),
            Some(from) => self.versions.iter().find(|version| version.snapshot == from),
        };
        found.ok_or_else(|| match (from, self.versions.is_empty(), self.snapshots) {
            (_, _, 0) => Failure::new(format!("{} has no snapshots", self.root.display())),
            (None, ..) | (_, true, _) => Failure::new(format!(
                "none of the {} snapshots of {} has {path}",
                self.snapshots,
                self.root.display()
            ))
            .next("To see them: gabion snapshot list"),
            (Some(from), ..) => Failure::new(format!("the snapshot {from:?} has no {path}"))
                .next(format!("These have it: {}", self.choices())),
        })
    }

    /// The snapshots that have it.
    pub fn choices(&self) -> String {
        let names: Vec<_> = self.versions.iter().map(|version| &*version.snapshot).collect();
        names.join(", ")
    }

    /// Makes `to` what a version is, all of it or nothing. There must be nothing.
    pub fn restore(&self, version: &Version, to: &Path) -> Result<()> {
        self.check_free(to)?;
        let folders = if to == self.path { self.folders(version) } else { Vec::new() };
        let mut made = Vec::new();
        let restored = self.restore_in(version, to, &folders, &mut made);
        let Err(copy::Error { path, error }) = restored else { return Ok(()) };
        // What was made is empty.
        made.into_iter().rev().for_each(|path| drop(fs::remove_dir(path)));
        if error.kind() == io::ErrorKind::AlreadyExists {
            self.check_free(to)?;
        }
        let what = match path == to {
            true => format!("cannot restore {}", to.display()),
            false => format!("cannot restore {}: {}", to.display(), path.display()),
        };
        Err(Failure::of(what, &error).next("Nothing was restored."))
    }

    /// Makes `folders` (as they were, and where they are to be), notes them in `made`, and restores
    /// a version to `to` in the last one.
    fn restore_in<'a>(
        &self,
        version: &Version,
        to: &Path,
        folders: &'a [(PathBuf, PathBuf)],
        made: &mut Vec<&'a Path>,
    ) -> std::result::Result<(), copy::Error> {
        for (_, folder) in folders {
            copy::make_folder(folder)?;
            made.push(folder);
        }
        // Beside it under another name, until it is whole.
        let unfinished = unfinished(to);
        let copied = Copier::default().copy(&version.path, &unfinished).and_then(|()| {
            use rustix::fs::{CWD, renameat_with};
            let named = renameat_with(CWD, &unfinished, CWD, to, RenameFlags::NOREPLACE);
            named.map_err(|error| copy::Error { path: to.to_owned(), error: error.into() })
        });
        if copied.is_err() {
            copy::remove(&unfinished);
        }
        copied?;
        // The innermost first: each change of one changes the times of the one above.
        folders.iter().rev().try_for_each(|(was, folder)| copy::copy_attributes_of(was, folder))
    }

    /// Fails if there is something at `to`.
    fn check_free(&self, to: &Path) -> Result<()> {
        match fs::symlink_metadata(to) {
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(Failure::of(to.display(), &error)),
            Ok(_) => Err(Failure::new(format!("{} is there, and stays as it is", to.display()))
                .next(format!(
                    "To have an older one beside it, say --to PATH, and --from of: {}",
                    self.choices()
                ))),
        }
    }

    /// The folders above that are gone, too, the outermost first: as the snapshot has them, and
    /// where they were.
    fn folders(&self, version: &Version) -> Vec<(PathBuf, PathBuf)> {
        let depth = self.within.components().count();
        let above = self.path.ancestors().zip(version.path.ancestors()).take(depth).skip(1);
        let missing = above.take_while(|(path, _)| !path.is_dir());
        let mut folders: Vec<_> =
            missing.map(|(path, was)| (was.to_owned(), path.to_owned())).collect();
        folders.reverse();
        folders
    }
}

/// A name beside `to` that nobody has.
fn unfinished(to: &Path) -> PathBuf {
    let process = std::process::id();
    let mut names = (0..).map(|number: u64| format!(".undelete-{process}-{number}"));
    let free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    let paths = names.by_ref().map(|name| to.with_file_name(name));
    paths.take(1000).find(free).unwrap_or_else(|| to.with_file_name(".undelete"))
}
