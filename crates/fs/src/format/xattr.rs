//! The XATTR item: the extended attributes of an object whose names share a hash.
//!
//! ```text
//! version u8 = 1, then attributes in the order they were first set:
//!   name length u8 | value length u16 | name | value
//! ```
//!
//! Names are stored with their namespace ("user.mime_type").

use gabion_base::checksum::name_hash;
use gabion_base::codec::{DecodeError, Put, Reader};

/// Longest value that is kept, in bytes; with the longest name it fits an item.
pub const VALUE_LENGTH_MAX: usize = 4096;
/// Longest name in bytes.
pub const NAME_LENGTH_MAX: usize = 255;

const VERSION: u8 = 1;

/// Where an attribute stands in its object.
pub fn position(name: &[u8], seed: u64) -> u64 {
    name_hash(name, seed)
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its name with the namespace.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// The attributes of an item's value.
#[derive(Clone, Debug)]
pub struct AttributeList<'a> {
    reader: Reader<'a>,
}

impl<'a> AttributeList<'a> {
    /// Starts to decode `value`.
    pub fn decode(value: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(value);
        if reader.u8()? != VERSION {
            return Err(DecodeError::Invalid("attribute version"));
        }
        Ok(Self { reader })
    }

    /// The next attribute, `None` after the last one.
    pub fn next_attribute(&mut self) -> Result<Option<Attribute<'a>>, DecodeError> {
        if self.reader.remaining() == 0 {
            return Ok(None);
        }
        let name_length = usize::from(self.reader.u8()?);
        let value_length = usize::from(self.reader.u16()?);
        if name_length == 0 {
            return Err(DecodeError::Invalid("name of an attribute"));
        }
        let name = self.reader.bytes(name_length)?;
        let value = self.reader.bytes(value_length)?;
        Ok(Some(Attribute { name, value }))
    }

    /// The value of the attribute `name`.
    pub fn find(mut self, name: &[u8]) -> Result<Option<&'a [u8]>, DecodeError> {
        while let Some(attribute) = self.next_attribute()? {
            if attribute.name == name {
                return Ok(Some(attribute.value));
            }
        }
        Ok(None)
    }
}

/// The item's value after `name` was set to `value`; `old` is the item's value before.
pub fn set(old: Option<&[u8]>, name: &[u8], value: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(old.map_or(1, <[u8]>::len) + 3 + name.len() + value.len());
    out.put_u8(VERSION);
    let mut is_set = false;
    if let Some(old) = old {
        let mut list = AttributeList::decode(old)?;
        while let Some(attribute) = list.next_attribute()? {
            if attribute.name == name {
                put_attribute(&mut out, name, value);
                is_set = true;
            } else {
                put_attribute(&mut out, attribute.name, attribute.value);
            }
        }
    }
    if !is_set {
        put_attribute(&mut out, name, value);
    }
    Ok(out)
}

/// The item's value without `name`. `None`: there is no other attribute in it.
pub fn remove(old: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut out = Vec::with_capacity(old.len());
    out.put_u8(VERSION);
    let mut list = AttributeList::decode(old)?;
    while let Some(attribute) = list.next_attribute()? {
        if attribute.name != name {
            put_attribute(&mut out, attribute.name, attribute.value);
        }
    }
    Ok((out.len() > 1).then_some(out))
}

fn put_attribute(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    assert!(!name.is_empty() && name.len() <= NAME_LENGTH_MAX, "{}", name.len());
    assert!(value.len() <= usize::from(u16::MAX), "{}", value.len());
    out.put_u8(name.len() as u8);
    out.put_u16(value.len() as u16);
    out.extend_from_slice(name);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_version_1() {
        let one = set(None, b"user.a", b"xy").unwrap();
        assert_eq!(one, *b"\x01\x06\x02\x00user.axy");
        let two = set(Some(&one), b"user.b", b"").unwrap();
        assert_eq!(two, *b"\x01\x06\x02\x00user.axy\x06\x00\x00user.b");
    }

    #[test]
    fn attributes_on_one_position_are_set_and_removed_one_by_one() {
        let value = set(None, b"user.a", b"1").unwrap();
        let value = set(Some(&value), b"user.b", b"2").unwrap();
        let value = set(Some(&value), b"user.a", b"longer").unwrap();
        let list = AttributeList::decode(&value).unwrap();
        assert_eq!(list.clone().find(b"user.a"), Ok(Some(&b"longer"[..])));
        assert_eq!(list.clone().find(b"user.b"), Ok(Some(&b"2"[..])));
        assert_eq!(list.find(b"user.c"), Ok(None));
        let value = remove(&value, b"user.a").unwrap().unwrap();
        assert_eq!(value, set(None, b"user.b", b"2").unwrap());
        assert_eq!(remove(&value, b"user.b"), Ok(None));
    }

    #[test]
    fn damaged_bytes_are_refused_with_a_reason() {
        let good = set(None, b"user.a", b"xy").unwrap();
        for length in 2..good.len() {
            let mut list = AttributeList::decode(&good[..length]).unwrap();
            assert_eq!(list.next_attribute(), Err(DecodeError::Short));
        }
        assert!(AttributeList::decode(&[]).is_err());
        assert!(AttributeList::decode(&[9]).is_err());
        let mut nameless = AttributeList::decode(&[1, 0, 0, 0]).unwrap();
        assert!(nameless.next_attribute().is_err());
    }
}
