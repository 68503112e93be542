//! What is said about snapshots, and about which blocks are in use.

use gabion_map::format::subvolume;
use serde::{Deserialize, Serialize};

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

/// Something that is different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// "added", "removed", "changed" or "renamed".
    pub what: String,
    /// Where it is, below the root; of what was removed, where it was.
    pub path: String,
    /// Where it was, if it was renamed.
    pub from: Option<String>,
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
