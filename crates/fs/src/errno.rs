//! The one table from errors to numbers.

use gabion_map::subvolumes::Refusal;
use gabion_map::{MapError, Stop};

use crate::error::Error;

/// The positive errno of an error, as Linux programs expect it.
///
/// [`Stop::Need`], [`Stop::Lease`] and [`Error::UnwrittenBytes`] are wishes to the driver and no
/// answers; should one of them slip through all the same, the caller may try again (`EAGAIN`).
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::Stop(Stop::Need { .. } | Stop::Lease) | Error::UnwrittenBytes(_) => libc::EAGAIN,
        Error::Stop(Stop::Map(error)) => map_errno(error),
        Error::NotFound => libc::ENOENT,
        Error::Exists => libc::EEXIST,
        Error::NotDirectory => libc::ENOTDIR,
        Error::IsDirectory => libc::EISDIR,
        Error::NotEmpty => libc::ENOTEMPTY,
        Error::NotPermitted => libc::EPERM,
        Error::AccessDenied => libc::EACCES,
        Error::InvalidArgument => libc::EINVAL,
        Error::NameTooLong => libc::ENAMETOOLONG,
        Error::TooManyLinks => libc::EMLINK,
        Error::CrossSubvolume => libc::EXDEV,
        Error::NoAttribute => libc::ENODATA,
        Error::AttributeTooLarge => libc::E2BIG,
        Error::BufferTooSmall => libc::ERANGE,
        Error::ObjectFull => libc::ENOSPC,
        Error::TooLarge => libc::EFBIG,
        Error::NoSuchOffset => libc::ENXIO,
        Error::WouldBlock => libc::EAGAIN,
        Error::Deadlock => libc::EDEADLK,
        Error::Interrupted => libc::EINTR,
        Error::TooManyLocks => libc::ENOLCK,
        Error::NotSupported => libc::EOPNOTSUPP,
        Error::Stale => libc::ESTALE,
        Error::Busy => libc::EBUSY,
        Error::TooDeep => libc::ELOOP,
    }
}

/// The positive errno of a failure below the rules of files.
pub fn map_errno(error: &MapError) -> i32 {
    match error {
        MapError::NoSpace => libc::ENOSPC,
        MapError::OverQuota => libc::EDQUOT,
        MapError::TooLarge => libc::EFBIG,
        MapError::ReadOnly => libc::EROFS,
        MapError::Subvolume(refusal) => match refusal {
            Refusal::Absent => libc::ENOENT,
            Refusal::NameTaken(_) => libc::EEXIST,
            Refusal::BadName(_) | Refusal::NoSnapshot | Refusal::InItself => libc::EINVAL,
            Refusal::Held(_)
            | Refusal::HasClones(_)
            | Refusal::RolledBackTo(_)
            | Refusal::HasSnapshots
            | Refusal::HasSubvolumes => libc::EBUSY,
        },
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_filesystem_a_full_object_and_a_broken_one_differ_from_each_other() {
        assert_eq!(errno(&MapError::NoSpace.into()), libc::ENOSPC);
        assert_eq!(errno(&MapError::OverQuota.into()), libc::EDQUOT);
        assert_eq!(errno(&Error::AttributeTooLarge), libc::E2BIG);
        assert_eq!(errno(&Error::BufferTooSmall), libc::ERANGE);
        assert_eq!(errno(&MapError::ReadOnly.into()), libc::EROFS);
        let stopped = MapError::Stopped { uuid: Default::default(), cause: String::new() };
        assert_eq!(errno(&stopped.into()), libc::EIO);
    }
}
