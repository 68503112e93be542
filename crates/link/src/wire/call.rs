//! What clients say. `bytes` of a write stand last.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockRange, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Caller, Changes, Error, FileType, IfExists, IfTaken, Leave, OpenRequest, Privileges,
    SpaceRequest, WriteAt,
};
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, LockMode};

use super::fields::{Name, SharedBytes, Target, XattrValue};
use super::layout::{Layout, record, tagged};
use super::{
    DATA_BYTES_MAX, GROUPS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX, XATTR_BYTES_MAX,
};
use crate::errand::Errand;
use crate::message::{
    Call, CallId, Change, ChangeNumber, Prefetch, ReadLease, SessionId, ToServer, Witness,
};
use crate::range::KeyRange;
use crate::table::RevokeId;

tagged! {
    ToServer, "what a client says";
    1 => Call { id: CallId, after: ChangeNumber, caller: Caller, call: Call },
    2 => Ping {},
    3 => Opened { file: FileId, caller: Caller, access: Access },
    8 => Goodbye {},
    11 => Done { id: CallId, change: Change },
    12 => Recovered {},
    15 => Unlocked { file: FileId, class: LockClass, owner: u64, range: LockRange },
    18 => Accessed { file: FileId, caller: Caller, at: Timestamp };
    4 => Closed(file: FileId),
    5 => Released(revocations: Vec<RevokeId>),
    6 => Unwanted(ranges: Vec<KeyRange>),
    7 => Cancel(id: CallId),
    9 => Change(change: Change),
    10 => Yielded(ranges: Vec<KeyRange>),
    13 => Settled(round: u64),
    14 => Locked(locks: Vec<Lock>),
    16 => Witnessed(calls: Vec<Witness>),
    17 => Frozen(freeze: u64)
}

record!(Witness {
    session: SessionId,
    call: CallId,
    order: u64,
    now: Timestamp,
    made: Option<Ino>,
});

record!(Change {
    number: ChangeNumber,
    order: u64,
    now: Timestamp,
    made: Option<Ino>,
    caller: Caller,
    call: Call,
});

tagged! {
    Call, "what a client asks for";
    1 => Acquire {
        needed: Vec<(KeyRange, LockMode)>,
        welcome: Vec<(KeyRange, LockMode)>,
        prefetch: Prefetch,
    },
    2 => Read { file: FileId, offset: u64, length: u32, lease: ReadLease },
    3 => Write { file: FileId, at: WriteAt, privileges: Privileges, bytes: SharedBytes },
    4 => Create {
        parent: FileId,
        name: Name,
        permissions: u32,
        if_exists: IfExists,
        request: OpenRequest,
    },
    5 => Tmpfile { parent: FileId, permissions: u32, linkable: Linkable },
    6 => Mknod {
        parent: FileId,
        name: Name,
        file_type: FileType,
        permissions: u32,
        rdev: u32,
    },
    7 => Mkdir { parent: FileId, name: Name, permissions: u32 },
    8 => Symlink { parent: FileId, name: Name, target: Target },
    9 => Link { file: FileId, parent: FileId, name: Name },
    10 => Unlink { parent: FileId, name: Name },
    11 => Rmdir { parent: FileId, name: Name },
    12 => Rename {
        source_parent: FileId,
        source_name: Name,
        target_parent: FileId,
        target_name: Name,
        if_taken: IfTaken,
        leave: Leave,
    },
    13 => Setattr { file: FileId, changes: Changes },
    14 => SetXattr {
        file: FileId,
        name: Name,
        value: XattrValue,
        condition: SetCondition,
        set_group: SetGroupBit,
    },
    15 => RemoveXattr { file: FileId, name: Name },
    16 => Fallocate {
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    },
    17 => Copy {
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
        privileges: Privileges,
    },
    18 => Seek { file: FileId, offset: u64, target: SeekTarget },
    19 => Sync { file: Option<FileId> },
    20 => Space { of: SubvolId },
    24 => Numbers { of: SubvolId, count: u32 },
    21 => Lock { lock: Lock, wait: Wait },
    22 => Unlock { file: FileId, class: LockClass, owner: u64, range: LockRange },
    23 => TestLock { lock: Lock };
    25 => Run(errand: Errand)
}

impl Call {
    /// Fails if the call has a field that is too long to be sent, with the error that the call
    /// itself would have: `NameTooLong`, `AttributeTooLarge`, `InvalidArgument` for bytes.
    pub fn check(&self) -> Result<(), Error> {
        let names: [&[u8]; 2] = match self {
            Self::Create { name, .. }
            | Self::Mknod { name, .. }
            | Self::Mkdir { name, .. }
            | Self::Symlink { name, .. }
            | Self::Link { name, .. }
            | Self::Unlink { name, .. }
            | Self::Rmdir { name, .. }
            | Self::SetXattr { name, .. }
            | Self::RemoveXattr { name, .. } => [name, &[]],
            Self::Rename { source_name, target_name, .. } => [source_name, target_name],
            _ => [&[], &[]],
        };
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::NameTooLong);
        }
        match self {
            Self::Run(errand) => check_errand(errand),
            Self::Symlink { target, .. } if target.len() > TARGET_BYTES_MAX => {
                Err(Error::NameTooLong)
            }
            Self::SetXattr { value, .. } if value.len() > XATTR_BYTES_MAX => {
                Err(Error::AttributeTooLarge)
            }
            Self::Write { bytes, .. } if bytes.len() > DATA_BYTES_MAX => {
                Err(Error::InvalidArgument)
            }
            _ => Ok(()),
        }
    }
}

fn check_errand(errand: &Errand) -> Result<(), Error> {
    let paths: [&[u8]; 2] = match errand {
        Errand::Subvolumes { .. } | Errand::Quotas { .. } => [&[], &[]],
        Errand::RenameSubvolume { from, to } => [from, to],
        Errand::Subvolume { path, of, .. } => [path, of.as_deref().unwrap_or_default()],
        Errand::Snapshots { path, .. }
        | Errand::Snapshot { path, .. }
        | Errand::RemoveSnapshots { path, .. }
        | Errand::Hold { path, .. }
        | Errand::Compare { path, .. }
        | Errand::Rollback { path, .. }
        | Errand::Delta { path, .. }
        | Errand::SetQuota { path, .. }
        | Errand::Schedule { path }
        | Errand::SetSchedule { path, .. }
        | Errand::RemoveSubvolume { path } => [path, &[]],
    };
    let names: Vec<&Vec<u8>> = match errand {
        Errand::Snapshot { name, .. } | Errand::Hold { name, .. } => vec![name],
        Errand::RemoveSnapshots { names, .. } => names.iter().collect(),
        Errand::Compare { from, to, .. } | Errand::Delta { from, to, .. } => vec![from, to],
        Errand::Rollback { name, keep_as, .. } => vec![name, keep_as],
        _ => Vec::new(),
    };
    let is_long = paths.iter().any(|path| path.len() > PATH_BYTES_MAX)
        || names.iter().any(|name| name.len() > NAME_BYTES_MAX)
        || names.len() > NAMES_MAX;
    if is_long { Err(Error::NameTooLong) } else { Ok(()) }
}

/// Names in one errand, so that all of them fit into a frame.
const NAMES_MAX: usize = 4096;

// The longest calls fit into a frame, whatever their callers' groups.
const _: () = {
    let fixed = 200;
    let names = 2 * (4 + NAME_BYTES_MAX) + TARGET_BYTES_MAX;
    assert!(GROUPS_MAX * 4 + DATA_BYTES_MAX + names + fixed < super::PAYLOAD_BYTES_MAX);
    let errand = NAMES_MAX * (4 + NAME_BYTES_MAX) + 2 * PATH_BYTES_MAX;
    assert!(GROUPS_MAX * 4 + errand + fixed < super::PAYLOAD_BYTES_MAX);
};
