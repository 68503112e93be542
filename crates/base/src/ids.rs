//! Identifiers and addresses, each its own type so that they cannot be confused.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// A block's number on a device; its byte offset is `BlockAddr * BLOCK_SIZE`.
    BlockAddr(u64),
    "block {}"
);
id!(
    /// A transaction group: everything that one commit makes durable together. Also the unit of
    /// birth times. Commits are numbered from 1 without gaps.
    Txg(u64),
    "txg {}"
);
id!(
    /// A file, directory or other object within one subvolume. 0 is never an inode.
    Ino(u64),
    "inode {}"
);
id!(
    /// A subvolume: an independent tree of files. 0 is the forest that lists the others.
    SubvolId(u32),
    "subvolume {}"
);

impl BlockAddr {
    /// The address `blocks` further on.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }

    /// The offset in bytes from the head of the device.
    pub fn byte_offset(self) -> u64 {
        self.0 * crate::BLOCK_SIZE as u64
    }
}

impl Txg {
    /// The transaction group after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A filesystem's or device's identity, 16 bytes as in RFC 9562.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Makes a random (version 4) identity out of 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// Parses the usual text of 32 hexadecimal digits, with or without hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = (high * 16 + low) as u8;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips() {
        let uuid = Uuid::from_random([7; 16]);
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(Uuid::parse("not one"), None);
    }
}
