//! What went wrong between here and the server, in words.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::DiskError;
use gabion_base::ids::BlockAddr;
use gabion_fs::Error;
use gabion_map::MapError;

fn trouble(operation: &'static str, kind: std::io::ErrorKind, text: String) -> Error {
    let source = Arc::new(std::io::Error::new(kind, text));
    let device: Arc<str> = Arc::from("the server");
    MapError::Disk(DiskError::Io { device, operation, addr: BlockAddr(0), source }).into()
}

pub(super) fn lost(operation: &'static str) -> Error {
    let text = "the session has ended; whether this was done is not known".to_owned();
    trouble(operation, std::io::ErrorKind::ConnectionAborted, text)
}

/// A page that a program has changed, whose leases have ended.
pub(super) fn unleased() -> Error {
    let text = "the leases on what was mapped have ended; what was stored is kept aside".to_owned();
    trouble("write", std::io::ErrorKind::ConnectionAborted, text)
}

pub(super) fn silent(deadline: Duration) -> Error {
    let text = format!("no answer within {} s", deadline.as_secs());
    trouble("call", std::io::ErrorKind::TimedOut, text)
}

/// What was written before the server started again may be lost.
pub(super) fn written_off() -> Error {
    let text = "the server has started again, and may not have all that was written before";
    trouble("fsync", std::io::ErrorKind::ConnectionReset, text.to_owned())
}

/// A lock of the file is gone, and its process does not know.
pub(super) fn lock_lost() -> Error {
    let text = "a lock on the file was lost, and is neither given up nor had again";
    trouble("lock", std::io::ErrorKind::ConnectionReset, text.to_owned())
}

/// An answer that does not fit the question.
pub(super) fn nonsense() -> Error {
    let text = "it answered something else than was asked".to_owned();
    trouble("call", std::io::ErrorKind::InvalidData, text)
}
