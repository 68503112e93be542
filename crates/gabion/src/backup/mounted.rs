//! A snapshot as files: below `.snapshots` of a mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use gabion_backup::format::record::Content;
use gabion_backup::{Attributes, Object, Time};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, AtFlags, CWD, SeekFrom, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::source::{Bytes, Reading, Source, subvolume, within};
use crate::failure::{Failure, Result};
use crate::print;
use crate::reach::reach;

/// The longest list of names of extended attributes, and the longest value, in bytes.
const XATTR_MAX: usize = 64 << 10;

/// A directory that never changes, as a source.
pub struct Mounted {
    root: PathBuf,
    subvolume: u64,
}

impl Mounted {
    /// The snapshot at this path.
    pub fn new(root: PathBuf) -> Result<Self> {
        let found = stat(&root).map_err(|error| unreadable(&root, &error))?;
        let subvolume = subvolume(found.stx_ino);
        Ok(Self { root, subvolume })
    }
}

impl Source for Mounted {
    type Node = PathBuf;

    fn root(&self) -> Result<PathBuf> {
        Ok(self.root.clone())
    }

    fn at(&self, path: &[u8], _ino: u64) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn entries(&self, dir: &PathBuf) -> Result<Vec<(Vec<u8>, PathBuf)>> {
        let read = || -> io::Result<Vec<(Vec<u8>, PathBuf)>> {
            let mut entries = Vec::new();
            for entry in fs::read_dir(reach(dir)?)? {
                let name = entry?.file_name();
                let path = dir.join(&name);
                entries.push((name.into_vec(), path));
            }
            Ok(entries)
        };
        let mut entries = read().map_err(|error| unreadable(dir, &error))?;
        entries.sort();
        Ok(entries)
    }

    fn object(&self, path: &PathBuf) -> Result<Option<(Object, u64)>> {
        let reached = reach(path).map_err(|error| unreadable(path, &error))?;
        let stat = stat(&reached).map_err(|error| unreadable(path, &error))?;
        if subvolume(stat.stx_ino) != self.subvolume {
            return Ok(None);
        }
        let attributes = attributes(&stat);
        let target = match attributes.is_symlink() {
            true => fs::read_link(&reached).map_err(|error| unreadable(path, &error))?,
            false => PathBuf::new(),
        };
        let object = Object {
            ino: within(stat.stx_ino),
            attributes,
            content: Content::Fresh,
            target: target.into_os_string().into_vec(),
            xattrs: xattrs(&reached).map_err(|error| unreadable(path, &error.into()))?,
        };
        Ok(Some((object, stat.stx_nlink.into())))
    }

    fn reads_ahead(&self) -> bool {
        // The kernel sees to that.
        true
    }

    fn open<'s>(&'s self, path: &PathBuf, reading: Reading) -> Result<Box<dyn Bytes + 's>> {
        let file = reach(path).and_then(File::open).map_err(|error| unreadable(path, &error))?;
        if reading == Reading::Parts {
            // It is only advice.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        }
        Ok(Box::new(OpenFile { file, path: path.clone() }))
    }
}

struct OpenFile {
    file: File,
    path: PathBuf,
}

impl Bytes for OpenFile {
    fn data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let seek = |to| match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(unreadable(&self.path, &error.into())),
        };
        let Some(start) = seek(SeekFrom::Data(from))? else { return Ok(None) };
        Ok(seek(SeekFrom::Hole(start))?.map(|end| start..end))
    }

    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(unreadable(&self.path, &error.into())),
            }
        }
        bytes.truncate(count);
        Ok(bytes)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::of(format!("cannot read {}", print::path(path)), error)
}

fn stat(path: &Path) -> io::Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted)?)
}

/// What statx(2) says, as backups say it.
pub fn attributes(stat: &Statx) -> Attributes {
    let time = |time: StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    let mut attributes = Attributes {
        mode: stat.stx_mode.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: device(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: 0,
        read: time(stat.stx_atime),
        written: time(stat.stx_mtime),
        changed: time(stat.stx_ctime),
        born: time(stat.stx_btime),
    };
    if attributes.is_file() {
        attributes.size = stat.stx_size;
    }
    attributes
}

/// A device number in the kernel's encoding.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

/// Extended attributes of an object, in the order of names.
pub fn xattrs(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) => found.push((name.to_vec(), value[..length].to_vec())),
            // What a listing names and nobody may read is nothing that could be set again.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}
