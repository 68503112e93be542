//! The frame in front of each segment.
//!
//! ```text
//! magic      4   "GSEG"
//! kind       1   1 DATA, 2 RECORDS, 3 INDEX, 4 END
//! packing    1   0 as it is, 1 zstd
//! zero       2
//! number     4   counts from 0
//! raw        4   bytes before packing, at most 4 MiB
//! stored     4   bytes that follow the frame
//! zero       4
//! checksum   8   CRC-64/NVME of the frame before it and of the bytes behind it
//! ```
//!
//! With encryption the bytes behind it are a nonce of 12 bytes, the packed bytes as ciphertext,
//! and a tag of 16; what is authenticated with them is the SHA-256 of the stream's header and the
//! frame's first 16 bytes. The checksum is that of the sealed bytes: it needs no key.

use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};

const MAGIC: [u8; 4] = *b"GSEG";
/// Bytes of a frame.
pub const FRAME: usize = 32;
/// What a segment holds at most before packing, in bytes.
pub const RAW_MAX: usize = 4 << 20;
/// What can follow a frame at most, in bytes: what cannot be packed is kept as it is.
pub const STORED_MAX: usize = RAW_MAX + 64;

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of files.
    Data,
    /// Records.
    Records,
    /// Where other segments are.
    Index,
    /// What there is in all, and where the INDEX segments are.
    End,
}

impl Kind {
    /// Its number in frames and in the index.
    pub fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Records => 2,
            Self::Index => 3,
            Self::End => 4,
        }
    }

    /// The kind with this number.
    pub fn of_code(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            1 => Self::Data,
            2 => Self::Records,
            3 => Self::Index,
            4 => Self::End,
            _ => return Err(DecodeError::Invalid("the kind of a segment")),
        })
    }
}

/// Whether bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// They are not.
    Plain,
    /// By zstd.
    Zstd,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the segment holds.
    pub kind: Kind,
    /// How.
    pub packing: Packing,
    /// Its number.
    pub number: u32,
    /// Its length before packing, in bytes.
    pub raw: u32,
    /// Its length in the stream, without the frame, in bytes.
    pub stored: u32,
}

impl Frame {
    /// The part of the frame that is authenticated: all but what sealing decides.
    pub fn identity(&self) -> [u8; 16] {
        let mut out = MAGIC.to_vec();
        out.put_u8(self.kind.code());
        out.put_u8((self.packing == Packing::Zstd).into());
        out.put_zeros(2);
        out.put_u32(self.number);
        out.put_u32(self.raw);
        out.try_into().expect("the fields have 16 bytes")
    }

    /// The frame's bytes in front of `bytes`.
    pub fn encode(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = self.identity().to_vec();
        out.put_u32(self.stored);
        out.put_zeros(4);
        let checksum = crc64_of(&[&out, bytes]);
        out.put_u64(checksum);
        out
    }

    /// Decodes a frame, and gives the checksum that it and what follows must have.
    pub fn decode(bytes: &[u8; FRAME]) -> Result<(Self, u64), DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC {
            return Err(DecodeError::Invalid("no segment begins here"));
        }
        let kind = Kind::of_code(reader.u8()?)?;
        let packing = match reader.u8()? {
            0 => Packing::Plain,
            1 => Packing::Zstd,
            _ => return Err(DecodeError::Invalid("the packing of a segment")),
        };
        reader.zeros(2)?;
        let frame = Self {
            kind,
            packing,
            number: reader.u32()?,
            raw: reader.u32()?,
            stored: reader.u32()?,
        };
        reader.zeros(4)?;
        if frame.raw as usize > RAW_MAX || frame.stored as usize > STORED_MAX {
            return Err(DecodeError::Invalid("the length of a segment"));
        }
        Ok((frame, reader.u64()?))
    }

    /// Whether these bytes, with the frame before them, have this checksum.
    pub fn has_checksum(frame: &[u8; FRAME], bytes: &[u8], checksum: u64) -> bool {
        crc64_of(&[&frame[..FRAME - 8], bytes]) == checksum
    }
}
