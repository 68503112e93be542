//! What administrators ask for, and are told.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId};
use gabion_map::format::subvolume::{Count, Most, Quota, Schedule};

use super::fields::{Name, Path};
use super::layout::{Layout, record, tagged};
use crate::errand::{
    DeltaPlace, DeltaRow, DifferenceRow, Errand, QuotaRow, Report, SnapshotRow, SubvolumeRow,
};

tagged! {
    Errand, "an errand";
    1 => Snapshots { path: Path, after: SubvolId },
    2 => Snapshot { path: Path, name: Name, created: i64 },
    3 => RemoveSnapshots { path: Path, names: Vec<Name> },
    4 => Hold { path: Path, name: Name, is_held: bool },
    5 => Compare { path: Path, from: Name, to: Name, skip: u64 },
    6 => Subvolumes { after: SubvolId },
    7 => Subvolume { path: Path, of: Option<Path>, created: i64 },
    8 => RemoveSubvolume { path: Path },
    9 => Rollback { path: Path, name: Name, keep_as: Name, created: i64 },
    10 => RenameSubvolume { from: Path, to: Path },
    11 => Delta { path: Path, from: Name, to: Name, after: DeltaPlace },
    12 => Quotas { after: SubvolId },
    13 => SetQuota { path: Path, most: Most },
    14 => Schedule { path: Path },
    15 => SetSchedule { path: Path, keep: Schedule };
}

tagged! {
    Report, "a report";
    1 => Snapshots { rows: Vec<SnapshotRow>, more: bool },
    2 => Subvolumes { rows: Vec<SubvolumeRow>, more: bool },
    3 => Differences { rows: Vec<DifferenceRow>, more: bool },
    4 => Delta { rows: Vec<DeltaRow>, next: Option<DeltaPlace> },
    5 => Quotas { rows: Vec<QuotaRow>, more: bool },
    6 => Schedule { keep: Schedule };
}

tagged! {
    DifferenceRow, "a difference";
    4 => Renamed { from: Path, to: Path };
    1 => Added(path: Path),
    2 => Removed(path: Path),
    3 => Changed(path: Path)
}

tagged! {
    DeltaRow, "a part of a difference";
    2 => NameGone { dir: Ino, name: Name },
    3 => Name { dir: Ino, name: Name, ino: Ino },
    4 => Touched { ino: Ino, path: Path, is_new: bool },
    5 => Stretch { ino: Ino, from: u64, to: u64, is_hole: bool };
    1 => Gone(ino: Ino)
}

record!(DeltaPlace { ino: Ino, rows: u64 });

record!(SnapshotRow { id: SubvolId, name: Name, created: i64, is_held: bool });

record!(SubvolumeRow { id: SubvolId, path: Option<Path> });

record!(QuotaRow { id: SubvolId, path: Option<Path>, quota: Quota });

record!(Quota { most: Most, count: Option<Count> });

record!(Most { blocks: Option<u64>, objects: Option<u64> });

record!(Count { blocks: u64, objects: u64 });

record!(Schedule { hourly: u16, daily: u16, weekly: u16, monthly: u16 });
