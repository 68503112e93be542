//! Why a stream cannot be read or written.

use std::io;

use gabion_base::codec::DecodeError;
use thiserror::Error;

/// What went wrong, and where.
#[derive(Debug, Error)]
pub enum Error {
    /// What the stream is kept in failed.
    #[error("at byte {offset}")]
    Io {
        /// Where in the stream.
        offset: u64,
        /// How.
        source: io::Error,
    },
    /// It does not begin as a backup does.
    #[error("it is not a backup of Gabion")]
    NotABackup,
    /// It is of a version that came later.
    #[error("it has the format version {0}, and this program reads version 1")]
    Version(u16),
    /// It has no end.
    #[error("it is not complete: it ends at byte {0} without its tail")]
    Unfinished(u64),
    /// Something in it is not what was written.
    #[error("it is damaged at byte {offset}{}: {what}", of_segment(*segment))]
    Damaged {
        /// Where in the stream.
        offset: u64,
        /// In which segment, if in one.
        segment: Option<u32>,
        /// What is wrong.
        what: &'static str,
    },
    /// The records say what cannot be.
    #[error("what it holds makes no tree: {what} (object {ino})")]
    Senseless {
        /// Which object.
        ino: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is encrypted, and no secret was given.
    #[error("it is encrypted with a {0}, which was not given")]
    Locked(&'static str),
    /// It is encrypted with another secret, or its header was changed.
    #[error("the {0} does not open it")]
    WrongSecret(&'static str),
    /// The library of ciphers refused, which does not depend on the stream.
    #[error("cannot encrypt: {0}")]
    Cipher(&'static str),
    /// It belongs to no chain with the others.
    #[error("it does not follow the backup before it: it was made from another one")]
    NotTheNext,
    /// A file is longer or a name has more bytes than the format can say.
    #[error("object {ino}: {what}")]
    TooLarge {
        /// Which object.
        ino: u64,
        /// What there is too much of.
        what: &'static str,
    },
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Damage in a segment.
    pub(crate) fn damaged(offset: u64, segment: Option<u32>, what: &'static str) -> Self {
        Self::Damaged { offset, segment, what }
    }

    /// Bytes of a segment that cannot be decoded.
    pub(crate) fn undecodable(offset: u64, segment: Option<u32>, error: DecodeError) -> Self {
        let what = match error {
            DecodeError::Short => "something is shorter than its layout",
            DecodeError::Invalid(what) => what,
        };
        Self::Damaged { offset, segment, what }
    }
}

fn of_segment(segment: Option<u32>) -> String {
    segment.map(|number| format!(" (segment {number})")).unwrap_or_default()
}
