//! Times of reading: when reading is recorded, and what becomes of it when many read.
//!
//! ```text
//!   who reads      needs_atime: is it to be recorded?    by the policy, and the times it knows
//!                    | yes
//!   who keeps it   record_reading: atime = max(atime, at), unless it was changed after `at`
//! ```
//!
//! So it does not matter in which order several readers tell, nor that one of them tells late: what
//! was read before a change says nothing about what is there after it, and a time that somebody has
//! set (which is a change) stays.

use gabion_base::time::Timestamp;
use gabion_map::{FileId, LockMode, Txn};

use crate::attributes::Attributes;
use crate::error::Result;
use crate::mode::FileType;
use crate::object;

/// Reading sets the time of reading at least this often, by the relative policy.
const RELATIVE_SECONDS: i64 = 24 * 60 * 60;

/// When reading is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtimePolicy {
    /// Never (`noatime`).
    Never,
    /// The first time after each change, and once a day (`relatime`).
    Relative,
    /// Always (`strictatime`).
    Always,
}

/// When reading is recorded of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtimeRules {
    /// Of directories, which are read by listing them.
    pub directories: AtimePolicy,
    /// Of all else.
    pub others: AtimePolicy,
}

impl AtimeRules {
    /// Nothing is recorded.
    pub const NONE: Self = Self::all(AtimePolicy::Never);

    /// The same of everything.
    pub const fn all(policy: AtimePolicy) -> Self {
        Self { directories: policy, others: policy }
    }

    /// What applies to objects of this type.
    pub fn of(self, file_type: FileType) -> AtimePolicy {
        match file_type {
            FileType::Directory => self.directories,
            _ => self.others,
        }
    }

    /// Whether the object's reading at `now` is to be recorded.
    pub fn are_due(self, found: &Attributes, now: Timestamp) -> bool {
        needs_atime(self.of(found.file_type()), found.atime, found.mtime, found.ctime, now)
    }
}

/// Whether reading at `now` is to be recorded over the time of the last reading, `atime`.
pub fn needs_atime(
    policy: AtimePolicy,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    now: Timestamp,
) -> bool {
    match policy {
        AtimePolicy::Never => false,
        AtimePolicy::Always => atime != now,
        AtimePolicy::Relative => {
            let age = now.seconds.saturating_sub(atime.seconds);
            let is_due = atime <= mtime || atime <= ctime || age >= RELATIVE_SECONDS;
            is_due && atime != now
        }
    }
}

/// Records that the object was read at `at`, unless it is known to have been read later, or was
/// changed since.
pub fn record_reading<T: Txn + ?Sized>(txn: &mut T, file: FileId, at: Timestamp) -> Result<()> {
    let mut inode = object::load(txn, file)?;
    if at <= inode.atime || at < inode.ctime {
        return Ok(());
    }
    txn.lock(file, LockMode::Exclusive)?;
    inode.atime = at;
    object::store(txn, file, &inode)
}
