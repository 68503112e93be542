//! A snapshot as items of a map: on an image, a device or a volume that nobody has in use, or
//! beside who has it in use.

use std::ops::Range;

use gabion_backup::format::record::Content;
use gabion_backup::{Attributes, Object, Time};
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Detail, Error, ROOT};
use gabion_map::FileId;
use gabion_map::txn::SeekTarget;
use gabion_node::LocalFs;

use super::source::{Bytes, Reading, Source};
use crate::failure::{Failure, Result};

/// Entries that are listed at once.
const ENTRIES: usize = 1000;

/// A snapshot of an open filesystem, as a source.
pub struct Stored<'f> {
    fs: &'f LocalFs,
    root: FileId,
}

impl<'f> Stored<'f> {
    /// The snapshot `name` of the subvolume `of`.
    pub fn new(fs: &'f LocalFs, of: SubvolId, name: &str) -> Result<Self> {
        let found = fs.map().find_snapshot(of, name.as_bytes());
        let found = found.ok_or_else(|| Failure::new(format!("there is no snapshot {name:?}")))?;
        Ok(Self { fs, root: FileId::new(found, ROOT) })
    }

    /// What `fs` is, which is a snapshot.
    pub fn all_of(fs: &'f LocalFs) -> Self {
        Self { fs, root: fs.root() }
    }
}

fn unreadable(file: FileId, error: &Error) -> Failure {
    Failure::of(format!("cannot read object {}", file.ino.0), error)
}

impl Source for Stored<'_> {
    type Node = FileId;

    fn root(&self) -> Result<FileId> {
        Ok(self.root)
    }

    fn at(&self, _path: &[u8], ino: u64) -> FileId {
        FileId::new(self.root.subvol, Ino(ino))
    }

    fn entries(&self, dir: &FileId) -> Result<Vec<(Vec<u8>, FileId)>> {
        let mut entries = entries(self.fs, *dir).map_err(|error| unreadable(*dir, &error))?;
        entries.sort();
        Ok(entries)
    }

    fn object(&self, file: &FileId) -> Result<Option<(Object, u64)>> {
        if file.subvol != self.root.subvol {
            return Ok(None);
        }
        let read = || -> gabion_fs::Result<(Object, u64)> {
            let stat = self.fs.stat(*file)?;
            let attributes = attributes(&stat);
            let target = match attributes.is_symlink() {
                true => self.fs.readlink(*file)?,
                false => Vec::new(),
            };
            let xattrs = xattrs(self.fs, *file)?;
            let content = Content::Fresh;
            let object = Object { ino: file.ino.0, attributes, content, target, xattrs };
            Ok((object, stat.nlink.into()))
        };
        read().map(Some).map_err(|error| unreadable(*file, &error))
    }

    fn reads_ahead(&self) -> bool {
        false
    }

    fn open<'s>(&'s self, file: &FileId, _reading: Reading) -> Result<Box<dyn Bytes + 's>> {
        Ok(Box::new(OpenFile { fs: self.fs, file: *file }))
    }
}

struct OpenFile<'f> {
    fs: &'f LocalFs,
    file: FileId,
}

impl Bytes for OpenFile<'_> {
    fn data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let seek = |from, target| match self.fs.seek(self.file, from, target) {
            Ok(at) => Ok(Some(at)),
            Err(Error::NoSuchOffset) => Ok(None),
            Err(error) => Err(unreadable(self.file, &error)),
        };
        let Some(start) = seek(from, SeekTarget::Data)? else { return Ok(None) };
        Ok(seek(start, SeekTarget::Hole)?.map(|end| start..end))
    }

    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let read = self.fs.read(self.file, offset, &mut bytes);
        bytes.truncate(read.map_err(|error| unreadable(self.file, &error))?);
        Ok(bytes)
    }
}

/// What a directory has, in its own order.
pub fn entries(fs: &LocalFs, dir: FileId) -> gabion_fs::Result<Vec<(Vec<u8>, FileId)>> {
    let mut entries = Vec::new();
    let mut cookie = 0;
    loop {
        let listing = fs.readdir(dir, cookie, ENTRIES, Detail::Names)?;
        for entry in &listing.entries {
            cookie = entry.cookie;
            if !matches!(entry.name(), b"." | b"..") {
                entries.push((entry.name().to_vec(), fs.file(entry.ino)));
            }
        }
        if listing.is_complete || listing.entries.is_empty() {
            return Ok(entries);
        }
    }
}

/// Extended attributes of an object, in the order of names.
pub fn xattrs(fs: &LocalFs, file: FileId) -> gabion_fs::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let caller = Caller::superuser();
    let mut found = Vec::new();
    let names = fs.xattr_names(&caller, file)?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        found.push((name.to_vec(), fs.xattr(&caller, file, name)?));
    }
    found.sort();
    Ok(found)
}

/// What an object is, as backups say it.
pub fn attributes(stat: &gabion_fs::Attributes) -> Attributes {
    let time = |time: Timestamp| Time { seconds: time.seconds, nanoseconds: time.nanos };
    let mut attributes = Attributes {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: 0,
        read: time(stat.atime),
        written: time(stat.mtime),
        changed: time(stat.ctime),
        born: time(stat.btime),
    };
    if attributes.is_file() {
        attributes.size = stat.size;
    }
    attributes
}
