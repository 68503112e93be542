//! Requests: 28 bytes, and the data of a write behind them.

use gabion_base::codec::DecodeError;

use super::REQUEST_MAGIC;
use super::fields::{Fields, array};

/// Bytes of a request without its data.
pub const REQUEST_BYTES: usize = 28;

/// What a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write the data that follows.
    Write = 1,
    /// Say goodbye.
    Disconnect = 2,
    /// Make durable what has been completed.
    Flush = 3,
    /// The content is no longer needed.
    Trim = 4,
    /// The content will be needed soon.
    Cache = 5,
    /// Write zeros.
    WriteZeroes = 6,
    /// Ask what is allocated.
    BlockStatus = 7,
}

/// All of them, in the order of their numbers.
const COMMANDS: [Command; 8] = [
    Command::Read,
    Command::Write,
    Command::Disconnect,
    Command::Flush,
    Command::Trim,
    Command::Cache,
    Command::WriteZeroes,
    Command::BlockStatus,
];

impl Command {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The command with this number.
    pub fn of(number: u16) -> Option<Self> {
        COMMANDS.get(usize::from(number)).copied()
    }
}

/// A request as it is on the wire; only its magic number has been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bits of [`super::command_flag`].
    pub flags: u16,
    /// See [`Command::of`].
    pub command: u16,
    /// The client's mark, which the replies carry.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
}

impl Request {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        array(&[
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }

    /// Fails unless the magic number is right; anything else is for whoever executes it.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return Err(DecodeError::Invalid("the magic number of a request"));
        }
        Ok(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_write_request_has_the_bytes_of_the_standard() {
        let command = Command::Write.number();
        let request = Request { flags: 1, command, cookie: 0x1122, offset: 4096, length: 512 };
        let golden = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0x11, 0x22, 0, 0, 0, 0, 0, 0,
            0x10, 0, 0, 0, 2, 0,
        ];
        assert_eq!(request.encode(), golden);
        assert_eq!(Request::decode(&golden), Ok(request));
    }

    #[test]
    fn every_command_is_found_by_its_number() {
        for command in COMMANDS {
            assert_eq!(Command::of(command.number()), Some(command));
        }
        assert_eq!(Command::of(8), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_a_reason(bytes: [u8; REQUEST_BYTES]) {
            let decoded = Request::decode(&bytes);
            prop_assert_eq!(decoded.is_ok(), bytes[..4] == REQUEST_MAGIC.to_be_bytes());
            if let Ok(request) = decoded {
                prop_assert_eq!(request.encode(), bytes);
            }
        }
    }
}
