//! Every request of the kernel, and which call answers it.

use std::sync::Arc;

use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_fs::{Caller, Error, Result, errno};
use gabion_fuse::{Handler, InitReply, KernelOffer, NodeId, Op, Outcome, Reply, Request};
use gabion_map::FileId;
use gabion_node::LocalFs;

use super::kernel::{FOREVER, init_reply};
use super::{Locking, WritePolicy, encode};

/// A local filesystem as the kernel sees it.
pub(super) struct Front {
    pub(super) fs: Arc<LocalFs>,
    pub(super) locking: Locking,
    pub(super) writes: WritePolicy,
    /// How the filesystem was closed, once it is.
    pub(super) closed: Mutex<Option<Result<()>>>,
}

impl Front {
    pub(super) fn new(fs: Arc<LocalFs>, writes: WritePolicy, locking: Locking) -> Self {
        Self { fs, locking, writes, closed: Mutex::default() }
    }

    /// The kernel's numbers are ours.
    pub(super) fn file(&self, node: NodeId) -> FileId {
        self.fs.file(Ino(node.0))
    }
}

/// One request on its way to its answer.
pub(super) struct Ask<'a> {
    pub(super) fs: &'a Arc<LocalFs>,
    pub(super) locking: Locking,
    pub(super) caller: Caller,
    pub(super) file: FileId,
}

impl Handler for Front {
    fn init(&self, offer: &KernelOffer) -> InitReply {
        init_reply(offer, self.writes, self.locking)
    }

    fn handle(&self, request: Request<'_>, reply: Reply) {
        let umask = match &request.op {
            Op::Create { umask, .. }
            | Op::Tmpfile { umask, .. }
            | Op::Mknod { umask, .. }
            | Op::Mkdir { umask, .. } => *umask,
            _ => 0,
        };
        let ask = Ask {
            fs: &self.fs,
            locking: self.locking,
            caller: encode::caller(&request, umask),
            file: self.file(request.node),
        };
        self.dispatch(&ask, request.op, reply);
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.fs.forget(self.file(node), lookups);
    }

    fn destroy(&self) {
        *self.closed.lock() = Some(self.fs.close());
    }
}

impl Front {
    fn dispatch(&self, ask: &Ask<'_>, op: Op<'_>, reply: Reply) {
        match op {
            Op::Lookup { name } => ask.lookup(name, reply),
            Op::Getattr { .. } => ask.getattr(reply),
            Op::Statx { .. } => ask.statx(reply),
            Op::Setattr(setattr) => ask.setattr(&setattr, reply),
            Op::Readlink => ask.readlink(reply),
            Op::Symlink { name, target } => ask.symlink(name, target, reply),
            Op::Mknod { name, mode, rdev, .. } => ask.mknod(name, mode, rdev, reply),
            Op::Mkdir { name, mode, .. } => ask.mkdir(name, mode, reply),
            Op::Unlink { name } => done(reply, ask.fs.unlink(&ask.caller, ask.file, name)),
            Op::Rmdir { name } => done(reply, ask.fs.rmdir(&ask.caller, ask.file, name)),
            Op::Rename { name, new_parent, new_name, flags } => {
                ask.rename(name, self.file(new_parent), new_name, flags, reply);
            }
            Op::Link { source, name } => ask.link(self.file(source), name, reply),
            Op::Open { .. } => ask.open(reply),
            Op::Create { name, mode, flags, kill_suidgid, .. } => {
                ask.create(name, mode, flags, encode::privileges(kill_suidgid), reply);
            }
            Op::Tmpfile { mode, flags, .. } => ask.tmpfile(mode, flags, reply),
            Op::Read(read) => ask.read(&read, reply),
            Op::Write(write) => ask.write(write, reply),
            Op::Flush { lock_owner, .. } => ask.flush(lock_owner, reply),
            Op::Release(release) => ask.release(&release, reply),
            Op::Fsync { .. } | Op::Fsyncdir { .. } => done(reply, ask.fs.fsync(ask.file)),
            Op::Readdir(read) => ask.readdir(&read, reply),
            Op::Readdirplus(read) => ask.readdirplus(&read, reply),
            Op::Statfs => ask.statfs(reply),
            Op::Syncfs => done(reply, ask.fs.syncfs()),
            Op::Setxattr { name, value, flags, kill_sgid } => {
                ask.setxattr(name, value, flags, kill_sgid, reply);
            }
            Op::Getxattr { name, size } => ask.getxattr(name, size, reply),
            Op::Listxattr { size } => ask.listxattr(size, reply),
            Op::Removexattr { name } => {
                done(reply, ask.fs.remove_xattr(&ask.caller, ask.file, name));
            }
            Op::Getlk(request) => ask.getlk(&request, reply),
            Op::Setlk(request) => ask.setlk(&request, reply),
            Op::Setlkw(request) => ask.setlkw(&request, reply),
            Op::Fallocate { offset, length, mode, .. } => {
                ask.fallocate(offset, length, mode, reply);
            }
            Op::Lseek { offset, whence, .. } => ask.lseek(offset, whence, reply),
            Op::CopyFileRange(copy) => ask.copy_file_range(&copy, self.file(copy.target), reply),
            Op::Ioctl(_) => refuse(reply, libc::ENOTTY),
            // The kernel does without: it opens directories by itself, has checked permissions,
            // takes files for always ready, and is not told where their blocks are.
            Op::Opendir { .. }
            | Op::Releasedir { .. }
            | Op::Access { .. }
            | Op::Poll { .. }
            | Op::Bmap { .. } => refuse(reply, libc::ENOSYS),
        }
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
    match result {
        Ok(()) => reply.ok(),
        Err(error) => failed(reply, &error),
    };
}

/// Answers that there is no such name, for ever.
pub(super) fn absent(reply: Reply) {
    reply.entry_absent(FOREVER);
}
