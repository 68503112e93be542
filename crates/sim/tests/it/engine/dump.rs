//! A mounted Gabion written down.

use std::collections::{BTreeMap, VecDeque};

use gabion_base::ids::SubvolId;
use gabion_fs::{self as fs, Attributes, Detail, FileType, xattr};
use gabion_map::FileId;
use gabion_sim::op::{Errno, Kind, Status};
use gabion_sim::tree::{Namespace, Object, Tree, join};

use super::Mounted;

/// Entries of a directory that are read at once: few, so that listings go on.
const ENTRIES_AT_ONCE: usize = 7;

pub fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharDevice => Kind::CharDevice,
        _ => Kind::File,
    }
}

pub fn status(attributes: &Attributes) -> Status {
    let kind = kind(attributes.file_type());
    Status {
        kind,
        mode: attributes.mode & 0o7777,
        uid: attributes.uid,
        gid: attributes.gid,
        nlink: attributes.nlink,
        rdev: u64::from(attributes.rdev),
        size: if kind == Kind::Directory { 0 } else { attributes.size },
    }
}

impl Mounted {
    /// Names and kinds in a directory without the dots, sorted.
    pub fn entries(&self, dir: FileId) -> Result<Vec<(String, Kind)>, Errno> {
        let mut entries = Vec::new();
        let mut cookie = 0;
        loop {
            let listing =
                self.run(|txn| fs::readdir(txn, dir, cookie, ENTRIES_AT_ONCE, Detail::Names))?;
            for entry in &listing.entries {
                cookie = entry.cookie;
                if !matches!(entry.name(), b"." | b"..") {
                    let name = String::from_utf8_lossy(entry.name()).into_owned();
                    entries.push((name, kind(entry.file_type)));
                }
            }
            if listing.is_complete {
                entries.sort();
                return Ok(entries);
            }
        }
    }

    /// All names of extended attributes, sorted.
    pub fn xattr_names(&self, file: FileId) -> Result<Vec<String>, Errno> {
        let list = self.run(|txn| xattr::list(txn, &self.ctx, file))?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> =
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort();
        Ok(names)
    }

    pub fn read_all(&self, file: FileId, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
        self.run(|txn| {
            let mut bytes = vec![0xee; length as usize];
            let read = fs::read(txn, file, offset, &mut bytes)?;
            bytes.truncate(read);
            Ok(bytes)
        })
    }

    pub fn dump_subvolume(&self, subvol: SubvolId) -> Result<Tree, Errno> {
        let mut tree = Tree { namespace: Namespace::default(), files: BTreeMap::new() };
        let root = self.run(|txn| fs::stat(txn, FileId::new(subvol, fs::ROOT)))?;
        let mut ahead = VecDeque::from([(String::new(), root)]);
        while let Some((path, attributes)) = ahead.pop_front() {
            let file = attributes.file;
            let object = self.object(&attributes)?;
            match object.status.kind {
                Kind::Directory => {
                    for (name, _) in self.entries(file)? {
                        let found =
                            self.run(|txn| fs::lookup(txn, &self.ctx, file, name.as_bytes()))?;
                        ahead.push_back((join(&path, &name), found));
                    }
                }
                Kind::File => {
                    // One byte more than there are: nothing may follow.
                    let bytes = self.read_all(file, 0, attributes.size + 1)?;
                    tree.files.insert(file.ino.0, bytes);
                }
                _ => {}
            }
            tree.namespace.objects.insert(path, object);
        }
        Ok(tree)
    }

    fn object(&self, attributes: &Attributes) -> Result<Object, Errno> {
        let file = attributes.file;
        let status = Status { size: 0, ..status(attributes) };
        let target = match status.kind {
            Kind::Symlink => {
                let target = self.run(|txn| fs::readlink(txn, file))?;
                String::from_utf8_lossy(&target).into_owned()
            }
            _ => String::new(),
        };
        let mut xattrs = BTreeMap::new();
        for name in self.xattr_names(file)? {
            let value = self.run(|txn| xattr::value(txn, &self.ctx, file, name.as_bytes()))?;
            xattrs.insert(name, value);
        }
        Ok(Object { id: file.ino.0, status, target, xattrs })
    }
}
