//! The copy-on-write ordered map that a Gabion filesystem is.
//!
//! Everything in a filesystem is an item at a [`Key`], and keys are totally ordered. This crate
//! stores that map on one [`Disk`](gabion_base::disk::Disk) and keeps these promises:
//!
//! - after a crash the map is what it was after some prefix of the operations, and that prefix
//!   holds everything that was made durable;
//! - every block that is read is checked against a checksum that is kept elsewhere;
//! - opening costs the length of the journal, whatever the size of the filesystem;
//! - a full filesystem can always be emptied.
//!
//! Start reading at [`map`] for the whole, [`txn`] for what operations see, [`commit`] for how
//! changes reach the disk, [`mod@format`] for what they look like there.
//!
//! Absent: names, permissions, times (they are `gabion-fs`'s), clocks, threads of its own but for
//! a merge, and recovery tools: there is nothing to repair.

#![forbid(unsafe_code)]

pub mod alloc;
pub mod audit;
mod bytes;
pub mod catalogue;
mod changes;
pub mod commit;
mod copies;
mod edits;
pub mod error;
mod extents;
pub mod file;
mod forest;
pub mod format;
mod grow;
pub mod journal;
pub mod key;
pub mod layout;
pub mod locks;
pub mod map;
pub mod memtable;
pub mod open;
pub mod pin;
pub mod quota;
mod recent;
mod references;
pub mod removal;
pub mod scrub;
pub mod space;
pub mod store;
pub mod subvolumes;
mod transaction;
pub mod tree;
pub mod txn;
pub mod view;
mod writeback;
mod written;

pub use error::MapError;
pub use key::{FileId, Key, Kind};
pub use map::{Limits, LocalMap, OpenMode};
pub use transaction::LocalTxn;
pub use txn::{Failure, LockMode, Payload, Stop, Txn, Value};
