//! Why an operation has no result: another attempt is needed, the world failed, or the caller
//! asked for something that the rules of files refuse.
//!
//! The variants of the third kind are ordinary results in words; [`errno`](crate::errno()) is the
//! one table that makes numbers of them.

use gabion_map::txn::Failure;
use gabion_map::{FileId, LockMode, MapError, Stop};
use thiserror::Error;

/// What operations return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation has no result. Nothing has changed then.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The attempt stopped: lock and run it again, or the world failed.
    #[error("{}", stop_text(.0))]
    Stop(Stop),
    /// The driver has to write the file's accepted bytes and to run the operation again: their
    /// file is about to take another one's name, and must not be empty after a crash.
    #[error("bytes of file {0:?} have to be on disk first")]
    UnwrittenBytes(FileId),
    /// There is no such name or object.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory is needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Only the owner or the superuser may.
    #[error("not permitted")]
    NotPermitted,
    /// Mode or ACL deny it.
    #[error("permission denied")]
    AccessDenied,
    /// An argument makes no sense.
    #[error("invalid argument")]
    InvalidArgument,
    /// A name or a link's target is too long.
    #[error("the name is too long")]
    NameTooLong,
    /// The object has all the names it may have.
    #[error("too many links")]
    TooManyLinks,
    /// Both must be in one subvolume.
    #[error("in different subvolumes")]
    CrossSubvolume,
    /// There is no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// No attribute may be as long as this.
    #[error("the attribute is too long")]
    AttributeTooLarge,
    /// The caller's buffer is shorter than the answer.
    #[error("the buffer is too short")]
    BufferTooSmall,
    /// The object has no room for this attribute or entry.
    #[error("no room left in the object")]
    ObjectFull,
    /// The file would end past the greatest offset.
    #[error("the file would be too large")]
    TooLarge,
    /// There is no data or hole at or after this offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// Somebody else holds the lock.
    #[error("locked by somebody else")]
    WouldBlock,
    /// Waiting would never end.
    #[error("waiting for the lock would be a deadlock")]
    Deadlock,
    /// The wait was given up.
    #[error("interrupted")]
    Interrupted,
    /// The table of locks is full.
    #[error("too many locks")]
    TooManyLocks,
    /// Objects of this type cannot do that.
    #[error("not supported")]
    NotSupported,
    /// The object is gone.
    #[error("the object is gone")]
    Stale,
    /// The object has a use that forbids it.
    #[error("busy")]
    Busy,
    /// Directories are nested too deeply.
    #[error("too many levels of directories")]
    TooDeep,
}

fn stop_text(stop: &Stop) -> String {
    match stop {
        Stop::Need { file, mode } => format!("{file:?} has to be locked first ({mode:?})"),
        Stop::Lease => "a lease has to be acquired first".to_owned(),
        Stop::Map(error) => error.to_string(),
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        Self::Stop(Stop::Map(error))
    }
}

impl Failure for Error {
    fn need(&self) -> Option<(FileId, LockMode)> {
        match self {
            Self::Stop(stop) => stop.need(),
            _ => None,
        }
    }
}
