//! Where the records of volumes are kept.
//!
//! | coordinator        | for                   | records    | claims                        |
//! |--------------------|-----------------------|------------|-------------------------------|
//! | [`Embedded`]       | one machine           | a store    | locks that end with a process |
//! | [`Etcd`]           | more than one machine | keys       | keys bound to leases          |
//! | [`MemCoordinator`] | tests                 | memory     | memory                        |
//!
//! What they promise is said by [`gabion_block::coordinator`], and one suite of tests holds all of
//! them to it. Two more things are the same everywhere: a record that is removed is no change that
//! [`Coordinator::changed`] tells of, as there is nothing to read, and a revision is never used
//! again, not even for a record that was removed and made anew.
//!
//! Deliberately absent: consensus of our own. Past one machine that is etcd's work.

#![forbid(unsafe_code)]

mod embedded;
mod etcd;
mod memory;

use std::path::Path;
use std::sync::Arc;

use gabion_block::coordinator::{Coordinator, CoordinatorError, RECORD_BYTES_MAX};
use thiserror::Error;

pub use embedded::Embedded;
pub use etcd::{Etcd, Patience};
pub use memory::{MemCoordinator, Reach};

/// The longest name of a volume, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text does not lead to a coordinator.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is neither a path nor a URL of etcd.
    #[error("{text} is no coordinator: {reason}")]
    Text {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder cannot be used.
    #[error("cannot keep records of volumes in {folder}")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
}

/// The coordinator that `text` names: a folder's path, `etcd://HOST[:PORT][,HOST[:PORT]]...`, or
/// the like with `etcds://`.
///
/// Nothing is asked yet: one that cannot be reached is found out by the first call.
pub fn open(text: &str) -> Result<Arc<dyn Coordinator>, OpenError> {
    if text.starts_with("etcd://") || text.starts_with("etcds://") {
        let etcd = Etcd::new(text, Patience::default());
        // Without what may be a password.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest).to_owned();
        let refused = |reason| OpenError::Text { text: shown, reason };
        return Ok(Arc::new(etcd.map_err(refused)?));
    }
    if text.is_empty() || text.contains("://") {
        let reason = "it must be a folder's path, etcd://HOST:PORT or etcds://HOST:PORT".to_owned();
        return Err(OpenError::Text { text: text.to_owned(), reason });
    }
    Ok(Arc::new(Embedded::open(Path::new(text))?))
}

/// Refuses names that would be other keys or files than they seem.
fn check_name(coordinator: &str, volume: &str) -> Result<(), CoordinatorError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !volume.is_empty() && volume.len() <= NAME_BYTES_MAX && volume.bytes().all(allowed) {
        return Ok(());
    }
    let reason = format!(
        "a volume's name has 1 to {NAME_BYTES_MAX} letters, digits and characters of - _ ."
    );
    Err(strange(coordinator, volume, reason))
}

/// Refuses records that nobody could read again.
fn check_record(coordinator: &str, volume: &str, text: &str) -> Result<(), CoordinatorError> {
    if text.len() <= RECORD_BYTES_MAX {
        return Ok(());
    }
    let reason = format!("a record of {} bytes is longer than {RECORD_BYTES_MAX}", text.len());
    Err(strange(coordinator, volume, reason))
}

fn strange(coordinator: &str, volume: &str, reason: String) -> CoordinatorError {
    let (coordinator, volume) = (coordinator.to_owned(), volume.to_owned());
    CoordinatorError::Strange { coordinator, volume, reason }
}

fn unavailable(coordinator: &str, reason: impl ToString) -> CoordinatorError {
    let coordinator = coordinator.to_owned();
    CoordinatorError::Unavailable { coordinator, reason: reason.to_string() }
}

fn conflict(volume: &str) -> CoordinatorError {
    CoordinatorError::Conflict { volume: volume.to_owned() }
}

fn claimed(volume: &str, holder: String) -> CoordinatorError {
    CoordinatorError::Claimed { volume: volume.to_owned(), holder }
}
