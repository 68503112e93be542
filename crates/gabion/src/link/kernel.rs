//! The kernel's caches of one mount, as a client of a server needs them.

use gabion_fs::ROOT;
use gabion_fuse::{ByteRange, NodeId, Notifier};
use gabion_map::FileId;
use gabion_node::remote::Kernel;

/// Tells the kernel by notifications. That it knows nothing of what it shall forget, or that the
/// mount is gone, is as good.
pub struct NotifiedKernel {
    notifier: Notifier,
    /// What the kernel knows as its root, whatever its number is.
    root: FileId,
    can_forget_names: bool,
}

impl NotifiedKernel {
    /// For the mount of `notifier`, whose root is `root`.
    pub fn new(notifier: Notifier, root: FileId) -> Self {
        // Older kernels do not know it (Linux 6.16 does).
        let can_forget_names = notifier.inc_epoch().is_ok();
        Self { notifier, root, can_forget_names }
    }

    fn node(&self, file: FileId) -> NodeId {
        if file == self.root { NodeId(ROOT.0) } else { NodeId(file.ino.0) }
    }
}

impl Kernel for NotifiedKernel {
    fn forget_attributes(&self, file: FileId) {
        let _ = self.notifier.inval_attr(self.node(file));
    }

    fn forget_names(&self) {
        // Names are looked up again before their next use; here that costs no message.
        let _ = self.notifier.inc_epoch();
    }

    fn forget_name(&self, parent: FileId, name: &[u8]) {
        let _ = self.notifier.inval_entry(self.node(parent), name);
    }

    fn can_forget_names(&self) -> bool {
        self.can_forget_names
    }

    fn forget_bytes(&self, file: FileId, from: u64, to: u64) {
        let range = match to {
            u64::MAX => ByteRange::From(from),
            to => ByteRange::Part { offset: from, length: to - from },
        };
        let _ = self.notifier.inval_inode(self.node(file), range);
    }
}
