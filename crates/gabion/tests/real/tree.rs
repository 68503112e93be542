//! Real trees of files: a large one made of what every machine has, and whether two are the same.
//!
//! Two trees are the same if every path has the same type, permissions, owners, content or target,
//! modification time to the nanosecond, device number, extended attributes, and if the same names
//! are links to one file.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::run;

/// Where there are many files of all sizes on any machine that builds this.
const SOURCES: &[&str] =
    &["/usr/lib/python3.11", "/usr/share/perl", "/usr/share/zoneinfo", "/usr/include"];

/// Makes a tree of at least `files` files, with some of everything that a tree can hold.
pub fn plant(target: &Path, files: usize) {
    fs::create_dir_all(target).unwrap();
    let mut planted = 0;
    for source in SOURCES.iter().map(Path::new).filter(|source| source.is_dir()) {
        let name = source.file_name().expect("no source is the root");
        planted += copy_some(source, &target.join(name), files - planted);
        if planted >= files {
            break;
        }
    }
    assert!(planted >= files, "this machine has only {planted} files in {SOURCES:?}");
    oddities(&target.join("oddities"));
}

fn copy_some(source: &Path, target: &Path, limit: usize) -> usize {
    let mut count = 0;
    let mut folders = vec![(source.to_owned(), target.to_owned())];
    while let Some((source, target)) = folders.pop() {
        fs::create_dir_all(&target).unwrap();
        let mut entries: Vec<_> = fs::read_dir(&source).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type().unwrap();
            let target = target.join(entry.file_name());
            if kind.is_dir() {
                folders.push((entry.path(), target));
            } else if kind.is_symlink() {
                symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
            } else if kind.is_file() && count < limit {
                // Some other program may be removing files there.
                if fs::copy(entry.path(), &target).is_ok() {
                    count += 1;
                }
            }
        }
    }
    count
}

fn oddities(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("first"), "linked").unwrap();
    fs::hard_link(folder.join("first"), folder.join("second")).unwrap();
    fs::hard_link(folder.join("first"), folder.join("third")).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    symlink("a target that is not there", folder.join("dangling")).unwrap();
    symlink("x".repeat(4000), folder.join("long target")).unwrap();
    for mode in [0o000, 0o4755, 0o2755, 0o1777, 0o200] {
        let path = folder.join(format!("mode {mode:o}"));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.write_all_at(b"end", (5 << 20) + 7).unwrap();
    let owned = folder.join("owned");
    fs::write(&owned, "").unwrap();
    std::os::unix::fs::chown(&owned, Some(12345), Some(4_000_000_000)).unwrap();
    run(Command::new("mkfifo").arg(folder.join("fifo")));
    run(Command::new("mknod").arg(folder.join("null")).args(["c", "1", "3"]));
    run(Command::new("touch").args(["-d", "1969-12-31 23:59:59.123456789Z"]).arg(&owned));
}

/// What two trees are compared by.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    owners: (u32, u32),
    modified: (i64, i64),
    device: u64,
    links: u64,
    /// The first path of the same file.
    same_as: PathBuf,
    content: Content,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Bytes { length: u64, hash: u64 },
    Target(PathBuf),
    Names(usize),
    Nothing,
}

/// Panics with the first differences if the trees are not the same.
pub fn assert_same(wanted: &Path, found: &Path) {
    let (wanted, found) = (survey(wanted), survey(found));
    let mut differences = Vec::new();
    for (path, node) in &wanted {
        if found.get(path) != Some(node) {
            let path = path.display();
            differences.push(format!(
                "{path}: {node:?} became {:?}",
                found.get(Path::new(&path.to_string()))
            ));
        }
    }
    let extra = found.keys().filter(|path| !wanted.contains_key(*path));
    differences.extend(extra.map(|path| format!("{} came from nowhere", path.display())));
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(10)].join("\n")
    );
}

/// Files and directories below `root`; every byte is read on the way.
pub fn count(root: &Path) -> usize {
    survey(root).len()
}

fn survey(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut firsts: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for name in names(&root.join(&folder)) {
            let path = folder.join(&name);
            let full = root.join(&path);
            let metadata = fs::symlink_metadata(&full)
                .unwrap_or_else(|error| panic!("{}: {error}", full.display()));
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let content = content(&full, &metadata);
            let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
            if links > 1 {
                // In the order of paths, whatever order they were found in.
                let first = firsts.entry(metadata.ino()).or_insert_with(|| path.clone());
                if path < *first {
                    first.clone_from(&path);
                }
            }
            let node = Node {
                mode: metadata.mode(),
                owners: (metadata.uid(), metadata.gid()),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                device: metadata.rdev(),
                links,
                // Replaced below, when all names are known.
                same_as: PathBuf::from(metadata.ino().to_string()),
                content,
            };
            nodes.insert(path, node);
        }
    }
    for (path, node) in &mut nodes {
        let number = node.same_as.to_str().and_then(|number| number.parse().ok());
        let number: u64 = number.expect("the number was written above");
        node.same_as = firsts.get(&number).unwrap_or(path).clone();
    }
    nodes
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn content(path: &Path, metadata: &Metadata) -> Content {
    if metadata.is_dir() {
        Content::Names(names(path).len())
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).unwrap();
        assert_eq!(metadata.len(), target.as_os_str().as_bytes().len() as u64);
        Content::Target(target)
    } else if metadata.is_file() {
        let (length, hash) = hash(path);
        assert_eq!(length, metadata.len(), "{} is as long as it says", path.display());
        Content::Bytes { length, hash }
    } else {
        Content::Nothing
    }
}

/// FNV-1a by words of eight bytes: only chance has to be told from equality here.
fn hash(path: &Path) -> (u64, u64) {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let (mut length, mut hash) = (0, 0xcbf2_9ce4_8422_2325_u64);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        for word in buffer[..filled].chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3);
            hash ^= hash >> 29;
        }
        length += filled as u64;
        if filled < buffer.len() {
            return (length, hash);
        }
    }
}
