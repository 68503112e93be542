//! Gives a restored object what stat(2) and getxattr(2) say of it.
//!
//! The owner comes first, since a change of it takes set-user-ID bits and capabilities away; the
//! permissions before access lists, which contain them; and the times last.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use gabion_backup::{Attributes, Object, Time};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, StatxFlags, Timespec, Timestamps, XattrFlags, makedev,
};
use rustix::io::Errno;

use super::mounted::xattrs;

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

/// Sets all of it, and says how many extended attributes the filesystem has no room for.
pub fn dress(object: &Object, path: &Path, inherited: Inherited) -> io::Result<u64> {
    let of = &object.attributes;
    let mode = own(of, path)?;
    if !of.is_symlink() && mode != of.mode & 0o7777 {
        fs::set_permissions(path, fs::Permissions::from_mode(of.mode & 0o7777))?;
    }
    if inherited == Inherited::MayBe {
        let wanted: BTreeSet<&[u8]> = object.xattrs.iter().map(|(name, _)| &name[..]).collect();
        remove_xattrs(path, |name| !wanted.contains(name))?;
    }
    let lost = set_xattrs(object, path)?;
    let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let times = Timestamps { last_access: time(of.read), last_modification: time(of.written) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(lost)
}

/// Gives an object to its owner, and says which permissions it has then. What it has already costs
/// no question to the filesystem.
pub fn own(of: &Attributes, path: &Path) -> io::Result<u32> {
    let wanted = StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID;
    let stat = || rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted);
    let mut found = stat()?;
    if (found.stx_uid, found.stx_gid) != (of.uid, of.gid) {
        lchown(path, Some(of.uid), Some(of.gid))?;
        found = stat()?;
    }
    Ok(u32::from(found.stx_mode) & 0o7777)
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

fn set_xattrs(object: &Object, path: &Path) -> io::Result<u64> {
    let mut lost = 0;
    for (name, value) in &object.xattrs {
        let set = rustix::fs::lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty());
        match set {
            Ok(()) => {}
            Err(Errno::NOTSUP | Errno::PERM) => lost += 1,
            Err(error) => {
                let name = String::from_utf8_lossy(name);
                let text = format!("its attribute {name}: {}", io::Error::from(error));
                return Err(io::Error::new(io::Error::from(error).kind(), text));
            }
        }
    }
    Ok(lost)
}
