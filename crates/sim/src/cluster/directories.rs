//! What a kernel keeps of directories that it has listed, as Linux's FUSE does it.
//!
//! - Names are collected from the listings that come next to what there is, until one hears of the
//!   end, if it may be kept; from then on the kernel lists by itself.
//! - Pages are dropped when that is told. Who finds them gone begins anew.
//! - Who begins a listing looks whether the directory has another modification time than when the
//!   collection was begun, or was changed by this kernel. Then it begins anew, too.
//!
//! All that was collected is one page here.

use std::collections::BTreeMap;

use gabion_base::time::Timestamp;
use gabion_map::FileId;

/// A name and what it stands for.
pub type Names = Vec<(Vec<u8>, FileId)>;

#[derive(Default)]
struct Directory {
    /// Whether the kernel lists by itself.
    is_whole: bool,
    /// What was collected, unless it was dropped.
    page: Option<Names>,
    /// Where the collection ends; 0 if there is none.
    end: u64,
    modified: Option<Timestamp>,
    changed: u64,
}

/// All directories of a kernel.
#[derive(Default)]
pub struct Directories {
    known: BTreeMap<FileId, Directory>,
    /// How often this kernel changed names of each.
    changes: BTreeMap<FileId, u64>,
}

impl Directories {
    /// This kernel has changed names.
    pub fn changed(&mut self, dir: FileId) {
        *self.changes.entry(dir).or_default() += 1;
    }

    /// Begins a listing: what is kept, if it is of this modification time.
    pub fn begin(&mut self, dir: FileId, modified: Timestamp) -> Option<Names> {
        let changed = self.changes.get(&dir).copied().unwrap_or(0);
        let known = self.known.entry(dir).or_default();
        let is_same = known.modified == Some(modified) && known.changed == changed;
        if known.is_whole && is_same && known.page.is_some() {
            return known.page.clone();
        }
        if known.is_whole {
            *known = Directory::default();
        }
        if known.end == 0 {
            (known.modified, known.changed) = (Some(modified), changed);
        }
        None
    }

    /// Collects all names of a listing, the last of which ends at `end`.
    pub fn collect(&mut self, dir: FileId, names: &Names, end: u64) {
        let known = self.known.entry(dir).or_default();
        if !known.is_whole && known.end == 0 {
            (known.page, known.end) = (Some(names.clone()), end);
        }
    }

    /// The directory ends at `end`, and what was collected may be kept.
    pub fn end(&mut self, dir: FileId, end: u64) {
        let known = self.known.entry(dir).or_default();
        known.is_whole |= known.end == end;
    }

    /// Drops what was collected. Whether there is such a directory.
    pub fn drop_page(&mut self, dir: FileId) -> bool {
        let known = self.known.get_mut(&dir);
        known.map(|known| known.page = None).is_some()
    }
}
