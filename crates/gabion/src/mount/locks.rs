//! Requests on advisory locks, for [`Locking::Filesystem`].
//!
//! A wait leaves the thread at once: its reply moves into the table of locks and is sent when the
//! lock is free, or when the caller gets a signal. A lock that was granted to a caller who is gone
//! by then is given back.

use std::sync::Arc;

use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::{Result, errno};
use gabion_fuse as fuse;
use gabion_fuse::{LockFamily, LockKind, Outcome, Reply};

use super::Locking;
use super::front::{Ask, done, refuse};

/// All locks of one mount are one client's; its owners are told apart by their classes and numbers.
const CLIENT: u64 = 0;

/// A process as an owner, by the kernel's number. It is that of another one only after the process
/// has closed the file, for which it has waited.
fn process(owner: fuse::LockOwner) -> LockOwner {
    LockOwner { client: CLIENT, number: owner.0 }
}

/// A description as an owner. The kernel's number would not do: it makes it of where the
/// description lies in memory, and may have put another one there before it tells that the first
/// has ended.
fn description(handle: fuse::Handle) -> LockOwner {
    LockOwner { client: CLIENT, number: handle.0 }
}

fn range(request: &fuse::LockRequest) -> Option<LockRange> {
    match request.family {
        LockFamily::Posix => LockRange::new(request.lock.start, request.lock.end),
        LockFamily::Flock => Some(LockRange::WHOLE),
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Lock,
    Unlock,
    /// To see who stands in the way.
    Look,
}

impl Ask<'_> {
    /// Which call the lock is of.
    fn class(&self, request: &fuse::LockRequest, purpose: Purpose) -> LockClass {
        let fuse::LockRequest { handle, owner, .. } = *request;
        let is_description = || match purpose {
            Purpose::Lock => self.descriptions.locks(handle, owner, self.process),
            Purpose::Unlock | Purpose::Look => self.descriptions.is_owner(handle, owner),
        };
        match request.family {
            LockFamily::Flock => LockClass::Flock,
            LockFamily::Posix if is_description() => LockClass::OpenFile,
            LockFamily::Posix => LockClass::Posix,
        }
    }

    /// The lock that is asked for; `None` if the range is upside down.
    fn wanted(&self, request: &fuse::LockRequest, purpose: Purpose) -> Option<Lock> {
        let strength = match request.lock.kind {
            LockKind::Exclusive => Strength::Exclusive,
            LockKind::Shared | LockKind::Unlock => Strength::Shared,
        };
        let class = self.class(request, purpose);
        let owner = match class {
            LockClass::Posix => process(request.owner),
            LockClass::Flock | LockClass::OpenFile => description(request.handle),
        };
        Some(Lock {
            file: self.file,
            class,
            owner,
            pid: request.lock.pid,
            strength,
            range: range(request)?,
        })
    }

    pub(super) fn getlk(&self, request: &fuse::LockRequest, reply: Reply) {
        let Some(wanted) = self.wanted(request, Purpose::Look) else {
            return refuse(reply, libc::EINVAL);
        };
        let conflict = match self.fs.lock_conflict(&wanted) {
            Ok(conflict) => conflict,
            Err(error) => return refuse(reply, errno(&error)),
        };
        let conflict = conflict.map(|lock| fuse::Lock {
            start: lock.range.start(),
            end: lock.range.end(),
            kind: match lock.strength {
                Strength::Shared => LockKind::Shared,
                Strength::Exclusive => LockKind::Exclusive,
            },
            pid: lock.pid,
        });
        reply.lock(conflict.as_ref());
    }

    pub(super) fn setlk(&self, request: &fuse::LockRequest, reply: Reply) {
        self.lock(request, Wait::No, reply);
    }

    pub(super) fn setlkw(&self, request: &fuse::LockRequest, reply: Reply) {
        self.lock(request, Wait::Yes, reply);
    }

    fn lock(&self, request: &fuse::LockRequest, wait: Wait, reply: Reply) {
        let purpose = match request.lock.kind {
            LockKind::Unlock => Purpose::Unlock,
            LockKind::Shared | LockKind::Exclusive => Purpose::Lock,
        };
        let Some(wanted) = self.wanted(request, purpose) else {
            return refuse(reply, libc::EINVAL);
        };
        let Lock { file, class, owner, range, .. } = wanted;
        if request.lock.kind == LockKind::Unlock {
            let end = Box::new(move |result| done(reply, result));
            return self.fs.unlock_then(file, class, owner, range, end);
        }
        let cancel = reply.cancel();
        let fs = Arc::clone(self.fs);
        let end = move |result| match result {
            Ok(()) => {
                if reply.ok() == Outcome::Gone {
                    fs.unlock_soon(file, class, owner, range);
                }
            }
            Err(error) => refuse(reply, errno(&error)),
        };
        if let Some(ticket) = self.fs.lock(wanted, wait, Box::new(end)) {
            let fs = Arc::clone(self.fs);
            cancel.on_cancel(move |_| fs.cancel_lock(ticket));
        }
    }

    pub(super) fn flush(&self, closed_by: fuse::LockOwner, reply: Reply) {
        if self.locking == Locking::Kernel {
            return refuse(reply, libc::ENOSYS);
        }
        let (class, owner) = (LockClass::Posix, process(closed_by));
        let end = Box::new(move |result| done(reply, result));
        self.fs.unlock_then(self.file, class, owner, LockRange::WHOLE, end);
    }

    /// A description is closed, and its locks end. `has_flock`: that may be of the whole file.
    pub(super) fn release_description(&self, handle: fuse::Handle, has_flock: bool) -> Result<()> {
        let unlock =
            |class| self.fs.unlock(self.file, class, description(handle), LockRange::WHOLE);
        let unlocked = if has_flock { unlock(LockClass::Flock) } else { Ok(()) };
        match self.descriptions.close(handle) {
            true => unlocked.and(unlock(LockClass::OpenFile)),
            false => unlocked,
        }
    }
}
