//! The value of `system.posix_acl_access` and `system.posix_acl_default`, as the kernel and
//! `libacl` know it, stored in just this form.
//!
//! ```text
//! version u32 = 2, then entries:   tag u16 | permissions u16 | id u32
//! tags in order: owner 1, user 2 *, owning group 4, group 8 *, mask 16 ?, others 32
//! ```
//!
//! Entries of users and groups need a mask. The id of all others is 2^32-1.

use gabion_base::codec::{DecodeError, Put, Reader};

use crate::acl::{Acl, Entry, Tag};

/// Entries at most: what the longest attribute holds.
pub const ENTRIES_MAX: usize = (super::xattr::VALUE_LENGTH_MAX - HEAD) / ENTRY_LENGTH;

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY_LENGTH: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Decodes and validates an ACL. `None`: it has no entries, which means that there is none.
pub fn decode(value: &[u8]) -> Result<Option<Acl>, DecodeError> {
    let mut reader = Reader::new(value);
    if reader.u32()? != VERSION {
        return Err(DecodeError::Invalid("ACL version"));
    }
    if !reader.remaining().is_multiple_of(ENTRY_LENGTH) {
        return Err(DecodeError::Short);
    }
    let count = reader.remaining() / ENTRY_LENGTH;
    if count == 0 {
        return Ok(None);
    }
    if count > ENTRIES_MAX {
        return Err(DecodeError::Invalid("number of ACL entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let tag = reader.u16()?;
        let permissions = reader.u16()?;
        let id = reader.u32()?;
        if permissions > 7 {
            return Err(DecodeError::Invalid("ACL permissions"));
        }
        let tag = match tag {
            1 => Tag::Owner,
            2 => Tag::User(id),
            4 => Tag::OwningGroup,
            8 => Tag::Group(id),
            16 => Tag::Mask,
            32 => Tag::Others,
            _ => return Err(DecodeError::Invalid("ACL tag")),
        };
        if matches!(tag, Tag::User(NO_ID) | Tag::Group(NO_ID)) {
            return Err(DecodeError::Invalid("ACL id"));
        }
        entries.push(Entry { tag, permissions: permissions as u8 });
    }
    Acl::new(entries).map(Some).ok_or(DecodeError::Invalid("order of ACL entries"))
}

/// The ACL's bytes.
pub fn encode(acl: &Acl) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + acl.entries().len() * ENTRY_LENGTH);
    out.put_u32(VERSION);
    for entry in acl.entries() {
        let (tag, id) = match entry.tag {
            Tag::Owner => (1, NO_ID),
            Tag::User(id) => (2, id),
            Tag::OwningGroup => (4, NO_ID),
            Tag::Group(id) => (8, id),
            Tag::Mask => (16, NO_ID),
            Tag::Others => (32, NO_ID),
        };
        out.put_u16(tag);
        out.put_u16(u16::from(entry.permissions));
        out.put_u32(id);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: [u8; 44] = [
        2, 0, 0, 0, // version
        1, 0, 7, 0, 255, 255, 255, 255, // owner rwx
        2, 0, 6, 0, 0xe8, 3, 0, 0, // user 1000 rw-
        4, 0, 5, 0, 255, 255, 255, 255, // owning group r-x
        16, 0, 4, 0, 255, 255, 255, 255, // mask r--
        32, 0, 0, 0, 255, 255, 255, 255, // others ---
    ];

    #[test]
    fn bytes_are_those_of_the_kernel() {
        let acl = decode(&GOLDEN).unwrap().unwrap();
        assert_eq!(acl.entries()[1], Entry { tag: Tag::User(1000), permissions: 6 });
        assert_eq!(encode(&acl), GOLDEN);
        assert_eq!(decode(&GOLDEN[..4]), Ok(None));
    }

    #[test]
    fn acls_that_make_no_sense_are_refused() {
        let without = |skip: usize| {
            let mut bytes = GOLDEN.to_vec();
            bytes.drain(4 + 8 * skip..12 + 8 * skip);
            bytes
        };
        for skip in [0, 2, 3, 4] {
            assert_eq!(decode(&without(skip)), Err(DecodeError::Invalid("order of ACL entries")));
        }
        assert!(decode(&without(1)).unwrap().is_some());
        for (offset, byte, reason) in
            [(0, 1, "ACL version"), (4, 3, "ACL tag"), (6, 8, "ACL permissions")]
        {
            let mut bad = GOLDEN;
            bad[offset] = byte;
            assert_eq!(decode(&bad), Err(DecodeError::Invalid(reason)));
        }
        assert_eq!(decode(&GOLDEN[..43]), Err(DecodeError::Short));
        assert_eq!(decode(&[]), Err(DecodeError::Short));
    }
}
