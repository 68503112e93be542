//! From bytes to [`Message`]s. The kernel is trusted to be well-meaning, not to be right: no length
//! in a message is believed before it is checked, and anything malformed is a [`DecodeError`].
//!
//! Steps: 1. the header, whose length must be the message's; 2. extensions are cut off the end;
//! 3. the body's fixed structure; 4. names or bytes. Trailing bytes are ignored, as newer kernels
//! append fields.

use thiserror::Error;
use zerocopy::FromBytes;

use crate::abi::{self, InHeader, Wire, opcode};
use crate::buffer::{Payload, Slot};
use crate::request::*;

/// Why a message is not one of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The message ends inside its fixed part.
    #[error("message of {length} bytes ends inside its {needed}-byte structure")]
    Short {
        /// Bytes there are.
        length: usize,
        /// Bytes the structure has.
        needed: usize,
    },
    /// The header's length is not the message's.
    #[error("header says {claimed} bytes, the message has {length}")]
    Length {
        /// Bytes there are.
        length: usize,
        /// What the header says.
        claimed: u32,
    },
    /// A name has no end.
    #[error("a name is not terminated")]
    Unterminated,
    /// A size field exceeds the bytes that follow.
    #[error("{claimed} bytes are announced, {length} follow")]
    Overrun {
        /// Bytes there are.
        length: usize,
        /// Bytes announced.
        claimed: u64,
    },
    /// A field has a value the protocol does not define.
    #[error("value {value} of {field} is not defined")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// An operation this protocol version does not have.
    #[error("unknown operation {0}")]
    Opcode(u32),
}

/// One decoded message.
#[derive(Debug)]
pub enum Message<'a> {
    /// The first message of a connection.
    Init(abi::InitIn),
    /// The last message, sent only for block devices.
    Destroy,
    /// The caller of a request got a signal.
    Interrupt {
        /// The request it made.
        unique: u64,
    },
    /// The kernel dropped its references to inodes.
    Forget(Forgets<'a>),
    /// The answer to a retrieve notification.
    NotifyReply,
    /// Everything a handler answers.
    Request(Request<'a>),
}

/// Inodes the kernel forgets, with the number of lookups it gives back for each.
#[derive(Clone, Debug)]
pub struct Forgets<'a>(ForgetSource<'a>);

#[derive(Clone, Debug)]
enum ForgetSource<'a> {
    One(Option<(NodeId, u64)>),
    Batch(&'a [u8]),
}

impl Iterator for Forgets<'_> {
    type Item = (NodeId, u64);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            ForgetSource::One(one) => one.take(),
            ForgetSource::Batch(bytes) => {
                let (one, rest) = abi::ForgetOne::read_from_prefix(bytes).ok()?;
                *bytes = rest;
                Some((NodeId(one.nodeid), one.nlookup))
            }
        }
    }
}

/// The header of a message; `None` if there are not even that many bytes.
pub(crate) fn header(message: &[u8]) -> Option<InHeader> {
    InHeader::read_from_prefix(message).ok().map(|(header, _)| header)
}

/// Whether a message is a WRITE of pages that the kernel has cached.
pub(crate) fn is_from_page_cache(message: &[u8]) -> bool {
    let Ok((header, mut body)) = open(message) else { return false };
    let is_cached = |head: abi::WriteIn| head.write_flags & abi::WRITE_CACHE != 0;
    header.opcode == opcode::WRITE && body.fixed().is_ok_and(is_cached)
}

/// Decodes a whole message.
pub fn decode(message: &[u8]) -> Result<Message<'_>, DecodeError> {
    let (header, mut body) = open(message)?;
    if header.opcode == opcode::WRITE {
        let head = write_head(&mut body)?;
        return Ok(write(&header, head, Payload::from_message(message)));
    }
    decode_body(&header, body)
}

/// Decodes the message in `slot`, such that the payload of a WRITE can be taken out of it.
pub(crate) fn decode_slot(slot: &mut Slot) -> Result<Message<'_>, DecodeError> {
    let (header, mut body) = open(slot.bytes())?;
    if header.opcode == opcode::WRITE {
        let head = write_head(&mut body)?;
        return Ok(write(&header, head, Payload::from_slot(slot)));
    }
    decode_body(&header, open(slot.bytes())?.1)
}

fn open(message: &[u8]) -> Result<(InHeader, Body<'_>), DecodeError> {
    let mut body = Body(message);
    let header: InHeader = body.fixed()?;
    if header.len as usize != message.len() {
        return Err(DecodeError::Length { length: message.len(), claimed: header.len });
    }
    Ok((header, body))
}

fn write_head(body: &mut Body<'_>) -> Result<abi::WriteIn, DecodeError> {
    let head: abi::WriteIn = body.fixed()?;
    if head.size as usize != body.0.len() {
        return Err(DecodeError::Overrun { length: body.0.len(), claimed: head.size.into() });
    }
    Ok(head)
}

fn write<'a>(header: &InHeader, head: abi::WriteIn, payload: Payload<'a>) -> Message<'a> {
    let op = Op::Write(Write {
        handle: Handle(head.fh),
        offset: head.offset,
        payload,
        flags: head.flags,
        from_page_cache: head.write_flags & abi::WRITE_CACHE != 0,
        kill_suidgid: head.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        lock_owner: when(head.write_flags, abi::WRITE_LOCKOWNER, LockOwner(head.lock_owner)),
    });
    request(header, None, op)
}

fn request<'a>(header: &InHeader, supplementary_group: Option<u32>, op: Op<'a>) -> Message<'a> {
    Message::Request(Request {
        unique: header.unique,
        node: NodeId(header.nodeid),
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
        supplementary_group,
        op,
    })
}

fn when<T>(flags: u32, flag: u32, value: T) -> Option<T> {
    (flags & flag != 0).then_some(value)
}

fn decode_body<'a>(header: &InHeader, mut body: Body<'a>) -> Result<Message<'a>, DecodeError> {
    let supplementary_group = body.cut_extensions(usize::from(header.total_extlen) * 8)?;
    Ok(match header.opcode {
        opcode::INIT => Message::Init(body.init()?),
        opcode::DESTROY => Message::Destroy,
        opcode::INTERRUPT => {
            Message::Interrupt { unique: body.fixed::<abi::InterruptIn>()?.unique }
        }
        opcode::FORGET => {
            let lookups = body.fixed::<abi::ForgetIn>()?.nlookup;
            let one = Some((NodeId(header.nodeid), lookups));
            Message::Forget(Forgets(ForgetSource::One(one)))
        }
        opcode::BATCH_FORGET => {
            let count = body.fixed::<abi::BatchForgetIn>()?.count;
            let claimed = u64::from(count) * size_of::<abi::ForgetOne>() as u64;
            Message::Forget(Forgets(ForgetSource::Batch(body.bytes(claimed)?)))
        }
        opcode::NOTIFY_REPLY => Message::NotifyReply,
        code => {
            let op = match names(code, &mut body)? {
                Some(op) => op,
                None => files(code, &mut body)?,
            };
            request(header, supplementary_group, op)
        }
    })
}

/// Operations on names, attributes and directories; `None` if `code` is none of them.
fn names<'a>(code: u32, body: &mut Body<'a>) -> Result<Option<Op<'a>>, DecodeError> {
    Ok(Some(match code {
        opcode::LOOKUP => Op::Lookup { name: body.name()? },
        opcode::GETATTR => {
            let head: abi::GetattrIn = body.fixed()?;
            Op::Getattr { handle: when(head.getattr_flags, abi::GETATTR_FH, Handle(head.fh)) }
        }
        opcode::STATX => {
            let head: abi::StatxIn = body.fixed()?;
            let handle = when(head.getattr_flags, abi::GETATTR_FH, Handle(head.fh));
            Op::Statx { handle, flags: head.sx_flags, mask: head.sx_mask }
        }
        opcode::SETATTR => Op::Setattr(setattr(body.fixed()?)),
        opcode::READLINK => Op::Readlink,
        opcode::SYMLINK => Op::Symlink { name: body.name()?, target: body.name()? },
        opcode::MKNOD => {
            let head: abi::MknodIn = body.fixed()?;
            let name = body.name()?;
            Op::Mknod { name, mode: head.mode, umask: head.umask, rdev: head.rdev }
        }
        opcode::MKDIR => {
            let head: abi::MkdirIn = body.fixed()?;
            Op::Mkdir { name: body.name()?, mode: head.mode, umask: head.umask }
        }
        opcode::UNLINK => Op::Unlink { name: body.name()? },
        opcode::RMDIR => Op::Rmdir { name: body.name()? },
        opcode::RENAME => {
            let new_parent = NodeId(body.fixed::<abi::RenameIn>()?.newdir);
            Op::Rename { name: body.name()?, new_parent, new_name: body.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let head: abi::Rename2In = body.fixed()?;
            let (name, new_name) = (body.name()?, body.name()?);
            Op::Rename { name, new_parent: NodeId(head.newdir), new_name, flags: head.flags }
        }
        opcode::LINK => {
            let source = NodeId(body.fixed::<abi::LinkIn>()?.oldnodeid);
            Op::Link { source, name: body.name()? }
        }
        opcode::CREATE | opcode::TMPFILE => {
            let abi::CreateIn { flags, mode, umask, open_flags } = body.fixed()?;
            let name = body.name()?;
            let kill_suidgid = open_flags & abi::OPEN_KILL_SUIDGID != 0;
            match code {
                opcode::CREATE => Op::Create { name, mode, umask, flags, kill_suidgid },
                _ => Op::Tmpfile { mode, umask, flags },
            }
        }
        opcode::OPENDIR => Op::Opendir { flags: body.fixed::<abi::OpenIn>()?.flags },
        opcode::READDIR | opcode::READDIRPLUS => {
            let head: abi::ReadIn = body.fixed()?;
            let (handle, offset, size) = (Handle(head.fh), head.offset, head.size);
            let read = ReadDirectory { handle, offset, size, flags: head.flags };
            if code == opcode::READDIR { Op::Readdir(read) } else { Op::Readdirplus(read) }
        }
        opcode::RELEASEDIR => {
            let head: abi::ReleaseIn = body.fixed()?;
            Op::Releasedir { handle: Handle(head.fh), flags: head.flags }
        }
        opcode::FSYNCDIR => {
            let head: abi::FsyncIn = body.fixed()?;
            let datasync = head.fsync_flags & abi::FSYNC_FDATASYNC != 0;
            Op::Fsyncdir { handle: Handle(head.fh), datasync }
        }
        opcode::STATFS => Op::Statfs,
        opcode::SYNCFS => Op::Syncfs,
        opcode::ACCESS => Op::Access { mask: body.fixed::<abi::AccessIn>()?.mask },
        opcode::SETXATTR => {
            let head: abi::SetxattrIn = body.fixed()?;
            let (name, value) = (body.name()?, body.bytes(head.size.into())?);
            let kill_sgid = head.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
            Op::Setxattr { name, value, flags: head.flags, kill_sgid }
        }
        opcode::GETXATTR => {
            let size = body.fixed::<abi::GetxattrIn>()?.size;
            Op::Getxattr { name: body.name()?, size }
        }
        opcode::LISTXATTR => Op::Listxattr { size: body.fixed::<abi::GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Op::Removexattr { name: body.name()? },
        _ => return Ok(None),
    }))
}

/// Operations on open files.
fn files<'a>(code: u32, body: &mut Body<'a>) -> Result<Op<'a>, DecodeError> {
    Ok(match code {
        opcode::OPEN => {
            let head: abi::OpenIn = body.fixed()?;
            let kill_suidgid = head.open_flags & abi::OPEN_KILL_SUIDGID != 0;
            Op::Open { flags: head.flags, kill_suidgid }
        }
        opcode::READ => {
            let head: abi::ReadIn = body.fixed()?;
            Op::Read(Read {
                handle: Handle(head.fh),
                offset: head.offset,
                size: head.size,
                flags: head.flags,
                lock_owner: when(head.read_flags, abi::READ_LOCKOWNER, LockOwner(head.lock_owner)),
            })
        }
        opcode::FLUSH => {
            let head: abi::FlushIn = body.fixed()?;
            Op::Flush { handle: Handle(head.fh), lock_owner: LockOwner(head.lock_owner) }
        }
        opcode::RELEASE => {
            let head: abi::ReleaseIn = body.fixed()?;
            let (owner, flags) = (LockOwner(head.lock_owner), head.release_flags);
            Op::Release(Release {
                handle: Handle(head.fh),
                flags: head.flags,
                flush: flags & abi::RELEASE_FLUSH != 0,
                unlock_flock: when(flags, abi::RELEASE_FLOCK_UNLOCK, owner),
            })
        }
        opcode::FSYNC => {
            let head: abi::FsyncIn = body.fixed()?;
            let datasync = head.fsync_flags & abi::FSYNC_FDATASYNC != 0;
            Op::Fsync { handle: Handle(head.fh), datasync }
        }
        opcode::GETLK => Op::Getlk(lock_request(body.fixed()?)?),
        opcode::SETLK => Op::Setlk(lock_request(body.fixed()?)?),
        opcode::SETLKW => Op::Setlkw(lock_request(body.fixed()?)?),
        opcode::FALLOCATE => {
            let abi::FallocateIn { fh, offset, length, mode, .. } = body.fixed()?;
            Op::Fallocate { handle: Handle(fh), offset, length, mode }
        }
        opcode::LSEEK => {
            let abi::LseekIn { fh, offset, whence, .. } = body.fixed()?;
            Op::Lseek { handle: Handle(fh), offset, whence }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let head: abi::CopyFileRangeIn = body.fixed()?;
            Op::CopyFileRange(CopyFileRange {
                source_handle: Handle(head.fh_in),
                source_offset: head.off_in,
                target: NodeId(head.nodeid_out),
                target_handle: Handle(head.fh_out),
                target_offset: head.off_out,
                length: head.len,
                flags: head.flags,
            })
        }
        opcode::BMAP => {
            let head: abi::BmapIn = body.fixed()?;
            Op::Bmap { block: head.block, block_size: head.blocksize }
        }
        opcode::IOCTL => {
            let head: abi::IoctlIn = body.fixed()?;
            Op::Ioctl(Ioctl {
                handle: Handle(head.fh),
                flags: head.flags,
                command: head.cmd,
                argument: head.arg,
                input: body.bytes(head.in_size.into())?,
                output_size: head.out_size,
            })
        }
        opcode::POLL => {
            let abi::PollIn { fh, kh, flags, events } = body.fixed()?;
            Op::Poll { handle: Handle(fh), kernel_handle: kh, notify: flags & 1 != 0, events }
        }
        unknown => return Err(DecodeError::Opcode(unknown)),
    })
}

fn setattr(head: abi::SetattrIn) -> Setattr {
    let time = |given: u32, now: u32, seconds: i64, nanoseconds: u32| {
        let at = SetTime::At(Timestamp { seconds, nanoseconds });
        when(head.valid, now, SetTime::Now).or(when(head.valid, given, at))
    };
    let ctime = Timestamp { seconds: head.ctime, nanoseconds: head.ctimensec };
    Setattr {
        handle: when(head.valid, abi::FATTR_FH, Handle(head.fh)),
        mode: when(head.valid, abi::FATTR_MODE, head.mode),
        uid: when(head.valid, abi::FATTR_UID, head.uid),
        gid: when(head.valid, abi::FATTR_GID, head.gid),
        size: when(head.valid, abi::FATTR_SIZE, head.size),
        atime: time(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, head.atime, head.atimensec),
        mtime: time(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, head.mtime, head.mtimensec),
        ctime: when(head.valid, abi::FATTR_CTIME, ctime),
        lock_owner: when(head.valid, abi::FATTR_LOCKOWNER, LockOwner(head.lock_owner)),
        kill_suidgid: head.valid & abi::FATTR_KILL_SUIDGID != 0,
    }
}

fn lock_request(head: abi::LkIn) -> Result<LockRequest, DecodeError> {
    let kind = match head.lk.kind as i32 {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(DecodeError::Value { field: "lock kind", value: head.lk.kind }),
    };
    let family = match head.lk_flags & abi::LK_FLOCK {
        0 => LockFamily::Posix,
        _ => LockFamily::Flock,
    };
    let lock = Lock { start: head.lk.start, end: head.lk.end, kind, pid: head.lk.pid };
    Ok(LockRequest { handle: Handle(head.fh), owner: LockOwner(head.owner), family, lock })
}

/// What is left of a message.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn fixed<T: Wire>(&mut self) -> Result<T, DecodeError> {
        let short = DecodeError::Short { length: self.0.len(), needed: size_of::<T>() };
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| short)?;
        self.0 = rest;
        Ok(value)
    }

    /// INIT without its tail, as kernels before 5.17 send it, is completed with zeros.
    fn init(&mut self) -> Result<abi::InitIn, DecodeError> {
        const OLD: usize = 16;
        let mut whole = [0; size_of::<abi::InitIn>()];
        if self.0.len() < OLD {
            return Err(DecodeError::Short { length: self.0.len(), needed: OLD });
        }
        let length = self.0.len().min(whole.len());
        whole[..length].copy_from_slice(&self.0[..length]);
        Body(&whole).fixed()
    }

    fn name(&mut self) -> Result<&'a [u8], DecodeError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(DecodeError::Unterminated)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(name)
    }

    fn bytes(&mut self, claimed: u64) -> Result<&'a [u8], DecodeError> {
        let overrun = DecodeError::Overrun { length: self.0.len(), claimed };
        let length = usize::try_from(claimed).map_err(|_| overrun)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(overrun)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Cuts off the last `length` bytes and returns the first supplementary group they name.
    fn cut_extensions(&mut self, length: usize) -> Result<Option<u32>, DecodeError> {
        let overrun = DecodeError::Overrun { length: self.0.len(), claimed: length as u64 };
        let body = self.0.len().checked_sub(length).ok_or(overrun)?;
        let (body, extensions) = self.0.split_at(body);
        self.0 = body;
        let mut rest = Body(extensions);
        while !rest.0.is_empty() {
            let head: abi::ExtHeader = rest.fixed()?;
            let size = u64::from(head.size);
            let size = size.checked_sub(size_of::<abi::ExtHeader>() as u64);
            let value = DecodeError::Value { field: "extension size", value: head.size };
            let mut extension = Body(rest.bytes(size.ok_or(value)?)?);
            if head.kind == abi::EXT_GROUPS {
                let count: u32 = extension.fixed()?;
                return if count == 0 { Ok(None) } else { extension.fixed().map(Some) };
            }
        }
        Ok(None)
    }
}
