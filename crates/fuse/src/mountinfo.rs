//! What is mounted, as `/proc/thread-self/mountinfo` says. Reading it never waits for a filesystem,
//! whereas any look at a path below a mount whose daemon hangs may wait for ever.
//!
//! ```text
//! 36 35 0:98 / /mnt/a\040b rw,noatime shared:1 - fuse.gabion volume rw,user_id=0,...
//! id parent device root mountpoint options [optional ...] - type source super-options
//! ```
//! Space, tab, newline, backslash and `#` are written as three octal digits after a backslash.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, unique while it lives.
    pub id: u32,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Device number of the filesystem: major and minor.
    pub device: (u32, u32),
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

/// All mounts that this thread sees, in the order in which they cover each other.
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

fn look(path: &Path) -> io::Result<Looked> {
    let mounts = mounts()?;
    let at = |path: &Path| mounts.iter().rev().find(|mount| mount.mountpoint == path).cloned();
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
    let (id, _parent, device) = (text()?, text()?, text()?);
    let (major, minor) = device.split_once(':')?;
    let _root = fields.next()?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    fields.find(|field| *field == b"-")?;
    let fstype = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        id: id.parse().ok()?,
        mountpoint,
        device: (major.parse().ok()?, minor.parse().ok()?),
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
        assert_eq!(mounts[0].source, "vol\tx");
        assert_eq!(mounts[0].super_options, "rw,user_id=0");
        assert_eq!(mounts[0].connection(), 98);
        assert!(mounts[0].is_fuse() && mounts[1].is_fuse());
        assert_eq!(mounts[1].connection(), 7 << 20 | 3);
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
