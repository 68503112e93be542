//! Copies whole trees: files with their holes, links of both kinds, devices, and all attributes.
//!
//! Attributes come in an order in which none undoes another: owner, permissions, extended
//! attributes (of which ACLs are some), and at the end the times, of folders after all that is in
//! them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{Files, Stat};

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

/// Makes `to`, which is not there, what `from` is.
pub fn copy(files: &dyn Files, from: &Path, to: &Path) -> Result<()> {
    // Where objects with several names were copied to.
    let mut linked = HashMap::new();
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
            copy_other(files, &from, &to, &stat, &mut linked)?;
            continue;
        }
        make_folder(files, &to)?;
        let names = files.names(&from).map_err(at(&from))?;
        let inside: Vec<_> = names.iter().map(|name| (from.join(name), to.join(name))).collect();
        rest.push(Step::Finish(from, to, stat));
        rest.extend(inside.into_iter().map(|(from, to)| Step::Copy(from, to)));
    }
    Ok(())
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

fn copy_other(
    files: &dyn Files,
    from: &Path,
    to: &Path,
    stat: &Stat,
    linked: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<()> {
    if let Some(first) = linked.get(&stat.identity) {
        return files.link(first, to).map_err(at(to));
    }
    match () {
        () if stat.attributes.is_file() => files.copy_file(from, to, stat.size),
        () if stat.attributes.is_symlink() => files.copy_symlink(from, to),
        () => files.make_node(to, &stat.attributes),
    }
    .map_err(at(to))?;
    if stat.names > 1 {
        linked.insert(stat.identity, to.to_owned());
    }
    copy_attributes(files, from, to, stat)
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
