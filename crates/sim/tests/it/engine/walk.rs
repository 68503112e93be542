//! Paths, as the kernel walks them.

use gabion_fs::{self as fs, Attributes, FileType};
use gabion_map::FileId;
use gabion_sim::op::{Errno, Target};

use super::{Mounted, ROOT};

/// What Linux follows before it takes a path for a loop.
const SYMLINKS_MAX: u32 = 40;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    Followed,
    Meant,
}

/// The end of a path: a name in a directory.
pub struct Spot {
    pub dir: FileId,
    pub name: Vec<u8>,
    /// What is there; not looked at if the link is meant itself.
    pub found: Option<Attributes>,
}

impl Mounted {
    /// Where `path` leads. Everything but its last name must exist.
    pub fn spot(&self, path: &str, last_link: LastLink) -> Result<Spot, Errno> {
        let mut rest = components(path.as_bytes());
        let mut dir = self.run(|txn| fs::stat(txn, ROOT))?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if dir.file_type() != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            let at = dir.file;
            if rest.is_empty() && last_link == LastLink::Meant {
                return Ok(Spot { dir: at, name, found: None });
            }
            let found = match self.run(|txn| fs::lookup(txn, &self.ctx, at, &name)) {
                Err(Errno::ENOENT) if rest.is_empty() => {
                    return Ok(Spot { dir: at, name, found: None });
                }
                found => found?,
            };
            if found.file_type() == FileType::Symlink {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(Errno::ELOOP);
                }
                rest.extend(components(&self.run(|txn| fs::readlink(txn, found.file))?));
            } else if rest.is_empty() {
                return Ok(Spot { dir: at, name, found: Some(found) });
            } else {
                dir = found;
            }
        }
        Ok(Spot { dir: dir.file, name: b".".to_vec(), found: Some(dir) })
    }

    /// The directory that is to have a new name, and the name.
    pub fn parent(&self, path: &str) -> Result<(FileId, Vec<u8>), Errno> {
        let spot = self.spot(path, LastLink::Meant)?;
        Ok((spot.dir, spot.name))
    }

    /// The object at `path`; a symbolic link at its end is meant itself.
    pub fn lookup(&self, path: &str) -> Result<Attributes, Errno> {
        let spot = self.spot(path, LastLink::Meant)?;
        self.run(|txn| fs::lookup(txn, &self.ctx, spot.dir, &spot.name))
    }

    /// The object itself, or what a symbolic link leads to.
    pub fn followed(&mut self, target: &Target) -> Result<Attributes, Errno> {
        let found = match target {
            Target::Path(path) => {
                self.spot(path, LastLink::Followed)?.found.ok_or(Errno::ENOENT)?
            }
            Target::Slot(slot) => {
                let file = *self.slots.get(slot).ok_or(Errno::EBADF)?;
                self.run(|txn| fs::stat(txn, file))?
            }
        };
        self.recent = found.file;
        Ok(found)
    }

    /// The object as `open` finds it: special files are never opened.
    pub fn opened(&mut self, target: &Target) -> Result<Attributes, Errno> {
        let found = self.followed(target)?;
        match found.file_type() {
            FileType::Regular | FileType::Directory => Ok(found),
            _ => Err(Errno::ENXIO),
        }
    }

    /// A file whose bytes are wanted.
    pub fn file(&mut self, target: &Target) -> Result<FileId, Errno> {
        let found = self.opened(target)?;
        match found.file_type() {
            FileType::Directory => Err(Errno::EISDIR),
            _ => Ok(found.file),
        }
    }

    /// Whether `inner` is `outer` or below it.
    pub fn is_within(&self, inner: FileId, outer: FileId) -> Result<bool, Errno> {
        let mut at = inner;
        while at != outer {
            if at == ROOT {
                return Ok(false);
            }
            at = self.run(|txn| fs::lookup_parent(txn, at))?.file;
        }
        Ok(true)
    }
}

/// The names of a path, the last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}
