//! What is said about snapshots, and about which blocks are in use.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use gabion_map::format::subvolume;
use serde::{Deserialize, Serialize};

use crate::backup::delta::hexadecimal;

/// Differences that one part tells, at most.
const CHANGES_PER_PART: usize = 1000;
/// Bytes of paths in one part, at most, but for what is too much of the last one. As JSON says them
/// they may be six times as many, and are to fit a line.
const BYTES_PER_PART: usize = 512 << 10;

/// What is to be done with snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotAction {
    /// Show them all.
    List,
    /// Make one.
    Create {
        /// Its name.
        name: String,
    },
    /// Remove some.
    Delete {
        /// Their names.
        names: Vec<String>,
    },
    /// Keep one from being removed.
    Hold {
        /// Its name.
        name: String,
    },
    /// Let it be removed again.
    Release {
        /// Its name.
        name: String,
    },
    /// Keep one from being removed, as the newest of a backup's, and remove others that it
    /// takes the place of, held or not. What cannot be removed stays.
    Supersede {
        /// Its name.
        name: String,
        /// Theirs.
        olds: Vec<String>,
    },
    /// Have snapshots made by themselves, if it is said which; show it.
    Schedule {
        /// How many are kept of each class; none of all: none are made.
        set: Option<Kept>,
    },
    /// Make the filesystem what it was.
    Rollback {
        /// The snapshot's name.
        name: String,
    },
    /// Compare two for who goes on from the older one: all that has changed, by numbers.
    Delta {
        /// The older one's name.
        from: String,
        /// The newer one's.
        to: String,
    },
    /// Compare two.
    Diff {
        /// The older one's name.
        from: String,
        /// The newer one's.
        to: String,
    },
}

/// What is to be done with subvolumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubvolumeAction {
    /// Show them all, but for the first.
    List,
    /// Make an empty one.
    Create {
        /// Where, from the root of the filesystem.
        path: String,
    },
    /// Make one that begins as a snapshot is.
    Clone {
        /// The snapshot's path from the root of the filesystem.
        from: String,
        /// Where.
        path: String,
    },
    /// Move one.
    Rename {
        /// Where it is.
        from: String,
        /// Where it shall be.
        to: String,
    },
    /// Remove one with all its snapshots.
    Delete {
        /// Where it is.
        path: String,
    },
}

/// Subvolumes of a filesystem, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subvolumes {
    /// The image or device.
    pub target: String,
    /// Those that are meant.
    pub subvolumes: Vec<Subvolume>,
}

/// A subvolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subvolume {
    /// Its number.
    pub id: u32,
    /// Where it is, from the root of the filesystem; null if a crash has left it without a name.
    pub path: Option<String>,
}

/// Snapshots of a filesystem, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// The image or device.
    pub target: String,
    /// Those that are meant.
    pub snapshots: Vec<Snapshot>,
}

/// How many snapshots of each class are made by themselves and kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// One an hour.
    pub hourly: u16,
    /// One a day.
    pub daily: u16,
    /// One a week.
    pub weekly: u16,
    /// One a month.
    pub monthly: u16,
}

impl From<subvolume::Schedule> for Kept {
    fn from(schedule: subvolume::Schedule) -> Self {
        let subvolume::Schedule { hourly, daily, weekly, monthly } = schedule;
        Self { hourly, daily, weekly, monthly }
    }
}

impl From<Kept> for subvolume::Schedule {
    fn from(Kept { hourly, daily, weekly, monthly }: Kept) -> Self {
        Self { hourly, daily, weekly, monthly }
    }
}

/// Which snapshots of a subvolume are made by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// The image or device.
    pub target: String,
    /// How many are kept; zeros: none are made.
    #[serde(flatten)]
    pub keep: Kept,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, as in RFC 3339.
    pub created: String,
    /// Whether it cannot be removed.
    pub held: bool,
    /// The number of its subvolume.
    pub id: u32,
}

/// A part of what is different in two snapshots, in the order of paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// The image or device.
    pub target: String,
    /// The older one's name.
    pub from: String,
    /// The newer one's.
    pub to: String,
    /// What is different.
    pub changes: Vec<Difference>,
    /// Whether another part follows.
    pub more: bool,
}

impl Differences {
    /// What is different in the snapshots `from` and `to`, in parts, at least one.
    pub fn parts(target: &str, from: &str, to: &str, changes: Vec<Difference>) -> Vec<Self> {
        let mut parts = vec![Vec::new()];
        let mut bytes = 0;
        for change in changes {
            if parts.last().is_some_and(|part| part.len() >= CHANGES_PER_PART)
                || bytes >= BYTES_PER_PART
            {
                parts.push(Vec::new());
                bytes = 0;
            }
            bytes += change.length();
            parts.last_mut().expect("there is one from the start").push(change);
        }
        let last = parts.len() - 1;
        let part = |(index, changes)| Self {
            target: target.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            changes,
            more: index < last,
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

/// Something that is different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// "added", "removed", "changed" or "renamed".
    pub what: String,
    /// Where it is, below the root; of what was removed, where it was. What is no UTF-8 in it is
    /// replaced.
    pub path: String,
    /// Where it was, if it was renamed.
    pub from: Option<String>,
    /// `path` in hexadecimal digits, if something was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// `from` in hexadecimal digits, if something was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_bytes: Option<String>,
}

impl Difference {
    /// Something that is different at `path`, and was at `from` if that is another place.
    pub fn new(what: &str, path: &[u8], from: Option<&[u8]>) -> Self {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let bytes = |path: &[u8]| std::str::from_utf8(path).is_err().then(|| hexadecimal(path));
        Self {
            what: what.to_owned(),
            path: text(path),
            from: from.map(text),
            path_bytes: bytes(path),
            from_bytes: from.and_then(bytes),
        }
    }

    /// Bytes of all its paths.
    fn length(&self) -> usize {
        let others = [&self.from, &self.path_bytes, &self.from_bytes];
        self.path.len() + others.into_iter().flatten().map(String::len).sum::<usize>()
    }

    /// Where it is, in all its bytes.
    pub fn place(&self) -> PathBuf {
        exact(&self.path, self.path_bytes.as_deref())
    }

    /// Where it was, if it was renamed.
    pub fn former_place(&self) -> Option<PathBuf> {
        let from = self.from.as_ref()?;
        Some(exact(from, self.from_bytes.as_deref()))
    }
}

/// The path in these hexadecimal digits, or this one.
fn exact(text: &str, digits: Option<&str>) -> PathBuf {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes = digits.and_then(|digits| digits.as_bytes().chunks(2).map(byte).collect());
    bytes.map_or_else(|| PathBuf::from(text), |bytes: Vec<u8>| OsString::from_vec(bytes).into())
}

/// A part of what a backup has to read to follow from one snapshot to another. Names and paths are
/// in hexadecimal digits: they are any bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Numbers of objects that are gone.
    pub gone: Vec<u64>,
    /// Names that are gone: the directory's number and the name.
    pub names_gone: Vec<(u64, String)>,
    /// Names that are new: the directory's number, the name, the object's number.
    pub names: Vec<(u64, String, u64)>,
    /// Objects that are new or have changed.
    pub touched: Vec<Touched>,
    /// Whether another part follows.
    pub more: bool,
}

/// An object that is new or has changed. One with many ranges comes several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its number.
    pub inode: u64,
    /// Where it is in the newer snapshot, below the root.
    pub path: String,
    /// Whether the older one does not have it.
    pub new: bool,
    /// Bytes that may have changed: the first, behind the last, and whether nothing is there now.
    pub ranges: Vec<(u64, u64, bool)>,
}

/// How the map of blocks in use agrees with what is reachable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The image or device.
    pub target: String,
    /// Bytes marked as in use, fixed structures included.
    pub used_bytes: u64,
    /// Bytes marked as in use that nothing needs.
    pub leaked_bytes: u64,
    /// Bytes that something needs and that are not marked.
    pub missing_bytes: u64,
    /// Bytes that more than one thing has, which should not share them.
    pub doubled_bytes: u64,
}

impl Allocation {
    /// Whether both agree to the block.
    pub fn is_exact(&self) -> bool {
        self.leaked_bytes == 0 && self.missing_bytes == 0 && self.doubled_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_all_its_bytes() {
        let plain = Difference::new("renamed", b"new\xc3\xa9", Some(b"old"));
        assert_eq!((&plain.path_bytes, &plain.from_bytes), (&None, &None));
        assert_eq!(plain.place(), PathBuf::from("newé"));
        assert_eq!(plain.former_place(), Some(PathBuf::from("old")));
        let strange = Difference::new("renamed", b"a\xff/b", Some(b"\xc3"));
        assert_eq!(strange.path, "a\u{fffd}/b");
        assert_eq!(strange.path_bytes.as_deref(), Some("61ff2f62"));
        assert_eq!(strange.place().into_os_string().into_vec(), b"a\xff/b");
        let former = strange.former_place().unwrap();
        assert_eq!(former.into_os_string().into_vec(), b"\xc3");
    }

    #[test]
    fn a_part_fits_a_line_however_long_the_paths_are() {
        let counts = |length: usize, count: usize| {
            let path = vec![b'\x01'; length];
            let changes = vec![Difference::new("added", &path, None); count];
            let parts = Differences::parts("disk", "one", "two", changes);
            let (last, others) = parts.split_last().unwrap();
            assert!(!last.more && others.iter().all(|part| part.more));
            for part in &parts {
                assert!(serde_json::to_string(part).unwrap().len() < 4 << 20);
            }
            parts.iter().map(|part| part.changes.len()).collect::<Vec<_>>()
        };
        assert_eq!(counts(1, 0), [0]);
        assert_eq!(counts(1, 2001), [1000, 1000, 1]);
        assert_eq!(counts(64 << 10, 20), [8, 8, 4]);
    }
}
