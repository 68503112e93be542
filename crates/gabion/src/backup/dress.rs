//! Gives a restored object what stat(2) and getxattr(2) say of it.
//!
//! The owner comes first, since a change of it takes set-user-ID bits and capabilities away; the
//! permissions before access lists, which contain them; and the times last.
//!
//! Gabion takes all of that. Of other filesystems some have no owners, no access lists or coarser
//! times; there what is not taken is counted, and that is no failure.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use gabion_backup::{Attributes, Object, Time};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, StatVfs, Statx, StatxFlags, Timespec, Timestamps, XattrFlags,
    makedev,
};
use rustix::io::Errno;

use super::losses::Losses;
use super::mounted::xattrs;

/// A filesystem with so much room had no room for an extended attribute as that is too long for it.
const ROOM: u64 = 16 << 20;

/// Makes a pipe, socket or device.
pub fn make_node(like: &Attributes, path: &Path) -> io::Result<()> {
    let kind = FileType::from_raw_mode(like.mode);
    let rdev = like.rdev;
    let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | (rdev >> 12) & 0xfff00);
    let device = makedev(major, minor);
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?)
}

/// What an object may have that nobody gave to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Extended attributes of its directory, such as access lists.
    MayBe,
    /// It was just made where there is nothing to inherit.
    Nothing,
}

/// What to do where a filesystem does not take all of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It is to be equal, but for extended attributes that nobody may set here.
    All,
    /// What is not taken is counted.
    WhatItCan,
}

impl Taking {
    /// Whether an error says that the filesystem has no such thing, or not for who is asking.
    pub fn forgives(self, error: &io::Error) -> bool {
        let errno = Errno::from_io_error(error);
        let is_refused = |errno| matches!(errno, Errno::PERM | Errno::NOTSUP | Errno::INVAL);
        self == Self::WhatItCan && errno.is_some_and(is_refused)
    }

    /// The same, with such an error left out.
    fn forgiven(self, done: io::Result<()>) -> io::Result<()> {
        match done {
            Err(error) if self.forgives(&error) => Ok(()),
            done => done,
        }
    }
}

/// Sets all of it, and says what the filesystem has not taken.
pub fn dress(
    object: &Object,
    path: &Path,
    inherited: Inherited,
    taking: Taking,
) -> io::Result<Losses> {
    let of = &object.attributes;
    let found = own(of, path, taking)?;
    let mut mode = of.mode & 0o7777;
    if !of.is_directory() && (found.stx_uid, found.stx_gid) != (of.uid, of.gid) {
        // A program that runs as its owner is not to run as another one.
        mode &= !0o6000;
    }
    if !of.is_symlink() && u32::from(found.stx_mode) & 0o7777 != mode {
        let permissions = fs::Permissions::from_mode(mode);
        taking.forgiven(fs::set_permissions(path, permissions))?;
    }
    if inherited == Inherited::MayBe {
        let wanted: BTreeSet<&[u8]> = object.xattrs.iter().map(|(name, _)| &name[..]).collect();
        remove_xattrs(path, |name| !wanted.contains(name))?;
    }
    let attributes = set_xattrs(object, path, taking)?;
    let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let times = Timestamps { last_access: time(of.read), last_modification: time(of.written) };
    let set = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
    taking.forgiven(set.map_err(io::Error::from))?;
    match taking {
        Taking::All => Ok(Losses { attributes, ..Losses::default() }),
        Taking::WhatItCan => Ok(Losses { attributes, ..differences(of, path)? }),
    }
}

/// What stat(2) says of an object other than it was.
fn differences(of: &Attributes, path: &Path) -> io::Result<Losses> {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    let is = super::mounted::attributes(&found);
    let has_mode = of.is_symlink() || is.mode & 0o7777 == of.mode & 0o7777;
    Ok(Losses {
        owners: u64::from((is.uid, is.gid) != (of.uid, of.gid)),
        permissions: u64::from(!has_mode),
        times: u64::from((is.read, is.written) != (of.read, of.written)),
        ..Losses::default()
    })
}

/// Gives an object to its owner, and says to whom it belongs then, with which permissions. What it
/// has already costs no question to the filesystem.
pub fn own(of: &Attributes, path: &Path, taking: Taking) -> io::Result<Statx> {
    let wanted = StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID;
    let stat = || rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted);
    let mut found = stat()?;
    if (found.stx_uid, found.stx_gid) != (of.uid, of.gid) {
        taking.forgiven(lchown(path, Some(of.uid), Some(of.gid)))?;
        found = stat()?;
    }
    Ok(found)
}

/// Takes all extended attributes away.
pub fn strip(path: &Path) -> io::Result<()> {
    remove_xattrs(path, |_| true)
}

fn remove_xattrs(path: &Path, is_unwanted: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    for (name, _) in xattrs(path)?.iter().filter(|(name, _)| is_unwanted(name)) {
        // What cannot be taken away, the system has put there.
        let _ = rustix::fs::lremovexattr(path, OsStr::from_bytes(name));
    }
    Ok(())
}

/// Sets them, and says how many the filesystem has not taken.
fn set_xattrs(object: &Object, path: &Path, taking: Taking) -> io::Result<u64> {
    let mut lost = 0;
    for (name, value) in &object.xattrs {
        let set = rustix::fs::lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty());
        match set {
            Ok(()) => {}
            Err(Errno::NOTSUP | Errno::PERM) => lost += 1,
            Err(error) if taking == Taking::WhatItCan && is_too_much(error, path) => lost += 1,
            Err(error) => {
                let name = String::from_utf8_lossy(name);
                let text = format!("its attribute {name}: {}", io::Error::from(error));
                return Err(io::Error::new(io::Error::from(error).kind(), text));
            }
        }
    }
    Ok(lost)
}

/// Whether an extended attribute is more than the filesystem takes of one: some say then that they
/// are full.
fn is_too_much(error: Errno, path: &Path) -> bool {
    match error {
        Errno::TOOBIG | Errno::RANGE | Errno::INVAL => true,
        Errno::NOSPC => path.parent().is_some_and(|folder| {
            let has_room = |of: StatVfs| of.f_bavail.saturating_mul(of.f_frsize) >= ROOM;
            rustix::fs::statvfs(folder).is_ok_and(has_room)
        }),
        _ => false,
    }
}
