//! The copy-on-write ordered map that a Gabion filesystem is.

#![forbid(unsafe_code)]

pub mod error;
pub mod key;
pub mod txn;

pub use error::MapError;
pub use key::{FileId, Key, Kind};
pub use txn::{LockMode, Payload, Stop, Txn, Value};
