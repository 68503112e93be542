//! Copies whole trees: files with their holes, links of both kinds, devices, and all attributes.
//!
//! Bytes are copied by copy_file_range(2), so that whoever keeps them can share blocks.
//!
//! Attributes come in an order in which none undoes another: owner, permissions, extended
//! attributes (of which ACLs are some), and at the end the times, of folders after all that is in
//! them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Bytes that are asked for at once.
const CHUNK: usize = 1 << 30;
/// The longest list of extended attributes, and the longest value, that Linux knows.
const XATTRS_MAX: usize = 64 << 10;

/// What failed, and where.
#[derive(Debug)]
pub struct Error {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

type Result<T> = std::result::Result<T, Error>;

fn at<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |error| Error { path, error: error.into() }
}

/// Copies one tree.
#[derive(Default)]
pub struct Copier {
    /// Where objects with several names were copied to, by device and number.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copier {
    /// Makes `to`, which is not there, what `from` is.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(from).map_err(at(from))?;
        if metadata.is_dir() {
            make_folder(to)?;
            for entry in fs::read_dir(from).map_err(at(from))? {
                let name = entry.map_err(at(from))?.file_name();
                self.copy(&from.join(&name), &to.join(&name))?;
            }
            return copy_attributes(from, to, &metadata);
        }
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1
            && let Some(first) = self.linked.get(&identity)
        {
            return fs::hard_link(first, to).map_err(at(to));
        }
        match metadata.is_file() {
            true => copy_bytes(from, to, metadata.len())?,
            false if metadata.is_symlink() => {
                let target = fs::read_link(from).map_err(at(from))?;
                std::os::unix::fs::symlink(target, to).map_err(at(to))?;
            }
            false => make_special(to, &metadata)?,
        }
        if metadata.nlink() > 1 {
            self.linked.insert(identity, to.to_owned());
        }
        copy_attributes(from, to, &metadata)
    }
}

/// Makes an empty folder, for nobody but its owner yet.
pub fn make_folder(to: &Path) -> Result<()> {
    rustix::fs::mkdirat(CWD, to, Mode::RWXU).map_err(at(to))
}

/// Gives `to` the attributes of `from`.
pub fn copy_attributes_of(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(from).map_err(at(from))?;
    copy_attributes(from, to, &metadata)
}

/// Removes what was copied so far. What cannot be removed is left.
pub fn remove(path: &Path) {
    let _ = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
}

/// Makes a pipe, socket or device, for nobody but its owner yet.
fn make_special(to: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_socket() => FileType::Socket,
        () if kind.is_char_device() => FileType::CharacterDevice,
        () => FileType::BlockDevice,
    };
    rustix::fs::mknodat(CWD, to, kind, Mode::RUSR, metadata.rdev()).map_err(at(to))
}

fn copy_bytes(from: &Path, to: &Path, length: u64) -> Result<()> {
    let source = File::open(from).map_err(at(from))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let target = options.open(to).map_err(at(to))?;
    target.set_len(length).map_err(at(to))?;
    let mut end = 0;
    // From data to data, so that holes stay holes.
    while let Some(start) = seek(&source, SeekFrom::Data(end)).map_err(at(from))? {
        end = seek(&source, SeekFrom::Hole(start)).map_err(at(from))?.unwrap_or(length);
        copy_range(&source, &target, start, end).map_err(at(to))?;
    }
    Ok(())
}

/// The next data or hole; `None`: there is none.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(source: &File, target: &File, from: u64, to: u64) -> io::Result<()> {
    let (mut read, mut write) = (from, from);
    while read < to {
        let length = (to - read).min(CHUNK as u64) as usize;
        let (place, goal) = (Some(&mut read), Some(&mut write));
        match rustix::fs::copy_file_range(source, place, target, goal, length) {
            // It has become shorter, which nothing in a snapshot does.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_attributes(from: &Path, to: &Path, metadata: &Metadata) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    rustix::fs::chownat(CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(at(to))?;
    if !metadata.is_symlink() {
        let mode = Mode::from_raw_mode(metadata.mode() & 0o7777);
        rustix::fs::chmodat(CWD, to, mode, AtFlags::empty()).map_err(at(to))?;
    }
    copy_xattrs(from, to)?;
    let time = |seconds: i64, nanos: i64| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at(to))
}

fn copy_xattrs(from: &Path, to: &Path) -> Result<()> {
    let mut names = vec![0; XATTRS_MAX];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length.map_err(at(from))?,
    };
    let mut value = vec![0; XATTRS_MAX];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let length = rustix::fs::lgetxattr(from, name, &mut value[..]).map_err(at(from))?;
        let flags = XattrFlags::empty();
        rustix::fs::lsetxattr(to, name, &value[..length], flags).map_err(at(to))?;
    }
    Ok(())
}
