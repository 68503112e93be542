//! Answers. A [`Reply`] is owned and may go to another thread; it is sent exactly once. Dropped
//! without an answer it sends EIO, so no caller ever waits for an answer that nobody will give.
//!
//! Every method says whether the answer reached the kernel. It did not if the deadline had passed,
//! the request was given up, or the mount is gone. Whatever the answer would have handed to the
//! kernel is then the filesystem's to take back: the lookup of an [`Entry`], a lock, the handle of
//! an [`Opened`]. No FORGET, unlock or RELEASE will come for it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::abi::{self, opcode};
use crate::attr::{Attr, Entry, ExtendedAttr, Opened, Statfs};
use crate::directory::Listing;
use crate::flight::{Cancel, Core, Flight};
use crate::request::{Lock, LockKind};

/// Less than an entry of a directory has.
const DIRECTORY_END_BYTES: usize = 8;

/// Whether an answer reached the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Delivered,
    /// Nobody waited for it any more.
    Gone,
}

/// An errno, 1 to 511, as the kernel accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// The errno with this number; EIO if there is no such errno.
    pub const fn new(number: i32) -> Self {
        if number > 0 && number < 512 { Self(number) } else { Self(libc::EIO) }
    }

    /// Its number, positive.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<i32> for Errno {
    fn from(number: i32) -> Self {
        Self::new(number)
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// The answer to one request.
pub struct Reply {
    core: Arc<Core>,
    flight: Option<Arc<Flight>>,
}

impl Reply {
    pub(crate) fn new(core: Arc<Core>, header: &abi::InHeader) -> Self {
        let flight = Some(core.register(header));
        Self { core, flight }
    }

    /// Whether the request was answered before its handler saw it.
    pub(crate) fn is_settled(&self) -> bool {
        self.flight().is_answered()
    }

    fn flight(&self) -> &Arc<Flight> {
        self.flight.as_ref().expect("present until the reply is sent, which consumes it")
    }

    /// Tells when the request should be given up.
    pub fn cancel(&self) -> Cancel {
        Cancel(Arc::clone(self.flight()))
    }

    /// The kernel's number of the request.
    pub fn unique(&self) -> u64 {
        self.flight().unique
    }

    fn send(mut self, error: i32, body: &[IoSlice<'_>]) -> Outcome {
        match self.flight.take() {
            Some(flight) => self.core.answer(&flight, error, body),
            None => Outcome::Gone,
        }
    }

    fn send_wire(self, body: &[u8]) -> Outcome {
        self.send(0, &[IoSlice::new(body)])
    }

    /// The request failed.
    pub fn error(self, errno: impl Into<Errno>) -> Outcome {
        self.send(-errno.into().number(), &[])
    }

    /// The request succeeded and there is nothing more to say.
    pub fn ok(self) -> Outcome {
        self.send(0, &[])
    }

    /// The inode under a name. Delivered, it counts one lookup.
    pub fn entry(self, entry: &Entry) -> Outcome {
        self.send_wire(entry.to_wire().as_bytes())
    }

    /// There is no such name, and the kernel may remember that for `ttl`.
    pub fn entry_absent(self, ttl: Duration) -> Outcome {
        let absent = abi::EntryOut {
            entry_valid: ttl.as_secs(),
            entry_valid_nsec: ttl.subsec_nanos(),
            ..abi::EntryOut::default()
        };
        self.send_wire(absent.as_bytes())
    }

    /// Attributes, which the kernel may remember for `ttl`.
    pub fn attr(self, attr: &Attr, ttl: Duration) -> Outcome {
        let out = abi::AttrOut {
            attr_valid: ttl.as_secs(),
            attr_valid_nsec: ttl.subsec_nanos(),
            dummy: 0,
            attr: attr.to_wire(),
        };
        self.send_wire(out.as_bytes())
    }

    /// Attributes for STATX, which the kernel may remember for `ttl`.
    pub fn statx(self, attr: &ExtendedAttr, ttl: Duration) -> Outcome {
        let out = abi::StatxOut {
            attr_valid: ttl.as_secs(),
            attr_valid_nsec: ttl.subsec_nanos(),
            stat: attr.to_wire(),
            ..abi::StatxOut::default()
        };
        self.send_wire(out.as_bytes())
    }

    /// An open file or directory. Delivered, it will be released.
    pub fn open(self, opened: &Opened) -> Outcome {
        self.send_wire(opened.to_wire().as_bytes())
    }

    /// A new file, already open: one lookup and one handle.
    pub fn create(self, entry: &Entry, opened: &Opened) -> Outcome {
        let (entry, opened) = (entry.to_wire(), opened.to_wire());
        self.send(0, &[IoSlice::new(entry.as_bytes()), IoSlice::new(opened.as_bytes())])
    }

    /// What was read: bytes of a file, the target of a link.
    pub fn bytes(self, bytes: &[u8]) -> Outcome {
        self.send_wire(bytes)
    }

    /// As [`bytes`](Self::bytes), gathered from several places without a copy.
    pub fn bytes_vectored(self, slices: &[IoSlice<'_>]) -> Outcome {
        self.send(0, slices)
    }

    /// Entries of a directory; an empty buffer ends it.
    pub fn directory(self, listing: &impl Listing) -> Outcome {
        self.send_wire(listing.bytes())
    }

    /// The end of a directory whose entries the kernel is not to keep: it takes nothing at all for
    /// the end of what it may keep, and less than an entry for the end alone.
    pub fn directory_end_unkept(self) -> Outcome {
        self.send_wire(&[0; DIRECTORY_END_BYTES])
    }

    /// Bytes written, which must not exceed the bytes given.
    pub fn written(self, size: u32) -> Outcome {
        self.send_wire(abi::WriteOut { size, padding: 0 }.as_bytes())
    }

    /// Bytes copied by COPY_FILE_RANGE.
    pub fn copied(self, length: u64) -> Outcome {
        if self.flight().opcode == opcode::COPY_FILE_RANGE_64 {
            return self.send_wire(abi::CopyFileRangeOut { bytes_copied: length }.as_bytes());
        }
        self.written(length.try_into().unwrap_or(u32::MAX))
    }

    /// The filesystem's size and fill.
    pub fn statfs(self, statfs: &Statfs) -> Outcome {
        self.send_wire(statfs.to_wire().as_bytes())
    }

    /// An extended attribute, or the list of their names, for a caller with room for `room` bytes:
    /// only the size if that is 0, ERANGE if it is too little.
    pub fn xattr(self, room: u32, value: &[u8]) -> Outcome {
        match (room, u32::try_from(value.len())) {
            (_, Err(_)) => self.error(libc::E2BIG),
            (0, Ok(size)) => self.send_wire(abi::GetxattrOut { size, padding: 0 }.as_bytes()),
            (_, Ok(size)) if size > room => self.error(libc::ERANGE),
            _ => self.send_wire(value),
        }
    }

    /// The first lock that is in the way, or none.
    pub fn lock(self, conflict: Option<&Lock>) -> Outcome {
        let kind = |kind| match kind {
            LockKind::Shared => libc::F_RDLCK,
            LockKind::Exclusive => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        };
        let none = abi::FileLock { kind: libc::F_UNLCK as u32, ..abi::FileLock::default() };
        let out = conflict.map_or(none, |lock| abi::FileLock {
            start: lock.start,
            end: lock.end,
            kind: kind(lock.kind) as u32,
            pid: lock.pid,
        });
        self.send_wire(out.as_bytes())
    }

    /// Where the next bytes, or the next hole, begin.
    pub fn lseek(self, offset: u64) -> Outcome {
        self.send_wire(abi::LseekOut { offset }.as_bytes())
    }

    /// The device block that holds a block of the file.
    pub fn bmap(self, block: u64) -> Outcome {
        self.send_wire(abi::BmapOut { block }.as_bytes())
    }

    /// The result of an ioctl and the bytes for the caller's memory.
    pub fn ioctl(self, result: i32, output: &[u8]) -> Outcome {
        let head = abi::IoctlOut { result, ..abi::IoctlOut::default() };
        self.send(0, &[IoSlice::new(head.as_bytes()), IoSlice::new(output)])
    }

    /// The `POLL*` events that are there now.
    pub fn poll(self, events: u32) -> Outcome {
        self.send_wire(abi::PollOut { revents: events, padding: 0 }.as_bytes())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.core.abandon(&flight);
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.flight {
            Some(flight) => write!(f, "Reply({:#x}, operation {})", flight.unique, flight.opcode),
            None => write!(f, "Reply(sent)"),
        }
    }
}
