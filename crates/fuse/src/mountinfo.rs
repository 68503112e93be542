//! What is mounted, as `/proc/thread-self/mountinfo` says. Reading it never waits for a filesystem,
//! whereas any look at a path below a mount whose daemon hangs may wait for ever.
//!
//! ```text
//! 36 35 0:98 / /mnt/a\040b rw,noatime shared:1 - fuse.gabion volume rw,user_id=0,...
//! id parent device root mountpoint options [optional ...] - type source super-options
//! ```
//! Space, tab, newline, backslash and `#` are written as three octal digits after a backslash.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

/// One mount of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, unique while it lives.
    pub id: u32,
    /// The number of the mount that it is mounted on.
    pub parent: u32,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Device number of the filesystem: major and minor.
    pub device: (u32, u32),
    /// What of the filesystem is mounted: a path from its root.
    pub root: PathBuf,
    /// For instance `fuse.gabion`.
    pub fstype: String,
    /// What was given as source: a device or a name.
    pub source: OsString,
    /// Options of this mount, comma-separated.
    pub options: String,
    /// Options of the filesystem, comma-separated.
    pub super_options: String,
}

impl Mount {
    /// Whether it is a FUSE filesystem, of whatever kind.
    pub fn is_fuse(&self) -> bool {
        let kind = self.fstype.split('.').next();
        matches!(kind, Some("fuse" | "fuseblk"))
    }

    /// The connection's number under `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> u64 {
        u64::from(self.device.0) << 20 | u64::from(self.device.1)
    }
}

/// All mounts that this thread sees, in the order in which they were made. Mostly a later one
/// covers an earlier one; but one may be put beneath another, too.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// All mounts that the process `pid` sees, which may live in another namespace.
pub fn mounts_of(pid: u32) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The last mount that stands somewhere in the one at `mountpoint`.
pub fn below(mountpoint: &Path) -> io::Result<Option<Mount>> {
    let is_below =
        |of: &Mount| of.mountpoint != mountpoint && of.mountpoint.starts_with(mountpoint);
    Ok(mounts()?.into_iter().rfind(is_below))
}

/// The names on the ways from the root of the filesystem with this device number to what is mounted
/// on its directories and files, wherever it is mounted itself, or a part of it. None: nothing is,
/// unless on the root.
pub fn names_to_mounts(device: (u32, u32), mounts: &[Mount]) -> BTreeSet<OsString> {
    let ways = ways_to_mounts(device, mounts);
    let names = ways.iter().flat_map(|(way, _)| way.components());
    let names = names.filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    });
    names.collect()
}

/// What is mounted on a directory or file of the filesystem with this device number that is at or
/// below `path`, from its root. What covers all of the filesystem is not meant.
pub fn standing_in<'a>(device: (u32, u32), path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let ways = ways_to_mounts(device, mounts);
    let stands = |way: &Path| way.starts_with(path) && way != Path::new("/");
    ways.into_iter().rev().find(|(way, _)| stands(way)).map(|(_, mount)| mount)
}

/// From the root of the filesystem with this device number to each mount on it.
fn ways_to_mounts(device: (u32, u32), mounts: &[Mount]) -> Vec<(PathBuf, &Mount)> {
    let of_it = mounts.iter().filter(|mount| mount.device == device);
    let of_it: BTreeMap<u32, &Mount> = of_it.map(|mount| (mount.id, mount)).collect();
    let on_it = mounts.iter().filter_map(|mount| Some((of_it.get(&mount.parent)?, mount)));
    let ways = on_it.filter_map(|(parent, mount)| {
        let rest = mount.mountpoint.strip_prefix(&parent.mountpoint).ok()?;
        Some((parent.root.join(rest), mount))
    });
    ways.collect()
}

/// What is mounted in the namespace of the thread that opened it, and whether that has changed.
pub struct MountTable {
    file: File,
}

impl MountTable {
    /// That of this thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/thread-self/mountinfo")? })
    }

    /// All mounts, as [`mounts`] tells them.
    pub fn mounts(&self) -> io::Result<Vec<Mount>> {
        let (mut file, mut text) = (&self.file, Vec::new());
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(parse(&text))
    }

    /// Whether something was mounted or unmounted since this was last asked.
    pub fn has_changed(&self) -> io::Result<bool> {
        let mut ready = [PollFd::new(&self.file, PollFlags::PRI)];
        retry_on_intr(|| poll(&mut ready, Some(&Timespec::default())))?;
        Ok(ready[0].revents().contains(PollFlags::PRI))
    }

    /// Waits until that is so, but no longer than `most`. False: `end` was closed at its other
    /// side.
    pub fn wait(&self, end: BorrowedFd<'_>, most: Duration) -> io::Result<bool> {
        let most = Timespec::try_from(most).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut ready =
            [PollFd::new(&self.file, PollFlags::PRI), PollFd::new(&end, PollFlags::empty())];
        retry_on_intr(|| poll(&mut ready, Some(&most)))?;
        Ok(ready[1].revents().is_empty())
    }
}

/// Symbolic links to a mountpoint that are followed one after the other.
const LINKS_MAX: usize = 40;

/// The uppermost mount at exactly this path. Only if no FUSE mount lies on the way are symbolic
/// links resolved.
pub fn find(mountpoint: &Path) -> io::Result<Option<Mount>> {
    let mut path = std::path::absolute(mountpoint)?;
    for _ in 0..LINKS_MAX {
        match look(&path)? {
            Looked::Mount(found) => return Ok(Some(*found)),
            Looked::Nothing => return Ok(None),
            Looked::Link(leads_to) => path = leads_to,
        }
    }
    Ok(None)
}

/// What is at a path.
enum Looked {
    Mount(Box<Mount>),
    /// A symbolic link to this absolute path.
    Link(PathBuf),
    Nothing,
}

/// Of those at this path, the one on which none of the others is mounted.
fn uppermost<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let here: Vec<&Mount> = mounts.iter().filter(|mount| mount.mountpoint == path).collect();
    here.iter().rev().find(|mount| here.iter().all(|other| other.parent != mount.id)).copied()
}

fn look(path: &Path) -> io::Result<Looked> {
    let mounts = mounts()?;
    let at = |path: &Path| uppermost(&mounts, path).cloned();
    if let Some(found) = at(path) {
        return Ok(Looked::Mount(Box::new(found)));
    }
    let on_the_way = |mount: &Mount| mount.is_fuse() && path.starts_with(&mount.mountpoint);
    let names = path.parent().zip(path.file_name());
    let Some((parent, name)) = names.filter(|_| !mounts.iter().any(on_the_way)) else {
        return Ok(Looked::Nothing);
    };
    let parent = match parent.canonicalize() {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Looked::Nothing),
        Err(error) => return Err(error),
    };
    let real = parent.join(name);
    Ok(match (at(&real), std::fs::read_link(&real)) {
        (Some(found), _) => Looked::Mount(Box::new(found)),
        (None, Ok(leads_to)) => Looked::Link(parent.join(leads_to)),
        (None, Err(_)) => Looked::Nothing,
    })
}

/// Lines that do not have the form are left out: the kernel may add kinds, but no half lines.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().map(|field| String::from_utf8_lossy(field).into_owned());
    let (id, parent, device) = (text()?, text()?, text()?);
    let (major, minor) = device.split_once(':')?;
    let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
    let (root, mountpoint) = (path()?, path()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    fields.find(|field| *field == b"-")?;
    let fstype = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        mountpoint,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        fstype,
        source,
        options,
        super_options,
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().and_then(|digits| octal(*digits));
        match octal {
            Some(escaped) if byte == b'\\' => {
                plain.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    let mut value = 0u32;
    for digit in digits {
        value = value * 8 + u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 8)?);
    }
    u8::try_from(value).ok()
}

/// Aborts a connection: all its requests fail, its session ends, the mount stays as a dead one.
/// Needs root and the control filesystem mounted at `/sys/fs/fuse/connections`, without which it
/// fails with ENOENT; a forced [`unmount`](crate::mount::unmount) aborts as well and needs neither.
pub fn abort_connection(connection: u64) -> io::Result<()> {
    std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields_is_read() {
        let text = b"36 35 0:98 / /mnt/a\\040b\\134c rw,noatime shared:1 master:2 - fuse.gabion \
            vol\\011x rw,user_id=0\n\
            37 35 7:3 /sub /blk ro - fuseblk.gabion /dev/loop3 rw\nrubbish\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!((mounts[0].id, mounts[0].parent), (36, 35));
        assert_eq!(mounts[0].source, "vol\tx");
        assert_eq!(mounts[0].super_options, "rw,user_id=0");
        assert_eq!(mounts[0].connection(), 98);
        assert!(mounts[0].is_fuse() && mounts[1].is_fuse());
        assert_eq!(mounts[1].connection(), 7 << 20 | 3);
    }

    #[test]
    fn the_ways_to_what_is_mounted_on_a_filesystem_begin_at_its_root() {
        let text = |rest: &str| {
            format!(
                "20 20 0:1 / / rw - rootfs rootfs rw\n\
                 36 20 0:98 / /mnt rw - fuse.gabion volume rw\n\
                 37 20 0:98 /sub /elsewhere rw - fuse.gabion volume rw\n\
                 38 20 0:50 /x /mnt2 rw - tmpfs tmpfs rw\n{rest}"
            )
        };
        let names = |rest| {
            let names = names_to_mounts((0, 98), &parse(text(rest).as_bytes()));
            names.into_iter().map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(names(""), none);
        assert_eq!(names("39 38 0:51 / /mnt2/a rw - tmpfs tmpfs rw\n"), none);
        assert_eq!(names("39 36 0:51 / /mnt rw - tmpfs tmpfs rw\n"), none);
        assert_eq!(names("39 36 0:51 / /mnt/a/b rw - tmpfs tmpfs rw\n"), ["a", "b"]);
        assert_eq!(names("39 37 0:51 / /elsewhere/a rw - tmpfs tmpfs rw\n"), ["a", "sub"]);
        assert_eq!(names("39 36 0:98 /x /mnt/bound rw - fuse.gabion volume rw\n"), ["bound"]);
        let stands = |path: &str, rest| {
            let mounts = parse(text(rest).as_bytes());
            let found = standing_in((0, 98), Path::new(path), &mounts);
            found.map(|mount| mount.mountpoint.display().to_string())
        };
        assert_eq!(stands("/", ""), None);
        assert_eq!(stands("/", "39 36 0:51 / /mnt rw - tmpfs tmpfs rw\n"), None);
        let inside = "39 37 0:51 / /elsewhere/a rw - tmpfs tmpfs rw\n";
        for (path, is_there) in [("/", true), ("/sub", true), ("/sub/a", true), ("/sub/b", false)] {
            assert_eq!(stands(path, inside).is_some(), is_there, "{path}");
        }
        assert_eq!(stands("/sub", "39 36 0:51 / /mnt/sub2 rw - tmpfs tmpfs rw\n"), None);
    }

    #[test]
    fn the_uppermost_may_have_been_there_before_what_is_beneath_it() {
        let found = |lines: [&str; 2]| {
            let mounts = parse(format!("{}\n{}\n", lines[0], lines[1]).as_bytes());
            uppermost(&mounts, Path::new("/mnt")).map(|mount| mount.source.clone())
        };
        let [old, beneath] = [
            "44 45 0:50 / /mnt rw - fuse.gabion old rw",
            "45 27 0:51 / /mnt rw - fuse.gabion beneath rw",
        ];
        assert_eq!(found([old, beneath]).unwrap(), "old");
        assert_eq!(found([beneath, old]).unwrap(), "old");
        assert_eq!(found([old, old]).unwrap(), "old");
        assert!(uppermost(&[], Path::new("/mnt")).is_none());
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"a\\9z\\777\\04"), b"a\\9z\\777\\04");
        assert_eq!(unescape(b"\\043"), b"#");
    }

    #[test]
    fn what_is_mounted_here_is_found() {
        let proc = find(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.fstype, "proc");
        assert!(!proc.is_fuse());
        assert_eq!(find(Path::new("/proc/no such mount")).unwrap(), None);
    }
}
