//! The copy-on-write ordered map that a Gabion filesystem is.

#![forbid(unsafe_code)]

pub mod alloc;
mod bytes;
mod changes;
pub mod commit;
pub mod error;
mod extents;
pub mod file;
pub mod format;
pub mod journal;
pub mod key;
pub mod layout;
pub mod locks;
pub mod map;
pub mod memtable;
pub mod open;
pub mod pin;
mod references;
pub mod scrub;
pub mod space;
pub mod store;
mod transaction;
pub mod tree;
pub mod txn;
pub mod view;
mod writeback;

pub use error::MapError;
pub use key::{FileId, Key, Kind};
pub use map::{Limits, LocalMap, OpenMode};
pub use transaction::LocalTxn;
pub use txn::{Failure, LockMode, Payload, Stop, Txn, Value};
