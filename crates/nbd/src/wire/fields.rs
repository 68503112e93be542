//! Bounded reading and plain writing of big-endian fields.

use gabion_base::codec::{DecodeError, Reader};

/// A cursor over bytes that the peer wrote: the one of the disk format, for the other byte order.
#[derive(Clone, Debug)]
pub struct Fields<'a>(Reader<'a>);

impl<'a> Fields<'a> {
    /// Reads from the head of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Reader::new(bytes))
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        self.0.bytes(length)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.0.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.0.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.0.array()?))
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::replace(&mut self.0, Reader::new(&[])).rest()
    }

    /// Fails if anything is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        self.0.finish()
    }
}

/// Text of the peer, which must be UTF-8.
pub fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid(field))
}

/// Puts fields side by side into an array; all of it must be filled.
pub fn array<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    assert_eq!(at, N, "the fields fill the structure");
    bytes
}
