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
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev};
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

/// Sets all of it, and says how many extended attributes the filesystem has no room for.
pub fn dress(object: &Object, path: &Path) -> io::Result<u64> {
    let of = &object.attributes;
    lchown(path, Some(of.uid), Some(of.gid))?;
    if !of.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(of.mode & 0o7777))?;
    }
    let lost = set_xattrs(object, path)?;
    let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let times = Timestamps { last_access: time(of.read), last_modification: time(of.written) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(lost)
}

fn set_xattrs(object: &Object, path: &Path) -> io::Result<u64> {
    // What a new object has got from its directory, such as access lists.
    let wanted: BTreeSet<&[u8]> = object.xattrs.iter().map(|(name, _)| &name[..]).collect();
    for (name, _) in xattrs(path)?.iter().filter(|(name, _)| !wanted.contains(&name[..])) {
        // What cannot be taken away, the system has put there.
        let _ = rustix::fs::lremovexattr(path, OsStr::from_bytes(name));
    }
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
