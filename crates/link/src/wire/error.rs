//! Errors as numbers, and results made of them.
//!
//! Whatever the caller asked wrongly has a number. So have the four failures of the map that have
//! an errno of their own, and the wish for a lease. Every other failure is the server's own
//! affair: the client gets a text, which becomes an error that is `EIO` to programs and says the
//! text to people.

use std::io;
use std::sync::Arc;

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::disk::DiskError;
use gabion_base::ids::BlockAddr;
use gabion_fs::Error;
use gabion_map::{MapError, Stop};

use super::fields::Text;
use super::layout::Layout;
use crate::message::Answer;

/// A failure of the server, with a text.
const FAILED: u16 = 1;
/// What failed, to the client.
const SERVER: &str = "the server";

/// Both directions of the errors that have no fields.
macro_rules! codes {
    ($($number:literal => $($error:tt)::+ $(($($inner:tt)+))?),* $(,)?) => {
        /// The number of an error that has no fields.
        fn code(error: &Error) -> Option<u16> {
            Some(match error {
                $($($error)::+ $(($($inner)+))? => $number,)*
                Error::Stop(_) | Error::UnwrittenBytes(_) => return None,
            })
        }

        /// The error with this number.
        fn error(code: u16) -> Option<Error> {
            Some(match code {
                $($number => $($error)::+ $(($($inner)+))?,)*
                _ => return None,
            })
        }
    };
}

codes! {
    2 => Error::Stop(Stop::Map(MapError::NoSpace)),
    3 => Error::Stop(Stop::Map(MapError::ReadOnly)),
    4 => Error::Stop(Stop::Map(MapError::TooLarge)),
    5 => Error::Stop(Stop::Lease),
    6 => Error::Stop(Stop::Map(MapError::OverQuota)),
    16 => Error::NotFound,
    17 => Error::Exists,
    18 => Error::NotDirectory,
    19 => Error::IsDirectory,
    20 => Error::NotEmpty,
    21 => Error::NotPermitted,
    22 => Error::AccessDenied,
    23 => Error::InvalidArgument,
    24 => Error::NameTooLong,
    25 => Error::TooManyLinks,
    26 => Error::CrossSubvolume,
    27 => Error::NoAttribute,
    28 => Error::AttributeTooLarge,
    29 => Error::BufferTooSmall,
    30 => Error::ObjectFull,
    31 => Error::TooLarge,
    32 => Error::NoSuchOffset,
    33 => Error::WouldBlock,
    34 => Error::Deadlock,
    35 => Error::Interrupted,
    36 => Error::TooManyLocks,
    37 => Error::NotSupported,
    38 => Error::Stale,
    39 => Error::Busy,
    40 => Error::TooDeep,
}

/// The failure of the server that `text` tells of: EIO to programs, and the text to people.
pub fn failure(text: String) -> Error {
    MapError::Disk(DiskError::Io {
        device: SERVER.into(),
        operation: "serve",
        addr: BlockAddr(0),
        source: Arc::new(io::Error::other(text)),
    })
    .into()
}

/// Whether an error is a failure of the server, and says nothing about what was asked.
pub fn is_failure(error: &Error) -> bool {
    code(error).is_none()
}

/// What a failure says; one that came from a server already is passed on as it was.
pub fn said(error: &Error) -> String {
    match error {
        Error::Stop(Stop::Map(MapError::Disk(DiskError::Io { device, source, .. })))
            if **device == *SERVER =>
        {
            source.to_string()
        }
        _ => error.to_string(),
    }
}

/// A number; behind that of a failure its text.
impl Layout for Error {
    type Value = Self;
    const BYTES_MIN: usize = 2;

    fn put(value: &Self, out: &mut Vec<u8>) {
        match code(value) {
            Some(code) => out.put_u16(code),
            None => {
                out.put_u16(FAILED);
                Text::put(&said(value), out);
            }
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u16()? {
            FAILED => Ok(failure(Text::take(reader)?)),
            code => error(code).ok_or(DecodeError::Invalid("an error's number")),
        }
    }
}

/// The result of a call.
pub(super) struct Outcome;

impl Layout for Outcome {
    type Value = Result<Answer, Error>;
    const BYTES_MIN: usize = 2;

    fn put(value: &Self::Value, out: &mut Vec<u8>) {
        match value {
            Ok(answer) => {
                out.put_u8(1);
                Answer::put(answer, out);
            }
            Err(error) => {
                out.put_u8(2);
                Error::put(error, out);
            }
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError> {
        match reader.u8()? {
            1 => Ok(Ok(Answer::take(reader)?)),
            2 => Ok(Err(Error::take(reader)?)),
            _ => Err(DecodeError::Invalid("success or failure")),
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_fs::errno;
    use gabion_map::{FileId, LockMode};

    use super::super::{decode, encode};
    use super::*;

    fn sent(error: &Error) -> Error {
        decode::<Error>(&encode::<Error>(error)).expect("just encoded")
    }

    #[test]
    fn programs_see_the_same_error_on_both_sides() {
        let numbers: Vec<u16> = (0..=u16::MAX).filter(|code| error(*code).is_some()).collect();
        assert_eq!(numbers.len(), 30);
        for number in numbers {
            let error = error(number).expect("it has an error");
            assert_eq!(encode::<Error>(&error), number.to_le_bytes());
            assert_eq!(errno(&sent(&error)), errno(&error), "{error}");
            assert_eq!(sent(&error).to_string(), error.to_string());
        }
    }

    #[test]
    fn a_failure_keeps_its_words_through_several_servers() {
        let cause = "a flush failed".to_owned();
        let stopped = Error::from(MapError::Stopped { uuid: Default::default(), cause });
        let once = sent(&stopped);
        assert_eq!(errno(&once), errno(&stopped));
        assert!(once.to_string().contains(&stopped.to_string()), "{once}");
        assert_eq!(sent(&once).to_string(), once.to_string());
    }

    #[test]
    fn wishes_to_the_driver_do_not_reach_another_driver() {
        let file = FileId::new(SubvolId(1), Ino(2));
        let need = Stop::Need { file, mode: LockMode::Shared };
        for wish in [Error::Stop(need), Error::UnwrittenBytes(file)] {
            assert!(matches!(sent(&wish), Error::Stop(Stop::Map(_))), "{wish}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let long = failure("\u{20ac}".repeat(400));
        assert_eq!(said(&sent(&long)), "\u{20ac}".repeat(341));
    }
}
