//! Files whose bytes are in motion: what is known about them beyond the items of the map.
//!
//! A [`FileState`] exists for a file from the first accepted byte until all of them are written and
//! nobody looks at it any more. While it exists, its `size` is the file's size; the FILE item holds
//! the size up to which bytes are on disk.

pub mod dirty;
pub mod fence;
pub mod ranges;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gabion_base::ids::SubvolId;
use gabion_base::sync::{CachePadded, Mutex};

use self::dirty::DirtyBytes;
use self::fence::Fence;
use self::ranges::RangeLocks;
use crate::key::FileId;
use crate::memtable::spread;
use crate::quota::Owed;

const SHARDS: usize = 64;

/// A file's bytes in motion.
pub struct FileState {
    /// The file.
    pub file: FileId,
    /// Accepted bytes that are in no extent yet.
    pub dirty: DirtyBytes,
    /// Ranges that are being read or written.
    pub ranges: RangeLocks,
    /// What of the accepted bytes counts against a quota.
    pub owed: Owed,
    /// Held by whoever writes the accepted bytes to disk: one at a time.
    pub writeback: Mutex<()>,
    /// Keeps writers away from a writeback that they would go on writing over.
    pub fence: Fence,
    size: AtomicU64,
    item_size: AtomicU64,
    lowest_size: AtomicU64,
    dirty_blocks: AtomicU64,
    clear: AtomicBool,
}

impl FileState {
    fn new(file: FileId, size: u64) -> Self {
        Self {
            file,
            dirty: DirtyBytes::default(),
            ranges: RangeLocks::default(),
            owed: Owed::default(),
            writeback: Mutex::new(()),
            fence: Fence::default(),
            size: AtomicU64::new(size),
            item_size: AtomicU64::new(size),
            lowest_size: AtomicU64::new(u64::MAX),
            dirty_blocks: AtomicU64::new(0),
            clear: AtomicBool::new(false),
        }
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Accepted bytes reach up to `end`.
    pub fn grow(&self, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    /// The size was set. Remembers cuts, so that a writeback under way knows that it saw an older
    /// file.
    pub fn resize(&self, size: u64) {
        let before = self.size.swap(size, Ordering::SeqCst);
        if size < before {
            self.lowest_size.fetch_min(size, Ordering::SeqCst);
        }
    }

    /// Whether it is known that a crash left nothing behind the file's end.
    pub fn is_clear(&self) -> bool {
        self.clear.load(Ordering::Acquire)
    }

    /// It is.
    pub fn set_clear(&self) {
        self.clear.store(true, Ordering::Release);
    }

    /// The file's size for a writeback that begins: cuts are remembered from here on.
    pub fn begin_writeback(&self) -> u64 {
        self.lowest_size.store(u64::MAX, Ordering::SeqCst);
        self.size.load(Ordering::SeqCst)
    }

    /// To what size the file was cut since the writeback began, at the lowest.
    pub fn lowest_size(&self) -> u64 {
        self.lowest_size.load(Ordering::Acquire)
    }

    /// The FILE item says `size` now.
    pub fn set_item_size(&self, size: u64) {
        self.item_size.store(size, Ordering::Release);
    }

    /// The size that the FILE item says.
    pub fn item_size(&self) -> u64 {
        self.item_size.load(Ordering::Acquire)
    }

    /// Whether everything about the file is in its items.
    pub fn is_settled(&self) -> bool {
        self.dirty_blocks() == 0 && self.size() == self.item_size()
    }

    /// Whether the items, and the journal's bytes over them, are all that the file is.
    pub fn is_recorded(&self) -> bool {
        self.size() == self.item_size() && self.dirty.is_journaled()
    }

    /// Blocks that wait to be written.
    pub fn dirty_blocks(&self) -> u64 {
        self.dirty_blocks.load(Ordering::Acquire)
    }

    /// `added` blocks were accepted, `removed` were written or dropped.
    pub fn account(&self, added: u64, removed: u64) {
        self.dirty_blocks.fetch_add(added, Ordering::AcqRel);
        let before = self.dirty_blocks.fetch_sub(removed, Ordering::AcqRel);
        assert!(before >= removed, "{removed} of {before} dirty blocks removed");
    }
}

/// Hashes object ids by multiplication: they are small numbers, not chosen by an adversary's
/// hash collisions, because the filesystem itself hands them out.
#[derive(Default)]
pub struct FileIdHasher(u64);

impl Hasher for FileIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("ids hash as numbers");
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type States = HashMap<FileId, Arc<FileState>, BuildHasherDefault<FileIdHasher>>;

/// All files in motion.
pub struct FileTable {
    shards: Vec<CachePadded<Mutex<States>>>,
}

impl Default for FileTable {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| CachePadded::default()).collect() }
    }
}

impl FileTable {
    /// The state of `file`, if it is in motion.
    pub fn find(&self, file: FileId) -> Option<Arc<FileState>> {
        self.shard(file).lock().get(&file).cloned()
    }

    /// The state of `file`; `size` is its size if it was at rest.
    pub fn enter(&self, file: FileId, size: u64) -> Arc<FileState> {
        let mut shard = self.shard(file).lock();
        Arc::clone(shard.entry(file).or_insert_with(|| Arc::new(FileState::new(file, size))))
    }

    /// Forgets `file` if nothing of it waits and nobody else looks at it. The caller holds the
    /// file's lock exclusively, so that nobody enters it with an older size.
    pub fn leave(&self, file: FileId) {
        let mut shard = self.shard(file).lock();
        let idle = |state: &Arc<FileState>| state.is_settled() && Arc::strong_count(state) <= 2;
        if shard.get(&file).is_some_and(idle) {
            shard.remove(&file);
        }
    }

    /// Forgets all files of a subvolume that nobody uses.
    pub fn forget(&self, subvol: SubvolId) {
        for shard in &self.shards {
            shard.lock().retain(|file, _| file.subvol != subvol);
        }
    }

    /// All files of which something is not in their items yet.
    pub fn unsettled(&self) -> Vec<Arc<FileState>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(shard.values().filter(|state| !state.is_settled()).cloned());
        }
        found
    }

    fn shard(&self, file: FileId) -> &Mutex<States> {
        &self.shards[(spread(file) >> 32) as usize % SHARDS]
    }
}
