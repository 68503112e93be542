//! What is said in RECORDS segments. Each record is a tag u8, a length u32 and a body.
//!
//! ```text
//! 1  object     ino u64, mode u32, uid u32, gid u32, rdev u32, size u64, content u8 (0: what the
//!               base has of it, as far as nothing else is said; 1: nothing but what is said here),
//!               4 x (seconds i64, nanoseconds u32): read, written, changed, born;
//!               target u32 and bytes; count u16, count x (name u16 and bytes, value u32 and bytes)
//! 2  name       directory u64, ino u64, then the name
//! 3  pieces     ino u64, then n x (offset u64, length u32, segment u32, at u32, digest 16)
//! 4  hole       ino u64, from u64, to u64: zeros, whatever was there
//! 5  no name    directory u64, then the name: it is gone
//! 6  no object  ino u64: it is gone
//! 7  complete   ino u64: everything about it has been said
//! ```
//!
//! Later records prevail over earlier ones. A piece lies in a DATA segment of the same stream,
//! which comes before the record; what its digest is made by is said by the stream's version
//! ([`crate::Hash`]).

use gabion_base::codec::{DecodeError, Put, Reader};

/// The longest piece of a file, in bytes.
pub const PIECE_MAX: usize = 256 << 10;
/// The longest file, in bytes.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// The longest target of a symbolic link and the longest value of an attribute, in bytes.
pub const VALUE_MAX: usize = 1 << 20;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
/// Bytes of a piece in its record.
const PIECE: usize = 36;

/// A moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds, fewer than a thousand million.
    pub nanoseconds: u32,
}

/// What stat(2) says of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's encoding in 32 bits: minor's low 8 bits, 12 bits of major,
    /// the rest of minor.
    pub rdev: u32,
    /// Bytes of a regular file; 0 for all else.
    pub size: u64,
    /// Last reading.
    pub read: Time,
    /// Last change of the content.
    pub written: Time,
    /// Last change of anything.
    pub changed: Time,
    /// Creation; zero if the source does not know it.
    pub born: Time,
}

impl Attributes {
    /// The type's bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & 0o170_000
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind() == 0o040_000
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == 0o100_000
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind() == 0o120_000
    }
}

/// What the bytes are that an object's record does not mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What they were in the base.
    Kept,
    /// Zeros.
    Fresh,
}

/// An object: everything but its names and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its number.
    pub ino: u64,
    /// What stat(2) says of it.
    pub attributes: Attributes,
    /// What its bytes are where nothing else is said.
    pub content: Content,
    /// Target of a symbolic link, else empty.
    pub target: Vec<u8>,
    /// Extended attributes, access lists among them: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A part of a file and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes: at least one, at most [`PIECE_MAX`].
    pub length: u32,
    /// Which DATA segment holds them.
    pub segment: u32,
    /// Where in that.
    pub at: u32,
    /// What they have in common with all that are equal.
    pub digest: [u8; 16],
}

/// Something that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An object is this.
    Object(Object),
    /// A name in a directory stands for an object.
    Name {
        /// The directory.
        dir: u64,
        /// The object.
        ino: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// Parts of a file have these bytes.
    Pieces {
        /// The file.
        ino: u64,
        /// The parts.
        pieces: Vec<Piece>,
    },
    /// A part of a file is a hole.
    Hole {
        /// The file.
        ino: u64,
        /// Its first byte.
        from: u64,
        /// Behind its last.
        to: u64,
    },
    /// A name is gone.
    NoName {
        /// The directory.
        dir: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// An object is gone.
    NoObject {
        /// Which.
        ino: u64,
    },
    /// Everything about an object has been said.
    Complete {
        /// Which.
        ino: u64,
    },
}

impl Record {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u8(0);
        out.put_u32(0);
        let tag = match self {
            Self::Object(object) => {
                encode_object(object, out);
                1
            }
            Self::Name { dir, ino, name } => {
                out.put_u64(*dir);
                out.put_u64(*ino);
                out.extend_from_slice(name);
                2
            }
            Self::Pieces { ino, pieces } => {
                out.put_u64(*ino);
                pieces.iter().for_each(|piece| encode_piece(piece, out));
                3
            }
            Self::Hole { ino, from, to } => {
                out.put_u64(*ino);
                out.put_u64(*from);
                out.put_u64(*to);
                4
            }
            Self::NoName { dir, name } => {
                out.put_u64(*dir);
                out.extend_from_slice(name);
                5
            }
            Self::NoObject { ino } => {
                out.put_u64(*ino);
                6
            }
            Self::Complete { ino } => {
                out.put_u64(*ino);
                7
            }
        };
        out[start] = tag;
        let length = (out.len() - start - 5) as u32;
        out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    }

    /// Decodes the next record of a RECORDS segment.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = reader.u8()?;
        let length = reader.u32()? as usize;
        let mut body = Reader::new(reader.bytes(length)?);
        let record = match tag {
            1 => Self::Object(decode_object(&mut body)?),
            2 => {
                let (dir, ino) = (body.u64()?, body.u64()?);
                Self::Name { dir, ino, name: decode_name(&mut body)? }
            }
            3 => Self::Pieces { ino: body.u64()?, pieces: decode_pieces(&mut body)? },
            4 => {
                let (ino, from, to) = (body.u64()?, body.u64()?, body.u64()?);
                if from >= to || to > SIZE_MAX {
                    return Err(DecodeError::Invalid("the range of a hole"));
                }
                Self::Hole { ino, from, to }
            }
            5 => Self::NoName { dir: body.u64()?, name: decode_name(&mut body)? },
            6 => Self::NoObject { ino: body.u64()? },
            7 => Self::Complete { ino: body.u64()? },
            _ => return Err(DecodeError::Invalid("the tag of a record")),
        };
        body.finish()?;
        Ok(record)
    }
}

fn encode_object(object: &Object, out: &mut Vec<u8>) {
    let of = &object.attributes;
    out.put_u64(object.ino);
    for value in [of.mode, of.uid, of.gid, of.rdev] {
        out.put_u32(value);
    }
    out.put_u64(of.size);
    out.put_u8((object.content == Content::Fresh).into());
    for time in [of.read, of.written, of.changed, of.born] {
        out.put_u64(time.seconds as u64);
        out.put_u32(time.nanoseconds);
    }
    out.put_u32(object.target.len() as u32);
    out.extend_from_slice(&object.target);
    out.put_u16(object.xattrs.len() as u16);
    for (name, value) in &object.xattrs {
        out.put_u16(name.len() as u16);
        out.extend_from_slice(name);
        out.put_u32(value.len() as u32);
        out.extend_from_slice(value);
    }
}

fn decode_object(reader: &mut Reader<'_>) -> Result<Object, DecodeError> {
    let ino = reader.u64()?;
    let (mode, uid) = (reader.u32()?, reader.u32()?);
    let (gid, rdev) = (reader.u32()?, reader.u32()?);
    let size = reader.u64()?;
    let content = match reader.u8()? {
        0 => Content::Kept,
        1 => Content::Fresh,
        _ => return Err(DecodeError::Invalid("what a file's bytes are")),
    };
    let (read, written) = (decode_time(reader)?, decode_time(reader)?);
    let (changed, born) = (decode_time(reader)?, decode_time(reader)?);
    let attributes = Attributes { mode, uid, gid, rdev, size, read, written, changed, born };
    check_attributes(&attributes)?;
    let length = reader.u32()? as usize;
    if length > VALUE_MAX || (length > 0) != attributes.is_symlink() {
        return Err(DecodeError::Invalid("the target of a symbolic link"));
    }
    let target = reader.bytes(length)?.to_vec();
    if target.contains(&0) {
        return Err(DecodeError::Invalid("the target of a symbolic link"));
    }
    let mut xattrs = Vec::new();
    for _ in 0..reader.u16()? {
        let length = reader.u16()?.into();
        let name = reader.bytes(length)?.to_vec();
        let length = reader.u32()? as usize;
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) || length > VALUE_MAX {
            return Err(DecodeError::Invalid("an extended attribute"));
        }
        xattrs.push((name, reader.bytes(length)?.to_vec()));
    }
    Ok(Object { ino, attributes, content, target, xattrs })
}

fn check_attributes(attributes: &Attributes) -> Result<(), DecodeError> {
    let kinds = [0o010_000, 0o020_000, 0o040_000, 0o060_000, 0o100_000, 0o120_000, 0o140_000];
    if !kinds.contains(&attributes.kind()) || attributes.mode > 0o177_777 {
        return Err(DecodeError::Invalid("the type of an object"));
    }
    if attributes.size > SIZE_MAX || (attributes.size > 0 && !attributes.is_file()) {
        return Err(DecodeError::Invalid("the size of an object"));
    }
    Ok(())
}

/// Decodes a moment.
pub(crate) fn decode_time(reader: &mut Reader<'_>) -> Result<Time, DecodeError> {
    let time = Time { seconds: reader.u64()? as i64, nanoseconds: reader.u32()? };
    if time.nanoseconds >= 1_000_000_000 {
        return Err(DecodeError::Invalid("a time"));
    }
    Ok(time)
}

fn decode_name(reader: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let name = reader.bytes(reader.remaining())?;
    let forbidden = name.is_empty()
        || name.len() > NAME_MAX
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, b'/' | 0));
    match forbidden {
        true => Err(DecodeError::Invalid("a name")),
        false => Ok(name.to_vec()),
    }
}

fn encode_piece(piece: &Piece, out: &mut Vec<u8>) {
    out.put_u64(piece.offset);
    out.put_u32(piece.length);
    out.put_u32(piece.segment);
    out.put_u32(piece.at);
    out.extend_from_slice(&piece.digest);
}

fn decode_pieces(reader: &mut Reader<'_>) -> Result<Vec<Piece>, DecodeError> {
    let mut pieces = Vec::with_capacity(reader.remaining() / PIECE);
    while reader.remaining() > 0 {
        let (offset, length) = (reader.u64()?, reader.u32()?);
        let (segment, at) = (reader.u32()?, reader.u32()?);
        let piece = Piece { offset, length, segment, at, digest: reader.array()? };
        let end = offset.checked_add(length.into());
        if length == 0 || length as usize > PIECE_MAX || end.is_none_or(|end| end > SIZE_MAX) {
            return Err(DecodeError::Invalid("the range of a piece"));
        }
        pieces.push(piece);
    }
    Ok(pieces)
}
