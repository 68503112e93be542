//! Where a restored tree goes. It is made under a name that nobody takes for a whole one, and gets
//! its own when it is complete.
//!
//! ```text
//!   nothing is at PATH             made as .NAME.restoring-STREAM beside it, then renamed
//!   an empty directory is there    made as .restoring-STREAM in it, then moved up entry by entry;
//!                                  as long as that directory is there, it is not complete
//! ```
//!
//! Who is stopped can go on: what has been made under that name is kept, as far as it is whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gabion_backup::{Object, StreamId};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::dress::{Inherited, dress};
use crate::failure::{Failure, Result};
use crate::mounts;

/// A place for a tree.
pub struct Place {
    path: PathBuf,
    /// Where it is made.
    pub scratch: PathBuf,
    is_within: bool,
}

impl Place {
    /// Looks whether something can be restored to `path`, for which that must be on Gabion unless
    /// `anywhere`.
    pub fn of(path: &Path, stream: StreamId, anywhere: bool) -> Result<Self> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::of(format!("cannot restore to {shown}"), &error);
        let path = std::path::absolute(path).map_err(failed)?;
        Self::check(&path, anywhere)?;
        let short = &stream.to_string()[..8];
        let within = path.join(format!(".restoring-{short}"));
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                for entry in fs::read_dir(&path).map_err(failed)? {
                    let entry = entry.map_err(failed)?.path();
                    if entry != within && entry.file_name() != Some("lost+found".as_ref()) {
                        return Err(Failure::new(format!("{shown} is not empty"))
                            .next("Name a path where nothing is, or an empty directory."));
                    }
                }
                Ok(Self { path, scratch: within, is_within: true })
            }
            Ok(_) => Err(Failure::new(format!("{shown} is there already"))
                .next("Name a path where nothing is, or an empty directory.")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = path.file_name().ok_or_else(|| {
                    Failure::new(format!("{shown} is no name that could be given"))
                })?;
                let mut scratch = OsString::from(".");
                scratch.push(name);
                scratch.push(format!(".restoring-{short}"));
                let scratch = path.with_file_name(scratch);
                Ok(Self { path, scratch, is_within: false })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Fails unless `path` is on Gabion, or may be `anywhere`.
    pub fn check(path: &Path, anywhere: bool) -> Result<()> {
        if anywhere || mounts::containing(path)?.is_some() {
            return Ok(());
        }
        let shown = path.display();
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        if let Some(parent) = parent
            && let Err(error) = fs::metadata(parent)
        {
            let what = format!("cannot restore to {shown}: {}", parent.display());
            return Err(Failure::of(what, &error));
        }
        Err(Failure::new(format!("{shown} is on no Gabion filesystem that is mounted"))
            .next("Mount it first, or say --to-directory if another filesystem is meant."))
    }

    /// Whether the tree's root has to become a directory that is there.
    pub fn is_directory(&self) -> bool {
        self.is_within
    }

    /// Makes what was restored durable and gives it its name. `root` is what the tree's root is.
    pub fn finish(&self, root: &Object) -> Result<()> {
        let failed = |error: io::Error| {
            let what = format!("{} is restored, and cannot be named", self.scratch.display());
            Failure::of(what, &error)
        };
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let folder = if self.is_within { &*self.path } else { parent };
        let folder = File::open(folder).map_err(failed)?;
        rustix::fs::syncfs(&folder).map_err(|error| failed(error.into()))?;
        let rename = |from: &Path, to: &Path| {
            match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                // Not every filesystem has it.
                Err(Errno::INVAL) => fs::rename(from, to).map_err(failed),
                renamed => renamed.map_err(|error| failed(error.into())),
            }
        };
        if self.is_within {
            for entry in fs::read_dir(&self.scratch).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                rename(&entry.path(), &self.path.join(entry.file_name()))?;
            }
            fs::remove_dir(&self.scratch).map_err(failed)?;
            dress(root, &self.path, Inherited::MayBe).map_err(failed)?;
        } else {
            rename(&self.scratch, &self.path)?;
        }
        rustix::fs::syncfs(&folder).map_err(|error| failed(error.into()))
    }
}
