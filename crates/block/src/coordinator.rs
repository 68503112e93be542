//! Who knows which copies of a volume are to be trusted, and who may write to it.
//!
//! A coordinator keeps one short text for each volume, its *record*, and a *claim* on it; and
//! *notes*, texts that are no volume's. What texts say is not its business. It promises:
//!
//! 1. A record, or note, is replaced as a whole, by whoever knows the revision that it has. Of two
//!    who try with the same revision one succeeds, and the other is told
//!    [`CoordinatorError::Conflict`].
//! 2. A replacement that was acknowledged is durable, and every later read sees it or a later one.
//! 3. A claim is held by one at a time. It ends when its holder lets go or dies, and at the latest
//!    some seconds after the coordinator heard of it last.
//! 4. Each call returns within the coordinator's deadline.
//!
//! A claim only spares two openers from taking the volume from each other in turns. Safety rests on
//! the first two promises, and on epochs that the members check.

use std::time::Duration;

use thiserror::Error;

/// How often a record was replaced. Only equality means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// That of a record that does not exist: expecting it means to create the record.
    pub const ABSENT: Self = Self(0);
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What must be expected in order to replace it.
    pub revision: Revision,
    /// The record.
    pub text: String,
}

/// The longest record, in bytes.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Why a coordinator did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CoordinatorError {
    /// It could not be reached, or it failed. Whether a replacement happened is not known.
    #[error("coordinator {coordinator} does not answer: {reason}")]
    Unavailable {
        /// Its name.
        coordinator: String,
        /// What was the matter.
        reason: String,
    },
    /// Somebody else has replaced, created or removed the record.
    #[error("the record of volume {volume} was changed by somebody else")]
    Conflict {
        /// The volume.
        volume: String,
    },
    /// Somebody else holds the claim.
    #[error("volume {volume} is in use by {holder}")]
    Claimed {
        /// The volume.
        volume: String,
        /// Who holds it, in its own words.
        holder: String,
    },
    /// What is kept cannot be read.
    #[error("coordinator {coordinator} keeps something strange for {volume}: {reason}")]
    Strange {
        /// Its name.
        coordinator: String,
        /// The volume.
        volume: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Keeps the records of volumes. Volumes are named by ASCII letters, digits, `-`, `_` and `.`.
pub trait Coordinator: Send + Sync {
    /// How people know it: a path or a URL.
    fn name(&self) -> String;

    /// The names of all volumes, sorted.
    fn volumes(&self) -> Result<Vec<String>, CoordinatorError>;

    /// The record of a volume.
    fn read(&self, volume: &str) -> Result<Option<Stored>, CoordinatorError>;

    /// Replaces a record that has revision `expected`, and says which it has now. Expecting
    /// [`Revision::ABSENT`] creates it.
    fn replace(
        &self,
        volume: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError>;

    /// Removes a record that has revision `expected`.
    fn remove(&self, volume: &str, expected: Revision) -> Result<(), CoordinatorError>;

    /// Waits until the record has another revision than `known`, and reads it; `None` if that did
    /// not happen within `patience`.
    fn changed(
        &self,
        volume: &str,
        known: Revision,
        patience: Duration,
    ) -> Result<Option<Stored>, CoordinatorError>;

    /// Takes the claim on a volume for `holder`, or says who has it.
    fn claim(&self, volume: &str, holder: &str) -> Result<Box<dyn Claim>, CoordinatorError>;

    /// Who holds the claim on a volume.
    fn holder(&self, volume: &str) -> Result<Option<String>, CoordinatorError>;

    /// The note of this name. Names are as those of volumes.
    fn note(&self, name: &str) -> Result<Option<Stored>, CoordinatorError>;

    /// Replaces a note that has revision `expected`, or makes it, as [`Coordinator::replace`] does.
    fn replace_note(
        &self,
        name: &str,
        expected: Revision,
        text: &str,
    ) -> Result<Revision, CoordinatorError>;

    /// Waits until nobody holds the claim on a volume; says who still does if that did not happen
    /// within `patience`.
    fn released(
        &self,
        volume: &str,
        patience: Duration,
    ) -> Result<Option<String>, CoordinatorError>;
}

/// The right to use a volume, until it is dropped.
pub trait Claim: Send + Sync {
    /// Whether it is held for certain. A claim that was lost does not come back.
    fn is_held(&self) -> bool;
}
