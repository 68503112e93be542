//! What administrators ask of a filesystem that is served: snapshots, clones, subvolumes, and their
//! quotas and schedules.
//!
//! An errand is a call, but no operation on files: it takes as long as it takes to bring all
//! clients to one instant, and nobody makes it under leases. Paths begin at the root of the
//! filesystem, without a slash. Lists come in parts; each part says whether another one follows.

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::format::subvolume::{Most, Quota, Schedule};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// To tell the snapshots of the subvolume at `path`, oldest first.
    Snapshots {
        /// Of which subvolume.
        path: Vec<u8>,
        /// Only those behind this one.
        after: SubvolId,
    },
    /// To make a snapshot of the subvolume at `path` as it is at one instant.
    Snapshot {
        /// Of which subvolume.
        path: Vec<u8>,
        /// What it shall be called.
        name: Vec<u8>,
        /// Seconds since 1970.
        created: i64,
    },
    /// To remove snapshots.
    RemoveSnapshots {
        /// Of which subvolume.
        path: Vec<u8>,
        /// Which.
        names: Vec<Vec<u8>>,
    },
    /// To keep a snapshot from being removed, or not any more.
    Hold {
        /// Of which subvolume.
        path: Vec<u8>,
        /// Which snapshot.
        name: Vec<u8>,
        /// Whether it cannot be removed.
        is_held: bool,
    },
    /// To compare two snapshots.
    Compare {
        /// Of which subvolume.
        path: Vec<u8>,
        /// The older one.
        from: Vec<u8>,
        /// The newer one.
        to: Vec<u8>,
        /// Differences that are known already.
        skip: u64,
    },
    /// To tell what a backup has to read to follow from one snapshot to another.
    Delta {
        /// Of which subvolume.
        path: Vec<u8>,
        /// The older one.
        from: Vec<u8>,
        /// The newer one.
        to: Vec<u8>,
        /// What is known already.
        after: DeltaPlace,
    },
    /// To tell the subvolumes but for the one that is served.
    Subvolumes {
        /// Only those behind this one.
        after: SubvolId,
    },
    /// To make a subvolume at `path`.
    Subvolume {
        /// Where.
        path: Vec<u8>,
        /// The snapshot whose clone it shall be; it is empty if there is none.
        of: Option<Vec<u8>>,
        /// Seconds since 1970.
        created: i64,
    },
    /// To remove the subvolume at `path`, with its snapshots.
    RemoveSubvolume {
        /// Where it is.
        path: Vec<u8>,
    },
    /// To give the subvolume at `from` another name and place.
    RenameSubvolume {
        /// Where it is.
        from: Vec<u8>,
        /// Where it shall be.
        to: Vec<u8>,
    },
    /// To make the subvolume at `path` what its snapshot `name` is. All sessions end with that. If
    /// there is a snapshot with the name `keep_as` and this time it is done already.
    Rollback {
        /// Of which subvolume.
        path: Vec<u8>,
        /// Which snapshot.
        name: Vec<u8>,
        /// What the snapshot is called that has what there was before.
        keep_as: Vec<u8>,
        /// Seconds since 1970.
        created: i64,
    },
    /// To tell the subvolumes that have a quota.
    Quotas {
        /// Only those behind this one.
        after: SubvolId,
    },
    /// To limit what the subvolume at `path` may refer to, or to limit it no longer.
    SetQuota {
        /// Which subvolume.
        path: Vec<u8>,
        /// The limits, in place of those before.
        most: Most,
    },
    /// To tell which snapshots of the subvolume at `path` are made by themselves.
    Schedule {
        /// Of which subvolume.
        path: Vec<u8>,
    },
    /// To have snapshots of the subvolume at `path` made by themselves.
    SetSchedule {
        /// Of which subvolume.
        path: Vec<u8>,
        /// How many are kept of each class; none of all: none are made.
        keep: Schedule,
    },
}

impl Errand {
    /// Whether it changes something.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Snapshots { .. }
                | Self::Compare { .. }
                | Self::Delta { .. }
                | Self::Subvolumes { .. }
                | Self::Quotas { .. }
                | Self::Schedule { .. }
        )
    }
}

/// A snapshot that is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// The number of its subvolume.
    pub id: SubvolId,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Whether it cannot be removed.
    pub is_held: bool,
}

/// A subvolume that is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubvolumeRow {
    /// Its number.
    pub id: SubvolId,
    /// Where it is; nothing if a crash has left it without a name, or that is too long.
    pub path: Option<Vec<u8>>,
}

/// A subvolume with a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRow {
    /// Its number.
    pub id: SubvolId,
    /// Where it is; nothing if a crash has left it without a name, or that is too long.
    pub path: Option<Vec<u8>>,
    /// How much it may refer to, and does. One that was just taken away has no limits.
    pub quota: Quota,
}

/// Something that is not in one snapshot what it is in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DifferenceRow {
    /// It is new.
    Added(Vec<u8>),
    /// It is gone.
    Removed(Vec<u8>),
    /// Its bytes or attributes are others.
    Changed(Vec<u8>),
    /// It has another name.
    Renamed {
        /// What it was called.
        from: Vec<u8>,
        /// What it is called.
        to: Vec<u8>,
    },
}

/// How far the difference of two snapshots is known, in the order of objects' numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaPlace {
    /// Objects with lower numbers are.
    pub ino: Ino,
    /// So many rows are of this one.
    pub rows: u64,
}

/// What a backup has to know of the difference of two snapshots, by objects' numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeltaRow {
    /// The object is gone.
    Gone(Ino),
    /// A name is gone.
    NameGone {
        /// In this directory.
        dir: Ino,
        /// It.
        name: Vec<u8>,
    },
    /// A name is new, or stands for something else.
    Name {
        /// In this directory.
        dir: Ino,
        /// It.
        name: Vec<u8>,
        /// What it stands for.
        ino: Ino,
    },
    /// The object is new, or not what it was.
    Touched {
        /// It.
        ino: Ino,
        /// One of its paths in the newer snapshot.
        path: Vec<u8>,
        /// Whether the older one does not have it.
        is_new: bool,
    },
    /// Bytes of an object that was told before that may be others.
    Stretch {
        /// Of which.
        ino: Ino,
        /// The first.
        from: u64,
        /// The one behind the last.
        to: u64,
        /// Whether nothing is there now.
        is_hole: bool,
    },
}

/// What an errand has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The snapshots that were asked for, made or changed.
    Snapshots {
        /// They themselves.
        rows: Vec<SnapshotRow>,
        /// Whether others follow.
        more: bool,
    },
    /// The subvolumes that were asked for, made or removed.
    Subvolumes {
        /// They themselves.
        rows: Vec<SubvolumeRow>,
        /// Whether others follow.
        more: bool,
    },
    /// How two snapshots differ.
    Differences {
        /// In the order of paths.
        rows: Vec<DifferenceRow>,
        /// Whether others follow.
        more: bool,
    },
    /// What a backup has to read.
    Delta {
        /// In the order of objects' numbers.
        rows: Vec<DeltaRow>,
        /// Where others follow; nothing if none do.
        next: Option<DeltaPlace>,
    },
    /// The quotas that were asked for, or set.
    Quotas {
        /// They themselves.
        rows: Vec<QuotaRow>,
        /// Whether others follow.
        more: bool,
    },
    /// How many snapshots are kept of those that are made by themselves.
    Schedule {
        /// Of each class; none of all: none are made.
        keep: Schedule,
    },
}
