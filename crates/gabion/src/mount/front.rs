//! Every request of the kernel, and which call answers it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_fs::{Caller, Error, Result, errno};
use gabion_fuse::{Handler, InitReply, KernelOffer, NodeId, Notifier, Op, Outcome, Reply, Request};
use gabion_map::FileId;
use gabion_node::{Filesystem, Kept};

use super::descriptions::Descriptions;
use super::kernel::{FOREVER, init_reply};
use super::refused::Refused;
use super::{Coherence, Locking, MountRequest, WritePolicy, encode};

/// A filesystem as the kernel sees it.
pub(super) struct Front {
    /// The mount owns it: the threads of a session may outlive both by a moment.
    fs: Weak<dyn Filesystem>,
    coherence: Coherence,
    locking: Locking,
    writes: WritePolicy,
    /// For requests under way, in bytes.
    memory: u64,
    descriptions: Arc<Descriptions>,
    refused: Arc<Refused>,
    /// How the filesystem was closed, once it is.
    closed: Mutex<Option<Result<()>>>,
}

impl Front {
    pub(super) fn new(fs: &Arc<dyn Filesystem>, request: &MountRequest) -> Self {
        let MountRequest { coherence, writes, locking, memory, .. } = *request;
        let (writes, locking) = match coherence {
            Coherence::Alone => (writes, locking),
            Coherence::Shared => (WritePolicy::Through, Locking::Filesystem),
        };
        let fs = Arc::downgrade(fs);
        let descriptions = Arc::default();
        let (refused, closed) = Default::default();
        Self { fs, coherence, locking, writes, memory, descriptions, refused, closed }
    }

    /// Whom to tell what the kernel has in vain.
    pub(super) fn tell(&self, notifier: Notifier) {
        self.refused.tell(notifier);
    }

    /// How closing the filesystem went, asked once.
    pub(super) fn take_closed(&self) -> Option<Result<()>> {
        self.closed.lock().take()
    }
}

/// One request on its way to its answer.
pub(super) struct Ask<'a> {
    pub(super) fs: &'a Arc<dyn Filesystem>,
    pub(super) coherence: Coherence,
    pub(super) writes: WritePolicy,
    pub(super) locking: Locking,
    pub(super) caller: Caller,
    /// The process or thread that asks.
    pub(super) process: u32,
    pub(super) descriptions: &'a Arc<Descriptions>,
    pub(super) refused: &'a Arc<Refused>,
    pub(super) file: FileId,
}

impl Handler for Front {
    fn init(&self, offer: &KernelOffer) -> InitReply {
        init_reply(offer, self.coherence, self.writes, self.locking, self.memory)
    }

    fn handle(&self, request: Request<'_>, reply: Reply) {
        let umask = match &request.op {
            Op::Create { umask, .. }
            | Op::Tmpfile { umask, .. }
            | Op::Mknod { umask, .. }
            | Op::Mkdir { umask, .. } => *umask,
            _ => 0,
        };
        let Some(fs) = self.fs.upgrade() else {
            return refuse(reply, libc::ENODEV);
        };
        // Told also if handling it panics: its answer is an error then, but it is one.
        let _answered = Answered(&*fs);
        let ask = Ask {
            coherence: self.coherence,
            writes: self.writes,
            locking: self.locking,
            caller: encode::caller(&request, umask, self.coherence),
            process: request.pid,
            descriptions: &self.descriptions,
            refused: &self.refused,
            file: file_of(&*fs, request.node),
            fs: &fs,
        };
        ask.dispatch(request.op, reply);
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        if let Some(fs) = self.fs.upgrade() {
            fs.forget(file_of(&*fs, node), lookups);
        }
    }

    fn destroy(&self) {
        *self.closed.lock() = self.fs.upgrade().map(|fs| fs.close());
    }
}

/// Tells the filesystem at its end that a request was answered.
struct Answered<'a>(&'a dyn Filesystem);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// The kernel's numbers are ours.
fn file_of(fs: &dyn Filesystem, node: NodeId) -> FileId {
    fs.file(Ino(node.0))
}

impl Ask<'_> {
    fn dispatch(&self, op: Op<'_>, reply: Reply) {
        match op {
            Op::Lookup { name } => self.lookup(name, reply),
            Op::Getattr { .. } => self.getattr(reply),
            Op::Statx { .. } => self.statx(reply),
            Op::Setattr(setattr) => self.setattr(&setattr, reply),
            Op::Readlink => self.readlink(reply),
            Op::Symlink { name, target } => self.symlink(name, target, reply),
            Op::Mknod { name, mode, rdev, .. } => self.mknod(name, mode, rdev, reply),
            Op::Mkdir { name, mode, .. } => self.mkdir(name, mode, reply),
            Op::Unlink { name } => {
                self.removed(reply, self.fs.unlink(&self.caller, self.file, name));
            }
            Op::Rmdir { name } => {
                self.removed(reply, self.fs.rmdir(&self.caller, self.file, name));
            }
            Op::Rename { name, new_parent, new_name, flags } => {
                self.rename(name, file_of(&**self.fs, new_parent), new_name, flags, reply);
            }
            Op::Link { source, name } => self.link(file_of(&**self.fs, source), name, reply),
            Op::Open { flags, .. } => self.open(flags, reply),
            Op::Create { name, mode, flags, kill_suidgid, .. } => {
                self.create(name, mode, flags, encode::privileges(kill_suidgid), reply);
            }
            Op::Tmpfile { mode, flags, .. } => self.tmpfile(mode, flags, reply),
            Op::Read(read) => self.read(&read, reply),
            Op::Write(write) => self.write(write, reply),
            Op::Flush { lock_owner, .. } => self.flush(lock_owner, reply),
            Op::Release(release) => self.release(&release, reply),
            Op::Fsync { .. } | Op::Fsyncdir { .. } => done(reply, self.fs.fsync(self.file)),
            Op::Readdir(read) => self.readdir(&read, reply),
            Op::Readdirplus(read) => self.readdirplus(&read, reply),
            Op::Statfs => self.statfs(reply),
            Op::Syncfs => done(reply, self.fs.syncfs()),
            Op::Setxattr { name, value, flags, kill_sgid } => {
                self.setxattr(name, value, flags, kill_sgid, reply);
            }
            Op::Getxattr { name, size } => self.getxattr(name, size, reply),
            Op::Listxattr { size } => self.listxattr(size, reply),
            Op::Removexattr { name } => {
                done(reply, self.fs.remove_xattr(&self.caller, self.file, name));
            }
            Op::Getlk(request) => self.getlk(&request, reply),
            Op::Setlk(request) => self.setlk(&request, reply),
            Op::Setlkw(request) => self.setlkw(&request, reply),
            Op::Fallocate { offset, length, mode, .. } => {
                self.fallocate(offset, length, mode, reply);
            }
            Op::Lseek { offset, whence, .. } => self.lseek(offset, whence, reply),
            Op::CopyFileRange(copy) => {
                self.copy_file_range(&copy, file_of(&**self.fs, copy.target), reply)
            }
            Op::Ioctl(_) => refuse(reply, libc::ENOTTY),
            // The kernel opens directories by itself, and keeps what they hold.
            Op::Opendir { .. } => refuse(reply, libc::ENOSYS),
            Op::Releasedir { .. } => {
                reply.ok();
            }
            // The kernel does without: it has checked permissions, takes files for always ready,
            // and is not told where their blocks are.
            Op::Access { .. } | Op::Poll { .. } | Op::Bmap { .. } => refuse(reply, libc::ENOSYS),
        }
    }
}

impl Ask<'_> {
    /// The number of the object that is asked of.
    pub(super) fn number(&self) -> Ino {
        self.fs.number(self.file)
    }

    /// How long the kernel may take a name in the directory that is asked of for what it was told.
    pub(super) fn name_ttl(&self, name: &[u8]) -> Duration {
        self.ttl(Kept::Name { dir: self.file, name })
    }

    /// How long the kernel may keep attributes that it was told.
    pub(super) fn attributes_ttl(&self, file: FileId) -> Duration {
        self.ttl(Kept::Attributes(file))
    }

    fn ttl(&self, subject: Kept<'_>) -> Duration {
        if self.fs.is_kept(subject) { FOREVER } else { Duration::ZERO }
    }
}

/// Answers with the error.
pub(super) fn failed(reply: Reply, error: &Error) -> Outcome {
    reply.error(errno(error))
}

/// Answers with the errno.
pub(super) fn refuse(reply: Reply, errno: i32) {
    reply.error(errno);
}

/// Answers a request that has no result.
pub(super) fn done(reply: Reply, result: Result<()>) {
    ended(reply, result);
}

/// The same, for who has to know whether the answer arrived.
pub(super) fn ended(reply: Reply, result: Result<()>) -> Outcome {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => failed(reply, &error),
    }
}
