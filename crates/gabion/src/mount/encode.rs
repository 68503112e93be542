//! Values of the filesystem in the words of the kernel's protocol, and back.

use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_base::time::Timestamp;
use gabion_fs::{Access, Attributes, Caller, Changes, Groups, Privileges, SetTime, Through, Trust};
use gabion_fuse as fuse;

use super::{Coherence, groups};

/// The unit of I/O that programs are told, in bytes.
const IO_SIZE: u32 = gabion_base::BLOCK_SIZE as u32;

pub(super) fn timestamp(time: Timestamp) -> fuse::Timestamp {
    fuse::Timestamp { seconds: time.seconds, nanoseconds: time.nanos }
}

fn from_timestamp(time: fuse::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanoseconds)
}

/// `ino` is the object's number.
pub(super) fn attr(attributes: &Attributes, ino: Ino) -> fuse::Attr {
    fuse::Attr {
        ino: ino.0,
        size: attributes.size,
        blocks: attributes.sectors,
        atime: timestamp(attributes.atime),
        mtime: timestamp(attributes.mtime),
        ctime: timestamp(attributes.ctime),
        mode: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        block_size: IO_SIZE,
    }
}

pub(super) fn extended_attr(attributes: &Attributes, ino: Ino) -> fuse::ExtendedAttr {
    fuse::ExtendedAttr {
        attr: attr(attributes, ino),
        btime: Some(timestamp(attributes.btime)),
        attributes: 0,
        attributes_known: 0,
    }
}

/// The kernel knows the object as `node`, programs see it as `ino`.
pub(super) fn entry(
    attributes: &Attributes,
    node: fuse::NodeId,
    ino: Ino,
    entry_ttl: Duration,
    attr_ttl: Duration,
) -> fuse::Entry {
    fuse::Entry {
        node,
        generation: attributes.generation,
        attr: attr(attributes, ino),
        entry_ttl,
        attr_ttl,
    }
}

/// Who asks. The kernel has checked that they may; where somebody checks once more, the groups are
/// found out that it does not tell.
pub(super) fn caller(request: &fuse::Request<'_>, umask: u32, coherence: Coherence) -> Caller {
    let groups = match (coherence, request.supplementary_group) {
        (Coherence::Shared, _) => Groups::of_process(request.pid, groups::of_process),
        (Coherence::Alone, Some(group)) => Groups::new(&[group]),
        (Coherence::Alone, None) => Groups::default(),
    };
    let (uid, gid) = (request.uid, request.gid);
    Caller { uid, gid, groups, umask, trust: Trust::CheckedByKernel }
}

/// What a file is opened for with these `O_*` flags.
pub(super) fn access(flags: u32) -> Access {
    /// What execve(2) opens with.
    const EXECUTED: u32 = 0x20;
    match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY if flags & EXECUTED != 0 => Access::EXECUTE,
        libc::O_RDONLY => Access::READ,
        libc::O_WRONLY => Access::WRITE,
        _ => Access::READ | Access::WRITE,
    }
}

/// What becomes of the set-id bits when the kernel says so.
pub(super) fn privileges(kill_suidgid: bool) -> Privileges {
    if kill_suidgid { Privileges::Clear } else { Privileges::Keep }
}

pub(super) fn changes(setattr: &fuse::Setattr) -> Changes {
    let time = |time| match time {
        fuse::SetTime::Now => SetTime::Now,
        fuse::SetTime::At(time) => SetTime::At(from_timestamp(time)),
    };
    Changes {
        permissions: setattr.mode,
        uid: setattr.uid,
        gid: setattr.gid,
        size: setattr.size.map(|size| (size, privileges(setattr.kill_suidgid))),
        atime: setattr.atime.map(time),
        mtime: setattr.mtime.map(time),
        ctime: setattr.ctime.map(from_timestamp),
        through: match setattr.handle {
            Some(_) => Through::Handle,
            None => Through::Name,
        },
    }
}
