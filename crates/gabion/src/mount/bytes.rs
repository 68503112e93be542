//! Requests on the bytes of files.

use std::cell::RefCell;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_fs::{CopyRequest, Privileges, SizeRule, SpaceRequest, WriteAt, errno};
use gabion_fuse::{CopyFileRange, PAYLOAD_MAX, Read, Reply, Write};
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Payload};
use gabion_node::Reader;

use super::front::{Ask, done, failed, refuse};
use super::seeks::Seek;
use super::{Coherence, WritePolicy, encode};

/// Payloads above this size are kept in the memory they came in: the protocol hands over no
/// smaller ones without a copy.
const COPY_MAX: usize = 128 << 10;

thread_local! {
    /// What this thread reads into, on a block boundary: a buffer of its own for each READ would
    /// cost more than the reading.
    static BUFFER: RefCell<Option<Blocks>> = const { RefCell::new(None) };
}

impl Ask<'_> {
    pub(super) fn read(&self, read: &Read, reply: Reply) {
        let size = (read.size as usize).min(PAYLOAD_MAX);
        // The kernel says who reads only where no page is filled.
        let reader = match read.lock_owner {
            Some(_) => Reader::Program,
            None => Reader::Cache,
        };
        BUFFER.with_borrow_mut(|buffer| {
            // Memory that is never touched takes none.
            let blocks = buffer.get_or_insert_with(|| Blocks::zeroed(PAYLOAD_MAX / BLOCK_SIZE));
            let into = &mut blocks.bytes_mut()[..size];
            match self.fs.read(&self.caller, self.file, read.offset, into, reader) {
                Ok(count) => {
                    // Who can only write has a page read to change some of it.
                    if read.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32 {
                        self.record_reading(read.flags);
                    }
                    let filled = self.filled(reader, count, size);
                    into[count..filled].fill(0);
                    reply.bytes(&into[..filled])
                }
                Err(error) => failed(reply, &error),
            };
        });
    }

    /// A program has read, through what is open with these `O_*` flags.
    pub(super) fn record_reading(&self, flags: u32) {
        if flags & libc::O_NOATIME as u32 == 0 {
            self.fs.record_reading(&self.caller, self.file);
        }
    }

    /// How much is answered to a READ of `size` bytes that has found `count`.
    ///
    /// If a page ends early, the kernel takes that for the file's end. It may hear of it too late,
    /// when somebody has moved the end again, and of several pages in any order. Where others move
    /// it, too, the kernel is to ask for the attributes instead, and gets whole pages.
    fn filled(&self, reader: Reader, count: usize, size: usize) -> usize {
        match (self.coherence, reader) {
            (Coherence::Shared, Reader::Cache) => size,
            (Coherence::Shared, Reader::Program) | (Coherence::Alone, _) => count,
        }
    }

    pub(super) fn write(&self, write: Write<'_>, reply: Reply) {
        let at = self.place(&write);
        let Write { offset, payload, kill_suidgid, from_page_cache, .. } = write;
        let privileges = encode::privileges(kill_suidgid);
        let length = payload.len();
        let is_whole =
            length.is_multiple_of(BLOCK_SIZE) && offset.is_multiple_of(BLOCK_SIZE as u64);
        let (caller, file) = (&self.caller, self.file);
        let put = |payload: Payload<'_>| match (self.writes, from_page_cache) {
            // The kernel has set the file's times when a program wrote, and tells them when it has
            // handed over what was written, or has begun to. This may be later than that.
            (WritePolicy::Back, _) => {
                self.fs.write_untimed(caller, file, offset, &payload, privileges)
            }
            (WritePolicy::Through, true) => self.fs.write_back(caller, file, offset, &payload),
            (WritePolicy::Through, false) => self.fs.write(caller, file, at, &payload, privileges),
        };
        let written = if is_whole && length > COPY_MAX {
            match BlockSlice::adopt(payload.take()) {
                Ok(blocks) => put(Payload::Shared { blocks, length }),
                Err(bytes) => put(Payload::Copied(&bytes)),
            }
        } else {
            put(Payload::Copied(&payload))
        };
        match written {
            Ok(written) => reply.written(written.length as u32),
            Err(error) => {
                let errno = errno(&error);
                let is_kept = errno == libc::EROFS || errno == libc::EDQUOT && from_page_cache;
                if self.coherence == Coherence::Alone && is_kept {
                    self.refused.add(self.node);
                }
                if self.coherence == Coherence::Alone
                    && from_page_cache
                    && matches!(errno, libc::ENOSPC | libc::EDQUOT)
                {
                    self.shortages.add((self.file, self.node), errno);
                }
                match errno {
                    // fsync(2) would be told of a quota, but close(2) knows only two reasons why
                    // collected bytes failed: this, and that the disk is broken.
                    libc::EDQUOT if from_page_cache => reply.error(libc::ENOSPC),
                    _ => failed(reply, &error),
                }
            }
        };
    }

    /// Where to write. A kernel that is alone knows where the file ends, for nobody else moves the
    /// end; what it writes back of its pages has its place in any case.
    fn place(&self, write: &Write<'_>) -> WriteAt {
        let appends = write.flags & libc::O_APPEND as u32 != 0 && !write.from_page_cache;
        match self.coherence {
            Coherence::Shared if appends => WriteAt::End,
            Coherence::Alone | Coherence::Shared => WriteAt::Offset(write.offset),
        }
    }

    /// The kernel does not say whether set-id bits shall go here; they go unless the superuser
    /// calls, as in its own filesystems.
    fn privileges(&self) -> Privileges {
        if self.caller.is_superuser() { Privileges::Keep } else { Privileges::Clear }
    }

    pub(super) fn fallocate(&self, offset: u64, length: u64, mode: u32, reply: Reply) {
        const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
        let rule = match mode as i32 & KEEP_SIZE {
            0 => SizeRule::Extend,
            _ => SizeRule::Keep,
        };
        let request = match mode as i32 & !KEEP_SIZE {
            0 => SpaceRequest::Allocate(rule),
            libc::FALLOC_FL_PUNCH_HOLE if rule == SizeRule::Keep => SpaceRequest::Punch,
            libc::FALLOC_FL_ZERO_RANGE => SpaceRequest::Zero(rule),
            libc::FALLOC_FL_COLLAPSE_RANGE if rule == SizeRule::Extend => SpaceRequest::Collapse,
            libc::FALLOC_FL_INSERT_RANGE if rule == SizeRule::Extend => SpaceRequest::Insert,
            _ => return refuse(reply, libc::EOPNOTSUPP),
        };
        let privileges = self.privileges();
        let (caller, file) = (&self.caller, self.file);
        done(reply, self.fs.fallocate(caller, file, request, offset, length, privileges));
    }

    pub(super) fn lseek(&self, offset: u64, whence: u32, reply: Reply) {
        let target = match whence as i32 {
            libc::SEEK_DATA => SeekTarget::Data,
            libc::SEEK_HOLE => SeekTarget::Hole,
            _ => return refuse(reply, libc::EINVAL),
        };
        let found = self.fs.seek(self.file, offset, target);
        let is_sure = match self.coherence {
            // What the filesystem has is data, whatever the kernel has.
            Coherence::Alone => {
                target == SeekTarget::Data && matches!(found, Ok(at) if at == offset)
                    || self.fs.is_unchanging(self.file)
            }
            Coherence::Shared => true,
        };
        if !is_sure {
            return self.seeks.begin(Seek { node: self.node, offset, target }, reply);
        }
        match found {
            Ok(found) => reply.lseek(found),
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn copy_file_range(&self, copy: &CopyFileRange, target: FileId, reply: Reply) {
        if copy.flags != 0 {
            return refuse(reply, libc::EINVAL);
        }
        let request = CopyRequest {
            source: self.file,
            source_offset: copy.source_offset,
            target,
            target_offset: copy.target_offset,
            // The older form of the answer has no room for more, and stays on whole blocks.
            length: copy.length.min(u64::from(u32::MAX) + 1 - BLOCK_SIZE as u64),
        };
        match self.fs.copy_range(&self.caller, &request, self.privileges()) {
            Ok(copied) => reply.copied(copied),
            Err(error) => failed(reply, &error),
        };
    }
}
