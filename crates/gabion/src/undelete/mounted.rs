//! Files of mounts, and of all else that the kernel knows.
//!
//! Bytes are copied by copy_file_range(2), so that whoever keeps them can share blocks.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Component, Path, PathBuf};

use gabion_backup::{Attributes, Time};
use rustix::fs::{AtFlags, CWD, Mode, SeekFrom, StatxFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::files::{CHUNK, Claim, Files, Stat, Xattr};
use super::is_absent;
use crate::backup::{dress, mounted};
use crate::failure::{Failure, Result};
use crate::mounts;
use crate::reach::{open_real, reach};
use crate::scratch::{Refused, Scratch};

/// Files as the kernel shows them.
pub struct Mounted;

/// The same path without "..": what those lead to must be there.
fn without_steps_back(path: &Path) -> Result<PathBuf> {
    let parts: Vec<_> = path.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else {
        return Ok(path.to_owned());
    };
    let (back, rest) = parts.split_at(last + 1);
    let back: PathBuf = back.iter().collect();
    let real = back.canonicalize();
    let real = real.map_err(|error| Failure::of(back.display(), &error));
    Ok(rest.iter().fold(real?, |real, part| real.join(part)))
}

impl Files for Mounted {
    fn shown(&self, path: &Path) -> String {
        path.display().to_string()
    }

    fn real(&self, path: &Path) -> Result<PathBuf> {
        let failed = |error: io::Error| Failure::of(path.display(), &error);
        let absolute = without_steps_back(&std::path::absolute(path).map_err(failed)?)?;
        // The last part is meant itself, also if it is a link.
        let Some(name) = absolute.file_name() else { return Ok(absolute) };
        let mut missing = PathBuf::from(name);
        let mut above = absolute.with_file_name("");
        loop {
            match above.canonicalize() {
                Ok(real) => return Ok(real.join(missing)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(failed(error)),
            }
            let Some(name) = above.file_name() else { return Ok(absolute) };
            missing = Path::new(name).join(missing);
            above = above.with_file_name("");
        }
    }

    fn top(&self, dir: &Path) -> Option<PathBuf> {
        Some(mounts::of_path(dir).ok()??.mountpoint)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = rustix::fs::statx(CWD, &*reach(path)?, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
        Ok(Stat {
            identity: (device, found.stx_ino),
            names: found.stx_nlink.into(),
            size: found.stx_size,
            attributes: mounted::attributes(&found),
        })
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(reach(dir)?)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn xattrs(&self, path: &Path) -> io::Result<Vec<Xattr>> {
        Ok(mounted::xattrs(&reach(path)?)?)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(CWD, &*reach(path)?, Mode::RWXU)?)
    }

    fn make_node(&self, path: &Path, like: &Attributes) -> io::Result<()> {
        dress::make_node(like, &reach(path)?)
    }

    fn copy_symlink(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(fs::read_link(reach(from)?)?, reach(to)?)
    }

    fn copy_file(
        &self,
        from: &Path,
        to: &Path,
        length: u64,
        passed: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let source = File::open(reach(from)?)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let target = options.open(reach(to)?)?;
        target.set_len(length)?;
        let mut end = 0;
        // From data to data, so that holes stay holes.
        while let Some(start) = seek(&source, SeekFrom::Data(end))? {
            end = seek(&source, SeekFrom::Hole(start))?.unwrap_or(length);
            copy_range(&source, &target, start..end, passed)?;
        }
        Ok(())
    }

    fn link(&self, first: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(reach(first)?, reach(to)?)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(reach(path)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(reach(path)?)
    }

    fn set_owner(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        lchown(reach(path)?, Some(to.uid), Some(to.gid))
    }

    fn set_permissions(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        fs::set_permissions(reach(path)?, fs::Permissions::from_mode(to.mode & 0o7777))
    }

    fn set_xattr(&self, path: &Path, (name, value): &Xattr) -> io::Result<()> {
        let name = OsStr::from_bytes(name);
        Ok(rustix::fs::lsetxattr(&*reach(path)?, name, value, XattrFlags::empty())?)
    }

    fn remove_xattr(&self, path: &Path, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::lremovexattr(&*reach(path)?, OsStr::from_bytes(name))?)
    }

    fn set_times(&self, path: &Path, to: &Attributes) -> io::Result<()> {
        let time = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        let times = Timestamps { last_access: time(to.read), last_modification: time(to.written) };
        Ok(rustix::fs::utimensat(CWD, &*reach(path)?, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn claim(&self, folder: &Path) -> io::Result<Claim> {
        let (Some(above), Some(name)) = (folder.parent(), folder.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let scratch =
            Scratch::claim(&open_real(above)?, name).map_err(|refused| match refused {
                Refused::Busy => io::ErrorKind::WouldBlock.into(),
                Refused::Foreign => io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "it is there, and others could have changed what is in it: move it away",
                ),
                Refused::Io(error) => error,
            })?;
        // What is made in it would inherit that.
        dress::strip(&scratch.path())?;
        Ok(Claim { path: scratch.path(), scratch: Some(scratch) })
    }

    fn give(&self, claim: &Claim, name: &OsStr) -> io::Result<()> {
        claim.scratch.as_ref().map_or(Ok(()), |scratch| scratch.give(name))
    }

    fn give_back(&self, claim: Claim) -> io::Result<()> {
        claim.scratch.map_or(Ok(()), Scratch::remove)
    }
}

/// The next data or hole; `None`: there is none.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(
    source: &File,
    target: &File,
    range: Range<u64>,
    passed: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let (mut read, mut write) = (range.start, range.start);
    while read < range.end {
        let length = (range.end - read).min(CHUNK) as usize;
        let (place, goal) = (Some(&mut read), Some(&mut write));
        match rustix::fs::copy_file_range(source, place, target, goal, length) {
            // It has become shorter, which nothing in a snapshot does.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => passed(count as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
