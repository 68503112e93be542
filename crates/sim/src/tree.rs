//! A mounted filesystem written down: all names, attributes and bytes.
//!
//! Two filesystems are equal in their [`Namespace`] if every path leads to an object with equal
//! attributes, and the same paths lead to the same object. What number an object has is its own
//! affair; [`Namespace::digest`] does not depend on it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::op::{Errno, Kind, Op, Outcome, Status};

/// Something that operations can be applied to: a filesystem, real or not.
pub trait System {
    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Outcome;

    /// Writes down all that can be reached by a path.
    fn dump(&mut self) -> Result<Tree, Errno>;
}

/// What an object is, but for a file's size and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Equal for two paths exactly if they are links of one object.
    pub id: u64,
    /// Attributes. The size is 0 here, for every kind.
    pub status: Status,
    /// What a symbolic link says, else empty.
    pub target: String,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// All paths and their objects. The root is `""`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// By path.
    pub objects: BTreeMap<String, Object>,
}

/// A namespace with the bytes of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The names and attributes.
    pub namespace: Namespace,
    /// The bytes of each file, by [`Object::id`].
    pub files: BTreeMap<u64, Vec<u8>>,
}

impl Namespace {
    /// Equal for equal namespaces; different ones collide by chance only.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut first: HashMap<u64, usize> = HashMap::new();
        for (number, (path, object)) in self.objects.iter().enumerate() {
            let Object { id, status, target, xattrs } = object;
            path.hash(&mut hasher);
            first.entry(*id).or_insert(number).hash(&mut hasher);
            status.hash(&mut hasher);
            target.hash(&mut hasher);
            xattrs.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Says in a few lines how `other` differs. Empty if it does not.
    pub fn difference(&self, other: &Self) -> String {
        const LINES_MAX: usize = 12;
        let mut lines = Vec::new();
        let (mine, theirs) = (self.first_paths(), other.first_paths());
        for (path, object) in &self.objects {
            match other.objects.get(path) {
                None => lines.push(format!("{path:?} is absent")),
                Some(found) if Object { id: object.id, ..found.clone() } != *object => {
                    lines.push(format!("{path:?} is {found:?} and not {object:?}"));
                }
                Some(found) if mine[&object.id] != theirs[&found.id] => {
                    let (mine, theirs) = (mine[&object.id], theirs[&found.id]);
                    lines.push(format!("{path:?} is a link of {theirs:?} and not of {mine:?}"));
                }
                Some(_) => {}
            }
        }
        let extra = other.objects.keys().filter(|path| !self.objects.contains_key(*path));
        lines.extend(extra.map(|path| format!("{path:?} is there")));
        if lines.len() > LINES_MAX {
            let more = lines.len() - LINES_MAX;
            lines.truncate(LINES_MAX);
            lines.push(format!("and {more} more"));
        }
        lines.join("\n")
    }

    fn first_paths(&self) -> HashMap<u64, &str> {
        let mut first = HashMap::new();
        for (path, object) in &self.objects {
            first.entry(object.id).or_insert(path.as_str());
        }
        first
    }

    /// Paths of objects of `kind`.
    pub fn paths(&self, kind: Kind) -> impl Iterator<Item = &String> {
        self.objects.iter().filter(move |(_, object)| object.status.kind == kind).map(|at| at.0)
    }
}

/// `name` in the directory at `path`.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u64, nlink: u32) -> Object {
        let (kind, mode) = (Kind::File, 0o644);
        let status = Status { kind, mode, uid: 0, gid: 0, nlink, rdev: 0, size: 0 };
        Object { id, status, target: String::new(), xattrs: BTreeMap::new() }
    }

    fn namespace(ids: [u64; 4]) -> Namespace {
        let objects = ["a", "b", "c", "d"].into_iter().zip(ids);
        let objects = objects.map(|(path, id)| (path.to_owned(), file(id, 2))).collect();
        Namespace { objects }
    }

    #[test]
    fn numbers_do_not_matter_and_links_do() {
        let one = namespace([1, 2, 1, 2]);
        assert_eq!(one.digest(), namespace([9, 5, 9, 5]).digest());
        assert_eq!(one.difference(&namespace([9, 5, 9, 5])), "");
        let other = namespace([1, 1, 2, 2]);
        assert_ne!(one.digest(), other.digest());
        assert!(one.difference(&other).contains("is a link of"));
    }
}
