//! The choices that the rules of files leave to who asks, and locks.

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::time::Timestamp;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::permission::Access;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Attributes, Caller, Changes, Disposition, FileType, Groups, IfExists, IfTaken, Leave,
    OpenRequest, Privileges, SetTime, SizeRule, SpaceRequest, Through, Trust, WriteAt,
};
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, LockMode};

use super::GROUPS_MAX;
use super::layout::{Layout, numbered, put_count, record, tagged, take_count};
use crate::message::{Prefetch, ReadLease};
use crate::table::Keep;

numbered!(Trust, "who checks", { CheckedByKernel = 1, CheckHere = 2 });
numbered!(Privileges, "what becomes of privileges", { Keep = 1, Clear = 2 });
numbered!(IfExists, "what to do if a name exists", { Open = 1, Fail = 2 });
numbered!(IfTaken, "what to do if a name is taken", { Replace = 1, Fail = 2, Exchange = 3 });
numbered!(Leave, "what is left", { Nothing = 1, Whiteout = 2 });
numbered!(Linkable, "whether a file can be linked", { Yes = 1, No = 2 });
numbered!(Disposition, "what was done", { Created = 1, Opened = 2 });
numbered!(SetCondition, "a condition", { Always = 1, Absent = 2, Present = 3 });
numbered!(SetGroupBit, "what becomes of the set-group bit", { Keep = 1, Clear = 2 });
numbered!(Through, "the way to an object", { Name = 1, Handle = 2 });
numbered!(SeekTarget, "what is looked for", { Data = 1, Hole = 2 });
numbered!(LockClass, "the class of a lock", { Posix = 1, OpenFile = 2, Flock = 3 });
numbered!(Strength, "the strength of a lock", { Shared = 1, Exclusive = 2 });
numbered!(Wait, "whether to wait", { Yes = 1, No = 2 });
numbered!(Prefetch, "what is welcome", { Names = 1, Children = 2 });
numbered!(ReadLease, "a lease on what is read", { None = 1, AtOnce = 2, InTurn = 3 });
numbered!(LockMode, "the mode of a lease", { Shared = 1, Exclusive = 2 });
numbered!(Keep, "what is kept", { Nothing = 1, Shared = 2 });
numbered!(SizeRule, "what becomes of the size", { Extend = 1, Keep = 2 });

numbered!(FileType, "the type of an object", {
    Fifo = 1,
    CharDevice = 2,
    Directory = 4,
    BlockDevice = 6,
    Regular = 8,
    Symlink = 10,
    Socket = 12,
});

tagged! {
    WriteAt, "where to write";
    2 => End {};
    1 => Offset(offset: u64)
}

tagged! {
    SetTime, "a time to be set";
    1 => Now {};
    2 => At(time: Timestamp)
}

tagged! {
    SpaceRequest, "a request for space";
    2 => Punch {},
    4 => Collapse {},
    5 => Insert {};
    1 => Allocate(rule: SizeRule),
    3 => Zero(rule: SizeRule)
}

record!(Caller { uid: u32, gid: u32, groups: Groups, umask: u32, trust: Trust });

record!(OpenRequest { access: Access, truncate: Option<Privileges> });

record!(Changes {
    permissions: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<(u64, Privileges)>,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
    ctime: Option<Timestamp>,
    through: Through,
});

record!(Lock {
    file: FileId,
    class: LockClass,
    owner: LockOwner,
    pid: u32,
    strength: Strength,
    range: LockRange,
});

record!(LockOwner { client: u64, number: u64 });

record!(Attributes {
    file: FileId,
    generation: u64,
    mode: Mode,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    size: u64,
    sectors: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    btime: Timestamp,
    change: u64,
});

impl Layout for Groups {
    type Value = Self;
    const BYTES_MIN: usize = 4;

    fn put(value: &Self, out: &mut Vec<u8>) {
        let groups = value.as_slice();
        assert!(groups.len() <= GROUPS_MAX, "{} of at most {GROUPS_MAX} groups", groups.len());
        put_count(groups.len(), out);
        for group in groups {
            out.put_u32(*group);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = take_count(reader, 4)?;
        if count > GROUPS_MAX {
            return Err(DecodeError::Invalid("the number of groups"));
        }
        let groups: Result<Vec<u32>, _> = (0..count).map(|_| reader.u32()).collect();
        Ok(Self::new(&groups?))
    }
}

/// Bits as in access(2).
impl Layout for Access {
    type Value = Self;
    const BYTES_MIN: usize = 1;

    fn put(value: &Self, out: &mut Vec<u8>) {
        let bits = [(Self::EXECUTE, 1), (Self::WRITE, 2), (Self::READ, 4)];
        out.put_u8(bits.iter().filter(|(part, _)| value.has(*part)).map(|(_, bit)| bit).sum());
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_bits(reader.u8()?.into()).ok_or(DecodeError::Invalid("the access asked for"))
    }
}

impl Layout for LockRange {
    type Value = Self;
    const BYTES_MIN: usize = 16;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u64(value.start());
        out.put_u64(value.end());
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (start, end) = (reader.u64()?, reader.u64()?);
        Self::new(start, end).ok_or(DecodeError::Invalid("the range of a lock"))
    }
}

/// A mode word: of a type that there is, and without further bits.
struct Mode;

impl Layout for Mode {
    type Value = u32;
    const BYTES_MIN: usize = 4;

    fn put(value: &u32, out: &mut Vec<u8>) {
        out.put_u32(*value);
    }

    fn take(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
        let mode = reader.u32()?;
        match FileType::of_mode(mode) {
            Some(_) if mode <= u32::from(u16::MAX) => Ok(mode),
            _ => Err(DecodeError::Invalid("a mode")),
        }
    }
}
