//! The kernel's caches of one mount, as a client of a server needs them.

use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_fs::ROOT;
use gabion_fuse::{ByteRange, NodeId, Notifier};
use gabion_link::range::KeyRange;
use gabion_map::FileId;
use gabion_node::Eras;
use gabion_node::remote::Kernel;

use crate::mount::CachedNames;

/// From this version of Linux on, to have a name expired waits for who lists its directory only if
/// the name is cached.
const WAITS_FOR_KNOWN_NAMES: (u32, u32) = (6, 19);
/// A name that is nowhere cached.
const ANY_NAME: &[u8] = b".";

/// Tells the kernel by notifications. That it knows nothing of what it shall forget, or that the
/// mount is gone, is as good.
pub struct NotifiedKernel {
    notifier: Notifier,
    names: Arc<CachedNames>,
    /// What the kernel knows as its root, whatever its number is.
    root: FileId,
    eras: Arc<Eras>,
    can_forget_names: bool,
    waits_for_any_name: bool,
}

impl NotifiedKernel {
    /// For the mount of `notifier`, which keeps `names`, whose root is `root`, and which knows
    /// objects as `eras` says.
    pub fn new(notifier: Notifier, names: Arc<CachedNames>, root: FileId, eras: Arc<Eras>) -> Self {
        // Older kernels do not know it (Linux 6.16 does).
        let can_forget_names = notifier.inc_epoch().is_ok();
        let waits_for_any_name = release() < WAITS_FOR_KNOWN_NAMES;
        Self { notifier, names, root, eras, can_forget_names, waits_for_any_name }
    }

    fn node(&self, file: FileId) -> NodeId {
        match file == self.root {
            true => NodeId(ROOT.0),
            false => {
                let number = gabion_node::number(self.root.subvol, file);
                NodeId(self.eras.number(self.root, number, file).0)
            }
        }
    }
}

impl Kernel for NotifiedKernel {
    fn forget_attributes(&self, file: FileId) {
        let _ = self.notifier.inval_attr(self.node(file));
    }

    fn forget_names(&self, ranges: &[KeyRange]) -> bool {
        self.names.forget(ranges)
    }

    fn forget_all_names(&self) {
        self.names.forget_all();
    }

    fn forget_name(&self, parent: FileId, name: &[u8]) {
        // What is mounted below would go with it.
        if !self.names.has_mounts() {
            let _ = self.notifier.inval_entry(self.node(parent), name);
        }
    }

    fn leads_to_mount(&self, name: &[u8]) -> bool {
        self.names.leads_to_mount(name)
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

    fn forget_listing(&self, dir: FileId) -> bool {
        // If the mount is gone, so is what it knew.
        self.notifier.inval_listing(self.node(dir)).unwrap_or(false)
    }

    fn renumber(&self, subvol: SubvolId) {
        if self.eras.has_more() {
            self.eras.begin(subvol);
        }
    }

    fn await_listings(&self, dir: FileId, name: Option<&[u8]>) -> bool {
        // To expire a name the kernel takes the lock that everybody has who lists.
        let name = name.unwrap_or(ANY_NAME);
        let is_known = self.notifier.expire_entry_if_known(self.node(dir), name).unwrap_or(false);
        is_known || self.waits_for_any_name
    }
}

/// The version of the running kernel.
fn release() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy())
}

/// The first two numbers of a version; the last one that there could be if it has none.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(['.', '-']).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => (u32::MAX, u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("6.9.1-arch") < version("6.18.44"));
        assert!(version("6.18.44-fc") < WAITS_FOR_KNOWN_NAMES);
        assert!(version("7.0-rc1") >= WAITS_FOR_KNOWN_NAMES);
        assert!(version("unknown") >= WAITS_FOR_KNOWN_NAMES);
    }
}
