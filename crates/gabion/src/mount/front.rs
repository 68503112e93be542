//! Every request of the kernel, and which call answers it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_base::sync::{Mutex, ReadMostly};
use gabion_fs::{Caller, Error, ROOT, Result, errno};
use gabion_fuse::{Handler, InitReply, KernelOffer, NodeId, Notifier, Op, Outcome, Reply, Request};
use gabion_map::FileId;
use gabion_node::{Eras, Filesystem, Kept};

use super::cached_names::CachedNames;
use super::descriptions::Descriptions;
use super::kernel::{FOREVER, init_reply};
use super::refused::Refused;
use super::seeks::Seeks;
use super::shortages::Shortages;
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
    names: Arc<CachedNames>,
    descriptions: Arc<Descriptions>,
    refused: Arc<Refused>,
    seeks: Arc<Seeks>,
    shortages: Shortages,
    eras: Arc<Eras>,
    /// Had by each request that is being handled, so that a rollback has none beside it.
    passage: Arc<ReadMostly<()>>,
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
        let fs: Weak<dyn Filesystem> = Arc::downgrade(fs);
        let names = Arc::new(CachedNames::new(memory));
        let descriptions = Arc::default();
        let (eras, closed) = Default::default();
        let refused = Arc::new(Refused::new(request.mountpoint.clone()));
        let passage = Arc::new(ReadMostly::new(()));
        let seeks = Arc::new(Seeks::new(Weak::clone(&fs), &eras, &passage));
        Self {
            fs,
            coherence,
            locking,
            writes,
            memory,
            names,
            descriptions,
            refused,
            seeks,
            shortages: Shortages::default(),
            eras,
            passage,
            closed,
        }
    }

    /// By which numbers the kernel knows objects.
    pub(super) fn eras(&self) -> &Arc<Eras> {
        &self.eras
    }

    /// The names that the kernel keeps.
    pub(super) fn names(&self) -> &Arc<CachedNames> {
        &self.names
    }

    /// Does something while no request is handled; those that come wait.
    pub(super) fn alone<T>(&self, run: impl FnOnce() -> T) -> T {
        let _passage = self.passage.write();
        run()
    }

    /// Whom to tell what the kernel has in vain.
    pub(super) fn tell(&self, notifier: Notifier) {
        self.refused.tell(notifier.clone());
        self.shortages.tell(notifier.clone());
        self.seeks.tell(notifier);
    }

    pub(super) fn writes(&self) -> WritePolicy {
        self.writes
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
    pub(super) names: &'a Arc<CachedNames>,
    pub(super) descriptions: &'a Arc<Descriptions>,
    pub(super) refused: &'a Arc<Refused>,
    pub(super) seeks: &'a Arc<Seeks>,
    pub(super) shortages: &'a Shortages,
    pub(super) eras: &'a Eras,
    pub(super) node: NodeId,
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
        // Where others change the filesystem, too, an answer may wait for them, and a rollback is
        // theirs.
        let _passage = (self.coherence == Coherence::Alone).then(|| self.passage.read());
        // Told also if handling it panics: its answer is an error then, but it is one.
        let _answered = Answered(&*fs);
        let file = match file_of(&self.eras, &*fs, request.node) {
            Ok(file) => file,
            // Whoever has it from others counts what is open across rollbacks.
            Err(file)
                if self.coherence == Coherence::Shared && matches!(request.op, Op::Release(_)) =>
            {
                file
            }
            Err(_) => return outlived(&request.op, reply),
        };
        let ask = Ask {
            coherence: self.coherence,
            writes: self.writes,
            locking: self.locking,
            caller: encode::caller(&request, umask, self.coherence),
            process: request.pid,
            names: &self.names,
            descriptions: &self.descriptions,
            refused: &self.refused,
            seeks: &self.seeks,
            shortages: &self.shortages,
            eras: &self.eras,
            node: request.node,
            file,
            fs: &fs,
        };
        ask.dispatch(request.op, reply);
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        let Some(fs) = self.fs.upgrade() else { return };
        let _passage = (self.coherence == Coherence::Alone).then(|| self.passage.read());
        // A rollback has forgotten all that was known before it.
        if let Ok(file) = file_of(&self.eras, &*fs, node) {
            self.shortages.forget(file);
            fs.forget(file, lookups);
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

/// The object that the kernel means. `Err`: there was a rollback since the kernel was told of it.
pub(super) fn file_of(
    eras: &Eras,
    fs: &dyn Filesystem,
    node: NodeId,
) -> std::result::Result<FileId, FileId> {
    eras.file(fs.file(ROOT), fs.file(Ino(node.0)))
}

/// Answers what is asked of an object that was there before a rollback.
fn outlived(op: &Op<'_>, reply: Reply) {
    match op {
        Op::Release(_) | Op::Releasedir { .. } => drop(reply.ok()),
        _ => refuse(reply, libc::ESTALE),
    }
}

impl Ask<'_> {
    fn dispatch(&self, op: Op<'_>, reply: Reply) {
        match op {
            Op::Lookup { name } => self.lookup(name, reply),
            Op::Getattr { handle } => self.getattr(handle, reply),
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
            Op::Rename { name, new_parent, new_name, flags } => match self.other(new_parent) {
                Some(parent) => self.rename(name, parent, new_name, flags, reply),
                None => refuse(reply, libc::ESTALE),
            },
            Op::Link { source, name } => match self.other(source) {
                Some(source) => self.link(source, name, reply),
                None => refuse(reply, libc::ESTALE),
            },
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
            Op::CopyFileRange(copy) => match self.other(copy.target) {
                Some(target) => self.copy_file_range(&copy, target, reply),
                None => refuse(reply, libc::ESTALE),
            },
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
    /// The number of the object that is asked of, as programs see it.
    pub(super) fn number(&self) -> Ino {
        self.fs.number(self.file)
    }

    /// The number by which the kernel knows an object.
    pub(super) fn node_of(&self, file: FileId) -> NodeId {
        NodeId(self.eras.number(self.fs.file(ROOT), self.fs.number(file), file).0)
    }

    /// The other object of a request that has two.
    fn other(&self, node: NodeId) -> Option<FileId> {
        file_of(self.eras, &**self.fs, node).ok()
    }

    /// How long the kernel may take a name in the directory that is asked of for what it was told.
    pub(super) fn name_ttl(&self, name: &[u8]) -> Duration {
        let is_leased = || self.is_leased(self.file, name);
        // Once more when it is noted: whoever loses the lease after that finds the note.
        let is_kept = is_leased()
            && match self.coherence {
                Coherence::Alone => true,
                Coherence::Shared => self.names.keep(self.file, self.node, name) && is_leased(),
            };
        ttl(is_kept)
    }

    /// How long the kernel may keep attributes that it was told.
    pub(super) fn attributes_ttl(&self, file: FileId) -> Duration {
        ttl(self.fs.is_kept(Kept::Attributes(file)) && !self.shortages.has(file))
    }

    /// Whether the filesystem will tell when what a name stands for is no longer true.
    pub(super) fn is_leased(&self, dir: FileId, name: &[u8]) -> bool {
        self.fs.is_kept(Kept::Name { dir, name })
    }
}

fn ttl(is_kept: bool) -> Duration {
    if is_kept { FOREVER } else { Duration::ZERO }
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
