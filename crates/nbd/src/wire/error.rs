//! The protocol's error numbers, and what they are in this system's words.

use std::fmt;
use std::io;

use gabion_base::disk::DiskError;

/// An error number of a reply, which is Linux' errno, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Writing is not permitted.
    Permission = 1,
    /// The medium failed.
    Io = 5,
    /// No memory.
    Memory = 12,
    /// The request makes no sense.
    Invalid = 22,
    /// No space, or behind the end of the export.
    NoSpace = 28,
    /// More than can be done at once.
    Overflow = 75,
    /// Not possible in this way.
    NotSupported = 95,
    /// The server is about to end.
    Shutdown = 108,
}

/// All of them.
const CODES: [ErrorCode; 8] = [
    ErrorCode::Permission,
    ErrorCode::Io,
    ErrorCode::Memory,
    ErrorCode::Invalid,
    ErrorCode::NoSpace,
    ErrorCode::Overflow,
    ErrorCode::NotSupported,
    ErrorCode::Shutdown,
];

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// What a number means, other than 0. Unexpected numbers mean what the protocol says they do.
    pub fn of(number: u32) -> Self {
        CODES.into_iter().find(|code| code.number() == number).unwrap_or(Self::Invalid)
    }

    /// What a client is told when the disk behind an export has failed.
    pub fn of_disk(error: &DiskError) -> Self {
        let source = match error {
            DiskError::Io { source, .. } => source,
            DiskError::Fenced { .. } => return Self::Permission,
            DiskError::OutOfRange { .. } => return Self::Invalid,
        };
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpace,
            io::ErrorKind::OutOfMemory => Self::Memory,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.number() as i32), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_writes_to_what_belongs_to_others_has_no_permission() {
        let (device, operation, reason) = ("d".into(), "write", "taken".into());
        let fenced = DiskError::Fenced { device, operation, reason };
        assert_eq!(ErrorCode::of_disk(&fenced), ErrorCode::Permission);
    }

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_invalid_arguments() {
        for code in CODES {
            assert_eq!(ErrorCode::of(code.number()), code);
        }
        assert_eq!(ErrorCode::of(28), ErrorCode::NoSpace);
        assert_eq!(ErrorCode::of(4711), ErrorCode::Invalid);
    }
}
