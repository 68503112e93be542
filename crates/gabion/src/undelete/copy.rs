//! Copies whole trees: files with their holes, links of both kinds, devices, and all attributes.
//!
//! Attributes come in an order in which none undoes another: owner, permissions, extended
//! attributes (of which ACLs are some), and at the end the times, of folders after all that is in
//! them. So what has the times of the original is whole, and who goes on with a copy that was
//! stopped leaves it as it is.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{Files, Stat};
use crate::backup::progress::Progress;

/// What failed, and where.
#[derive(Debug)]
pub struct Error {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

type Result<T> = std::result::Result<T, Error>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error { path, error }
}

/// Something that is left to be done for a copy.
enum Step {
    /// Make the second what the first is.
    Copy(PathBuf, PathBuf),
    /// All is in the folder: give it the attributes of the first.
    Finish(PathBuf, PathBuf, Stat),
}

/// How many bytes the files of a tree have.
pub fn bytes(files: &dyn Files, path: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut rest = vec![path.to_owned()];
    while let Some(path) = rest.pop() {
        let stat = files.stat(&path).map_err(at(&path))?;
        if stat.attributes.is_directory() {
            let names = files.names(&path).map_err(at(&path))?;
            rest.extend(names.iter().map(|name| path.join(name)));
        } else if stat.attributes.is_file() {
            sum += stat.size;
        }
    }
    Ok(sum)
}

/// A copy that is being made.
pub struct Copying<'f> {
    files: &'f dyn Files,
    progress: &'f Progress,
    /// Where objects with several names were copied to.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<'f> Copying<'f> {
    /// Tells `progress` of the bytes of files.
    pub fn new(files: &'f dyn Files, progress: &'f Progress) -> Self {
        Self { files, progress, linked: HashMap::new() }
    }

    /// Makes `to` what `from` is: it is not there, or was begun and not finished.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let files = self.files;
        let mut rest = vec![Step::Copy(from.to_owned(), to.to_owned())];
        while let Some(step) = rest.pop() {
            let (from, to) = match step {
                Step::Copy(from, to) => (from, to),
                Step::Finish(from, to, stat) => {
                    copy_attributes(files, &from, &to, &stat)?;
                    continue;
                }
            };
            let stat = files.stat(&from).map_err(at(&from))?;
            if !stat.attributes.is_directory() {
                self.other(&from, &to, &stat)?;
                continue;
            }
            match make_folder(files, &to) {
                Err(Error { error, .. })
                    if error.kind() == io::ErrorKind::AlreadyExists && files.is_folder(&to) => {}
                made => made?,
            }
            let names = files.names(&from).map_err(at(&from))?;
            let inside: Vec<_> =
                names.iter().map(|name| (from.join(name), to.join(name))).collect();
            rest.push(Step::Finish(from, to, stat));
            rest.extend(inside.into_iter().map(|(from, to)| Step::Copy(from, to)));
        }
        Ok(())
    }

    /// The same for what is no folder.
    fn other(&mut self, from: &Path, to: &Path, stat: &Stat) -> Result<()> {
        let files = self.files;
        let size = if stat.attributes.is_file() { stat.size } else { 0 };
        let first = self.linked.get(&stat.identity);
        if let Ok(there) = files.stat(to) {
            let is_it = match first {
                Some(first) => files.stat(first).map_err(at(first))?.identity == there.identity,
                None => is_whole(&there, stat),
            };
            if is_it {
                self.progress.advance(size);
                self.note(to, stat);
                return Ok(());
            }
            files.remove_file(to).map_err(at(to))?;
        }
        if let Some(first) = first {
            self.progress.advance(size);
            return files.link(first, to).map_err(at(to));
        }
        match () {
            () if stat.attributes.is_file() => {
                files.copy_file(from, to, stat.size, &mut |bytes| self.progress.advance(bytes))
            }
            () if stat.attributes.is_symlink() => files.copy_symlink(from, to),
            () => files.make_node(to, &stat.attributes),
        }
        .map_err(at(to))?;
        copy_attributes(files, from, to, stat)?;
        self.note(to, stat);
        Ok(())
    }

    /// `to` is what an object became.
    fn note(&mut self, to: &Path, stat: &Stat) {
        if stat.names > 1 {
            self.linked.entry(stat.identity).or_insert_with(|| to.to_owned());
        }
    }
}

/// Whether all that `wanted` has was copied: the times come last.
fn is_whole(there: &Stat, wanted: &Stat) -> bool {
    let (found, wanted_is) = (&there.attributes, &wanted.attributes);
    let same = |of: &gabion_backup::Attributes| (of.mode, of.uid, of.gid, of.rdev, of.written);
    same(found) == same(wanted_is) && there.size == wanted.size
}

/// Makes an empty folder, for nobody but its owner yet.
pub fn make_folder(files: &dyn Files, to: &Path) -> Result<()> {
    files.make_folder(to).map_err(at(to))
}

/// Gives `to` the attributes of `from`.
pub fn copy_attributes_of(files: &dyn Files, from: &Path, to: &Path) -> Result<()> {
    let stat = files.stat(from).map_err(at(from))?;
    copy_attributes(files, from, to, &stat)
}

/// Removes what was copied so far. What cannot be removed is left.
pub fn remove(files: &dyn Files, path: &Path) {
    // A folder comes once more, when all that was in it is gone.
    let mut rest = vec![(path.to_owned(), false)];
    while let Some((path, is_empty)) = rest.pop() {
        if is_empty {
            let _ = files.remove_folder(&path);
        } else if files.is_folder(&path) {
            let names = files.names(&path).unwrap_or_default();
            let inside: Vec<_> = names.iter().map(|name| (path.join(name), false)).collect();
            rest.push((path, true));
            rest.extend(inside);
        } else {
            let _ = files.remove_file(&path);
        }
    }
}

fn copy_attributes(files: &dyn Files, from: &Path, to: &Path, stat: &Stat) -> Result<()> {
    let attributes = &stat.attributes;
    files.set_owner(to, attributes).map_err(at(to))?;
    let wanted = files.xattrs(from).map_err(at(from))?;
    // What a new object has got from its folder, such as an ACL.
    for (name, _) in files.xattrs(to).map_err(at(to))? {
        if wanted.iter().all(|(other, _)| *other != name) {
            // What cannot be taken away, the system has put there.
            let _ = files.remove_xattr(to, &name);
        }
    }
    if !attributes.is_symlink() {
        files.set_permissions(to, attributes).map_err(at(to))?;
    }
    wanted.iter().try_for_each(|xattr| files.set_xattr(to, xattr)).map_err(at(to))?;
    files.set_times(to, attributes).map_err(at(to))
}
