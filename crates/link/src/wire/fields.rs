//! Numbers, names of objects, keys, ranges, and strings of bytes: what messages are made of.

use std::sync::Arc;

use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::time::Timestamp;
use gabion_map::key::INO_END;
use gabion_map::txn::{VALUE_LENGTH_MAX, Value};
use gabion_map::{FileId, Key, Kind};

use super::layout::{Layout, put_count, take_count};
use super::{
    CERTIFICATE_BYTES_MAX, DATA_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX,
    TEXT_BYTES_MAX, XATTR_BYTES_MAX,
};
use crate::message::{CallId, ChangeNumber, SessionId};
use crate::range::KeyRange;
use crate::table::RevokeId;

const NANOS_END: u32 = 1_000_000_000;

macro_rules! number {
    ($type:ty, $bytes:literal, $put:ident, $take:ident) => {
        impl Layout for $type {
            type Value = Self;
            const BYTES_MIN: usize = $bytes;

            fn put(value: &Self, out: &mut Vec<u8>) {
                out.$put(*value);
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.$take()
            }
        }
    };
}

number!(u16, 2, put_u16, u16);
number!(u32, 4, put_u32, u32);
number!(u64, 8, put_u64, u64);

impl Layout for i64 {
    type Value = Self;
    const BYTES_MIN: usize = 8;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u64(*value as u64);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(reader.u64()? as i64)
    }
}

/// A number with a name of its own.
macro_rules! newtype {
    ($type:ident($inner:ty)) => {
        impl Layout for $type {
            type Value = Self;
            const BYTES_MIN: usize = <$inner as Layout>::BYTES_MIN;

            fn put(value: &Self, out: &mut Vec<u8>) {
                <$inner as Layout>::put(&value.0, out);
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(<$inner as Layout>::take(reader)?))
            }
        }
    };
}

newtype!(SessionId(u64));
newtype!(CallId(u64));
newtype!(ChangeNumber(u64));
newtype!(RevokeId(u64));
newtype!(SubvolId(u32));

impl Layout for bool {
    type Value = Self;
    const BYTES_MIN: usize = 1;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(*value));
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("yes or no")),
        }
    }
}

impl Layout for Uuid {
    type Value = Self;
    const BYTES_MIN: usize = 16;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.extend_from_slice(&value.0);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(reader.array()?))
    }
}

impl Layout for Timestamp {
    type Value = Self;
    const BYTES_MIN: usize = 12;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u64(value.seconds as u64);
        out.put_u32(value.nanos);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (seconds, nanos) = (reader.u64()? as i64, reader.u32()?);
        match nanos < NANOS_END {
            true => Ok(Self::new(seconds, nanos)),
            false => Err(DecodeError::Invalid("nanoseconds")),
        }
    }
}

impl Layout for Ino {
    type Value = Self;
    const BYTES_MIN: usize = 8;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u64(value.0);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ino = Self(reader.u64()?);
        match ino.0 < INO_END {
            true => Ok(ino),
            false => Err(DecodeError::Invalid("the number of an inode")),
        }
    }
}

/// Inode 0 has items, too, though it is no object.
impl Layout for FileId {
    type Value = Self;
    const BYTES_MIN: usize = 12;

    fn put(value: &Self, out: &mut Vec<u8>) {
        out.put_u32(value.subvol.0);
        out.put_u64(value.ino.0);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let subvol = SubvolId(reader.u32()?);
        Ok(Self::new(subvol, Ino::take(reader)?))
    }
}

/// A place within an object.
pub(super) fn put_place(key: Key, out: &mut Vec<u8>) {
    out.put_u8(key.kind.0);
    out.put_u64(key.at);
}

/// A place within `file`, as a key.
pub(super) fn take_place(file: FileId, reader: &mut Reader<'_>) -> Result<Key, DecodeError> {
    let kind = reader.u8()?;
    if kind == 0 {
        return Err(DecodeError::Invalid("the kind of an item"));
    }
    Ok(file.key(Kind(kind), reader.u64()?))
}

/// Bytes of a place.
pub(super) const PLACE_BYTES: usize = 9;

impl Layout for Key {
    type Value = Self;
    const BYTES_MIN: usize = FileId::BYTES_MIN + PLACE_BYTES;

    fn put(value: &Self, out: &mut Vec<u8>) {
        FileId::put(&value.file(), out);
        put_place(*value, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let file = FileId::take(reader)?;
        take_place(file, reader)
    }
}

impl Layout for KeyRange {
    type Value = Self;
    const BYTES_MIN: usize = FileId::BYTES_MIN + 2 * PLACE_BYTES;

    fn put(value: &Self, out: &mut Vec<u8>) {
        FileId::put(&value.file(), out);
        put_place(value.first(), out);
        put_place(value.last(), out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let file = FileId::take(reader)?;
        let (first, last) = (take_place(file, reader)?, take_place(file, reader)?);
        Self::new(first, last).ok_or(DecodeError::Invalid("a range"))
    }
}

/// Appends a string of at most `limit` bytes.
fn put_string(bytes: &[u8], limit: usize, out: &mut Vec<u8>) {
    assert!(bytes.len() <= limit, "{} of at most {limit} bytes", bytes.len());
    // At once, lest the vector should grow twice.
    out.reserve(4 + bytes.len());
    put_count(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn take_string<'a>(
    reader: &mut Reader<'a>,
    limit: usize,
    field: &'static str,
) -> Result<&'a [u8], DecodeError> {
    let length = take_count(reader, 1)?;
    if length > limit {
        return Err(DecodeError::Invalid(field));
    }
    reader.bytes(length)
}

/// A string of bytes with a limit.
macro_rules! string {
    ($(#[$doc:meta])* $layout:ident: $value:ty, $limit:expr, $field:literal) => {
        $(#[$doc])*
        pub(super) struct $layout;

        impl Layout for $layout {
            type Value = $value;
            const BYTES_MIN: usize = 4;

            fn put(value: &$value, out: &mut Vec<u8>) {
                put_string(value, $limit, out);
            }

            fn take(reader: &mut Reader<'_>) -> Result<$value, DecodeError> {
                Ok(take_string(reader, $limit, $field)?.into())
            }
        }
    };
}

string!(
    /// A name in a directory or of an extended attribute.
    Name: Vec<u8>, NAME_BYTES_MAX, "the length of a name"
);
string!(
    /// What a symbolic link says.
    Target: Vec<u8>, TARGET_BYTES_MAX, "the length of a link's target"
);
string!(
    /// A path from the root of a filesystem or a snapshot.
    Path: Vec<u8>, PATH_BYTES_MAX, "the length of a path"
);
string!(
    /// The value of an extended attribute.
    XattrValue: Vec<u8>, XATTR_BYTES_MAX, "the length of an attribute"
);
string!(
    /// Bytes of a file.
    Bytes: Vec<u8>, DATA_BYTES_MAX, "the number of bytes"
);
string!(
    /// A certificate, or a request for one.
    Certificate: Vec<u8>, CERTIFICATE_BYTES_MAX, "the length of a certificate"
);
string!(
    /// The value of an item of the map.
    ItemValue: Value, VALUE_LENGTH_MAX, "the length of an item"
);

/// Bytes of a file that several keep.
pub(super) struct SharedBytes;

impl Layout for SharedBytes {
    type Value = Arc<Vec<u8>>;
    const BYTES_MIN: usize = Bytes::BYTES_MIN;

    fn put(value: &Arc<Vec<u8>>, out: &mut Vec<u8>) {
        Bytes::put(value, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Arc<Vec<u8>>, DecodeError> {
        Bytes::take(reader).map(Arc::new)
    }
}

/// A text for people, cut where it becomes too long.
pub(super) struct Text;

impl Layout for Text {
    type Value = String;
    const BYTES_MIN: usize = 4;

    fn put(value: &String, out: &mut Vec<u8>) {
        let end = value.floor_char_boundary(TEXT_BYTES_MAX);
        put_string(&value.as_bytes()[..end], TEXT_BYTES_MAX, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
        let bytes = take_string(reader, TEXT_BYTES_MAX, "the length of a text")?;
        let text = str::from_utf8(bytes).map_err(|_| DecodeError::Invalid("a text"))?;
        Ok(text.to_owned())
    }
}

/// What takes the place of an item: its value, or nothing.
pub(super) type Update = (Key, Option<ItemValue>);

/// Items of one object, without saying of which in each.
pub(super) fn put_items(items: &[(Key, Value)], out: &mut Vec<u8>) {
    put_count(items.len(), out);
    for (key, value) in items {
        put_place(*key, out);
        ItemValue::put(value, out);
    }
}

/// Items within `range`, in key order.
pub(super) fn take_items(
    range: KeyRange,
    reader: &mut Reader<'_>,
) -> Result<Vec<(Key, Value)>, DecodeError> {
    let count = take_count(reader, PLACE_BYTES + ItemValue::BYTES_MIN)?;
    let mut items: Vec<(Key, Arc<[u8]>)> = Vec::with_capacity(count);
    for _ in 0..count {
        let item = (take_place(range.file(), reader)?, ItemValue::take(reader)?);
        if !follows(&items, &range, item.0) {
            return Err(DecodeError::Invalid("the key of a granted item"));
        }
        items.push(item);
    }
    Ok(items)
}

/// Whether `key` may stand behind `items` of `range`.
pub(super) fn follows(items: &[(Key, Value)], range: &KeyRange, key: Key) -> bool {
    range.contains(key) && items.last().is_none_or(|(last, _)| *last < key)
}
