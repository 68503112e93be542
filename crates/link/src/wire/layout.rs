//! How a structure is put together of its fields.
//!
//! A [`Layout`] tells how values of one type look. Most types are their own layout; a byte string
//! has several, which differ in how long it may be. Three macros make layouts from tables, so that
//! both directions cannot disagree, and a variant that is missing does not compile:
//!
//! - `record!`: the fields of a structure, in the order of the table;
//! - `numbered!`: a choice without fields, as one byte;
//! - `tagged!`: a choice with fields: a byte, then the fields of the variant.

use gabion_base::codec::{DecodeError, Put, Reader};

/// How values look as bytes.
pub(super) trait Layout {
    /// What is laid out.
    type Value;
    /// No value takes fewer bytes. At least 1: it is what keeps counts of lists honest.
    const BYTES_MIN: usize;

    /// Appends `value`.
    fn put(value: &Self::Value, out: &mut Vec<u8>);

    /// Takes a value from the head of what is left.
    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError>;
}

impl<L: Layout> Layout for Option<L> {
    type Value = Option<L::Value>;
    const BYTES_MIN: usize = 1;

    fn put(value: &Self::Value, out: &mut Vec<u8>) {
        out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            L::put(value, out);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError> {
        match reader.u8()? {
            0 => Ok(None),
            1 => Ok(Some(L::take(reader)?)),
            _ => Err(DecodeError::Invalid("the presence of a value")),
        }
    }
}

impl<L: Layout> Layout for Vec<L> {
    type Value = Vec<L::Value>;
    const BYTES_MIN: usize = 4;

    fn put(value: &Self::Value, out: &mut Vec<u8>) {
        put_count(value.len(), out);
        for element in value {
            L::put(element, out);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError> {
        let count = take_count(reader, L::BYTES_MIN)?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(L::take(reader)?);
        }
        Ok(list)
    }
}

impl<A: Layout, B: Layout> Layout for (A, B) {
    type Value = (A::Value, B::Value);
    const BYTES_MIN: usize = A::BYTES_MIN + B::BYTES_MIN;

    fn put(value: &Self::Value, out: &mut Vec<u8>) {
        A::put(&value.0, out);
        B::put(&value.1, out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError> {
        Ok((A::take(reader)?, B::take(reader)?))
    }
}

/// Appends a count of elements or bytes.
pub(super) fn put_count(count: usize, out: &mut Vec<u8>) {
    out.put_u32(u32::try_from(count).expect("no frame has room for so many"));
}

/// A count of elements that take at least `bytes_min` bytes each, all of which are left.
pub(super) fn take_count(reader: &mut Reader<'_>, bytes_min: usize) -> Result<usize, DecodeError> {
    let count = reader.u32()? as usize;
    if count > reader.remaining() / bytes_min {
        return Err(DecodeError::Short);
    }
    Ok(count)
}

/// The layout of a structure: its fields side by side.
macro_rules! record {
    ($record:ident { $($field:ident: $layout:ty),* $(,)? }) => {
        impl Layout for $record {
            type Value = Self;
            const BYTES_MIN: usize = 0 $(+ <$layout as Layout>::BYTES_MIN)*;

            fn put(value: &Self, out: &mut Vec<u8>) {
                let Self { $($field),* } = value;
                $(<$layout as Layout>::put($field, out);)*
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self { $($field: <$layout as Layout>::take(reader)?),* })
            }
        }
    };
}

/// The layout of a choice without fields: a byte.
macro_rules! numbered {
    ($choice:ident, $name:literal, { $($variant:ident = $number:literal),* $(,)? }) => {
        impl Layout for $choice {
            type Value = Self;
            const BYTES_MIN: usize = 1;

            fn put(value: &Self, out: &mut Vec<u8>) {
                out.put_u8(match value { $(Self::$variant => $number),* });
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(match reader.u8()? {
                    $($number => Self::$variant,)*
                    _ => return Err(DecodeError::Invalid($name)),
                })
            }
        }
    };
}

/// The layout of a choice with fields: a byte, and the fields. First the variants whose fields
/// have names, then those whose fields get theirs here.
macro_rules! tagged {
    (
        $choice:ident, $name:literal;
        $($number:literal => $variant:ident { $($field:ident: $layout:ty),* $(,)? }),* $(,)?;
        $($place:literal => $tuple:ident ( $($part:ident: $shape:ty),* )),* $(,)?
    ) => {
        impl Layout for $choice {
            type Value = Self;
            const BYTES_MIN: usize = 1;

            fn put(value: &Self, out: &mut Vec<u8>) {
                match value {
                    $(Self::$variant { $($field),* } => {
                        out.put_u8($number);
                        $(<$layout as Layout>::put($field, out);)*
                    })*
                    $(Self::$tuple($($part),*) => {
                        out.put_u8($place);
                        $(<$shape as Layout>::put($part, out);)*
                    })*
                }
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(match reader.u8()? {
                    $($number => Self::$variant {
                        $($field: <$layout as Layout>::take(reader)?),*
                    },)*
                    $($place => Self::$tuple($(<$shape as Layout>::take(reader)?),*),)*
                    _ => return Err(DecodeError::Invalid($name)),
                })
            }
        }
    };
}

pub(super) use {numbered, record, tagged};
