//! The protocol's error numbers, and what they are in this system's words.

use std::fmt;
use std::io;

use gabion_base::disk::DiskError;

/// An error number of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Writing is not permitted.
    Permission,
    /// The medium failed.
    Io,
    /// No memory.
    Memory,
    /// The request makes no sense.
    Invalid,
    /// No space, or behind the end of the export.
    NoSpace,
    /// More than can be done at once.
    Overflow,
    /// Not possible in this way.
    NotSupported,
    /// The server is about to end.
    Shutdown,
}

/// The number in a reply for each of them, which is Linux' errno, too.
const NUMBERS: [(u32, ErrorCode); 8] = [
    (1, ErrorCode::Permission),
    (5, ErrorCode::Io),
    (12, ErrorCode::Memory),
    (22, ErrorCode::Invalid),
    (28, ErrorCode::NoSpace),
    (75, ErrorCode::Overflow),
    (95, ErrorCode::NotSupported),
    (108, ErrorCode::Shutdown),
];

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        let found = NUMBERS.iter().find(|(_, code)| *code == self);
        found.expect("every error has a number").0
    }

    /// What a number means, other than 0. Unexpected numbers mean what the protocol says they do.
    pub fn of(number: u32) -> Self {
        let found = NUMBERS.iter().find(|(known, _)| *known == number);
        found.map_or(Self::Invalid, |(_, code)| *code)
    }

    /// What a client is told when the disk behind an export has failed.
    pub fn of_disk(error: &DiskError) -> Self {
        let DiskError::Io { source, .. } = error else { return Self::Invalid };
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
    fn numbers_round_trip_and_unknown_ones_are_invalid_arguments() {
        for (number, code) in NUMBERS {
            assert_eq!(ErrorCode::of(number), code);
            assert_eq!(code.number(), number);
        }
        assert_eq!(ErrorCode::of(4711), ErrorCode::Invalid);
    }
}
