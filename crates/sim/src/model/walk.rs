//! Paths: from the root to an object, through symbolic links.

use super::{Body, Model, Number, ROOT};
use crate::op::Errno;

/// What Linux follows before it takes a path for a loop.
const SYMLINKS_MAX: u32 = 40;
/// The longest name in bytes.
const NAME_LENGTH_MAX: usize = 255;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LastLink {
    Followed,
    Meant,
}

/// The end of a path: a name in a directory, and what is there.
pub(super) struct Spot {
    pub(super) directory: Number,
    pub(super) name: String,
    found: Option<Number>,
}

impl Spot {
    /// What is there. Only now it matters that the name may be too long.
    pub(super) fn found(&self) -> Result<Option<Number>, Errno> {
        check_length(&self.name)?;
        Ok(self.found)
    }
}

impl Model {
    /// Where `path` leads. Everything but its last name must exist.
    pub(super) fn spot(&self, path: &str, last_link: LastLink) -> Result<Spot, Errno> {
        let mut rest = components(path);
        let mut directory = ROOT;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let Body::Directory { entries, parent } = &self.inode(directory).body else {
                return Err(Errno::ENOTDIR);
            };
            if !rest.is_empty() {
                check_length(&name)?;
            }
            let found = match name.as_str() {
                "." => Some(directory),
                ".." => Some(*parent),
                _ => entries.get(&name).copied(),
            };
            let last = rest.is_empty();
            match found {
                None if !last => return Err(Errno::ENOENT),
                None => return Ok(Spot { directory, name, found }),
                Some(number) => match &self.inode(number).body {
                    Body::Symlink(target) if !last || last_link == LastLink::Followed => {
                        links += 1;
                        if links > SYMLINKS_MAX {
                            return Err(Errno::ELOOP);
                        }
                        if target.starts_with('/') {
                            directory = ROOT;
                        }
                        rest.extend(components(target));
                    }
                    _ if last => return Ok(Spot { directory, name, found }),
                    _ => directory = number,
                },
            }
        }
        Ok(Spot { directory, name: ".".to_owned(), found: Some(directory) })
    }

    /// The object at `path`; a symbolic link at its end is meant itself.
    pub(super) fn lookup(&self, path: &str) -> Result<Number, Errno> {
        self.spot(path, LastLink::Meant)?.found()?.ok_or(Errno::ENOENT)
    }

    /// The object at `path`, beyond symbolic links.
    pub(super) fn lookup_followed(&self, path: &str) -> Result<Number, Errno> {
        self.spot(path, LastLink::Followed)?.found()?.ok_or(Errno::ENOENT)
    }

    /// The directory and the name at which something new is to be.
    pub(super) fn free_spot(&self, path: &str) -> Result<(Number, String), Errno> {
        let spot = self.spot(path, LastLink::Meant)?;
        match spot.found()? {
            Some(_) => Err(Errno::EEXIST),
            None => Ok((spot.directory, spot.name)),
        }
    }
}

fn check_length(name: &str) -> Result<(), Errno> {
    if name.len() > NAME_LENGTH_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

/// The names of a path, the last one first.
fn components(path: &str) -> Vec<String> {
    path.split('/').rev().filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
