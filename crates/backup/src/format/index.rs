//! Where segments are: INDEX segments, the END segment, and the tail by which those are found.
//!
//! ```text
//! INDEX   count x (offset u64, kind u8, raw u32, stored u32), in the order of numbers, all but
//!         INDEX and END segments
//! END     segments u32 (indexed ones), zero u32, objects u64, bytes u64 (of files, before equal
//!         pieces were left out), count u32, count x offset u64 of an INDEX segment
//! tail    magic 8 "GABIONTL", offset of the END segment u64, stream 16, checksum 8
//! ```

use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Put, Reader};

use super::header::StreamId;
use super::segment::{Kind, RAW_MAX, STORED_MAX};

const MAGIC: [u8; 8] = *b"GABIONTL";
/// Bytes of the tail.
pub const TAIL: usize = 40;
/// Bytes of an entry of an INDEX segment.
const ENTRY: usize = 17;
/// Entries that one INDEX segment has at most.
pub const ENTRIES_MAX: usize = 60_000;

/// Where a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its frame begins.
    pub offset: u64,
    /// What it holds.
    pub kind: Kind,
    /// Its length before packing, in bytes.
    pub raw: u32,
    /// Its length in the stream without the frame, in bytes.
    pub stored: u32,
}

/// What a stream has in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Objects that are told of.
    pub objects: u64,
    /// Bytes of files, before equal pieces were left out and the rest was packed.
    pub bytes: u64,
}

/// The END segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Number of segments in the index.
    pub segments: u32,
    /// What there is in all.
    pub totals: Totals,
    /// Where the INDEX segments are.
    pub index: Vec<u64>,
}

/// The bytes of an INDEX segment.
pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY);
    for entry in entries {
        out.put_u64(entry.offset);
        out.put_u8(entry.kind.code());
        out.put_u32(entry.raw);
        out.put_u32(entry.stored);
    }
    out
}

/// The entries of an INDEX segment.
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::with_capacity(bytes.len() / ENTRY);
    while reader.remaining() > 0 {
        let offset = reader.u64()?;
        let kind = Kind::of_code(reader.u8()?)?;
        let (raw, stored) = (reader.u32()?, reader.u32()?);
        if !matches!(kind, Kind::Data | Kind::Records) {
            return Err(DecodeError::Invalid("the kind of a segment in the index"));
        }
        if raw as usize > RAW_MAX || stored as usize > STORED_MAX {
            return Err(DecodeError::Invalid("the length of a segment in the index"));
        }
        entries.push(Entry { offset, kind, raw, stored });
    }
    Ok(entries)
}

impl End {
    /// The bytes of the END segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(self.segments);
        out.put_zeros(4);
        out.put_u64(self.totals.objects);
        out.put_u64(self.totals.bytes);
        out.put_u32(self.index.len() as u32);
        for offset in &self.index {
            out.put_u64(*offset);
        }
        out
    }

    /// Decodes an END segment.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let segments = reader.u32()?;
        reader.zeros(4)?;
        let totals = Totals { objects: reader.u64()?, bytes: reader.u64()? };
        let count = reader.u32()? as usize;
        if reader.remaining() != count.saturating_mul(8) {
            return Err(DecodeError::Invalid("the number of INDEX segments"));
        }
        let index = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { segments, totals, index })
    }
}

/// The tail's bytes.
pub fn encode_tail(end: u64, stream: StreamId) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u64(end);
    out.extend_from_slice(&stream.0);
    out.put_u64(crc64(&out));
    out
}

/// Where the END segment begins, and of which stream the tail is; nothing if it is no tail.
pub fn decode_tail(bytes: &[u8; TAIL]) -> Option<(u64, StreamId)> {
    let mut reader = Reader::new(bytes);
    let (magic, end) = (reader.array::<8>().ok()?, reader.u64().ok()?);
    let stream = StreamId(reader.array().ok()?);
    let checksum = reader.u64().ok()?;
    (magic == MAGIC && crc64(&bytes[..TAIL - 8]) == checksum).then_some((end, stream))
}
