//! A mount whose filesystem is rolled back.
//!
//! 1. No request is being handled, and those that come wait.
//! 2. The filesystem is rolled back, and its objects are known by other numbers from then on: what
//!    the kernel asks about an earlier number is refused (ESTALE), bytes that it hands over, too.
//! 3. Requests go on. The kernel drops the name of the subvolume, with all that it knows below
//!    that, or looks all names up again if it is the mount's root. And it drops what it has of
//!    objects that it knew before, so that programs that have them open are told.
//!
//! The third step waits for requests, so nobody does it who handles one. It takes away what is
//! mounted below those names, so nobody does it either where something is.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

use gabion_base::ids::SubvolId;
use gabion_fuse::mountinfo::{self, standing_in};
use gabion_fuse::{ByteRange, NodeId, Notifier};
use gabion_map::FileId;
use gabion_node::{Eras, Filesystem};

use super::front::Front;

/// What is to be done with one mount about rollbacks.
#[derive(Clone)]
pub struct Rollbacks {
    fs: Weak<dyn Filesystem>,
    front: Arc<Front>,
    notifier: Notifier,
    device: (u32, u32),
}

impl Rollbacks {
    pub(super) fn new(
        fs: &Arc<dyn Filesystem>,
        front: &Arc<Front>,
        notifier: Notifier,
        device: (u32, u32),
    ) -> Self {
        Self { fs: Arc::downgrade(fs), front: Arc::clone(front), notifier, device }
    }

    /// The number by which the kernel knows an object now.
    pub fn node(&self, file: FileId) -> NodeId {
        match self.fs.upgrade() {
            Some(fs) => {
                let (root, number) = (fs.file(gabion_fs::ROOT), fs.number(file));
                NodeId(self.front.eras().number(root, number, file).0)
            }
            None => NodeId(file.ino.0),
        }
    }

    /// By which numbers the kernel knows objects.
    pub fn eras(&self) -> Arc<Eras> {
        Arc::clone(self.front.eras())
    }

    /// Why the subvolume at `path`, from the root, cannot be rolled back: something is mounted in
    /// it; this kernel would go on with names that are no longer true; or the mount has seen as
    /// many rollbacks as it can.
    pub fn check(&self, path: &Path) -> Result<(), String> {
        let unmount = |error: &io::Error| format!("unmount it first: {error}");
        let mounts = mountinfo::mounts().map_err(|error| unmount(&error))?;
        if let Some(mount) = standing_in(self.device, path, &mounts) {
            let mountpoint = mount.mountpoint.display();
            return Err(format!("{mountpoint} is mounted in it: unmount that first"));
        }
        if path == Path::new("/") {
            self.notifier.inc_epoch().map_err(|error| unmount(&error))?;
        }
        match self.front.eras().has_more() {
            true => Ok(()),
            false => Err(unmount(&io::Error::other("it was rolled back too often"))),
        }
    }

    /// Does something at an instant at which no request is being handled: of what the kernel hands
    /// over in several parts it has handed over all or none, unless it does so out of order.
    pub fn at_rest<T>(&self, run: impl FnOnce() -> T) -> T {
        self.front.alone(run)
    }

    /// Has `run` roll `of` back, whose name this is and the directory that it is in; none if it is
    /// the root. It gives, among others, the objects that the kernel knows of it.
    pub fn run<T, E>(
        &self,
        of: SubvolId,
        name: Option<(FileId, &[u8])>,
        run: impl FnOnce() -> Result<(T, Vec<FileId>), E>,
    ) -> Result<T, E> {
        let (done, known) = self.front.alone(|| {
            let (done, known) = run()?;
            let known: Vec<NodeId> = known.into_iter().map(|file| self.node(file)).collect();
            self.front.eras().begin(of);
            Ok((done, known))
        })?;
        // Of a mount that is gone nothing is left to be forgotten.
        let _ = match name {
            Some((directory, name)) => self.notifier.inval_entry(self.node(directory), name),
            None => self.notifier.inc_epoch(),
        };
        let root = NodeId(gabion_fs::ROOT.0);
        for node in known.into_iter().chain([root]) {
            let _ = self.notifier.inval_inode(node, ByteRange::All);
        }
        Ok(done)
    }
}
